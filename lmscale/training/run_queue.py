"""The runs that wait for a slot of a pack, and those that can never start."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Protocol

from lmscale import flops
from lmscale.parallel.distributed import broadcast_from_main
from lmscale.training.checkpoint import saved_steps
from lmscale.training.metrics_log import MetricsLog
from lmscale.training.result import result
from lmscale.training.run_folder import RunFolder


class RunSource(Protocol):
    """Where a pack takes its runs from: a `RunQueue`, or a worker's part of a scheduler's."""

    def __len__(self) -> int:
        """Runs that wait, whether they can start or not."""

    def take(self) -> RunFolder | None:
        """The next run that can start, or None."""

    def put_back(self, folders: Sequence[RunFolder]) -> None:
        """Returns runs that were taken."""

    def release(self, folder: RunFolder) -> None:
        """Notes that a run that was taken has ended, or that another process has it now."""

    def holds(self, folder: RunFolder) -> bool:
        """Whether this process may still write a run that it took."""


class RunQueue:
    """Runs that wait for a slot. Threads with packs of one program may share a queue.

    Runs are taken in the order of the plan (`planner.packs`: the longest first), but a run that starts
    from another waits for it.
    """

    def __init__(self, folders: Sequence[RunFolder]):
        self._waiting = list(folders)
        # Counted once, because it is needed whenever a run is taken.
        self._flops = {
            folder.path.name: flops.flops_without_start(folder.spec) for folder in folders
        }
        self._ready: set[RunFolder] = set()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Runs that wait, whether they can start or not."""
        return len(self._waiting)

    def take(self) -> RunFolder | None:
        """The next run that can start, or None."""
        with self._lock:
            if not self._waiting:
                return None
            name = broadcast_from_main(self._first_that_can_start)
            folder = next((f for f in self._waiting if f.path.name == name), None)
            if folder is not None:
                self._waiting.remove(folder)
            return folder

    def put_back(self, folders: Sequence[RunFolder]) -> None:
        """Returns runs to the head of the queue."""
        with self._lock:
            self._waiting[:0] = folders

    def release(self, folder: RunFolder) -> None:
        """Notes that a run that was taken has ended, or that another process has it now."""

    def holds(self, folder: RunFolder) -> bool:
        """Whether this process may still write a run that it took; without claims it may."""
        return True

    def drain(self) -> list[RunFolder]:
        """Takes all runs, whether they can start or not."""
        with self._lock:
            folders, self._waiting = self._waiting, []
            return folders

    def cost(self) -> float:
        """FLOPs of the waiting runs that can start."""
        with self._lock:
            return sum(self._flops[f.path.name] for f in self._waiting if self._can_start(f))

    def next_cost(self) -> float:
        """FLOPs of the next run that can start; 0 when there is none."""
        with self._lock:
            costs = (self._flops[f.path.name] for f in self._waiting if self._can_start(f))
            return next(costs, 0.0)

    def _first_that_can_start(self) -> str | None:
        return next((f.path.name for f in self._waiting if self._can_start(f)), None)

    def _can_start(self, folder: RunFolder) -> bool:
        # A run that can start once always can, and this is asked often.
        if folder not in self._ready and _can_start(folder):
            self._ready.add(folder)
        return folder in self._ready


def _can_start(folder: RunFolder) -> bool:
    """Whether a run starts from nothing, has begun, or starts from a state that is saved."""
    start = folder.spec.start
    if start is None or folder.checkpoints.exists():
        return True
    return start.step in saved_steps(folder.trunk().branches)


def give_up(folder: RunFolder, device: str) -> None:
    """Writes down why a run cannot start from the run that its spec names.

    Args:
      folder: of the run that cannot start.
      device: kind, for its result.
    """
    start, trunk = folder.start, folder.trunk()
    ended = (trunk.result() or {}).get("status")
    if ended == "diverged":
        reason = f"the run that it starts from, {start.run}, diverged"
        log = MetricsLog(folder.log_path)
        values = result(folder, "diverged", reason, device, 0)
        folder.end({**values, "loss_spikes": 0}, log.mark(), step=0, seconds=0.0)
        return
    reason = f"{start.run}, which it starts from, kept no state at step {start.step}"
    if ended == "done":
        reason += ": delete that run's folder to train it again"
    folder.write_status("failed", step=0, seconds=0.0, reason=reason)
