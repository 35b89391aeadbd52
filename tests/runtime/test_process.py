"""The host's end of a worker: deaths, hangs and interpreters that are none are told by name, and nothing is left
behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from edgeopt.errors import UsageError, WorkerError
from edgeopt.profiling.inputs import write_feeds
from edgeopt.runtime.process import Here, _plain, worker

CPU = [["CPUExecutionProvider", {}]]


def stub(folder: Path, text: str) -> str:
    """An interpreter that is the script `text`."""
    path = folder / "python"
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def alive(pid: int) -> bool:
    """Whether `pid` runs; a zombie that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int) -> bool:
    """Whether `pid` ends; an orphan takes a moment to see that its pipe is closed."""
    for _ in range(100):
        if not alive(pid):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_worker_killed_by_a_signal_is_told_by_the_signals_name(number: signal.Signals) -> None:
    with worker() as w:
        os.kill(w.ask("hello")["pid"], number)
        with pytest.raises(WorkerError, match=f"killed by {number.name} at 'block'") as caught:
            w.ask("block")
    assert ("out of memory" in str(caught.value)) == (number == signal.SIGKILL)


def test_a_dead_worker_tells_its_death_again_when_it_is_asked_again() -> None:
    with worker() as w:
        os.kill(w.ask("hello")["pid"], signal.SIGKILL)
        for do in ("block", "memory"):
            with pytest.raises(WorkerError, match=f"killed by SIGKILL at '{do}'"):
                w.ask(do, 1.0)


def test_a_worker_that_ends_is_told_with_its_exit_code_and_its_last_three_lines(tmp_path: Path) -> None:
    python = stub(tmp_path, "#!/bin/sh\nfor i in one two three four; do echo $i >&2; done\nexit 7\n")
    with worker(Here(python)) as w, pytest.raises(WorkerError) as caught:
        w.ask("hello")
    assert str(caught.value) == "the worker ended with exit code 7 at 'hello': two | three | four"


