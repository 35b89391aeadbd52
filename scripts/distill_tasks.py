"""Tasks on which students are taught, runs of a task by name and seed, kept in a file so that a killed script goes on,
and tables of them with paired intervals.

A run's figure is the accuracy on test samples that neither training nor the choice of an epoch sees.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnx
import onnx_ir as ir
import task_digits
import task_glosses
import torch
from task_material import MODELS, Feed

import edgeopt
from edgeopt import graph
from edgeopt.runtime.session import open_session

KEPT = MODELS / "bench_distill.jsonl"
_T = {3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 8: 2.365, 10: 2.262}  # Student's t, 97.5 %, by number of runs


@dataclass(frozen=True)
class Lesson:
    """A task. student: of a seed, with first weights; teacher: made when missing; usual: options of every run."""

    name: str
    student: Callable[[int], onnx.ModelProto]
    teacher: Callable[[], Path]
    feeds: Callable[[], list[Feed]]
    """With labels."""
    more: Callable[[], list[Feed]]
    """Without labels."""
    test: Callable[[], list[Feed]]
    views: tuple[str, ...]
    """Augmentations that fit."""
    usual: Mapping[str, Any] = field(default_factory=dict)


def accuracy(model: ir.Model | onnx.ModelProto | Path, feeds: Sequence[Feed]) -> float:
    """Share of `feeds` told right, run in batches of those of one shape."""
    session = open_session(model if isinstance(model, ir.Model | Path) else ir.from_proto(model), threads=2)
    names, right = [i.name for i in session.raw.get_inputs()], 0
    by_shape: dict[tuple[int, ...], list[Feed]] = {}
    for feed in feeds:
        by_shape.setdefault(feed[names[0]].shape, []).append(feed)
    for alike in by_shape.values():
        for i in range(0, len(alike), 256):
            part = alike[i : i + 256]
            y = session.run({n: np.concatenate([f[n] for f in part]) for n in names})[0].argmax(1)
            right += int((y == np.concatenate([f["label"] for f in part])).sum())
    return right / len(feeds)


def without_label(feeds: Sequence[Feed]) -> list[Feed]:
    return [{k: v for k, v in f.items() if k != "label"} for f in feeds]


@functools.cache
def _digits() -> tuple[list[Feed], list[Feed]]:
    return task_digits.digits()


@functools.cache
def _glosses(start: int, stop: int) -> list[Feed]:
    return task_glosses.feeds(task_glosses.glosses()[start:stop])


def gloss_teacher() -> Path:
    """MiniLM-L6 with a head, an epoch on all texts but the test's: about 50 minutes on two cores."""
    path = MODELS / "glosses_teacher.onnx"
    if not path.is_file():
        model = task_glosses.with_head("minilm_l6.onnx", "last_hidden_state", 384, 0)
        found = edgeopt.distill(
            model, _glosses(task_glosses.TEST, len(task_glosses.glosses())), kind="self", generations=1, epochs=1,
            learning_rate=1e-4, freeze=("*embeddings*",),
        )  # fmt: skip
        graph.write(found.model, path)
    return path


def _gloss(name: str, student: Callable[[int], onnx.ModelProto], labels: int, **usual: Any) -> Lesson:
    first = task_glosses.TEST
    return Lesson(
        f"glosses {name}",
        student,
        gloss_teacher,
        lambda: _glosses(first, first + labels),
        lambda: without_label(_glosses(first + labels, first + labels + 40_000)),
        lambda: _glosses(0, first),
        ("mask",),
        {"cache": MODELS / ".teacher", **usual},
    )


def _digit(labels: int, **usual: Any) -> Lesson:
    return Lesson(
        f"digits {labels}",
        task_digits.student,
        lambda: task_digits.TEACHER,
        lambda: _digits()[0][:labels],
        lambda: without_label(_digits()[0][labels:]),
        lambda: _digits()[1],
        ("crop",),
        usual,
    )


def lessons() -> dict[str, Lesson]:
    """The tasks by name; `epochs` are those of one network alone."""
    all_of = [
        _digit(500, epochs=120),
        _digit(3500, epochs=40),
        _gloss("convolutional", task_glosses.convolutional, 5_000, epochs=24),
        _gloss("narrow", task_glosses.narrow, 5_000, epochs=24),
    ]
    return {lesson.name: lesson for lesson in all_of}


