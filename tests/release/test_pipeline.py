"""`edgeopt.run`: what is built again and what is not, what is published and when, what goes on after a failure, and
what is refused before anything is built.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import edgeopt
from edgeopt.errors import DataError, UsageError, ValidityError
from edgeopt.files import locked, sha256
from edgeopt.listener import Listener
from edgeopt.quantization.metric import LIKENESSES
from edgeopt.release.build import building, sources
from edgeopt.release.build.actions import Context, run_step
from edgeopt.release.build.building import Digests
from edgeopt.release.build.cache import Cache
from edgeopt.release.document import Run
from edgeopt.release.evidence import publishing
from edgeopt.release.evidence.manifest import verify
from edgeopt.release.project import checks
from edgeopt.release.project.file import Project, load
from edgeopt.release.verdict import baseline
from tests import models
from tests.release.projects import TOML, Clock, Heard, edited, project

# the converter of ONNX Runtime leaves the file that it reads open
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

_NUMBERS = itertools.count()
METRIC = "import numpy as np\n\ndef score(run):\n    return float(run({'x': np.ones((1, 4), np.float32)})[0].sum())\n"
FEEDS = (
    "import numpy as np\n\ndef feeds():\n    rng = np.random.default_rng(0)\n    return [{'x': rng.standard_normal((1,"
    " 4)).astype(np.float32)} for _ in range(20)]\n"
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The project file."""
    return project(tmp_path / "p")


def out(file: Path) -> Path:
    return file.parent / "build" / "edgeopt"


def left(folder: Path) -> set[str]:
    """Names of what is in `folder`, but for what is hidden."""
    return {f.name for f in folder.iterdir() if not f.name.startswith(".")}


def cached(found: Run) -> list[bool]:
    return [s.cached for v in found.variants for s in v.steps]


def module(folder: Path, text: str) -> str:
    """The name of a new module in `folder`."""
    name = f"own_module_{next(_NUMBERS)}"
    (folder / f"{name}.py").write_text(text)
    return name


# what is built again


