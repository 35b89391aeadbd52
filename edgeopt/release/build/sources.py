"""Digests of everything besides settings that can change a result: models with their data files, samples with their
reading options, user modules, package versions.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from edgeopt.data.listing import exists
from edgeopt.files import sha256
from edgeopt.release.build.cache import Cache, key

if TYPE_CHECKING:
    from edgeopt.release.project.file import Project

_PACKAGES = (
    "edgeopt", "onnx", "onnx-ir", "onnxruntime", "numpy", "pillow", "torch", "onnxscript", "tokenizers",
    "soxr", "soundfile", "pillow-heif",
)  # fmt: skip
_RECIPE = "preprocess.toml"
_RANDOM = "random"


def versions() -> dict[str, str]:
    """Versions of installed packages that can change a result."""
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def fingerprint(path: Path) -> str:
    """SHA-256 of a model file; with external data, of the hashes of all its files."""
    from edgeopt import graph

    more = graph.external_files(graph.load(path))
    return key([sha256(f) for f in (path, *more)]) if more else sha256(path)


def model_digest(cache: Cache, path: Path) -> str:
    """Digest of the model at `path` and its external data; the list of data files is cached by the model's bytes."""

    def beside() -> list[str]:
        from edgeopt import graph

        return [str(f.resolve().relative_to(path.parent.resolve())) for f in graph.external_files(graph.load(path))]

    own = cache.digest(path)
    names, _ = cache.remembered(key("data files/1", own), beside)
    return key(own, [cache.digest(path.parent / name) for name in names]) if names else own


def data_digest(cache: Cache, data: str, root: Path) -> str:
    """Digest of the samples at `data` (a path from `root`, or a function) and the preprocess.toml beside them."""
    path = root / data
    if exists(path):
        recipe = path.parent / _RECIPE  # one inside a folder is among its files
        return key(cache.digest(path), cache.digest(recipe) if recipe.is_file() else "")
    return data if data == _RANDOM else module_digest(cache, data, root)


def reading_digest(cache: Cache, project: Project, root: Path) -> str:
    """Digest of how samples are read: the settings, and the tokenizer's bytes."""
    tokenizer = project.data.tokenizer
    text = "" if tokenizer is None or not exists(root / tokenizer) else cache.digest(root / tokenizer)
    return key(project.data.model_dump(mode="json"), text)


def module_digest(cache: Cache, source: str, root: Path) -> str:
    """Digest of the code that `package.module:function` names."""
    return key(source, [[f.name, cache.digest(f)] for f in module_files(source, root)])


def module_files(source: str, root: Path) -> list[Path]:
    """Source files that may be imported by `package.module:function`: in `root`, all files of its package or those
    beside the module; elsewhere, its own file. Empty if there is no such module.
    """
    top, *inner = source.partition(":")[0].split(".")
    if _file(root, [top, *inner]) is not None:
        package = root / top
        return sorted(package.rglob("*.py")) if package.is_dir() else sorted(root.glob("*.py"))
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return []
    if spec is None:
        return []
    if not inner:
        return [Path(spec.origin)] if spec.origin is not None and Path(spec.origin).is_file() else []
    found = [_file(Path(folder), inner) for folder in spec.submodule_search_locations or ()]
    return [f for f in found if f is not None][:1]


def _file(folder: Path, names: list[str]) -> Path | None:
    """The file of the module `names` in `folder`."""
    place = folder.joinpath(*names)
    return next((f for f in (place.with_name(f"{place.name}.py"), place / "__init__.py") if exists(f)), None)
