"""Checks before training whether the disk has room for what a plan will write."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp

from lmscale.files import DiskError
from lmscale.planner.lineage import branch_steps
from lmscale.planner.packs import Plan
from lmscale.remote import is_remote
from lmscale.sweep.store import Store, StoreError
from lmscale.training.checkpoint import GENERATIONS, saved_steps
from lmscale.training.state import ProgramKey, initial_state

#: Bytes of a run's small files: specification, metrics, result.
_SMALL_FILES = 400_000
#: Bytes of a saved state besides its arrays.
_STATE_OVERHEAD = 20_000
#: Safety factor for other writes, such as the report.
_MARGIN = 1.02


def check_room(plan: Plan, store: Store, keep_every: int | None = None) -> None:
    """Compares what a plan will write with the free space of the disk, for local stores only.

    Raises:
      DiskError: when that is too little.
      StoreError: when the path is on a file system that keeps no files, such as /proc.
    """
    if is_remote(store.path):
        return
    need, (size, free) = bytes_to_write(plan, store, keep_every), _disk(Path(store.path))
    if not size:
        raise StoreError(f"{store.path} lies where no files can be kept: give another --out")
    if need > free:
        raise DiskError(
            f"{store.path} has {_size(free)} left on its disk, and these {plan.n_runs} runs will "
            f"write about {_size(need)} ({GENERATIONS} checkpoints a run): free some, or choose "
            "another --out"
        )


def bytes_to_write(plan: Plan, store: Store, keep_every: int | None = None) -> int:
    """Bytes of the checkpoints, kept states and small files that are still to be written."""
    need, largest = 0.0, 0.0
    kept = branch_steps([run for pack in plan.packs for run in pack.runs], keep_every)
    for pack in plan.packs:
        state = state_bytes(pack.key) + _STATE_OVERHEAD
        for run in pack.runs:
            folder = store.folder(run)
            if (folder.path / "result.json").exists():
                continue
            branches = kept.get(run.spec.run_id, set()) - set(saved_steps(folder.branches))
            states = max(0, GENERATIONS - len(saved_steps(folder.checkpoints))) + len(branches)
            need += states * state + _SMALL_FILES
            # A new checkpoint is complete before the oldest is deleted.
            largest = max(largest, pack.n_slots * state)
    return math.ceil(_MARGIN * (need + largest)) if need else 0


def state_bytes(key: ProgramKey) -> int:
    """Bytes of one run's parameters and optimizer state."""
    shapes = jax.eval_shape(
        lambda seed: initial_state(key, seed), jax.ShapeDtypeStruct((), jnp.int32)
    )
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def _disk(path: Path) -> tuple[int, int]:
    """Total and free bytes of the disk of a folder, which need not exist yet."""
    while not path.exists() and path != path.parent:
        path = path.parent
    disk = shutil.disk_usage(path)
    return disk.total, disk.free


def _size(n: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} TB"
