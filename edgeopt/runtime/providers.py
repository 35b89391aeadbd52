"""Execution providers: a table of them, parsing of `NAME:key=value,...` from the command line, and which of them an
interpreter has.

Sources: onnxruntime.ai/docs/execution-providers and the packages' own pages on PyPI, November 2026.
"""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort

from edgeopt.errors import UsageError, WorkerError, suggestion
from edgeopt.files import temporary_folder
from edgeopt.runtime.process import Here, Worker, worker

_PROBE_S = 60.0
_TINY = '<ir_version: 8, opset_import: ["": 17]> tiny (float[1, 4] x) => (float[1, 4] y) { y = Add(x, x) }'


@dataclass(frozen=True)
class Provider:
    """A row of the provider table."""

    name: str
    alias: str
    hardware: str
    package: str | None = None
    """Its package on PyPI, None if there is none."""
    module: str | None = None
    """Python module of a plugin in `package`."""
    systems: tuple[str, ...] = ("Linux", "Windows")
    """Operating systems it supports."""
    simulated: bool = False
    """Whether an x86 machine only simulates the hardware."""
    probe: Mapping[str, str] = field(default_factory=dict)
    """Options needed to try it."""


CPU = "CPUExecutionProvider"
PROVIDERS = (
    Provider(CPU, "cpu", "any CPU", "onnxruntime", systems=("Linux", "Windows", "Darwin")),
    Provider("OpenVINOExecutionProvider", "openvino", "Intel CPU, GPU, NPU", "onnxruntime-openvino"),
    Provider(
        "QNNExecutionProvider", "qnn", "Qualcomm NPU (simulated on x86)", "onnxruntime-qnn", "onnxruntime_qnn",
        simulated=True, probe={"backend_type": "htp"},
    ),
    Provider("CUDAExecutionProvider", "cuda", "NVIDIA GPU", "onnxruntime-gpu"),
    Provider("TensorrtExecutionProvider", "tensorrt", "NVIDIA GPU", "onnxruntime-gpu"),
    Provider("MIGraphXExecutionProvider", "migraphx", "AMD GPU", "onnxruntime-migraphx", systems=("Linux",)),
    Provider("ROCMExecutionProvider", "rocm", "AMD GPU", "onnxruntime-rocm", systems=("Linux",)),
    Provider("CANNExecutionProvider", "cann", "Huawei Ascend", "onnxruntime-cann", systems=("Linux",)),
    Provider(
        "WebGpuExecutionProvider", "webgpu", "any GPU", "onnxruntime-ep-webgpu", "onnxruntime_ep_webgpu",
        systems=("Linux", "Windows", "Darwin"),
    ),
    Provider("DmlExecutionProvider", "dml", "any DirectX 12 GPU", "onnxruntime-directml", systems=("Windows",)),
    Provider("CoreMLExecutionProvider", "coreml", "Apple CPU, GPU, NPU", "onnxruntime", systems=("Darwin",)),
    Provider("XnnpackExecutionProvider", "xnnpack", "any CPU", systems=("Linux", "Windows", "Darwin")),
    Provider("NnapiExecutionProvider", "nnapi", "Android NPU (deprecated since Android 15)", systems=("Android",)),
    Provider("DnnlExecutionProvider", "dnnl", "x86 CPU"),
    Provider("VitisAIExecutionProvider", "vitisai", "AMD NPU"),
    Provider(
        "AzureExecutionProvider", "azure", "a remote endpoint", "onnxruntime",
        systems=("Linux", "Windows", "Darwin"),
    ),
)  # fmt: skip
WEB_PROVIDERS = ("wasm", "webgpu")  # of onnxruntime-web
_BY_ALIAS = {p.alias: p for p in PROVIDERS}
_BY_NAME = {p.name.lower(): p for p in PROVIDERS}


@dataclass(frozen=True)
class Requested:
    """A requested provider with its options."""

    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    library: str | None = None
    """Path of a plugin that is not in a package of the table."""

    @property
    def simulated(self) -> bool:
        """Whether its times on this machine come from a simulator."""
        known = _BY_NAME.get(self.name.lower())
        return known is not None and known.simulated and platform.machine() in ("x86_64", "AMD64")

    @property
    def label(self) -> str:
        """`cpu`, or `openvino:device_type=CPU`."""
        known = _BY_NAME.get(self.name.lower())
        short = known.alias if known else self.name
        return short + (":" + ",".join(f"{k}={v}" for k, v in self.options.items()) if self.options else "")


