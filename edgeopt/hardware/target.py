"""Hardware targets: the grids supported by a device's kernels, the cost of its operators in float and in integers, and
the source of each fact.

Each target is a TOML file in `edgeopt/hardware/targets/`. Costs are picoseconds on one core, the sum of a part per MAC
and a part per output element: `float = [per MAC, per output element]`, `int = [per MAC, per output element]`. An
operator without a row has no useful integer kernel and stays float.
"""

from __future__ import annotations

import functools
import platform
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError

from edgeopt.errors import UsageError, lines, suggestion
from edgeopt.hardware.host import cpu_features
from edgeopt.numbers.grid import INT8, INT8_WEIGHT, UINT8, QType


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OpCost(_Facts):
    """Picoseconds per (MAC, output element) of one operator in float and in integers."""

    float_ps: tuple[NonNegativeFloat, NonNegativeFloat] = Field(alias="float")
    int_ps: tuple[NonNegativeFloat, NonNegativeFloat] = Field(alias="int")


class Target(_Facts):
    """A device family; see `edgeopt/hardware/targets/*.toml`."""

    name: str
    title: str
    activations: Literal["uint8", "int8"]
    saturates: bool = Field(description="u8*s8 pair sums saturate at 16 bits: weights are kept small enough")
    fp16_kernels: bool
    quantize_ps: NonNegativeFloat = Field(description="picoseconds an element of QuantizeLinear")
    dequantize_ps: NonNegativeFloat
    layout_ps: NonNegativeFloat = Field(
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
        return UINT8 if self.activations == "uint8" else INT8

    @property
    def weight_type(self) -> QType:
        """The grid of weights: int8, symmetric, without -128."""
        return INT8_WEIGHT


TargetLike = str | Path | Target


def _folder() -> Mapping[str, str]:
    files = resources.files("edgeopt.hardware").joinpath("targets")
    return {
        f.name.removesuffix(".toml"): f.read_text(encoding="utf-8")
        for f in sorted(files.iterdir(), key=lambda f: f.name)
        if f.name.endswith(".toml")
    }


def names() -> list[str]:
    """The names of all targets, `host` first."""
    return ["host", *_folder()]


def is_file(target: TargetLike) -> bool:
    """Whether `target` is a user's file, and not a name or a `Target`."""
    return isinstance(target, Path) or (isinstance(target, str) and target.endswith(".toml"))


def load(target: TargetLike) -> Target:
    """The target with that name or in that TOML file, or `target` itself if it is a `Target`; `host` is chosen by the
    features of this machine's CPU.

    Raises:
        UsageError: no such target, or a mistake in the file; the message gives the line.
    """
    if isinstance(target, Target):
        return target
    if is_file(target):
        return _read(Path(target))
    return _named(str(target))


@functools.cache
def _named(name: str) -> Target:
    texts = _folder()
    if name == "host":
        return _named(host())
    if name not in texts:
        known = ", ".join(names())
        raise UsageError(f"no target {name!r}{suggestion(name, names())} Known: {known}, or a .toml file of yours")
    return _parsed(name, texts[name], f"targets/{name}.toml")


def _read(path: Path) -> Target:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as e:
        raise UsageError(f"target {path}: cannot be read ({e})") from e
    return _parsed(path.stem, text, str(path))


def _parsed(name: str, text: str, place: str) -> Target:
    try:
        return Target.model_validate({"name": name, **tomllib.loads(text)})
    except ValidationError as e:
        raise UsageError("\n".join(_told(error, text, place) for error in e.errors()[:3])) from e
    except (ValueError, RecursionError) as e:
        raise UsageError(f"{place}: {e}") from e


def _told(error: Mapping[str, Any], text: str, place: str) -> str:
    """The message for a mistake in a target file, with its line and a suggestion."""
    loc = [str(part) for part in error["loc"]]
    model = OpCost if loc[:1] == ["cost"] and len(loc) > 2 else Target
    known = [f.alias or name for name, f in model.model_fields.items() if name != "name"]
    unknown = error["type"] == "extra_forbidden"
    message = f"no such key{suggestion(loc[-1], known)}" if unknown else str(error["msg"])
    return f"{place}:{lines.line_of(list(lines.rows(text)), loc)}: {'.'.join(loc)}: {message}"


def host() -> str:
    """The name of the target for this machine, chosen by CPU features and not by the CPU's name; the portable target
    for an unknown CPU.
    """
    machine, flags = platform.machine().lower(), cpu_features()
    if machine in ("aarch64", "arm64"):
        return "cpu-arm64"
    if flags & {"avx512_vnni", "avx_vnni", "avxvnni"}:
        return "cpu-x86-vnni"
    return "cpu-x86-avx2" if "avx2" in flags else "cpu-portable"
