"""A file that takes pixels answers as the model does on prepared images."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeopt.data.images import tensor
from edgeopt.options.reading import Preprocess
from edgeopt.passes.fold_affine import fold_affine
from edgeopt.passes.from_image import from_image
from tests import tiny

RNG = np.random.default_rng(0)
NCHW = "g (float[N,3,6,5] x) => (float[N,4,6,5] y) { y = Conv <pads = [1,1,1,1]> (x, w) }"
NHWC = "g (float[N,6,5,3] x) => (float[N,6,5,3] y) { y = Mul(x, w) }"


def model(layout: str) -> ir.Model:
    weight = RNG.standard_normal((4, 3, 3, 3) if layout == "NCHW" else (3,)).astype(np.float32)
    return tiny.model(NCHW if layout == "NCHW" else NHWC, w=weight)


def prepared(recipe: Preprocess) -> dict[str, Any]:
    return recipe.model_dump(include={"layout", "color", "scale", "mean", "std"})


numbers = st.lists(st.floats(-2, 2, width=32), min_size=3, max_size=3).map(tuple)
spreads = st.lists(st.floats(0.125, 2, width=32), min_size=3, max_size=3).map(tuple)


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(["NCHW", "NHWC"]), st.sampled_from(["rgb", "bgr"]), st.floats(0.002, 1), numbers, spreads)
def test_pixels_give_what_the_prepared_image_gives(
    layout: str, color: str, scale: float, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    recipe = Preprocess.model_validate({"layout": layout, "color": color, "scale": scale, "mean": mean, "std": std})
    before = model(layout)
    image = RNG.integers(0, 256, (6, 5, 3)).astype(np.uint8)
    (expected,) = tiny.run(before, {"x": tensor(image.astype(np.float32), recipe, np.dtype(np.float32))})
    after = from_image(before, "x", **prepared(recipe))
    assert before.graph.inputs[0].dtype == ir.DataType.FLOAT  # its argument is left alone
    (found,) = tiny.run(after, {"x": image[None]})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * max(1.0, float(np.abs(expected).max())))


def test_the_input_keeps_its_name_and_takes_bytes_with_the_channels_last() -> None:
    (image,) = from_image(model("NCHW"), "x", **prepared(Preprocess(layout="NCHW", color="rgb"))).graph.inputs
    assert (image.name, image.dtype) == ("x", ir.DataType.UINT8) and list(image.shape or ())[1:] == [6, 5, 3]


@pytest.mark.parametrize(("mean", "left"), [(0.0, set()), (0.5, {"Add"})])
def test_scales_go_into_the_convolution(mean: float, left: set[str]) -> None:
    recipe = Preprocess(layout="NCHW", color="rgb", mean=(mean,), std=(0.2, 0.3, 0.4))
    folded = fold_affine(from_image(model("NCHW"), "x", **prepared(recipe)))
    assert {n.op_type for n in folded.graph} == {"Transpose", "Cast", "Conv", *left}


def test_a_grey_image_has_one_channel() -> None:
    grey = tiny.model("g (float[1,1,4,4] x) => (float[1,1,4,4] y) { y = Relu(x) }")
    after = from_image(grey, "x", **prepared(Preprocess(layout="NCHW", color="gray", scale=1.0)))
    assert [n.op_type for n in after.graph] == ["Transpose", "Cast", "Relu"]
    (found,) = tiny.run(after, {"x": np.full((1, 4, 4, 1), 7, np.uint8)})
    assert (found == 7).all()
