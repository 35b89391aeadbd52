"""Size by hand: parameters, what an executor stores, its peak, and multiply-accumulates; and the known figures of
ResNet-50.
"""

from __future__ import annotations

import lzma
import math
import zlib
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgeopt
from edgeopt import graph
from edgeopt.profiling.inputs import write_feeds
from edgeopt.profiling.results import Size
from edgeopt.profiling.size import size
from tests import tiny
from tests.models import normal

F = 4  # bytes of a float32
RESIDUAL = """g (float[1,8,12,12] x) => (float[1,4] y) {
    a = Conv <pads = [1,1,1,1]> (x, w)
    b = Relu(a)
    c = Conv <pads = [1,1,1,1]> (b, v)
    d = Relu(c)
    e = Add(d, b)
    p = GlobalAveragePool(e)
    q = Flatten(p)
    y = Gemm(q, f, g)
}"""


def residual() -> onnx.ModelProto:
    return tiny.proto(RESIDUAL, w=normal(8, 8, 3, 3), v=normal(8, 8, 3, 3, seed=1), f=normal(8, 4), g=normal(4))


def sized(source: onnx.ModelProto | Path, folder: Path, *, xz: bool = False, **feed: np.ndarray) -> Size:
    """The size of `source`; inputs that are not in `feed` are normal values of their fixed shape."""
    path = source if isinstance(source, Path) else folder / "sized.onnx"
    if isinstance(source, onnx.ModelProto):
        onnx.save(source, path)
    model = graph.canonical(graph.load(path))
    missing = {str(v.name): v for v in model.graph.inputs if v.name not in feed}
    made = {name: normal(*v.shape.numpy()) for name, v in missing.items() if v.shape is not None}
    write_feeds([{**made, **feed}], folder / "feeds.npz")
    found = size(path, model, folder / "feeds.npz", xz=xz)
    assert found.why == ""
    return found


def macs(text: str, folder: Path, **weights: np.ndarray) -> int | None:
    return sized(tiny.proto(text, **weights), folder).macs


# bytes and parameters


def test_the_packed_sizes_are_those_of_zlib_and_lzma(tmp_path: Path) -> None:
    made = residual()
    whole = made.SerializeToString()
    found = sized(made, tmp_path, xz=True)
    assert found.file_bytes == len(whole)
    assert found.deflate_bytes == len(zlib.compress(whole, 6)) and found.xz_bytes == len(lzma.compress(whole))
    assert sized(made, tmp_path).xz_bytes is None


def test_parameters_and_their_bytes_are_those_of_the_initializers(tmp_path: Path) -> None:
    found = sized(residual(), tmp_path)
    assert found.parameters == 2 * 8 * 8 * 9 + 8 * 4 + 4
    assert found.weights_by_dtype == {"float": F * found.parameters}
    assert found.weights_by_op == {"Conv": F * 2 * 576, "Gemm": F * 36}


def test_constants_and_weights_in_branches_are_parameters_and_a_shared_weight_is_one(tmp_path: Path) -> None:
    text = """g (float[2,4] x, bool c) => (float[2,4] y) {
        k = Constant <value = float[4] {1.0, 2.0, 3.0, 4.0}> ()
        a = Add(x, k)
        b = MatMul(a, w)
        d = MatMul(b, w)
        y = If(c) <then_branch = t () => (float[2,4] p) <float[4] n = {1.0, 2.0, 3.0, 5.0}> { p = Mul(d, n) },
                   else_branch = e () => (float[2,4] q) { q = Neg(d) }>
    }"""
    found = sized(tiny.proto(text, w=normal(4, 4)), tmp_path, c=np.array(True))
    assert found.parameters == 4 + 16 + 4


def test_external_data_count_as_the_file_does(tmp_path: Path) -> None:
    made = residual()
    inside = sized(made, tmp_path)
    onnx.save_model(made, tmp_path / "out.onnx", save_as_external_data=True, location="out.bin", size_threshold=0)
    found = sized(tmp_path / "out.onnx", tmp_path)
    files = [tmp_path / "out.onnx", tmp_path / "out.bin"]
    assert found.file_bytes == sum(f.stat().st_size for f in files) > inside.parameters * F
    assert found.deflate_bytes == sum(len(zlib.compress(f.read_bytes(), 6)) for f in files)
    assert found.model_copy(update={"file_bytes": 0, "deflate_bytes": 0}) == inside.model_copy(
        update={"file_bytes": 0, "deflate_bytes": 0}
    )


