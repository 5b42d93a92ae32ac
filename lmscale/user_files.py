"""Python files of the user's own: loaded under names that other processes can load them by.

A file may hold an experiment, an architecture or both. What it defines can be pickled, because a
process that loads the same file finds the same module name.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

#: The loaded files: module name -> path.
_FILES: dict[str, str] = {}
#: Module name -> digest of what was loaded.
_DIGESTS: dict[str, str] = {}


class UserFileError(ValueError):
    """A user's file that cannot be loaded; the message is one line with the file and the line."""


def load_file(path: Path) -> types.ModuleType:
    """Imports a file of the user's own; its architectures are registered.

    Its module name depends on its path alone, so that what it defines can be sent to other
    processes; see `loaded_files`.

    Raises:
      UserFileError: when the file raises an exception, or would end the process (`sys.exit`).
    """
    path = path.resolve()
    name = f"lmscale_file_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    # A path that ends in .py has a loader, whether there is such a file or not.
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserFileError(_where(path, error)) from error
    _FILES[name] = str(path)
    _DIGESTS[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:12]
    return module


def load_module(name: str) -> types.ModuleType:
    """Imports a module of the user's own by its name.

    Raises:
      UserFileError: when there is none, or it raises an exception.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserFileError(f"the module {name!r} cannot be imported: {error}") from error
    except (Exception, SystemExit) as error:
        # The innermost place that is not in the import system itself.
        places = [
            at.filename
            for at in traceback.extract_tb(error.__traceback__)
            if Path(at.filename).is_file() and at.filename not in (__file__, importlib.__file__)
        ]
        place = Path(places[-1] if places else name)
        raise UserFileError(_where(place, error)) from error


def loaded_files() -> list[str]:
    """The user's files that another process must load (`load_file`) to read our values."""
    return list(_FILES.values())


def code_digests() -> dict[str, str]:
    """File name -> digest of its content when it was loaded, of the user's files."""
    return {Path(_FILES[name]).name: digest for name, digest in _DIGESTS.items()}


def source_of(thing: Any) -> tuple[str, str] | None:
    """The file and the qualified name that a function or class is defined by; None where it has none.

    A file that is loaded again defines the same things, whatever its module is called.
    """
    thing = _definition(thing)
    code = getattr(thing, "__code__", None)
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    file = code.co_filename if code is not None else getattr(module, "__file__", None)
    name = getattr(thing, "__qualname__", None)
    return (str(file), name) if file and name else None


def _definition(thing: Any) -> Any:
    """The function or class behind a decorated function, a partial or an instance."""
    while isinstance(thing, functools.partial):
        thing = thing.func
    thing = inspect.unwrap(thing) if callable(thing) else thing
    return thing if hasattr(thing, "__qualname__") else type(thing)


def file_of(thing: Any) -> str | None:
    """The user's file that defines a function or class; None for what is not a user's."""
    found = source_of(thing)
    return found[0] if found is not None and found[0] in _FILES.values() else None


def place_of(error: BaseException, culprit: Any = None) -> str | None:
    """The innermost line of a user's file that an error came through, as "mine.py:31"; None for no file.

    Args:
      culprit: the user's function or class that is at fault where no frame is, such as one that has
        returned what it should not.
    """
    files = set(_FILES.values())
    frames = [at for at in traceback.extract_tb(error.__traceback__) if at.filename in files]
    if frames:
        return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    if (owner := file_of(culprit)) is None:
        return None
    code = getattr(_definition(culprit), "__code__", None)
    return Path(owner).name + ("" if code is None else f":{code.co_firstlineno}")


def fault_of(error: BaseException, culprit: Any = None) -> str | None:
    """An error of a user's code as a line: 'TypeError: ... (mine.py:31)'; None for an error of lmscale.

    It is the user's where a frame of a loaded file is in the traceback (`place_of`).
    """
    if (place := place_of(error, culprit)) is None:
        return None
    if isinstance(error, SystemExit):
        return f"it calls sys.exit ({place})"
    if isinstance(error, WrongReturnError):
        return f"{error} ({place})"
    words = " ".join(str(error).split())
    return (
        f"{type(error).__name__}: {words} ({place})"
        if words
        else f"{type(error).__name__} ({place})"
    )


class WrongReturnError(TypeError):
    """A user's function has returned something else than it should; the message says what."""


@contextlib.contextmanager
def told_by(
    make: Callable[[str], Exception], culprit: Any = None, *, also_ours: bool = False
) -> Iterator[None]:
    """Turns an error of a user's code into `make(line)`; see `fault_of`.

    Args:
      make: the error to raise instead.
      culprit: see `fault_of`.
      also_ours: whether errors that lmscale raises on purpose are turned too. Their line says already
        what is wrong, so that otherwise they pass as they are.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        ours = type(error).__module__.startswith("lmscale.")
        if ours and not also_ours and not isinstance(error, WrongReturnError):
            raise
        line = fault_of(error, culprit)
        if line is None:
            raise
        raise make(line) from error


def _where(path: Path, error: BaseException) -> str:
    """What went wrong in a user's file, and in which line of it, as one line."""
    lines = [
        at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == str(path)
    ]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    place = f"{path}, line {lines[-1]}" if lines else str(path)
    if isinstance(error, SystemExit):
        return f"{place}: it calls sys.exit; a file that is loaded must not end the process"
    words = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{place}: {type(error).__name__}: {words}"
