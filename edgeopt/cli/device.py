"""`edgeopt device`."""

from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict
from pathlib import Path

import click

from edgeopt.cli.show import print_table


@click.group()
def device() -> None:
    """Devices that models are measured on."""


@device.command()
@click.argument("name")
@click.option("--python", metavar="PATH", help="Its Python with onnxruntime. [default: python3]")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def check(name: str, python: str | None, form: str) -> None:
    """Reach a device, say what it lacks, and put its worker to the protocol. Ends with 1 if something is wrong.

    NAME is one of edgeopt.toml, or an address: local, ssh://user@board, exec:COMMAND.

    \b
    Example: edgeopt device check ssh://pi@raspberrypi.local
    """
    from edgeopt.profiling.devices import look

    found = look(name, python)
    if form == "json":
        click.echo(json.dumps({"ok": found.ok, **asdict(found)}, indent=2))
    else:
        rules = [
            ("ok" if not r.problem else "WRONG", r.rule + (f": {r.problem}" if r.problem else "")) for r in found.rules
        ]
        wrong = [("WRONG", found.problem)] if found.problem else []
        print_table([*found.facts, *rules, *wrong])
    sys.exit(0 if found.ok else 1)


@device.command()
@click.option("--listen", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: your network.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="Port of the pages. [default: any that is free]")
@click.option("--cert", type=click.Path(path_type=Path), help="Certificate of HTTPS, for threads and WebGPU.")
@click.option("--key", type=click.Path(path_type=Path), help="Its private key.")
def serve(listen: str, port: int, cert: Path | None, key: Path | None) -> None:
    """Show an address; the phone or laptop that opens it in its browser is a device until the page is closed.

    Measure there in another terminal: edgeopt profile model.onnx --device browser

    \b
    Example: edgeopt device serve --listen 0.0.0.0
    """
    if (cert is None) != (key is None):
        raise click.UsageError("--cert and --key go together")
    from edgeopt.runtime.serving import is_loopback, serving

    if not is_loopback(listen):
        click.echo("whoever has the address can be a device and sees the models that are measured there", err=True)
        if cert is None:
            click.echo(
                "over http a browser gives a page neither threads nor WebGPU: --cert and --key, or on Android"
                " adb reverse tcp:PORT tcp:PORT and localhost",
                err=True,
            )
    with serving(_told, listen, port, None if cert is None or key is None else (cert, key)):
        threading.Event().wait()


def _told(address: str, came: str) -> None:
    """Print who came, and the address that is free, as text and as a QR code."""
    import segno

    if came:
        click.echo(f"{came}\n")
    click.echo(f"open on a device: {address}")
    if sys.stdout.isatty():
        segno.make(address, error="L").terminal(compact=True)
    sys.stdout.flush()
