"""The record of a release for audits: `manifest.json` (reproducible bytes), a CycloneDX ML-BOM, and the verification of
a folder against its manifest.
"""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeopt.errors import DataError, ValidityError
from edgeopt.files import sha256, text_of
from edgeopt.release.build.cache import key
from edgeopt.release.build.sources import fingerprint
from edgeopt.release.document import RESULTS, Run, VariantResult, load
from edgeopt.release.project.file import FLOAT
from edgeopt.release.project.metrics import metric

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"  # hashes of the other artefacts in sha256sum's format: their timings differ in every run
SCHEMA = "edgeopt.manifest/1"
ORT = (".ort", ".required_operators.config")


class _Part(BaseModel):
    """What a check reads of a manifest; whatever else there is tells people more."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class _File(_Part):
    path: str = Field(pattern=r"^[^/\\]+$")
    sha256: str


class _Answer(_Part):
    output: str
    shape: tuple[int, ...]
    first: tuple[float | None, ...]


class _Row(_Part):
    name: str = Field(pattern=r"^[^/\\]+$")
    files: tuple[_File, ...] = Field(min_length=1)
    answers: tuple[_Answer, ...]


class _Source(_Part):
    files: tuple[_File, ...] = ()


class _Manifest(_Part):
    schema_version: Literal["edgeopt.manifest/1"] = Field(alias="schema")
    sums: Literal["SHA256SUMS"] | None = None
    source: _Source = _Source()
    versions: Mapping[str, str]
    dims: Mapping[str, int] = {}
    variants: tuple[_Row, ...]


def manifest(run: Run, folder: Path, dims: Mapping[str, int] | None = None) -> str:
    """The variants' files with their hashes, build steps, and the metrics that do not depend on timing.

    `dims`: sizes of free dimensions for the generated inputs. ONNX Runtime writes the parts of an .ort file in a
    different order every time, so a new conversion has another hash.
    """
    source = run.model_sha256
    rows = []
    for v in shipped(run, folder):
        steps = [dict(s.step) for s in v.steps]
        parent = folder / f"{v.parent}.onnx"
        rows.append(
            {
                "name": v.name,
                "role": "model",
                "parent": v.parent,
                "parent_sha256": source if v.parent == FLOAT else fingerprint(parent),
                "opset": v.opset,
                "steps": steps,
                "config_sha256": key(steps),
                "files": _hashes(folder / f"{v.name}.onnx"),
                "metrics": {k: round(x, 6) for k, x in sorted(v.metrics.items()) if _lasting(k)},
                "answers": [dict(x) for x in v.answers],
            }
        )
    found = {
        "schema": SCHEMA,
        "sums": SUMS,
        "project": run.project,
        "source": {"path": Path(run.model).name, "sha256": source, "files": _hashes(Path(run.model))},
        "versions": dict(sorted(run.versions.items())),
        "dims": dict(dims or {}),
        "verdict": {g.variant + ": " + g.metric + " " + g.bound: g.outcome for g in run.gates if _lasting(g.metric)},
        "variants": rows,
    }
    return json.dumps(found, indent=1, sort_keys=True, allow_nan=False) + "\n"


def shipped(run: Run, folder: Path) -> list[VariantResult]:
    """The variants that have a file in `folder`."""
    return [v for v in run.variants if v.name != FLOAT and v.error is None and (folder / f"{v.name}.onnx").is_file()]


def _files(path: Path) -> list[Path]:
    """The model at `path`, its external data, and its .ort conversion if there is one."""
    from edgeopt import graph

    more = [path.with_name(f"{path.name.removesuffix('.onnx')}{suffix}") for suffix in ORT]
    return [path, *graph.external_files(graph.load(path)), *(f for f in more if f.is_file())]


def _hashes(path: Path) -> list[dict[str, Any]]:
    return [{"path": f.name, "sha256": sha256(f), "size_bytes": f.stat().st_size} for f in _files(path)]


def _lasting(metric: str) -> bool:
    """Whether the metric is reproducible: it does not depend on timing."""
    return metric.startswith(("size.", "quant.", "accuracy."))


def _read(folder: Path) -> _Manifest:
    """The manifest in `folder`.

    Raises:
        DataError: there is none, or it is invalid.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise DataError(f"{folder}: no {MANIFEST} in it; it is in the output folder of a run that passed")
    try:
        return _Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{folder}: no readable {MANIFEST} ({e})") from e
    except ValidationError as e:
        first = e.errors()[0]
        raise DataError(f"{path}: not valid: {'.'.join(map(str, first['loc']))}: {first['msg']}") from e