def parse(text: str, plugins: Mapping[str, str] | None = None) -> Requested:
    """Parse `NAME[:key=value,...]`; plugins: library paths by provider name.

    Raises:
        UsageError: an unknown name (the message suggests one), or an option without `=`.
    """
    name, _, rest = text.partition(":")
    known = _BY_ALIAS.get(name.lower()) or _BY_NAME.get(name.lower())
    plugins = plugins or {}
    if known is None and name not in plugins:
        names = [*_BY_ALIAS, *(p.name for p in PROVIDERS), *plugins]
        raise UsageError(f"--provider {name}: unknown{suggestion(name, names)} Known: {', '.join(_BY_ALIAS)}")
    options = {}
    for pair in filter(None, rest.split(",")):
        key, found, value = pair.partition("=")
        if not found or not key:
            raise UsageError(f"--provider {text}: {pair!r} is no option; write {name}:key=value,key=value")
        options[key] = value
    full = known.name if known else name
    return Requested(full, options, _absolute(plugins.get(name) or plugins.get(full)))


def _absolute(library: str | None) -> str | None:
    """The absolute path, since ONNX Runtime resolves relative paths in its own folder."""
    return None if library is None else str(Path(library).absolute())


def make_present(w: Worker, wanted: Requested, have: Sequence[str]) -> str | None:
    """Register the plugin that contains `wanted` if it is not built in; return the provider's name if it is a plugin,
    else None.

    Raises:
        WorkerError: the provider is missing; the message says how to install it.
    """
    if wanted.library is not None:
        w.ask("plugin", _PROBE_S, name=wanted.name, library=wanted.library)
        return wanted.name
    if wanted.name in have:
        return None
    row = _BY_NAME[wanted.name.lower()]
    if row.module is not None:
        try:
            w.ask("plugin", _PROBE_S, name=wanted.name, module=row.module)
            return wanted.name
        except WorkerError as e:
            if "No module named" not in str(e):
                raise
    raise WorkerError(f"{wanted.name} is not in this interpreter's onnxruntime: {_missing(row)}")


def installed(wanted: Requested) -> bool:
    """Whether this interpreter's ONNX Runtime has the provider, or has it as a plugin."""
    row = _BY_NAME.get(wanted.name.lower())
    plugin = row is not None and row.module is not None and importlib.util.find_spec(row.module) is not None
    return wanted.library is not None or plugin or wanted.name in ort.get_available_providers()


def _missing(row: Provider) -> str:
    if platform.system() not in row.systems:
        return f"runs on {', '.join(row.systems)}"
    if row.package is None:
        return "in no package on PyPI; build ONNX Runtime with it"
    if row.module is not None:
        return f"pip install {row.package}"
    return f"pip install {row.package} in an environment of its own, and --python to it"


@dataclass(frozen=True)
class Listed:
    """A line of `edgeopt providers`."""

    name: str
    alias: str
    hardware: str
    state: str
    """State: "present", "plugin", "unusable" or "missing"."""
    devices: tuple[str, ...]
    why: str


def listed(python: str | None = None) -> tuple[list[Listed], str]:
    """(all providers of the table with their state in the interpreter, a description of its ONNX Runtime)."""
    with worker(Here(python), _PROBE_S) as w:
        hello = w.greet()
    with temporary_folder() as folder:
        onnx.save(onnx.parser.parse_model(_TINY), folder / "tiny.onnx")
        lines = [_listed(row, hello, python, folder / "tiny.onnx") for row in PROVIDERS]
    order = ("present", "plugin", "unusable", "missing")
    about = f"onnxruntime {hello['onnxruntime']}, Python {hello['python']} ({hello['executable']})"
    return sorted(lines, key=lambda x: order.index(x.state)), about


def _listed(row: Provider, hello: Mapping[str, Any], python: str | None, model: Path) -> Listed:
    """Try one provider in its own process, since a broken provider may crash the process."""
    state, why = "missing", _missing(row)
    devices = [d for d in (hello.get("devices") or ()) if d[0] == row.name]
    if row.name in (hello.get("providers") or ()) or row.module is not None:
        with worker(Here(python), _PROBE_S) as w:
            try:
                plugin = make_present(w, Requested(row.name), (hello.get("providers") or ()))
                devices = [d for d in w.ask("hello")["devices"] if d[0] == row.name]
                opened = w.ask("open", model=str(model), providers=[[row.name, dict(row.probe)]], plugin=plugin)
                state = "plugin" if plugin else "present"
                why = (
                    ""
                    if row.name in (opened.get("providers") or ())
                    else "loads, but takes no node of a small model as it is"
                )
            except WorkerError as e:
                if "pip install" not in str(e):
                    state, why = "unusable", str(e).splitlines()[0]
    return Listed(
        row.name, row.alias, row.hardware, state, tuple(f"{kind} ({vendor})" for _, kind, vendor in devices), why
    )
