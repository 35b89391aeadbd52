"""The cache: what is kept is whole, what is broken is made again, and a digest is of names and contents."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeopt.errors import EdgeoptError, ModelError
from edgeopt.release.build.cache import MODEL, Cache, key

Make = Callable[[Path], Mapping[str, Any]]


def making(content: bytes = b"model", beside: bytes | None = None) -> tuple[Make, list[Path]]:
    """A `make` that writes `content`, and the places where it was asked to."""
    asked: list[Path] = []

    def make(output: Path) -> Mapping[str, Any]:
        asked.append(output)
        output.write_bytes(content)
        if beside is not None:
            output.with_name("model.onnx.data").write_bytes(beside)
        return {"summary": "made", "notes": ["a"]}

    return make, asked


def left(folder: Path) -> list[str]:
    return sorted(f.name for f in folder.iterdir())


def test_an_entry_is_made_once_and_found_again_with_its_facts(tmp_path: Path) -> None:
    make, asked = making()
    first = Cache(tmp_path / "c").entry("k", make)
    again = Cache(tmp_path / "c").entry("k", make)
    assert (first.cached, again.cached, len(asked)) == (False, True, 1)
    assert (again.path.read_bytes(), again.sha256, again.facts) == (b"model", first.sha256, first.facts)
    assert first.facts == {"summary": "made", "notes": ["a"]} and left(tmp_path / "c") == ["k"]


def broken(name: str, entry: Path) -> None:
    model, facts = entry / MODEL, entry / "entry.json"
    data = model.read_bytes()
    actions: dict[str, Callable[[], object]] = {
        "a bit": lambda: model.write_bytes(bytes([data[0] ^ 1]) + data[1:]),
        "cut": lambda: model.write_bytes(data[:-1]),
        "empty": lambda: model.write_bytes(b""),
        "no model": model.unlink,
        "no facts": facts.unlink,
        "facts cut": lambda: facts.write_text(facts.read_text()[:20]),
        "facts no JSON": lambda: facts.write_bytes(b"\xff\x00"),
        "facts a list": lambda: facts.write_text("[]"),
        "facts empty": lambda: facts.write_text("{}"),
        "facts of another kind": lambda: facts.write_text(json.dumps({**json.loads(facts.read_text()), "facts": [1]})),
        "facts changed": lambda: facts.write_text(facts.read_text().replace("made", "mode")),
        "data": lambda: (entry / "model.onnx.data").write_bytes(b"other"),
        "no data": lambda: (entry / "model.onnx.data").unlink(),
        "one more file": lambda: (entry / "x").write_bytes(b""),
        "a folder for the model": lambda: (model.unlink(), model.mkdir()),
        "a file for the folder": lambda: (shutil.rmtree(entry), entry.write_bytes(b"")),
    }
    actions[name]()


@pytest.mark.parametrize(
    "what",
    [
        "a bit",
        "cut",
        "empty",
        "no model",
        "no facts",
        "facts cut",
        "facts no JSON",
        "facts a list",
        "facts empty",
        "facts of another kind",
        "facts changed",
        "data",
        "no data",
        "one more file",
        "a folder for the model",
        "a file for the folder",
    ],
)
def test_a_broken_entry_is_made_again(what: str, tmp_path: Path) -> None:
    make, asked = making(beside=b"weights")
    entry = Cache(tmp_path).entry("k", make)
    broken(what, tmp_path / "k")
    again = Cache(tmp_path).entry("k", make)
    assert len(asked) == 2 and not again.cached
    assert again.path.read_bytes() == b"model" and again.sha256 == entry.sha256 and again.facts == entry.facts
    assert Cache(tmp_path).entry("k", make).cached


@pytest.mark.parametrize(
    "error", [ModelError("no"), KeyboardInterrupt(), SystemExit(1), RuntimeError("x"), OSError(errno.ENOSPC, "full")]
)
def test_a_make_that_fails_leaves_nothing_and_its_error_comes_through(error: BaseException, tmp_path: Path) -> None:
    def make(output: Path) -> Mapping[str, Any]:
        output.write_bytes(b"half")
        raise error

    with pytest.raises((type(error), EdgeoptError)):
        Cache(tmp_path).entry("k", make)
    assert left(tmp_path) == []
    assert not Cache(tmp_path).entry("k", making()[0]).cached


def test_a_full_disk_is_told_in_words_and_leaves_nothing(tmp_path: Path) -> None:
    def make(output: Path) -> Mapping[str, Any]:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(EdgeoptError, match="No space left"):
        Cache(tmp_path).entry("k", make)


def test_what_a_killed_run_left_behind_is_removed_by_the_next(tmp_path: Path) -> None:
    stale = tmp_path / ".0123456789abcdef.xyz"
    stale.mkdir()
    (stale / MODEL).write_bytes(b"half")
    Cache(tmp_path).entry("k", making()[0])
    assert not stale.exists() and (tmp_path / "k").exists()
    assert Cache(tmp_path).entry("k", making()[0]).cached


def test_entries_that_nobody_asked_for_in_a_month_are_forgotten_and_others_are_not(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    for name in ("old", "used", "new"):
        cache.entry(name, making()[0])
    for name in ("old", "used"):
        os.utime(tmp_path / name / "entry.json", (1, 1))
    assert Cache(tmp_path).entry("used", making()[0]).cached
    cache.keep()
    assert left(tmp_path) == ["digests.json", "new", "used"]


# values


def test_a_value_is_remembered_by_its_name(tmp_path: Path) -> None:
    asked = []
    for _ in range(2):
        value, known = Cache(tmp_path).remembered("k", lambda: asked.append(1) or {"a": (1, 2.5, None)})
        assert value == {"a": [1, 2.5, None]} and known == (len(asked) == 1 and _ == 1)
    assert len(asked) == 1


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "5", "\x00", '{"key": "k"}', '{"value": 1}', '{"key": "other", "value": 1}']
)
def test_a_broken_value_is_made_again(text: str, tmp_path: Path) -> None:
    Cache(tmp_path).remembered("k", lambda: {"a": 1})
    (tmp_path / "k.json").write_text(text)
    assert Cache(tmp_path).remembered("k", lambda: {"a": 1}) == ({"a": 1}, False)
    assert Cache(tmp_path).remembered("k", lambda: {"a": 2}) == ({"a": 1}, True)


def test_a_value_that_was_changed_on_the_disk_is_made_again(tmp_path: Path) -> None:
    Cache(tmp_path).remembered("k", lambda: {"accuracy": 0.125})
    file = tmp_path / "k.json"
    file.write_text(file.read_text().replace("0.125", "0.925"))
    assert Cache(tmp_path).remembered("k", lambda: {"accuracy": 0.125}) == ({"accuracy": 0.125}, False)


def test_a_value_whose_making_fails_is_not_kept(tmp_path: Path) -> None:
    def make() -> Any:
        raise ModelError("no")

    with pytest.raises(ModelError):
        Cache(tmp_path).remembered("k", make)
    assert left(tmp_path) == []


# digests

TREE = st.dictionaries(st.text("ab", min_size=1, max_size=3), st.binary(max_size=3), min_size=1, max_size=4)


def written(tree: Mapping[str, bytes], folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in tree.items():
        (folder / f"{name}.x").write_bytes(content)
    return folder


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(one=TREE, two=TREE)
def test_folders_have_the_same_digest_if_names_and_contents_are_the_same(
    tmp_path: Path, one: dict[str, bytes], two: dict[str, bytes]
) -> None:
    a, b = written(one, tmp_path / "a"), written(two, tmp_path / "b")
    cache = Cache(tmp_path / "c")
    assert (cache.digest(a) == cache.digest(b)) == (one == two)


def test_a_digest_does_not_change_with_the_time_of_a_file_and_does_with_its_content_name_and_place(
    tmp_path: Path,
) -> None:
    folder = written({"a": b"1", "b": b"2"}, tmp_path / "d")
    cache = Cache(tmp_path / "c")
    before = cache.digest(folder)
    os.utime(folder / "a.x", (1, 1))
    assert cache.digest(folder) == before
    (folder / "a.x").write_bytes(b"3")
    os.utime(folder / "a.x", (2, 2))
    changed = cache.digest(folder)
    (folder / "a.x").write_bytes(b"1")
    os.utime(folder / "a.x", (3, 3))
    assert cache.digest(folder) == before != changed
    (folder / "a.x").rename(folder / "c.x")
    assert cache.digest(folder) not in (before, changed)
    (folder / "sub").mkdir()
    (folder / "c.x").rename(folder / "sub" / "a.x")
    moved = cache.digest(folder)
    assert moved != before
    assert cache.digest(folder.rename(tmp_path / "elsewhere")) == moved


def test_digests_are_kept_and_a_file_of_the_same_size_and_time_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written({"a": b"1"}, tmp_path / "d")
    cache = Cache(tmp_path / "c")
    before = cache.digest(folder)
    cache.keep()
    monkeypatch.setattr("edgeopt.release.build.cache.sha256", lambda path: pytest.fail(f"{path} is read again"))
    assert Cache(tmp_path / "c").digest(folder) == before


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "\x00", '{"PATH": 5}', '{"PATH": []}', '{"PATH": [1]}', '{"PATH": null}']
)
def test_broken_notes_of_digests_are_made_again(text: str, tmp_path: Path) -> None:
    folder = written({"a": b"1"}, tmp_path / "d")
    cache = Cache(tmp_path / "c")
    before = cache.digest(folder)
    cache.keep()
    (tmp_path / "c" / "digests.json").write_text(text.replace("PATH", str((folder / "a.x").resolve())))
    assert Cache(tmp_path / "c").digest(folder) == before


@given(
    st.lists(st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False), max_size=4),
    st.lists(st.integers() | st.text(), max_size=4),
)
def test_keys_are_equal_for_equal_parts_and_differ_for_others(one: list[Any], two: list[Any]) -> None:
    assert key(*one) == key(*one) and key({"a": 1, "b": 2}) == key({"b": 2, "a": 1})
    assert (key(*one) == key(*two)) == (json.dumps(one) == json.dumps(two))
