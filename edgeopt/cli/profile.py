"""`edgeopt profile` and `edgeopt compare`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.flags import chosen, options_of
from edgeopt.cli.measured import FORMATS, show
from edgeopt.cli.show import listener
from edgeopt.errors import UsageError
from edgeopt.files import text_of, toml_of
from edgeopt.options.profile import Profile, ProfileOne
from edgeopt.profiling.results import Results

_UNTRUSTED = 4
_FORMAT = click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True)


@click.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path), metavar="MODEL...")
@options_of(ProfileOne)
@click.option("--ops", is_flag=True, help="Where the time goes, by operator and node.")
@click.option("--self-check", is_flag=True, help="The model against itself: false alarms, smallest visible change.")
@_FORMAT
def profile(models: tuple[Path, ...], ops: bool, self_check: bool, form: str, **given: object) -> int:
    """Latency, cold start, memory, size and placement, with intervals.

    \b
    Example: edgeopt profile model.onnx --provider cpu --threads 1,2 --preset pr --report results.json
    """
    models = models or _project_models()
    from edgeopt.profiling.profile import profile as run
    from edgeopt.profiling.profile import self_check as check

    with listener() as ears:
        options = chosen(ProfileOne, given, listener=ears)
        if self_check and (len(models) > 1 or options.trace is not None):
            raise UsageError("--self-check takes one model, and writes no --trace")
        found = check(models[0], options) if self_check else run(models, options)
    show(found, form, ops)
    return 3 if found.failed else 0


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="A B...")
@options_of(Profile)
@click.option(
    "--fail-on",
    multiple=True,
    type=click.Choice(["regressed", "inconclusive"]),
    help="Exit 1 (regressed) or 4 (inconclusive); may be repeated.",
)
@_FORMAT
def compare(models: tuple[Path, ...], fail_on: tuple[str, ...], form: str, **given: object) -> int:
    """Models against the first, interleaved; or two results.json.

    \b
    Example: edgeopt compare model.onnx model.int8.onnx --data images/ --margin 3%
    """
    stored = [m for m in models if m.suffix == ".json"]
    with listener() as ears:
        options = chosen(Profile, given, listener=ears)
        if stored:
            if len(models) != 2 or len(stored) != 2:
                raise UsageError("stored results are compared two at a time: edgeopt compare a.json b.json")
            from edgeopt.profiling.stored import compare_stored

            found = compare_stored(*models, margin=options.margin, report=options.report)
        else:
            from edgeopt.profiling.profile import compare as run

            found = run(models, options)
    show(found, form)
    return _code(found, fail_on)


def _code(found: Results, fail_on: tuple[str, ...]) -> int:
    verdicts = {c.verdict for c in found.comparisons}
    if found.failed and not any(c.interleaved is False for c in found.comparisons):
        return 3
    if "regressed" in verdicts and "regressed" in fail_on:
        return 1
    return _UNTRUSTED if "inconclusive" in verdicts and "inconclusive" in fail_on else 0


def _project_models() -> tuple[Path, ...]:
    """The model or models named in the `edgeopt.toml` of the current folder."""
    file = Path("edgeopt.toml")
    example = "edgeopt profile model.onnx --provider cpu"
    if not file.is_file():
        raise UsageError(f"no model, and no edgeopt.toml here that names one; e.g. {example}")
    try:
        named = toml_of(text_of(file)).get("model")
    except (OSError, ValueError) as e:
        raise UsageError(f"{file}: {e}") from e
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UsageError(f'{file}: names no model; write model = "model.onnx" in it, or e.g. {example}')
    return tuple(Path(n) for n in names)
