"""`edgeopt simplify`."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.inspect import dimensions
from edgeopt.cli.show import decibels, megabytes


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write. [default: MODEL.simple.onnx]")
@click.option("--force", is_flag=True, help="Overwrite the output.")
@click.option(
    "--dim", "dims", multiple=True, metavar="NAME=SIZE", help="Size of a dimension that varies, for the check."
)
@click.option(
    "--transformer",
    metavar="TYPE",
    help="Fuse transformer blocks too (bert, vit, gpt2 ...); the file is for ONNX Runtime only.",
)
@click.option(
    "--backend",
    type=click.Choice(["onnxruntime", "onnxruntime-tools"]),
    default="onnxruntime",
    show_default=True,
    help="Who fuses them.",
)
def simplify(
    model: Path, output: Path | None, force: bool, dims: tuple[str, ...], transformer: str | None, backend: str
) -> None:
    """Fold and fuse a float model; the outputs are checked against the model before.

    \b
    Example: edgeopt simplify model.onnx -o small.onnx
    """
    from edgeopt.errors import UsageError
    from edgeopt.simplification import simplify as run

    if backend != "onnxruntime" and transformer is None:
        raise UsageError(f"--backend {backend} fuses transformers: say which with --transformer TYPE")
    path = output or model.parent / f"{model.stem}.simple.onnx"
    x = run(model, output=path, force=force, dims=dimensions(dims), transformer=transformer, backend=backend)
    click.echo(f"nodes    {x.nodes[0]} -> {x.nodes[1]}")
    click.echo(f"size     {megabytes(x.size_bytes[0])} -> {megabytes(x.size_bytes[1])}")
    click.echo(
        f"latency  {x.latency.speedup:.2f}x [{x.latency.speedup_low:.2f}, {x.latency.speedup_high:.2f}], {x.latency.latency_ms:.2f} ms, 1 thread"
    )
    click.echo(f"outputs  SQNR {decibels(x.worst_sqnr_db)} against the model before")
    click.echo(f"wrote {x.path}")
