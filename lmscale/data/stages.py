"""Which stages of a build are done, so that the same build goes on after it was killed.

The record lies in the folder of the build, beside what its stages have written. It is of use to a build of
the same text with the same settings and versions alone, which its key says.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from lmscale.files import DamagedError, read_json, write_json

__all__ = ["Stages", "key_of_build"]

_FILE = "build.json"


class Stages:
    """The finished stages of the build in a folder, each with its result.

    Args:
      folder: of the build.
      key: of this build; the record of another one is not used.
    """

    def __init__(self, folder: Path, key: str):
        self._path = folder / _FILE
        self._key = key
        found = _read(self._path)
        self._results: dict[str, dict[str, Any]] = (
            found["stages"] if found and found["key"] == key else {}
        )

    def result(self, stage: str) -> dict[str, Any] | None:
        """What a finished stage gave; None if it is not finished."""
        return self._results.get(stage)

    def finish(self, stage: str, result: dict[str, Any]) -> dict[str, Any]:
        """Writes down that a stage is finished, and its JSON-ready result, which is returned."""
        self._results[stage] = result
        write_json(self._path, {"key": self._key, "stages": self._results}, sealed=True)
        return result

    def remove(self) -> None:
        """Removes the record, at the end of the build."""
        self._path.unlink(missing_ok=True)


def key_of_build(folder: Path) -> str | None:
    """The key of the build that a folder holds a finished stage of, or None."""
    found = _read(folder / _FILE)
    return found["key"] if found and found["stages"] else None


def _read(path: Path) -> dict[str, Any] | None:
    # A damaged record is worth a new start, not an error.
    with contextlib.suppress(DamagedError, OSError):
        return read_json(path, {"key": str, "stages": dict})
    return None
