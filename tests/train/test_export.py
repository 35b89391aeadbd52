"""Export from torch: the file answers as the module does, or there is no file; no pickle is read unasked."""

from __future__ import annotations

import itertools
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnx_ir as ir
import pytest

torch = pytest.importorskip("torch")

from edgeopt.errors import EdgeoptError, ModelError, UsageError, ValidityError  # noqa: E402
from edgeopt.options.models import Dtype  # noqa: E402
from edgeopt.release.project.file import ExportTable  # noqa: E402
from edgeopt.runtime.session import open_session  # noqa: E402
from edgeopt.train.export import Exported, export  # noqa: E402
from tests.models import normal  # noqa: E402

_NUMBERS = itertools.count()
HEAD = "import torch\nfrom torch import nn\ntorch.manual_seed(0)\n"
LINEAR = "def f():\n    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))\n"
Make = Callable[..., Exported]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """`make(code, shapes, ...)` exports f of a module of that code to m.onnx in the working folder."""
    monkeypatch.chdir(tmp_path)

    def call(code: str, inputs: Mapping[str, Sequence[int]] | None = None, **more: Any) -> Exported:
        name = f"net{next(_NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(HEAD + code)
        return export(f"{name}:f", inputs or {"x": (1, 3)}, output=tmp_path / "m.onnx", **more)

    return call


def forward(body: str, init: str = "pass", arguments: str = "x") -> str:
    """A factory f of a module with this `forward`."""
    return (
        f"class M(nn.Module):\n    def __init__(self):\n        super().__init__()\n        {init}\n    def"
        f" forward(self, {arguments}):\n        {body}\nf = M\n"
    )


def left(folder: Path) -> list[str]:
    """Files besides the modules."""
    return sorted(p.name for p in folder.iterdir() if p.suffix != ".py" and p.name != "__pycache__")


def test_the_file_answers_as_the_module_does_and_says_how_near(
    make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    found = make(LINEAR)
    module = sys.modules[f"net{next(_NUMBERS) - 1}"]
    assert found.path == tmp_path / "m.onnx" and left(tmp_path) == ["m.onnx"] and 0 <= found.error < 1e-5
    assert [str(v.name) for v in found.model.graph.inputs] == ["x"]
    torch.manual_seed(0)
    same, x = module.f().eval(), normal(1, 3)
    with torch.no_grad():
        want = same(torch.from_numpy(x)).numpy()
    (have,) = open_session(found.path).run({"x": x})
    np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("size", [1, 4])
def test_a_free_axis_takes_any_size_whatever_size_the_example_has(size: int, make: Make) -> None:
    found = make(LINEAR, {"x": (size, 3)}, dynamic={"x": (0,)})
    session = open_session(found.path)
    for n in (1, 2, 7):
        assert session.run({"x": normal(n, 3)})[0].shape == (n, 2)


def test_without_a_free_axis_the_shape_is_the_one_given(make: Make) -> None:
    (value,) = make(LINEAR, {"x": (4, 3)}).model.graph.inputs
    assert list(value.shape or ()) == [4, 3]


def test_inputs_have_the_names_and_the_order_given_and_all_outputs_are_there(make: Make) -> None:
    found = make(
        forward("return a - 2 * b, {'s': a + b, 't': [a * b]}", arguments="a, b"), {"left": (2, 3), "right": (2, 3)}
    )
    assert [v.name for v in found.model.graph.inputs] == ["left", "right"]
    a, b = normal(2, 3), normal(2, 3, seed=1)
    have = open_session(found.path).run({"left": a, "right": b})
    for x, y in zip(have, (a - 2 * b, a + b, a * b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_dropout_and_batch_norm_are_those_of_inference(make: Make) -> None:
    init = "self.d = nn.Dropout(0.5); self.b = nn.BatchNorm1d(3)"
    assert make(forward("return self.d(x) + self.b(x.reshape(1, 3, 1)).reshape(1, 3)", init)).error < 1e-5


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("return x + torch.randn_like(x)", "differs"),
        ("return x + 1 if torch.compiler.is_compiling() else x", "differs"),
        ("return (x + (1 if torch.compiler.is_compiling() else 0)).round().to(torch.int64)", "differs"),
        ("return (x + (9 if torch.compiler.is_compiling() else 0)) > 3", "differs"),
    ],
    ids=["random", "float", "int", "bool"],
)
def test_an_output_that_is_not_the_modules_is_refused_by_name_and_nothing_is_written(
    body: str, says: str, make: Make, tmp_path: Path
) -> None:
    with pytest.raises(ValidityError, match=rf"output '.+' {says}"):
        make(forward(body))
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "body",
    [
        "return torch.log(x)",
        "return 1 / torch.relu(x)",
        "return x.argmax(-1)",
        "return x.half()",
        "return x + 1, self.w",
        "return x + 1, None",
        "return x.sum()",
    ],
)
def test_outputs_of_every_type_and_values_that_are_not_finite_are_exported(body: str, make: Make) -> None:
    assert make(forward(body, "self.w = nn.Parameter(torch.ones(3))")).error <= 1e-3


