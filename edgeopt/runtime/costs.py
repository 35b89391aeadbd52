"""Measured costs of nodes on this machine, in float and in integers, and of crossings between the two, from alternating
profiled runs of both forms of a model.

A kernel in ONNX Runtime's profile is named after its node, or after the value that it produces; layout changes append a
suffix to the name. The time of a node is the sum over all kernels named after it, after its outputs, or after the clamp
that follows it. The cost of a crossing is measured on a chain of three convolutions, of which the middle one computes
in integers: the kernels in between quantize, dequantize, and convert images between a layout in blocks of channels and
channels last.

Times are stored by what determines them (operator, attributes, shapes), so that a file of costs can be used for other
models too: measured on one board, used on any machine. Unit: picoseconds on one core.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean, median

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from edgeopt.errors import DataError
from edgeopt.files import cache_folder, json_of, replacing, temporary_folder, text_of
from edgeopt.graph.ops import CLAMPS, rule
from edgeopt.hardware.host import cpu_name
from edgeopt.runtime.kernels import kind
from edgeopt.runtime.probe import Probe
from edgeopt.runtime.session import Feed, open_session
from edgeopt.runtime.trace import kernel_runs, read_events

SCHEMA = "edgeopt.costs/1"
_ROUNDS = (2, 5, 40)  # at least, where the next limit of time is passed
LONG_S = 8.0  # that a profile takes at most, if a round is not longer
_SECONDS = (LONG_S, 2.0)  # for all rounds of a measurement: limits of the second and of the third number of rounds
_SUFFIX = re.compile(r"(_token_\d+|_nchwc|_nhwc)+$")
_PS = 1e6  # picoseconds in a microsecond
_CHAIN = (64, 28)  # channels and side length of the images used to measure crossings


Events = Mapping[tuple[str, str], float]
Profiler = tuple[str, Callable[[Sequence[ir.Model], Feed], list[Events]]]


@dataclass(frozen=True)
class Costs:
    """Measured costs in picoseconds on one core."""

    host: str
    """The machine and software they were measured on."""
    times: Mapping[str, tuple[float, float] | None] = field(default_factory=dict)
    """(float time, integer time) of a node by its key, infinite without an integer kernel; None if it was tried, and
    its time cannot be told because its kernel computes other nodes too.
    """
    crossings: tuple[float, float, float] | None = None
    """Time for each element to quantize, to dequantize, and to convert the layout of an image at either of them."""

    def of(self, node: ir.Node, probes: Mapping[str, Probe]) -> tuple[float, float] | None:
        """(float time, integer time) of `node`, None if it is not known."""
        return self.times.get(key(node, probes))

    def tried(self, node: ir.Node, probes: Mapping[str, Probe]) -> bool:
        """Whether `node` was measured, or cannot be."""
        return key(node, probes) in self.times


def book(host: str) -> Path | None:
    """The file with the costs measured on a machine so far, in the user's cache; None if there is no such folder."""
    folder = cache_folder()
    name = f"{hashlib.sha256(host.encode()).hexdigest()[:16]}.json"
    return None if folder is None else folder / "costs" / name


def here() -> str:
    """Description of what determines times on this machine: processor, ONNX Runtime version and threads."""
    return f"{cpu_name()}, onnxruntime {ort.__version__}, 1 thread"


def key(node: ir.Node, probes: Mapping[str, Probe]) -> str:
    """A key of all that determines the time of `node`: its operator, attributes and shapes, and whether a clamp
    follows.
    """
    values = [*node.inputs, *node.outputs]
    shapes = ["-" if v is None else _shape(v, probes) for v in values]
    attributes = sorted(str(a) for a in node.attributes.values())
    after = [u.node.op_type for v in node.outputs for u in v.uses() if u.node.op_type in ("Relu", "Clip")]
    text = f"{node.op_type} {' '.join(attributes)} {' '.join(shapes)} {' '.join(after)}"
    return f"{node.op_type} {'x'.join(shapes[-1:])} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _shape(value: ir.Value, probes: Mapping[str, Probe]) -> str:
    if value.const_value is not None:
        return ",".join(map(str, value.const_value.shape.numpy()))
    return ",".join(map(str, probes[str(value.name)].shape)) if str(value.name) in probes else "?"


