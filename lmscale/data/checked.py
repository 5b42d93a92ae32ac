"""Checks the files of a corpus against the digests in its manifest, and remembers which were right.

The first check of a file reads all of it. Then its size, times and inode are written to the cache folder.
As long as these stay the same, the file counts as unchanged and is not read again. Nothing is written into
the corpus, which may be read-only. Where the cache folder cannot be written, every process checks the file
once.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from lmscale.files import DamagedError, cache_folder, digest

#: What is done about a damaged corpus.
REMEDY = "restore the file from a copy, or remove the corpus's folder and build it again"
#: A file that was written less than this before it was read is not remembered: a second write so soon
#: after the first may leave its times unchanged.
_SETTLED_SECONDS = 2.0
#: How long other processes wait for the one that checks. After that they check by themselves.
_PATIENCE_SECONDS = 900.0
_CHUNK = 1 << 22
#: Files that this process has checked, with their size and times at that moment.
_known: set[str] = set()


def check_file(path: Path, sha256: str, *, again: bool = False) -> None:
    """Returns when a file has the SHA-256 that it should have.

    When several processes of a machine ask at the same time, only one reads the file.

    Args:
      again: read the file even if an earlier check is remembered.

    Raises:
      DamagedError: when it has not, or is missing.
      OSError: when it cannot be read.
    """
    key = _key(path, sha256)
    if not again and _is_known(key):
        return
    with _alone(key):
        if not again and _is_known(key):
            return
        newest = max(os.stat(path).st_mtime, os.stat(path).st_ctime)
        started = time.time()
        right = _sha256(path) == sha256
        if not right or _key(path, sha256) != key:
            _known.discard(key)
            with contextlib.suppress(OSError):
                _mark(key).unlink(missing_ok=True)
            raise DamagedError(path, "its content is not what was written", REMEDY)
        _known.add(key)
        if started - newest > _SETTLED_SECONDS:
            with contextlib.suppress(OSError):
                _mark(key).parent.mkdir(parents=True, exist_ok=True)
                _mark(key).touch()


def _key(path: Path, sha256: str) -> str:
    """A digest of a file's path, its expected content, and its size, times and inode."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise DamagedError(path, "it is missing", REMEDY) from None
    times = found.st_mtime_ns, found.st_ctime_ns
    return digest(repr((str(path), sha256, found.st_size, *times, found.st_ino)))


def _is_known(key: str) -> bool:
    if key in _known:
        return True
    with contextlib.suppress(OSError):
        if _mark(key).exists():
            _known.add(key)
            return True
    return False


def _mark(key: str) -> Path:
    """The empty file whose existence records a successful check."""
    return cache_folder() / "checked" / key


def _sha256(path: Path) -> str:
    found = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


@contextlib.contextmanager
def _alone(key: str) -> Iterator[None]:
    """Holds a lock among the processes of this machine; goes on without it after `_PATIENCE_SECONDS`."""
    lock = cache_folder() / "checked" / f"{key}.lock"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError, ImportError):
            import fcntl

            lock.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(lock, "w"))
            until = time.monotonic() + _PATIENCE_SECONDS
            while time.monotonic() < until:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(0.05)
            stack.callback(lock.unlink, missing_ok=True)
        yield