def test_an_interpreter_without_onnxruntime_says_what_it_lacks(tmp_path: Path) -> None:
    python = stub(tmp_path, f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    with (
        worker(Here(python)) as w,
        pytest.raises(WorkerError, match=r"exit code 1 at 'hello'.*No module named 'numpy'"),
    ):
        w.ask("hello")


def test_last_words_that_are_no_utf8_or_very_long_are_told_all_the_same(tmp_path: Path) -> None:
    python = stub(tmp_path, "#!/bin/sh\nprintf '%05000d' 0 >&2\nprintf '\\377 end' >&2\nexit 1\n")
    with worker(Here(python)) as w, pytest.raises(WorkerError, match=r"end$") as caught:
        w.ask("hello")
    assert len(str(caught.value)) < 2100  # the last 2000 bytes, and the sentence about them


def test_a_worker_that_hangs_is_killed_after_the_limit_and_named(tmp_path: Path) -> None:
    python = stub(tmp_path, f'#!/bin/sh\necho $$ >"{tmp_path}/pid"\nexec sleep 600\n')
    with worker(Here(python)) as w:
        with pytest.raises(WorkerError, match=r"no answer to 'hello' within 1 s; the worker was killed"):
            w.ask("hello", 1.0)
        w._process.wait()  # dies, or this test hangs
        assert not alive(int((tmp_path / "pid").read_text()))


def test_the_limit_of_the_worker_holds_where_a_request_brings_none(tmp_path: Path) -> None:
    with worker(Here(stub(tmp_path, "#!/bin/sh\nexec sleep 600\n")), timeout_s=1.0) as w, pytest.raises(WorkerError):
        w.ask("hello")


def test_an_inference_that_does_not_end_is_killed() -> None:
    with worker() as w:
        pid = w.ask("hello")["pid"]
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(WorkerError, match="no answer to 'memory'"):
            w.ask("memory", 1.0)
        w._process.wait()
        assert not alive(pid)


def test_the_process_is_gone_after_the_block_and_after_an_error_in_it() -> None:
    with worker() as w:
        first = w.ask("hello")["pid"]
    with contextlib.suppress(ZeroDivisionError), worker() as w:
        second = w.ask("hello")["pid"]
        raise ZeroDivisionError
    assert first != second and not alive(first) and not alive(second)


def test_a_script_that_starts_the_interpreter_as_its_child_will_do(tmp_path: Path) -> None:
    python = stub(tmp_path, f'#!/bin/sh\n"{sys.executable}" "$@"\n')
    with worker(Here(python)) as w:
        hello = w.ask("hello")
        assert hello["executable"] == sys.executable and alive(hello["pid"])
    assert gone(hello["pid"])


def test_a_hanging_child_of_such_a_script_is_neither_waited_for_nor_left_behind(tmp_path: Path) -> None:
    text = f'#!/bin/sh\n(echo $$ >/dev/null; sleep 5; touch "{tmp_path}/ended") &\necho $! >"{tmp_path}/pid"\nwait\n'
    with worker(Here(stub(tmp_path, text))) as w, pytest.raises(WorkerError, match="no answer"):
        w.ask("hello", 1.0)
    assert not (tmp_path / "ended").exists()
    assert gone(int((tmp_path / "pid").read_text()))


def test_what_a_wrapper_prints_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    python = stub(tmp_path, f'#!/bin/sh\necho "environment activated"\nexec "{sys.executable}" "$@"\n')
    with worker(Here(python)) as w:
        assert w.ask("hello")["executable"] == sys.executable


def test_what_a_library_prints_while_it_loads_is_not_taken_for_an_answer(tmp_path: Path) -> None:
    (tmp_path / "onnxruntime.py").write_text(
        "import os, sys; os.write(1, b'welcome\\n'); sys.path.remove(os.path.dirname(__file__))\n"
        "del sys.modules['onnxruntime']; import onnxruntime\n"
    )
    python = stub(tmp_path, f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" "$@"\n')
    with worker(Here(python)) as w:
        assert w.ask("hello")["executable"] == sys.executable


def test_a_program_that_is_no_python_is_an_error_in_words(tmp_path: Path) -> None:
    with worker(Here(stub(tmp_path, '#!/bin/sh\necho "$@"\n'))) as w, pytest.raises(WorkerError, match="'hello'"):
        w.ask("hello")


@pytest.mark.parametrize("name", ["nowhere/python", "no-such-python-3", "."])
def test_an_interpreter_that_is_not_there_is_a_usage_error(name: str) -> None:
    with pytest.raises(UsageError, match=rf"--python {name}: no such program"), worker(Here(name)):
        pass


def test_a_file_that_cannot_be_executed_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be started"), worker(Here(stub(tmp_path, "\0garbage"))):
        pass
    (tmp_path / "python").chmod(0o644)
    with pytest.raises(UsageError, match="no such program"), worker(Here(str(tmp_path / "python"))):
        pass


HERE = "/onnxruntime_src/onnxruntime/core"


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        # as ONNX Runtime 1.32 and 1.24 say them
        (
            "[ONNXRuntimeError] : 7 : INVALID_PROTOBUF : Load model from a.onnx failed:Protobuf parsing failed.",
            "Load model from a.onnx failed:Protobuf parsing failed.",
        ),
        (
            "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for Relu(14)",
            "Could not find an implementation for Relu(14)",
        ),
        (
            (
                f"[ONNXRuntimeError] : 1 : FAIL : {HERE}/session/provider_bridge_ort.cc:2161 onnxruntime::Provider&"
                " onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library x.so"
            ),
            "Failed to load library x.so",
        ),
        (
            (
                f"[ONNXRuntimeError] : 1 : FAIL : Exception during initialization: {HERE}/optimizer/initializer.cc:51"
                " onnxruntime::Initializer::Initializer(const onnx::TensorProto&, const"
                " std::filesystem::__cxx11::path&) [ONNXRuntimeError] : 1 : FAIL : Initializer 'b': raw_data size (2"
                " bytes) does not match\n"
            ),
            "Initializer 'b': raw_data size (2 bytes) does not match",
        ),
        ("Unknown Provider Type: Foo", "Unknown Provider Type: Foo"),
        ("", ""),
    ],
)
def test_codes_and_signatures_are_taken_from_a_message_and_nothing_else(raw: str, plain: str) -> None:
    assert _plain(raw) == plain


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        (
            (
                "[ONNXRuntimeError] : 1 : FAIL : Non-zero status code returned while running Reshape node. Name:'r'"
                f" Status Message: {HERE}/providers/cpu/tensor/reshape_helper.h:84"
                " onnxruntime::ReshapeHelper::ReshapeHelper(const onnxruntime::TensorShape&,"
                " onnxruntime::TensorShapeVector&, bool) size != 0 && (input_shape_size % size) == 0 was false. The"
                " input tensor cannot be reshaped"
            ),
            (
                "Non-zero status code returned while running Reshape node. Name:'r' Status Message: size != 0 &&"
                " (input_shape_size % size) == 0 was false. The input tensor cannot be reshaped"
            ),
        ),
        (
            (
                "/onnxruntime/onnxruntime/python/onnxruntime_pybind_state.cc:1053"
                " std::shared_ptr<onnxruntime::IExecutionProviderFactory>"
                " onnxruntime::python::CreateExecutionProviderFactoryInstance(const onnxruntime::SessionOptions&, const"
                " std::string&, const onnxruntime::ProviderOptionsMap&) Invalid OpenVINO EP option: foo\n"
            ),
            "Invalid OpenVINO EP option: foo",
        ),
    ],
    ids=["behind a status", "without a code"],
)
def test_a_signature_is_taken_out_wherever_it_stands(raw: str, plain: str) -> None:
    assert _plain(raw) == plain


def test_an_error_of_a_run_names_the_node_and_no_source_file(tmp_path: Path) -> None:
    made = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["": 17]> g (float[N,M] x) => (float[2,K] y) <int64[2] s = {2, -1}> { [odd] y ='
        " Reshape(x, s) }"
    )
    onnx.save(made, tmp_path / "m.onnx")
    write_feeds([{"x": np.ones((5, 3), np.float32)}], tmp_path / "f.npz")
    with worker() as w:
        w.ask("open", model=str(tmp_path / "m.onnx"), providers=CPU)
        w.ask("feed", path=str(tmp_path / "f.npz"))
        with pytest.raises(WorkerError) as caught:
            w.ask("block")
    told = str(caught.value)
    assert "'odd'" in told and "cannot be reshaped" in told
    assert "ONNXRuntimeError" not in told and "::" not in told and ".h:" not in told
