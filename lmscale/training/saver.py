"""Saves the runs of a pack in a thread beside the training."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import jax

from lmscale.training.checkpoint import Checkpoints


class _Save(NamedTuple):
    """A save that was asked for, and its outcome in the thread."""

    step: int
    state: Any
    extra: dict[str, Any]
    outcome: Future[None]


class Saver:
    """Saves checkpoints one after the other, while the caller goes on.

    Orbax takes about 60 ms of Python for a checkpoint, however small: a pack of 256 runs that are saved
    every minute would stand still for a quarter of the time. Processes that train together save in their
    main threads, in the same order; there Orbax writes beside the training.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "checkpoints")
        self._saves: dict[Checkpoints, _Save] = {}

    def save(self, checkpoints: Checkpoints, step: int, state: Any, extra: dict[str, Any]) -> None:
        """As `Checkpoints.save`, but returns when the arrays are copied.

        Raises:
          Exception: what the last save of these checkpoints failed with.
        """
        self.drop(checkpoints)
        if jax.process_count() > 1:
            checkpoints.save(step, state, extra)
            return
        state = jax.device_get(state)
        outcome = self._thread.submit(checkpoints.save, step, state, extra)
        self._saves[checkpoints] = _Save(step, state, extra, outcome)

    def is_saving(self) -> bool:
        """Whether the thread still has something to save."""
        return any(not save.outcome.done() for save in self._saves.values())

    def wait(self, checkpoints: Checkpoints) -> None:
        """Returns when everything saved is on disk. It does not wait for the saves of others.

        Raises:
          Exception: what the last save failed with.
        """
        save = self._saves.pop(checkpoints, None)
        if save is None:
            checkpoints.wait()
        elif save.outcome.cancel():
            checkpoints.save(save.step, save.state, save.extra)
        else:
            save.outcome.result()

    def drop(self, checkpoints: Checkpoints) -> None:
        """Takes back a save that has not begun, and returns when one under way is on disk.

        Raises:
          Exception: what the last save failed with.
        """
        save = self._saves.pop(checkpoints, None)
        if save is not None and not save.outcome.cancel():
            save.outcome.result()

    def close(self) -> None:
        """Takes back what has not begun, and returns when the save under way has ended."""
        self._thread.shutdown(cancel_futures=True)
