"""The manifest: the same bytes for the same inputs, wherever and whenever; what has changed since is told by its
name.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgeopt
from edgeopt.errors import DataError, EdgeoptError, ValidityError
from edgeopt.files import sha256
from edgeopt.release.document import Run, load
from edgeopt.release.evidence.artefacts import write
from edgeopt.release.evidence.manifest import verify
from edgeopt.release.project.file import Project
from tests import models, tiny
from tests.release.runs import run, variant

# the converter of ONNX Runtime leaves the file that it reads open
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

TOML = """
model = "model.onnx"
[data]
path = "x.npy"
[profile]
measure = false
[variants.lean]
steps = [{ step = "simplify" }]
[variants.again]
from = "lean"
steps = [{ step = "simplify" }]
[gates.lean]
size.file = { max = "1 MB" }
"""


def no_constant(name: str) -> Any:
    """Of a JSON reader that takes what RFC 8259 has and no NaN."""
    raise AssertionError(f"{name} is no JSON")


def project(folder: Path, model: bytes, samples: np.ndarray, toml: str = TOML) -> Path:
    """The project file in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").write_bytes(model)
    np.save(folder / "x.npy", samples)
    (folder / "edgeopt.toml").write_text(toml)
    return folder / "edgeopt.toml"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """build/edgeopt of a run with .ort files."""
    file = project(tmp_path_factory.mktemp("p"), models.dense(), models.normal(20, 4), TOML + "[output]\nort = true\n")
    assert edgeopt.run(file).exit_code == 0
    return file.parent / "build" / "edgeopt"


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """Of what was built, to be spoilt."""
    return shutil.copytree(built, tmp_path / "copy")


@pytest.mark.parametrize("ort", ["false", "true"])
def test_another_run_of_the_same_inputs_in_another_folder_gives_the_same_bytes(ort: str, tmp_path: Path) -> None:
    texts = []
    for name in ("here", "elsewhere"):
        toml = TOML + f"[output]\nort = {ort}\n"
        file = project(tmp_path / name, models.convolution(), models.normal(20, 3, 8, 8), toml)
        edgeopt.run(file)
        texts.append((file.parent / "build" / "edgeopt" / "manifest.json").read_bytes())
    edgeopt.run(file)
    assert (file.parent / "build" / "edgeopt" / "manifest.json").read_bytes() == texts[1]
    # ONNX Runtime's converter puts the kernels' types in another order every time: .ort files are never twice the same
    unlike = {
        f["sha256"] for t in texts for v in json.loads(t)["variants"] for f in v["files"] if f["path"].endswith(".ort")
    }
    for digest in unlike:
        texts = [t.replace(digest.encode(), b"") for t in texts]
    assert texts[0] == texts[1] and bool(unlike) == (ort == "true")


def test_it_names_every_file_that_is_shipped_with_its_hash_and_size(built: Path) -> None:
    found = json.loads((built / "manifest.json").read_text(), parse_constant=no_constant)
    told = {f["path"]: f for row in found["variants"] for f in row["files"]}
    assert {"lean.onnx", "lean.ort", "again.onnx", "again.ort"} <= told.keys()
    for name, row in told.items():
        assert row["sha256"] == sha256(built / name) and row["size_bytes"] == (built / name).stat().st_size
    assert {p.name for p in built.iterdir() if p.suffix in (".onnx", ".ort", ".config")} == told.keys()


def test_the_hash_of_the_model_is_the_same_in_every_document_and_of_its_bytes(built: Path) -> None:
    made: Run = load(built / "results.json")
    want = sha256(Path(made.model))
    assert json.loads((built / "manifest.json").read_text())["source"]["sha256"] == want
    assert json.loads((built / "bom.json").read_text())["components"][0]["hashes"][0]["content"] == want
    assert made.variants[0].sha256 == want
    assert made.model_sha256 == want


def test_a_chained_variant_tells_the_hash_of_the_file_it_was_made_from(built: Path) -> None:
    rows = {row["name"]: row for row in json.loads((built / "manifest.json").read_text())["variants"]}
    assert rows["again"]["parent"] == "lean"
    assert sha256(built / "lean.onnx") in json.dumps({k: v for k, v in rows["again"].items() if k != "files"})


def test_what_was_just_built_is_verified_file_by_file(built: Path) -> None:
    told = verify(built)
    for name in ("lean.onnx", "lean.ort", "again.onnx", "again.ort"):
        assert f"{name}: sha256 holds" in told
    assert "lean.onnx: runs and answers as it did" in told


@pytest.mark.parametrize("name", ["lean.onnx", "lean.ort", "again.onnx"])
def test_a_file_with_a_bit_flipped_or_without_its_end_or_gone_is_told_by_its_name(name: str, copy: Path) -> None:
    whole = (copy / name).read_bytes()
    flipped = whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:]
    for content, says in ((flipped, "changed"), (whole[:-1], "changed"), (b"", "changed"), (None, "missing")):
        (copy / name).unlink()
        if content is not None:
            (copy / name).write_bytes(content)
        with pytest.raises(ValidityError, match=rf"^{name}: {says}[^;]*$"):
            verify(copy)
        (copy / name).write_bytes(whole)
    verify(copy)


