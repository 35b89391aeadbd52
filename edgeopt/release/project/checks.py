"""Checks before a build that everything a project file refers to exists: files, modules, providers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeopt.data.listing import exists
from edgeopt.errors import UsageError
from edgeopt.errors.lines import line_of
from edgeopt.hardware import target as targets
from edgeopt.options.quantize import TABLE
from edgeopt.release.build.sources import module_files
from edgeopt.release.project.file import Project
from edgeopt.release.project.lines import rows_of

MODELS = ("teacher", "peers")  # options that name one or several models
FILES = (*MODELS, "student_classes", "teacher_classes", "costs")  # options that name files
SAMPLES = "unlabelled"  # an option that names more samples
_LIKENESSES = ("agreement", "cosine", "kl")  # of `edgeopt.quantization.metric`; a test keeps them equal
Place = tuple[str, ...]


def check(project: Project, home: Path, file: Path, *, code: bool = True) -> None:
    """Refuse references to what does not exist; with `code` False, also the project's own functions.

    Raises:
        UsageError: one line for each problem, with its line in `file`.
    """
    named = [] if code else [*_functions(project, home), *_commands(project)]
    found = [(at, f"{name!r} is code, and --no-code runs none") for at, name in named]
    found += [*_files(project, home), *_data(project, home), *_modules(project, home), *_providers(project)]
    if found:
        rows = rows_of(file)
        raise UsageError("\n".join(f"{file}:{line_of(rows, at)}: {'.'.join(at)}: {what}" for at, what in found))


def _files(project: Project, home: Path) -> Iterator[tuple[Place, str]]:
    named: list[tuple[Place, Path | None]] = [(("model",), project.model)]
    named.append((("data", "tokenizer"), project.data.tokenizer))
    for variant, v in project.variants.items():
        for i, step in enumerate(v.steps):
            place = ("variants", variant, "steps", str(i))
            named += [((*place, key), path) for key in FILES for path in paths(step, key)]
            more = getattr(step, SAMPLES, None)
            if more is not None and not (more and exists(home / more)):
                yield (*place, SAMPLES), f"{more!r}: no such file or folder in {home}"
            target = getattr(step, "target", None)
            if target is not None and targets.is_file(target):
                try:
                    targets.load(home / target)
                except UsageError as e:
                    yield (*place, "target"), str(e)
    for at, path in named:
        if path is not None and str(path) != TABLE and not (exists(home / path) and (home / path).is_file()):
            yield at, f"{str(path)!r}: no such file in {home}"


def paths(step: Any, key: str) -> tuple[Path, ...]:
    """The files that the option `key` of `step` names."""
    given = getattr(step, key, None)
    return () if given is None else given if isinstance(given, tuple) else (given,)


def _data(project: Project, home: Path) -> Iterator[tuple[Place, str]]:
    for key, given in (("path", project.data.path), ("eval", project.data.eval)):
        if given is None or ":" in given or (given == "random" and key == "path"):
            continue
        if not exists(home / given):
            yield ("data", key), f"{given!r}: no such file or folder in {home}"


def _modules(project: Project, home: Path) -> Iterator[tuple[Place, str]]:
    for at, name in _functions(project, home):
        if ":" not in name:
            yield at, f"{name!r}: write package.module:function"
        elif not module_files(name, home):
            yield at, f"{name!r}: no module {name.partition(':')[0]!r} in {home}, and none is installed"


def _functions(project: Project, home: Path) -> Iterator[tuple[Place, str]]:
    """(place, function) of all code that the project names."""
    named: dict[Place, str | None] = {
        ("data", key): name
        for key, name in (("path", project.data.path), ("eval", project.data.eval))
        if name and ":" in name
    }
    if project.export is not None:
        named["export", "factory"] = project.export.factory
    named = {at: name for at, name in named.items() if name and not exists(home / name)}
    if project.accuracy.eval is not None and project.accuracy.eval not in _LIKENESSES:
        named["accuracy", "eval"] = project.accuracy.eval
    for variant, v in project.variants.items():
        named |= {
            ("variants", variant, "steps", str(i), "call"): getattr(s, "call", None) for i, s in enumerate(v.steps)
        }
    return ((at, name) for at, name in named.items() if name is not None)


def _commands(project: Project) -> Iterator[tuple[Place, str]]:
    """(place, command) of all programs that devices name."""
    for name, device in project.devices.items():
        if device.at.startswith("exec:"):
            yield ("devices", name, "at"), device.at
        for key in ("push", "pull", "python"):
            if command := getattr(device, key):
                yield ("devices", name, key), command


def _providers(project: Project) -> Iterator[tuple[Place, str]]:
    if project.profile.providers == ("cpu",) and not project.devices:
        return
    from edgeopt.runtime.devices import check as device
    from edgeopt.runtime.providers import WEB_PROVIDERS, parse

    named: list[tuple[Place, str]] = [(("profile", "providers"), name) for name in project.profile.providers]
    named += [
        (("devices", key, "provider"), d.provider)
        for key, d in project.devices.items()
        if d.provider and d.provider not in WEB_PROVIDERS
    ]
    for at, name in named:
        try:
            parse(name)
        except UsageError as e:
            yield at, str(e).removeprefix("--provider ")
    for key, d in project.devices.items():
        try:
            device(d.at, key, d.python, d.push, d.pull)
        except UsageError as e:
            yield ("devices", key, "at"), str(e)
