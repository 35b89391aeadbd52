"""Generated inputs stay within what the graph can take, and a dimension without a size is asked for by name."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from edgeopt import graph
from edgeopt.data.made_up import generated, index_bound, shapes
from edgeopt.data.spec import check_feed
from edgeopt.errors import DataError, UsageError
from edgeopt.profiling.inputs import read_arrays, write_feeds
from tests import tiny
from tests.models import normal

DENSE = "g (float[N,4] x) => (float[N,4] y) { y = Relu(x) }"
TEXT = """g (int64[batch,seq] ids, int64[batch,seq] attention_mask, float[batch,seq,8] extra) => (float[batch,seq,8] y) {
    a = Gather(table, ids)
    m = Cast <to = 1> (attention_mask)
    u = Unsqueeze(m, last)
    b = Mul(a, u)
    y = Add(b, extra)
}"""  # noqa: E501


def text_model() -> ir.Model:
    return tiny.model(TEXT, table=normal(30, 8), last=np.int64([2]))


def fed(model: ir.Model, **sizes: int) -> tuple[dict[str, np.ndarray], str]:
    feed, told = generated(model, shapes(model, sizes), {})
    check_feed(feed, model, "generated")
    return dict(feed), "; ".join(told)


# shapes


def test_a_first_dimension_that_varies_is_a_batch_of_one_or_of_what_is_asked_for() -> None:
    model = tiny.model(DENSE)
    assert shapes(model, {}) == {"x": (1, 4)}
    assert shapes(model, {}, batch=7) == {"x": (7, 4)}


@pytest.mark.parametrize("name", ["N", "x.0"])
def test_a_size_by_name_or_by_axis_comes_before_the_batch(name: str) -> None:
    assert shapes(tiny.model(DENSE), {name: 5}, batch=7) == {"x": (5, 4)}


def test_a_dimension_has_the_same_size_in_every_input() -> None:
    found = shapes(text_model(), {"seq": 6}, batch=3)
    assert found == {"ids": (3, 6), "attention_mask": (3, 6), "extra": (3, 6, 8)}


def test_dimensions_without_a_size_are_all_named_with_the_option_that_gives_one() -> None:
    model = tiny.model("g (float[N,3,H,W] x) => (float[N,3,H,W] y) { y = Relu(x) }")
    with pytest.raises(UsageError) as caught:
        shapes(model, {})
    told = str(caught.value)
    assert "H (dimension 2 of 'x')" in told and "W (dimension 3 of 'x')" in told and "N (" not in told
    assert told.endswith("give --dim H=SIZE")
    assert shapes(model, {"H": 5, "W": 6}) == {"x": (1, 3, 5, 6)}


def test_a_first_dimension_that_another_input_has_inside_is_no_batch() -> None:
    model = tiny.model("g (float[K,4] x, float[2,K] z) => (float[2,4] y) { y = MatMul(z, x) }")
    with pytest.raises(UsageError, match=r"K \(dimension 0 of 'x'\)"):
        shapes(model, {})
    assert shapes(model, {"K": 3}) == {"x": (3, 4), "z": (2, 3)}


def test_a_dimension_without_a_name_is_asked_for_by_input_and_axis() -> None:
    made = onnx.helper.make_tensor_value_info("x", 1, [None, None])
    nodes = [onnx.helper.make_node("Relu", ["x"], ["y"])]
    out = onnx.helper.make_tensor_value_info("y", 1, [None, None])
    proto = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [made], [out]))
    model = graph.canonical(graph.load(proto))
    with pytest.raises(UsageError, match=r"x\.1 .*--dim x\.1=SIZE"):
        shapes(model, {})
    assert shapes(model, {"x.1": 9}) == {"x": (1, 9)}


@pytest.mark.parametrize(("typo", "meant"), [("sequ", "seq"), ("bach", "batch"), ("ids.2", "ids.")])
def test_an_unknown_dimension_is_refused_and_a_name_like_it_suggested(typo: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"--dim {typo}: no input has it; did you mean '{meant}"):
        shapes(text_model(), {"seq": 4, typo: 3})


def test_a_size_for_a_model_without_dimensions_that_vary_is_refused() -> None:
    with pytest.raises(UsageError, match="every dimension is fixed"):
        shapes(tiny.model(DENSE.replace("N", "2")), {"N": 2})


def test_a_batch_that_the_model_fixes_is_refused_unless_it_is_that_one() -> None:
    model = tiny.model(DENSE.replace("N", "2"))
    with pytest.raises(UsageError, match=r"--batch 4: the model fixes its first dimensions \(x: 2\)"):
        shapes(model, {}, batch=4)
    assert shapes(model, {}, batch=2) == shapes(model, {}) == {"x": (2, 4)}


def test_a_given_array_implies_the_sizes_of_the_other_inputs() -> None:
    given = {"ids": np.zeros((5, 9), np.int64)}
    assert shapes(text_model(), {}, given=given) == {"attention_mask": (5, 9), "extra": (5, 9, 8)}


def test_an_input_without_a_shape_is_asked_for_as_a_file() -> None:
    model = tiny.model(DENSE)
    model.graph.inputs[0].shape = None
    with pytest.raises(UsageError, match=r"'x' declares no shape; give it as --input x=FILE\.npy"):
        shapes(model, {})
    assert shapes(model, {}, given={"x": normal(2, 4)}) == {}


# values


def test_the_same_shapes_get_the_same_values() -> None:
    (one, said), (two, again) = fed(text_model(), seq=6), fed(text_model(), seq=6)
    assert said == again and all(np.array_equal(one[k], two[k]) for k in one) and one.keys() == two.keys()


def test_an_index_is_in_range_a_mask_is_ones_and_the_words_say_so() -> None:
    feed, told = fed(text_model(), batch=40, seq=50)
    assert (
        feed["ids"].min() == 0 and feed["ids"].max() == 29
    )  # 2000 draws out of 30 miss one with 30 * (29/30)^2000 < 1e-27
    assert (feed["attention_mask"] == 1).all()
    assert "ids: random in [0, 30), since it is an index" in told and "attention_mask: ones (a mask)" in told


def test_what_is_generated_runs(tmp_path: Path) -> None:
    model = text_model()
    (y,) = tiny.run(model, fed(model, batch=3, seq=7)[0])
    assert y.shape == (3, 7, 8) and np.isfinite(y).all()


@pytest.mark.parametrize(
    "moves",
    [
        "i = Identity(x)",
        "i = Cast <to = 7> (x)",
        "f = Reshape(x, flat)  i = Cast <to = 7> (f)",
        "t = Transpose(x)  f = Flatten(t)  i = Cast <to = 6> (f)",
        "f = Unsqueeze(x, one)  s = Squeeze(f, one)  i = Slice(s, zero, one)",
    ],
)
def test_an_index_is_followed_through_what_only_moves_it(moves: str) -> None:
    text = f"g (int64[3,4] x) => (float[N,M,K] y) {{ {moves}  z = Gather(table, i)  y = Reshape(z, out) }}"
    weights = {
        "table": normal(11, 2),
        "flat": np.int64([-1]),
        "one": np.int64([1]),
        "zero": np.int64([0]),
        "out": np.int64([1, 1, -1]),
    }
    model = tiny.model(text, **weights)
    assert index_bound(model.graph.inputs[0]) == 11
    feed, _ = fed(model)
    assert feed["x"].max() < 11
    tiny.run(model, feed)


def test_the_smallest_table_bounds_an_index_of_several_along_their_axes() -> None:
    text = (
        "g (int64[2] x) => (float[2,5] y) { a = Gather(big, x)  b = Gather <axis = 1> (wide, x)  t = Transpose(b)  y ="
        " Add(a, t) }"
    )
    assert index_bound(tiny.model(text, big=normal(9, 5), wide=normal(5, 7)).graph.inputs[0]) == 7
    text = "g (int64[2,5] x) => (float[2,5] y) { y = GatherElements <axis = -1> (data, x) }"
    assert index_bound(tiny.model(text, data=normal(2, 6)).graph.inputs[0]) == 6


def test_an_index_that_is_used_in_a_branch_is_bound_there() -> None:
    text = """g (int64[2] x, bool c) => (float[2,3] y) {
        y = If(c) <then_branch = t () => (float[2,3] p) { p = Gather(table, x) },
                   else_branch = e () => (float[2,3] q) { r = Gather(table, x)  q = Neg(r) }>
    }"""
    assert index_bound(tiny.model(text, table=normal(4, 3)).graph.inputs[0]) == 4


@pytest.mark.parametrize("use", ["y = Cast <to = 1> (x)", "y = Gather(x, where)"])
def test_what_is_no_index_has_no_bound(use: str) -> None:
    kind = "float" if "Cast" in use else "int64"
    model = tiny.model(f"g (int64[4] x) => ({kind}[4] y) {{ {use} }}", where=np.int64([3, 2, 1, 0]))
    assert index_bound(model.graph.inputs[0]) is None
    feed, told = fed(model)
    assert set(feed["x"].tolist()) <= {0, 1} and told == "x: random, 0 or 1"


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("float[1,3,8,8]", "[0, 1)"),
        ("float[1,8,8,1]", "[0, 1)"),
        ("float[1,8,8,8]", "normal"),
        ("float16[1,3,8,8]", "[0, 1)"),
        ("double[5]", "normal"),
        ("bfloat16[5]", "normal"),
        ("bool[5]", "true"),
    ],
)
def test_values_have_the_dtype_and_the_words_of_their_input(declared: str, words: str) -> None:
    made = onnx.parser.parse_model(
        f'<ir_version: 9, opset_import: ["": 17]> g ({declared} x) => ({declared} y) {{ y = Identity(x) }}'
    )
    feed, told = fed(graph.canonical(graph.load(made)))
    assert words in told
    values = feed["x"].astype(np.float64)
    assert words != "[0, 1)" or (values.min() >= 0 and values.max() <= 1)
    assert words != "normal" or values.min() < 0
    assert words != "true" or values.all()


@pytest.mark.parametrize("kind", [1, 10, 11, 7, 9], ids=["float", "float16", "double", "int64", "bool"])
def test_a_scalar_gets_a_value_as_any_input_does(kind: int) -> None:
    x, y = (onnx.helper.make_tensor_value_info(name, kind, []) for name in "xy")
    whole = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [x], [y])
    feed, _ = fed(graph.canonical(graph.load(onnx.helper.make_model(whole))))
    assert np.shape(feed["x"]) == () and feed["x"].dtype == onnx.helper.tensor_dtype_to_np_dtype(kind)


def test_given_inputs_are_taken_as_they_are_and_not_told() -> None:
    given = {"ids": np.full((2, 3), 29)}
    model = text_model()
    feed, told = generated(model, shapes(model, {}, given=given), given)
    assert feed["ids"] is given["ids"] and not any(line.startswith("ids:") for line in told)
    check_feed(feed, model, "given")


# files


def refused(file: Path, error: type[Exception] = DataError, name: str = "x") -> str:
    with pytest.raises(error) as caught:
        read_arrays({name: file}, tiny.model(DENSE))
    gc.collect()  # a file that was left open is told here
    return str(caught.value)


def header(text: str) -> bytes:
    body = text.encode() + b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


def test_an_array_is_read_as_it_was_saved(tmp_path: Path) -> None:
    x = normal(3, 4)
    np.save(tmp_path / "x.npy", x)
    np.testing.assert_array_equal(read_arrays({"x": tmp_path / "x.npy"}, tiny.model(DENSE))["x"], x)


def test_a_wrong_input_name_is_refused_and_the_right_one_suggested(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="--input attention_mas: the model has no such input; did you mean 'attention_mask'"
    ):
        read_arrays({"attention_mas": tmp_path / "x.npy"}, text_model())


class Trap:
    """Unpickled, it leaves a file called `sprung`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("sprung"),)


