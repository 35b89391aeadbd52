"""A model above protobuf's 2 GB, weights in external data, through the whole job."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import edgeopt
from edgeopt.hardware.host import free_bytes
from edgeopt.runtime.session import open_session

SIDE, LAYERS = 8192, 9  # 9 matrices of 268 MB


def write_large(folder: Path) -> Path:
    """A chain of diagonal matrices: a sparse file, of which little lies on the disk."""
    size = 4 * SIDE * SIDE
    with (folder / "large.data").open("wb") as data:
        data.truncate(LAYERS * size)
        for layer in range(LAYERS):
            for i in range(0, SIDE, 64):
                data.seek(layer * size + 4 * (i * SIDE + i))
                data.write(np.float32(0.5 + layer / 16).tobytes())
    weights = []
    for layer in range(LAYERS):
        weight = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[SIDE, SIDE])
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "large.data"), ("offset", layer * size), ("length", size)):
            weight.external_data.add(key=key, value=str(value))
        weights.append(weight)
    nodes = [helper.make_node("MatMul", [f"x{i}", f"w{i}"], [f"x{i + 1}"], name=f"m{i}") for i in range(LAYERS)]
    ends = (helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["n", SIDE]) for i in (0, LAYERS))
    graph = helper.make_graph(nodes, "large", [next(ends)], [next(ends)], weights)
    path = folder / "large.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.slow
def test_a_model_above_two_gigabytes_is_quantized(tmp_path: Path) -> None:
    if free_bytes() < 12e9 or shutil.disk_usage(tmp_path).free < 8e9:
        pytest.skip("needs 12 GB of memory and 8 GB of disk")
    model = write_large(tmp_path)
    feeds = [{"x0": np.random.default_rng(i).standard_normal((1, SIDE)).astype(np.float32)} for i in range(3)]
    out = tmp_path / "small.onnx"
    report = edgeopt.quantize(model, feeds, output=out, mode="dynamic", measure=False).report
    assert report.input_bytes > 2_400_000_000
    assert report.output_bytes < report.input_bytes / 3.9
    # one 8-bit rounding of the activations a layer, nine layers
    assert report.worst_sqnr_db > 30
    (y,) = open_session(out).run(feeds[0])
    assert np.count_nonzero(y) == SIDE // 64
