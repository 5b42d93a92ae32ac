"""The one door to small files of ours: whole or absent, typed and bounded, named when damaged.

A reader, or a kill, sees a file whole or not at all. Paths may be remote (gs://). Of processes that
train together only the first writes.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from lmscale.parallel.distributed import is_first

#: Bytes of the largest JSON file that is read: some times the largest result that there is.
LARGEST_JSON = 1 << 28


class DamagedError(ValueError):
    """A file of ours that does not hold what was written; one line: its path, the fault, what to do."""

    def __init__(self, path: epath.PathLike, fault: str, remedy: str = ""):
        super().__init__(f"{path} is damaged: {fault}" + (f"; {remedy}" if remedy else ""))
        self.path, self.fault = str(path), fault


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
      DamagedError: when the file holds anything but such an object of finite numbers.
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
) -> dict[str, Any]:
    """The object in the content of a JSON file; see `read_json`."""

    def damaged(fault: str) -> DamagedError:
        return DamagedError(path, fault, remedy)

    if len(data) > LARGEST_JSON:
        raise damaged(f"it is larger than {LARGEST_JSON:,} bytes")
    try:
        values = json.loads(data, parse_constant=_no_constant)
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
    if not isinstance(values, dict):
        raise damaged(f"it holds a JSON {_json_name(values)}, not an object")
    check_fields(values, path, fields or {}, remedy)
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


def write_json(path: epath.Path, values: Any) -> None:
    """Writes JSON that any reader takes.

    Raises:
      ValueError: when a number is not finite.
    """
    write_atomically(path, json.dumps(values, indent=1, allow_nan=False) + "\n")


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
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def append(path: epath.Path, text: str) -> None:
    """Adds to the end of a file, and returns when that is on disk."""
    if not text or not is_first():
        return
    with path.open("a") as file:
        file.write(text)
        file.flush()
        if "://" not in str(path):
            os.fsync(file.fileno())


def digest(data: bytes | str) -> str:
    """The BLAKE2b digest of 16 bytes, in hexadecimal: tells damage apart, not malice."""
    data = data.encode() if isinstance(data, str) else data
    return hashlib.blake2b(data, digest_size=16).hexdigest()


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
