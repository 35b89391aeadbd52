"""Devices: addresses, the files that go there, and every way in which a board is not what it should be; on a real SSH
server and on commands.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.errors import LostError, UsageError, WorkerError
from edgeopt.runtime import board as boards
from edgeopt.runtime.address import Device, parse
from edgeopt.runtime.board import Board
from edgeopt.runtime.conformance import conforms
from edgeopt.runtime.devices import visited
from edgeopt.runtime.process import Here, Place, worker
from edgeopt.runtime.tensor_file import NPZ
from tests import sshd, tiny

HERE = f"exec:{shlex.quote(sys.executable)}"
CPU = [("CPUExecutionProvider", {})]
needs_sshd = pytest.mark.skipif(sshd.PROGRAM is None, reason="no sshd")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[sshd.Server]:
    (tmp_path / "ssh").mkdir()
    with sshd.running(tmp_path / "ssh", monkeypatch) as found:
        yield found


def board(address: str, python: str | None = None) -> Board:
    found = parse(address, python=python)
    assert isinstance(found, Device)
    return Board(found)


@pytest.mark.parametrize(
    ("text", "reach", "python"),
    [
        ("exec:docker exec -i box", ("docker", "exec", "-i", "box"), "python3"),
        ("exec:docker exec -i box /opt/py/bin/python3.11", ("docker", "exec", "-i", "box"), "/opt/py/bin/python3.11"),
        ("exec:'/with space/python'", (), "/with space/python"),
        ("exec:adb shell", ("adb", "shell"), "python3"),
    ],
)
def test_a_command_is_what_stands_before_the_interpreter(text: str, reach: tuple[str, ...], python: str) -> None:
    found = parse(text)
    assert found is not None and (found.reach, found.python, found.ssh) == (reach, python, False)


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        ("ssh://board", ("--", "board")),
        ("ssh://pi@Board", ("-l", "pi", "--", "Board")),
        ("ssh://pi@board:2222", ("-l", "pi", "-p", "2222", "--", "board")),
        ("ssh://pi@[fe80::1%25eth0]", ("-l", "pi", "--", "fe80::1%25eth0")),
    ],
)
def test_an_address_becomes_words_of_ssh_that_ask_for_nothing(text: str, ends: tuple[str, ...]) -> None:
    found = parse(f"{text}?python=/opt/python3")
    assert found is not None and found.reach[-len(ends) :] == ends and found.python == "/opt/python3"
    assert "BatchMode=yes" in found.reach and not any("StrictHostKeyChecking" in word for word in found.reach)
    assert found.name == text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("ssh://pi:secret@board", "no passwords"),
        ("ssh://-oProxyCommand=evil", "no name of a host"),
        ("ssh://-l@board", "no name of a host or user"),
        ("ssh://board;reboot", "no name of a host"),
        ("ssh://board:port", "no name of a host"),
        ("ssh://board:99999", "no port 99999"),
        ("ssh://board/folder", "no name of a host"),
        ("ssh://board?pyhton=/x", "user@board"),
        ("ssh:board", "no name of a host"),
        ("exec:", "no command"),
        ("exec:docker 'exec", "No closing quotation"),
        ("usb:1", "no address"),
        ("", "no address"),
    ],
)
def test_what_is_no_address_is_refused_in_words(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse(text)
    assert "secret" not in str(caught.value)


def test_an_interpreter_that_is_named_twice_is_the_later_one() -> None:
    found = parse("exec:docker exec -i box python3.9", python="/opt/python")
    assert found is not None and found.reach == ("docker", "exec", "-i", "box") and found.python == "/opt/python"
    found = parse("ssh://board?python=/opt/c++/python3")
    assert found is not None and found.python == "/opt/c++/python3"


@pytest.mark.parametrize("noise", ["printf 'Welcome> '", "printf 'gr\\374ezi\\n'", "echo welcome"])
def test_what_is_said_before_the_first_answer_is_nothing(noise: str, tmp_path: Path) -> None:
    python = tmp_path / "python3"
    python.write_text(f'#!/bin/sh\n{noise}\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    over_there = board(f"exec:{python}")
    try:
        with worker(over_there) as w:
            assert w.greet()["onnxruntime"]
    finally:
        over_there.close()


def test_a_link_that_takes_nothing_more_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "_CONNECT_S", 2.0)
    python = tmp_path / "python3"
    python.write_text("#!/bin/sh\nexec sleep 600\n", encoding="utf-8")
    python.chmod(0o755)
    over_there, start = board(f"exec:{python}"), time.monotonic()
    monkeypatch.setattr(boards, "_BOOT", "x" * 100)
    with pytest.raises(LostError, match="no answer to 'hello' within 2 s"):
        over_there.hello()
    assert time.monotonic() - start < 30


def test_a_long_folder_for_temporary_files_is_no_obstacle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    over_there = board("ssh://board")
    (tmp_path / ("a b" * 40)).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("a b" * 40)))
    assert over_there._shared(True) == ("-o", "ControlPath=none")
    over_there.close()


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"device pi4: no such name.*local"), visited(["pi4"], {}):
        pass


@pytest.mark.parametrize("address", ["exec:adb shell", "ssh://board"])
@pytest.mark.parametrize(
    ("push", "says"), [("adb push {local}", r"\{local\} and \{remote\}"), ("cp '{local}", "quotation")]
)
def test_a_push_without_its_places_is_refused(address: str, push: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse(address, push=push)


def test_a_board_has_files_once_by_content_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a" * 7_000_001)
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "b").write_bytes(b"")
    over_there = board(HERE)
    try:
        name = over_there.given(tmp_path / "a", lambda: [tmp_path / "part" / "b"])
        folder = Path(str(over_there.hello()["folder"]))
        assert (folder / name).read_bytes() == (tmp_path / "a").read_bytes()
        assert (folder / name).parent.joinpath("part", "b").read_bytes() == b""
        there = (folder / name).stat().st_mtime_ns
        assert over_there.given(tmp_path / "a", lambda: [tmp_path / "part" / "b"]) == name
        assert (folder / name).stat().st_mtime_ns == there
        (tmp_path / "a").write_bytes(b"b")
        assert over_there.given(tmp_path / "a") != name
    finally:
        over_there.close()
    assert not folder.exists()


@pytest.mark.parametrize("path", ["../out", "/tmp/out", "a/../../out", ""])
def test_the_keeper_writes_nothing_outside_its_folder(path: str) -> None:
    over_there = board(HERE)
    try:
        with pytest.raises(WorkerError):
            over_there.ask("put", path=path, at=0, data="YQ==")
    finally:
        over_there.close()


def test_what_a_killed_client_left_is_removed_by_the_keeper(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path\n"
        "from edgeopt.runtime.address import parse; from edgeopt.runtime.board import Board\n"
        f"b = Board(parse({HERE!r})); b.given(Path({__file__!r})); print(b.hello()['folder'], flush=True)\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    folder, end = Path(done.stdout.strip()), time.monotonic() + 10
    while folder.exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert done.returncode == -9 and not folder.exists()


def test_words_are_quoted_for_a_shell_and_only_for_one(tmp_path: Path) -> None:
    for name, line in (("direct", 'exec "$@"'), ("shell", 'exec sh -c "$*"')):
        reach = tmp_path / name
        reach.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        reach.chmod(0o755)
        assert boards._through_a_shell((str(reach),)) is (name == "shell")
        over_there = board(f"exec:{reach} {sys.executable}")
        try:
            assert over_there.hello()["executable"]
        finally:
            over_there.close()


def test_files_go_by_a_command_where_one_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    found = parse(HERE, push="cp {local} {remote}", pull="cp {remote} {local}")
    assert found is not None
    over_there = Board(found)
    try:
        folder = Path(str(over_there.hello()["folder"]))
        assert (folder / over_there.given(tmp_path / "a")).read_bytes() == b"abc"
        (folder / "out").write_bytes(b"xyz")
        over_there.taken("out", tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == b"xyz" and not (folder / "out").exists()
    finally:
        over_there.close()


@pytest.mark.parametrize(
    ("push", "says"), [("false {local} {remote}", "ended with 1"), ("true {local} {remote}", "whole")]
)
def test_a_push_that_fails_or_brings_nothing_is_told(push: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    found = parse(HERE, push=push)
    assert found is not None
    over_there = Board(found)
    try:
        with pytest.raises(WorkerError, match=says):
            over_there.given(tmp_path / "a")
    finally:
        over_there.close()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("exit 1", "exit code 1"),
        ("read x; echo garbage", "exit code 0"),
        ("sleep 99", "no answer to 'hello' within 2 s"),
        ("read x; echo '{\"ok\": 5}'; sleep 9", "is no object"),
        ('read x; echo \'{"ok": {"protocol": 7}}\'; sleep 9', "speaks protocol 7, this edgeopt 1"),
        ('read x; echo \'{"ok": {"protocol": "1"}}\'; sleep 9', "protocol: Input should be a valid integer"),
        ("echo 'OSError: [Errno 28] No space left on device' >&2; exit 1", "its disk is full"),
        ("echo 'libonnxruntime.so: wrong ELF class: ELFCLASS32' >&2; exit 1", "another architecture"),
    ],
)
def test_what_is_no_worker_is_told(script: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "_CONNECT_S", 2.0)
    python = tmp_path / "python3"
    python.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
    python.chmod(0o755)
    over_there = board(f"exec:{python}")
    with pytest.raises(WorkerError, match=says):
        over_there.hello()


def test_a_worker_that_dies_is_not_a_device_that_is_lost(tmp_path: Path) -> None:
    over_there = board(HERE)
    try:
        with worker(over_there) as w:
            pid = w.greet()["pid"]
            os.kill(pid, 9)
            with pytest.raises(WorkerError, match=r"SIGKILL|signal|exit code") as caught:
                w.ask("hello")
        assert not isinstance(caught.value, LostError)
    finally:
        over_there.close()


def test_a_worker_that_hangs_over_there_is_ended_over_there() -> None:
    over_there = board(HERE)
    try:
        with worker(over_there) as w:
            pid = w.greet()["pid"]
        end = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
            time.sleep(0.05)
        assert not Path(f"/proc/{pid}").exists()
    finally:
        over_there.close()


def test_files_of_models_with_external_data_are_opened_over_there(tmp_path: Path) -> None:
    model = tiny.proto("g (float[N,4] x) => (float[N,2] y) { y = MatMul(x, w) }", w=np.ones((4, 2), np.float32))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    over_there = board(HERE)
    try:
        with worker(over_there) as w:
            opened = w.ask(
                "open", model=over_there.given(tmp_path / "m.onnx", lambda: [tmp_path / "w.bin"]), providers=CPU
            )
        assert opened["outputs"] == ["y"]
    finally:
        over_there.close()


def places(address: str) -> Iterator[Place]:
    with visited([address], {}) as found:
        yield found[address]


@pytest.mark.parametrize("address", ["local", HERE])
def test_a_worker_keeps_to_the_protocol(address: str, tmp_path: Path) -> None:
    for place in places(address):
        with worker(place) as w:
            w.greet()
            assert [r for r in conforms(w, tmp_path, NPZ, providers=CPU) if r.problem] == []


# over a real SSH server


@needs_sshd
def test_over_ssh_a_worker_keeps_to_the_protocol_and_nothing_is_left(server: sshd.Server, tmp_path: Path) -> None:
    over_there = board(server.address())
    try:
        with worker(over_there) as w:
            w.greet()
            assert [r for r in conforms(w, tmp_path, NPZ, providers=CPU) if r.problem] == []
            folder = Path(str(over_there.hello()["folder"]))
            assert folder.is_dir()
    finally:
        over_there.close()
    assert not folder.exists()


@needs_sshd
def test_a_connection_that_ends_is_a_lost_device_and_comes_back(server: sshd.Server, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    over_there = board(server.address())
    try:
        with worker(over_there) as w:
            w.greet()
            before = over_there.given(tmp_path / "a")
            server.cut()
            with pytest.raises(LostError):
                w.ask("hello")
        assert over_there.back()
        assert over_there.given(tmp_path / "a") == before  # sent again to the new folder
        assert (Path(str(over_there.hello()["folder"])) / before).read_bytes() == b"abc"
    finally:
        over_there.close()


@needs_sshd
@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("key", "Permission denied.*ssh-copy-id"),
        ("host", "(?s)IDENTIFICATION HAS CHANGED|Host key verification failed"),
        ("unknown", "Host key verification failed.*connect once by hand"),
        ("python", "no such program there.*\\?python="),
        ("onnxruntime", "No module named 'numpy'.*-m pip install onnxruntime numpy"),
        ("port", "Connection refused.*is sshd running"),
        ("name", "Could not resolve hostname.*no such host"),
    ],
)
def test_what_a_board_lacks_is_told_with_the_remedy(what: str, says: str, server: sshd.Server, tmp_path: Path) -> None:
    address, home = server.address(), server.home
    if what == "key":
        sshd.keys(home, "key")
    if what == "host":
        sshd.keys(home, "other")
        sshd.knows(home, server.host, server.port, "other")
    if what == "unknown":
        (home / "known").write_text("", encoding="utf-8")
    if what == "python":
        address = server.address(python="/nowhere/python3")
    if what == "onnxruntime":
        bare = tmp_path / "python3"
        bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n', encoding="utf-8")
        bare.chmod(0o755)
        address = server.address(python=str(bare))
    if what == "port":
        server.process.terminate()
        server.process.wait()
    if what == "name":
        address = "ssh://no-such-host.invalid"
    over_there = board(address)
    try:
        with pytest.raises(WorkerError, match=says), worker(over_there) as w:
            w.greet()
        assert not over_there._hello or what == "onnxruntime"
    finally:
        over_there.close()


def test_this_machine_is_a_place_too(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    here = Here()
    assert here.given(tmp_path / "a") == here.named(tmp_path / "a") == str(tmp_path / "a")
    here.taken(str(tmp_path / "a"), tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"a" and not (tmp_path / "a").exists()
    assert here.machine()["cores"] >= 1 and shutil.which(sys.executable)