@pytest.mark.parametrize(
    "body",
    [
        "return x.bfloat16()",
        "return ()",
        "return None",
        "return x, x",
        "return x[x > 0]",
        "return x if x.sum() > 0 else -x",
    ],
)
def test_what_cannot_be_exported_is_refused_in_words_or_is_right(body: str, make: Make, tmp_path: Path) -> None:
    try:
        make(forward(body))
    except EdgeoptError as e:
        assert str(e) and left(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def f():\n    raise ValueError('no weights')\n", "no weights"),
        ("def f():\n    open('weights.bin')\n", "weights.bin"),
        ("class E(Exception): pass\ndef f():\n    raise E('own')\n", "own"),
        ("def f():\n    return 5\n", "int"),
        ("def f():\n    return None\n", "NoneType"),
        ("def f():\n    return nn.Linear\n", "type"),
        ("def f(size):\n    return nn.Linear(size, 2)\n", "size"),
        ("f = 5\n", "int"),
        ("def g(): pass\n", "'f'"),
        ("raise RuntimeError('at import')\n", "at import"),
        ("1 / 0\n", "division"),
        ("def f(:\n", "syntax"),
        ("import no_such_module_at_all\n", "no_such_module_at_all"),
    ],
    ids=lambda x: x[:24] if "\n" in x else "",
)
def test_a_factory_that_fails_or_gives_no_module_is_refused_with_its_name_and_why(
    code: str, says: str, make: Make, tmp_path: Path
) -> None:
    with pytest.raises((UsageError, ModelError), match=says) as e:
        make(code)
    assert f"net{next(_NUMBERS) - 1}:f" in str(e.value) and left(tmp_path) == []


@pytest.mark.parametrize(
    "source",
    [
        "",
        ":",
        "a",
        ":f",
        "no.such:f",
        "./net.py:f",
        ".net:f",
        "net.py",
        "..:f",
        "a:b:c",
        "a b:f",
        "\x00:f",
        "/abs/net.py:f",
        "net.onnx",
    ],
)
def test_a_source_that_names_nothing_is_refused_with_how_to_write_it(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="module:function"):
        export(source, {"x": (1, 3)}, output=tmp_path / "m.onnx")


@pytest.mark.parametrize("shape", [(-1, 3), (1, -3), (0, 3), (), (1, 4), (2**63, 1)], ids=str)
def test_a_shape_that_cannot_be_is_refused_and_never_a_traceback(
    shape: tuple[int, ...], make: Make, tmp_path: Path
) -> None:
    try:
        make(LINEAR, {"x": shape})
    except EdgeoptError as e:
        assert left(tmp_path) == [] and str(e)
    else:
        pytest.fail(f"{shape} was exported")


@pytest.mark.parametrize("dynamic", [{"y": (0,)}, {"x": (2,)}, {"x": (-1,)}, {"x": (0, 9)}], ids=str)
def test_a_free_axis_that_is_not_there_is_refused_by_name(
    dynamic: dict[str, tuple[int, ...]], make: Make, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=rf"--dynamic {next(iter(dynamic))}="):
        make(LINEAR, dynamic=dynamic)
    assert left(tmp_path) == []


def test_an_axis_that_the_module_cannot_vary_is_refused_in_words(make: Make, tmp_path: Path) -> None:
    with pytest.raises(EdgeoptError):
        make(LINEAR, {"x": (2, 3)}, dynamic={"x": (1,)})
    assert left(tmp_path) == []


@pytest.mark.parametrize("inputs", [{"x": (1, 3), "y": (1, 3)}, {}], ids=["too many", "none"])
def test_another_number_of_inputs_than_the_module_takes_is_refused(
    inputs: dict[str, tuple[int, ...]], make: Make, tmp_path: Path
) -> None:
    with pytest.raises(EdgeoptError):
        export(code_of(tmp_path, LINEAR), inputs, output=tmp_path / "m.onnx")
    assert left(tmp_path) == []