def options_of(lesson: Lesson, way: Mapping[str, Any], seed: int, folder: Path) -> dict[str, Any]:
    """The options of `distill` of a run. Of `way`, "taught" brings the teacher, "more" its samples without labels (for
    so many epochs at least), "views" the augmentations of the lesson, "patience" so many times as many epochs, and
    "networks" the number of networks or generations that share the epochs of one alone.
    """
    usual = dict(lesson.usual)
    own = {k: v for k, v in way.items() if k not in ("taught", "more", "networks", "views", "patience")}
    usual["epochs"] *= way.get("patience", 1)
    if way.get("views"):
        own["augment"] = lesson.views
    networks = way.get("networks", 1)
    usual["epochs"] = max(1, usual["epochs"] // networks)
    if way.get("more"):  # as many samples in all, but so many epochs at least
        share = len(lesson.feeds()) / (len(lesson.feeds()) + len(lesson.more()))
        usual["epochs"] = max(way["more"], round(share * usual["epochs"]))
    if own.get("augment") or own.get("kind") == "online":
        usual.pop("cache", None)
    if way.get("taught"):
        own["teacher"] = lesson.teacher()
    if way.get("more"):
        own["unlabelled"] = lesson.more()
    if own.get("kind") == "online":
        peers = [folder / f"peer{i}.onnx" for i in range(1, networks)]
        for i, path in enumerate(peers, 1):
            onnx.save(lesson.student(1000 * i + seed), path)
        own["peers"] = tuple(peers)
    if own.get("kind") == "self" and own.get("by", "generations") == "generations":
        own["generations"] = networks
    return {**usual, "seed": seed, **own}


def figure(lesson: Lesson, name: str, way: Mapping[str, Any], seed: int) -> float:
    """The test accuracy of a run, out of the file if it was made before."""
    said = repr((len(lesson.feeds()), sorted(lesson.usual.items()), way))
    key = {"task": lesson.name, "way": name, "seed": seed, "options": said}
    lines = KEPT.read_text().splitlines() if KEPT.is_file() else []
    for line in map(json.loads, lines):
        if {k: line[k] for k in key} == key:
            return float(line["accuracy"])
    with tempfile.TemporaryDirectory() as folder:
        options, student, feeds = options_of(lesson, way, seed, Path(folder)), lesson.student(seed), lesson.feeds()
        if not way.get("taught"):  # no input that only the teacher has
            names = {"label", *(i.name for i in student.graph.input)}
            feeds = [{k: v for k, v in f.items() if k in names} for f in feeds]
        found = edgeopt.distill(student, feeds, **options)
    right = accuracy(found.model, lesson.test())
    row = {**key, "accuracy": right, "held_out": found.after, "seconds": found.seconds}
    with KEPT.open("a") as stream:
        stream.write(json.dumps(row) + "\n")
    print(f"{lesson.name}, {name}, seed {seed}: {right:.4f} in {found.seconds:.0f} s", file=sys.stderr, flush=True)
    return right


def paired(ours: Sequence[float], control: Sequence[float]) -> tuple[float, float, float]:
    """(mean, lowest, highest) of the differences of runs of the same seeds: the 95 % interval by Student's t."""
    d = np.subtract(ours, control)
    half = _T.get(len(d), 1.96) * float(d.std(ddof=1)) / np.sqrt(len(d)) if len(d) > 1 else np.inf
    return float(d.mean()), float(d.mean() - half), float(d.mean() + half)


def table(
    lesson: Lesson, ways: Mapping[str, Mapping[str, Any]], seeds: int, controls: int = 1
) -> dict[str, list[float]]:
    """Run all ways for all seeds, print the table, and return the accuracies; the first `controls` ways are what the
    others are compared with.
    """
    found: dict[str, list[float]] = {name: [] for name in ways}
    for seed in range(seeds):
        for name, way in ways.items():
            found[name].append(figure(lesson, name, way, seed))
    against, teacher = list(found)[:controls], accuracy(lesson.teacher(), lesson.test())
    alone = float(np.mean(found[against[0]]))
    print(f"\n{lesson.name}: teacher {teacher:.4f}; {seeds} seeds, {len(lesson.test())} test samples\n")
    print(f"| student | accuracy | {' | '.join(f'above {c}' for c in against)} | of the gap closed |")
    print("|---|---|" + "---|" * controls + "---|")
    for name, values in found.items():
        above = []
        for control in against:
            mean, low, high = (100 * x for x in paired(values, found[control]))
            above.append(f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]" if name != control else "")
        gap = f"{(np.mean(values) - alone) / (teacher - alone):.0%}" if name != against[0] else ""
        print(f"| {name} | {np.mean(values):.4f} | {' | '.join(above)} | {gap} |", flush=True)
    return found


torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
