"""Executes a plan: trains every run to its end and records every failure."""

from __future__ import annotations

import collections
import contextlib
import functools
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
from etils import epath

from lmscale import flops
from lmscale.compat import is_out_of_memory
from lmscale.data import Corpus
from lmscale.data.catalog import check_fingerprint
from lmscale.files import DiskError, disk_fault, write_atomically
from lmscale.parallel.distributed import (
    DistributedError,
    broadcast_from_main,
    is_main_process,
    share_failure,
)
from lmscale.planner.lineage import branch_steps
from lmscale.planner.packs import Pack, Plan, replan_with_less_memory, with_slots
from lmscale.planner.programs import CompileAhead, mesh_of, program_of, slow_attention
from lmscale.planner.slots import SlotChoices, training_rate
from lmscale.progress import Tracker
from lmscale.sweep.ownership import Claims, is_free
from lmscale.sweep.scheduler import PackQueue, Scheduler, Seat
from lmscale.sweep.store import Store
from lmscale.sweep.workers import run_workers
from lmscale.terminal import plural
from lmscale.training.batch_source import BatchSource
from lmscale.training.checkpoint import saved_steps
from lmscale.training.evaluation import Evaluator
from lmscale.training.loop import Preempted, train_pack
from lmscale.training.program import Program
from lmscale.training.resume import retrain_damaged_trunk
from lmscale.training.run_folder import ENDED, RunFolder
from lmscale.training.run_queue import RunQueue, give_up

#: Compiled programs that a worker keeps, because it may come back to a pack.
KEPT_PROGRAMS = 4
#: A pack that did not fit is planned again for this share of its predicted memory.
REPLAN_SHARE = 0.7


