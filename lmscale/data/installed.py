"""Text that every machine has: the files that are installed with lmscale.

Python sources are training text. Other kinds of text show how well a model transfers. All come from
the standard library with its tests, and from the distributions that lmscale depends on. Files that
are not UTF-8 are left out. So is lmscale itself, whose text changes during its development.
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

#: Dependencies of lmscale. Their own dependencies are read from their metadata.
_ROOTS = [
    *("etils", "flax", "grain", "jax", "matplotlib", "numpy", "optax", "orbax-checkpoint"),
    *("pandas", "rich", "scipy", "sentencepiece"),
]
#: Where there is more text than this, whole files are sampled. It is enough for a laptop and built in seconds.
MAX_BYTES = 100_000_000
PYTHON = ("*.py",)
#: Kind of text -> patterns of its file names. No file belongs to two kinds, or to `PYTHON`.
OTHER_KINDS = {
    "prose": ("METADATA", "LICENSE*", "README*", "*.md", "*.rst"),
    "c": ("*.c", "*.cc", "*.cpp", "*.h", "*.hpp"),
    "stubs": ("*.pyi",),
    "tables": ("*.csv",),
}


def find_installed(patterns: Sequence[str] = PYTHON) -> tuple[list[Path], dict[str, Any]]:
    """(files, origin): all candidates, and the versions that the manifest records."""
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
    """Each file's text with the number of files read so far. Of too much text it reads a fixed sample.

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
        # The store is ordered by SHA-256. Another hash keeps the sample independent of that order.
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
