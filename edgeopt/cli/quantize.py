"""`edgeopt quantize`."""

from __future__ import annotations

import contextlib
import ctypes
from pathlib import Path
from typing import Any

import click

from edgeopt.cli import INTERRUPTED
from edgeopt.cli.parse import seconds
from edgeopt.cli.reading import read_as, reading
from edgeopt.cli.show import listener, print_report
from edgeopt.errors import UsageError
from edgeopt.files import check_place
from edgeopt.hardware import target as targets
from edgeopt.numbers.ranges import RANGES
from edgeopt.quantization.options import EFFORTS, MODES, ROUNDINGS

_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}


def _size(text: str | None) -> int | None:
    """Bytes of `2G`, `500MB` or `1000000`."""
    if text is None:
        return None
    number = text.strip().lower().removesuffix("b").removesuffix("i")
    try:
        size = int(float(number[:-1]) * _UNITS[number[-1]] if number[-1:] in _UNITS else float(number))
    except (ValueError, OverflowError) as e:
        raise click.BadParameter(f"{text!r} is no size; write 500MB or 2G", param_hint="--max-ram") from e
    if size < 1:
        raise click.BadParameter(f"{text!r}: at least a byte", param_hint="--max-ram")
    return size


_M_ARENA_MAX = -8  # of mallopt(3)


def _one_heap() -> None:
    """Let all threads share glibc's one heap: with a heap for each, memory grows with the samples by what each cannot reuse."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


_SUFFIX = {"fp16": "fp16", "weights": "weights"}


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--calib",
    metavar="PATH",
    help="Images, .npz/.npy, test_data_set_*, .wav, .jsonl/.csv/.txt, or package.module:function.",
)
@click.option("--random", is_flag=True, help="Random samples, to try the tool; the figures mean nothing.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write. [default: MODEL.int8.onnx]")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option(
    "--mode",
    type=click.Choice(MODES),
    default="auto",
    show_default=True,
    help="auto: static, else what is close and no slower.",
)
@click.option(
    "--effort",
    type=click.Choice(EFFORTS),
    default="normal",
    show_default=True,
    help="fast: round weights to the nearest; normal: by what layers read (GPTQ), biases too; high: with more samples, and a search.",
)
@click.option(
    "--budget",
    metavar="TIME",
    help="Of a search [default: 10m], or of the repair of what misses its bar [default: 1m].",
)
@click.option(
    "--costs",
    type=click.Path(path_type=Path),
    help="Place nodes by the measured times in this file; what it lacks is measured here and added.",
)
@click.option(
    "--pareto",
    type=click.Path(path_type=Path),
    help="Folder for the models of the search that no other beats in both accuracy and speed.",
)
@click.option("--target", default="host", show_default=True, help="Hardware (edgeopt targets).")
@click.option("--samples", default=128, show_default=True, help="Samples to calibrate with; others are held out.")
@click.option(
    "--range",
    "range_rule",
    type=click.Choice(list(RANGES)),
    default="mse",
    show_default=True,
    help="How ranges are chosen.",
)
@click.option(
    "--rounding",
    type=click.Choice(ROUNDINGS),
    help="How weights are rounded. [default: gptq, nearest with --effort fast]",
)
@click.option("--clip-weights", is_flag=True, help="Scales of weights by what layers give, not by the peak.")
@click.option("--equalize", is_flag=True, help="Cross-layer equalization before all else.")
@click.option("--smooth", type=float, metavar="ALPHA", help="SmoothQuant, 0 to 1: ranges of inputs go into weights.")
@click.option("--refit", is_flag=True, help="Weights fitted to what layers read in integers, one by one; slow.")
@reading
@click.option("--exclude", multiple=True, metavar="NODE|GLOB|OP", help="Stay float; may be repeated.")
@click.option("--include", multiple=True, metavar="NODE|GLOB|OP", help="Become integer even if it does not pay.")
@click.option("--keep", multiple=True, metavar="NODE|GLOB|OP", help="Stay float32 in fp16 mode.")
@click.option("--bits", type=click.Choice(["8", "4"]), default="8", show_default=True, help="Of --mode weights.")
@click.option(
    "--io-types", type=click.Choice(["keep", "fp16"]), default="keep", show_default=True, help="Of --mode fp16."
)
@click.option("--max-ram", metavar="SIZE", help="For calibration, e.g. 2G. [default: half of the free memory]")
@click.option("--qat", is_flag=True, help="Train the static result on through its Q/DQ (needs torch).")
@click.option("--qat-minutes", default=10.0, show_default=True, help="How long, at the most.")
@click.option("--qat-epochs", default=4, show_default=True)
@click.option("--no-measure", is_flag=True, help="Do not time the result against float.")
@click.option(
    "--eval",
    "metric",
    metavar="MODULE:FUNCTION",
    help="Your metric, a function of run(feed), higher is better; or agreement, cosine or kl with float.",
)
@click.option("--max-drop", type=float, metavar="X", help="Exit 1 when that metric falls by more.")
@click.option("--min-sqnr", type=float, metavar="DB", help="Exit 1 when an output is further from float.")
@click.option("--min-agreement", type=float, metavar="SHARE", help="Exit 1 when top-1 agrees less often.")
@click.option("--min-speedup", type=float, metavar="X", help="Exit 1 when it is not so much faster.")
@click.option("--report", "report_path", type=click.Path(path_type=Path), help="Write the evidence as JSON.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def quantize(
    model: Path, calib: str | None, random: bool, output: Path | None, report_path: Path | None, form: str, **given: Any
) -> int:
    """Make a checked int8, fp16 or int4 file of a float model.

    \b
    Example: edgeopt quantize model.onnx --calib images/ --target cpu-arm64 --min-sqnr 20 --report evidence.json
    """
    if (calib is None) == (not random):
        raise UsageError(
            "give --calib PATH with real samples (or --random just to try): edgeopt quantize model.onnx --calib images/"
        )
    targets.load(given["target"])
    path = output or model.parent / f"{model.stem}.{_SUFFIX.get(given['mode'], 'int8')}.onnx"
    read, max_ram = read_as(given), _size(given["max_ram"])
    if report_path is not None:
        check_place(report_path, force=True)
        if report_path.resolve() in {p.resolve() for p in (model, path, Path(calib or model))}:
            raise UsageError(f"--report {report_path}: would overwrite the model, the result or the samples")
    _one_heap()
    from edgeopt.quantization.quantize import quantize as run

    with listener() as ears:
        result = run(
            model,
            calib if calib is not None else "random",
            output=path,
            listener=ears,
            force=given["force"],
            bits=int(given["bits"]),
            max_ram=max_ram,
            budget_s=seconds(given["budget"], "--budget"),
            measure=not given["no_measure"],
            **read,
            **{
                k: given[k]
                for k in (
                    "mode", "effort", "pareto", "costs", "target", "samples", "range_rule", "rounding", "clip_weights", "equalize", "smooth", "refit", "exclude", "include", "keep", "io_types", "qat", "qat_minutes",
                    "qat_epochs", "metric", "max_drop", "min_sqnr",
                    "min_agreement", "min_speedup",
                )
            },
        )  # fmt: skip
    if report_path is not None:
        report_path.write_text(result.report.to_json() + "\n", encoding="utf-8")
    print_report(result, form)
    return INTERRUPTED if result.report.interrupted else 1 if result.report.missed else 0
