"""`edgeopt quantize`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.flags import chosen, options_of
from edgeopt.cli.show import listener, print_report
from edgeopt.errors import INTERRUPTED, UntoldError, UsageError
from edgeopt.files import beside, check_place, put
from edgeopt.options.quantize import Quantize

_SUFFIX = {"fp16": "fp16", "weights": "weights"}


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--calib",
    metavar="PATH",
    help="Images, .npz/.npy, test_data_set_*, sound, .jsonl/.csv/.txt, or package.module:function.",
)
@click.option("--random", is_flag=True, help="Random samples, to try the tool; the figures mean nothing.")
@options_of(Quantize)
@click.option("--report", "report_path", type=click.Path(path_type=Path), help="Write the evidence as JSON.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def quantize(model: Path, calib: str | None, random: bool, report_path: Path | None, form: str, **given: object) -> int:
    """Make a checked int8, fp16 or int4 file of a float model.

    \b
    Example: edgeopt quantize model.onnx --calib images/ --target cpu-arm64 --min-sqnr 20 --report evidence.json
    """
    if calib is not None and random:
        raise UsageError("--calib and --random: one of them")
    if calib is None and not random:
        raise UsageError(
            "give --calib PATH with real samples (or --random just to try): edgeopt quantize model.onnx --calib images/"
        )
    with listener() as ears:
        options = chosen(Quantize, given, listener=ears)
        path = options.output or beside(model, f"{model.stem}.{_SUFFIX.get(options.mode, 'int8')}.onnx")
        if report_path is not None:
            check_place(report_path, True, (model, calib, options.recipe, options.costs, options.tokenizer))
            if report_path.resolve() == path.resolve():
                raise UsageError(f"--report {report_path}: would overwrite the result")
        from edgeopt.quantization.quantize import quantize as run

        result = run(model, calib if calib is not None else "random", options.model_copy(update={"output": path}))
    if report_path is not None:
        try:
            put(report_path, result.report.to_json() + "\n")
        except UsageError as e:
            raise UntoldError(f"{result.path} is written, but --report is not: {e}") from e
    print_report(result, form)
    if result.report.interrupted:
        return INTERRUPTED
    return 1 if result.report.missed else 4 if result.report.undecided else 0
