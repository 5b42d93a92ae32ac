"""Execution of a plan: every run to its end, every failure written down."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import jax

from lmscale import flops
from lmscale.data import Corpus
from lmscale.files import write_atomically
from lmscale.parallel.distributed import GangError, agree, is_first, share_failure
from lmscale.progress import Tracker
from lmscale.sweep.devices import Devices
from lmscale.sweep.plan import Pack, Plan, leaner, with_slots
from lmscale.sweep.programs import CompileAhead, mesh_of, program_of
from lmscale.sweep.shards import branch_steps
from lmscale.sweep.slots import SlotChoices, training_rate
from lmscale.sweep.store import ENDED, Store
from lmscale.training.evaluation import Evaluator
from lmscale.training.feed import Feed
from lmscale.training.loop import Preempted, RunQueue, give_up, train_pack
from lmscale.training.step import Program

#: Training that must be left in a pack for a second team to compile its program too.
HELP_SECONDS = 10.0
#: Share of the predicted memory that a pack which did not fit is planned anew for.
LEANER = 0.7


def execute(
    plan: Plan,
    store: Store,
    open_corpus: Callable[[str], Corpus],
    bar: Tracker,
    *,
    choices: SlotChoices | None = None,
    attention: str | None = None,
    checkpoint_seconds: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Trains every run of the plan that has not ended.

    The plan's teams work side by side: while one compiles, another trains. A team that finds every
    pack begun helps with the one that has most left, where that is worth its compiling once more. A
    failure of one pack is written to its runs' status.json (and error.txt) and the next pack goes
    on. A pack that does not fit in memory is tried again with half the slots, then with what
    `lmscale.sweep.plan.leaner` makes of it.

    Args:
      plan: for the devices of this process, or of all that train together.
      store: where the runs live.
      open_corpus: by name.
      bar: is told of every FLOP of the plan (`Plan.flops` in all).
      choices: of the numbers of slots; as planned when None.
      attention: see `lmscale.models.build_model`; by platform when None.
      checkpoint_seconds: at most this much work is lost to a kill.
      stop: asked before every dispatch.

    Raises:
      Preempted: when `stop` said so; every state is saved.
      GangError: when one of the processes that train together has failed alone.
    """
    jobs = []
    for pack in plan.packs:
        folders = [store.folder(run) for run in pack.runs]
        ended = agree(lambda folders=folders: [f.result() is not None for f in folders])
        left = [folder for folder, over in zip(folders, ended, strict=True) if not over]
        bar.skip(pack.flops - sum(flops.own_flops(folder.spec) for folder in left))
        if left:
            jobs.append(_Job(pack, RunQueue(left)))
    board = _Board(jobs, HELP_SECONDS * plan.devices.peak_flops * plan.devices.utilisation)
    corpora = _Corpora(open_corpus)

    def work(team: int) -> None:
        size = plan.devices.count // plan.teams
        devices = jax.devices()[team * size : (team + 1) * size]
        feeds: dict[tuple, Feed] = {}

        ahead = CompileAhead()

        def program_for(pack: Pack) -> Program:
            mesh = mesh_of(pack, devices)
            return program_of(pack, mesh, plan.devices.platform, attention)

        def feed_for(pack: Pack) -> Feed:
            key = (pack.fingerprint, pack.mesh)
            if key not in feeds:
                corpus = corpora(pack.runs[0].spec.data.corpus)
                feeds[key] = Feed(corpus, mesh_of(pack, devices))
            return feeds[key]

        def settle(pack: Pack) -> Pack:
            if choices is None:
                return pack
            return choices.settle(
                pack, lambda pack: training_rate(program_for(pack), pack, feed_for(pack))
            )

        def compile_next() -> None:
            following = board.following()
            if following is None or (following.fingerprint, following.mesh) not in feeds:
                return
            if choices is not None:
                following = choices.planned(following)
            ahead.begin(program_for(following), following, feed_for(following).corpus_shape)

        def train(pack: Pack, queue: RunQueue) -> None:
            bar.log(f"{pack.key.model.label}: {len(queue)} runs, {pack.n_slots} at a time")
            feed, program = feed_for(pack), program_for(pack)
            # Teams compile while others train.
            if plan.teams == 1 and jax.process_count() == 1:
                compile_next()
            train_pack(
                program,
                queue,
                feed,
                Evaluator(program, lambda evaluation: corpora(evaluation.corpus)),
                bar,
                kept_steps=kept_steps,
                checkpoint_seconds=checkpoint_seconds,
                stop=stop,
            )

        while (job := board.take()) is not None:
            try:
                _train_or_record(settle, train, job, plan.devices, bar.log)
            finally:
                board.leave(job)

    kept_steps = branch_steps([run for pack in plan.packs for run in pack.runs])
    if plan.teams == 1:
        work(0)
    else:
        _side_by_side(work, plan.teams)
    for job in jobs:
        for folder in job.queue.drain():
            bar.skip(flops.own_flops(folder.spec))
            if is_first():
                give_up(folder, jax.devices()[0].device_kind)


