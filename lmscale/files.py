"""Files that a reader, or a kill, sees whole or not at all. Paths may be remote (gs://)."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

from etils import epath


def read_json(path: epath.Path) -> Any:
    """The parsed file, or None if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def write_json(path: epath.Path, values: Any) -> None:
    write_atomically(path, json.dumps(values, indent=1) + "\n")


def write_atomically(path: epath.Path, content: str | bytes) -> None:
    """Replaces a file in one step: the old one stays until the new one is on disk."""
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