# multiply-accumulates


def test_a_convolution_is_its_outputs_times_the_weights_of_a_channel(tmp_path: Path) -> None:
    text = "g (float[2,4,9,8] x) => (float[2,6,4,6] y) { y = Conv <group = 2, strides = [2,1]> (x, w, b) }"
    assert macs(text, tmp_path, w=normal(6, 2, 3, 3), b=normal(6)) == 2 * 6 * 4 * 6 * (2 * 3 * 3)


def test_a_transposed_convolution_is_its_inputs_times_the_weights_of_a_channel(tmp_path: Path) -> None:
    text = "g (float[2,4,5,5] x) => (float[2,6,11,11] y) { y = ConvTranspose <group = 2, strides = [2,2]> (x, w) }"
    assert macs(text, tmp_path, w=normal(4, 3, 3, 3)) == 2 * 4 * 5 * 5 * (3 * 3 * 3)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_a_gemm_is_m_n_k_however_it_is_transposed(a: int, b: int, tmp_path: Path) -> None:
    x, w = ("3,5", "5,3")[a], ((5, 7), (7, 5))[b]
    text = f"g (float[{x}] x) => (float[3,7] y) {{ y = Gemm <transA = {a}, transB = {b}> (x, w, c) }}"
    assert macs(text, tmp_path, w=normal(*w), c=normal(7)) == 3 * 7 * 5


@pytest.mark.parametrize(
    ("x", "w", "y", "expected"),
    [
        ("3,5", (5, 7), "3,7", 105),
        ("2,4,3,5", (5, 7), "2,4,3,7", 840),
        ("2,4,3,5", (4, 5, 7), "2,4,3,7", 840),
        ("5", (5, 7), "7", 35),
        ("3,5", (5,), "3", 15),
    ],
)
def test_a_matrix_product_is_its_outputs_times_the_inner_dimension(
    x: str, w: tuple[int, ...], y: str, expected: int, tmp_path: Path
) -> None:
    assert macs(f"g (float[{x}] x) => (float[{y}] y) {{ y = MatMul(x, w) }}", tmp_path, w=normal(*w)) == expected


def test_a_matrix_product_of_two_activations_counts_too(tmp_path: Path) -> None:
    text = "g (float[2,3,5] x) => (float[2,3,3] y) { t = Transpose <perm = [0,2,1]> (x)  y = MatMul(x, t) }"
    assert macs(text, tmp_path) == 2 * 3 * 3 * 5


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_a_recurrent_layer_is_its_gates_at_every_step(op: str, gates: int, direction: str, tmp_path: Path) -> None:
    d = 2 if direction == "bidirectional" else 1
    text = (
        f'g (float[3,2,5] x) => (float[{d},2,7] h) {{ y, h = {op} <hidden_size = 7, direction = "{direction}"> (x, w,'
        " r) }"
    )
    w, r = normal(d, gates * 7, 5), normal(d, gates * 7, 7)
    assert macs(text, tmp_path, w=w, r=r) == 3 * 2 * d * gates * 7 * (5 + 7)


def test_what_does_not_multiply_and_accumulate_counts_nothing(tmp_path: Path) -> None:
    assert macs("g (float[3,4] x) => (float[3,4] y) { a = Mul(x, x)  b = Exp(a)  y = Softmax(b) }", tmp_path) == 0


def test_the_branch_that_is_taken_counts(tmp_path: Path) -> None:
    text = """g (float[3,5] x, bool c) => (float[3,5] y) {
        y = If(c) <then_branch = t () => (float[3,5] p) { p = MatMul(x, w) },
                   else_branch = e () => (float[3,5] q) { q = Exp(x) }>
    }"""
    made = tiny.proto(text, w=normal(5, 5))
    for taken, expected in ((True, 75), (False, 0)):
        assert sized(made, tmp_path, c=np.array(taken)).macs == expected


