"""Every operator of the table against the ONNX node tests that ship in the onnx wheel."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from edgeopt.train.network.torch_data import Unsupported
from edgeopt.train.network.torch_ops import OPS
from tests import tiny

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the reference implementations in the wheel
    from onnx.backend.test.case.node import collect_testcases

    CASES = [c for c in collect_testcases(None) if len(c.model.graph.node) == 1]

# torch has no arithmetic for these, and no model that is trained computes in them
FOREIGN = (
    "uint16",
    "uint32",
    "uint64",
    "bfloat16",
    "float8",
    "int4",
    "uint4",
    "int2",
    "uint2",
    "float4",
    "object",
    "str",
)
# what the cases of an operator ask for and the table leaves out, by a part of the case's name
LEFT_OUT = ("empty_set", "training", "expanded")
WIDENED = {"Attention"}  # its cases in float16 have sums in float16, and a model in float16 is run in float32
# operators whose node tests have an older opset only, or values that torch cannot hold
ELSEWHERE = {"And", "Or", "Xor", "Not", "Cast", "CastLike", "GRU"}
OPSET = 13


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for a in node.attribute:
        value = onnx.helper.get_attribute_value(a)
        if isinstance(value, onnx.TensorProto):
            value = torch.from_numpy(onnx.numpy_helper.to_array(value).copy())
        elif isinstance(value, bytes):
            value = value.decode()
        elif isinstance(value, list) and value and isinstance(value[0], bytes):
            value = [v.decode() for v in value]
        found[a.name] = value
    return found


def cases(op: str) -> Iterator[tuple[str, onnx.NodeProto, list[Any], list[Any]]]:
    """(name, node, inputs by position, wanted outputs) of the node tests of `op`."""
    for case in CASES:
        node = case.model.graph.node[0]
        opset = next((o.version for o in case.model.opset_import if o.domain in ("", "ai.onnx")), 0)
        if node.op_type != op or node.domain not in ("", "ai.onnx") or opset < OPSET:
            continue
        if any(part in case.name for part in LEFT_OUT):
            continue
        for inputs, outputs in case.data_sets:
            arrays = [np.asarray(x) if not isinstance(x, list) else None for x in (*inputs, *outputs)]
            if any(a is None or str(a.dtype).startswith(FOREIGN) or a.dtype.kind in "OUV" for a in arrays):
                continue
            if op in WIDENED and any(a.dtype == np.float16 for a in arrays):
                continue
            named = dict(zip((i.name for i in case.model.graph.input), inputs, strict=True))
            yield case.name, node, [named[i] if i else None for i in node.input], list(outputs)


def tolerance(node: onnx.NodeProto, y: np.ndarray) -> float:
    # float32 sums in another order; the wheel writes some expected values with four digits
    return 1e-3 if "pool" in node.op_type.lower() or node.op_type == "GridSample" else 1e-5


def differs(node: onnx.NodeProto, inputs: list[Any], wanted: list[Any]) -> str | None:
    """What is wrong with the result, or None."""
    tensors = [None if x is None else torch.from_numpy(np.array(x)) for x in inputs]
    more = {"outputs": len(node.output)} if node.op_type == "Split" else {}
    result = OPS[node.op_type](*tensors, **attributes(node), **more)
    results = list(result) if isinstance(result, tuple | list) else [result]
    named = [i for i, name in enumerate(node.output) if name]
    for i, want in zip(named, wanted, strict=False):
        if i >= len(results):
            break  # masks and statistics that no model for inference reads
        ours = results[i].numpy()
        if ours.shape != np.shape(want) or ours.dtype != np.asarray(want).dtype:
            return f"{ours.dtype}{ours.shape} for {np.asarray(want).dtype}{np.shape(want)}"
        if not np.allclose(ours, want, rtol=tolerance(node, ours), atol=1e-6, equal_nan=True):
            return f"values: {ours.reshape(-1)[:4]} for {np.asarray(want).reshape(-1)[:4]}"
    return None


@pytest.mark.parametrize("op", sorted(OPS))
def test_an_operator_gives_what_its_node_tests_want(op: str) -> None:
    tried = 0
    for name, node, inputs, wanted in cases(op):
        try:
            wrong = differs(node, inputs, wanted)
        except Unsupported:
            continue
        assert wrong is None, f"{name}: {wrong}"
        tried += 1
    assert tried or op in ELSEWHERE, f"no node test of {op} was run"


@pytest.mark.parametrize("op", ["And", "Or", "Xor"])
def test_a_logical_operator_is_numpy_s(op: str) -> None:
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    wanted = getattr(np, f"logical_{op.lower()}")(a, b)
    assert np.array_equal(OPS[op](torch.from_numpy(a), torch.from_numpy(b)).numpy(), wanted)


def test_not_is_numpy_s() -> None:
    assert OPS["Not"](torch.tensor([True, False])).tolist() == [False, True]


@pytest.mark.parametrize(
    ("to", "dtype"), [(1, "float32"), (6, "int32"), (7, "int64"), (9, "bool"), (10, "float16"), (11, "float64")]
)
def test_a_cast_gives_the_type_of_its_number(to: int, dtype: str) -> None:
    y = OPS["Cast"](torch.tensor([0.0, 1.5, -2.5]), to=to).numpy()
    assert y.dtype == dtype and np.array_equal(y, np.array([0.0, 1.5, -2.5]).astype(dtype))


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_resize_counts_axes_from_the_end_too(mode: str) -> None:
    x, scales = torch.arange(6.0).reshape(1, 2, 3), torch.tensor([2.0])
    first, last = (OPS["Resize"](x, None, scales, mode=mode, axes=axes) for axes in ([2], [-1]))
    assert first.shape == (1, 2, 6) and torch.equal(first, last)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("after", [0, 1])
def test_a_gated_recurrent_unit_of_both_kinds_is_that_of_onnx_runtime(direction: str, after: int) -> None:
    n = 2 if direction == "bidirectional" else 1
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in {"w": (n, 12, 3), "r": (n, 12, 4), "b": (n, 24), "h": (n, 2, 4)}.items()
    }
    text = f"""g (float[5,2,3] x) => (float[T,D,N,4] y, float[D,N,4] last) {{
        y, last = GRU <hidden_size = 4, direction = "{direction}", linear_before_reset = {after}> (x, w, r, b, , h)
    }}"""
    x = rng.standard_normal((5, 2, 3)).astype(np.float32)
    wanted = tiny.run(tiny.model(text, **arrays), {"x": x})
    w, r, b, h = (torch.from_numpy(arrays[k]) for k in "wrbh")
    found = OPS["GRU"](
        torch.from_numpy(x), w, r, b, None, h, hidden_size=4, direction=direction, linear_before_reset=after
    )
    for y, want in zip(found, wanted, strict=True):
        assert np.allclose(y.numpy(), want, atol=1e-6)


def test_a_form_that_is_left_out_is_said_in_words() -> None:
    with pytest.raises(Unsupported, match="antialias"):
        OPS["Resize"](torch.zeros(1, 1, 4), None, torch.tensor([1.0, 1.0, 0.5]), antialias=1)
