"""All reading and writing of small files: atomic writes, checked types and sizes, named damage.

A file is complete or absent, even if the process is killed while writing. Paths may be remote
(gs://). Of the processes that train together only the first one writes. A sealed file contains a
digest of its content, under the key "digest". Files of earlier versions have none and are not
checked.
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

from lmscale.parallel.distributed import is_main_process
from lmscale.remote import is_remote, read_object

#: Bytes of the largest JSON file that is read, several times the largest result.
LARGEST_JSON = 1 << 28
#: Key of the digest in a sealed file.
SEAL = "digest"
#: Digits of the longest whole number that is read. Longer ones are larger than any float.
_MOST_DIGITS = 300
#: Errors of a disk or a file system; other errors are about a path that a user gave.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
#: The text of these errors, which libraries repeat in error types of their own.
_DISK_WORDS = tuple(os.strerror(number) for number in _DISK_ERRORS if number != errno.EPERM)


class DamagedError(ValueError):
    """A file that does not contain what was written; one line: its path, the fault, what to do."""

    def __init__(self, path: epath.PathLike, fault: str, remedy: str = ""):
        super().__init__(f"{path} is damaged: {fault}" + (f"; {remedy}" if remedy else ""))
        self.path, self.fault = str(path), fault


class DiskError(RuntimeError):
    """A store that cannot be written (disk full, read-only, no permission); one line with the path."""


def disk_fault(error: BaseException, path: epath.PathLike) -> str | None:
    """What is wrong with the disk, in one line; None for an error that is not about the disk.

    Args:
      error: any error.
      path: named where the error names no path.
    """
    if isinstance(error, DiskError):
        return str(error)
    if isinstance(error, OSError):
        if error.errno not in _DISK_ERRORS:
            return None
        return say_os_error(error) if error.filename else f"{path}: {say_os_error(error)}"
    # Orbax and TensorStore raise errors of other types that contain the text of the system's error.
    text = str(error)
    words = next((words for words in _DISK_WORDS if words in text), None)
    if words is None:
        return None
    named = re.search(r'"(/[^"]+?)/?"', text)
    return f"{named[1] if named else path}: {words}"


def say_os_error(error: OSError) -> str:
    """An error of the operating system in one line: the path, then the fault."""
    words = error.strerror or (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{os.fspath(error.filename)}: {words}" if error.filename else words


def unreadable(path: epath.PathLike, error: Exception) -> str:
    """In one line that a path cannot be read, and why."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else error
    return f"{path} cannot be read: {reason}"