@dataclass
class _Job:
    """A pack, its runs that are left, and how many teams train them."""

    pack: Pack
    queue: RunQueue
    teams: int = 0


class _Board:
    """Hands jobs to teams: those that none is at in the order of the plan, then the largest.

    A program is slow to compile and quick to share, so teams work on different ones while they can.
    """

    def __init__(self, jobs: Sequence[_Job], worth_helping: float):
        self._jobs = list(jobs)
        #: FLOPs that must wait in a job for a second team to take it up.
        self._worth_helping = worth_helping
        self._changed = threading.Condition()

    def take(self) -> _Job | None:
        """The next job for a team; waits while others may yet free runs; None when all is done."""
        with self._changed:
            index = agree(self._choose)
            if index is None:
                return None
            self._jobs[index].teams += 1
            return self._jobs[index]

    def following(self) -> Pack | None:
        """The pack that would be handed out now."""
        with self._changed:
            index = self._untouched()
            return None if index is None else self._jobs[index].pack

    def leave(self, job: _Job) -> None:
        """A team has found nothing more to do in a job."""
        with self._changed:
            job.teams -= 1
            self._changed.notify_all()

    def _choose(self) -> int | None:
        while True:
            if (index := self._untouched()) is not None:
                return index
            costs = [job.queue.cost() for job in self._jobs]
            if max(costs, default=0) > self._worth_helping:
                return costs.index(max(costs))
            if not any(job.teams and job.queue for job in self._jobs):
                return None
            # Runs that start from another's state can be taken up once that state is there.
            self._changed.wait(timeout=1.0)

    def _untouched(self) -> int | None:
        """The first job that no team is at and that has runs which can start."""
        waiting = (i for i, job in enumerate(self._jobs) if not job.teams and job.queue.cost())
        return next(waiting, None)


class _Corpora:
    """Corpora by name, each opened once."""

    def __init__(self, open_corpus: Callable[[str], Corpus]):
        self._open, self._found, self._lock = open_corpus, {}, threading.Lock()

    def __call__(self, name: str) -> Corpus:
        with self._lock:
            if name not in self._found:
                self._found[name] = self._open(name)
            return self._found[name]


def _side_by_side(work: Callable[[int], None], teams: int) -> None:
    """Runs `work` in a thread a team, then raises what any of them raised: errors before preemption."""
    with ThreadPoolExecutor(teams) as pool:
        ends = [future.exception() for future in [pool.submit(work, team) for team in range(teams)]]
    errors = [error for error in ends if error is not None]
    if errors:
        raise next((e for e in errors if not isinstance(e, Preempted)), errors[0])


def _train_or_record(
    settle: Callable, train: Callable, job: _Job, devices: Devices, log: Callable
) -> None:
    pack, settled = job.pack, False
    while True:
        try:
            if not settled:
                pack, settled = settle(pack), True
            train(pack, job.queue)
            return
        except (Preempted, KeyboardInterrupt, GangError):
            raise
        except Exception as error:  # Whatever broke a pack must not end the sweep.
            reasons, sound = share_failure(error)
            memory = sound and any("RESOURCE_EXHAUSTED" in reason for reason in reasons)
            smallest = pack.mesh[0]
            if memory and pack.n_slots > smallest:
                slots = max(smallest, pack.n_slots // 2 // smallest * smallest)
                log(
                    f"{pack.key.model.label}: {pack.n_slots} runs do not fit in memory, trying {slots}"
                )
                pack = with_slots(pack, slots, devices)
                continue
            less = None
            if memory and devices.platform != "cpu":
                allowed = LEANER * pack.memory
                less = leaner(pack, devices, allowed, n_slots=pack.n_slots, mesh=pack.mesh)
            if less is not None:
                log(f"{pack.key.model.label}: does not fit in memory, trying with less of it")
                pack = less
                continue
            status = "out_of_memory" if memory else "failed"
            reason = reasons[0].splitlines()[0]
            left = [f for f in job.queue.drain() if f.status()["status"] not in ENDED]
            for folder in left:
                old = folder.status()
                folder.write_status(status, step=old["step"], seconds=old["seconds"], reason=reason)
                write_atomically(folder.path / "error.txt", traceback.format_exc())
            log(f"{pack.key.model.label}: {len(left)} runs {status}: {reason}")
            if not sound:
                raise GangError(f"not every process has failed: {reason}", 1) from error
            return
