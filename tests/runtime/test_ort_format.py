"""`.ort` files: they answer as the ONNX file does, come with the operators they need, and a failure leaves nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.errors import EdgeoptError, ValidityError
from edgeopt.runtime import ort_format
from edgeopt.runtime.ort_format import to_ort
from edgeopt.runtime.session import open_session
from tests import models

# the converter of ONNX Runtime leaves the file that it reads open
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

FEED = {"x": models.normal(2, 4)}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def saved(folder: Path, model: bytes, name: str = "m.onnx") -> Path:
    (folder / name).write_bytes(model)
    return folder / name


@pytest.mark.parametrize(
    "name", ["m.onnx", "m.v1.2.onnx", "a b.onnx", "né.onnx", "m.optimized.onnx", "m.ONNX", "model"]
)
def test_both_files_lie_in_the_folder_under_the_models_name_and_answer_alike(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, out = saved(tmp_path, models.dense(), name), tmp_path / "out"
    out.mkdir()
    found = to_ort(path, out, FEED)
    assert found == [out / f"{path.stem}.ort", out / f"{path.stem}.required_operators.config"]
    assert names(out) == sorted(f.name for f in found)
    np.testing.assert_allclose(
        open_session(found[0]).run(FEED)[0], open_session(path).run(FEED)[0], rtol=1e-5, atol=1e-6
    )
    assert capfd.readouterr() == ("", "")


def test_the_config_names_the_operators_of_the_converted_file_with_their_opset(tmp_path: Path) -> None:
    _, config = to_ort(saved(tmp_path, models.convolution()), tmp_path, {"x": models.normal(1, 3, 8, 8)})
    rows = [row.split(";") for row in config.read_text().splitlines() if row and not row.startswith("#")]
    operators = {op for _, _, ops in rows for op in ops.split(",")}
    assert {"Conv", "Gemm", "GlobalAveragePool"} <= operators | {op.removeprefix("Fused") for op in operators}


def test_an_int8_file_is_converted_too(tmp_path: Path) -> None:
    import edgeopt

    edgeopt.quantize(
        models.dense(),
        [{"x": models.normal(1, 4, seed=i)} for i in range(20)],
        output=tmp_path / "q.onnx",
        **models.STATIC,
    )
    made, _ = to_ort(tmp_path / "q.onnx", tmp_path, FEED)
    np.testing.assert_allclose(
        open_session(made).run(FEED)[0], open_session(tmp_path / "q.onnx").run(FEED)[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("location", ["m.onnx.data", "weights.bin", "deep/er/w.bin"])
def test_weights_in_files_of_their_own_end_up_in_the_converted_file(location: str, tmp_path: Path) -> None:
    whole = onnx.load_model_from_string(models.dense())
    (tmp_path / location).parent.mkdir(parents=True, exist_ok=True)
    onnx.save(whole, tmp_path / "m.onnx", save_as_external_data=True, location=location, size_threshold=0)
    want = open_session(tmp_path / "m.onnx").run(FEED)[0]
    out = tmp_path / "out"
    out.mkdir()
    made, _ = to_ort(tmp_path / "m.onnx", out, FEED)
    (tmp_path / location).unlink()
    np.testing.assert_allclose(open_session(made).run(FEED)[0], want, rtol=1e-5, atol=1e-6)


CUSTOM = '<ir_version: 9, opset_import: ["" : 17, "mine" : 1]> g (float[N,4] x) => (float[N,4] y) { y = mine.Odd(x) }'


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 99, models.dense()[:60], CUSTOM], ids=["empty", "zeros", "cut", "custom operator"]
)
def test_what_cannot_be_converted_is_refused_by_name_and_leaves_nothing(content: bytes | str, tmp_path: Path) -> None:
    data = content if isinstance(content, bytes) else onnx.parser.parse_model(content).SerializeToString()
    path, out = saved(tmp_path, data), tmp_path / "out"
    out.mkdir()
    with pytest.raises(EdgeoptError, match=r"m\.onnx"):
        to_ort(path, out, FEED)
    assert names(out) == []


def test_a_converted_file_that_answers_otherwise_is_refused_with_its_output_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path, models.dense())
    made, _ = to_ort(path, tmp_path, FEED)
    before = made.read_bytes()
    other = saved(tmp_path, models.dense(b=models.normal(4, seed=9)), "other.onnx")
    monkeypatch.setattr(ort_format, "open_session", lambda p: open_session(other if p.suffix == ".ort" else p))
    with pytest.raises(ValidityError, match=r"m\.onnx: as \.ort, output 'y' differs"):
        to_ort(path, tmp_path, FEED)
    assert made.read_bytes() == before and names(tmp_path) == [
        "m.onnx",
        "m.ort",
        "m.required_operators.config",
        "other.onnx",
    ]


KINDS = {
    "bool": "g (float[N,4] x) => (bool[N,4] y) { z = Neg(x)  y = Greater(x, z) }",
    "int64": "g (float[N,4] x) => (int64[N,1] y) { y = ArgMax <axis = 1> (x) }",
    "string": "g (float[N,4] x) => (string[N,4] y) { y = Cast <to = 8> (x) }",
    "NaN": "g (float[N,4] x) => (float[N,4] y) { y = Log(x) }",
    "sequence": "g (float[N,4] x) => (seq(float[N,2]) y) { y = SplitToSequence <axis = 1> (x) }",
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_outputs_of_every_type_are_compared_or_refused_in_words(kind: str, tmp_path: Path) -> None:
    path = saved(
        tmp_path, onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 17]>{KINDS[kind]}').SerializeToString()
    )
    try:
        made, _ = to_ort(path, tmp_path, FEED)
    except EdgeoptError as e:
        assert kind == "sequence" and "m.onnx" in str(e)
        return
    assert made.is_file()


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(EdgeoptError, match="cannot be written"):
        to_ort(saved(tmp_path, models.dense()), tmp_path / "none", FEED)