def code_of(folder: Path, code: str) -> str:
    """`module:f` of a module with that code in `folder`."""
    name = f"net{next(_NUMBERS)}"
    (folder / f"{name}.py").write_text(HEAD + code)
    return f"{name}:f"


def test_a_file_that_is_there_is_only_written_over_when_told_and_kept_when_the_export_fails(
    make: Make, tmp_path: Path
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"mine")
    with pytest.raises(UsageError, match="--force"):
        make(LINEAR)
    with pytest.raises(ModelError):
        make(forward("return undefined"), force=True)
    assert (tmp_path / "m.onnx").read_bytes() == b"mine"
    make(LINEAR, force=True)
    onnx.checker.check_model(onnx.load(tmp_path / "m.onnx"))


def test_the_same_module_gives_the_same_bytes(make: Make, tmp_path: Path) -> None:
    source = code_of(tmp_path, LINEAR.replace("def f():\n", "def f():\n    torch.manual_seed(0)\n"))
    texts = []
    for _ in range(2):
        export(source, {"x": (1, 3)}, output=tmp_path / "m.onnx", force=True)
        texts.append((tmp_path / "m.onnx").read_bytes())
    assert texts[0] == texts[1]


def test_what_a_module_adds_to_the_path_of_imports_stays_and_nothing_else(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = list(sys.path)
    monkeypatch.setattr(sys, "path", list(before))
    make("import sys\nsys.path.insert(0, '/mine')\n" + LINEAR)
    assert sys.path == ["/mine", *before]


# integers and samples

TOKENS = (
    "class M(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.e = nn.Embedding(50, 4)\n  "
    "  def forward(self, ids, mask):\n        return (self.e(ids) * mask[..., None]).mean(1)\nf = M\n"
)
PAIR: dict[str, Any] = {"inputs": {"ids": (1, 6), "mask": (1, 6)}, "dtypes": {"ids": "int64", "mask": "bool"}}
LARGE = "return x + torch.where(x > 50, float(torch.compiler.is_compiling()), 0.0)"


def test_token_ids_and_masks_are_inputs_and_their_samples_are_compared_too(make: Make, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "feeds").mkdir()
    for i, length in enumerate((6, 9)):
        np.savez(tmp_path / f"feeds/{i}.npz", ids=rng.integers(0, 50, (2, length)), mask=rng.random((2, length)) > 0.5)
    free = {"ids": (0, 1), "mask": (0, 1)}
    found = make(TOKENS, **PAIR, dynamic=free, data=tmp_path / "feeds")
    assert found.given == 2 and found.error < 1e-5 and str(found).endswith("(random inputs and 2 samples)")
    assert [v.dtype for v in found.model.graph.inputs] == [ir.DataType.INT64, ir.DataType.BOOL]


def test_a_free_axis_of_size_one_in_the_example_is_no_constant(make: Make) -> None:
    init = "self.l = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)"
    found = make(
        forward("return self.l(x, src_key_padding_mask=m)", init, "x, m"),
        {"x": (1, 5, 8), "m": (1, 5)},
        dtypes={"m": "bool"},
        dynamic={"x": (0, 1), "m": (0, 1)},
        data=[{"x": normal(n, 7, 8), "m": np.zeros((n, 7), bool)} for n in (1, 3)],
    )
    assert found.given == 2 and found.error < 1e-4


def test_what_random_inputs_do_not_show_a_sample_does(make: Make, tmp_path: Path) -> None:
    assert make(forward(LARGE)).given == 0
    with pytest.raises(ValidityError, match="differs"):
        make(forward(LARGE), data=[np.full((1, 3), 51, np.float32)], force=True)
    assert make(forward(LARGE), data=[np.full((1, 3), 49, np.float32)], force=True).given == 1


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([{"x": np.ones((1, 3), np.float32)}], "missing: ids, mask"),
        ([{"ids": np.ones((1, 6), np.float32), "mask": np.ones((1, 6), bool)}], "wants int64"),
        ([{"ids": np.ones((1, 5), np.int64), "mask": np.ones((1, 6), bool)}], "wants shape"),
        ([{"ids": np.full((1, 6), 50), "mask": np.ones((1, 6), bool)}], "torch gives nothing to compare"),
        ([], "no sample"),
        ("none.npz", "--data none.npz: no such file"),
    ],
    ids=["names", "type", "shape", "no such token", "none", "no file"],
)
def test_samples_that_do_not_fit_are_refused_with_why_and_nothing_is_written(
    data: Any, says: str, make: Make, tmp_path: Path
) -> None:
    with pytest.raises(EdgeoptError, match=says):
        make(TOKENS, **PAIR, data=data)
    assert left(tmp_path) == []