def test_a_body_that_runs_five_times_counts_five_times(tmp_path: Path) -> None:
    text = """g (float[3,4] x) => (float[3,4] y) <int64 trip = {5}, bool on = {1}> {
        y = Loop(trip, on, x) <body = b (int64 i, bool c, float[3,4] s) => (bool c2, float[3,4] t) {
            c2 = Identity(c)
            t = Gemm(s, w, z)
        }>
    }"""
    assert macs(text, tmp_path, w=normal(4, 4), z=normal(4)) == 5 * 3 * 4 * 4


# activations


def test_the_residual_block_by_hand(tmp_path: Path) -> None:
    found = sized(residual(), tmp_path)
    image = 8 * 12 * 12
    # a and c store, b and d are in place, e = d + b stores, p, y; q is p
    assert found.activations == 3 * image + 8 + 4
    assert found.activation_bytes == F * found.activations
    # at e: b (in a), d (in c) and e itself
    assert found.peak_activation_bytes == F * 3 * image
    assert found.macs == 2 * image * 72 + 8 * 4


def test_a_chain_needs_two_values_at_a_time(tmp_path: Path) -> None:
    text = "g (float[100] x) => (float[100] y) { a = Exp(x)  b = Neg(a)  c = Exp(b)  y = Neg(c) }"
    found = sized(tiny.proto(text), tmp_path)
    assert found.activations == 400 and found.peak_activation_bytes == F * 200


def test_a_value_that_is_read_late_lives_until_then(tmp_path: Path) -> None:
    text = "g (float[100] x) => (float[100] y) { a = Exp(x)  b = Neg(a)  c = Exp(b)  d = Neg(c)  y = Add(d, a) }"
    found = sized(tiny.proto(text), tmp_path)
    assert found.activations == 500 and found.peak_activation_bytes == F * 300


def test_an_output_lives_to_the_end(tmp_path: Path) -> None:
    text = "g (float[100] x) => (float[100] a, float[100] y) { a = Exp(x)  b = Neg(a)  c = Exp(b)  y = Neg(c) }"
    assert sized(tiny.proto(text), tmp_path).peak_activation_bytes == F * 300


@pytest.mark.parametrize("op", ["Relu", "Sigmoid", "Tanh", "Erf", "LeakyRelu"])
def test_an_activation_function_with_one_reader_before_it_stores_nothing(op: str, tmp_path: Path) -> None:
    one = f"g (float[10] x) => (float[10] y) {{ a = Exp(x)  b = {op}(a)  y = Neg(b) }}"
    two = f"g (float[10] x) => (float[10] y) {{ a = Exp(x)  b = {op}(a)  y = Add(a, b) }}"
    told = f"g (float[10] x) => (float[10] a, float[10] y) {{ a = Exp(x)  b = {op}(a)  y = Neg(b) }}"
    assert sized(tiny.proto(one), tmp_path).activations == 20
    assert sized(tiny.proto(two), tmp_path).activations == 30
    assert sized(tiny.proto(told), tmp_path).activations == 30


def test_an_operator_that_onnx_runtime_runs_as_several_stores_its_output_all_the_same(tmp_path: Path) -> None:
    text = "g (float[10] x) => (float[10] y) { a = Exp(x)  b = HardSwish(a)  y = Add(a, b) }"
    assert sized(tiny.proto(text), tmp_path).activations == 30


def test_an_activation_function_on_an_input_stores_its_own(tmp_path: Path) -> None:
    found = sized(tiny.proto("g (float[10] x) => (float[10] y) { a = Relu(x)  y = Exp(a) }"), tmp_path)
    assert found.activations == 20


def test_a_reshape_stores_nothing_whoever_reads_its_input(tmp_path: Path) -> None:
    shapes = {"s": np.int64([4, 4]), "u": np.int64([2, 8])}
    text = (
        "g (float[2,8] x) => (float[2,8] y) { a = Exp(x)  b = Reshape(a, s)  c = Softmax(b)  d = Reshape(c, u)  y ="
        " Add(d, a) }"
    )
    found = sized(tiny.proto(text, **shapes), tmp_path)
    assert found.activations == 3 * 16 and found.peak_activation_bytes == F * 3 * 16


def test_a_reshape_of_an_input_stores_nothing_either(tmp_path: Path) -> None:
    text = "g (float[2,8] x) => (float[4,4] y) { b = Reshape(x, s)  y = Exp(b) }"
    assert sized(tiny.proto(text, s=np.int64([4, 4])), tmp_path).activations == 16