def files(folder: Path) -> set[str]:
    """Names of the files listed in the manifest of `folder`; empty without a manifest."""
    try:
        return {f.path for row in _read(folder).variants for f in row.files}
    except DataError:
        return set()


def holds(name: str, folder: Path, versions: Mapping[str, str]) -> bool:
    """Whether the files of the variant `name` match the manifest in `folder`, and were made by the same `versions`."""
    try:
        found = _read(folder)
    except DataError:
        return False
    files = {f.path: f.sha256 for row in found.variants if row.name == name for f in row.files}
    there = {f.name: sha256(f) for f in _files(folder / f"{name}.onnx")}
    return found.versions == versions and files == there


def verify(folder: Path) -> list[str]:
    """Verify `folder` against its manifest and list what was checked: every file has its hash, every model loads, runs
    and reproduces its recorded outputs, there are no other models, and the evidence is the release's.

    Raises:
        DataError: no manifest. ValidityError: a file is missing or changed, answers differently, or is not known; says
          which.
    """
    from edgeopt.release.build.evaluate import answers

    found = _read(folder)
    told, wrong = _evidence(folder, found.sums)
    wrong += [] if found.variants else ["the manifest tells of no variant"]
    source = {f.path for f in found.source.files if _changed(folder / f.path, f.sha256) is None}
    known = {f.path for row in found.variants for f in row.files} | source
    others = sorted(f.name for f in folder.iterdir() if f.suffix in (".onnx", ".ort") and f.name not in known)
    wrong += [f"{name}: a model that the manifest does not know" for name in others]
    for row in found.variants:
        bad = [f"{f.path}: {how}" for f in row.files if (how := _changed(folder / f.path, f.sha256))]
        wrong += bad
        told += [f"{f.path}: sha256 holds" for f in row.files]
        model = f"{row.name}.onnx"
        if model not in {f.path for f in row.files}:
            wrong.append(f"{model}: the manifest has no hash of it")
        elif not bad:
            now = [_Answer.model_validate(a, strict=False) for a in answers(folder / model, found.dims)]
            far = _differs(row.answers, now)
            told.append(f"{model}: runs and answers as it did")
            wrong += [f"{model}: {far}"] if far else []
    if wrong:
        raise ValidityError("; ".join(wrong))
    return told


def _evidence(folder: Path, sums: str | None) -> tuple[list[str], list[str]]:
    """(checks that passed, problems) of the artefacts other than models, by the hashes in the file `sums`; artefacts of
    a later run that was not released are noted and checked by the hashes in `failed`.
    """
    if sums is None:
        return ["the evidence has no hashes: it was written before edgeopt listed them"], []
    try:
        listed = _listed(folder / sums)
    except (OSError, ValueError) as e:
        return [], [f"{sums}: cannot be read ({e}); run edgeopt run again, or take it from where the release was made"]
    unlisted = {MANIFEST, "bom.json", RESULTS} - listed.keys()
    later, newer = _not_released(folder), folder / "failed" / sums
    if later is not None:
        listed = {name: digest for name, digest in listed.items() if name in (MANIFEST, "bom.json")}
        listed |= _listed(newer) if newer.is_file() else {}
    wrong = [f"{name}: {how}" for name, digest in listed.items() if (how := _changed(folder / name, digest))]
    wrong += [f"{sums}: does not list {n}" for n in sorted(unlisted)]
    told = [f"{name}: sha256 holds" for name in listed if not any(w.startswith(f"{name}:") for w in wrong)]
    return told + ([] if later is None else [later]), wrong


