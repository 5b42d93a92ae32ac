"""What the teams of a plan share: which pack and which run each takes next."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from lmscale.parallel.distributed import agree
from lmscale.progress import Tracker
from lmscale.sweep.plan import Plan
from lmscale.training.loop import RunQueue
from lmscale.training.run_folder import RunFolder

#: Predicted seconds of training that must wait in a pack for another team to load its program too.
HELP_SECONDS = 4.0


class Board:
    """What the teams of a plan share: the runs that wait, by pack, the bar, and the word to stop.

    A program is slow to compile, so a pack is begun by one team; once its program is compiled it is
    quick to load, and others may help. The longest run of all goes next, so that the short ones
    fill the end evenly: after each run a team that finds a longer one waiting in another pack goes
    there, and comes back later.
    """

    METHODS = ("take", "following", "leave", "take_run", "put_back", "drain", "n_waiting")
    METHODS += ("update", "skip", "log", "stopped", "abandon")

    def __init__(
        self,
        plan: Plan,
        queues: Sequence[RunQueue],
        bar: Tracker,
        stop: Callable[[], bool],
    ):
        self._queues = queues
        self._teams = [0] * len(queues)
        #: Packs whose program is in the compilation cache.
        self._compiled: set[int] = set()
        self._pack_of = {run.spec.run_id: i for i, p in enumerate(plan.packs) for run in p.runs}
        self._several = plan.teams > 1
        #: FLOPs that must wait in a pack for another team to take it up.
        self._worth_helping = HELP_SECONDS * plan.devices.peak_flops * plan.devices.utilisation
        self._changed = threading.Condition()
        #: Why no team takes another pack or run: what is wrong with the disk.
        self.abandoned: str | None = None
        self._bar = bar
        self.skip, self.log = bar.skip, bar.log
        self.stopped = stop
        # What a team asks of one queue.
        self.put_back = lambda index, folders: queues[index].put_back(folders)
        self.drain = lambda index: queues[index].drain()
        self.n_waiting = lambda index: len(queues[index])

    def take(self) -> int | None:
        """The next pack for a team; waits while others may yet free runs; None when all is done."""
        with self._changed:
            index = agree(self._choose)
            if index is not None:
                self._teams[index] += 1
            return index

    def following(self) -> int | None:
        """The pack that would be handed out now."""
        with self._changed:
            return self._untouched()

    def abandon(self, reason: str) -> None:
        """Nothing more is handed out: what a run wrote would be lost like that of the last."""
        with self._changed:
            self.abandoned = self.abandoned or reason
            self._changed.notify_all()

    def leave(self, index: int) -> None:
        """A team does nothing more in a pack, for now at least."""
        with self._changed:
            self._teams[index] -= 1
            self._changed.notify_all()

    def update(self, advance: float, run: str) -> None:
        """Training has gone on in a run, so its program is compiled."""
        index = self._pack_of[run]
        if index not in self._compiled:
            with self._changed:
                self._compiled.add(index)
                self._changed.notify_all()
        self._bar.update(advance, run)

    def take_run(self, index: int) -> RunFolder | None:
        """The next run of a pack for one of its teams; None when a longer one waits elsewhere."""
        with self._changed:
            if self.abandoned is not None:
                return None
            own = self._queues[index].next_cost()
            others = [self._queues[i].next_cost() for i in self._to_help() if i != index]
            if others and max(others) > own + self._worth_helping:
                return None
            return self._queues[index].take()

    def _choose(self) -> int | None:
        while self.abandoned is None:
            untouched = self._untouched()
            options = self._to_help() + ([] if untouched is None else [untouched])
            if options:
                return max(options, key=lambda i: self._queues[i].next_cost())
            busy = zip(self._teams, self._queues, strict=True)
            if not any(teams and queue for teams, queue in busy):
                return None
            # A program may get compiled, and the state be saved that other runs start from.
            self._changed.wait(timeout=1.0)
        return None

    def _untouched(self) -> int | None:
        """The first pack that no team is at and that has runs which can start."""
        both = enumerate(zip(self._teams, self._queues, strict=True))
        return next((i for i, (teams, queue) in both if not teams and queue.cost()), None)

    def _to_help(self) -> list[int]:
        """Packs whose program a team can load, and with enough waiting to be worth it."""
        if not self._several:
            return []
        queues = enumerate(self._queues)
        return [i for i, q in queues if i in self._compiled and q.cost() > self._worth_helping]


class PackQueue:
    """The runs of one pack, as its team takes them from the board."""

    def __init__(self, board: Board, index: int):
        self._board, self._index = board, index

    def __len__(self) -> int:
        return self._board.n_waiting(self._index)

    def take(self) -> RunFolder | None:
        return self._board.take_run(self._index)

    def put_back(self, folders: Sequence[RunFolder]) -> None:
        self._board.put_back(self._index, list(folders))

    def drain(self) -> list[RunFolder]:
        return self._board.drain(self._index)
