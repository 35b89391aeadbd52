"""Weights whose products can saturate are found and reduced, also where a tied weight is read transposed."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeopt.ptq.grids import PAIR
from edgeopt.ptq.guard import guarded, unguarded

READ = {
    "as it is": "v = DequantizeLinear <axis = 1> (w, s, z)",
    "transposed": "t = Transpose <perm = [1, 0]> (w)  v = DequantizeLinear <axis = 1> (t, s, z)",
    "transposed by default": "t = Transpose (w)  v = DequantizeLinear <axis = 1> (t, s, z)",
}


@pytest.mark.parametrize("how", READ)
def test_a_weight_is_reduced_along_the_axis_that_its_product_sums(how: str) -> None:
    columns = np.zeros((4, 3), np.int8)  # [summed, channel]: only neighbours of one column saturate
    columns[:2, 1] = 127
    columns[2, :] = 100
    w = columns if how == "as it is" else np.ascontiguousarray(columns.T)
    body = f"{READ[how]}  y = MatMul(x, v)"
    proto = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["" : 17]> g (float[1,4] x) => (float[1,3] y) {{ {body} }}'
    )
    constants = {"w": w, "s": np.ones(3, np.float32), "z": np.zeros(3, np.int8)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(c, name) for name, c in constants.items())
    model = ir.from_proto(proto)
    assert len(unguarded(model)) == 1
    reduced = guarded(model)
    assert unguarded(reduced) == []
    after = reduced.graph.initializers["w"].const_value
    assert after is not None and after.shape == w.shape
    kept = after.numpy() if how == "as it is" else after.numpy().T
    assert (
        kept[:2, 1].astype(int).sum() == PAIR
        and (kept[2:] == columns[2:]).all()
        and (kept[:, 0] == columns[:, 0]).all()
    )


def test_of_a_scale_for_the_whole_tensor_the_product_says_what_is_summed() -> None:
    w = np.array([[127, 127, 0, 0], [1, 2, 3, 4]], np.int8)  # [channel, summed], read by a Gemm with transB
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 17]> g (float[1,4] x) => (float[1,2] y) '
        "{ v = DequantizeLinear (w, s, z)  y = Gemm <transB = 1> (x, v) }"
    )
    constants = {"w": w, "s": np.float32(1), "z": np.int8(0)}
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(c), name) for name, c in constants.items())
    after = guarded(ir.from_proto(proto)).graph.initializers["w"].const_value
    assert after is not None and after.numpy()[0, :2].astype(int).sum() == PAIR