def _listed(path: Path) -> dict[str, str]:
    """Hashes by file name."""
    rows = [line.partition("  ") for line in text_of(path).splitlines()]
    return {Path(name).name: digest for digest, _, name in rows}


def _not_released(folder: Path) -> str | None:
    """A note if the artefacts in `folder` are those of a run that was not released, otherwise None."""
    try:
        run = load(folder)
    except DataError:
        return None
    return None if run.released else f"{RESULTS} is of {run.created}, a run that was not released: {run.verdict}"


def _changed(path: Path, digest: str) -> str | None:
    if not path.is_file():
        return "missing"
    return "changed since the manifest was written" if sha256(path) != digest else None


def _differs(before: Sequence[_Answer], now: Sequence[_Answer]) -> str | None:
    """How recorded outputs differ by more than another summation order (and the rounding of int8 grids) explains; None
    if they do not.
    """
    if [(a.output, a.shape, len(a.first)) for a in before] != [(a.output, a.shape, len(a.first)) for a in now]:
        return "other outputs than before"
    for a, b in zip(before, now, strict=True):
        slack = 0.05 * max((abs(x) for x in a.first if x is not None), default=0.0) + 1e-6
        if not all(_near(x, y, slack) for x, y in zip(a.first, b.first, strict=True)):
            return f"output {a.output!r} answers {list(b.first[:3])} where it answered {list(a.first[:3])}"
    return None


def _near(x: float | None, y: float | None, slack: float) -> bool:
    if x is None or y is None:
        return x is y
    return math.isclose(x, y, rel_tol=1e-3, abs_tol=slack)


def bom(run: Run, folder: Path) -> str:
    """A CycloneDX 1.6 ML-BOM: the source model, each variant with its figures and intervals, and the software used."""
    components: list[dict[str, Any]] = [
        {
            "type": "machine-learning-model",
            "bom-ref": "model:float",
            "name": Path(run.model).name,
            "hashes": [{"alg": "SHA-256", "content": sha256(Path(run.model))}],
        }
    ]
    made = shipped(run, folder)
    for v in made:
        components.append(
            {
                "type": "machine-learning-model",
                "bom-ref": f"model:{v.name}",
                "name": f"{run.project}-{v.name}",
                "hashes": [{"alg": "SHA-256", "content": sha256(folder / f"{v.name}.onnx")}],
                "pedigree": {"ancestors": [{"type": "machine-learning-model", "name": Path(run.model).name}]},
                "modelCard": {"quantitativeAnalysis": {"performanceMetrics": _performance(v)}},
            }
        )
    components += [
        {
            "type": "library",
            "bom-ref": f"pkg:pypi/{name}@{version}",
            "name": name,
            "version": version,
            "purl": f"pkg:pypi/{name}@{version}",
        }
        for name, version in sorted(run.versions.items())
    ]
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
        "dependencies": [{"ref": f"model:{v.name}", "dependsOn": [f"model:{v.parent}"]} for v in made],
    }
    return json.dumps(found, indent=1) + "\n"


def _performance(v: VariantResult) -> list[dict[str, Any]]:
    found = []
    for name, value in sorted(v.metrics.items()):
        row: dict[str, Any] = {"type": f"{name} ({metric(name).kind})", "value": f"{value:.6g}", "slice": v.name}
        if name in v.intervals:
            x = v.intervals[name]
            row["confidenceInterval"] = {"lowerBound": f"{x.low:.6g}", "upperBound": f"{x.high:.6g}"}
        found.append(row)
    return found
