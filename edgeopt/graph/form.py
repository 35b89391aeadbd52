"""The canonical form of a model, which every other module works on: no functions, no Constant nodes, weights as initializers and not
among the inputs, sorted, every node named, no unused opset imports, no dimension below 1 on a graph input. `canonical`
returns a copy; the argument keeps its form.
"""

from __future__ import annotations

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
from edgeopt.graph.facts import above_protobuf
from edgeopt.graph.serialization import MALFORMED, embedded, root_cause


def canonical(model: ir.Model) -> ir.Model:
    """A copy in canonical form (see the module); the tensors are shared.

    Raises:
        ModelError: a pass refused the model, or an input is not a tensor.
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
    try:
        copy = Sequential(*steps)(_copy(model)).model
    except (*MALFORMED, ir.passes.PassError) as e:
        raise ModelError(f"the graph cannot be brought into canonical form: {root_cause(e)}") from e
    if len(copy.graph) == 0:
        raise ModelError("nothing is computed: the outputs are constants or inputs")
    for value in (*copy.graph.inputs, *copy.graph.outputs):
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            raise ModelError(f"{value.name!r} is a {value.type}: only models of tensors can be quantized or measured")
    for value in copy.graph.inputs:
        if not isinstance(value.type, ir.TensorType) or value.dtype == ir.DataType.STRING:
            raise ModelError(
                f"input {value.name!r} is a {value.type}: only inputs that are tensors of numbers can be quantized or measured"
            )
        if value.shape is not None:
            dims = [None if isinstance(d, int) and d < 1 else d for d in value.shape]
            value.shape = ir.Shape(dims)
    _name_nodes(copy)
    return copy


def _copy(model: ir.Model) -> ir.Model:
    """A clone in topological order, with the operators under their short domain name."""
    try:
        copy = model.clone()
    except (ValueError, RuntimeError):  # nodes out of order cannot be cloned; a cycle or an undefined value not sorted
        copy = ir.from_proto(ir.to_proto(model))
        copy.graph.sort()
        copy = copy.clone()
    for node in copy.graph.all_nodes():
        if node.domain == "ai.onnx":
            node.domain = ""
    if "ai.onnx" in copy.opset_imports:
        copy.opset_imports.setdefault("", copy.opset_imports["ai.onnx"])
        del copy.opset_imports["ai.onnx"]
    return copy


def _name_nodes(model: ir.Model) -> None:
    """Give every node, bodies included, a name of its own."""
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
    """The model at ONNX opset `version` or later; an older one goes through ONNX's version converter.

    Raises:
        ModelError: the converter does not know an operator of the model.
    """
    if model.opset_imports[""] >= version:
        return model
    if above_protobuf(model):
        raise ModelError(
            f"a model above 2 GB cannot be raised from opset {model.opset_imports['']} to {version}; export it again at opset {version}"
        )
    try:
        with embedded(model) as whole:
            converted = onnx.version_converter.convert_version(ir.to_proto(whole), version)
        # the C++ error type of the converter derives from RuntimeError
    except (RuntimeError, ValueError) as e:
        raise ModelError(
            f"opset {model.opset_imports['']} cannot be raised to {version}: {e}; export the model again at opset {version}"
        ) from e
    return canonical(ir.from_proto(converted))


def typed(model: ir.Model) -> ir.Model:
    """The model with an element type on every value, by ONNX's strict inference.

    Raises:
        ModelError: the inference fails; says where.
    """
    if above_protobuf(model):
        raise ModelError("a model above 2 GB cannot go through ONNX's type inference, which this mode needs")
    try:
        with embedded(model) as whole:
            inferred = onnx.shape_inference.infer_shapes(ir.to_proto(whole), check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError) as e:
        raise ModelError(f"type inference failed: {e}") from e
    return canonical(ir.from_proto(inferred))