def execute(
    plan: Plan,
    store: Store,
    open_corpus: Callable[[str], Corpus],
    bar: Tracker,
    *,
    choices: SlotChoices | None = None,
    attention: str | None = None,
    checkpoint_seconds: float = 60.0,
    keep_every: int | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Trains every run of the plan that has not ended and that no other process trains.

    The plan's workers train side by side, each in a process of its own: while one compiles, another
    trains, and the longest runs go first (see `lmscale.sweep.scheduler`). A failure of one pack is
    written to its runs' status.json (and error.txt) and the next pack goes on. A pack that does not
    fit in memory is tried again with half the slots, then planned again with less memory.

    A run is claimed while it trains (see `lmscale.sweep.ownership`). Runs that other processes train
    are left to them, with a line that says so, also those that start from them.

    Args:
      plan: for the devices of this process, or of all that train together.
      store: where the runs live.
      open_corpus: by name; a function of a module where there are workers.
      bar: is told of every FLOP of the plan (`Plan.flops` in all).
      choices: of the numbers of slots; as planned when None.
      attention: see `lmscale.architectures.ModelSpec.module`; by platform when None.
      checkpoint_seconds: at most this much work is lost to a kill.
      keep_every: steps between states that are kept for good, beside those that other runs start from.
      stop: asked before every dispatch.

    Raises:
      Preempted: when `stop` said so; every state is saved.
      DistributedError: when one of the processes that train together has failed alone.
      WorkerError: when no worker process can be kept alive.
      DiskError: when the store could not be written; what is there is sound.
    """
    if is_main_process():
        for line in _mend_trunks(plan, store):
            bar.log(line)
    broadcast_from_main(lambda: None)
    queues = []
    for pack in plan.packs:
        folders = [store.folder(run) for run in pack.runs]
        ended = broadcast_from_main(functools.partial(_have_results, folders))
        left = [folder for folder, over in zip(folders, ended, strict=True) if not over]
        bar.skip(pack.flops - sum(flops.flops_without_start(folder.spec) for folder in left))
        queues.append(RunQueue(left))
    options = ExecuteOptions(
        plan, store.path, open_corpus, choices, attention, checkpoint_seconds, keep_every
    )
    with Claims() as claims:
        scheduler = Scheduler(plan, queues, bar, stop, claims)
        wanted = any(queues)
        while wanted:
            if plan.workers == 1:
                _train_packs(scheduler.seat(), options)
            else:
                run_workers(plan.workers, _train_packs, scheduler, Seat.METHODS, options)
            if scheduler.abandoned is not None:
                raise DiskError(scheduler.abandoned)
            wanted = scheduler.regain()
        for folder in scheduler.unstartable():
            bar.skip(flops.flops_without_start(folder.spec))
            if is_main_process():
                give_up(folder, jax.devices()[0].device_kind)
            scheduler.release(folder)
    if (others := scheduler.others_line()) is not None:
        bar.log(others)


def _have_results(folders: Sequence[RunFolder]) -> list[bool]:
    return [folder.result() is not None for folder in folders]


def _mend_trunks(plan: Plan, store: Store) -> list[str]:
    """Queues trunks again whose kept state is damaged and is needed by a run that is about to start."""
    runs = {run.spec.run_id: run for pack in plan.packs for run in pack.runs}
    lines: list[str] = []
    sound: set[tuple[str, int]] = set()
    while True:
        starts = {
            (run.spec.start.run, run.spec.start.step)
            for run in runs.values()
            if run.spec.start is not None and run.spec.start.run in runs
            if store.folder(run).result() is None
            if not saved_steps(store.folder(run).checkpoints)
        }
        found = [
            retrain_damaged_trunk(store.folder(runs[trunk]), step)
            for trunk, step in sorted(starts - sound)
            # A trunk that another process trains is left to it.
            if is_free(store.folder(runs[trunk]).path)
        ]
        sound |= starts
        lines += filter(None, found)
        # A trunk that is trained again may itself start from the state of another run.
        if not any(found):
            return lines


@dataclass(frozen=True)
class ExecuteOptions:
    """The arguments of `execute` that every worker needs."""

    plan: Plan
    store: epath.Path
    open_corpus: Callable[[str], Corpus]
    choices: SlotChoices | None
    attention: str | None
    checkpoint_seconds: float
    keep_every: int | None = None


def _train_packs(seat: Seat, options: ExecuteOptions) -> None:
    """What a worker does: packs from the scheduler, until there are none."""
    trainer = _PackTrainer(seat, options)
    while (index := seat.take()) is not None:
        queue = PackQueue(seat, index)
        try:
            _train_or_record(trainer, options.plan.packs[index], queue, options, seat.log)
        except Exception as error:
            fault = _disk_fault(error, options)
            if fault is None:
                raise
            # Recording a failure may fail on the same disk, so disk faults are handled only here.
            _record_disk_fault(queue, fault)
            seat.abandon(fault)
        finally:
            seat.leave(index)


class _PackTrainer:
    """Trains packs one after another, and keeps what later packs use again: programs and tokens."""

    def __init__(self, seat: Seat, options: ExecuteOptions):
        self.seat, self.options, self.plan = seat, options, options.plan
        self.devices = jax.devices()
        self.corpora = functools.cache(options.open_corpus)
        runs = [run for pack in self.plan.packs for run in pack.runs]
        self.kept_steps = branch_steps(runs, options.keep_every)
        self.sources: dict[tuple, BatchSource] = {}
        self.ahead = CompileAhead()
        self.kept: collections.deque[tuple[Pack, Program]] = collections.deque(maxlen=KEPT_PROGRAMS)
        self.told: set[tuple] = set()

    def settle(self, pack: Pack) -> Pack:
        """The pack with as many slots as were measured to be fastest, where that is measured."""
        choices = self.options.choices
        if choices is None:
            return pack

        def rate(pack: Pack) -> float:
            return training_rate(self._program(pack), pack, self._source(pack))

        return choices.settle(pack, rate, self.seat.log)

    def train(self, pack: Pack, queue: PackQueue) -> None:
        """Trains the runs of a queue."""
        self._tell(pack, len(queue))
        source, program = self._source(pack), self._program(pack)
        # Workers compile while others train.
        if self.plan.workers == 1 and jax.process_count() == 1:
            self._compile_next()
        train_pack(
            program,
            queue,
            source,
            Evaluator(program, lambda evaluation: self.corpora(evaluation.corpus)),
            self.seat,
            kept_steps=self.kept_steps,
            checkpoint_seconds=self.options.checkpoint_seconds,
            stop=self.seat.stopped,
        )

    def _tell(self, pack: Pack, n_runs: int) -> None:
        # A worker may come back to a pack.
        if (kind := (pack.key, pack.fingerprint, pack.n_slots)) in self.told:
            return
        self.told.add(kind)
        line = f"{pack.key.model.label}: {n_runs} runs, {pack.n_slots} at a time"
        if self.options.attention is None and (why := slow_attention(pack.key, self.plan.devices)):
            line += f"; attention computes all scores, as {why}"
        if why := pack.recurrence(self.plan.devices.platform).reason:
            line += f"; time steps are kernels of their own, as {why}"
        self.seat.log(line)

    def _program(self, pack: Pack) -> Program:
        program = next((program for known, program in self.kept if known == pack), None)
        if program is None:
            mesh = mesh_of(pack, self.devices)
            platform, kind = self.plan.devices.platform, self.plan.devices.kind
            program = program_of(pack, mesh, platform, self.options.attention, kind)
            self.kept.append((pack, program))
        return program

    def _source(self, pack: Pack) -> BatchSource:
        key = (pack.fingerprint, pack.mesh)
        if key not in self.sources:
            data = pack.runs[0].spec.data
            corpus = self.corpora(data.corpus)
            check_fingerprint(corpus, data.fingerprint)
            self.sources[key] = BatchSource(corpus, mesh_of(pack, self.devices))
        return self.sources[key]

    def _compile_next(self) -> None:
        """Starts to compile the program of the next pack, where its tokens are at hand."""
        index = self.seat.following()
        if index is None:
            return
        following = self.plan.packs[index]
        if (following.fingerprint, following.mesh) in self.sources:
            if self.options.choices is not None:
                following = self.options.choices.planned(following)
            shape = self._source(following).corpus_shape
            self.ahead.begin(self._program(following), following, shape)


def _train_or_record(
    trainer: _PackTrainer,
    pack: Pack,
    queue: PackQueue,
    options: ExecuteOptions,
    log: Callable,
) -> None:
    devices, settled = options.plan.devices, False
    while True:
        try:
            if not settled:
                pack, settled = trainer.settle(pack), True
            trainer.train(pack, queue)
            return
        except (Preempted, KeyboardInterrupt, DistributedError):
            raise
        except Exception as error:  # One failed pack must not end the sweep.
            if _disk_fault(error, options) is not None:
                raise
            reasons, sound = share_failure(error)
            memory = sound and any(map(is_out_of_memory, reasons))
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
                allowed = REPLAN_SHARE * pack.memory
                less = replan_with_less_memory(
                    pack, devices, allowed, n_slots=pack.n_slots, mesh=pack.mesh
                )
            if less is not None:
                log(f"{pack.key.model.label}: does not fit in memory, trying with less of it")
                pack = less
                continue
            status = "out_of_memory" if memory else "failed"
            reason = reasons[0].splitlines()[0]
            left, where = 0, ""
            for folder in queue.drain():
                if (old := folder.status())["status"] not in ENDED:
                    place = {"step": old["step"], "seconds": old["seconds"]}
                    folder.write_status(status, **place, reason=reason)
                    write_atomically(folder.path / "error.txt", traceback.format_exc())
                    left, where = left + 1, where or f"; traceback in {folder.path / 'error.txt'}"
                queue.release(folder)
            log(f"{pack.key.model.label}: {plural(left, 'run')} {status}: {reason}{where}")
            if not sound:
                raise DistributedError(f"not every process has failed: {reason}", 1) from error
            return


def _disk_fault(error: Exception, options: ExecuteOptions) -> str | None:
    """What is wrong with the store's disk, if that caused the error; None among processes that train together,
    where a disk fault is an error like any other."""
    return disk_fault(error, options.store) if jax.process_count() == 1 else None


def _record_disk_fault(queue: PackQueue, fault: str) -> None:
    """Marks the runs under way as failed, if that can still be written.

    Claiming a run also writes to the disk.
    """
    with contextlib.suppress(OSError):
        for folder in queue.drain():
            old = folder.status()
            if old["status"] == "running":
                place = {"step": old["step"], "seconds": old["seconds"]}
                folder.write_status("failed", **place, reason=fault)
