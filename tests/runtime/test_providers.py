"""The table of providers, the words that ask for one, and what an interpreter has of them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import onnxruntime as ort
import pytest

from edgeopt.errors import UsageError, WorkerError
from edgeopt.runtime import providers
from edgeopt.runtime.process import worker
from edgeopt.runtime.providers import CPU, PROVIDERS, Requested, listed, make_present, parse

NAMES = [p.name for p in PROVIDERS]


def test_names_and_aliases_are_unique_whatever_their_case() -> None:
    words = [w.lower() for p in PROVIDERS for w in (p.name, p.alias)]
    assert len(set(words)) == len(words) == 2 * len(PROVIDERS)


def test_every_provider_that_this_onnxruntime_knows_is_in_the_table_under_its_name() -> None:
    assert set(ort.get_available_providers()) <= set(NAMES)
    # the runtime knows names of a few more, for hardware that is out of use
    known = set(ort.get_all_providers()) - set(NAMES)
    assert not {n for n in NAMES if n.lower() in {k.lower() for k in known}}


@pytest.mark.parametrize("row", PROVIDERS, ids=lambda p: p.alias)
def test_a_row_says_where_it_runs_and_a_plugin_says_what_brings_it(row: providers.Provider) -> None:
    assert row.hardware and row.systems and row.name.endswith("ExecutionProvider")
    assert set(row.systems) <= {"Linux", "Windows", "Darwin", "Android"}
    assert row.module is None or row.package is not None


@pytest.mark.parametrize("row", PROVIDERS, ids=lambda p: p.alias)
def test_alias_and_name_ask_for_the_same_whatever_their_case(row: providers.Provider) -> None:
    for text in (row.alias, row.alias.upper(), row.name, row.name.lower()):
        assert parse(text) == Requested(row.name)


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("openvino:device_type=CPU,num_streams=2", {"device_type": "CPU", "num_streams": "2"}),
        ("openvino:cache_dir=/a:b/c", {"cache_dir": "/a:b/c"}),
        ("openvino:load_config=a=b", {"load_config": "a=b"}),
        ("openvino:device_type=", {"device_type": ""}),
        ("openvino:", {}),
        ("openvino", {}),
    ],
)
def test_options_are_read_as_they_are_written(text: str, options: dict[str, str]) -> None:
    assert parse(text) == Requested("OpenVINOExecutionProvider", options)


@pytest.mark.parametrize("text", ["cpu", "openvino:device_type=CPU,num_streams=2", "qnn:backend_type=htp"])
def test_a_label_asks_for_what_it_labels(text: str) -> None:
    assert parse(text).label == text and parse(parse(text).label) == parse(text)


@pytest.mark.parametrize(
    ("typo", "meant"), [("openvno", "openvino"), ("CPUExecutionProvidr", CPU), ("tensort", "tensorrt")]
)
def test_a_name_that_is_nearly_right_is_suggested(typo: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"--provider {typo}: unknown; did you mean '{meant}'"):
        parse(typo)


def test_a_name_like_none_lists_what_is_known() -> None:
    with pytest.raises(UsageError, match=r"--provider xyzzy: unknown.* Known: cpu, openvino, qnn"):
        parse("xyzzy")


@pytest.mark.parametrize("pair", ["device_type", "=CPU", "a=1,b"])
def test_an_option_without_a_key_or_a_value_is_refused_with_the_way_to_write_it(pair: str) -> None:
    with pytest.raises(UsageError, match="write openvino:key=value,key=value"):
        parse(f"openvino:{pair}")


def test_a_plugin_of_ones_own_is_asked_for_by_its_name() -> None:
    found = parse("MyExecutionProvider:a=1", {"MyExecutionProvider": "/lib/my.so"})
    assert found == Requested("MyExecutionProvider", {"a": "1"}, "/lib/my.so")
    assert found.label == "MyExecutionProvider:a=1" and not found.simulated
    with pytest.raises(UsageError, match="did you mean 'MyExecutionProvider'"):
        parse("MyExecutionProvidr", {"MyExecutionProvider": "/lib/my.so"})


@pytest.mark.parametrize("name", ["qnn", "QNNExecutionProvider"])
def test_a_library_for_a_known_provider_is_found_by_alias_and_by_name(name: str) -> None:
    assert parse("qnn", {name: "/lib/qnn.so"}).library == "/lib/qnn.so"


@pytest.mark.parametrize(("machine", "simulated"), [("x86_64", True), ("AMD64", True), ("aarch64", False)])
def test_qualcomms_provider_is_a_simulator_on_x86_only(
    machine: str, simulated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers.platform, "machine", lambda: machine)
    assert parse("qnn:backend_type=htp").simulated is simulated
    assert not parse("cpu").simulated


def test_what_is_built_in_needs_no_plugin() -> None:
    with worker() as w:
        assert make_present(w, parse("cpu"), [CPU]) is None


@pytest.mark.parametrize(
    ("alias", "system", "told"),
    [
        ("openvino", "Linux", "pip install onnxruntime-openvino in an environment of its own, and --python to it"),
        ("cuda", "Windows", "pip install onnxruntime-gpu in an environment"),
        ("qnn", "Linux", "pip install onnxruntime-qnn$"),
        ("coreml", "Linux", "runs on Darwin"),
        ("dml", "Darwin", "runs on Windows"),
        ("xnnpack", "Linux", "in no package on PyPI; build ONNX Runtime with it"),
    ],
)
def test_a_provider_that_is_not_there_says_how_to_get_it(
    alias: str, system: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(providers.platform, "system", lambda: system)
    wanted = parse(alias)
    with worker() as w, pytest.raises(WorkerError, match=told) as caught:
        make_present(w, wanted, [CPU])
    assert str(caught.value).startswith(f"{wanted.name} is not in this interpreter's onnxruntime: ")


def test_a_plugin_library_that_cannot_be_loaded_is_an_error_with_its_path() -> None:
    with worker() as w, pytest.raises(WorkerError, match=r"/nowhere/my\.so"):
        make_present(w, parse("My", {"My": "/nowhere/my.so"}), [CPU])


@pytest.fixture(scope="module")
def here() -> tuple[list[providers.Listed], str]:
    return listed()


def test_the_list_holds_every_row_once_and_what_is_there_first(here: tuple[list[providers.Listed], str]) -> None:
    lines, about = here
    assert sorted(x.name for x in lines) == sorted(NAMES)
    states = [x.state for x in lines]
    order = ("present", "plugin", "unusable", "missing")
    assert [order.index(s) for s in states] == sorted(order.index(s) for s in states)
    assert ort.__version__ in about and sys.executable in about


def test_the_cpu_is_present_with_its_device_and_nothing_to_say(here: tuple[list[providers.Listed], str]) -> None:
    (cpu,) = [x for x in here[0] if x.name == CPU]
    assert (cpu.state, cpu.alias, cpu.why) == ("present", "cpu", "")
    assert len(cpu.devices) == 1 and cpu.devices[0].startswith("CPU (")


def test_what_is_missing_says_why(here: tuple[list[providers.Listed], str]) -> None:
    assert all(x.why for x in here[0] if x.state in ("missing", "unusable"))
    missing = {x.alias for x in here[0] if x.state == "missing"}
    assert {"nnapi", "dml"} <= missing or sys.platform != "linux"


def test_a_provider_that_takes_its_process_with_it_is_unusable_and_the_others_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "onnxruntime_qnn.py").write_text("import os\ndef get_library_path(): os.abort()\n")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).strip(os.pathsep)
    )
    lines = {x.alias: x for x in listed()[0]}
    assert lines["qnn"].state == "unusable" and "SIGABRT" in lines["qnn"].why
    assert lines["cpu"].state == "present"
