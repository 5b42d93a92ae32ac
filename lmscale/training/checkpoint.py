"""Checkpoints of single runs, through Orbax.

A checkpoint belongs to a run: it holds one run's arrays without a run axis, and a few plain values
beside them, so any pack on any mesh can take it up.
"""

from __future__ import annotations

import threading
from typing import Any

import orbax.checkpoint as ocp
from etils import epath

#: Orbax numbers the saves of a process and signals by that number: those of two threads must not
#: overlap, or one creates the other's folders.
_SAVING = threading.Lock()


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step: int) -> bool:
        """No: the loop asks JAX, whose count of such questions must stay the same everywhere."""
        return False


class Checkpoints:
    """The checkpoints of one run.

    Saving returns as soon as the arrays are copied; in a thread beside the main one, when all is
    written.

    Args:
      folder: theirs alone.
      keep_all: keeps every step saved, where otherwise the newest replaces the others.
    """

    def __init__(self, folder: epath.PathLike, *, keep_all: bool = False):
        self._manager = _Manager(
            epath.Path(folder),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if keep_all else 1, create=True, cleanup_tmp_directories=True
            ),
        )

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps of all complete checkpoints."""
        return list(self._manager.all_steps())

    def save(self, step: int, state: Any, extra: dict[str, Any]) -> None:
        """Saves a pytree of arrays and a JSON-ready dictionary."""
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), extra=ocp.args.JsonSave(extra)
        )
        with _SAVING:
            self._manager.save(step, args=args, force=True)
            if threading.current_thread() is not threading.main_thread():
                self.wait()

    def restore(self, step: int, like: Any) -> tuple[Any, dict[str, Any]]:
        """The state and the extra values saved at `step`.

        Args:
          step: one that `latest` returned.
          like: pytree of ShapeDtypeStruct with the shardings to restore to.
        """
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(like), extra=ocp.args.JsonRestore()
            ),
        )
        return restored["state"], restored["extra"]

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        self._manager.close()


def saved_steps(folder: epath.PathLike) -> list[int]:
    """The steps of all complete checkpoints of a folder that need not exist."""
    return ocp.utils.checkpoint_steps(folder)
