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
import json
import threading
import time
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from lmscale import compat
from lmscale.files import DamagedError, digest, file_digest, parse_json, read_json, write_json
from lmscale.parallel.distributed import broadcast_from_main, is_main_process
from lmscale.remote import checksum, is_remote

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
        self._manager = compat.checkpoint_manager(
            self._folder,
            f"{run}/{self._folder.name}",
            max_to_keep=None if keep_all or read_only else GENERATIONS,
            on_written=self._write_digests,
            read_only=read_only,
        )

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
        fault, checked, compared = broadcast_from_main(
            lambda: [_fault(path, self._run), (path / _DIGESTS).exists(), _is_compared(path)],
        )
        if fault is not None:
            raise DamagedError(path, fault)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(like), extra=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=args)
        except jax.errors.JaxRuntimeError:
            raise
        except Exception as error:
            if compared and isinstance(error, ValueError):
                # Its files are what was written, so they are of other arrays.
                raise OtherVersionError(
                    f"{path} was written by another version of lmscale, whose state has other arrays: use "
                    f"that version, or remove {self._folder.parent} to train the run again"
                ) from error
            # Of processes that train together others may wait for this one.
            if compared or jax.process_count() > 1:
                raise
            raise DamagedError(path, f"{type(error).__name__}: {_first_line(error)}") from error
        extra = dict(restored["extra"])
        if extra.pop(_CHECKED, False) and not checked:
            raise DamagedError(path, f"its {_DIGESTS} is missing")
        return restored["state"], extra, checked

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
    fault = _fault(folder / str(step), run) or _lost_digests(folder / str(step))
    return None if fault is None else DamagedError(folder / str(step), fault)


def _lost_digests(path: epath.Path) -> str | None:
    """A line for a checkpoint that was written with digests and has none now."""
    extra = read_json(path / "extra" / "metadata")
    if extra is None or not extra.get(_CHECKED) or (path / _DIGESTS).exists():
        return None
    return f"its {_DIGESTS} is missing"


def delete_step(folder: epath.Path, step: int) -> None:
    """Deletes a checkpoint of a folder that no `Checkpoints` has open."""
    path = folder / str(step)
    path.rmtree() if path.is_dir() else path.unlink(missing_ok=True)


def _fault(path: epath.Path, run: str) -> str | None:
    if not path.is_dir():
        return "it is missing" if not path.exists() else "it is not a folder"
    try:
        fields = {"run": str, "kind": str, "step": int, "files": dict}
        known = read_json(path / _DIGESTS, fields)
    except DamagedError as error:
        return f"{_DIGESTS}: {error.fault}"
    if known is None:
        return None
    owner = known["run"], known["kind"], str(known["step"])
    if owner != (run, path.parent.name, path.name):
        return f"it is of {owner[0]}, {owner[1]}/{owner[2]}"
    for name, expected in known["files"].items():
        try:
            found = _size_and_digest(path / name)
        except DamagedError as error:
            return f"{name}: {error.fault}"
        except OSError as error:
            if not isinstance(error, FileNotFoundError) and error.errno not in _UNREADABLE:
                raise
            return f"{name}: {error.strerror or 'it is missing'}"
        if found[0] != expected[0]:
            return f"{name} has {found[0]:,} of {expected[0]:,} bytes"
        if found[1] != expected[1] and _kind(found[1]) == _kind(expected[1]):
            return f"{name} doesn't match its digest"
    return None


def _is_compared(path: epath.Path) -> bool:
    """Whether the content of all files of a checkpoint could be compared, not their sizes alone."""
    try:
        known = read_json(path / _DIGESTS, {"files": dict})
    except DamagedError:
        return False
    if known is None:
        return False
    kinds = {_kind(entry[1]) for name, entry in known["files"].items() if entry[0] is not None}
    return kinds <= {_kind(checksum(path / _DIGESTS)) if is_remote(path) else _OURS}


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
        for path in folders.pop().iterdir():
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
            if parse_json(path.read_bytes(), path).get(compat.ITEM_HANDLERS) or late:
                return _size_and_digest(path)
        except (DamagedError, FileNotFoundError):
            if late:
                raise
        time.sleep(0.01)


def _size_and_digest(path: epath.Path) -> tuple[int | None, str | None]:
    if path.name == compat.CHECKPOINT_METADATA:
        values = parse_json(path.read_bytes(), path)
        values.pop(compat.COMMIT_TIME, None)
        return None, digest(json.dumps(values, sort_keys=True))
    if is_remote(path):
        return path.stat().length, checksum(path)
    return file_digest(path)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
