"""How a project wants to be measured, as the choices of `profile` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgeopt.release.project import Project


def choices(project: Project, root: Path, preset: str) -> dict[str, Any]:
    """Keyword arguments of `edgeopt.compare`: providers, threads, dims, and the project's samples as inputs."""
    p, data = project.profile, project.data
    samples = root / data.path
    return {
        "preset": preset,
        "providers": p.providers,
        "threads": p.threads,
        "dims": {name: (size,) for name, size in p.dims.items()},
        "data": str(samples) if samples.exists() else None if data.path == "random" else data.path,
        "preprocess": data.preprocess,
        "tokenizer": None if data.tokenizer is None else root / data.tokenizer,
    }
