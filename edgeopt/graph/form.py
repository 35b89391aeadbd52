"""The canonical form of a model, which all other modules expect.

It has no functions and no Constant nodes; weights are initializers and not graph inputs, inputs with a default are
inputs only (see `defaults`); nodes are sorted, and each has
a name; there are no unused opset imports; no dimension of a graph input is below 1. `canonical` returns a copy and does
not change its argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
import onnx_ir as ir
from onnx_ir.passes import PassBase, Sequential
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    LiftSubgraphInitializersToMainGraphPass,
    NameFixPass,
    RemoveInitializersFromInputsPass,
    RemoveUnusedNodesPass,
    RemoveUnusedOpsetsPass,
    TopologicalSortPass,
)

from edgeopt.errors import ModelError
from edgeopt.graph import defaults
from edgeopt.graph.facts import above_protobuf
from edgeopt.graph.serialization import MALFORMED, embedded, root_cause

_MOST_NODES = 1_000_000
_LEAST_IR = 4  # from which weights need not be inputs


def canonical(model: ir.Model, optional: frozenset[str] = frozenset(), *, copy: bool = True) -> ir.Model:
    """A copy in canonical form (see the module docstring) that shares the tensors of `model`; without `copy` the model
    itself, changed in place.

    optional: inputs that are known to have a default, where a tool made the model of a canonical one.

    Raises:
        ModelError: a pass rejected the model, or an input is not a tensor.
    """
    steps: list[PassBase] = [
        InlinePass(),
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        LiftSubgraphInitializersToMainGraphPass(),
        RemoveInitializersFromInputsPass(),
        TopologicalSortPass(),
        RemoveUnusedNodesPass(),
        RemoveUnusedOpsetsPass(),
        NameFixPass(),
    ]
    _check_functions(model)
    try:
        found = Sequential(*steps)(_prepared(model if not copy else _sorted(model), optional)).model
    except (*MALFORMED, ir.passes.PassError) as e:
        raise ModelError(f"the graph cannot be brought into canonical form: {root_cause(e)}") from e
    if len(found.graph) == 0:
        raise ModelError("nothing is computed: the outputs are constants or inputs")
    for value in (*found.graph.inputs, *found.graph.outputs):
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            raise ModelError(f"{value.name!r} is a {value.type}: only models of tensors can be quantized or measured")
    for value in found.graph.inputs:
        if not isinstance(value.type, ir.TensorType) or value.dtype == ir.DataType.STRING:
            raise ModelError(
                f"input {value.name!r} is a {value.type}: "
                "only inputs that are tensors of numbers can be quantized or measured"
            )
    free_sizes(found)
    _name_nodes(found)
    return found


def free_sizes(model: ir.Model) -> ir.Model:
    """`model`, changed in place: sizes of inputs below 1, as Paddle writes those that vary, are free."""
    for value in model.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape([None if isinstance(d, int) and d < 1 else d for d in value.shape])
    return model


def _check_functions(model: ir.Model) -> None:
    """Refuse functions that call each other so often that their nodes would not fit into memory."""
    sizes: dict[ir.OperatorIdentifier, int] = {}
    waiting = dict(model.functions)
    while waiting:
        ready = [k for k, f in waiting.items() if not any(n.op_identifier() in waiting for n in f.all_nodes())]
        for key in ready:
            sizes[key] = sum(sizes.get(n.op_identifier(), 1) for n in waiting.pop(key).all_nodes())
        if not ready:
            raise ModelError(f"functions that call themselves: {next(iter(waiting))[1]}")
    total = sum(sizes.get(n.op_identifier(), 1) for n in model.graph.all_nodes())
    if total > _MOST_NODES:
        raise ModelError(f"its functions make {total} nodes of it; a model may have {_MOST_NODES}")


def _sorted(model: ir.Model) -> ir.Model:
    """A clone in topological order."""
    try:
        return model.clone()
    except (ValueError, RuntimeError):  # unsorted nodes cannot be cloned; sorting fails for cycles and undefined values
        copy = ir.from_proto(ir.to_proto(model))
        copy.graph.sort()
        return copy.clone()


def _prepared(model: ir.Model, optional: frozenset[str]) -> ir.Model:
    """The model, changed in place: without defaults of inputs, of an IR version that allows that, and with the domain
    "ai.onnx" replaced by its short name "".
    """
    for node in model.graph.all_nodes():
        if node.domain == "ai.onnx":
            node.domain = ""
    defaults.set_aside(model, optional)
    if model.ir_version < _LEAST_IR:
        imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
        model.ir_version = max(_LEAST_IR, onnx.helper.find_min_ir_version_for(imports, ignore_unknown=True))
    if "ai.onnx" in model.opset_imports:
        model.opset_imports.setdefault("", model.opset_imports["ai.onnx"])
        del model.opset_imports["ai.onnx"]
    return model


def _name_nodes(model: ir.Model) -> None:
    """Give every node a unique name, also in sub-graphs."""
    taken = {n.name for n in model.graph.all_nodes() if n.name}
    seen: set[str] = set()
    for i, node in enumerate(model.graph.all_nodes()):
        if node.name and node.name not in seen:
            seen.add(node.name)
            continue
        name = f"{node.name or node.op_type}_{i}"
        while name in taken:
            name += "_"
        node.name = name
        taken.add(name)
        seen.add(name)


def raise_opset(model: ir.Model, version: int) -> ir.Model:
    """The model at ONNX opset `version` or later; older models are converted by ONNX's version converter.

    Raises:
        ModelError: the converter does not know an operator of the model.
    """
    return model if model.opset_imports[""] >= version else _at_opset(model, version)


def lower_opset(model: ir.Model, version: int) -> ir.Model:
    """The model at ONNX opset `version` or earlier, as `raise_opset`."""
    return model if model.opset_imports[""] <= version else _at_opset(model, version)


def _at_opset(model: ir.Model, version: int) -> ir.Model:
    if above_protobuf(model):
        raise ModelError(
            f"a model above 2 GB cannot be brought from opset {model.opset_imports['']} to {version}; "
            f"export it again at opset {version}"
        )
    try:
        converted = onnx.version_converter.convert_version(ir.to_proto(embedded(model)), version)
        # the C++ error type of the converter derives from RuntimeError
    except (onnx.version_converter.ConvertError, RuntimeError, ValueError) as e:
        raise ModelError(
            f"opset {model.opset_imports['']} cannot become {version}: {e}; export the model again at opset {version}"
        ) from e
    return _again(converted, model)


def at_shapes(model: ir.Model, shapes: Mapping[str, Sequence[int | ir.SymbolicDim]]) -> ir.Model:
    """A clone whose inputs have these shapes; a dimension with a name gets its size wherever the name stands, unless
    inputs have several sizes for it.
    """
    copy = model.clone()
    sizes: dict[str, set[int]] = {}
    for value in copy.graph.inputs:
        found = shapes.get(str(value.name))
        if found is not None:
            free = ((d, n) for d, n in zip(value.shape or (), found, strict=False) if not isinstance(d, int))
            for d, n in free:
                if d.value is not None and isinstance(n, int):
                    sizes.setdefault(d.value, set()).add(n)
            value.shape = ir.Shape(found)
    known = {name: next(iter(found)) for name, found in sizes.items() if len(found) == 1}
    for value in (*copy.graph.outputs, *(v for n in copy.graph.all_nodes() for v in n.outputs)):
        if value.shape is not None:
            dims = (d if isinstance(d, int) or d.value is None else known.get(d.value, d) for d in value.shape)
            value.shape = ir.Shape(list(dims))
    return copy


def typed(model: ir.Model) -> ir.Model:
    """The model with an element type for every value, by ONNX's strict type inference.

    Raises:
        ModelError: the inference fails; the message says where.
    """
    if above_protobuf(model):
        raise ModelError("a model above 2 GB cannot go through ONNX's type inference, which this mode needs")
    try:
        proto = ir.to_proto(embedded(model))
        inferred = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as e:
        raise ModelError(f"type inference failed: {e}") from e
    return _again(inferred, model)


def _again(proto: onnx.ModelProto, before: ir.Model) -> ir.Model:
    """The canonical form of what a tool made of the canonical model `before`."""
    made = ir.from_proto(proto)
    defaults.keep(before, made)
    return canonical(made, copy=False)
