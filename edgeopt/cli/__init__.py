"""The command line: click commands, one for each public function, without logic of their own. Results go to stdout,
progress and notes to stderr.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from pathlib import Path
from typing import TextIO, cast

import click

from edgeopt import __version__
from edgeopt.errors import INTERRUPTED, EdgeoptError, UntoldError
from edgeopt.numbers.words import printable

_COMMANDS = {  # module and help of each command, which is a function of that name
    "quantize": ("quantize", "Make a checked int8, fp16 or int4 file of a float model."),
    "distill": ("distill", "Fine-tune a small model against a larger one."),
    "shrink": ("shrink", "Make a student: the same network with fewer channels or blocks."),
    "profile": ("profile", "Latency, cold start, memory, size and placement, with intervals."),
    "compare": ("profile", "Models against the first, interleaved, with a verdict."),
    "inspect": ("inspect", "Show inputs, operators, sizes, and what each target would quantize."),
    "data": ("data", "Show what a model will be given of a folder of samples."),
    "sensitivity": ("sensitivity", "Which nodes lose the accuracy in int8, and why."),
    "check": ("check", "Is a file right for a target: by rules, and run in its own runtime."),
    "env": ("check", "Make the environment in which files are checked for a target."),
    "simplify": ("simplify", "Fold and fuse a float model, checked numerically."),
    "init": ("run", "Write a commented edgeopt.toml that runs as it is."),
    "run": ("run", "Build, measure and judge the variants of edgeopt.toml."),
    "gate": ("run", "Judge stored results again, by the gates as they are now."),
    "baseline": ("run", "Keep a run as the release that regressions are judged against."),
    "report": ("run", "The page of stored results, with the trend of several."),
    "verify": ("run", "Check released files against their manifest."),
    "export": ("export", "A torch module as a checked ONNX file."),
    "device": ("device", "Look at a device before models are measured there."),
    "targets": ("targets", "List the hardware targets."),
    "providers": ("providers", "List execution providers: present, plugins, what a package would add."),
    "schema": ("schema", "Print the JSON Schema of a file that edgeopt reads or writes."),
}


class _Commands(click.Group):
    """A group whose commands are imported when they are called, so that --help is fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        if name is not None:
            command = getattr(importlib.import_module(f"edgeopt.cli.{_COMMANDS[name][0]}"), name)
        return name, command, rest


@click.group(
    cls=_Commands,
    commands={name: click.Command(name, short_help=words) for name, (_, words) in _COMMANDS.items()},
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, prog_name="edgeopt")
def cli() -> None:
    """Make a trained ONNX model fit for edge hardware, with proof.

    \b
    Examples:
      edgeopt quantize model.onnx --calib images/          checked int8 file model.int8.onnx beside it
      edgeopt profile model.onnx --provider cpu            latency, memory, size, placement
      edgeopt compare model.onnx model.int8.onnx           is it faster, and how far off
      edgeopt inspect model.onnx                           what is in it, what could be integers
      edgeopt data images/ --model model.onnx              what the model is given, before anything is spent
      edgeopt simplify model.onnx -o small.onnx            the same numbers from fewer nodes
      edgeopt init model.onnx --calib images/              edgeopt.toml: variants and gates; then edgeopt run

    \b
    Exit codes: 0 done; 1 a demanded figure was missed, the file is written; 2 usage; 3 the model, the data, a provider
    or a check failed; 4 inconclusive, where that was asked for; 5 results are not comparable; 6 done and
    written, but stdout or the report cannot be; 130 interrupted.
    """


def main(argv: list[str] | None = None) -> None:
    """Run the command line and end the process with its exit code."""
    out, err = sys.stdout, sys.stderr
    told = _Stream(out or _nowhere())
    try:
        sys.stderr = cast("TextIO", _Stream(sys.stderr or _nowhere()))
        sys.stdout = cast("TextIO", told)
        if logging.lastResort is not None:
            logging.lastResort.setFormatter(_Harmless())  # libraries may log content of files
        code = cli.main(argv, prog_name="edgeopt", standalone_mode=False)
        told.flush()
        if not code and (out is None or told.failed is not None):
            why = "is closed" if told.failed is None else f"cannot be written: {told.failed.strerror or told.failed}"
            raise UntoldError(f"done, but stdout {why}")
    except click.exceptions.Abort:
        click.echo("interrupted; nothing half done was left behind", err=True)
        sys.exit(INTERRUPTED)
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except EdgeoptError as e:
        click.echo(f"edgeopt: {printable(str(e))}", err=True)
        sys.exit(e.exit_code)
    except (OSError, MemoryError) as e:
        click.echo(f"edgeopt: {printable(str(e)) or 'out of memory'}", err=True)
        sys.exit(EdgeoptError.exit_code)
    finally:
        sys.stdout, sys.stderr = out, err
        if told.failed is not None:
            _forget_stdout()
    sys.exit(code if isinstance(code, int) else 0)


class _Harmless(logging.Formatter):
    """Log lines without the control characters that files may contain."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


class _Stream:
    """A stream that keeps the first write error instead of raising it: a closed pipe (`| head`) or a full disk changes
    no verdict.
    """

    def __init__(self, raw: TextIO) -> None:
        self._raw = raw
        self.failed: OSError | None = None

    def __getattr__(self, name: str) -> object:
        return getattr(self._raw, name)

    def write(self, text: str) -> int:
        if self.failed is None:
            try:
                self._raw.write(text)
            except OSError as e:
                self.failed = e
        return len(text)

    def flush(self) -> None:
        if self.failed is None:
            try:
                self._raw.flush()
            except OSError as e:
                self.failed = e


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def _forget_stdout() -> None:
    """Redirect stdout to the null device, so that a full disk or a closed pipe does not fail once more at exit."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
