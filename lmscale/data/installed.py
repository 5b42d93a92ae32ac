"""The corpus that every machine has: the Python source code installed with lmscale.

The standard library with its tests, and the distributions that lmscale depends on. Files that are
not UTF-8 are left out, and so is lmscale, whose text changes while one works on it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

#: What lmscale is installed with; their own dependencies follow from their metadata.
_ROOTS = [
    *("etils", "flax", "grain", "jax", "matplotlib", "numpy", "optax", "orbax-checkpoint"),
    *("pandas", "rich", "scipy", "sentencepiece"),
]
#: More text than this is sampled down, file by file: enough for any laptop, seconds to build.
MAX_BYTES = 100_000_000


def find_installed() -> tuple[list[Path], dict[str, Any]]:
    """(files, where they come from): all candidates, and versions for the record."""
    library = Path(sysconfig.get_path("stdlib"))
    files = set(_walk(library))
    versions = {}
    for distribution in _distributions():
        versions[distribution.metadata["Name"]] = distribution.version
        for file in distribution.files or ():
            if file.suffix == ".py" and ".." not in file.parts:
                files.add(Path(distribution.locate_file(file)))
    record = {"python": sys.version.split()[0], "distributions": dict(sorted(versions.items()))}
    return sorted(files), record


def read_installed(files: list[Path]) -> Iterator[tuple[bytes, int]]:
    """Every file's text, with the number of files read by then; a fixed sample if they are many.

    The sample is drawn by a hash of the content, so it does not depend on where files lie.
    """
    sizes = sum(file.stat().st_size for file in files if file.is_file())
    keep = min(1.0, MAX_BYTES / max(1, sizes)) * 2**64
    for number, file in enumerate(files, 1):
        try:
            text = file.read_bytes()
            text.decode()
        except (OSError, UnicodeDecodeError):
            continue
        # The store's order is by SHA-256: another hash keeps the sample independent of it.
        if int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) < keep:
            yield text, number


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if f not in ("site-packages", "dist-packages")]
        yield from (Path(parent, file) for file in files if file.endswith(".py"))


def _distributions() -> list[metadata.Distribution]:
    found: dict[str, metadata.Distribution] = {}
    waiting = list(_ROOTS)
    while waiting:
        name = _normal(waiting.pop())
        if name in found or name == "lmscale":
            continue
        try:
            found[name] = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        for requirement in found[name].requires or ():
            if "extra ==" not in requirement:
                waiting.append(re.match(r"[\w.-]+", requirement)[0])
    return [found[name] for name in sorted(found)]


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
