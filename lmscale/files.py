"""The one door to small files of ours: whole or absent, typed and bounded, named when damaged.

A reader, or a kill, sees a file whole or not at all. Paths may be remote (gs://). Of processes that
train together only the first writes. A sealed file carries a digest of its own content, under the
key "digest"; files of earlier versions have none and are read unchecked.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from lmscale.parallel.distributed import is_first

#: Bytes of the largest JSON file that is read: some times the largest result that there is.
LARGEST_JSON = 1 << 28
#: Key of the digest in a sealed file.
SEAL = "digest"
#: Digits of the longest whole number that is read; longer ones are beyond any float.
_MOST_DIGITS = 300
#: Errors of a disk or a file system, as opposed to those of a path that a user gave.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
#: How libraries word them that raise errors of their own.
_DISK_WORDS = tuple(os.strerror(number) for number in _DISK_ERRORS if number != errno.EPERM)


class DamagedError(ValueError):
    """A file of ours that does not hold what was written; one line: its path, the fault, what to do."""

    def __init__(self, path: epath.PathLike, fault: str, remedy: str = ""):
        super().__init__(f"{path} is damaged: {fault}" + (f"; {remedy}" if remedy else ""))
        self.path, self.fault = str(path), fault


class DiskError(RuntimeError):
    """A store that can't be written: disk full, read-only, no permission. One line, with the path."""


def disk_fault(error: BaseException, path: epath.PathLike) -> str | None:
    """What is wrong with the disk, in one line, if that is what an error is about.

    Args:
      error: whatever was raised.
      path: to be named where the error names no path.
    """
    if isinstance(error, DiskError):
        return str(error)
    if isinstance(error, OSError):
        if error.errno not in _DISK_ERRORS:
            return None
        return say_os_error(error) if error.filename else f"{path}: {say_os_error(error)}"
    # Orbax and TensorStore raise errors of other types, with the system's words in them.
    text = str(error)
    words = next((words for words in _DISK_WORDS if words in text), None)
    if words is None:
        return None
    named = re.search(r'"(/[^"]+?)/?"', text)
    return f"{named[1] if named else path}: {words}"


