"""The cache folder: what can be made again, and so is done without where it cannot be kept.

It holds compiled programs, compiled plans and measured speeds. A folder that cannot be written, or a disk
that is full, costs time and never a run: that is said once, and work goes on.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from lmscale.files import DamagedError, cache_folder, read_json, write_json
from lmscale.terminal import say

#: Bytes that must fit: some files of a compiled program.
_PROBE_BYTES = 1 << 16


def usable_cache() -> Path | None:
    """The cache folder; None, said once, where nothing can be written to it."""
    return _usable(cache_folder())


@functools.cache
def _usable(folder: Path) -> Path | None:
    probe = folder / f"probe.{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # A full disk takes a file's name, but not its content.
            with open(probe, "wb") as file:
                file.write(bytes(_PROBE_BYTES))
                file.flush()
                os.fsync(file.fileno())
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        _say_once(folder, error)
        return None
    return folder


def cached(
    path: epath.Path, fields: Mapping[str, type | tuple[type, ...]] | None = None
) -> dict[str, Any] | None:
    """A JSON object that was kept; None where there is none that can be read.

    Args:
      fields: names that it must have, and the types of their values.
    """
    try:
        return read_json(path, fields)
    except (OSError, DamagedError):
        return None


def keep(path: epath.Path, values: dict[str, Any]) -> None:
    """Writes a JSON object, if it can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, values, sealed=True)
    except OSError as error:
        _say_once(path.parent.parent, error)


#: Cache folders that this process has spoken of.
_TOLD: set[str] = set()


def _say_once(folder: epath.PathLike, error: OSError) -> None:
    if str(folder) in _TOLD:
        return
    _TOLD.add(str(folder))
    say(
        f"going on without the cache, so programs are compiled again each time: {folder} cannot be "
        f"written ({error.strerror or error}); LMSCALE_CACHE can name another folder"
    )
