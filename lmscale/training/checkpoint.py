"""Checkpoints of single runs, through Orbax.

A checkpoint belongs to a run: it holds one run's arrays without a run axis, and a few plain values
beside them, so any pack on any mesh can take it up.

    STEP/            what Orbax writes
      digests.json   size and digest of every other file, and which run and step they are of

Digests are written before the folder gets its final name, so a checkpoint never lacks them unless an
earlier version of lmscale wrote it. On object stores (gs://) the digests are the checksums that the store
gives of its objects, so that none is read again. A copy elsewhere is compared by size alone.

`training.loop` decides when one is due.
"""

from __future__ import annotations

import errno
import functools
import json
import threading
import time
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from etils import epath

from lmscale import compat
from lmscale.files import DamagedError, digest, file_digest, read_json, write_json
from lmscale.parallel.distributed import broadcast_from_main, is_main_process
from lmscale.remote import checksum, entries, is_remote

#: Orbax numbers the saves of a process and signals by that number: those of two threads must not
#: overlap, or one creates the other's folders.
_SAVING = threading.Lock()
#: Checkpoints of an unfinished run: should the newest be damaged, the one before is used.
GENERATIONS = 2
_DIGESTS = "digests.json"
#: The kind of the digests that are made here.
_OURS = "blake2b"
#: Seconds within which Orbax has written its metadata.
_SETTLING = 10.0
#: Among the extra values: says that the checkpoint was written with digests.
_CHECKED = "digests"
#: Errors that say of a file that it is gone, or that the disk has lost it.
_UNREADABLE = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR, errno.EIO)


compat.quiet_orbax_errors()


class OtherVersionError(ValueError):
    """A whole checkpoint that holds other arrays than this version of lmscale trains."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: theirs alone.
      run: id of the run; a checkpoint of another run counts as damaged.
      keep_all: keeps every step saved, where otherwise the newest `GENERATIONS` are kept.
      read_only: saves nothing, and leaves alone what is half written: another process may be
        writing it. Otherwise that is deleted, as what a kill has left, so the run must be ours.

    Raises:
      DamagedError: when one of them keeps a reader from all. Otherwise `restore` tells of damage.
    """

    def __init__(
        self,
        folder: epath.PathLike,
        run: str,
        *,
        keep_all: bool = False,
        read_only: bool = False,
    ):
        self._folder = epath.Path(folder)
        self._run = run
        self._saving: int | None = None
        open_manager = functools.partial(
            compat.checkpoint_manager,
            self._folder,
            f"{run}/{self._folder.name}",
            max_to_keep=None if keep_all or read_only else GENERATIONS,
            on_written=self._write_digests,
            read_only=read_only,
        )
        try:
            self._manager = open_manager()
        except (OSError, jax.errors.JaxRuntimeError):
            raise
        except Exception:
            # Orbax reads the metadata of every step, and fails on those of another structure.
            damaged = broadcast_from_main(self._damaged_steps)
            if not damaged:
                raise
            if read_only:
                step, fault = damaged[-1]
                raise DamagedError(self._folder / str(step), fault) from None
            # What is missing does not disturb Orbax, and `restore` names it.
            if is_main_process():
                for step, _ in damaged:
                    (self._folder / str(step) / compat.CHECKPOINT_METADATA).unlink(missing_ok=True)
            broadcast_from_main(lambda: None)
            self._manager = open_manager()

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints, in order."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
        """Saves a pytree of arrays and a JSON-ready dictionary.

        Returns when all is written; in processes that train together as soon as the arrays are copied.
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave({**extra, _CHECKED: True})
        )
        with _SAVING:
            # The digests of the one before are written by its number.
            self.wait()
            self._saving = step
            self._manager.save(step, args=args, force=True)
            if jax.process_count() == 1:
                self.wait()

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any], bool]:
        """The state and the extra values saved at `step`, and whether they could be checked.

        Args:
          step: one of `steps`.
          like: pytree of ShapeDtypeStruct with the shardings to restore to.

        Raises:
          DamagedError: when its files are not what was written.
          OtherVersionError: when they are, and hold other arrays than `like` has.
        """
        self.wait()
        path = self._folder / str(step)
        found = _Comparison(*broadcast_from_main(lambda: _compare(path, self._run)))
        if found.fault is not None:
            raise DamagedError(path, found.fault)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(like), extra=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=args)
        except jax.errors.JaxRuntimeError:
            raise
        except Exception as error:
            if found.compared and isinstance(error, ValueError):
                # Its files are what was written, so they are of other arrays.
                raise OtherVersionError(
                    f"{path} was written by another version of lmscale, whose state has other arrays: use "
                    f"that version, or remove {self._folder.parent} to train the run again"
                ) from error
            # Of processes that train together others may wait for this one.
            if found.compared or jax.process_count() > 1:
                raise
            raise DamagedError(path, f"{type(error).__name__}: {_first_line(error)}") from error
        extra = dict(restored["extra"])
        if extra.pop(_CHECKED, False) and not found.has_digests:
            raise DamagedError(path, f"its {_DIGESTS} is missing")
        return restored["state"], extra, found.has_digests

    def discard(self, step: int) -> None:
        """Deletes a damaged checkpoint, so that it isn't met again."""
        if is_main_process():
            delete_step(self._folder, step)
        # The others look when it is gone.
        broadcast_from_main(lambda: None)
        self._manager.reload()

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()

    def _damaged_steps(self) -> list[tuple[int, str]]:
        """The steps that are not what was written, oldest first, and what is wrong with each."""
        steps = sorted(saved_steps(self._folder))
        found = [(step, _compare(self._folder / str(step), self._run).fault) for step in steps]
        return [(step, fault) for step, fault in found if fault is not None]

    def _write_digests(self) -> None:
        step = self._saving
        if step is None:
            raise RuntimeError("Orbax has written a checkpoint that was not asked for")
        found = [self._folder / str(step), *self._folder.glob(compat.unfinished_checkpoints(step))]
        for folder in (path for path in found if path.exists()):
            values = {"run": self._run, "kind": self._folder.name, "step": step}
            values["files"] = {name: _settled(folder / name) for name in sorted(_files_of(folder))}
            write_json(folder / _DIGESTS, values, sealed=True)


