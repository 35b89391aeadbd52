"""`edgeopt profile` and `edgeopt compare`."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from edgeopt.cli import parse
from edgeopt.cli.measured import FORMATS, show
from edgeopt.cli.show import listener
from edgeopt.errors import UsageError
from edgeopt.profiling.results import Results

_LEVELS = ("all", "extended", "basic", "none")
_UNTRUSTED = 4
F = TypeVar("F", bound=Callable[..., Any])
_SHARED = (
    click.option("--provider", "providers", multiple=True, metavar="NAME[:KEY=VALUE,...]", help="edgeopt providers lists them; may be repeated.  [default: cpu]"),
    click.option("--threads", default="1", show_default=True, metavar="N[,N]", help="Threads of an operator; several are swept."),
    click.option("--batch", metavar="N[,N]", help="First dimension, where it varies."),
    click.option("--dim", "dims", multiple=True, metavar="NAME=N[,N]", help="A dimension that varies; may be repeated."),
    click.option("--input", "inputs", multiple=True, metavar="NAME=FILE.npy", help="Values of one input; may be repeated."),
    click.option("--data", metavar="PATH", help="Samples, as `quantize --calib` reads them.  [default: generated]"),
    click.option("--preprocess", metavar="PRESET", help="Of images: imagenet, unit, signed, raw255."),
    click.option("--tokenizer", type=click.Path(path_type=Path), help="tokenizer.json for text."),
    click.option("--preset", default="quick", show_default=True, metavar="NAME", help="quick, pr, release or sustained: how long to look."),
    click.option("--seconds", metavar="TIME", help="Timing of each setting, instead of the preset's."),
    click.option("--processes", type=int, metavar="N", help="Fresh processes, instead of the preset's."),
    click.option("--rate", metavar="N/s", help="Inferences a second, instead of back to back."),
    click.option("--allow-fallback", is_flag=True, help="Measure even if nodes run on another provider."),
    click.option("--session", multiple=True, metavar="KEY=VALUE", help="ONNX Runtime session option; may be repeated."),
    click.option("--level", type=click.Choice(_LEVELS), default="all", show_default=True, help="Graph optimization."),
    click.option("--freeze-dims", is_flag=True, help="Tell the runtime the sizes of the dimensions that vary."),
    click.option("--python", metavar="PATH", help="Interpreter with the onnxruntime to measure."),
    click.option("--plugin", "plugins", multiple=True, metavar="NAME=LIBRARY", help="A provider's shared library."),
    click.option("--timeout", default="2m", show_default=True, metavar="TIME", help="Of one answer: raise it for providers that compile long."),
    click.option("--margin", default="3%", show_default=True, help="What counts as a change."),
    click.option("--report", type=click.Path(path_type=Path), help="Write results.json, and an .npz of all times beside it."),
    click.option("--format", "form", type=click.Choice(FORMATS), default="table", show_default=True),
)  # fmt: skip


def _shared(command: F) -> F:
    for option in reversed(_SHARED):
        command = option(command)
    return command


def choices(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of `ProfileOptions` that the options give."""
    dims = parse.pairs(given["dims"], "--dim", "seq=128")
    return {
        "providers": given["providers"] or ("cpu",),
        "threads": parse.counts(given["threads"], "--threads"),
        "batch": parse.counts(given["batch"], "--batch") if given["batch"] else (),
        "dims": {name: parse.counts(text, "--dim") for name, text in dims.items()},
        "inputs": {name: Path(file) for name, file in parse.pairs(given["inputs"], "--input", "x=x.npy").items()},
        "seconds": parse.seconds(given["seconds"], "--seconds"),
        "timeout_s": parse.seconds(given["timeout"], "--timeout"),
        "rate": parse.rate(given["rate"]),
        "session": parse.pairs(given["session"], "--session", "session.intra_op.allow_spinning=0"),
        "plugins": parse.pairs(given["plugins"], "--plugin", "MyExecutionProvider=libmine.so"),
        "margin": parse.share(given["margin"], "--margin"),
        **{k: given[k] for k in ("data", "preprocess", "tokenizer", "preset", "processes", "allow_fallback", "level", "freeze_dims", "python")},
    }  # fmt: skip


