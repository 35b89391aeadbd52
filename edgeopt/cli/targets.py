"""`edgeopt targets`."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click

from edgeopt.cli.show import print_table
from edgeopt.hardware import target
from edgeopt.hardware.target import Demands, Target

_HOW = {
    "cpu": "run here",
    "rules": "by rules",
    "emulated": "in qemu",
    "openvino": "in OpenVINO",
    "rknn": "in its simulator",
    "node": "in Node",
    "chromium": "in Chromium",
}


@click.command()
@click.argument("name", required=False)
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def targets(name: str | None, form: str) -> None:
    """List the hardware targets that --target knows, or show one.

    \b
    Example: edgeopt targets qnn-htp:a16
    """
    known = [target.load(n) for n in ([name] if name else target.names()) if n != "host" or name]
    if form == "json":
        click.echo(json.dumps({t.name: t.model_dump(by_alias=True) for t in known}, indent=2))
    elif name:
        click.echo("\n".join(_facts(known[0])))
    else:
        here = {target.host(): "<- this machine"}
        rows = [(t.name, t.title, _activations(t), _weights(t), _checked(t), here.get(t.name, "")) for t in known]
        print_table(rows, ("target", "what", "activations", "weights", "checked", ""))


def _activations(t: Target) -> str:
    if t.demands.mode == "fp16":
        return "float16"
    if not t.demands.grids:
        return "float"
    wider = "" if t.wide_type is None else f", {t.wide_type.dtype}"
    return t.grid.activations + wider + " symmetric" * t.grid.symmetric + ", 2^n" * t.grid.power_of_two


def _weights(t: Target) -> str:
    if t.demands.mode == "fp16":
        return "float16"
    if not t.demands.grids:
        return "int8, stored only"
    return f"int8 per {'channel' if t.grid.per_channel else 'tensor'}" + " (guarded)" * t.grid.saturates


def _checked(t: Target) -> str:
    packages = [p.partition("==")[0] for p in t.check.packages if p.startswith("onnxruntime-")]
    return _HOW.get(t.check.kind) or f"in {packages[0] if packages else t.check.provider}"


def _demands(d: Demands) -> Iterator[str]:
    if d.shapes == "fixed":
        yield "fixed shapes"
    if d.lowest_opset > 1:
        yield f"opset {d.lowest_opset} at least"
    if d.highest_opset is not None:
        yield f"opset {d.highest_opset} at most"
    if not d.dynamic:
        yield "no scales found at run time"
    if not d.grids:
        yield "no QuantizeLinear or DequantizeLinear"
    if not d.stored:
        yield "no weights that are only stored as integers"
    if d.gelu:
        yield "Gelu in place of Erf"
    if d.zero_points:
        yield "a zero point for every DequantizeLinear"


def _facts(t: Target) -> Iterator[str]:
    """All of a target, a line a fact."""
    yield f"{t.name}: {t.title}"
    yield f"activations  {_activations(t)}"
    yield f"weights      {_weights(t)}; biases {t.grid.bias}"
    where = ", ".join(t.place.operators) if t.place.rule == "all" else "where they pay by the costs"
    yield f"integers     {where or 'none'}"
    yield f"demands      {', '.join(_demands(t.demands)) or 'nothing'}"
    packages = f"; edgeopt env {t.name} installs {', '.join(t.check.packages)}" if t.check.packages else ""
    yield f"checked      {_checked(t)}{packages}"
    yield from (f"source       {source}" for source in t.sources)
