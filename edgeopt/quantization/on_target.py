"""Whether a file is right for a target: by the target's rules, and by running it in the target's own runtime, on the
same samples as on ONNX Runtime's CPU provider.
"""

from __future__ import annotations

import math
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgeopt import graph
from edgeopt.data import Feed, specs
from edgeopt.data.made_up import feed_for
from edgeopt.data.spec import alike, needed
from edgeopt.errors import DataError, LostError, UsageError, WorkerError
from edgeopt.files.cloud import anywhere
from edgeopt.graph.ops import LAYERS, array, constant, rule
from edgeopt.hardware import target as targets
from edgeopt.hardware.target import Target, arithmetic
from edgeopt.numbers.kinds import Kind
from edgeopt.numbers.scores import OutputReport, Outputs, compare, lowest_sqnr_db
from edgeopt.numbers.words import decibels
from edgeopt.options import takes
from edgeopt.options.models import CheckFile
from edgeopt.ptq.guard import unguarded
from edgeopt.quantization.devices import device
from edgeopt.quantization.judge import too_far
from edgeopt.quantization.outputs import kinds
from edgeopt.quantization.prepare import Task
from edgeopt.runtime.elsewhere import Ran, run_elsewhere, run_here
from edgeopt.runtime.environments import home_of, lacking
from edgeopt.runtime.feeds import feeds_of
from edgeopt.runtime.mobile import mobile_nodes
from edgeopt.runtime.session import open_session, run_all

_DYNAMIC = frozenset({"DynamicQuantizeLinear", "DynamicQuantizeLSTM", "MatMulInteger", "ConvInteger"})
_NAMED = 3
_FAILED = "it failed"
_PLENTY_DB = 30.0  # above it what is lost is how a device rounds


@dataclass(frozen=True)
class Checked:
    """What was found of a file for a target."""

    target: str
    problems: tuple[str, ...]
    """What is wrong, in words; empty for a file that is right."""
    ran: Ran | None
    """How it ran in the target's runtime; None if it was checked by rules only."""
    why_not: str
    """Why it did not run; empty if it did."""
    outputs: tuple[OutputReport, ...]
    """In the target's runtime, against the float model; without one, against the CPU provider with the same file."""
    on_cpu: tuple[OutputReport, ...]
    """On the CPU provider, against the float model; empty without one."""
    samples: int
    by_table: str = ""
    """How many nodes it takes by the table of operators that ONNX Runtime has for it; empty without one."""

    @property
    def lines(self) -> list[str]:
        """What was found, in words: how it was checked, where it ran, and how near its outputs are there."""
        ran = self.ran
        if ran is None:
            by_table = [f"nodes    {self.by_table}"] if self.by_table else []
            return [f"checked  by rules only: {self.why_not}", *by_table]
        found = [f"checked  in {ran.runtime}, {self.samples} sample{'s' * (self.samples > 1)}"]
        if ran.nodes:
            parts = "" if ran.partitions is None else f"; {ran.partitions} partition{'s' * (ran.partitions != 1)}"
            found.append("nodes    " + ", ".join(f"{n} on {name}" for name, n in ran.nodes.items()) + parts)
        if ran.layers is not None:
            found.append(f"layers   {ran.layers[0]} of {ran.layers[1]} in integers")
        for there in self.outputs:
            here = next((o for o in self.on_cpu if o.output == there.output), None)
            against = "the CPU provider with the same file"
            if here is not None:
                against = f"float ({decibels(here.sqnr_db)} on the CPU provider)"
            found.append(f"output   {there.output}: SQNR {decibels(there.sqnr_db)} against {against}")
        return found

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    @property
    def usable(self) -> bool:
        """Whether it runs there, if that was tried, and its outputs are close to float there, each by its kind."""
        return self.why_not != _FAILED and not any(map(too_far, self.outputs))