def test_an_answer_that_is_not_what_the_manifest_says_is_told_with_its_output(copy: Path) -> None:
    found = json.loads((copy / "manifest.json").read_text())
    found["variants"][0]["answers"][0]["first"][1] += 5.0
    (copy / "manifest.json").write_text(json.dumps(found))
    with pytest.raises(ValidityError, match=r"output 'y' answers"):
        verify(copy)


def test_a_file_whose_data_lies_beside_it_is_verified_with_it(tmp_path: Path) -> None:
    whole = onnx.load_model_from_string(models.dense())
    onnx.save(whole, tmp_path / "a.onnx", save_as_external_data=True, location="a.onnx.data", size_threshold=0)
    (tmp_path / "model.onnx").write_bytes(models.dense())
    made = run(
        variant(answers=({"output": "y", "shape": [1, 4], "first": answers(tmp_path / "a.onnx")},)),
        model=str(tmp_path / "model.onnx"),
    )
    (tmp_path / "model.onnx").rename(tmp_path / "model.bytes")
    made = made.model_copy(update={"model": str(tmp_path / "model.bytes")})
    write(
        made,
        Project(model="model.bytes", data={"path": "random"}, variants={"a": {"steps": [{"step": "simplify"}]}}),
        tmp_path,
    )
    assert "a.onnx.data: sha256 holds" in verify(tmp_path)
    (tmp_path / "a.onnx.data").write_bytes(bytes(80))
    with pytest.raises(ValidityError, match=r"^a\.onnx\.data: changed"):
        verify(tmp_path)
    (tmp_path / "a.onnx.data").unlink()
    with pytest.raises(ValidityError, match=r"^a\.onnx\.data: missing"):
        verify(tmp_path)


def answers(path: Path) -> list[float]:
    """The first values for made-up inputs."""
    from edgeopt.release.build.evaluate import answers

    return list(answers(path)[0]["first"])


LOG = "g (float[N,4] x) => (float[N,4] y, float[N,4] z) { h = Mul(x, w)  y = Log(h)  r = Relu(h)  z = Reciprocal(r) }"


def test_a_model_that_answers_made_up_inputs_with_nan_and_infinity_is_verified_as_well(tmp_path: Path) -> None:
    model = tiny.proto(LOG, w=np.full(4, 2, np.float32)).SerializeToString()
    file = project(tmp_path, model, np.abs(models.normal(20, 4)) + 0.5)
    assert edgeopt.run(file).exit_code == 0
    text = (tmp_path / "build" / "edgeopt" / "manifest.json").read_text()
    verify(tmp_path / "build" / "edgeopt")
    json.loads(text, parse_constant=no_constant)


def test_an_ort_file_that_was_spoilt_is_made_again_by_the_next_run(tmp_path: Path) -> None:
    file = project(tmp_path, models.dense(), models.normal(20, 4), TOML + "[output]\nort = true\n")
    edgeopt.run(file)
    made = tmp_path / "build" / "edgeopt" / "lean.ort"
    made.write_bytes(made.read_bytes()[:-9])
    spoilt = made.read_bytes()
    edgeopt.run(file)
    assert made.read_bytes() != spoilt and sum("lean" in line for line in verify(made.parent)) == 4


def test_dimensions_of_the_project_are_used_wherever_inputs_are_made_up(tmp_path: Path) -> None:
    text = "g (float[N,S] x) => (float[N,3] y) { y = MatMul(x, w) }"
    model = tiny.proto(text, w=models.normal(8, 3)).SerializeToString()
    toml = TOML.replace("measure = false", "measure = false\ndims = { S = 8 }")
    file = project(tmp_path, model, models.normal(20, 8), toml)
    assert edgeopt.run(file).exit_code == 0
    verify(tmp_path / "build" / "edgeopt")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "5",
        "{}",
        '{"schema": "edgeopt.manifest/1"}',
        '{"schema": "edgeopt.manifest/2", "variants": []}',
        "[" * 100_000,
    ],
)
def test_a_folder_without_a_readable_manifest_is_refused_with_its_name(text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"manifest\.json"):
        verify(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json"):
        verify(tmp_path)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_manifest_with_a_value_of_another_kind_is_refused_in_words_or_verified(
    built: Path, data: st.DataObject
) -> None:
    found = json.loads((built / "manifest.json").read_text())
    place: Any = found
    at: Any = "variants"
    while data.draw(st.booleans()) and isinstance(place[at], dict | list) and place[at]:
        place = place[at]
        at = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    if isinstance(place, dict) and data.draw(st.booleans()):
        del place[at]
    else:
        place[at] = data.draw(st.sampled_from([None, 5, "x", "../x", [], {}, [5], {"x": 5}, True]))
    text = (built / "manifest.json").read_text()
    (built / "manifest.json").write_text(json.dumps(found))
    try:
        verify(built)
    except EdgeoptError as e:
        assert str(e)
    finally:
        (built / "manifest.json").write_text(text)
