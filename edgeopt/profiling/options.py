"""The choices of `profile`, `compare` and the self-check, checked at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgeopt.errors import UsageError, suggestion
from edgeopt.graph.serialization import external_files, load
from edgeopt.profiling.arms import Arm, Preset, arms, preset
from edgeopt.quantization.prepare import RANDOM
from edgeopt.runtime.providers import parse

LEVELS = ("all", "extended", "basic", "none")


def check_margin(margin: float) -> None:
    """Refuse a margin that is no share.

    Raises:
        UsageError: says so.
    """
    if not 0 < margin < 1:
        raise UsageError(f"--margin {margin:g}: a share between 0 and 1, e.g. 3%")


@dataclass(frozen=True)
class ProfileOptions:
    """What can be chosen. providers: `NAME[:key=value,...]`; threads, batch, dims: swept; inputs: .npy files by input;
    data: samples as `quantize` reads them; rate: inferences a second; sustained_s: a time series instead; session: ONNX
    Runtime session options; freeze_dims: tell the runtime the sizes; python: the interpreter that runs the worker;
    plugins: provider libraries by name; timeout_s: of one answer of the worker; margin: of a verdict.
    """

    providers: tuple[str, ...] = ("cpu",)
    threads: tuple[int, ...] = (1,)
    batch: tuple[int, ...] = ()
    dims: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    inputs: Mapping[str, Path] = field(default_factory=dict)
    data: str | Path | None = None
    preprocess: str | None = None
    tokenizer: Path | None = None
    preset: str = "quick"
    seconds: float | None = None
    processes: int | None = None
    rate: float = 0.0
    sustained_s: float | None = None
    allow_fallback: bool = False
    session: Mapping[str, str] = field(default_factory=dict)
    level: str = "all"
    freeze_dims: bool = False
    python: str | None = None
    plugins: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 120.0
    margin: float = 0.03
    trials: int = 10

    def __post_init__(self) -> None:
        if not self.providers or not self.threads:
            raise UsageError("nothing to measure: at least one provider and one number of threads")
        if self.level not in LEVELS:
            raise UsageError(
                f"--level {self.level}: unknown{suggestion(self.level, LEVELS)} Known: {', '.join(LEVELS)}"
            )
        least = {"--threads": self.threads, "--batch": self.batch, "--trials": (self.trials,)}
        least |= {f"--dim {k}": v or (0,) for k, v in self.dims.items()}
        least |= {"--processes": (self.processes,)} if self.processes is not None else {}
        for name, numbers in least.items():
            if any(n < 1 for n in numbers):
                raise UsageError(f"{name} {','.join(map(str, numbers))}: at least 1")
        for name, seconds in (
            ("--seconds", self.seconds),
            ("--sustained", self.sustained_s),
            ("--timeout", self.timeout_s),
        ):
            if seconds is not None and not 0 < seconds < float("inf"):
                raise UsageError(f"{name} {seconds:g}: nothing would be measured; give some time")
        if not 0 <= self.rate < float("inf"):
            raise UsageError(f"--rate {self.rate:g}: inferences a second, above 0")
        check_margin(self.margin)
        if self.data is not None and (self.inputs or self.data == RANDOM):
            raise UsageError(
                "--data gives every input of a sample: leave --input out"
                if self.inputs
                else "--data random: leave it out"
            )
        self.looking  # noqa: B018  (an unknown preset is told now)

    @property
    def looking(self) -> Preset:
        """The preset with what was chosen apart from it."""
        chosen = preset(self.preset)
        if self.seconds is not None:
            chosen = replace(chosen, seconds=self.seconds)
        if self.processes is not None:
            chosen = replace(chosen, processes=self.processes)
        if self.sustained_s is not None:
            long = preset("sustained")
            chosen = replace(long, sustained_s=self.sustained_s, block_s=min(long.block_s, self.sustained_s / 20))
        return chosen

    def reads(self, models: list[Path]) -> tuple[Path, ...]:
        """The files that a run reads."""
        data = [] if self.data is None else [Path(self.data)]
        beside = [f for m in models if m.is_file() for f in external_files(load(m))]
        tokenizer = [] if self.tokenizer is None else [Path(self.tokenizer)]
        return (*models, *beside, *self.inputs.values(), *data, *tokenizer)

    def arms(self, models: list[Path]) -> list[Arm]:
        """Every combination to measure."""
        asked = [parse(p, self.plugins) for p in self.providers]
        requested = [p for i, p in enumerate(asked) if p not in asked[:i]]
        threads, batches = tuple(dict.fromkeys(self.threads)), tuple(dict.fromkeys(self.batch)) or (None,)
        found = arms(models, requested, threads, batches, self.dims)
        common = {
            "session": self.session,
            "level": self.level,
            "rate": self.rate,
            "python": self.python,
            "timeout_s": self.timeout_s,
        }
        return [replace(a, **common) for a in found]  # type: ignore[arg-type]
