"""What was released, for an audit: `manifest.json` (the same bytes for the same inputs), a CycloneDX ML-BOM, and the check of
a folder against its manifest.
"""

from __future__ import annotations

import json
import math
import uuid
from pathlib import Path
from typing import Any

from edgeopt.errors import DataError, ValidityError
from edgeopt.release.cache import key, sha256
from edgeopt.release.document import Run, VariantResult
from edgeopt.release.metrics import METRICS
from edgeopt.release.project import FLOAT

MANIFEST = "manifest.json"
SCHEMA = "edgeopt.manifest/1"


def manifest(run: Run, folder: Path) -> str:
    """The variants' files with their hashes, how they came to be, and the figures that no clock has a say in."""
    rows = []
    for v in run.variants:
        path = folder / f"{v.name}.onnx"
        if v.name == FLOAT or v.error is not None or not path.is_file():
            continue
        files = [path, *sorted(folder.glob(f"{v.name}.onnx.*")), *sorted(folder.glob(f"{v.name}.ort"))]
        steps = [dict(s.step) for s in v.steps]
        rows.append(
            {
                "name": v.name,
                "role": "model",
                "parent": v.parent,
                "opset": v.opset,
                "steps": steps,
                "config_sha256": key(steps),
                "files": [{"path": f.name, "sha256": sha256(f), "size_bytes": f.stat().st_size} for f in files],
                "metrics": {k: round(x, 6) for k, x in sorted(v.metrics.items()) if _lasting(k)},
                "answers": [dict(x) for x in v.answers],
            }
        )
    found = {
        "schema": SCHEMA,
        "project": run.project,
        "source": {"path": Path(run.model).name, "sha256": sha256(Path(run.model))},
        "versions": dict(sorted(run.versions.items())),
        "verdict": {g.variant + ": " + g.metric + " " + g.bound: g.outcome for g in run.gates if _lasting(g.metric)},
        "variants": rows,
    }
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


def _lasting(metric: str) -> bool:
    """Whether the figure is the same in every run."""
    return metric.startswith(("size.", "quant.", "accuracy."))


def variants(folder: Path) -> set[str]:
    """Names of the variants that the manifest in `folder` tells of; none without one."""
    try:
        rows = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["variants"]
        return {str(row["name"]) for row in rows if Path(str(row["name"])).name == str(row["name"])}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def verify(folder: Path) -> list[str]:
    """What holds in `folder`: every file of the manifest has its hash, loads, runs and answers as it did.

    Raises:
        DataError: no manifest. ValidityError: a file is missing or changed, or answers differently; says which.
    """
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        rows, schema = found["variants"], found["schema"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{folder}: no readable {MANIFEST} ({e})") from e
    if schema != SCHEMA:
        raise DataError(f"{folder / MANIFEST}: schema {schema!r}; this takes {SCHEMA!r}")
    from edgeopt.release.evaluate import answers

    told, wrong = [], []
    for row in rows:
        for file in row["files"]:
            path = folder / Path(file["path"]).name
            if not path.is_file():
                wrong.append(f"{path.name}: missing")
            elif sha256(path) != file["sha256"]:
                wrong.append(f"{path.name}: changed since the manifest was written")
            else:
                told.append(f"{path.name}: sha256 holds")
        path = folder / f"{row['name']}.onnx"
        if path.is_file() and not any(w.startswith(f"{path.name}:") for w in wrong):
            far = _differs(row["answers"], answers(path))
            if far:
                wrong.append(f"{path.name}: {far}")
            else:
                told.append(f"{path.name}: runs and answers as it did")
    if wrong:
        raise ValidityError("; ".join(wrong))
    return told


def _differs(before: list[dict[str, Any]], now: list[dict[str, Any]]) -> str | None:
    """Where answers differ by more than sums in another order explain (and grids of int8 outputs round)."""
    if [(a["output"], a["shape"]) for a in before] != [(a["output"], a["shape"]) for a in now]:
        return "other outputs than before"
    for a, b in zip(before, now, strict=True):
        top = max((abs(x) for x in a["first"]), default=0.0)
        if any(
            not math.isclose(x, y, rel_tol=1e-3, abs_tol=0.05 * top + 1e-6)
            for x, y in zip(a["first"], b["first"], strict=True)
        ):
            return f"output {a['output']!r} answers {b['first'][:3]} where it answered {a['first'][:3]}"
    return None


def bom(run: Run, folder: Path) -> str:
    """A CycloneDX 1.6 ML-BOM: the source model, each variant with its figures and intervals, and the software used."""
    components: list[dict[str, Any]] = [
        {
            "type": "machine-learning-model", "bom-ref": "model:float", "name": Path(run.model).name,
            "hashes": [{"alg": "SHA-256", "content": sha256(Path(run.model))}],
        }
    ]  # fmt: skip
    for v in run.variants:
        path = folder / f"{v.name}.onnx"
        if v.name == FLOAT or v.error is not None or not path.is_file():
            continue
        components.append(
            {
                "type": "machine-learning-model",
                "bom-ref": f"model:{v.name}",
                "name": f"{run.project}-{v.name}",
                "hashes": [{"alg": "SHA-256", "content": sha256(path)}],
                "pedigree": {"ancestors": [{"type": "machine-learning-model", "name": Path(run.model).name}]},
                "modelCard": {"quantitativeAnalysis": {"performanceMetrics": _performance(v)}},
            }
        )
    components += [
        {"type": "library", "bom-ref": f"pkg:pypi/{name}@{version}", "name": name, "version": version, "purl": f"pkg:pypi/{name}@{version}"}
        for name, version in sorted(run.versions.items())
    ]  # fmt: skip
    serial = uuid.uuid5(uuid.NAMESPACE_URL, key([c for c in components if "modelCard" not in c], run.model_sha256))
    found = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {
            "timestamp": run.created,
            "component": {"type": "application", "bom-ref": "project", "name": run.project},
        },
        "components": components,
        "dependencies": [
            {"ref": f"model:{v.name}", "dependsOn": ["model:float"]}
            for v in run.variants
            if any(c.get("bom-ref") == f"model:{v.name}" for c in components[1:])
        ],
    }
    return json.dumps(found, indent=1) + "\n"


def _performance(v: VariantResult) -> list[dict[str, Any]]:
    found = []
    for name, value in sorted(v.metrics.items()):
        row: dict[str, Any] = {"type": f"{name} ({METRICS[name].kind})", "value": f"{value:.6g}", "slice": v.name}
        if name in v.intervals:
            x = v.intervals[name]
            row["confidenceInterval"] = {"lowerBound": f"{x.low:.6g}", "upperBound": f"{x.high:.6g}"}
        found.append(row)
    return found
