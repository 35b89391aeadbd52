"""The Pareto front of a search: models that no other model beats in both accuracy and speed, as files, a table and a
picture.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path

from edgeopt import graph
from edgeopt.errors import DataError, ValidityError
from edgeopt.files import check_folder, empty, json_of, staged, text_of
from edgeopt.pictures import WIDE, Axes, svg, text
from edgeopt.quantization.candidates import Draft
from edgeopt.quantization.check import Tried, verify
from edgeopt.quantization.prepare import Task
from edgeopt.quantization.search import Attempt

_EQUAL = 1.03
_TABLE = "pareto.json"
_FAR_DB = 100.0  # limit of the picture's SQNR axis
_ABOVE_DB = 3.0


def front(points: Sequence[Attempt]) -> list[Attempt]:
    """The Pareto-optimal `points`, fastest first; speeds within 3 % count as equal, since timing is no more precise."""
    found: list[Attempt] = []
    for p in sorted(points, key=lambda p: (p.score, p.sqnr_db, p.speed), reverse=True):
        if not any(q.speed * _EQUAL >= p.speed for q in found):
            found.append(p)
    return sorted(found, key=lambda p: -p.speed)


def with_kept(found: list[Attempt], points: Sequence[Attempt], kept: Draft | None) -> list[Attempt]:
    """The front `found` and the point of the result that was kept, if the samples that calibrate put another before it
    and the held-out samples did not agree.
    """
    missing = [p for p in points if p.draft is kept and not any(q.draft is kept for q in found)]
    return sorted([*found, *missing[:1]], key=lambda p: -p.speed)


def write_front(task: Task, points: Sequence[Attempt], folder: Path, kept: Draft | None = None) -> list[Tried]:
    """Write the models of the front to `folder` as NN-name.onnx, with pareto.json and pareto.svg; each is checked like
    any result.

    The figures compare with the float model on the held-out samples; the result `kept` is among them. A model that
    fails a check is reported in a note and left out.
    """
    check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _forget(folder)
    found: list[tuple[str, Tried]] = []
    for i, p in enumerate(with_kept(front(points), points, kept)):
        name = f"{i + 1:02d}-{re.sub('[^a-z0-9]+', '-', p.what.lower()).strip('-')[:50]}.onnx"
        with staged(folder / name) as stage:
            try:
                found.append((p.what, verify(task, p.draft, stage / name)))
            except (ValidityError, DataError) as e:
                task.note(f"pareto: {p.what}: {e}")
                empty(stage)
                continue
    rows = [_row(what, t) for what, t in found]
    (folder / _TABLE).write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    (folder / "pareto.svg").write_text(picture(rows), encoding="utf-8")
    for _, t in found:
        speed = "" if t.latency is None else f", {t.latency.speedup:.2f}x float speed"
        near = "exact" if t.worst_sqnr_db == math.inf else f"{t.worst_sqnr_db:.1f} dB"
        task.note(f"pareto: {t.path.name}: {near}{speed}")
    return [t for _, t in found]


def _forget(folder: Path) -> None:
    """Remove the models of an earlier front, listed in its table."""
    try:
        rows = json_of(text_of(folder / _TABLE))
        names = [str(row["file"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in names:
        if re.fullmatch(r"\d\d-[a-z0-9-]*\.onnx", name):
            (folder / name).unlink(missing_ok=True)


def _row(what: str, t: Tried) -> dict[str, str | float | None]:
    times = ("latency_ms", "speedup", "speedup_low", "speedup_high")
    return {
        "file": t.path.name,
        "what": what,
        "sqnr_db": round(t.worst_sqnr_db, 3) if math.isfinite(t.worst_sqnr_db) else None,
        "agreement": t.agreement,
        "metric": t.metric,
        **(dict.fromkeys(times) if t.latency is None else asdict(t.latency)),
        "size_bytes": graph.size_bytes(t.draft.model),
    }


def _levels(rows: Sequence[dict[str, str | float | None]]) -> list[float]:
    """Vertical position of each row in the picture, in dB; exact results are placed a little above all others."""
    given = [math.inf if r["sqnr_db"] is None else float(r["sqnr_db"]) for r in rows]
    known = [max(-_FAR_DB, min(_FAR_DB, x)) for x in given if x < math.inf]
    return [max(known, default=0.0) + _ABOVE_DB if x == math.inf else max(-_FAR_DB, min(_FAR_DB, x)) for x in given]


def picture(rows: Sequence[dict[str, str | float | None]]) -> str:
    """An SVG of SQNR against speed-up with 95 % intervals; rows that were not timed are placed at 1."""
    levels = _levels(rows)
    xs = [float(r[k] or 1.0) for r in rows for k in ("speedup_low", "speedup_high")] or [1.0]
    ys = levels or [0.0]
    axes = Axes(min([*xs, 1.0]) * 0.98, max(xs) * 1.02, min(ys) - 1, max(ys) + 1, bottom=340)
    body = [*axes.down(), *axes.across(), *axes.named("times as fast as float", "SQNR in dB")]
    for r, db in zip(rows, levels, strict=True):
        low, at, high = (float(r[k] or 1.0) for k in ("speedup_low", "speedup", "speedup_high"))
        exact = " exact" if r["sqnr_db"] in (None, math.inf) else ""
        body += [
            axes.whisker(low, high, db),
            f'<circle class="bubble" cx="{axes.x(at):.1f}" cy="{axes.y(db):.1f}" r="5">'
            f"<title>{escape(str(r['what']))}</title></circle>",
            text(axes.x(at), axes.y(db) - 9, f"{str(r['file'])[:2]}{exact}", kind="name", anchor="middle"),
        ]
    return svg(WIDE, axes.bottom + 46, "SQNR against speed", body, alone=True) + "\n"