def measured(
    floating: ir.Model,
    integer: ir.Model,
    nodes: Sequence[ir.Node],
    clamps: Mapping[str, str],
    feed: Feed,
    probes: Mapping[str, Probe],
    known: Costs | None = None,
    by: Profiler | None = None,
) -> Costs:
    """`known` with the times of `nodes` of the model `floating`, and of crossings; in the model `integer` all of them
    compute in integers. What is known is not measured again.

    by: who profiles models, and its name; None: this machine.
    clamps: Relu or Clip node that the integer form does not have -> the node before it.
    """
    host, profile = (here(), profiled) if by is None else by
    before, after = profile([floating, integer], feed)
    owners = _owners(nodes, clamps, floating)
    of_float, of_integer = (_by_node(events, owners) for events in (before, after))
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for node in nodes:
        name = str(node.name)
        if rule(node).weight is not None and not (name in of_float and name in of_integer):
            continue  # fused with other nodes in one of the forms: the target's table is more reliable
        kinds = {kind(op) for op in of_integer.get(name, {})}
        missing = kinds == {"float"} and not rule(node).moves
        ours = math.inf if missing else sum(of_integer.get(name, {}).values())
        times[key(node, probes)].append((sum(of_float.get(name, {}).values()), ours))
    found = {k: (fmean(a for a, _ in v), fmean(b for _, b in v)) for k, v in times.items()}
    means = {**dict.fromkeys(key(n, probes) for n in nodes), **found}
    if known is None or known.crossings is None:
        return Costs(host, means, crossings(profile))
    return Costs(known.host, {**means, **known.times}, known.crossings)


def profiled(models: Sequence[ir.Model], feed: Feed) -> list[Events]:
    """Median time in picoseconds of every kernel by (name, operator), for each of several models run in turn."""
    with temporary_folder() as folder:
        sessions = [open_session(m, profile=folder / str(i)) for i, m in enumerate(models)]
        start, rounds = time.monotonic(), 0
        least, some, most = _ROUNDS
        limits = {least: math.inf, some: _SECONDS[0], most: _SECONDS[1]}
        while any(rounds < count and time.monotonic() - start < limit for count, limit in limits.items()):
            for session in sessions:
                session.run(feed)
            rounds += 1
        return [medians(Path(s.raw.end_profiling())) for s in sessions]


def node_times(model: ir.Model, feed: Feed) -> dict[str, float]:
    """Median time in picoseconds of each node of `model` whose kernel can be told: of fused ones, by its clamp too."""
    nodes = list(model.graph)
    clamps: dict[str, str] = {}
    for node in nodes:
        producer = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if producer is not None and rule(producer).weights and node.op_type in CLAMPS:
            clamps[str(node.name)] = str(producer.name)
    (events,) = profiled([model], feed)
    found = _by_node(events, _owners(nodes, clamps, model))
    return {name: sum(times.values()) for name, times in found.items()}


def medians(trace: Path) -> Events:
    """Median time in picoseconds of every kernel of a trace."""
    found: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in kernel_runs(read_events(trace)):
        found[run.name, run.op].append(_PS * run.us)
    return {name: median(times) for name, times in found.items()}


def _owners(nodes: Sequence[ir.Node], clamps: Mapping[str, str], model: ir.Model) -> dict[str, str]:
    """Name that a kernel may have -> the node to which the kernel belongs."""
    found: dict[str, str] = {}
    for node in nodes:
        found |= {str(v.name): str(node.name) for v in node.outputs} | {str(node.name): str(node.name)}
    for node in model.graph:
        if node.name in clamps:
            names = [str(node.name), *(str(v.name) for v in node.outputs)]
            found |= dict.fromkeys(names, clamps[str(node.name)])
    return found


