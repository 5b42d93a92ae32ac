"""Files that a reader, or a kill, sees whole or not at all. Paths may be remote (gs://).

Of processes that train together only the first writes.
"""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import Any

from etils import epath

from lmscale.parallel.distributed import is_first


def cache_folder() -> Path:
    """Where what can be made again is kept: compiled programs, compiled plans, measured speeds."""
    return Path(os.environ.get("LMSCALE_CACHE") or Path.home() / ".cache" / "lmscale")


def read_json(path: epath.Path) -> Any:
    """The parsed file, or None if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def write_json(path: epath.Path, values: Any) -> None:
    write_atomically(path, json.dumps(values, indent=1) + "\n")


def write_atomically(path: epath.Path, content: str | bytes) -> None:
    """Replaces a file in one step: the old one stays until the new one is on disk."""
    if not is_first():
        return
    data = content.encode() if isinstance(content, str) else content
    if "://" in str(path):
        # An object store's writes are atomic by themselves.
        epath.Path(path).write_bytes(data)
        return
    # Several machines may share the folder.
    temporary = f"{path}.{platform.node()}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def append(path: epath.Path, text: str) -> None:
    """Adds to the end of a file."""
    if text and is_first():
        with path.open("a") as file:
            file.write(text)