def say_os_error(error: OSError) -> str:
    """An operating system's error in one line: the path, then what is wrong with it."""
    words = error.strerror or (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{os.fspath(error.filename)}: {words}" if error.filename else words


def cache_folder() -> Path:
    """Where what can be made again is kept: compiled programs, compiled plans, measured speeds."""
    return Path(os.environ.get("LMSCALE_CACHE") or Path.home() / ".cache" / "lmscale")


def read_json(
    path: epath.Path,
    fields: Mapping[str, type | tuple[type, ...]] | None = None,
    remedy: str = "",
) -> dict[str, Any] | None:
    """The object in a JSON file, or None if there is no file.

    Args:
      path: the file.
      fields: names that the object must have, and the types of their values.
      remedy: what a user can do about a damaged file, for the error.

    Raises:
      DamagedError: when the file holds anything but such an object of finite numbers, or its seal
        doesn't match its content.
    """
    data = read_bytes(path)
    return None if data is None else parse_json(data, path, fields, remedy)


def read_bytes(path: epath.Path) -> bytes | None:
    """The content of a small file, or None if there is none."""
    try:
        # Asked of the open file, so that nothing can come between.
        with epath.Path(path).open("rb") as file:
            return file.read(LARGEST_JSON + 1)
    except FileNotFoundError:
        return None


def parse_json(
    data: bytes | str,
    path: epath.PathLike,
    fields: Mapping[str, type | tuple[type, ...]] | None = None,
    remedy: str = "",
    *,
    allow_nan: bool = False,
) -> dict[str, Any]:
    """The object in the content of a JSON file; see `read_json`.

    Args:
      allow_nan: takes NaN and Infinity, which earlier versions wrote into metrics.jsonl, as null.
    """

    def damaged(fault: str) -> DamagedError:
        return DamagedError(path, fault, remedy)

    if len(data) > LARGEST_JSON:
        raise damaged(f"it is larger than {LARGEST_JSON:,} bytes")
    try:
        values = json.loads(
            data,
            parse_constant=(lambda _: None) if allow_nan else _no_constant,
            parse_float=_finite,
            parse_int=_short,
        )
    except RecursionError:
        raise damaged("its JSON is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise damaged(f"byte {error.start} is no text") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise damaged(
            f"it is no JSON ({error.msg} at {where})" if data else "it is empty"
        ) from None
    except ValueError as error:
        raise damaged(str(error)) from None
    # An escape of half a character, which no file and no page can hold.
    escape = r"(?i)\\ud[89a-f]"
    if re.search(escape.encode(), data) if isinstance(data, bytes) else re.search(escape, data):
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise damaged("it holds half a character (a lone surrogate)") from None
    if not isinstance(values, dict):
        raise damaged(f"it holds a JSON {_json_name(values)}, not an object")
    check_fields(values, path, fields or {}, remedy)
    if SEAL in values:
        found = values.pop(SEAL)
        if found != _seal(values):
            raise damaged("its digest doesn't match its content")
    return values


def check_fields(
    values: Mapping[str, Any],
    path: epath.PathLike,
    fields: Mapping[str, type | tuple[type, ...]],
    remedy: str = "",
) -> None:
    """Raises `DamagedError` unless an object of a JSON file has these fields; see `read_json`."""
    for name, kinds in fields.items():
        if name not in values:
            raise DamagedError(path, f"it has no {name!r}", remedy)
        if not _is_of(values[name], kinds):
            fault = f"its {name!r} is a JSON {_json_name(values[name])}"
            raise DamagedError(path, fault, remedy)


def write_json(path: epath.Path, values: Any, *, sealed: bool = False) -> None:
    """Writes JSON that any reader takes.

    Args:
      path: the file.
      values: JSON-ready; of a sealed file an object.
      sealed: adds the digest of the content, which `read_json` checks and leaves out.

    Raises:
      ValueError: when a number is not finite.
    """
    if sealed:
        values = seal(values)
    write_atomically(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """An object with the digest of its content, which `read_json` checks and leaves out."""
    content = {name: value for name, value in values.items() if name != SEAL}
    return {**content, SEAL: _seal(content)}


def write_atomically(path: epath.Path, content: str | bytes) -> None:
    """Replaces a file in one step: the old one stays until the new one is on disk."""
    if not is_first():
        return
    data = content.encode() if isinstance(content, str) else content
    if "://" in str(path):
        # An object store's writes are atomic by themselves.
        epath.Path(path).write_bytes(data)
        return
    # Several machines, processes and threads may share the folder.
    unique = f"{platform.node()}.{os.getpid()}.{threading.get_ident()}"
    temporary = f"{path}.{unique}.tmp"
    try:
        with _named_errors(path), open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink(missing_ok=True)
        raise


def append(path: epath.Path, text: str) -> None:
    """Adds to the end of a file, and returns when that is on disk."""
    if not text or not is_first():
        return
    with _named_errors(path), path.open("a") as file:
        file.write(text)
        file.flush()
        if "://" not in str(path):
            os.fsync(file.fileno())


def digest(data: bytes | str) -> str:
    """The BLAKE2b digest of 16 bytes, in hexadecimal: tells damage apart, not malice."""
    data = data.encode() if isinstance(data, str) else data
    return new_digest(data).hexdigest()


def new_digest(data: bytes = b"") -> hashlib.blake2b:
    """The digest of data that come in parts."""
    return hashlib.blake2b(data, digest_size=16)


def file_digest(path: epath.PathLike) -> tuple[int, str]:
    """The size in bytes and the digest of a file of any size."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, new_digest)
        return file.tell(), found.hexdigest()


def _seal(values: Mapping[str, Any]) -> str:
    # JSON's numbers and their order survive a round trip, so equal content has equal text.
    return digest(json.dumps(values, separators=(",", ":")))


@contextlib.contextmanager
def _named_errors(path: epath.PathLike) -> Iterator[None]:
    """Adds the path to errors of writing, which come without one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds {text[:20]}, which is larger than any float")
    return value


def _short(text: str) -> int:
    if len(text) > _MOST_DIGITS:
        raise ValueError(f"it holds a whole number of {len(text)} digits")
    return int(text)


def _no_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no number")


def _is_of(value: Any, kinds: type | tuple[type, ...]) -> bool:
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if isinstance(value, bool):
        return bool in kinds
    # JSON has one kind of number.
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))


def _json_name(value: Any) -> str:
    names = {type(None): "null", bool: "boolean", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "number")
