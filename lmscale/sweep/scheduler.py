"""What the workers of a plan share: which pack and which run each takes next, and who holds what.

A worker speaks to the scheduler from its own `Seat`, which knows its pack and its runs. When its process
dies its seat is closed: its runs go back to the queue once, nothing that was still under way for it
takes effect, and another process gets a seat of its own.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence

from lmscale import flops
from lmscale.parallel.distributed import broadcast_from_main, is_alone, is_main_process
from lmscale.planner.packs import Plan
from lmscale.progress import Tracker
from lmscale.sweep.ownership import Claims, Holder, clock
from lmscale.training.loop import Preempted
from lmscale.training.run_folder import RunFolder
from lmscale.training.run_queue import RunQueue

#: Predicted seconds of training that must wait in a pack for another worker to load its program too.
HELP_SECONDS = 4.0
#: Seconds for which a worker trusts that a run is still its own; far less than a takeover takes.
TRUST_SECONDS = 5.0
#: Seconds between two looks at the claims of processes on other machines.
WATCH_SECONDS = 2.0


class Scheduler:
    """What the workers of a plan share: the runs that wait, by pack, the bar, and the word to stop.

    A program is slow to compile, so a pack is begun by one worker; once its program is compiled it is
    quick to load, and others may help. The longest run of all goes next, so that the short ones
    fill the end evenly: after each run a worker that finds a longer one waiting in another pack goes
    there, and comes back later.

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
        #: FLOPs that must wait in a pack for another worker to take it up.
        self._worth_helping = HELP_SECONDS * plan.devices.peak_flops * plan.devices.utilisation
        #: Run -> its folder and the process that trains it.
        self.elsewhere: dict[str, tuple[RunFolder, Holder]] = {}
        #: Run -> the step of its last checkpoint when the process that trained it died.
        self._deaths: dict[str, int] = {}
        #: Runs that cost two processes their life without getting any further.
        self.marked: list[RunFolder] = []
        #: Why no worker takes another pack or run: what is wrong with the disk.
        self.abandoned: str | None = None

    def seat(self) -> Seat:
        """A place for one worker."""
        return Seat(self)

    def choose(self) -> int | None:
        """The pack to go to; waits while others may yet free runs. `changed` is held."""
        while self.abandoned is None:
            untouched = self.untouched()
            options = self._to_help() + ([] if untouched is None else [untouched])
            if options:
                return max(options, key=lambda i: self.queues[i].next_cost())
            busy = zip(self.workers, self.queues, strict=True)
            if not any(workers and queue for workers, queue in busy):
                return None
            # A program may get compiled, and the state be saved that other runs start from.
            self.changed.wait(timeout=1.0)
            if self.several and self.stopped():
                return None
        return None

    def abandon(self, reason: str) -> None:
        """Nothing more is handed out: what a run wrote would be lost like that of the last."""
        with self.changed:
            self.abandoned = self.abandoned or reason
            self.changed.notify_all()

    def untouched(self) -> int | None:
        """The first pack that no worker is at and that has runs which can start."""
        both = enumerate(zip(self.workers, self.queues, strict=True))
        return next((i for i, (workers, queue) in both if not workers and queue.cost()), None)

    def longer_elsewhere(self, index: int) -> bool:
        """Whether a worker should leave a pack for another, whose next run takes longer."""
        own = self.queues[index].next_cost()
        others = [self.queues[i].next_cost() for i in self._to_help() if i != index]
        return bool(others) and max(others) > own + self._worth_helping

    def _to_help(self) -> list[int]:
        """Packs whose program a worker can load, and with enough waiting to be worth it."""
        if not self.several:
            return []
        queues = enumerate(self.queues)
        return [i for i, q in queues if i in self._compiled and q.cost() > self._worth_helping]

    def compiled(self, run: str) -> None:
        """Training has gone on in a run, so its program is compiled."""
        index = self._pack_of[run]
        if index not in self._compiled:
            with self.changed:
                self._compiled.add(index)
                self.changed.notify_all()

    def claim(self, folder: RunFolder) -> bool:
        """Claims a run; False where another trains it or has ended it. `changed` is held."""

        def attempt() -> str | dict:
            # Others may make the folder at the same time.
            folder.create()
            holder = self.claims.take(folder.path)
            if holder is not None:
                return vars(holder)
            if folder.result() is None:
                return "ours"
            self.claims.release(folder.path)
            return "ended"

        found = broadcast_from_main(attempt)
        if found == "ours":
            return True
        self.bar.skip(flops.flops_without_start(folder.spec))
        if found != "ended":
            self.elsewhere[folder.path.name] = folder, Holder(**found)
        return False

    def release(self, folder: RunFolder) -> None:
        if is_main_process():
            self.claims.release(folder.path)

    def stopped_at(self, folder: RunFolder) -> None:
        """Gives a run up that is to go on at the next start."""
        old = folder.status()
        if old["status"] == "running":
            # Its process had nothing to save, and was ended. Where the disk has failed, which is
            # said elsewhere, the next start finds the run as one that a process left.
            with contextlib.suppress(OSError):
                folder.write_status("preempted", step=old["step"], seconds=old["seconds"])
        self.release(folder)

    def died(self, folders: Sequence[RunFolder], how: str, status: str) -> None:
        """Puts the runs of a process that died back, or marks those that kill one again.

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
        """Whether there are runs to train again: such as others have left, or made way for.

        Claims of other machines are watched until they are renewed: then their holders live, and
        their runs are left to them. Otherwise they fall silent, and are taken over.
        """
        if broadcast_from_main(self._watch):
            names = broadcast_from_main(self._left_by_others)
            for name in names:
                folder, _ = self.elsewhere.pop(name)
                self.bar.skip(-flops.flops_without_start(folder.spec))
                self.queues[self._pack_of[name]].put_back([folder])
        return any(broadcast_from_main(lambda: [queue.cost() > 0 for queue in self.queues]))

    def _watch(self) -> bool:
        """Returns once it is known which of the other holders live; False when asked to stop."""
        begin: dict[str, float] = {}
        told = False
        while True:
            unsure = []
            for folder, _ in self.elsewhere.values():
                claim = self.claims.other(folder.path)
                # A process that can be seen from here is known to live.
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
                # Processes that train as one ask for this together.
                if is_alone() and self.stopped():
                    return False
                time.sleep(0.2)

    def _left_by_others(self) -> list[str]:
        """Runs that were others' and that nobody holds now."""
        return [n for n, (f, _) in self.elsewhere.items() if self.claims.other(f.path) is None]

    def unstartable(self) -> list[RunFolder]:
        """Takes the runs that wait for a state that will not come; ours, to be written down.

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
        """The process that trains the run that a run starts from, or the one that that starts from."""
        while folder.spec.start:
            folder = folder.trunk()
            if folder.path.name in self.elsewhere:
                return self.elsewhere[folder.path.name][1]
        return None

    def others_line(self) -> str | None:
        """How many runs are left to other processes, in words."""
        if not self.elsewhere:
            return None
        holders = [holder for _, holder in self.elsewhere.values()]
        runs = f"{len(holders)} run{'s' * (len(holders) > 1)}"
        return f"{runs} left to others, which train them: {_names(holders)}"


class Seat:
    """One worker's place at the scheduler. Its `METHODS` are called from the worker's process."""

    METHODS = ("take", "following", "leave", "take_run", "put_back", "drain", "release", "holds")
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
        """The next pack; waits while others may yet free runs; None when all is done.

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
        """The worker does nothing more in a pack, for now at least."""
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
        """Takes and claims all runs of a pack, whether they can start or not."""
        with self._scheduler.changed:
            if self._closed:
                return []
            folders = [f for f in self._scheduler.queues[index].drain() if self._scheduler.claim(f)]
            self._runs |= {folder.path.name: folder for folder in folders}
            return folders

    def release(self, folder: RunFolder) -> None:
        """A run has ended, or is left to another process."""
        with self._scheduler.changed:
            if not self._closed:
                self._forget(folder)

    def _forget(self, folder: RunFolder) -> None:
        self._runs.pop(folder.path.name, None)
        self._done.pop(folder.path.name, None)
        self._scheduler.release(folder)

    def holds(self, folder: RunFolder) -> bool:
        """Whether a run is still ours, and not taken over by a process that found this one silent."""
        return self._scheduler.claims.holds(folder.path)

    def n_waiting(self, index: int) -> int:
        return len(self._scheduler.queues[index])

    def update(self, advance: float, run: str) -> None:
        """Training has gone on in a run."""
        if run in self._done:
            self._done[run] += advance
        self._scheduler.compiled(run)
        self._scheduler.bar.update(advance, run)

    def to_save(self) -> int:
        """How many runs have trained since they were taken, and are to be saved before a stop."""
        return sum(1 for done in list(self._done.values()) if done)

    def has_runs(self) -> bool:
        return bool(self._runs)

    def close(self, how: str | None = None, status: str = "failed") -> None:
        """The worker is gone, by itself or (`how`) by dying: what it held is given up.

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
            # What it trained after its last checkpoint is trained again.
            scheduler.bar.update(-sum(self._done.values()))
            self._runs, self._done = {}, {}
            scheduler.died(folders, how, status)
            scheduler.changed.notify_all()


class PackQueue:
    """The runs of one pack, as its worker takes them from the scheduler."""

    def __init__(self, seat: Seat, index: int):
        self._seat, self._index = seat, index
        #: Run -> when it was last known to be ours.
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
    """Three of them, and how many more."""
    names = sorted({str(holder) for holder in holders})
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