@takes(CheckFile)
@anywhere
def check(model: str | Path, options: CheckFile) -> Checked:
    """Check the file `model` for a target: by its rules, and in its own runtime where that is installed.

    Raises:
        EdgeoptError: see `edgeopt.errors`.
    """
    path = Path(model)
    source = graph.canonical(graph.load(path))
    with device(options.device, options.target) as (meter, own):
        target = targets.load(own)
        home = _home(target, options.python)
        why = "" if here(target) or meter is not None else _why_not(target, home, str(options.target))
        if why:
            return _by_rules(path, source, target, why)
        feeds = _feeds(source, target, options)
        expected, seen = _reference(source, path, feeds, target, options)
        found = kinds(seen, feeds[0], expected, {})
        run = _runner(path, feeds, target, home) if meter is None else partial(meter.ran, path, feeds)
        return _run(path, source, target, run, feeds, expected, found, against_float=options.float_model is not None)


def _runner(path: Path, feeds: Sequence[Feed], target: Target, home: Path | None) -> Callable[[], Ran]:
    """Runs the file in the target's runtime on this machine."""
    return partial(run_here, path, feeds) if home is None else partial(run_elsewhere, path, feeds, target, home)


def checked_result(
    path: Path,
    task: Task,
    target: Target | None = None,
    held: Sequence[tuple[str, Feed]] | None = None,
    own: Sequence[tuple[str, Feed]] | None = None,
    named: str = "",
) -> Checked:
    """Check the file at `path` for `target` (that of the task) on samples that calibrated nothing.

    own: the same samples as the file takes them, where its inputs are not those of the task; named: how the user calls
    the target.
    """
    target, source = target or task.target, graph.canonical(graph.load(path))
    home = home_of(target)
    why = "" if here(target) else _why_not(target, home, named or str(task.options.target))
    if why:
        return _by_rules(path, source, target, why)
    feeds = [feed for _, feed in (task.held if held is None else held)[: target.check.samples]]
    task.listener.note(f"running it on {len(feeds)} samples in the runtime of {target.name}")
    expected = run_all(task.float_session, _named(feeds))
    found = kinds(task.source, feeds[0], expected, task.options.kinds) if task.selection is not None else task.kinds
    try:
        taken = feeds if own is None else [feed for _, feed in own[: target.check.samples]]
        run = _runner(path, taken, target, home)
        return _run(path, source, target, run, taken, expected, found, against_float=True)
    except (UsageError, DataError) as e:
        return _by_rules(path, source, target, str(e))


def _by_rules(path: Path, source: ir.Model, target: Target, why: str) -> Checked:
    """What the rules of the target say of a file that is not run there, for the reason `why`."""
    table, problems = target.check.table, tuple(broken_rules(source, target))
    taken = "" if table is None else mobile_nodes(path, table)
    return Checked(target.name, problems, None, why, (), (), 0, taken)


def here(target: Target) -> bool:
    """Whether files run on ONNX Runtime's CPU provider in this process as they do on the target."""
    return target.check.kind == "cpu" or (target.check.kind == "emulated" and target.name == targets.host())


def _home(target: Target, python: str | None) -> Path | None:
    """The environment with the target's runtime, or the user's interpreter that has it; None if there is none."""
    if python is None:
        return home_of(target)
    if target.check.kind not in ("provider", "openvino", "rknn", "emulated"):
        raise UsageError(f"--python {python}: files for {target.name} are not run by a Python of yours")
    if (found := shutil.which(python)) is None:
        raise UsageError(f"--python {python}: no such program")
    return Path(found)


def _why_not(target: Target, home: Path | None, named: str) -> str:
    """Why files for the target, which the user calls `named`, cannot be run; empty if they can."""
    if target.check.kind == "rules":
        return "nothing here runs it"
    if missing := lacking(target):
        return missing
    if home is not None:
        return ""
    if not target.check.packages:
        return f"{named} names no packages of a runtime"
    return f"its runtime is not installed: edgeopt env {named}"


