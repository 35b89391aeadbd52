"""Paths that are addresses: read, fetched whole or in part, written and sent; on S3 (moto's server on loopback), over
HTTP, and in fsspec's memory.
"""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import onnx
import pytest

import edgeopt
from edgeopt.errors import DataError, UsageError
from edgeopt.files import address, beside, cloud, shown
from tests import tiny
from tests.release.projects import TOML

DIGITS = Path(__file__).parents[1] / "calibration_data" / "digits"
W = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
DENSE = "g (float[1,64] x) => (float[1,64] y) { a = MatMul(x, w)  b = Relu(a)  y = MatMul(b, w) }"


@pytest.fixture
def memory() -> Iterator[Any]:
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """A bucket `models` on a server of moto; the address of the server and the keys are in the environment."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "an-id")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        fsspec.filesystem("s3").invalidate_cache()
        system = fsspec.filesystem("s3", skip_instance_cache=True)
        system.mkdir("models")
        yield system
    server.stop()


def saved(folder: Path, **how: Any) -> Path:
    onnx.save(tiny.proto(DENSE, w=W), folder / "m.onnx", **how)
    return folder / "m.onnx"


def feeds(folder: Path) -> Path:
    np.save(folder / "x.npy", np.random.default_rng(1).standard_normal((40, 64)).astype(np.float32))
    return folder / "x.npy"


@pytest.mark.parametrize(
    ("path", "url"),
    [
        ("s3://b/k.onnx", "s3://b/k.onnx"),
        (Path("s3://b/k.onnx"), "s3://b/k.onnx"),
        (Path("https://h/k.onnx?x=1"), "https://h/k.onnx?x=1"),
        ("package.module:function", None),
        ("C:/models/m.onnx", None),
        ("/tmp/m.onnx", None),
        ("file:///tmp/m.onnx", None),
        ("ssh://board", None),
        ("random", None),
        (np.zeros(1), None),
    ],
)
def test_an_address_has_a_scheme_of_several_letters(path: object, url: str | None) -> None:
    assert address(path) == url


def test_what_may_be_a_credential_is_not_shown() -> None:
    assert shown("https://me:secret@host/m.onnx?sig=secret") == "https://host/m.onnx"
    assert shown("model.onnx") == "model.onnx"


@pytest.mark.usefixtures("s3")
def test_a_model_and_samples_on_s3_are_quantized_to_s3(
    s3: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    s3.put(str(DIGITS / "digits.onnx"), "models/digits.onnx")
    s3.put(str(DIGITS / "calib"), "models/calib", recursive=True)
    s3.put(str(DIGITS / "preprocess.toml"), "models/calib/preprocess.toml")
    notes: list[str] = []
    found = edgeopt.quantize(
        "s3://models/digits.onnx",
        "s3://models/calib",
        output=Path("s3://models/out/q.onnx"),
        measure=False,
        listener=edgeopt.Listener(note=notes.append),
    )
    assert shown(found.path) == "s3://models/out/q.onnx" and any("files fetched" in line for line in notes)
    s3.invalidate_cache()
    s3.get("models/out/q.onnx", str(tmp_path / "q.onnx"))
    onnx.checker.check_model(str(tmp_path / "q.onnx"))
    with pytest.raises(UsageError, match=r"s3://models/out/q\.onnx exists"):
        edgeopt.quantize("s3://models/digits.onnx", "s3://models/calib", output=Path("s3://models/out/q.onnx"))
    assert "a-secret" not in "".join(notes) + "".join(capfd.readouterr())


@pytest.mark.usefixtures("s3")
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("s3://no-such-bucket/m.onnx", r"s3://no-such-bucket/m\.onnx: "),
        ("s3://models/absent.onnx", r"s3://models/absent\.onnx: "),
        ("gopher://models/m.onnx", r"gopher://models/m\.onnx: Protocol not known"),
    ],
)
def test_what_is_not_there_is_told_with_its_address(url: str, says: str) -> None:
    with pytest.raises((DataError, UsageError), match=says):
        edgeopt.inspect(url)


def test_data_beside_a_model_come_with_it(memory: Any, tmp_path: Path) -> None:
    (tmp_path / "part").mkdir()
    saved(tmp_path, save_as_external_data=True, location="part/w.bin", size_threshold=0)
    memory.put(str(tmp_path), "/models", recursive=True)
    found = edgeopt.profile("memory://models/m.onnx", seconds=0.1, processes=1)
    assert not found.failed


def test_a_folder_is_fetched_with_its_tree_and_nothing_leads_outside(memory: Any, tmp_path: Path) -> None:
    memory.pipe({"/d/a/x.npy": b"1", "/d/b/x.npy": b"2"})
    found = cloud.fetched("memory://d", tmp_path / "d")
    assert {f.relative_to(found).as_posix(): f.read_bytes() for f in found.rglob("*.npy")} == {
        "a/x.npy": b"1",
        "b/x.npy": b"2",
    }
    for name in ("../x", "/x", "a/../../x"):
        with pytest.raises(DataError, match="leads outside"):
            cloud._inside(tmp_path, name, "memory://d")


def test_of_very_many_files_a_fixed_part_is_fetched_and_told(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cloud, "_MOST_FILES", 10)
    memory.pipe({f"/d/{i:03d}.npy": b"x" for i in range(100)} | {"/d/preprocess.toml": b""})
    told: list[str] = []
    parts = [cloud.fetched("memory://d", tmp_path / str(i), told.append) for i in range(2)]
    names = [sorted(f.name for f in part.iterdir()) for part in parts]
    assert names[0] == names[1] and len(names[0]) in (10, 11) and "preprocess.toml" in names[0]
    assert told[0] == "memory://d: 10 of 101 files are fetched, chosen at random"


def test_more_than_the_disk_holds_is_refused_before_it_is_fetched(
    memory: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory.pipe("/m.onnx", b"x" * 1000)
    monkeypatch.setattr(cloud.shutil, "disk_usage", lambda folder: type("U", (), {"free": 100})())
    with pytest.raises(UsageError, match="set TMPDIR to a disk with room"):
        cloud.fetched("memory://m.onnx", tmp_path / "m")
    assert not list((tmp_path / "m").iterdir())


def test_a_connection_that_fails_is_tried_again_and_then_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cloud, "_PAUSE_S", 0.0)
    tries = []

    def fails(times: int) -> str:
        tries.append(1)
        if len(tries) <= times:
            raise ConnectionResetError("https://u:secret@h/m?sig=secret: reset")
        return "there"

    assert cloud._patiently("https://h/m", lambda: fails(2)) == "there"
    tries.clear()
    with pytest.raises(DataError, match="reset") as caught:
        cloud._patiently("https://u:secret@h/m?sig=secret", lambda: fails(9))
    assert len(tries) == 3 and "secret" not in str(caught.value)
    with pytest.raises(ZeroDivisionError):  # no error of a connection
        cloud._patiently("https://h/m", lambda: str(1 / 0))


def test_over_http_a_model_is_read(tmp_path: Path) -> None:
    saved(tmp_path)
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/m.onnx"
        assert edgeopt.inspect(url)
        with pytest.raises(DataError, match=r"/absent\.onnx: "):
            edgeopt.inspect(url.replace("m.onnx", "absent.onnx"))
        server.shutdown()


def test_reports_and_pictures_are_sent_too_and_what_has_to_be_local_says_so(memory: Any, tmp_path: Path) -> None:
    memory.put(str(saved(tmp_path)), "/m.onnx")
    memory.put(str(feeds(tmp_path)), "/x.npy")
    edgeopt.profile(
        "memory://m.onnx", data="memory://x.npy", report=Path("memory://out/r.json"), seconds=0.1, processes=1
    )
    assert {"/out/r.json", "/out/r.npz"} <= set(memory.find("/out"))
    with pytest.raises(UsageError, match="costs memory://c: has to be a path of this machine"):
        edgeopt.quantize("memory://m.onnx", "memory://x.npy", costs=Path("memory://c"))


def test_a_web_page_is_not_written_to_and_its_model_goes_here(memory: Any, tmp_path: Path) -> None:
    memory.put(str(saved(tmp_path)), "/m.onnx")
    with pytest.raises(UsageError, match="a web page is not written to"):
        edgeopt.simplify("memory://m.onnx", output=Path("https://h/q.onnx"))
    assert beside(Path("https://h/m.onnx?x=1"), "q.onnx") == Path("q.onnx")
    assert beside(Path("a/m.onnx"), "q.onnx") == Path("a/q.onnx")
    assert address(beside(Path("s3://b/m.onnx"), "q.onnx")) == "s3://b/q.onnx"


def test_nothing_is_sent_of_what_fails(memory: Any, tmp_path: Path) -> None:
    memory.pipe("/m.onnx", b"no model")
    with pytest.raises(edgeopt.EdgeoptError):
        edgeopt.quantize("memory://m.onnx", "random", output=Path("memory://q.onnx"))
    assert memory.find("/") == ["/m.onnx"]
    with pytest.raises(edgeopt.EdgeoptError, match=r"^memory://m\.onnx: not a readable ONNX model"):
        edgeopt.inspect("memory://m.onnx")


def test_a_project_has_its_model_and_samples_elsewhere(memory: Any, tmp_path: Path) -> None:
    from tests import models

    memory.pipe("/p/model.onnx", models.dense())
    np.save(tmp_path / "x.npy", models.normal(30, 4))
    memory.put(str(tmp_path / "x.npy"), "/p/x.npy")
    toml = TOML.replace('"model.onnx"', '"memory://p/model.onnx"').replace('"x.npy"', '"memory://p/x.npy"')
    (tmp_path / "edgeopt.toml").write_text(toml, encoding="utf-8")
    first = edgeopt.run(tmp_path / "edgeopt.toml")
    again = edgeopt.run(tmp_path / "edgeopt.toml")
    assert first.exit_code == 0 and all(s.cached for v in again.variants for s in v.steps)