def test_a_second_run_rebuilds_nothing_reads_no_sample_and_says_so(
    file: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = edgeopt.run(file)
    assert first.verdict == "pass" and steps == ["simplify", "fp16", "fp16"] and cached(first) == [False] * 3
    monkeypatch.setattr("edgeopt.release.build.evaluate.jury", lambda context: pytest.fail("evaluated again"))
    heard = Heard()
    again = edgeopt.run(file, listener=heard.listener)
    assert len(steps) == 3 and cached(again) == [True] * 3
    assert sum("from the cache" in line for line in heard) == 3
    assert [v.metrics for v in again.variants] == [v.metrics for v in first.variants]


def test_a_changed_gate_rebuilds_nothing_and_is_judged(file: Path, steps: list[str]) -> None:
    edgeopt.run(file)
    edited(file, ('"1 MB"', '"1 B"'))
    again = edgeopt.run(file)
    assert len(steps) == 3 and again.exit_code == 1


def test_what_is_the_same_is_not_written_again(file: Path) -> None:
    edgeopt.run(file)
    before = {name: (out(file) / name).stat().st_mtime_ns for name in ("lean.onnx", "half.onnx")}
    edgeopt.run(file)
    assert {name: (out(file) / name).stat().st_mtime_ns for name in before} == before


def outside(folder: Path) -> None:
    """Give the model its weights in a file of their own."""
    (folder / "model.onnx").write_bytes(models.external("w.bin"))
    (folder / "w.bin").write_bytes(models.normal(4, 4).tobytes())


def test_the_data_file_of_the_model_decides_too(tmp_path: Path, steps: list[str]) -> None:
    file = project(tmp_path, TOML.partition("[variants.half]")[0])
    outside(file.parent)
    for _ in range(2):
        assert edgeopt.run(file).exit_code == 0 and steps == ["simplify"]
    (file.parent / "w.bin").write_bytes(models.normal(4, 4, seed=9).tobytes())
    assert edgeopt.run(file).exit_code == 0 and steps == ["simplify"] * 2


def changed_versions(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = sources.versions()
    monkeypatch.setattr(sources, "versions", lambda: known | {"torch": "0.0.1"})


CHANGES: dict[str, tuple[Callable[[Path], Any], Callable[..., Any], int]] = {
    "the model": (
        lambda f: None,
        lambda f, m: (f / "model.onnx").write_bytes(models.dense(b=models.normal(4, seed=9))),
        3,
    ),
    "a sample": (lambda f: None, lambda f, m: np.save(f / "x.npy", models.normal(30, 4, seed=9)), 2),
    "preprocess.toml beside the data": (
        lambda f: None,
        lambda f, m: (f / "preprocess.toml").write_text("scale = 1.0"),
        2,
    ),
    "preprocess.toml in the data": (
        lambda f: (
            (f / "d").mkdir(),
            shutil.move(f / "x.npy", f / "d" / "x.npy"),
            edited(f / "edgeopt.toml", ("x.npy", "d")),
        ),
        lambda f, m: (f / "d" / "preprocess.toml").write_text("scale = 1.0"),
        2,
    ),
    "the tokenizer": (
        lambda f: (
            (f / "t.json").write_text("{}"),
            edited(f / "edgeopt.toml", ('"x.npy"', '"x.npy"\ntokenizer = "t.json"')),
        ),
        lambda f, m: (f / "t.json").write_text("{ }"),
        2,
    ),
    "a version": (lambda f: None, changed_versions, 3),
    "a dimension": (
        lambda f: None,
        lambda f, m: edited(f / "edgeopt.toml", ("measure = false", "measure = false\ndims = { N = 2 }")),
        2,
    ),
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_what_decides_a_result_makes_it_anew(
    what: str, file: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, change, count = CHANGES[what]
    before(file.parent)
    first = edgeopt.run(file)
    assert first.exit_code == 0 and len(steps) == 3
    steps.clear()
    change(file.parent, monkeypatch)
    assert edgeopt.run(file).exit_code == 0
    assert len(steps) >= count - (what == "a dimension")  # a child of what came out the same is the same
    steps.clear()
    edgeopt.run(file)
    assert steps == []


def test_the_manifest_tells_of_the_data_file_of_the_model(tmp_path: Path) -> None:
    file = project(tmp_path, TOML.partition("[variants.half]")[0])
    outside(file.parent)
    edgeopt.run(file)
    source = json.loads((out(file) / "manifest.json").read_text())["source"]
    assert [f["path"] for f in source["files"]] == ["model.onnx", "w.bin"]
    (file.parent / "w.bin").write_bytes(models.normal(4, 4, seed=9).tobytes())
    edgeopt.run(file)
    assert json.loads((out(file) / "manifest.json").read_text())["source"]["sha256"] != source["sha256"]


def test_the_code_of_a_metric_and_what_lies_beside_it_decide_its_value(file: Path) -> None:
    helper = module(file.parent, "FACTOR = 1.0\n")
    name = module(file.parent, f"import {helper}\n" + METRIC.replace("float(", f"{helper}.FACTOR * float("))
    edited(file, ("[gates", f'[accuracy]\neval = "{name}:score"\n[gates'))
    known = Cache(out(file) / ".cache")
    digests = [sources.module_digest(known, f"{name}:score", file.parent)]
    value = edgeopt.run(file).variants[0].metrics["accuracy.eval"]
    assert np.isfinite(value)
    for changed in (name, helper):
        with (file.parent / f"{changed}.py").open("a") as source:
            source.write("# changed\n")
        digests.append(sources.module_digest(Cache(out(file) / ".cache"), f"{name}:score", file.parent))
    assert len(set(digests)) == 3


STEP = """from dataclasses import replace

import onnx_ir as ir


def own(state):
    assert len(state.samples) > 3 and all(set(read()) == {"x"} for _, read in state.samples)
    model = state.model.clone()
    node = list(model.graph)[-1]
    b = model.graph.initializers["b"]
    b.const_value = ir.tensor(FACTOR * b.const_value.numpy(), name="b")
    return replace(state, model=model)
"""


def bias(file: Path, name: str) -> np.ndarray[Any, Any]:
    model = onnx.load(out(file) / f"{name}.onnx")
    return next(onnx.numpy_helper.to_array(i) for i in model.graph.initializer if i.name == "b")


def test_a_step_of_the_users_is_taken_between_others_and_again_when_its_code_changes(file: Path) -> None:
    name = module(file.parent, "FACTOR = 2\n" + STEP)
    (file.parent / "d").mkdir()
    for i, x in enumerate(np.load(file.parent / "x.npy")):
        np.savez(file.parent / "d" / f"{i}.npz", x=x[None], label=np.int64(i))  # which is no input
    edited(file, ('path = "x.npy"', 'path = "d"'))
    own = f'{{ step = "simplify" }}, {{ step = "python", call = "{name}:own" }}'
    edited(file, ('[variants.lean]\nsteps = [{ step = "simplify" }', f"[variants.lean]\nsteps = [{own}"))
    before = next(
        onnx.numpy_helper.to_array(i) for i in onnx.load(file.parent / "model.onnx").graph.initializer if i.name == "b"
    )
    first = edgeopt.run(file)
    assert first.exit_code == 0 and np.array_equal(bias(file, "lean"), 2 * before)
    assert [s.cached for s in edgeopt.run(file).variant("lean").steps] == [True, True]
    source = file.parent / f"{name}.py"
    source.write_text(source.read_text().replace("FACTOR = 2", "FACTOR = -3"))
    assert [s.cached for s in edgeopt.run(file).variant("lean").steps] == [True, False]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def own(state):\n    raise OSError('no disk')\n", "OSError: no disk"),
        ("def own(state):\n    return None\n", "gives NoneType, and not the State after it"),
        ("def other(state):\n    return state\n", "has no attribute 'own'"),
        ("import nothing_like_it\n", "nothing_like_it"),
    ],
)
def test_a_users_step_that_goes_wrong_is_told_of_its_variant_and_the_others_are_made(
    code: str, says: str, file: Path
) -> None:
    name = module(file.parent, code)
    edited(
        file, ("[variants.half]\nsteps = [", f'[variants.half]\nsteps = [{{ step = "python", call = "{name}:own" }}, ')
    )
    found = edgeopt.run(file)
    half = found.variant("half")
    assert half is not None and half.error is not None and says in half.error and half.error.startswith("python: ")
    assert found.exit_code != 0 and found.variant("lean").error is None


def test_the_code_of_a_package_is_all_of_it_and_that_of_an_installed_module_its_own_file(tmp_path: Path) -> None:
    package = tmp_path / "pack" / "inner"
    package.mkdir(parents=True)
    for f in (tmp_path / "pack" / "__init__.py", package / "__init__.py", package / "m.py", tmp_path / "aside.py"):
        f.write_text("")
    assert len(sources.module_files("pack.inner.m:f", tmp_path)) == 3
    assert [f.name for f in sources.module_files("aside:f", tmp_path)] == ["aside.py"]
    assert [f.name for f in sources.module_files("json.decoder:f", tmp_path)] == ["decoder.py"]
    assert sources.module_files("pack.none:f", tmp_path) == sources.module_files("no_such_thing:f", tmp_path) == []


@pytest.mark.parametrize("name", ["teacher.onnx", "w.bin", "costs.json"])
def test_what_a_step_reads_besides_its_input_is_in_its_key(name: str, tmp_path: Path) -> None:
    (tmp_path / "teacher.onnx").write_bytes(models.external("w.bin"))
    (tmp_path / "w.bin").write_bytes(models.normal(4, 4).tobytes())
    (tmp_path / "costs.json").write_text("{}")
    step = '{ step = "quantize", costs = "costs.json" }, { step = "distill", teacher = "teacher.onnx" }'
    found = load(project(tmp_path, TOML.replace('{ step = "fp16" }', step)))
    context = Context(tmp_path, tmp_path / "model.onnx", "x.npy", found, Listener())

    def keys() -> list[str]:
        cache = Cache(tmp_path / "c")
        known = Digests("m", "d", "r", {})
        return [str(building._about(s, context, cache, known)) for s in found.variants["half"].steps]

    before = keys()
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(models.dense() if name.endswith("onnx") else data[:-1] + b" ")
    assert sum(a != b for a, b in zip(before, keys(), strict=True)) == 1


# interrupted


def test_an_interrupted_run_leaves_the_release_as_it_was_and_the_next_goes_on(
    file: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = building.actions.run_step

    def stopped(step: Any, *args: Any) -> Any:
        if step.step == "fp16" and not steps[1:]:
            raise KeyboardInterrupt
        return counted(step, *args)

    monkeypatch.setattr(building.actions, "run_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        edgeopt.run(file)
    assert left(out(file)) == set() and steps == ["simplify"]
    monkeypatch.setattr(building.actions, "run_step", counted)
    again = edgeopt.run(file)
    assert steps == ["simplify", "fp16", "fp16"] and sorted(cached(again)) == [False, False, True]
    assert verify(out(file))


def test_a_run_that_is_stopped_while_it_measures_has_not_touched_the_release(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edgeopt.run(file)
    before = {f.name: sha256(f) for f in out(file).iterdir() if f.is_file()}
    (file.parent / "model.onnx").write_bytes(models.dense(b=models.normal(4, seed=9)))

    def stopped(*paths: Any, **how: Any) -> Any:
        assert all(Path(p).is_file() for p in paths)
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeopt.profiling.profile.compare", stopped)
    with pytest.raises(KeyboardInterrupt):
        edgeopt.run(file, measure=True)
    assert {f.name: sha256(f) for f in out(file).iterdir() if f.is_file()} == before | {".lock": before[".lock"]}
    assert verify(out(file)) and not (out(file) / ".next").exists()


def test_a_run_that_is_stopped_while_it_publishes_publishes_all_of_it(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    move, calls = publishing._move, []

    def stopped(*args: Any) -> None:
        calls.append(args)
        if len(calls) == 1:
            args[0].joinpath("half.onnx").replace(args[1] / "half.onnx")
            raise KeyboardInterrupt
        move(*args)

    monkeypatch.setattr(publishing, "_move", stopped)
    with pytest.raises(KeyboardInterrupt):
        edgeopt.run(file)
    assert verify(out(file)) and {"lean.onnx", "half.onnx", "results.json"} <= left(out(file))


def test_two_runs_at_once_on_one_folder_are_told_apart(file: Path) -> None:
    edgeopt.run(file)
    with locked(out(file)), pytest.raises(UsageError, match=f"another run is at work.*{os.getpid()}"):
        edgeopt.run(file)
    assert edgeopt.run(file).exit_code == 0


# no room, no right


def test_an_output_folder_that_cannot_be_written_is_told_with_a_remedy(
    file: Path, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *args, **more: False)
    with pytest.raises(UsageError, match=r"cannot be written to; choose another output\.folder"):
        edgeopt.run(file)
    monkeypatch.undo()
    (file.parent / "build").write_text("")
    with pytest.raises(UsageError, match=r"is a file.*choose another output\.folder"):
        edgeopt.run(file)


def test_a_disk_that_is_full_while_steps_are_made_fails_the_variant_in_words(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(building.actions, "run_step", full)
    found = edgeopt.run(file)
    assert found.exit_code == 3 and "No space left" in str(found.variants[1].error)


def test_a_disk_that_is_full_at_the_end_leaves_the_release_as_it_was(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edgeopt.run(file)
    (file.parent / "model.onnx").write_bytes(models.dense(b=models.normal(4, seed=9)))
    before = sha256(out(file) / "lean.onnx")

    def full(*args: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(publishing.shutil, "copyfile", full)
    with pytest.raises(UsageError, match="No space left"):
        edgeopt.run(file)
    monkeypatch.undo()
    assert sha256(out(file) / "lean.onnx") == before and verify(out(file))


# failures and what is left


def test_a_variant_that_fails_takes_its_children_along_and_the_others_go_on(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edgeopt.run(file)

    def broken(step: Any, *args: Any) -> Any:
        if step.step == "simplify":
            raise DataError("no samples")
        return run_step(step, *args)

    monkeypatch.setattr(building.actions, "run_step", broken)
    shutil.rmtree(out(file) / ".cache")
    heard = Heard()
    found = edgeopt.run(file, listener=heard.listener)
    errors = {v.name: v.error for v in found.variants}
    assert errors == {"float": None, "lean": "simplify: no samples", "half": None, "child": "lean failed"}
    assert (found.verdict, found.exit_code) == ("error", 3)
    assert "child: not made: lean failed" in heard
    assert {f for f in left(out(file)) if f.endswith(".onnx")} == {"lean.onnx", "half.onnx", "child.onnx"}
    assert left(out(file) / "failed") == {"half.onnx", "SHA256SUMS"} and not found.released
    assert any("a run that was not released: error" in line for line in verify(out(file)))


def test_what_is_no_longer_made_is_removed_and_what_is_the_users_stays(file: Path, clock: Clock) -> None:
    clock()
    edited(file, ("[gates", "[output]\nort = true\n[gates"), ("measure = false", "measure = true"))
    edgeopt.run(file)
    more = {"lean.ort", "lean.required_operators.config", "profile.json", "profile.npz", "report.html", "child.onnx"}
    assert more <= left(out(file))
    (out(file) / "notes.txt").write_text("mine")
    (out(file) / "mine.ort").write_text("mine")
    edited(
        file,
        ("ort = true", "html = false"),
        ("measure = true", "measure = false"),
        ('[variants.child]\nfrom = "lean"\nsteps = [{ step = "fp16", io_types = "fp16" }]\n', ""),
    )
    edgeopt.run(file)
    assert not more & left(out(file)) and {"notes.txt", "mine.ort", "lean.onnx"} <= left(out(file))
    with pytest.raises(ValidityError, match=r"^mine\.ort: a model that the manifest does not know$"):
        verify(out(file))


def test_what_was_measured_is_told_of_the_files_where_they_are_in_the_end(file: Path, clock: Clock) -> None:
    clock(half=2.0)
    found = edgeopt.run(file, measure=True)
    assert found.profile is not None
    assert [m.setting.model for m in found.profile.measured] == [v.file for v in found.variants]
    assert all(Path(v.file or "").is_file() for v in found.variants)
    stored = json.loads((out(file) / "profile.json").read_text())
    assert [m["setting"]["model"] for m in stored["measured"]] == [v.file for v in found.variants]
    half = found.variant("half")
    assert half is not None and half.metrics["latency.p50"] == 20.0 and half.metrics["speedup"] == pytest.approx(0.5)


def test_a_variant_that_cannot_be_measured_is_not_released(file: Path, clock: Clock) -> None:
    edgeopt.run(file)
    clock(half=float("inf"))
    found = edgeopt.run(file, measure=True)
    half = found.variant("half")
    assert half is not None and (half.error, half.file, found.exit_code) == ("profile: died", None, 3)
    assert left(out(file) / "failed") == {"lean.onnx", "child.onnx", "SHA256SUMS"} and verify(out(file))


def test_after_a_failed_gate_the_last_good_release_stays_and_is_verified(file: Path) -> None:
    edgeopt.run(file)
    good = {f: (out(file) / f).read_bytes() for f in left(out(file)) if f.endswith(".onnx")}
    manifest = (out(file) / "manifest.json").read_bytes()
    edited(file, ("[gates", '[gates.half]\nsize.file = { max = "1 B" }\n[gates'))
    found = edgeopt.run(file)
    assert (found.verdict, found.released) == ("fail", False)
    assert (
        good == {f: (out(file) / f).read_bytes() for f in good}
        and manifest == (out(file) / "manifest.json").read_bytes()
    )
    assert json.loads((out(file) / "results.json").read_text())["verdict"] == "fail"
    half = found.variant("half")
    assert half is not None and half.file == str(out(file) / "failed" / "half.onnx") and Path(half.file).is_file()
    assert any("was not released: fail" in line for line in verify(out(file)))
    with pytest.raises(UsageError, match="was not released"):
        baseline.save(load(file), file.parent, "v1", models=True)
    allowed = edgeopt.run(file, allow_failed=True)
    assert allowed.released and allowed.exit_code == 1 and not (out(file) / "failed").exists()
    assert not any("not released" in line for line in verify(out(file)))


def test_before_the_first_good_run_there_is_no_release(file: Path) -> None:
    edited(file, ("[gates", '[gates.half]\nsize.file = { max = "1 B" }\n[gates'))
    edgeopt.run(file)
    assert not any(f.endswith(".onnx") or f == "manifest.json" for f in left(out(file)))
    with pytest.raises(DataError, match="manifest"):
        verify(out(file))


@pytest.mark.parametrize("name", ["results.json", "report.html", "summary.md", "bom.json", "junit.xml", "SHA256SUMS"])
def test_evidence_that_was_changed_or_taken_away_does_not_verify(name: str, file: Path) -> None:
    edgeopt.run(file)
    assert verify(out(file))
    before = (out(file) / name).read_bytes()
    (out(file) / name).write_bytes(before + b" ")
    if name != "SHA256SUMS":
        with pytest.raises(ValidityError, match=f"{name}: changed"):
            verify(out(file))
    (out(file) / name).unlink()
    with pytest.raises(ValidityError, match=f"{name}: (missing|cannot be read)"):
        verify(out(file))
    (out(file) / name).write_bytes(before)
    assert verify(out(file))


def test_a_preset_that_is_none_is_refused_before_anything_is_built(file: Path, steps: list[str]) -> None:
    with pytest.raises(UsageError, match="did you mean 'quick'"):
        edgeopt.run(file, preset="quik")
    assert steps == []


# the result


def test_the_result_can_be_pickled_and_nothing_is_printed(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    found = edgeopt.run(file)
    assert pickle.loads(pickle.dumps(found)) == found
    assert capfd.readouterr() == ("", "")


def test_a_run_says_how_many_samples_it_saw_and_what_was_odd_about_them(file: Path) -> None:
    edited(file, ('"x.npy"', '"random"\nsamples = 3'))
    for _ in range(2):
        found = edgeopt.run(file)
        assert found.samples == {"calibration": 3, "evaluation": 8}
        assert any("random data" in n for n in found.notes) and any("only 3 samples" in n for n in found.notes)


def test_a_share_of_few_samples_cannot_tell_and_a_gate_on_it_says_so(file: Path) -> None:
    edited(file, ("size.file = {", 'accuracy.agreement = { min = "99 %", max_drop = "1 pp" }\nsize.file = {'))
    found = edgeopt.run(file)
    assert {g.outcome for g in found.gates if g.metric == "accuracy.agreement"} == {"inconclusive"}
    half = found.variant("half")
    assert half is not None and half.metrics["accuracy.agreement"] == half.intervals["accuracy.agreement"].high == 1.0
    assert half.drops["accuracy.agreement"].value == 0.0
    float_model, *_ = found.variants
    assert "accuracy.agreement" not in float_model.intervals and not float_model.drops


# other folders


def test_functions_are_looked_for_in_the_folder_of_the_project(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = module(file.parent, FEEDS + METRIC.removeprefix("import numpy as np\n"))
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('of another folder')\n")
    edited(file, ('"x.npy"', f'"{name}:feeds"'), ("[gates", f'[accuracy]\neval = "{name}:score"\n[gates'))
    monkeypatch.chdir(tmp_path)
    found = edgeopt.run(Path("p") / "edgeopt.toml")
    assert found.exit_code == 0 and "accuracy.eval" in found.variants[1].metrics


def test_two_projects_in_one_process_have_modules_of_one_name(tmp_path: Path) -> None:
    values = []
    for i, folder in enumerate(("one", "two")):
        file = project(tmp_path / folder)
        (file.parent / "own_name.py").write_text(METRIC.replace(".sum()", f".sum() * 0 + {i}"))
        edited(file, ("[gates", '[accuracy]\neval = "own_name:score"\n[gates'))
        values.append(edgeopt.run(file).variants[0].metrics["accuracy.eval"])
    assert values == [0.0, 1.0]


def test_an_exported_model_is_exported_again_only_if_its_code_changed(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    from edgeopt.train import export

    done: list[str] = []
    real = export.export

    def counted(source: str, *args: Any, **more: Any) -> Any:
        done.append(source)
        return real(source, *args, **more)

    monkeypatch.setattr(export, "export", counted)
    monkeypatch.chdir(tmp_path)
    name = module(file.parent, "from torch import nn\n\ndef small():\n    return nn.Linear(4, 4)\n")
    edited(file, ('model = "model.onnx"\n', ""))
    edited(file, ("[data]", f'[export]\nfactory = "{name}:small"\ninputs = {{ x = [1, 4] }}\n[data]'))
    first = edgeopt.run(file)
    assert first.exit_code == 0 and len(done) == 1 and cached(edgeopt.run(file)) == [True] * 3 and len(done) == 1
    with (file.parent / f"{name}.py").open("a") as source:
        source.write("# changed\n")
    edgeopt.run(file)
    assert len(done) == 2
    np.save(file.parent / "x.npy", np.load(file.parent / "x.npy")[:20])  # what it was compared with
    edgeopt.run(file)
    assert len(done) == 3


def test_an_exported_model_is_compared_with_torch_on_the_samples_of_the_project(file: Path) -> None:
    pytest.importorskip("torch")
    text = (
        "import torch\nfrom torch import nn\n\nclass M(nn.Module):\n    def forward(self, x):\n        return x +"
        " torch.where(x > 50, float(torch.compiler.is_compiling()), 0.0)\n"
    )
    name = module(file.parent, text)
    edited(file, ('model = "model.onnx"\n', ""))
    edited(file, ("[data]", f'[export]\nfactory = "{name}:M"\ninputs = {{ x = [1, 4] }}\n[data]'))
    np.save(file.parent / "x.npy", np.full((20, 4), 51, np.float32))
    with pytest.raises(ValidityError, match="differs from torch"):
        edgeopt.run(file)


# refused before anything is built

MISTAKES = {
    "model": (('"model.onnx"', '"modle.onnx"'), 1, "model"),
    "data": (('"x.npy"', '"y.npy"'), 3, "data.path"),
    "held out": (('"x.npy"', '"x.npy"\neval = "y.npy"'), 4, "data.eval"),
    "a module of data": (('"x.npy"', '"no_such_module:f"'), 3, "data.path"),
    "tokenizer": (('"x.npy"', '"x.npy"\ntokenizer = "t.json"'), 4, "data.tokenizer"),
    "provider": (("measure = false", 'measure = false\nproviders = ["cpuu"]'), 6, "did you mean 'cpu'"),
    "threads": (("measure = false", "measure = false\nthreads = [0]"), 6, "greater than or equal to 1"),
    "metric": (("[gates", '[accuracy]\neval = "no_such_module:f"\n[gates'), 14, "accuracy.eval"),
    "no function": (("[gates", '[accuracy]\neval = "score"\n[gates'), 14, "package.module:function"),
    "teacher": (('step = "fp16" }', 'step = "distill", teacher = "big.onnx" }'), 9, "big.onnx"),
    "costs": (('step = "fp16" }', 'step = "quantize", costs = "c.json" }'), 9, "c.json"),
    "a step": (('step = "fp16" }', 'step = "python", call = "none:f" }'), 9, "call"),
    "target": (('step = "fp16" }', 'step = "quantize", target = "mine.toml" }'), 9, "mine.toml"),
    "a target": (('step = "fp16" }', 'step = "quantize", target = "cpu-arm46" }'), 9, "did you mean 'cpu-arm64'"),
    "factory": (('model = "model.onnx"', 'export = { factory = "none:f", inputs = { x = [1] } }'), 1, "export.factory"),
}  # fmt: skip


@pytest.mark.parametrize("what", list(MISTAKES))
def test_what_is_not_there_is_refused_with_its_line_before_anything_is_built(
    what: str, file: Path, steps: list[str]
) -> None:
    change, line, says = MISTAKES[what]
    edited(file, change)
    with pytest.raises(UsageError) as e:
        edgeopt.run(file)
    assert f"edgeopt.toml:{line}: " in str(e.value) and says in str(e.value)
    assert e.value.exit_code == 2 and steps == [] and not out(file).exists()


def test_metrics_that_need_no_function_are_those_of_the_table(file: Path) -> None:
    assert set(checks._LIKENESSES) == set(LIKENESSES)
    edited(file, ("[gates", '[accuracy]\neval = "cosine"\n[gates'))
    assert edgeopt.run(file).exit_code == 0


# what steps are told


def test_a_quantize_step_reads_measured_costs_and_does_not_add_to_them(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parent / "c.json").write_text("{}")
    edited(file, ('step = "fp16" }', 'step = "quantize", costs = "c.json" }'))
    given: list[Path] = []

    def stopped(source: Any, data: Any, options: Any) -> Any:
        costs = options.costs
        if costs is None:
            raise DataError("another step")
        assert costs.read_text() == "{}"
        costs.write_text("more")
        given.append(costs)
        raise DataError("enough")

    monkeypatch.setattr("edgeopt.quantization.quantize.quantize", stopped)
    assert edgeopt.run(file).exit_code == 3
    assert len(given) == 1 and (file.parent / "c.json").read_text() == "{}"


def test_a_distill_step_hands_all_its_settings_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from edgeopt.options.distill import Distill
    from edgeopt.train import distill

    seen: list[tuple[Any, Distill]] = []

    def stopped(student: Any, data: Any, options: Distill) -> Any:
        seen.append((options.teacher, options))
        raise DataError("enough")

    monkeypatch.setattr(distill, "distill", stopped)
    step = {
        "step": "distill",
        "temperature": 3.0,
        "alpha": 0.5,
        "augment": ["flip"],
        "match": {"a": "b"},
        "class_axes": {"a": 1},
        "freeze": ["w"],
        "qat": True,
    }
    several = {"teacher": ["t.onnx", "u.onnx"], "unlabelled": "more"}
    for more in ({}, {"kind": "self"}, several, {"kind": "online", "peers": ["p.onnx"]}):
        found = Project.model_validate(
            {"model": "m", "data": {"path": "random"}, "variants": {"a": {"steps": [step | more]}}}
        )
        context = Context(tmp_path, tmp_path / "m", "random", found, Listener())
        with pytest.raises(DataError, match="enough"):
            run_step(found.variants["a"].steps[0], tmp_path / "m", tmp_path / "o", context)
    (teacher, options), (own, _), (both, two), (nobody, peer) = seen
    assert teacher == (tmp_path / "m",) and own is None and nobody is None
    assert both == (tmp_path / "t.onnx", tmp_path / "u.onnx") and two.unlabelled == str(tmp_path / "more")
    assert peer.peers == (tmp_path / "p.onnx",)
    assert (options.temperature, options.alpha, options.augment, options.freeze) == (3.0, 0.5, ("flip",), ("w",))
    assert (
        options.quantized and options.match == {"a": "b"} and options.class_axes == {"a": 1} and options.labels is False
    )


def test_a_variant_with_data_in_files_of_their_own_is_published_with_them(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apart(step: Any, source: Path, output: Path, context: Any) -> Any:
        onnx.save(onnx.load(source), output, save_as_external_data=True, location="w.data", size_threshold=0)
        return {}

    monkeypatch.setattr(building.actions, "run_step", apart)
    first = edgeopt.run(file)
    assert first.exit_code == 0 and verify(out(file))
    again = edgeopt.run(file)
    assert [v.sha256 for v in again.variants] == [v.sha256 for v in first.variants] and verify(out(file))


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ('"x.npy"', '"mine:feeds"', "data.path"),
        ("[gates", '[accuracy]\neval = "mine:score"\n[gates', "accuracy.eval"),
        ('{ step = "simplify" }', '{ step = "python", call = "mine:step" }', "variants.lean.steps.0.call"),
    ],
)
def test_without_code_no_function_of_the_project_is_even_imported(old: str, new: str, where: str, file: Path) -> None:
    (file.parent / "mine.py").write_text("open('RAN', 'w')\n")
    edited(file, (old, new))
    with pytest.raises(UsageError, match=rf"{where}: 'mine:\w+' is code, and --no-code runs none"):
        edgeopt.run(file, code=False)
    assert not (file.parent / "RAN").exists() and not Path("RAN").exists()


def test_a_file_called_like_a_function_does_not_let_code_through(file: Path) -> None:
    (file.parent / "mine.py").write_text("open('RAN', 'w')\n")
    (file.parent / "mine:score").touch()
    edited(file, ("[gates", '[accuracy]\neval = "mine:score"\n[gates'))
    with pytest.raises(UsageError, match="--no-code runs none"):
        edgeopt.run(file, code=False)


def test_a_folder_failed_of_the_users_is_neither_removed_nor_written_to(file: Path) -> None:
    (out(file) / "failed").mkdir(parents=True)
    (out(file) / "failed" / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="failed: is not of a run"):
        edgeopt.run(file)
    assert (out(file) / "failed" / "mine.txt").read_text() == "mine"


def test_a_release_beside_its_float_model_is_verified(file: Path) -> None:
    edited(file, ("[gates", '[output]\nfolder = "."\n[gates'))
    assert edgeopt.run(file).released
    assert verify(file.parent)


def test_a_failed_run_that_writes_less_evidence_leaves_the_release_verified(file: Path) -> None:
    edgeopt.run(file)
    assert (out(file) / "report.html").is_file()
    edited(file, ("[gates", '[output]\nhtml = false\n[gates.half]\nsize.file = { max = "1 B" }\n[gates'))
    assert not edgeopt.run(file).released
    assert verify(out(file))
    shutil.rmtree(out(file) / "failed")
    assert verify(out(file))


def test_another_file_with_the_name_of_the_source_is_not_known(file: Path) -> None:
    edgeopt.run(file)
    (out(file) / "model.onnx").write_bytes(b"junk")
    with pytest.raises(ValidityError, match=r"model\.onnx: a model that the manifest does not know"):
        verify(out(file))