def cache_folder() -> Path:
    """The folder of files that can be made again: compiled programs, compiled plans, measured speeds."""
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
      DamagedError: the file does not hold such an object of finite numbers, or its seal does not match
        its content.
    """
    data = read_bytes(path)
    return None if data is None else parse_json(data, path, fields, remedy)


def read_bytes(path: epath.Path) -> bytes | None:
    """The content of a small file, or None if there is none.

    Raises:
      DamagedError: a folder has its name, or a file has the name of its folder.
    """
    try:
        if is_remote(path):
            return read_object(path)
        # Opening the file tells whether it exists; a check before could be outdated.
        with epath.Path(path).open("rb") as file:
            return file.read(LARGEST_JSON + 1)
    except FileNotFoundError:
        return None
    except IsADirectoryError:
        raise DamagedError(path, "it is a folder, where a file belongs", "remove it") from None
    except NotADirectoryError:
        folder = epath.Path(path).parent
        raise DamagedError(folder, "it is a file, where a folder belongs", "remove it") from None


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
      allow_nan: read NaN and Infinity as null; earlier versions wrote them into metrics.jsonl.
    """

    def damaged(fault: str) -> DamagedError:
        return DamagedError(path, fault, remedy)

    if len(data) > LARGEST_JSON:
        raise damaged(f"it is larger than {LARGEST_JSON:,} bytes")
    try:
        values = (_LENIENT if allow_nan else _STRICT).decode(_text(data))
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
    # An escape of half a surrogate pair, which cannot be written as UTF-8.
    if _SURROGATE_BYTES.search(data) if isinstance(data, bytes) else _SURROGATE.search(data):
        try:
            json.dumps(values, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise damaged("it holds half a character (a lone surrogate)") from None
    if not isinstance(values, dict):
        raise damaged(f"it holds a JSON {_json_name(values)}, not an object")
    check_fields(values, path, fields or {}, remedy)
    return unseal(values, path, remedy)


def check_fields(
    values: Mapping[str, Any],
    path: epath.PathLike,
    fields: Mapping[str, type | tuple[type, ...]],
    remedy: str = "",
) -> None:
    """Raises `DamagedError` unless the object has these fields; see `read_json`."""
    for name, kinds in fields.items():
        if name not in values:
            raise DamagedError(path, f"it has no {name!r}", remedy)
        if not _is_of(values[name], kinds):
            fault = f"its {name!r} is a JSON {_json_name(values[name])}"
            raise DamagedError(path, fault, remedy)


def write_json(path: epath.Path, values: Any, *, sealed: bool = False) -> None:
    """Writes standard JSON.

    Args:
      path: the file.
      values: JSON-ready; an object if it is sealed.
      sealed: add the digest of the content, which `read_json` checks and removes.

    Raises:
      ValueError: a number is not finite.
    """
    if sealed:
        values = seal(values)
    write_atomically(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


def seal(values: Mapping[str, Any]) -> dict[str, Any]:
    """An object with the digest of its content, which `read_json` checks and removes."""
    content = {name: value for name, value in values.items() if name != SEAL}
    return {**content, SEAL: _seal(content)}


def unseal(values: Mapping[str, Any], path: epath.PathLike, remedy: str = "") -> dict[str, Any]:
    """The content of a sealed object; an object without a digest as it is.

    Raises:
      DamagedError: the digest is not that of the content; `path` and `remedy` are for its line.
    """
    content = {name: value for name, value in values.items() if name != SEAL}
    if SEAL in values and values[SEAL] != _seal(content):
        raise DamagedError(path, "its digest doesn't match its content", remedy)
    return content


def write_atomically(path: epath.Path, content: str | bytes) -> None:
    """Replaces a file in one step: the old file stays until the new one is on disk."""
    if not is_main_process():
        return
    data = content.encode() if isinstance(content, str) else content
    if is_remote(path):
        # The writes of an object store are atomic.
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
    """Appends to a file, and returns when the text is on disk."""
    if not text or not is_main_process():
        return
    if is_remote(path):
        # Objects cannot grow: gcsfs replaces the object by what is appended.
        path.write_bytes((read_bytes(path) or b"") + text.encode())
        return
    with _named_errors(path), path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def digest(data: bytes | str) -> str:
    """The BLAKE2b digest of 16 bytes in hexadecimal; it detects damage, not malice."""
    data = data.encode() if isinstance(data, str) else data
    return new_digest(data).hexdigest()


def new_digest(data: bytes = b"") -> hashlib.blake2b:
    """A digest that is updated with the parts of the data."""
    return hashlib.blake2b(data, digest_size=16)


def file_digest(path: epath.PathLike) -> tuple[int, str]:
    """The size in bytes and the digest of a file of any size."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, new_digest)
        return file.tell(), found.hexdigest()


def _seal(values: Mapping[str, Any]) -> str:
    # JSON keeps numbers and order in a round trip, so equal content has equal text.
    return digest(json.dumps(values, separators=(",", ":")))


@contextlib.contextmanager
def _named_errors(path: epath.PathLike) -> Iterator[None]:
    """Adds the path to errors of writing, which do not contain it."""
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


def _text(data: bytes | str) -> str:
    """JSON as text, as `json.loads` reads it: in UTF-8, or else in what its first bytes show."""
    if isinstance(data, bytes):
        return data.decode(json.detect_encoding(data), "surrogatepass")
    return data


_SURROGATE = re.compile(r"(?i)\\ud[89a-f]")
_SURROGATE_BYTES = re.compile(_SURROGATE.pattern.encode())
# Made once: `json.loads` would make a decoder for each line of a log, which takes as long as reading it.
_STRICT = json.JSONDecoder(parse_float=_finite, parse_int=_short, parse_constant=_no_constant)
_LENIENT = json.JSONDecoder(parse_float=_finite, parse_int=_short, parse_constant=lambda name: None)


def _is_of(value: Any, kinds: type | tuple[type, ...]) -> bool:
    kinds = kinds if isinstance(kinds, tuple) else (kinds,)
    if isinstance(value, bool):
        return bool in kinds
    # JSON has one kind of number.
    return isinstance(value, kinds) or (float in kinds and isinstance(value, int))


def _json_name(value: Any) -> str:
    names = {type(None): "null", bool: "boolean", str: "string", list: "array", dict: "object"}
    return names.get(type(value), "number")
