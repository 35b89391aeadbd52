"""What the user is told before the first candidate: of samples, inputs, nodes and outputs that are not as expected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.data import Feed, Sample
from edgeopt.data.made_up import defaults
from edgeopt.graph.ops import LAYERS, rule
from edgeopt.numbers.kinds import Kind
from edgeopt.numbers.scores import Outputs
from edgeopt.options.quantize import Quantize
from edgeopt.quantization.outputs import STEPS

_FEW = 16
_FEW_HELD = 30  # samples, fewer of which hardly show a fall of a metric


def of_samples(calibration: list[Sample], held: list[tuple[str, Feed]], problems: Mapping[str, str]) -> list[str]:
    """Of samples that cannot be read, and of too few of them."""
    lines = [f"skipped: {reason}" for reason in problems.values()]
    if len(calibration) < _FEW:
        lines.append(
            f"only {len(calibration)} samples to calibrate with: ranges may be too narrow; 100 or more are better"
        )
    if calibration and len(calibration) == len(held) == 1:
        lines.append(f"sample {held[0][0]} both calibrates and checks: the figures below are not held out")
    return lines[:10] + ([f"... and {len(lines) - 10} more"] if len(lines) > 10 else [])


def of_inputs(model: ir.Model) -> Iterator[str]:
    """Of inputs with a default, and of float types that are widened."""
    if optional := defaults(model):
        yield f"inputs with a default stay inputs: {', '.join(optional)}"
    types = {str(v.dtype.name).lower() for v in model.graph.initializers.values() if v.dtype is not None}
    if narrow := sorted(types & {"float16", "bfloat16", "double"}):
        yield (
            f"the model is {', '.join(narrow)}: it is widened to float32 before all else, "
            "and its inputs and outputs keep their types"
        )


def of_choices(model: ir.Model, include: frozenset[str], lengths: frozenset[str]) -> Iterator[str]:
    """Notes on included nodes whose operator has no static integer kernel: the form they get instead; and of layers
    among the nodes that decide `lengths`.
    """
    nodes = [n for n in model.graph if n.name in include and (not rule(n).inputs or rule(n).elsewhere)]
    for op in sorted({n.op_type for n in nodes}):
        names = [str(n.name) for n in nodes if n.op_type == op]
        dynamic = "; --mode dynamic gives it integers whose scales are found at run time" if op == "LSTM" else ""
        stored = "its weights are stored as int8" if op in LAYERS else "it stays float"
        yield f"--include: {op} has no static integer kernel, so {stored}{dynamic}: {', '.join(names[:3])}"

    layers = [str(n.name) for n in model.graph if n.op_type in LAYERS and n.name in lengths]
    if layers:
        yield (
            f"{len(layers)} layers decide how long an output is, and stay float: {', '.join(layers[:3])}"
            f"{' ...' if len(layers) > 3 else ''} (--include takes them)"
        )


def of_selection(model: ir.Model, seen: ir.Model) -> Iterator[str]:
    """Of outputs of `model` that are not among those of `seen`, which are compared."""
    kept = {v.name for v in seen.graph.outputs}
    selected = [str(v.name) for v in model.graph.outputs if v.name not in kept]
    if selected:
        yield (
            f"outputs {', '.join(selected)} are what a selection leaves: it stays float, and the values that it "
            "selects from are judged"
        )


def of_few(options: Quantize, held: int, read: int) -> Iterator[str]:
    """Of samples that are not compared, of `read`; and of a metric that few samples decide."""
    if held < read:
        yield f"samples or outputs are large: {held} of {read} held-out samples are compared"
    if options.max_drop is not None and held < _FEW_HELD:
        samples = f"{held} held-out sample{'s' * (held > 1)}"
        yield f"the metric is that of {samples}, of which one can change it by {1 / held:.0%}"


def of_states(found: Mapping[str, Kind], fed: Mapping[int, str]) -> Iterator[str]:
    """Of recurrent states, `fed` back or not."""
    states = [name for name, kind in found.items() if kind == "state"]
    if states:
        none = f"not fed back (no input takes them, or float gives no numbers after {STEPS} steps)"
        how = f"fed back for {STEPS} steps" if fed else none
        yield f"recurrent states, {how}: {', '.join(states)} (--kind NAME=KIND if they are none)"


def of_outputs(
    model: ir.Model, found: Mapping[str, Kind], chance_db: Mapping[str, float], reference: Sequence[Outputs]
) -> Iterator[str]:
    """Of outputs that chance changes, and of those that are the same for every sample."""
    drawn = [str(n.name) for n in model.graph.all_nodes() if n.op_type.startswith("Random") or n.op_type == "Bernoulli"]
    for name, db in chance_db.items():
        made = f" ({', '.join(drawn[:3])})" if drawn else ""
        yield f"output {name} differs between two runs of the float model by {db:.1f} dB{made}: judged against that"
    for i, name in enumerate(found):
        seen = [r[i] for r in reference]
        if len(seen) > 1 and all(np.array_equal(seen[0], y) for y in seen[1:]):
            yield f"output {name} is the same for every sample: it tells nothing of the result"
