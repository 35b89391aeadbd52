"""All errors that edgeopt raises on purpose.

    EdgeoptError            exit code 3
    ├── UsageError          exit code 2   an option, a name or a combination of options is not valid
    ├── ModelError                        the input model cannot be read, is not valid, or is not supported
    ├── DataError                         the samples cannot be read or do not fit the model
    ├── CalibrationError                  a statistic cannot be computed: NaN, infinity, a value that no sample reached
    ├── ValidityError                     the result failed a check and was not written
    ├── UnchangedError      exit code 1   there was nothing to do, and nothing was written
    ├── WorkerError                       the measured process returned an error, died or did not answer
    │   └── LostError                     its device cannot be reached, or not any more
    ├── ComparabilityError  exit code 5   two stored measurements cannot be compared
    └── UntoldError         exit code 6   the result is written, but stdout or a report cannot be

A message says what is wrong, where, and what to do. A missed threshold is not an error: a result that misses a required
figure is written, and the command line ends with exit code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

INTERRUPTED = 130  # exit code


class EdgeoptError(Exception):
    """Base class: edgeopt rejected a request or could not complete it; the message is written for the user."""

    exit_code = 3


class UsageError(EdgeoptError):
    """An option, a name or a combination of options is not valid."""

    exit_code = 2


class ModelError(EdgeoptError):
    """The model cannot be read, is not valid, or contains something that is not supported."""


class DataError(EdgeoptError):
    """The samples cannot be read or do not fit the model."""


class CalibrationError(EdgeoptError):
    """A statistic of an activation cannot be computed."""


class ValidityError(EdgeoptError):
    """The result failed a check; nothing was written."""


class UnchangedError(EdgeoptError):
    """The result would be what it was made of; nothing was written."""

    exit_code = 1


class WorkerError(EdgeoptError):
    """The measured process returned an error, died, or did not answer in time."""


class LostError(WorkerError):
    """A device cannot be reached, or the connection to it ended."""


class ComparabilityError(EdgeoptError):
    """Stored measurements were not made under the same conditions."""

    exit_code = 5


class UntoldError(EdgeoptError):
    """The work is done and its result written, but what tells of it cannot be written."""

    exit_code = 6


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` for a misspelt `name`, or a full stop if no known name is similar."""
    by_lower = {k.lower(): k for k in known}
    close = difflib.get_close_matches(name.lower(), list(by_lower), n=1, cutoff=0.5)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else "."


def extra(name: str) -> str:
    """How the extra `name` of edgeopt is installed: from a clone, until an index has a release."""
    return f"in a clone of edgeopt: pip install '.[{name}]'"