@click.command()
@click.argument("models", nargs=-1, type=click.Path(path_type=Path), metavar="MODEL...")
@_shared
@click.option("--sustained", metavar="TIME", help="A time series, e.g. 10m, and last against first.")
@click.option("--ops", is_flag=True, help="Where the time goes, by operator and node.")
@click.option("--trace", type=click.Path(path_type=Path), help="Write a trace for ui.perfetto.dev.")
@click.option("--self-check", is_flag=True, help="The model against itself: false alarms, smallest visible change.")
@click.option("--trials", default=10, show_default=True, help="Of the self-check.")
def profile(
    models: tuple[Path, ...],
    sustained: str | None,
    ops: bool,
    trace: Path | None,
    self_check: bool,
    trials: int,
    **given: Any,
) -> int:
    """Latency, cold start, memory, size and placement, with intervals.

    \b
    Example: edgeopt profile model.onnx --provider cpu --threads 1,2 --preset pr --report results.json
    """
    models = models or _project_models()
    chosen = {**choices(given), "sustained_s": parse.seconds(sustained, "--sustained"), "trials": trials}
    from edgeopt.profiling.profile import profile as run
    from edgeopt.profiling.profile import self_check as check

    if self_check and (len(models) > 1 or trace is not None):
        raise UsageError("--self-check takes one model, and writes no --trace")
    with listener() as ears:
        if self_check:
            found = check(models[0], report=given["report"], listener=ears, **chosen)
        else:
            found = run(*models, report=given["report"], trace=trace, listener=ears, **chosen)
    show(found, given["form"], ops)
    return 3 if found.failed else 0


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="A B...")
@_shared
@click.option(
    "--fail-on",
    multiple=True,
    type=click.Choice(["regressed", "inconclusive"]),
    help="Exit 1 (regressed) or 4 (inconclusive); may be repeated.",
)
def compare(models: tuple[Path, ...], fail_on: tuple[str, ...], **given: Any) -> int:
    """Models against the first, interleaved; or two results.json.

    \b
    Example: edgeopt compare model.onnx model.int8.onnx --data images/ --margin 3%
    """
    chosen = choices(given)
    stored = [m for m in models if m.suffix == ".json"]
    if stored:
        if len(models) != 2 or len(stored) != 2:
            raise UsageError("stored results are compared two at a time: edgeopt compare a.json b.json")
        from edgeopt.profiling.stored import compare_stored

        found = compare_stored(*models, margin=chosen["margin"], report=given["report"])
    else:
        from edgeopt.profiling.profile import compare as run

        with listener() as ears:
            found = run(*models, report=given["report"], listener=ears, **chosen)
    show(found, given["form"])
    return _code(found, fail_on)


def _code(found: Results, fail_on: tuple[str, ...]) -> int:
    verdicts = {c.verdict for c in found.comparisons}
    if found.failed and not any(c.interleaved is False for c in found.comparisons):
        return 3
    if "regressed" in verdicts and "regressed" in fail_on:
        return 1
    return _UNTRUSTED if "inconclusive" in verdicts and "inconclusive" in fail_on else 0


def _project_models() -> tuple[Path, ...]:
    """The model or models that `edgeopt.toml` here names."""
    file = Path("edgeopt.toml")
    example = "edgeopt profile model.onnx --provider cpu"
    if not file.is_file():
        raise UsageError(f"no model, and no edgeopt.toml here that names one; e.g. {example}")
    try:
        named = tomllib.loads(file.read_text(encoding="utf-8")).get("model")
    except (OSError, ValueError) as e:
        raise UsageError(f"{file}: {e}") from e
    names = [named] if isinstance(named, str) else named
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise UsageError(f'{file}: names no model; write model = "model.onnx" in it, or e.g. {example}')
    return tuple(Path(n) for n in names)