def test_a_project_file_takes_the_types_that_an_input_can_have() -> None:
    for dtype in get_args(Dtype):
        assert ExportTable(factory="a:b", inputs={"x": (1,)}, dtypes={"x": dtype}).dtypes == {"x": dtype}
    schema = ExportTable.model_json_schema()["properties"]["dtypes"]["additionalProperties"]["enum"]
    assert set(schema) == set(get_args(Dtype))


def test_a_type_that_there_is_not_is_refused_with_those_there_are(make: Make) -> None:
    with pytest.raises(UsageError, match="did you mean 'int64'"):
        make(TOKENS, PAIR["inputs"], dtypes={"ids": "int46"})
    with pytest.raises(UsageError, match="no such input; there are ids, mask"):
        make(TOKENS, PAIR["inputs"], dtypes={"x": "int64"})


# files


class Bomb:
    """Whoever unpickles it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (self.path, "w")


def program(path: Path, **more: Any) -> Path:
    """A .pt2 of the linear network."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.ReLU()).eval()
    torch.export.save(torch.export.export(module, (torch.zeros(2, 3),), **more), path)
    return path


@pytest.mark.parametrize("name", ["m.pt2", "m.PT2"])
def test_an_exported_program_is_taken_as_it_is(name: str, tmp_path: Path) -> None:
    path = program(tmp_path / "m.pt2").rename(tmp_path / name)
    found = export(str(path), {"x": (2, 3)}, output=tmp_path / "m.onnx")
    assert found.error < 1e-5 and open_session(found.path).run({"x": normal(2, 3)})[0].shape == (2, 5)


def test_an_exported_program_with_a_free_axis_keeps_it(tmp_path: Path) -> None:
    path = program(tmp_path / "m.pt2", dynamic_shapes=({0: torch.export.Dim("n")},))
    found = export(str(path), {"x": (2, 3)}, dynamic={"x": (0,)}, output=tmp_path / "m.onnx")
    assert open_session(found.path).run({"x": normal(7, 3)})[0].shape == (7, 5)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pkl", ".ckpt", ".PT"])
def test_a_pickle_is_refused_unread(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    torch.save(Bomb(tmp_path / "fell"), path)
    with pytest.raises(UsageError, match="--trust"):
        export(str(path), {"x": (1, 3)}, output=tmp_path / "m.onnx")
    assert not (tmp_path / "fell").exists()


def test_a_pickled_module_is_read_when_it_is_trusted(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(3, 2), tmp_path / "m.pt")
    assert export(str(tmp_path / "m.pt"), {"x": (1, 3)}, output=tmp_path / "m.onnx", trust=True).error < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", ["a pickle", "sample_inputs", "weights", "constants"])
def test_a_program_never_runs_code_that_is_hidden_in_it_unless_trusted(part: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    torch.save(Bomb(tmp_path / "fell"), tmp_path / "bomb.pt")
    bomb = (tmp_path / "bomb.pt").read_bytes()
    if part == "a pickle":
        path.write_bytes(bomb)
    else:
        parts = zipfile.ZipFile(program(tmp_path / "whole.pt2"))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as file:
            for name in parts.namelist():
                if f"/{part}/" not in name:
                    file.writestr(name, parts.read(name))
            root = parts.namelist()[0].split("/")[0]
            file.writestr(f"{root}/data/{part}/model.pt", bomb)
        parts.close()
    try:
        export(str(path), {"x": (2, 3)}, output=tmp_path / "m.onnx")
    except EdgeoptError:
        pass
    finally:
        assert not (tmp_path / "fell").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("content", [b"", b"\x00" * 99, b"PK\x03\x04", b"text"], ids=["empty", "zeros", "zip", "text"])
@pytest.mark.parametrize("suffix", [".pt2", ".pt"])
def test_a_file_that_torch_cannot_read_is_told_by_its_name(content: bytes, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError, match=path.name):
        export(str(path), {"x": (1, 3)}, output=tmp_path / "m.onnx", trust=suffix == ".pt")
    with pytest.raises(UsageError, match="no such file"):
        export(str(tmp_path / f"none{suffix}"), {"x": (1, 3)}, output=tmp_path / "m.onnx")


def test_a_trusted_file_that_holds_no_module_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(3)}, tmp_path / "m.pt")
    with pytest.raises(UsageError, match=r"dict, not an nn\.Module"):
        export(str(tmp_path / "m.pt"), {"x": (1, 3)}, output=tmp_path / "m.onnx", trust=True)