def _run(
    path: Path,
    source: ir.Model,
    target: Target,
    run: Callable[[], Ran],
    feeds: Sequence[Feed],
    expected: Sequence[Outputs],
    found: Mapping[str, Kind],
    *,
    against_float: bool,
) -> Checked:
    """Run the file in the target's runtime, or on a device, and compare its outputs with those `expected`, of kinds
    `found`.
    """
    problems = list(broken_rules(source, target))
    try:
        ran = run()
    except LostError:
        raise
    except WorkerError as e:
        return Checked(target.name, (*problems, f"{target.check.kind}: {e}"), None, _FAILED, (), (), len(feeds))
    names = [str(v.name) for v in source.graph.outputs]
    there = compare(names, expected, ran.outputs, found)
    session = open_session(path, options=arithmetic(target))
    here = compare(names, expected, run_all(session, _named(feeds)), found) if against_float else []
    problems += [*_placed(source, ran, target), *_lost(there, here, target)]
    return Checked(target.name, tuple(problems), ran, "", tuple(there), tuple(here), len(feeds))


def _named(feeds: Sequence[Feed]) -> list[tuple[str, Feed]]:
    return [(str(i), feed) for i, feed in enumerate(feeds)]


def _feeds(model: ir.Model, target: Target, options: CheckFile) -> list[Feed]:
    if options.data is None:
        given = {s.name for s in needed(specs(model))}
        return [{name: x for name, x in feed_for(model, options.dims).items() if name in given}]
    found, _ = feeds_of(model, options.data, options, min(options.samples, target.check.samples))
    return [feed for _, feed in found]


def _reference(
    model: ir.Model, path: Path, feeds: Sequence[Feed], target: Target, options: CheckFile
) -> tuple[list[Outputs], ir.Model]:
    """(what the outputs are compared with, the model that gives it): the float model, else the file itself, both on the
    CPU provider.
    """
    if options.float_model is None:
        return run_all(open_session(path, options=arithmetic(target)), _named(feeds)), model
    source = graph.canonical(graph.load(options.float_model))
    ours, theirs = ([str(v.name) for v in m.graph.outputs] for m in (model, source))
    if ours != theirs:
        raise UsageError(f"--float {options.float_model}: its outputs are {', '.join(theirs)}, not {', '.join(ours)}")
    if not alike(source, model):  # the same samples, as the float model takes them
        if options.data is None:
            raise UsageError(f"--float {options.float_model}: its inputs are others, so --calib has to give samples")
        feeds = _feeds(source, target, options)
    return run_all(open_session(options.float_model), _named(feeds)), source


def _placed(model: ir.Model, ran: Ran, target: Target) -> Iterator[str]:
    """What is wrong with where the nodes ran."""
    left: dict[str, list[str]] = defaultdict(list)
    for name, op in ran.elsewhere.items():
        if op not in target.check.cpu_operators:
            left[op].append(name)
    for op, names in sorted(left.items()):
        yield f"{len(names)} {op} on the CPU: {_first(names)}"
    most = target.check.partitions
    if most is not None and ran.partitions is not None and ran.partitions > most:
        yield f"{ran.partitions} partitions, and {most} at most are wanted: each crossing between them costs time"
    planned = sum(n.op_type in LAYERS and all(map(_dequantized, n.inputs[:2])) for n in model.graph)
    if ran.layers is not None and ran.layers[0] < planned:
        yield f"{ran.layers[0]} of {planned} layers that are quantized compute in integers"


def _lost(there: Sequence[OutputReport], here: Sequence[OutputReport], target: Target) -> Iterator[str]:
    """What is wrong with the outputs."""
    for output in there:
        for figure in too_far(output):
            yield f"output {output.output}: {figure}"
    if here and math.isfinite(lowest_sqnr_db(here)):
        loss = lowest_sqnr_db(here) - lowest_sqnr_db(there)
        if loss > target.check.loss_db and lowest_sqnr_db(there) < _PLENTY_DB:
            yield f"{loss:.1f} dB further from float than on the CPU provider (at most {target.check.loss_db:g} dB)"


