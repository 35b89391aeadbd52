"""Functions of the user: how they are imported, and how their errors are converted."""

from __future__ import annotations

import contextlib
import importlib
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgeopt.errors import EdgeoptError, UsageError

_OURS = Path(__file__).resolve().parents[1]
_OTHERS = ("site-packages", "importlib")


@contextlib.contextmanager
def foreign(what: str, error: type[EdgeoptError] = UsageError) -> Iterator[None]:
    """Run user code: whatever it raises, `sys.exit` included, becomes an `error` that names `what`, file and line.

    A `sys.exit(0)` there must not end a build as passed.

    Raises:
        EdgeoptError: raised in the block, unchanged, or converted from another exception.
    """
    try:
        yield
    except (EdgeoptError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as e:
        frames = traceback.extract_tb(e.__traceback__)
        theirs = [f for f in frames if not any(p == _OURS or p.name in _OTHERS for p in Path(f.filename).parents)]
        where = f" ({Path(theirs[-1].filename).name}, line {theirs[-1].lineno})" if theirs else ""
        text = f"it called sys.exit({e.code!r})" if isinstance(e, SystemExit) else f"{type(e).__name__}: {e}"
        raise error(f"{what}: {text}{where}") from e


def named(source: str, option: str, root: Path | None = None) -> Any:
    """Import the object `package.module:name`; modules are also searched in `root` (default: the working directory).

    Raises:
        UsageError: it cannot be imported; the message names the `option`.
    """
    module, _, name = source.partition(":")
    if module.endswith(".py"):
        meant = f"{Path(module).stem}:{name or 'function'}"
        raise UsageError(f"{option} {source}: a file and no module; write package.module:function, as {meant}")
    here = str(root or Path.cwd())
    if root is not None:
        _forget(module.partition(".")[0], root)
    sys.path.insert(0, here)
    try:
        with foreign(f"{option} {source}"):
            found = importlib.import_module(module)
        return getattr(found, name)
    except (AttributeError, UsageError) as e:
        if isinstance(e.__cause__, SystemExit):
            raise
        said = str(e).removeprefix(f"{option} {source}: ")
        raise UsageError(f"{option} {source}: {said}; write package.module:function") from e
    finally:
        if here in sys.path:  # the module may have changed sys.path
            sys.path.remove(here)


def _forget(name: str, root: Path) -> None:
    """Remove the module `name` from `sys.modules` if it was imported from elsewhere and `root` has one of that name."""
    known, own = sys.modules.get(name), root / name
    if known is None or not (own.is_dir() or own.with_name(f"{name}.py").is_file()):
        return
    places = [known.__file__] if getattr(known, "__file__", None) else list(getattr(known, "__path__", ()))
    if not any(Path(str(p)).resolve().is_relative_to(root.resolve()) for p in places):
        for loaded in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
            del sys.modules[loaded]
    importlib.invalidate_caches()
