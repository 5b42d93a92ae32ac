"""The progress of a store, read from the files of its runs while others write them."""

from __future__ import annotations

import dataclasses
import math
import time
from calendar import timegm
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmscale import flops
from lmscale.files import DamagedError, read_json
from lmscale.sweep.experiment import Run
from lmscale.sweep.ownership import SILENT_SECONDS as CLAIM_SECONDS
from lmscale.sweep.ownership import Claim, find_claim
from lmscale.sweep.shards import shard_runs
from lmscale.sweep.store import Store
from lmscale.training.run_folder import ENDED
from lmscale.wording import duration

#: Seconds without a new status after which a run is reported as silent. Workers write the status at every
#: checkpoint, by default once a minute.
SILENT_SECONDS = 600.0


@dataclass(frozen=True)
class RunState:
    """One run.

    Attributes:
      labels: the columns that place it in the experiment.
      done, total: training FLOPs (exact convention) of its own.
      seconds: trained so far.
      left: predicted seconds, for a run under way.
      silent: seconds since its last sign of life, for a run under way whose process is dead or overdue.
      worker: the process that trains it ("process 123 on HOST"); None where none does.
      gone: the process that trained it and is known to have ended; None where none is.
    """

    run: str
    labels: dict[str, Any]
    status: str
    reason: str | None
    step: int
    steps: int
    done: float
    total: float
    seconds: float
    left: float | None
    silent: float | None
    worker: str | None
    gone: str | None = None

    @property
    def doubt(self) -> str:
        """Why a run under way is thought to be trained by nobody; empty where it is not."""
        if self.silent is None:
            return ""
        if self.gone is not None:
            return (
                f"its worker, {self.gone}, has ended; the same command goes on from its checkpoint"
            )
        return f"not heard of for {duration(self.silent)}: its worker may be gone"


@dataclass(frozen=True)
class Part:
    """A store, or one worker's shard of it.

    Attributes:
      name: "1/4" for the second shard of four; "" for the whole.
      host: where its worker runs or ran; "" where that is not known.
      counts: runs by status.
      share: of the training FLOPs, done.
      flops: training FLOPs in all, of the runs whose spec can be read.
      unknown: runs whose spec is damaged, so that their FLOPs and their share are not known.
      left: predicted seconds until all its runs end, at the speed so far with as many runs under
        way as now; None before anything was trained or while nothing trains.
    """

    name: str
    host: str
    counts: dict[str, int]
    share: float
    flops: float
    unknown: int
    left: float | None


@dataclass(frozen=True)
class Overview:
    """A store: as a whole, by shard where it has several, and run by run."""

    whole: Part
    shards: tuple[Part, ...]
    runs: tuple[RunState, ...]


def overview(store: Store, *, now: float | None = None) -> Overview:
    """Reads the progress of a store.

    Args:
      now: seconds since the epoch; the clock's when None.
    """
    now = time.time() if now is None else now
    runs: list[Run] = []
    found: list[RunState] = []
    for name, folder, labels in store.entries():
        if isinstance(folder, DamagedError):
            found.append(_unknown(name, labels, folder))
            continue
        runs.append(Run(folder.spec, labels))
        found.append(_state(store, runs[-1], now))
    states = tuple(found)
    by_id = {state.run: state for state in states}
    shards = []
    workers = _workers(store)
    for index, count, worker in workers:
        mine = [by_id[run.spec.run_id] for run in shard_runs(runs, index, count)]
        shards.append(_part(f"{index}/{count}", worker.get("host", ""), mine))
    left = [shard.left for shard in shards if shard.left is not None]
    whole = _part("", "", states)
    if left:
        # Shards end independently: the store is done when the last shard is.
        whole = dataclasses.replace(whole, left=max(left))
    return Overview(whole, tuple(shards) if len(shards) > 1 else (), states)


def _unknown(name: str, labels: dict[str, Any], fault: DamagedError) -> RunState:
    """A run whose spec can't be read."""
    return RunState(
        run=name,
        labels=labels,
        status="failed",
        reason=str(fault),
        step=0,
        steps=0,
        done=0.0,
        total=0.0,
        seconds=0.0,
        left=None,
        silent=None,
        worker=None,
    )


def _state(store: Store, run: Run, now: float) -> RunState:
    spec = run.spec
    folder = store.folder(run)
    status = folder.status()
    per_step, begin = flops.step_flops(spec), spec.start.step if spec.start else 0
    total, done = (spec.steps - begin) * per_step, max(0, status["step"] - begin) * per_step
    if status["status"] in ENDED:
        # Runs that diverged or stopped early have no work left.
        total = done
    under_way = status["status"] == "running"
    seconds = status["seconds"]
    left = (total - done) * seconds / done if under_way and done else None
    silent, claim = None, find_claim(folder.path) if under_way else None
    if under_way and (updated := _seconds(status.get("updated"))) is not None:
        silent = now - updated if _is_gone(claim, now - updated, now) else None
    return RunState(
        run=spec.run_id,
        labels=run.labels,
        status=status["status"],
        reason=status["reason"],
        step=status["step"],
        steps=spec.steps,
        done=done,
        total=total,
        seconds=seconds,
        left=left,
        silent=silent,
        worker=str(claim.holder) if claim and silent is None else None,
        gone=str(claim.holder) if claim and silent is not None and claim.holder.dead() else None,
    )


def _seconds(text: Any) -> float | None:
    """Seconds since the epoch of a date as status.json has it."""
    try:
        return timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))
    except (TypeError, ValueError):
        return None


def _is_gone(claim: Claim | None, age: float, now: float) -> bool:
    """Whether the process that trained a run is dead or presumed dead.

    Args:
      claim: the claim on the run; None where there is none, as in stores of earlier versions.
      age: seconds since its status was written.
      now: seconds since the epoch.
    """
    if claim is None or not claim.renewed:
        return age > SILENT_SECONDS
    dead = claim.holder.dead()
    return bool(dead) or now - claim.renewed > CLAIM_SECONDS


def _part(name: str, host: str, states: Sequence[RunState]) -> Part:
    total, done = math.fsum(s.total for s in states), math.fsum(s.done for s in states)
    seconds = math.fsum(s.seconds for s in states)
    under_way = sum(s.status == "running" and s.silent is None for s in states)
    left = None
    if done and under_way:
        left = (total - done) * seconds / done / under_way
    counts = dict(Counter(state.status for state in states).most_common())
    unknown = sum(not s.steps for s in states)
    # No FLOPs are known: then nothing is left to do, unless the specs of runs are damaged.
    share = done / total if total else float(unknown == 0)
    return Part(name, host, counts, share, total, unknown, left)


def _workers(store: Store) -> list[tuple[int, int, dict[str, Any]]]:
    """(index, count, its worker's note) of every shard of the latest division."""
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for path in (store.path / "shards").glob("*-of-*.json"):
        try:
            index, count = map(int, path.name.removesuffix(".json").split("-of-"))
            worker = read_json(path, {"host": str, "started": float})
        except ValueError:
            # The note is damaged or not ours. It only tells who trains, so it is skipped.
            continue
        if worker is not None and 0 <= index < count:
            found[index, count] = worker
    if not found:
        return []
    count = max(found, key=lambda shard: found[shard]["started"])[1]
    return [(index, count, found.get((index, count), {})) for index in range(count)]