def broken_rules(model: ir.Model, target: Target) -> Iterator[str]:
    """The rules of `target` that a file (canonical) breaks, in words, with the first nodes of each."""
    demands, opset = target.demands, model.opset_imports[""]
    if demands.highest_opset is not None and opset > demands.highest_opset:
        yield f"opset {opset}, and {demands.highest_opset} is the highest that is read"
    free = [str(v.name) for v in model.graph.inputs if v.shape is None or not all(isinstance(d, int) for d in v.shape)]
    if demands.shapes == "fixed" and free:
        yield f"inputs without fixed shapes: {_first(free)}; --dim NAME=SIZE fixes them"
    broken: dict[str, list[str]] = defaultdict(list)
    if target.grid.saturates and (pairs := unguarded(model)):
        broken["pairs of products that can saturate"] = pairs
    for node in model.graph.all_nodes():
        for words in _broken(node, target) if node.inputs else ():  # a broken file may have a layer without any
            broken[words].append(str(node.name))
    for words, nodes in broken.items():
        yield f"{words}: {len(nodes)} ({_first(nodes)})"


def _broken(node: ir.Node, target: Target) -> Iterator[str]:
    """The rules that `node` breaks."""
    grid = target.grid
    if node.op_type in _DYNAMIC and not target.demands.dynamic:
        yield f"{node.op_type} finds its scale at run time"
    if no_grids := node.op_type in ("QuantizeLinear", "DequantizeLinear") and not target.demands.grids:
        yield f"{node.op_type}, which it does not compute, or not rightly"
    alone = node.op_type in LAYERS and not _dequantized(node.inputs[0]) and any(map(_unpacked, node.inputs[1:2]))
    if alone and not target.demands.stored:
        yield f"weights that are only stored as integers, of {node.op_type}"
    lone = node.op_type in ("Gemm", "MatMul") and not target.place.float_output
    if lone and _dequantized(node.inputs[0]) and not _quantized(node.outputs[0]):
        yield f"{node.op_type} gives floats, and needs a grid on its output"
    grids = node.op_type in ("QuantizeLinear", "DequantizeLinear") and len(node.inputs) > 1
    scaled = grids and all(constant(v) for v in node.inputs[1:3])
    if no_grids or not scaled or _operand(node):
        return
    stored = _stored(node)
    scale = array(node.inputs[1])
    zero = array(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if zero is None and target.demands.zero_points:
        yield "no zero point"
    if grid.power_of_two and (np.frexp(scale)[0] != 0.5).any():
        yield "scales that are no powers of two"
    if stored == "int32" and grid.bias == "float":
        yield "biases in integers"
    if stored:
        if stored not in ("int32", *grid.weights):
            yield f"weights in {stored}"
        if zero is not None and zero.any() and (scale.size > 1 or stored != "uint8"):
            yield "weights whose zero point is not 0"
        if scale.size > 1 and not grid.per_channel and stored != "int32":
            yield "weights with a scale for each channel"
    elif zero is not None or node.op_type == "QuantizeLinear":
        found = "uint8" if zero is None else zero.dtype.name
        if found not in (grid.activations, grid.wide):
            yield f"activations in {found}, and {grid.activations} is taken"
        if grid.symmetric and zero is not None and zero.any():
            yield "activations whose zero point is not 0"


def _stored(node: ir.Node) -> str:
    """The type of the integers if `node` gives a weight or a bias, else empty."""
    if node.op_type != "DequantizeLinear" or not constant(node.inputs[0]) or _operand(node):
        return ""
    return str(array(node.inputs[0]).dtype.name)


def _operand(node: ir.Node) -> bool:
    """Whether `node` gives a constant that is no weight and no bias of a layer: whose form is up to its reader."""
    if node.op_type != "DequantizeLinear" or not constant(node.inputs[0]):
        return False
    readers = tuple(node.outputs[0].uses())
    return bool(readers) and not any(i in (*rule(n).weights, rule(n).bias) for n, i in readers)


def _unpacked(value: ir.Value | None) -> bool:
    """Whether a weight is made of stored integers."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type in ("Mul", "Cast", "Sub", "Transpose", "Reshape"):
        node = node.inputs[0].producer() if node.inputs[0] is not None and not constant(node.inputs[0]) else None
        if node is None:
            return True
    return node is not None and node.op_type == "DequantizeLinear"


def _dequantized(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type == "DequantizeLinear"


def _quantized(value: ir.Value) -> bool:
    readers = Counter(u.node.op_type for u in value.uses())
    return set(readers) == {"QuantizeLinear"}


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" ..." if len(names) > _NAMED else "")
