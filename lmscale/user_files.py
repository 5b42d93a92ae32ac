"""Python files of the user's own: loaded under names that other processes can load them by.

A file may hold an experiment, an architecture or both. What it defines can be pickled, because a
process that loads the same file finds the same module name.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
import traceback
import types
from pathlib import Path

#: The loaded files: module name -> path.
_FILES: dict[str, str] = {}


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
