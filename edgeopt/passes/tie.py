"""Tied weights are stored once: a matrix that is another one, as it is or transposed, is made from it when the file is
loaded, where ONNX Runtime folds it again. Exporters share the table of an embedding with the last layer by a Transpose,
which constant folding turns into a second table.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from edgeopt.graph.edit import Names, drop_unused
from edgeopt.graph.edit import node as make
from edgeopt.graph.ops import array

_LEAST = 4096  # bytes
_SHOWN = 64  # elements of the diagonal, which a transposed matrix shares


def tied(model: ir.Model) -> ir.Model:
    """A clone with large matrices that equal another one, or another one transposed, made from it; the model itself if
    there are none.
    """
    found = repeated(model)
    if not found:
        return model
    copy = model.clone()
    names, values = Names(copy), copy.graph.initializers
    for name, (first, turned) in found.items():
        value, other = values[name], values[first]
        if turned:
            turn = make(names, "Transpose", [other], f"{name}_Transpose", [ir.AttrInt64s("perm", [1, 0])])
            turn.outputs[0].type, turn.outputs[0].shape = value.type, value.shape
            copy.graph.append(turn)
            other = turn.outputs[0]
        value.replace_all_uses_with(other)
    copy.graph.sort()
    drop_unused(copy)
    return copy


def repeated(model: ir.Model) -> dict[str, tuple[str, bool]]:
    """The matrices that equal another one: name -> (name of that one, whether it has to be transposed)."""
    tables = _tables(model)
    found: dict[str, tuple[str, bool]] = {}
    kept: dict[object, list[ir.Value]] = {}
    for value in sorted(_matrices(model), key=lambda v: v.name not in tables):  # rows are read of a table as it is
        x = array(value)
        others = kept.setdefault(_key(x), [])
        for other in others:
            same = np.array_equal(x, array(other))
            if same or (value.name not in tables and np.array_equal(x, array(other).T)):
                found[str(value.name)] = str(other.name), not same
                break
        else:
            others.append(value)
    return found


def of_tables(model: ir.Model) -> frozenset[str]:
    """The names of the constants that equal a table of an embedding, as they are or transposed: to be stored once, all
    have to be rounded alike.
    """
    tables = _tables(model)
    arrays = [array(v) for v in _matrices(model) if v.name in tables]
    keys = {_key(a) for a in arrays}
    return frozenset(
        str(v.name)
        for v in _matrices(model)
        if _key(x := array(v)) in keys and any(np.array_equal(x, a) or np.array_equal(x, a.T) for a in arrays)
    )


def _tables(model: ir.Model) -> set[str]:
    """The names of the constants of which nodes read rows."""
    readers = [n for n in model.graph.all_nodes() if n.op_type == "Gather"]
    return {str(n.inputs[0].name) for n in readers if n.inputs and n.inputs[0] is not None}


def _matrices(model: ir.Model) -> Iterator[ir.Value]:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value.is_graph_output() or value.is_graph_input() or len(tensor.shape) != 2:
            continue
        if tensor.dtype != ir.DataType.STRING and tensor.dtype.bitwidth >= 8 and tensor.nbytes >= _LEAST:
            yield value


def _key(x: NDArray[np.generic]) -> object:
    """What a matrix has in common with its transpose."""
    return x.dtype.str, tuple(sorted(x.shape)), np.diagonal(x)[:_SHOWN].tobytes()