def saved_steps(folder: epath.PathLike) -> list[int]:
    """The steps of all complete checkpoints of a folder that need not exist."""
    return compat.checkpoint_steps(folder)


def checkpoint_fault(folder: epath.Path, run: str, step: int) -> DamagedError | None:
    """What is wrong with the files of a checkpoint; None also where it was written without digests."""
    path = folder / str(step)
    found = _compare(path, run)
    fault = found.fault if found.has_digests else _lost_digests(path)
    return None if fault is None else DamagedError(path, fault)


def _lost_digests(path: epath.Path) -> str | None:
    """A line for a checkpoint without digests that was written with them."""
    try:
        extra = read_json(path / "extra" / "metadata")
    except DamagedError as error:
        return f"extra/metadata: {error.fault}"
    return f"its {_DIGESTS} is missing" if extra is not None and extra.get(_CHECKED) else None


def delete_step(folder: epath.Path, step: int) -> None:
    """Deletes a checkpoint of a folder that no `Checkpoints` has open."""
    path = folder / str(step)
    path.rmtree() if path.is_dir() else path.unlink(missing_ok=True)


class _Comparison(NamedTuple):
    """What its digests say of a checkpoint.

    Attributes:
      fault: what is wrong with it; None where nothing was found.
      has_digests: whether it has any.
      compared: whether the content of all files could be compared, not their sizes alone.
    """

    fault: str | None
    has_digests: bool = True
    compared: bool = False


def _compare(path: epath.Path, run: str) -> _Comparison:
    """Compares the files of a checkpoint with its digests."""
    if not path.is_dir():
        return _Comparison("it is missing" if not path.exists() else "it is not a folder")
    try:
        fields = {"run": str, "kind": str, "step": int, "files": dict}
        known = read_json(path / _DIGESTS, fields)
    except DamagedError as error:
        return _Comparison(f"{_DIGESTS}: {error.fault}")
    if known is None:
        return _Comparison(None, has_digests=False)
    owner = known["run"], known["kind"], str(known["step"])
    if owner != (run, path.parent.name, path.name):
        return _Comparison(f"it is of {owner[0]}, {owner[1]}/{owner[2]}")
    for name, expected in known["files"].items():
        if (fault := _file_fault(path / name, name, expected)) is not None:
            return _Comparison(fault)
    kinds = {_kind(entry[1]) for entry in known["files"].values() if entry[0] is not None}
    here = _kind(checksum(path / _DIGESTS)) if is_remote(path) else _OURS
    return _Comparison(None, compared=kinds <= {here})


def _file_fault(path: epath.Path, name: str, expected: list[Any]) -> str | None:
    """What is wrong with one file of a checkpoint, whose size and digest were those `expected`."""
    try:
        size, found = _size_and_digest(path)
    except DamagedError as error:
        return f"{name}: {error.fault}"
    except OSError as error:
        if not isinstance(error, FileNotFoundError) and error.errno not in _UNREADABLE:
            raise
        return f"{name}: {error.strerror or 'it is missing'}"
    if size != expected[0]:
        return f"{name} has {size:,} of {expected[0]:,} bytes"
    if found != expected[1] and _kind(found) == _kind(expected[1]):
        return f"{name} doesn't match its digest"
    return None


def _kind(value: str | None) -> str | None:
    """How a digest was made: `_OURS`, or what an object store calls it."""
    if value is None:
        return None
    kind, colon, _ = value.partition(":")
    return kind if colon else _OURS


def _files_of(folder: epath.Path) -> list[str]:
    """Paths of a checkpoint's files that count, inside of its folder."""
    found, folders = [], [folder]
    while folders:
        for path in entries(folders.pop()):
            if path.is_dir():
                folders.append(path)
            else:
                found.append(str(path.relative_to(folder)))
    return [name for name in found if name not in (_DIGESTS, compat.CHECKPOINT_MARK)]


def _settled(path: epath.Path) -> tuple[int | None, str | None]:
    """`_size_and_digest` of a file that Orbax has written, or is about to have.

    A thread of Orbax's may be writing its metadata at this moment: they are empty for some
    milliseconds, and written once without the handlers before they are written with them.
    """
    if path.name != compat.CHECKPOINT_METADATA:
        return _size_and_digest(path)
    deadline = time.monotonic() + _SETTLING
    while True:
        late = time.monotonic() > deadline
        try:
            if _metadata(path).get(compat.ITEM_HANDLERS) or late:
                return _size_and_digest(path)
        except (DamagedError, FileNotFoundError):
            if late:
                raise
        time.sleep(0.01)


def _metadata(path: epath.Path) -> dict[str, Any]:
    if (values := read_json(path)) is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such file", str(path))
    return values


def _size_and_digest(path: epath.Path) -> tuple[int | None, str | None]:
    if path.name == compat.CHECKPOINT_METADATA:
        values = _metadata(path)
        values.pop(compat.COMMIT_TIME, None)
        return None, digest(json.dumps(values, sort_keys=True))
    if is_remote(path):
        return path.stat().length, checksum(path)
    return file_digest(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