def test_pickled_objects_are_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "object.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(Trap()))
    for name in ("object.npy", "raw.npy"):
        assert "pickled objects are refused" in refused(tmp_path / name)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }") + bytes(8),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4"),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 4), }"),
        b"PK\x03\x04 and no more of it",
    ],
    ids=["empty", "text", "cut", "open bracket", "huge", "cut zip"],
)
def test_a_file_that_is_no_array_is_refused_by_its_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "bad.npy").write_bytes(content)
    told = refused(tmp_path / "bad.npy")
    assert "--input x" in told and "bad.npy" in told


def test_a_file_that_is_not_there_or_a_folder_is_refused_by_its_name(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.npy", tmp_path):
        assert str(path) in refused(path)


def test_a_file_of_several_arrays_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "many.npz", a=normal(2), b=normal(3))
    assert "several arrays; give one .npy" in refused(tmp_path / "many.npz")


def test_feeds_are_written_by_number_and_name(tmp_path: Path) -> None:
    write_feeds([{"x": normal(2), "in/z": normal(3)}, {"x": normal(4)}], tmp_path / "f.npz")
    with np.load(tmp_path / "f.npz") as archive:
        assert sorted(archive.files) == ["0/in/z", "0/x", "1/x"]
        np.testing.assert_array_equal(archive["1/x"], normal(4))
