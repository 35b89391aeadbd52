"""The command `edgeopt`, also as `python -m edgeopt`: a signal ends it cleanly from its first import on."""

import contextlib
import os
import signal
import sys

_INTERRUPTED = 128 + signal.SIGINT  # exit code


def run() -> None:
    """Call `edgeopt.cli.main`; Ctrl-C, SIGTERM and SIGHUP end the process with 130 and without a traceback."""
    try:
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)  # SIGHUP is not on Windows
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores it
                signal.signal(number, signal.default_int_handler)
        from edgeopt.cli import main

        main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        _leave()
    except SystemExit as e:
        if e.code != _INTERRUPTED:
            raise
        _leave()


def _leave() -> None:
    """End at once: everything is put away, and threads that still work are not waited for."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # full, closed, or None
            stream.flush()
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    run()
