"""Hardware targets: the grids supported by a device's kernels, where integers pay on it, what it demands of a file, how
a file is checked in its own runtime, and the source of each fact.

Each target is a TOML file in `edgeopt/hardware/targets/`, or a user's own. Its variants (`[variants.a16]`, asked for as
`name:a16`) are the tables that differ; so is a file that is `like` another target.
"""

from __future__ import annotations

import functools
import platform
import tomllib
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, ValidationError

from edgeopt.errors import UsageError, lines, suggestion
from edgeopt.hardware.host import cpu_features
from edgeopt.numbers.grid import INT8_WEIGHT, STORAGE, QType

_INT8_KEPT, _EXACT = "session.qdqisint8allowed", "session.x64quantprecision"


class _Facts(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


_Type = Literal["uint8", "int8", "uint16", "int16"]


class Grid(_Facts):
    """What integers the kernels take."""

    weights: tuple[str, ...] = Field(default=("int8", "int4"), description="types of weights that a file may have")

    activations: _Type
    wide: _Type | None = Field(
        default=None, description="a wider type in which it computes too, for activations that lose most"
    )
    symmetric: bool = Field(default=False, description="activations with a zero point of 0")
    power_of_two: bool = Field(default=False, description="scales that are powers of two")
    per_channel: bool = Field(default=True, description="weights with a scale for each output channel")
    bias: Literal["int32", "float"] = "int32"
    saturates: bool = Field(
        default=False, description="u8*s8 pair sums saturate at 16 bits: weights are kept small enough"
    )
    fixed: Mapping[str, Mapping[_Type, tuple[float, int]]] = Field(
        default_factory=dict, description="(scale, zero point) of the outputs of an operator, by type of activations"
    )


class Placement(_Facts):
    """Which nodes become integers."""

    rule: Literal["cut", "all"] = Field(
        default="cut", description="where integers pay by the costs, or all nodes that the device has kernels for"
    )
    operators: tuple[str, ...] = Field(
        default=(), description="operators with integer kernels, for the rule `all`; MatMul.dynamic: of two activations"
    )
    clamps: Literal["absorb", "keep"] = Field(
        default="absorb", description="whether a grid replaces the Relu or Clip before it"
    )
    float_output: bool = Field(default=True, description="whether Gemm and MatMul can give floats")
    margin: float = Field(
        default=0.1, ge=0, description="share by which integers must beat float, since they cost accuracy"
    )


class Demands(_Facts):
    """What the device demands of a file."""

    shapes: Literal["any", "fixed"] = "any"
    mode: Literal["auto", "fp16"] = Field(default="auto", description="what the mode auto makes")
    lowest_opset: int = Field(default=1, description="to which older models are raised")
    highest_opset: int | None = None
    dynamic: bool = Field(default=True, description="products whose inputs get their scale at run time run well")
    stored: bool = Field(default=True, description="weights that are only stored in integers are folded at load")
    grids: bool = Field(default=True, description="QuantizeLinear and DequantizeLinear are computed, and rightly")
    gelu: bool = Field(default=False, description="Erf is taken as a part of Gelu only, which is fused before")
    zero_points: bool = Field(default=False, description="every DequantizeLinear has a third input")
    rewritten: bool = Field(
        default=True, description="whether slow operators of ONNX Runtime's CPU provider are written as fast ones"
    )


class Check(_Facts):
    """How a file is checked in the target's own runtime."""

    kind: Literal["cpu", "provider", "openvino", "rknn", "node", "chromium", "emulated", "rules"] = Field(
        default="cpu", description="cpu: here; emulated: here too, where this machine is the target"
    )
    packages: tuple[str, ...] = Field(default=(), description="what is installed for it, as pip or npm takes it")
    provider: str = Field(default="", description="of ONNX Runtime, with the options that are always given")
    threads: Annotated[int, Field(ge=1)] = Field(default=1, description="of onnxruntime-web")
    table: Literal["nnapi", "coreml"] | None = Field(
        default=None, description="of operators in ONNX Runtime's package, for what is checked by rules"
    )
    timed: bool = Field(default=False, description="times there tell those of devices: what is slower is not kept")
    cpu_operators: tuple[str, ...] = Field(default=(), description="operators that may stay on the CPU")
    partitions: int | None = Field(default=None, description="parts of the graph on the device, at most")
    samples: Annotated[int, Field(ge=1)] = 8
    loss_db: NonNegativeFloat = Field(default=2.0, description="largest loss of SQNR against the CPU provider")


class OpCost(_Facts):
    """Picoseconds on one core per (MAC, output element) of one operator in float and in integers."""

    float_ps: tuple[NonNegativeFloat, NonNegativeFloat] = Field(alias="float")
    int_ps: tuple[NonNegativeFloat, NonNegativeFloat] = Field(alias="int")


class Target(_Facts):
    """A device family; see `edgeopt/hardware/targets/*.toml`. An operator without a row in `cost` has no useful integer
    kernel by the rule `cut` and stays float.
    """

    name: str
    title: str
    fp16_kernels: bool
    grid: Grid
    place: Placement = Placement()
    demands: Demands = Demands()
    check: Check = Check()
    quantize_ps: NonNegativeFloat = Field(default=0.0, description="picoseconds an element of QuantizeLinear")
    dequantize_ps: NonNegativeFloat = 0.0
    layout_ps: NonNegativeFloat = Field(
        default=0.0, description="picoseconds an element of an image between the layouts of float and integer kernels"
    )
    session: Mapping[str, str] = Field(
        default_factory=dict, description="ONNX Runtime session options the result needs"
    )
    sources: tuple[str, ...]
    cost: Mapping[str, OpCost] = Field(default_factory=dict)

    @property
    def activation_type(self) -> QType:
        """The grid of activations."""
        return self._type(self.grid.activations)

    @property
    def wide_type(self) -> QType | None:
        """The wider grid of activations, None if there is none."""
        known = self.grid.wide in (None, self.grid.activations)
        return None if known or self.grid.wide is None else self._type(self.grid.wide)

    def _type(self, name: str) -> QType:
        return QType(name, *STORAGE[name], self.grid.symmetric, self.grid.power_of_two)

    @property
    def weight_type(self) -> QType:
        """The grid of weights: int8, symmetric, without -128."""
        return replace(INT8_WEIGHT, power_of_two=self.grid.power_of_two)


TargetLike = str | Path | Target
_TABLES: Mapping[str, type[BaseModel]] = {
    "grid": Grid,
    "place": Placement,
    "demands": Demands,
    "check": Check,
    "cost": OpCost,
}


def _folder() -> Mapping[str, str]:
    files = resources.files("edgeopt.hardware").joinpath("targets")
    return {
        f.name.removesuffix(".toml"): f.read_text(encoding="utf-8")
        for f in sorted(files.iterdir(), key=lambda f: f.name)
        if f.name.endswith(".toml")
    }


def names() -> list[str]:
    """The names of all targets, `host` first, each followed by those of its variants."""
    found = ["host"]
    for name, text in _folder().items():
        found += [name, *(f"{name}:{variant}" for variant in tomllib.loads(text).get("variants", {}))]
    return found


def is_file(target: TargetLike) -> bool:
    """Whether `target` is a user's file, and not a name or a `Target`."""
    return isinstance(target, Path) or (isinstance(target, str) and ".toml" in target)


def file_of(target: TargetLike) -> Path:
    """The user's file, without the name of a variant behind it."""
    path, found, _ = str(target).partition(".toml:")
    return Path(f"{path}.toml") if found else Path(path)


def load(target: TargetLike) -> Target:
    """The target with that name or in that TOML file, or `target` itself if it is a `Target`; `host` is chosen by the
    features of this machine's CPU.

    Raises:
        UsageError: no such target, or a mistake in the file; the message gives the line.
    """
    if isinstance(target, Target):
        return target
    if is_file(target):
        return _read(file_of(target), str(target).partition(".toml:")[2])
    return _named(str(target))


@functools.cache
def _named(name: str) -> Target:
    texts = _folder()
    if name == "host":
        return _named(host())
    if name not in names():
        known = ", ".join(names())
        raise UsageError(f"no target {name!r}{suggestion(name, names())} Known: {known}, or a .toml file of yours")
    base, _, variant = name.partition(":")
    return _parsed(base, texts[base], f"targets/{base}.toml", variant)


def _read(path: Path, variant: str) -> Target:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as e:
        raise UsageError(f"target {path}: cannot be read ({e})") from e
    return _parsed(path.stem, text, str(path), variant)


def _parsed(name: str, text: str, place: str, variant: str = "") -> Target:
    try:
        found = _complete({"name": name, **tomllib.loads(text)})
        variants = found.pop("variants", {})
        if not isinstance(variants, dict) or not all(isinstance(v, dict) for v in variants.values()):
            raise UsageError(f"{place}: variants: a table for each variant, as [variants.NAME]")
        if variant and variant not in variants:
            raise UsageError(f"{place}: no variant {variant!r}{suggestion(variant, variants)}")
        if variant:
            found = _merged({**found, "name": f"{name}:{variant}"}, variants[variant])
        return Target.model_validate(found)
    except ValidationError as e:
        raise UsageError("\n".join(_told(error, text, place) for error in e.errors()[:3])) from e
    except (ValueError, RecursionError) as e:
        raise UsageError(f"{place}: {e}") from e


def _complete(found: Mapping[str, Any]) -> dict[str, Any]:
    """`found` over the tables of the target that it is `like`."""
    like = found.get("like")
    if like is None:
        return dict(found)
    if like not in names():
        raise UsageError(f"like = {like!r}: no target{suggestion(str(like), names())}")
    base = _named(str(like)).model_dump(by_alias=True, exclude_unset=True)
    return _merged(base, {k: v for k, v in found.items() if k != "like"})


def _merged(found: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`found` with the values of `more`, table by table."""
    tables = {
        k: _merged(found[k], v) for k, v in more.items() if isinstance(v, Mapping) and isinstance(found.get(k), Mapping)
    }
    return {**found, **more, **tables}


def _told(error: Mapping[str, Any], text: str, place: str) -> str:
    """The message for a mistake in a target file, with its line and a suggestion."""
    loc = [str(part) for part in error["loc"]]
    model = _TABLES.get(loc[0], Target) if len(loc) > 1 else Target
    known = [f.alias or name for name, f in model.model_fields.items() if name != "name"]
    unknown = error["type"] == "extra_forbidden"
    message = f"no such key{suggestion(loc[-1], known)}" if unknown else str(error["msg"])
    return f"{place}:{lines.line_of(list(lines.rows(text)), loc)}: {'.'.join(loc)}: {message}"


def arithmetic(target: Target) -> dict[str, str]:
    """Session options with which ONNX Runtime's CPU provider computes here what `target` computes: its own, and exact
    sums if this machine saturates and the target does not. Those are sums of uint8 kernels; with int8 ones kept, there
    is no kernel for them.
    """
    if target.grid.saturates or not load(host()).grid.saturates:
        return dict(target.session)
    return {**{k: v for k, v in target.session.items() if k != _INT8_KEPT}, _EXACT: "1"}


def host() -> str:
    """The name of the target for this machine; see `of_machine`."""
    return of_machine(platform.machine(), cpu_features())


def of_machine(machine: str, flags: frozenset[str]) -> str:
    """The name of the target for a machine, chosen by CPU features and not by the CPU's name; the portable target if
    it is unknown.
    """
    if machine.lower() in ("aarch64", "arm64"):
        return "cpu-arm64"
    if flags & {"avx512_vnni", "avx_vnni", "avxvnni"}:
        return "cpu-x86-vnni"
    return "cpu-x86-avx2" if "avx2" in flags else "cpu-portable"