def test_an_activation_function_does_not_overwrite_through_a_reshape_what_is_read_later(tmp_path: Path) -> None:
    shapes = {"s": np.int64([4, 4]), "u": np.int64([2, 8])}
    text = (
        "g (float[2,8] x) => (float[2,8] y) { a = Exp(x)  b = Reshape(a, s)  c = Relu(b)  d = Reshape(c, u)  y = Add(d,"
        " a) }"
    )
    found = sized(tiny.proto(text, **shapes), tmp_path)
    assert found.activations == 3 * 16 and found.peak_activation_bytes == F * 3 * 16


def test_what_lives_in_a_branch_does_not_make_the_rest_smaller(tmp_path: Path) -> None:
    text = """g (float[100] x, bool c) => (float[100] y) {
        a = Exp(x)
        b = If(c) <then_branch = t () => (float[1] p) { k = Expand(a, big)  m = Exp(k)  r = ReduceMax <axes = [0]> (m)  p = ReduceMax <axes = [1], keepdims = 0> (r) },
                   else_branch = e () => (float[1] q) { q = ReduceMax <axes = [0]> (a) }>
        d = Mul(a, b)
        y = Add(d, a)
    }"""  # noqa: E501
    found = sized(tiny.proto(text, big=np.int64([50, 100])), tmp_path, c=np.array(True))
    # at y: a, d and y; the branch may count for more, and never for less
    assert found.peak_activation_bytes is not None and found.peak_activation_bytes >= F * 300


@pytest.mark.parametrize(
    ("kind", "size_bytes"),
    [("float16", 2), ("double", 8), ("int64", 8), ("int32", 4), ("int8", 1), ("uint8", 1), ("bool", 1)],
)
def test_an_element_has_the_bytes_of_its_type(kind: str, size_bytes: int, tmp_path: Path) -> None:
    to = {"float16": 10, "double": 11, "int64": 7, "int32": 6, "int8": 3, "uint8": 2, "bool": 9}[kind]
    text = f"g (float[10] x) => ({kind}[2,5] y) {{ a = Cast <to = {to}> (x)  b = Reshape(a, s)  y = Transpose(b) }}"
    found = sized(tiny.proto(text.replace("[2,5] y", "[5,2] y"), s=np.int64([2, 5])), tmp_path)
    assert found.activations == 20 and found.activation_bytes == 20 * size_bytes