def _by_node(events: Events, owners: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Times by node and operator of the kernel, in picoseconds."""
    found: dict[str, dict[str, float]] = {}
    for (name, op), ps in events.items():
        base = _SUFFIX.sub("", name).removeprefix("fused ")
        if base in owners:
            times = found.setdefault(owners[base], {})
            times[op] = times.get(op, 0.0) + ps
    return found


_TEXT = """<ir_version: 9, opset_import: ["": 17]> g (float[1,C,S,S] x) => (float[1,C,S,S] y) {
    a = Conv(x, w)
    a_q = QuantizeLinear(a, scale, zero)
    a_d = DequantizeLinear(a_q, scale, zero)
    w_d = DequantizeLinear(w_q, w_scale, w_zero)
    b = Conv(a_d, w_d)
    b_q = QuantizeLinear(b, scale, zero)
    b_d = DequantizeLinear(b_q, scale, zero)
    y = Conv(b_d, w)
}"""


def crossings(profile: Callable[[Sequence[ir.Model], Feed], list[Events]]) -> tuple[float, float, float]:
    """Measure the time in picoseconds for each element to quantize, to dequantize, and to convert the layout of an
    image at either of them.
    """
    channels, side = _CHAIN
    size = channels * side * side
    proto = onnx.parser.parse_model(_TEXT.replace("C,S,S", f"{channels},{side},{side}"))
    rng = np.random.default_rng(0)
    w = rng.standard_normal((channels, channels, 1, 1)).astype(np.float32)
    arrays = {
        "w": w, "scale": np.float32(0.05), "zero": np.uint8(128),
        "w_q": np.clip(np.rint(w / 0.02), -127, 127).astype(np.int8), "w_scale": np.float32(0.02), "w_zero": np.int8(0),
    }  # fmt: skip
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), name) for name, a in arrays.items())
    (events,) = profile(
        [ir.from_proto(proto)], {"x": rng.standard_normal((1, channels, side, side)).astype(np.float32)}
    )
    ops: dict[str, float] = defaultdict(float)
    for (_, op), ps in events.items():
        ops[op] += ps / size
    # the graph's input and output are reordered too, and are not part of a crossing
    layout = (ops["Transpose"] + (ops["ReorderInput"] + ops["ReorderOutput"]) / 2) / 2
    return ops["QuantizeLinear"], ops["DequantizeLinear"], layout


def load(path: Path) -> Costs | None:
    """The costs in a file, None if the file does not exist.

    Raises:
        DataError: it is not a file of costs.
    """
    if not path.exists():
        return None
    try:
        found = json_of(text_of(path))
        return parsed(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{path}: no file of costs ({e}); name a new one, and it is measured") from e


def parsed(found: Mapping[str, object]) -> Costs:
    """The costs in a JSON document.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is not a document of costs.
    """
    if found["schema"] != SCHEMA:
        raise ValueError(f"schema {found['schema']!r}")
    times = {str(k): None if v is None else _pair(*v) for k, v in found["times"].items()}  # type: ignore[attr-defined]
    quantize, dequantize, layout = (float(x) for x in found["crossings"])  # type: ignore[attr-defined]
    if not all(x >= 0 for x in (quantize, dequantize, layout, *(y for pair in times.values() for y in pair or ()))):
        raise ValueError("a time below 0")
    return Costs(str(found["host"]), times, (quantize, dequantize, layout))


def _pair(floating: object, integer: object) -> tuple[float, float]:
    return float(floating), math.inf if integer is None else float(integer)  # type: ignore[arg-type]


def merged(first: Costs, second: Costs | None) -> Costs:
    """`first`, with what only `second` has."""
    return first if second is None else replace(first, times={**second.times, **first.times})


def document(costs: Costs) -> dict[str, object]:
    """`costs` as a JSON document."""
    times = {k: None if v is None else _rounded(*v) for k, v in sorted(costs.times.items())}
    return {
        "schema": SCHEMA,
        "host": costs.host,
        "crossings": [round(x, 1) for x in costs.crossings or ()],
        "times": times,
    }


def _rounded(floating: float, integer: float) -> list[int | None]:
    return [round(floating), None if math.isinf(integer) else round(integer)]


def save(costs: Costs, path: Path) -> None:
    """Write `costs` to a file, completely or not at all."""
    with replacing(path) as part:
        part.write_text(json.dumps(document(costs), indent=1) + "\n", encoding="utf-8")
