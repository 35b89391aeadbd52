"""ONNX Runtime's basic optimizations, with the result as standard ONNX: constants and BatchNorm are folded, MatMul +
Add become Gemm, LayerNorm is recognized.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgeopt.errors import ModelError
from edgeopt.files import temporary_folder
from edgeopt.graph import defaults
from edgeopt.graph.edit import Names, drop_unused, initializer
from edgeopt.graph.edit import node as make
from edgeopt.graph.facts import above_protobuf
from edgeopt.graph.form import canonical
from edgeopt.graph.ops import PRODUCTS, bodies, constant, rule
from edgeopt.graph.serialization import embedded
from edgeopt.runtime.session import open_session

_LARGE = 65536  # bytes of a constant that may be worth computing
_TIMES = 4  # as large as what makes it
_MOST_MAKERS = 64  # nodes that make one constant


def basic(model: ir.Model) -> ir.Model:
    """`model` after ONNX Runtime's basic optimizations, in canonical form, with its original metadata; a model above
    2 GB is returned unchanged.
    """
    if above_protobuf(model):
        return model
    with temporary_folder() as folder:
        path = folder / "basic.onnx"
        open_session(model, level="basic", optimized=path)
        optimized = ir.load(path, format="protobuf")
        if len(optimized.graph) == 0:
            raise ModelError("nothing is computed from the inputs: the outputs are constants")
        result = canonical(embedded(optimized), defaults.names(model), copy=False)
    _share(result, model)
    _rename(result, model)
    _unfold(result, model)
    result.metadata_props.update(model.metadata_props)
    for domain in set(result.opset_imports) - set(model.opset_imports):
        if not any(n.domain == domain for n in result.graph.all_nodes()):
            result.opset_imports.pop(domain, None)
    result.producer_name, result.producer_version = model.producer_name, model.producer_version
    return result


def _rename(result: ir.Model, model: ir.Model) -> None:
    """Give constants that ONNX Runtime made names of ours: when it loads the file and fuses once more, it takes the
    same names again, and fails ("Attempt to replace the existing tensor").
    """
    known = {str(v.name) for graph in model.graphs() for n in graph for v in n.outputs} | {*model.graph.initializers}
    names = Names(result)
    for name, value in tuple(result.graph.initializers.items()):
        if name not in known and not value.is_graph_output():
            value.name = names.value(f"{name}_made")


def _unfold(result: ir.Model, model: ir.Model) -> None:
    """Compute constants of `result` that are much larger than what makes them in `model` when the file is loaded, where
    ONNX Runtime folds them again.
    """
    made = {str(v.name): n for n in model.graph for v in n.outputs if v.name}
    names, unfolded = Names(result), False
    for name, value in tuple(result.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes < _LARGE or name not in made or value.is_graph_output():
            continue
        weight = any(i in rule(n).weights or i == rule(n).bias or n.op_type in PRODUCTS for n, i in value.uses())
        nodes = _makers(made[name])
        # a weight would not be constant any more to what quantizes it, which divides it by four
        times = _TIMES * 4 if weight else _TIMES
        if nodes is None or tensor.nbytes < times * sum(_bytes(v) for n in nodes for v in n.inputs):
            continue
        del result.graph.initializers[name]
        names.release(name)
        values: dict[ir.Value | None, ir.Value | None] = {None: None}
        for node in nodes:
            for v in node.inputs:
                if v is not None and v not in values and v.const_value is not None:
                    values[v] = initializer(result, names, str(v.name), v.const_value.numpy())
            outputs = [str(v.name) for v in node.outputs]
            inputs = [values[v] for v in node.inputs]
            copy = make(names, node.op_type, inputs, str(node.name), list(node.attributes.values()), outputs=outputs)
            copy.version = node.version
            result.graph.append(copy)
            values |= dict(zip(node.outputs, copy.outputs, strict=True))
        computed = values[next(v for v in made[name].outputs if v.name == name)]
        assert computed is not None
        value.replace_all_uses_with(computed)
        unfolded = True
    if unfolded:
        result.graph.sort()
        drop_unused(result)


def _makers(last: ir.Node) -> list[ir.Node] | None:
    """The nodes that compute the outputs of `last` from constants, in order; None if it needs an input, or they draw
    random numbers or have bodies.
    """
    found: list[ir.Node] = []
    seen: set[ir.Node] = set()

    def add(node: ir.Node) -> bool:
        if node in seen:
            return True
        seen.add(node)
        if bodies(node) or node.domain or len(seen) > _MOST_MAKERS:
            return False
        for v in node.inputs:
            producer = None if v is None else v.producer()
            known = v is None or constant(v) or (producer is not None and add(producer))
            if not known:
                return False
        found.append(node)
        return True

    return found if add(last) else None


def _bytes(value: ir.Value | None) -> int:
    return 0 if value is None or value.const_value is None else value.const_value.nbytes


def _share(result: ir.Model, model: ir.Model) -> None:
    """Let `result` share unchanged weights with `model`, so that they are in memory only once."""
    for name, value in result.graph.initializers.items():
        new = value.const_value
        old = model.graph.initializers[name].const_value if name in model.graph.initializers else None
        same_type = new is not None and old is not None and new.dtype == old.dtype and new.shape == old.shape
        if same_type and new is not None and old is not None and np.array_equal(new.numpy(), old.numpy()):
            value.const_value = old