# quantized


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`residual` in every mode of `quantize`, by name."""
    folder = tmp_path_factory.mktemp("quantized")
    onnx.save(residual(), folder / "float.onnx")
    data = tiny.feeds(8, x=(1, 8, 12, 12))
    for mode in ("static", "dynamic", "weights", "fp16"):
        edgeopt.quantize(folder / "float.onnx", data, output=folder / f"{mode}.onnx", mode=mode, measure=False)
    return folder


@pytest.mark.parametrize("mode", ["static", "dynamic", "weights", "fp16"])
def test_a_quantized_model_has_the_macs_of_the_float_model(mode: str, quantized: Path, tmp_path: Path) -> None:
    assert sized(quantized / f"{mode}.onnx", tmp_path).macs == sized(quantized / "float.onnx", tmp_path).macs


def test_an_int8_model_stores_its_activations_as_one_byte(quantized: Path, tmp_path: Path) -> None:
    ops = {n.op_type for n in onnx.load(quantized / "static.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear", "Conv"} <= ops
    found, image = sized(quantized / "static.onnx", tmp_path), 8 * 12 * 12
    # the input as integers besides what the float model stores; only the output y is dequantized
    assert found.activations == image + 3 * image + 8 + 4
    assert found.activation_bytes == found.activations + (F - 1) * 4
    # at the addition both summands and the sum, as in the float model: an integer kernel reads the ones and writes the
    # other
    assert found.peak_activation_bytes == 3 * image


@pytest.mark.parametrize("mode", ["dynamic", "weights"])
def test_weights_that_are_dequantized_for_their_consumer_are_no_activations(
    mode: str, quantized: Path, tmp_path: Path
) -> None:
    found, before = (sized(quantized / f"{m}.onnx", tmp_path).activations for m in (mode, "float"))
    # dynamic quantization computes a scale, a zero point and a few values more
    assert found is not None and before is not None and 0 <= found - before < 64


# ResNet-50


class Net:
    """Nodes and weights of a network as they are added."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.nodes, self.weights = list[onnx.NodeProto](), list[onnx.TensorProto]()
        self.channels = {"x": 3}

    def weight(self, x: np.ndarray) -> str:
        self.weights.append(onnx.numpy_helper.from_array(x.astype(np.float32), f"w{len(self.weights)}"))
        return self.weights[-1].name

    def node(self, op: str, *inputs: str, **attributes: object) -> str:
        name = f"v{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(op, inputs, [name], **attributes))
        self.channels[name] = self.channels[inputs[0]]
        return name

    def conv(self, x: str, out: int, k: int, stride: int = 1, *, relu: bool = False) -> str:
        """Conv, BatchNormalization and, if asked for, Relu."""
        fan = self.channels[x] * k * k
        w = self.weight(self.rng.standard_normal((out, self.channels[x], k, k), np.float32) / math.sqrt(fan))
        y = self.node("Conv", x, w, strides=[stride] * 2, pads=[k // 2] * 4, kernel_shape=[k, k])
        norms = [self.weight(f(out)) for f in (np.ones, np.zeros, np.zeros, np.ones)]
        y = self.node("BatchNormalization", y, *norms)
        self.channels[y] = out
        y = self.node("Relu", y) if relu else y
        self.channels[y] = out
        return y


def bottleneck(made: Net, x: str, inside: int, stride: int, shrink: bool) -> str:
    out = made.conv(x, inside, 1, relu=True)
    out = made.conv(out, inside, 3, stride, relu=True)
    out = made.conv(out, 4 * inside, 1)
    return made.node("Relu", made.node("Add", out, made.conv(x, 4 * inside, 1, stride) if shrink else x))


def resnet50() -> onnx.ModelProto:
    """torchvision's ResNet-50 (He et al. 2015, arXiv:1512.03385, stride in the 3x3 convolution), random weights."""
    made = Net()
    x = made.conv("x", 64, 7, 2, relu=True)
    x = made.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, blocks in enumerate((3, 4, 6, 3)):
        for i in range(blocks):
            x = bottleneck(made, x, 64 << stage, 2 if stage and not i else 1, shrink=not i)
    x = made.node("Flatten", made.node("GlobalAveragePool", x))
    dense = made.rng.standard_normal((1000, 2048)) / math.sqrt(2048)
    x = made.node("Gemm", x, made.weight(dense), made.weight(np.zeros(1000)), transB=1)
    value = onnx.helper.make_tensor_value_info
    inputs, outputs = value("x", 1, ["N", 3, 224, 224]), value(x, 1, ["N", 1000])
    whole = onnx.helper.make_graph(made.nodes, "resnet50", [inputs], [outputs], made.weights)
    return onnx.helper.make_model(whole, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.slow
def test_resnet_50_has_the_parameters_activations_and_macs_of_the_literature(tmp_path: Path) -> None:
    found = sized(resnet50(), tmp_path, x=normal(1, 3, 224, 224))
    # torchvision says 25 557 032, without the means and variances of its 53 120 / 2 normalized channels
    assert found.parameters == 25_557_032 + 2 * 26_560
    assert found.parameters == pytest.approx(25.6e6, rel=3e-3)
    # torchvision says 4.089 G; the fully connected layer is in it
    assert found.macs == pytest.approx(4.089e9, rel=1e-3)
    # outputs of the convolutions 11.11 M (Radosavovic et al. 2020, arXiv:2003.13678, table 9), of the additions, the
    # pools and the Gemm by hand
    sums = 3 * 256 * 56**2 + 4 * 512 * 28**2 + 6 * 1024 * 14**2 + 3 * 2048 * 7**2
    assert found.activations == pytest.approx(11.11e6 + sums + 64 * 56**2 + 2048 + 1000, rel=1e-3)
    assert found.activation_bytes == F * found.activations
    # 168 MB is the figure of the literature for weights and activations as float32
    assert F * (found.parameters + found.activations) == pytest.approx(168e6, rel=0.05)
    # at the first block's end: its shortcut, the last convolution's output, and their sum
    assert found.peak_activation_bytes == F * 3 * 256 * 56**2
