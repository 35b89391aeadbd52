"""The command `edgeopt`, also as `python -m edgeopt`: a signal ends it cleanly from its first import on."""

import contextlib
import gc
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

_INTERRUPTED = 128 + signal.SIGINT  # exit code
_GARBAGE = 200_000  # new objects between two searches for garbage: graphs are many objects and hardly any garbage
_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")  # SIGHUP is not on Windows
_AGAIN_S = 0.05  # until an interrupt that was swallowed is raised again
_seen: list[int] = []  # signals that were received


def run() -> None:
    """Call `edgeopt.cli.main`; Ctrl-C, SIGTERM and SIGHUP end the process with 130 and without a traceback."""
    try:
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, _interrupt)
        sys.unraisablehook = _unraisable
        with contextlib.suppress(OSError):  # the folder is gone
            if sys.path[0] in ("", str(Path.cwd())):  # as `python -m` has it: no library is taken from there
                del sys.path[0]
        from edgeopt.cli import main

        gc.set_threshold(_GARBAGE)
        main()
    except KeyboardInterrupt:
        _leave("interrupted\n")
    except SystemExit as e:
        if e.code == _INTERRUPTED or (_seen and e.code):
            _leave()
        raise
    except BaseException:
        if _seen:  # what was interrupted made an error of its own of it
            _leave("interrupted\n")
        raise
    finally:
        for name in _SIGNALS:  # it is done: what comes now changes no exit code
            if hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _seen.append(number)
    while frame is not None and not frame.f_code.co_qualname.startswith("ExtensionFileLoader."):
        frame = frame.f_back
    if frame is None:
        raise KeyboardInterrupt
    _later(number)  # C++ that is being imported aborts the process or makes an error of its own of an interrupt


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """An interrupt inside a destructor or a weak reference's callback is dropped by Python: raise it again."""
    if _seen and isinstance(lost.exc_value, KeyboardInterrupt):
        _later(_seen[-1])
    else:
        sys.__unraisablehook__(lost)


def _later(number: int) -> None:
    """The signal again, a moment from now."""
    again = threading.Timer(_AGAIN_S, _wake, [threading.get_ident(), number])
    again.daemon = True
    again.start()


def _wake(thread: int, number: int) -> None:
    """A signal to a thread, also one that sleeps (on Windows a sleep ends first)."""
    if hasattr(signal, "pthread_kill"):
        signal.pthread_kill(thread, number)
    else:
        signal.raise_signal(number)


def _leave(text: str = "") -> None:
    """End at once: everything is put away, and threads that still work are not waited for."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # full, closed, or None
        sys.stderr.write(text)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    run()
