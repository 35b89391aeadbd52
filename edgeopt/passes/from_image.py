"""A model that takes the pixels of a camera: uint8 [N, H, W, C], red first; what prepared them before is in the file.

    y = (x scale - mean) / std = (x + b) a,   a = scale / std,   b = -mean / scale   (one number a channel)

The product is last, because it folds into the weights of a convolution whatever that pads with.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from edgeopt.graph.edit import Names, cast, initializer, node

_TO_NCHW = (0, 3, 1, 2)


def from_image(
    model: ir.Model,
    name: str,
    *,
    layout: str,
    color: str,
    scale: float,
    mean: Sequence[float],
    std: Sequence[float],
) -> ir.Model:
    """A clone of `model` (canonical) whose input `name`, an image prepared so, is its pixels; layout: NCHW or NHWC;
    color: rgb, bgr or gray; mean, std: one number, or one a channel in that order.
    """
    copy = model.clone()
    inputs, names = copy.graph.inputs, Names(copy)
    at = next(i for i, v in enumerate(inputs) if v.name == name)
    old = inputs[at]
    assert old.shape is not None and old.dtype is not None
    n, *rest = old.shape
    axis = 1 if layout == "NCHW" else 3
    h, w = (rest[1], rest[2]) if axis == 1 else (rest[0], rest[1])
    channels = 1 if color == "gray" else 3
    old.name = names.value(f"{name}_prepared")
    names.release(name)
    image = ir.Value(name=names.value(name), type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape([n, h, w, channels]))
    made: list[ir.Node] = []

    def then(op: str, *others: ir.Value, attributes: tuple[ir.Attr, ...] = ()) -> None:
        made.append(node(names, op, [_last(made, image), *others], f"{name}_{op}", attributes))
        made[-1].outputs[0].shape, made[-1].outputs[0].type = old.shape, _last(made[:-1], image).type

    if axis == 1:
        then("Transpose", attributes=(ir.AttrInt64s("perm", _TO_NCHW),))
    if color == "bgr":
        turned = initializer(copy, names, f"{name}_order", np.array([2, 1, 0], np.int64))
        then("Gather", turned, attributes=(ir.AttrInt64("axis", axis),))
    copy.graph.extend(made)
    value = cast(copy.graph, names, _last(made, image), old.dtype)
    value.shape = old.shape
    made = [value.producer()]  # type: ignore[list-item]
    m, s = (np.broadcast_to(np.asarray(x, np.float64), (channels,)) for x in (mean, std))
    for op, numbers, nothing in (("Add", -m / scale, 0.0), ("Mul", scale / s, 1.0)):
        if (numbers == nothing).all():
            continue
        shape = () if (numbers == numbers[0]).all() else (-1, 1, 1) if axis == 1 else (-1,)
        constant = (numbers[0] if shape == () else numbers.reshape(shape)).astype(old.dtype.numpy())
        then(op, initializer(copy, names, f"{name}_{op}_by", constant))
        copy.graph.append(made[-1])
    old.replace_all_uses_with(_last(made, image), replace_graph_outputs=True)
    inputs[at] = image
    copy.graph.sort()
    return copy


def _last(made: list[ir.Node], image: ir.Value) -> ir.Value:
    return made[-1].outputs[0] if made else image
