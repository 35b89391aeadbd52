"""Hardware targets: which grids a device's kernels take, what its operators cost in float and in integers, and where
each fact comes from.

One TOML file a target, in `edgeopt/hardware/targets/`. Costs are picoseconds on one core: a + b with `float = [per MAC, per
output element]` and `int = [per MAC, per output element]`; an operator without a row has no integer kernel worth having
and stays float.
"""

from __future__ import annotations

import functools
import platform
import tomllib
from collections.abc import Mapping
from importlib import resources
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeopt.errors import UsageError, suggestion
from edgeopt.hardware.host import cpu_features
from edgeopt.numbers.grid import QType


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class OpCost(_Facts):
    """Picoseconds per (MAC, output element) of one operator in float and in integers."""

    float_ps: tuple[float, float] = Field(alias="float")
    int_ps: tuple[float, float] = Field(alias="int")


class Target(_Facts):
    """A device family; see `edgeopt/hardware/targets/*.toml`."""

    name: str
    title: str
    activations: Literal["uint8", "int8"]
    saturates: bool = Field(description="u8*s8 pair sums saturate at 16 bits: weights are kept small enough")
    fp16_kernels: bool
    quantize_ps: float = Field(description="picoseconds an element of QuantizeLinear")
    dequantize_ps: float
    layout_ps: float = Field(
        default=0.0, description="picoseconds an element of an image between the layouts of float and integer kernels"
    )
    margin: float = Field(
        default=0.1, ge=0, description="share by which integers must beat float, since they cost accuracy"
    )
    session: Mapping[str, str] = Field(
        default_factory=dict, description="ONNX Runtime session options the result needs"
    )
    sources: tuple[str, ...]
    cost: Mapping[str, OpCost]

    @property
    def activation_type(self) -> QType:
        """The grid of activations, asymmetric."""
        return (
            QType("uint8", 0, 255, symmetric=False)
            if self.activations == "uint8"
            else QType("int8", -128, 127, symmetric=False)
        )

    @property
    def weight_type(self) -> QType:
        """The grid of weights: int8, symmetric, without -128."""
        return QType("int8", -127, 127, symmetric=True)


def _folder() -> Mapping[str, str]:
    files = resources.files("edgeopt.hardware").joinpath("targets")
    return {
        f.name.removesuffix(".toml"): f.read_text(encoding="utf-8")
        for f in sorted(files.iterdir(), key=lambda f: f.name)
        if f.name.endswith(".toml")
    }


def names() -> list[str]:
    """The targets that `load` knows, `host` first."""
    return ["host", *_folder()]


@functools.cache
def load(name: str) -> Target:
    """The target called `name`; `host` is chosen by the features of this machine's CPU.

    Raises:
        UsageError: no such target.
    """
    if name == "host":
        return load(host())
    texts = _folder()
    if name not in texts:
        raise UsageError(f"no target {name!r}{suggestion(name, names())} Known: {', '.join(names())}")
    try:
        return Target.model_validate({"name": name, **tomllib.loads(texts[name])})
    except ValidationError as e:
        raise UsageError(f"targets/{name}.toml: {e}") from e


def host() -> str:
    """The name of the target that this machine is: by CPU features, never by its name; an unknown CPU gets the portable
    target.
    """
    machine, flags = platform.machine().lower(), cpu_features()
    if machine in ("aarch64", "arm64"):
        return "cpu-arm64"
    if flags & {"avx512_vnni", "avx_vnni", "avxvnni"}:
        return "cpu-x86-vnni"
    return "cpu-x86-avx2" if "avx2" in flags else "cpu-portable"
