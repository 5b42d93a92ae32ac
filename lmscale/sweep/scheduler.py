"""The scheduler of a plan: which pack and which run each worker takes next, and who holds which run.

A worker speaks to the scheduler from its own `Seat`, which knows its pack and its runs. When its process
dies its seat is closed: its runs go back to the queue once, calls of it that are still being served have
no effect, and another process gets a new seat.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lmscale import flops
from lmscale.parallel.distributed import broadcast_from_main, is_alone, is_main_process
from lmscale.planner.packs import Plan
from lmscale.progress import Tracker
from lmscale.sweep.ownership import Claims, Holder, clock
from lmscale.training.loop import Preempted
from lmscale.training.run_folder import RunFolder
from lmscale.training.run_queue import RunQueue
from lmscale.wording import first_few

#: Another worker loads the program of a pack only if at least so many predicted seconds of training wait in it.
HELP_SECONDS = 4.0
#: Seconds for which a worker trusts its last check that a run is its own; far less than a takeover takes.
TRUST_SECONDS = 5.0
#: Seconds between two checks of the claims of processes on other machines.
WATCH_SECONDS = 2.0


class Scheduler:
    """Shared state of the workers of a plan: waiting runs by pack, the progress bar, and whether to stop.

    A program is slow to compile, so a pack is begun by one worker; once its program is compiled it is
    quick to load, and others may help. The longest waiting run always goes next, so that short runs fill
    the end evenly: after each run, a worker that finds a longer run in another pack goes there and comes
    back later.

    A run is claimed when it is taken. One that another process holds is set aside (`elsewhere`).
    """

    def __init__(
        self,
        plan: Plan,
        queues: Sequence[RunQueue],
        bar: Tracker,
        stop: Callable[[], bool],
        claims: Claims,
    ):
        self.queues = queues
        self.workers = [0] * len(queues)
        self.several = plan.workers > 1
        self.changed = threading.Condition()
        self.bar, self.stopped, self.claims = bar, stop, claims
        #: Packs whose program is in the compilation cache.
        self._compiled: set[int] = set()
        self._pack_of = {run.spec.run_id: i for i, p in enumerate(plan.packs) for run in p.runs}
        #: Waiting FLOPs of a pack from which another worker takes part.
        self._worth_helping = HELP_SECONDS * plan.devices.peak_flops * plan.devices.utilisation
        #: Run -> its folder and the process that trains it.
        self.elsewhere: dict[str, tuple[RunFolder, Holder]] = {}
        #: Run -> the step of its last checkpoint when the process that trained it died.
        self._deaths: dict[str, int] = {}
        #: Runs during which two processes in a row died without progress.
        self.marked: list[RunFolder] = []
        #: What is wrong with the disk, so that no worker takes another pack or run; None while nothing is.
        self.abandoned: str | None = None

    def seat(self) -> Seat:
        """A new seat, for one worker."""
        return Seat(self)

    def choose(self) -> int | None:
        """The next pack. Waits while other workers may still return runs. The caller holds `changed`."""
        while self.abandoned is None:
            untouched = self.untouched()
            options = self._to_help() + ([] if untouched is None else [untouched])
            if options:
                return max(options, key=lambda i: self.queues[i].next_cost())
            busy = zip(self.workers, self.queues, strict=True)
            if not any(workers and queue for workers, queue in busy):
                return None
            # Meanwhile a program may be compiled, or a state be saved that other runs start from.
            self.changed.wait(timeout=1.0)
            if self.several and self.stopped():
                return None
        return None

    def abandon(self, reason: str) -> None:
        """Gives out no more runs, because of `reason` (the disk fails, so the next run would too)."""
        with self.changed:
            self.abandoned = self.abandoned or reason
            self.changed.notify_all()

    def untouched(self) -> int | None:
        """The first pack without a worker that has runs which can start."""
        both = enumerate(zip(self.workers, self.queues, strict=True))
        return next((i for i, (workers, queue) in both if not workers and queue.cost()), None)

    def longer_elsewhere(self, index: int) -> bool:
        """Whether a worker should leave a pack for another whose next run takes longer."""
        own = self.queues[index].next_cost()
        others = [self.queues[i].next_cost() for i in self._to_help() if i != index]
        return bool(others) and max(others) > own + self._worth_helping

    def _to_help(self) -> list[int]:
        """Packs whose program is compiled and that have enough waiting work for another worker."""
        if not self.several:
            return []
        queues = enumerate(self.queues)
        return [i for i, q in queues if i in self._compiled and q.cost() > self._worth_helping]

    def compiled(self, run: str) -> None:
        """Notes that the program of a run is compiled, because the run has trained."""
        index = self._pack_of[run]
        if index not in self._compiled:
            with self.changed:
                self._compiled.add(index)
                self.changed.notify_all()

    def claim(self, folder: RunFolder) -> bool:
        """Claims a run; False where another process trains it or has ended it. The caller holds `changed`."""

        def attempt() -> tuple[str, dict[str, Any]]:
            # Other processes may create the folder at the same time.
            folder.create()
            holder = self.claims.take(folder.path)
            if holder is not None:
                return "theirs", vars(holder)
            if folder.result() is None:
                return "ours", {}
            self.claims.release(folder.path)
            return "ended", {}

        whose, holder = broadcast_from_main(attempt)
        if whose == "ours":
            return True
        self.bar.skip(flops.flops_without_start(folder.spec))
        if whose == "theirs":
            self.elsewhere[folder.path.name] = folder, Holder(**holder)
        return False

    def release(self, folder: RunFolder) -> None:
        if is_main_process():
            self.claims.release(folder.path)

    def stopped_at(self, folder: RunFolder) -> None:
        """Gives up a run that the next start will continue."""
        old = folder.status()
        if old["status"] == "running":
            # Its process had nothing to save, and was ended. Where the disk has failed, which is
            # said elsewhere, the next start finds the run as one that a process left.
            with contextlib.suppress(OSError):
                folder.write_status("preempted", step=old["step"], seconds=old["seconds"])
        self.release(folder)

    def died(self, folders: Sequence[RunFolder], how: str, status: str) -> None:
        """Requeues the runs of a process that died, or marks runs during which a process died twice.

        Args:
          how: what became of the process, such as "was killed by SIGKILL".
          status: for runs that are marked.
        """
        for folder in folders:
            name, old = folder.path.name, folder.status()
            before, self._deaths[name] = self._deaths.get(name), old["step"]
            place = {"step": old["step"], "seconds": old["seconds"]}
            ended = folder.result() is not None
            if ended or before is None or old["step"] > before:
                reason = f"the process that trained it {how}"
                if not ended:
                    folder.write_status("preempted", **place, reason=reason)
                    self.bar.log(f"{name}: {reason}; it goes on from what was saved")
                self.release(folder)
                self.queues[self._pack_of[name]].put_back([folder])
                continue
            reason = (
                f"two processes in a row that trained it died at the same place; the last {how}"
            )
            if status == "out_of_memory":
                reason += ", as when memory runs out: is there enough for one run a core?"
            folder.write_status(status, **place, reason=reason)
            self.release(folder)
            self.marked.append(folder)
            self.bar.skip(flops.flops_without_start(folder.spec))
            self.bar.log(f"{name}: {status}: {reason}")

    def regain(self) -> bool:
        """Whether there are runs to train again, because other processes left them or finished what they wait for.

        Claims of other machines are watched. When a claim is renewed its holder lives, and keeps the run;
        otherwise the claim becomes silent and the run is taken over.
        """
        if broadcast_from_main(self._watch):
            names = broadcast_from_main(self._left_by_others)
            for name in names:
                folder, _ = self.elsewhere.pop(name)
                self.bar.skip(-flops.flops_without_start(folder.spec))
                self.queues[self._pack_of[name]].put_back([folder])
        return any(broadcast_from_main(lambda: [queue.cost() > 0 for queue in self.queues]))

    def _watch(self) -> bool:
        """Waits until it is known which other holders live; returns False when asked to stop."""
        begin: dict[str, float] = {}
        told = False
        while True:
            unsure = []
            for folder, _ in self.elsewhere.values():
                claim = self.claims.other(folder.path)
                # A process that this machine can see is known to live.
                if claim is None or claim.holder.dead() is False:
                    continue
                sign = claim.renewed + claim.holder.beat
                if begin.setdefault(claim.holder.token, sign) == sign:
                    unsure.append(claim.holder)
            if not unsure:
                return True
            if not told:
                told = True
                self.bar.log(f"waiting for a sign of life from {_names(unsure)}")
            for _ in range(int(WATCH_SECONDS / 0.2)):
                # Processes that train together must agree on the answer.
                if is_alone() and self.stopped():
                    return False
                time.sleep(0.2)

    def _left_by_others(self) -> list[str]:
        """Runs that other processes held and that are free now."""
        return [n for n, (f, _) in self.elsewhere.items() if self.claims.other(f.path) is None]

    def unstartable(self) -> list[RunFolder]:
        """Claims the runs that wait for a state that will never be saved, so that they can be recorded as failed.

        Those that wait for a run that another process trains are left to it.
        """
        found = []
        for queue in self.queues:
            for folder in queue.drain():
                if (holder := self._trunk_holder(folder)) is not None:
                    self.bar.skip(flops.flops_without_start(folder.spec))
                    self.elsewhere[folder.path.name] = folder, holder
                elif self.claim(folder):
                    found.append(folder)
        return found

    def _trunk_holder(self, folder: RunFolder) -> Holder | None:
        """The process that trains the run from which this one starts, directly or through other runs."""
        while folder.spec.start:
            folder = folder.trunk()
            if folder.path.name in self.elsewhere:
                return self.elsewhere[folder.path.name][1]
        return None

    def others_line(self) -> str | None:
        """A line that says how many runs are left to other processes."""
        if not self.elsewhere:
            return None
        holders = [holder for _, holder in self.elsewhere.values()]
        runs = f"{len(holders)} run{'s' * (len(holders) > 1)}"
        return f"{runs} left to others, which train them: {_names(holders)}"


class Seat:
    """One worker's connection to the scheduler. Its `METHODS` are called from the worker's process."""

    METHODS: tuple[str, ...] = (
        "take",
        "following",
        "leave",
        "take_run",
        "put_back",
        "drain",
        "release",
        "holds",
    )
    METHODS += ("n_waiting", "update", "skip", "log", "stopped", "abandon")

    def __init__(self, scheduler: Scheduler):
        self._scheduler = scheduler
        self._closed = False
        self._index: int | None = None
        self._runs: dict[str, RunFolder] = {}
        #: FLOPs trained since each run was taken.
        self._done: dict[str, float] = {}
        self.skip, self.log, self.stopped = scheduler.bar.skip, scheduler.bar.log, scheduler.stopped
        self.abandon = scheduler.abandon

    def take(self) -> int | None:
        """The next pack; None when all is done. Waits while other workers may still return runs.

        Raises:
          Preempted: when everything is to stop, and runs wait.
        """
        scheduler = self._scheduler
        with scheduler.changed:
            index = None if self._closed else broadcast_from_main(scheduler.choose)
            if scheduler.several and scheduler.stopped() and any(scheduler.queues):
                raise Preempted
            if index is not None and not self._closed:
                scheduler.workers[index] += 1
                self._index = index
                return index
            return None

    def following(self) -> int | None:
        """The pack that would be handed out now."""
        with self._scheduler.changed:
            return self._scheduler.untouched()

    def leave(self, index: int) -> None:
        """The worker leaves a pack; it may come back."""
        with self._scheduler.changed:
            if not self._closed:
                self._leave()

    def _leave(self) -> None:
        if self._index is not None:
            self._scheduler.workers[self._index] -= 1
            self._index = None
            self._scheduler.changed.notify_all()

    def take_run(self, index: int) -> RunFolder | None:
        """The next run of a pack, claimed; None when a longer one waits elsewhere."""
        scheduler = self._scheduler
        with scheduler.changed:
            while not (self._closed or scheduler.abandoned or scheduler.longer_elsewhere(index)):
                folder = scheduler.queues[index].take()
                if folder is None:
                    return None
                if scheduler.claim(folder):
                    self._runs[folder.path.name] = folder
                    self._done[folder.path.name] = 0.0
                    return folder
            return None

    def put_back(self, index: int, folders: Sequence[RunFolder]) -> None:
        """Returns runs to the head of their queue."""
        with self._scheduler.changed:
            if self._closed:
                return
            for folder in folders:
                self._forget(folder)
            self._scheduler.queues[index].put_back(folders)

    def drain(self, index: int) -> list[RunFolder]:
        """Takes and claims all runs of a pack, including those that cannot start yet."""
        with self._scheduler.changed:
            if self._closed:
                return []
            folders = [f for f in self._scheduler.queues[index].drain() if self._scheduler.claim(f)]
            self._runs |= {folder.path.name: folder for folder in folders}
            return folders

    def release(self, folder: RunFolder) -> None:
        """Releases a run that has ended or is left to another process."""
        with self._scheduler.changed:
            if not self._closed:
                self._forget(folder)

    def _forget(self, folder: RunFolder) -> None:
        self._runs.pop(folder.path.name, None)
        self._done.pop(folder.path.name, None)
        self._scheduler.release(folder)

    def holds(self, folder: RunFolder) -> bool:
        """Whether a run is still ours: a process that found this one silent may have taken it over."""
        return self._scheduler.claims.holds(folder.path)

    def n_waiting(self, index: int) -> int:
        return len(self._scheduler.queues[index])

    def update(self, advance: float, run: str) -> None:
        """Reports progress of a run."""
        if run in self._done:
            self._done[run] += advance
        self._scheduler.compiled(run)
        self._scheduler.bar.update(advance, run)

    def to_save(self) -> int:
        """How many runs have trained since they were taken, and so must be saved before a stop."""
        return sum(1 for done in list(self._done.values()) if done)

    def has_runs(self) -> bool:
        return bool(self._runs)

    def close(self, how: str | None = None, status: str = "failed") -> None:
        """Gives up what the worker held, when it has ended by itself or (`how`) died.

        Args:
          how, status: see `Scheduler.died`.
        """
        scheduler = self._scheduler
        with scheduler.changed:
            self._closed = True
            self._leave()
            folders = list(self._runs.values())
            if how is None:
                self._runs = {}
                for folder in folders:
                    scheduler.stopped_at(folder)
                return
            # Its work after the last checkpoint will be done again.
            scheduler.bar.update(-sum(self._done.values()))
            self._runs, self._done = {}, {}
            scheduler.died(folders, how, status)
            scheduler.changed.notify_all()


class PackQueue:
    """The runs of one pack, as its worker takes them from the scheduler."""

    def __init__(self, seat: Seat, index: int):
        self._seat, self._index = seat, index
        #: Run -> time of the last check that it is ours.
        self._known: dict[str, float] = {}

    def __len__(self) -> int:
        return self._seat.n_waiting(self._index)

    def take(self) -> RunFolder | None:
        folder = self._seat.take_run(self._index)
        if folder is not None:
            self._known[folder.path.name] = clock()
        return folder

    def put_back(self, folders: Sequence[RunFolder]) -> None:
        self._seat.put_back(self._index, list(folders))

    def drain(self) -> list[RunFolder]:
        return self._seat.drain(self._index)

    def release(self, folder: RunFolder) -> None:
        self._seat.release(folder)

    def holds(self, folder: RunFolder) -> bool:
        """Whether a run is still ours."""
        name, now = folder.path.name, clock()
        if now - self._known.get(name, 0.0) < TRUST_SECONDS:
            return True
        if self._seat.holds(folder):
            self._known[name] = now
            return True
        return False


def _names(holders: Sequence[Holder]) -> str:
    return first_few(sorted({str(holder) for holder in holders}))
