"""The text that every machine has: what is installed with lmscale.

Python sources, to train on, and other kinds of text, to see how what was learnt carries over:
from the standard library with its tests, and the distributions that lmscale depends on. Files that
are not UTF-8 are left out, and so is lmscale, whose text changes while one works on it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
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
PYTHON = ("*.py",)
#: Kind of text -> the names of its files. None of them holds text of another, nor of `PYTHON`.
OTHER_KINDS = {
    "prose": ("METADATA", "LICENSE*", "README*", "*.md", "*.rst"),
    "c": ("*.c", "*.cc", "*.cpp", "*.h", "*.hpp"),
    "stubs": ("*.pyi",),
    "tables": ("*.csv",),
}


def find_installed(patterns: Sequence[str] = PYTHON) -> tuple[list[Path], dict[str, Any]]:
    """(files, where they come from): all candidates, and versions for the record."""
    folders = (sysconfig.get_path("stdlib"), sysconfig.get_path("include"))
    files = {file for folder in folders for file in _walk(Path(folder), patterns)}
    versions = {}
    for distribution in _distributions():
        versions[distribution.metadata["Name"]] = distribution.version
        for file in distribution.files or ():
            if _matches(file.name, patterns) and ".." not in file.parts:
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


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _walk(folder: Path, patterns: Sequence[str]) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if f not in ("site-packages", "dist-packages")]
        yield from (Path(parent, file) for file in files if _matches(file, patterns))


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
