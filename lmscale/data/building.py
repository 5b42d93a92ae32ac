"""Where a corpus is built, and what is left of builds that were killed.

A build happens in a hidden folder beside the corpus's final place, under a lock of this machine. While
it lives, its folder is touched every minute, so that other machines see that it does.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from lmscale.data.stages import key_of_build

#: After so long without a touch a build counts as dead, also one of another machine.
SILENT_SECONDS = 86_400.0
_HEARTBEAT_SECONDS = 60.0
_LEFTOVER = re.compile(r"\.(.+)\.([A-Za-z0-9-]+)\.(\d+)\.building")


@contextlib.contextmanager
def building_folder(final: Path, key: str = "") -> Iterator[Path]:
    """A folder to build in, removed at the end unless it was moved to its final place.

    It is empty, or what a build of the same key (see `stages`) had done when it was killed.
    """
    folder = final.parent / f".{final.name}.{_host()}.{os.getpid()}.building"
    # This process holds the lock, so folders of that name on this host were left by dead processes.
    for left in sorted(final.parent.glob(f".{final.name}.{_host()}.*.building")):
        found = _LEFTOVER.fullmatch(left.name)
        if found is None or found[1] != final.name or left.is_symlink():
            continue
        if left != folder and _is_alive(int(found[3])):
            continue  # the file system has no locks
        if left != folder and not folder.exists() and key and key_of_build(left) == key:
            left.rename(folder)
        elif left != folder or key_of_build(left) != key:
            shutil.rmtree(left, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(_HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):
                os.utime(folder)

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield folder
    finally:
        over.set()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def lock_of(final: Path) -> Iterator[None]:
    """Held by one process of this machine at a time; released when it ends, however it ends."""
    path = _lock_path(final.parent, final.name)
    with contextlib.ExitStack() as stack:
        while True:
            file = stack.enter_context(open(path, "w"))
            if not _flock(file) or _is_same(file, path):
                break
            # The holder has removed the file meanwhile, and another process may hold a new one.
            stack.close()
        stack.callback(path.unlink, missing_ok=True)
        yield


def remove_leftovers(root: Path) -> list[str]:
    """Removes what killed builds have left, and returns the names of their corpora.

    A build of this machine counts as killed when its process is gone and its lock is free; one of another
    machine when its folder has not been touched for a day. A killed build that has finished a stage is
    kept for a day, because the same command would go on from there (`unfinished`).
    """
    removed = []
    for folder, name, host, pid in _leftovers(root):
        with contextlib.suppress(OSError):
            silent = time.time() - folder.stat().st_mtime > SILENT_SECONDS
            own = host == _host() and not _is_alive(pid) and _is_free(root, name)
            if silent or (own and key_of_build(folder) is None):
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(name)
    return removed


def unfinished(root: Path) -> list[str]:
    """The corpora whose build on this machine was killed, and would go on if it were started again."""
    return [
        name
        for folder, name, host, pid in _leftovers(root)
        if host == _host() and not _is_alive(pid) and key_of_build(folder) is not None
    ]


def _leftovers(root: Path) -> Iterator[tuple[Path, str, str, int]]:
    """(folder, name of the corpus, host, process) of every build under a root."""
    for folder in sorted(root.glob(".*.building")):
        found = _LEFTOVER.fullmatch(folder.name)
        if found and not folder.is_symlink() and folder.is_dir():
            yield folder, found[1], found[2], int(found[3])


def _is_free(root: Path, name: str) -> bool:
    """Whether no process of this machine holds the lock of a corpus. A free lock is removed."""
    path = _lock_path(root, name)
    try:
        with open(path, "r+") as file:
            if not _flock(file, wait=False):
                return False
            if _is_same(file, path):
                path.unlink()
    except FileNotFoundError:
        pass
    return True


def _flock(file, wait: bool = True) -> bool:
    """Locks an open file; False where another holds it, or the file system has no locks."""
    try:
        import fcntl  # Windows has no fcntl; there the final rename alone keeps corpora whole

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except (ImportError, OSError):
        return False
    return True


def _is_same(file, path: Path) -> bool:
    """Whether an open file is still the one that lies at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _lock_path(root: Path, name: str) -> Path:
    return root / f".{name}.lock"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "-", socket.gethostname())
