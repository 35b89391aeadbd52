"""The command `edgeopt`, also as `python -m edgeopt`: a signal ends it cleanly from its first import on."""

import signal
import sys

from edgeopt.errors import INTERRUPTED


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
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    run()
