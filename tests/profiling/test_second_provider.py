"""Providers besides the CPU, in environments of their own: OpenVINO (another build) and Qualcomm's (a plugin,
simulated here).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import edgeopt
from edgeopt.profiling.results import Measured, Results
from edgeopt.runtime.environments import python_with
from edgeopt.runtime.providers import listed

ROOT = Path(__file__).resolve().parent.parent.parent
DIGITS = ROOT / "calibration_data" / "digits" / "digits.onnx"
CACHE = os.environ.get("XDG_CACHE_HOME")  # of the user
PROVIDERS = {"openvino": "OpenVINOExecutionProvider", "qnn-htp": "QNNExecutionProvider"}
FOUND = {name: python_with(provider) for name, provider in PROVIDERS.items()}
PYTHON = {name: found and found[0] for name, found in FOUND.items()}
OPENVINO, QNN = PROVIDERS.values()
NODES = 21


def python(name: str) -> str:
    found = PYTHON[name]
    if found is None:
        pytest.skip(f"needs edgeopt env {name}")
    return found


def profiled(environment: str, provider: str, **choices: Any) -> tuple[Measured, Results]:
    found = edgeopt.profile(
        DIGITS, python=python(environment), providers=(provider,), seconds=0.2, processes=1, **choices
    )
    (measured,) = found.measured
    return measured, found


def test_openvino_takes_every_node_of_the_classifier() -> None:
    found, results = profiled("openvino", "openvino:device_type=CPU")
    assert found.error is None and not results.failed and found.placement is not None
    assert found.placement.requested == OPENVINO and found.placement.nodes == {OPENVINO: NODES}
    assert found.placement.coverage_nodes == found.placement.coverage_time == 1.0
    assert found.placement.partitions == 1 and found.placement.agrees and not found.placement.fallback_nodes
    assert found.latency is not None and found.latency.runs > 0 and found.memory is not None
    assert found.setting.provider_options == {"device_type": "CPU"}
    assert not any("simulated" in note for note in results.notes)


def test_the_size_of_a_model_does_not_depend_on_the_provider() -> None:
    found, _ = profiled("openvino", "openvino:device_type=CPU")
    here = edgeopt.profile(DIGITS, seconds=0.2, processes=1).measured[0]
    assert found.size == here.size and here.size is not None


def test_an_option_that_openvino_does_not_know_is_told_without_signatures() -> None:
    found, results = profiled("openvino", "openvino:device_typ=CPU")
    assert results.failed and found.error is not None and found.latency is None
    assert "device_typ" in found.error and "::" not in found.error


def test_a_device_that_is_not_there_is_no_measurement_of_the_cpu() -> None:
    found, _ = profiled("openvino", "openvino:device_type=NPU")
    assert found.error is not None and found.latency is None


def test_qualcomms_plugin_leaves_a_model_whose_dimensions_vary_to_the_cpu_and_is_refused_by_name() -> None:
    found, results = profiled("qnn-htp", "qnn:backend_type=cpu")
    assert results.failed and found.latency is None and found.placement is not None
    assert found.error is not None and found.error.startswith(f"{QNN} leaves {NODES} of {NODES} nodes to others")
    assert found.placement.coverage_nodes == 0 and len(found.placement.fallback_nodes) == NODES
    assert found.placement.fallback_nodes[0] in found.error and "--allow-fallback" in found.error


def test_the_fallback_is_measured_when_it_is_allowed() -> None:
    found, _ = profiled("qnn-htp", "qnn:backend_type=cpu", allow_fallback=True)
    assert found.error is None and found.latency is not None
    assert found.placement is not None and found.placement.coverage_nodes == 0


@pytest.mark.slow
def test_qualcomms_simulator_takes_every_node_once_the_dimensions_are_fixed() -> None:
    found, results = profiled("qnn-htp", "qnn:backend_type=htp", freeze_dims=True)
    assert found.error is None and found.placement is not None
    assert set(found.placement.nodes) == {QNN} and found.placement.coverage_nodes == 1.0
    assert not found.placement.fallback_nodes and found.placement.agrees
    assert found.setting.fixed_dims == {"batch": 1}
    assert any("simulated" in note for note in results.notes)


@pytest.mark.parametrize(("name", "provider", "state"), [("openvino", OPENVINO, "present"), ("qnn-htp", QNN, "plugin")])
def test_an_environment_lists_its_provider(name: str, provider: str, state: str) -> None:
    lines, about = listed(python(name))
    (line,) = [x for x in lines if x.name == provider]
    assert line.state == state and f"environments/{name}-" in about


def test_the_environment_of_a_target_is_found_where_this_interpreter_lacks_the_provider(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = python("openvino")
    if CACHE is None:
        monkeypatch.delenv("XDG_CACHE_HOME")
    else:
        monkeypatch.setenv("XDG_CACHE_HOME", CACHE)
    results = edgeopt.profile(DIGITS, providers=("cpu", "openvino:device_type=CPU"), seconds=0.2, processes=1)
    assert not results.failed and (python_with(OPENVINO) or ("",))[0] == found
    cpu, openvino = (m.setting.provider for m in results.measured)
    assert (cpu, openvino) == ("CPUExecutionProvider", OPENVINO)
