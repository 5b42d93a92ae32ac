"""The loop: trains the runs of a pack, slot by slot, until none is left.

A pack has R slots. Every slot holds one run at its own step; when a run ends, the next one of the
queue takes its slot, in the same compiled program. The host knows every slot's step without asking
the device, so nothing waits for a number: losses are read one dispatch behind.

How steps are grouped into dispatches never changes a result: a run's steps are the same however they
are cut. A dispatch ends where a slot has an event (an evaluation, a state to keep, the end).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeVar, cast

import numpy as np

from lmscale import flops
from lmscale.files import DamagedError
from lmscale.parallel.distributed import broadcast_from_main
from lmscale.progress import Reporter
from lmscale.serialize import SpecError
from lmscale.training.batch_source import BatchSource
from lmscale.training.checkpoint import Checkpoints, OtherVersionError
from lmscale.training.evaluation import Evaluator
from lmscale.training.metrics_log import log_interval
from lmscale.training.program import Program
from lmscale.training.result import non_finite, result, without_windows, worse_than_guessing
from lmscale.training.resume import take_up
from lmscale.training.run_folder import RunFolder
from lmscale.training.run_queue import RunSource
from lmscale.training.saver import Saver
from lmscale.training.slot import Slot, falls_no_more
from lmscale.training.spikes import SpikeCounter
from lmscale.training.state import State, all_finite, packed_hyperparameters
from lmscale.training.step import METRICS

T = TypeVar("T")

#: Steps in a row with a gradient norm that isn't finite, after which a run counts as diverged. Clipping
#: by such a norm makes every gradient 0, so the run learns no more.
LOST_GRADIENTS = 10


class Preempted(Exception):
    """Training stopped because it was asked to; every run's state is saved."""


class RunFault(Exception):
    """What is wrong with one run of a pack, in words; the same in all processes, and no fault of the other runs."""


def train_pack(
    program: Program,
    queue: RunSource,
    source: BatchSource,
    evaluator: Evaluator,
    bar: Reporter,
    *,
    kept_steps: Mapping[str, Collection[int]] | None = None,
    checkpoint_seconds: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Trains the runs of a queue to their ends, from their checkpoints where there are any.

    Args:
      program: built for the key that all runs share.
      queue: where the slots take their runs from, until none is left that can start.
      source: of their batches.
      evaluator: their evaluation sets.
      bar: counts the training FLOPs (exact convention) of all runs.
      kept_steps: run -> the steps at which other runs start from it.
      checkpoint_seconds: from one save to the next, or as long as a save takes. So much work is lost to a kill.
      stop: asked before every dispatch; when it returns True, everything is saved.

    Raises:
      Preempted: when `stop` returned True.
      Exception: whatever broke the program; the runs in its slots are back in the queue then.
    """
    pack = _Pack(program, queue, source, evaluator, bar, kept_steps or {})
    last_save = time.monotonic()

    def save_is_due() -> bool:
        return time.monotonic() - last_save >= checkpoint_seconds and not pack.is_saving()

    try:
        while True:
            if stop():
                pack.save("preempted")
                raise Preempted
            pack.fill()
            slots = pack.slots()
            if not slots:
                return
            events = [slot.next_event() for slot in slots]
            n_steps = min(
                program.chunk_steps,
                *(event - slot.step for slot, event in zip(slots, events, strict=True)),
            )
            # A run that was killed after its last step has nothing left to train.
            if n_steps:
                pack.dispatch(n_steps)
            for slot, event in zip(slots, events, strict=True):
                if slot.step == event:
                    pack.event_or_fail(slot)
            if broadcast_from_main(save_is_due):
                pack.save("running")
                last_save = time.monotonic()
    except Preempted:
        raise
    except BaseException:
        queue.put_back([slot.folder for slot in pack.slots()])
        raise
    finally:
        pack.close()


class _Pack:
    """The device state of a pack and the slots' bookkeeping."""

    def __init__(
        self,
        program: Program,
        queue: RunSource,
        source: BatchSource,
        evaluator: Evaluator,
        bar: Reporter,
        kept_steps: Mapping[str, Collection[int]],
    ):
        self._program = program
        self._queue = queue
        self._source = source
        self._evaluate = evaluator
        self._bar = bar
        self._kept_steps = kept_steps
        self._state: State = program.empty()
        self._slots: list[Slot | None] = [None] * program.n_slots
        self._hyper: dict[str, np.ndarray] | None = None
        self._told_unchecked = False
        self._saver = Saver()
        #: The last dispatch: its metrics, still on the device, [(slot, step before)] and its steps.
        self._unread: tuple[dict[str, Any], list[tuple[Slot, int]], int] | None = None

    def slots(self) -> list[Slot]:
        return [slot for slot in self._slots if slot is not None]

    def fill(self) -> None:
        """Puts the next runs of the queue into free slots."""
        fresh, queue = [], self._queue
        for index, taken in enumerate(self._slots):
            if taken is not None:
                continue
            slot = None
            while slot is None and (folder := queue.take()) is not None:
                slot = self._enter_or_fail(index, folder, queue)
            if slot is None:
                break
            self._slots[index] = slot
            if slot.step == 0:
                fresh.append(slot)
        if fresh:
            seeds, mask = np.zeros(len(self._slots), np.int32), np.zeros(len(self._slots), bool)
            for slot in fresh:
                seeds[slot.index], mask[slot.index] = slot.spec.seed, True
            self._state = self._program.reset(self._state, seeds, mask)

    def _enter_or_fail(self, index: int, folder: RunFolder, queue: RunSource) -> Slot | None:
        """Puts a run into a slot; None where it cannot be trained: its spec asks for what its corpus has not, or
        the state that it starts from is damaged or of another version."""
        try:
            return self._enter(index, folder)
        except (DamagedError, OtherVersionError, SpecError) as error:
            # All processes of a group get the same error. The other runs are not affected.
            self._bar.log(f"{folder.path.name} failed: {error}")
            self._bar.skip(flops.flops_without_start(folder.spec))
            folder.write_status("failed", step=0, seconds=0.0, reason=str(error))
            queue.release(folder)
            return None
        except BaseException:
            queue.put_back([folder])
            raise

    def _enter(self, index: int, folder: RunFolder) -> Slot:
        spec = folder.spec
        if fault := folder.create():
            self._bar.log(f"{folder.path.name}: {fault}")
        self._evaluate.check(spec)
        checkpoints = Checkpoints(folder.checkpoints, folder.run_id)
        try:
            found = take_up(folder, checkpoints, self._program.abstract_run, self._bar.log)
        except BaseException:
            checkpoints.close()
            raise
        step, extra = found.step, found.extra
        if not found.checked and not self._told_unchecked:
            self._told_unchecked = True
            self._bar.log(
                f"checkpoints of an earlier version, such as {folder.path.name}'s, can't be checked"
            )
        if found.state is not None:
            self._state = self._program.put(self._state, np.int32(index), found.state)
        begin = spec.start.step if spec.start else 0
        step_flops = flops.step_flops(spec)
        self._bar.skip((step - begin) * step_flops)
        folder.write_status("running", step=step, seconds=found.seconds)
        self._hyper = None
        return Slot(
            index=index,
            folder=folder,
            checkpoints=checkpoints,
            order=self._source.order(spec),
            step=step,
            seconds=found.seconds,
            kept=frozenset(self._kept_steps.get(folder.path.name, ())),
            step_flops=step_flops,
            stopped=found.from_checkpoint and broadcast_from_main(lambda: falls_no_more(folder)),
            log=found.log,
            spikes=SpikeCounter(extra.get("spikes")),
            good=tuple(extra["good"]) if extra.get("good") else None,
            lost_gradients=extra.get("lost_gradients", 0),
            window=[tuple(row) for row in extra.get("window", ())],
            saved_step=step if found.from_checkpoint else -1,
        )

    def _device_kind(self) -> str:
        return self._program.mesh.devices.flat[0].device_kind

    def dispatch(self, n_steps: int) -> None:
        """Queues `n_steps` steps of every slot, then reads the numbers of the dispatch before."""
        active = np.array([slot is not None for slot in self._slots])
        runs = [
            None if slot is None else (slot.spec, slot.order, slot.step) for slot in self._slots
        ]
        data = self._source.chunk(runs, n_steps, self._program.chunk_steps)
        self._state, metrics = self._program.train(
            self._state, self._hyperparameters(), data, np.int32(n_steps), active
        )
        self._read()
        self._unread = (metrics, [(slot, slot.step) for slot in self.slots()], n_steps)
        for slot in self.slots():
            slot.step += n_steps
            self._bar.update(n_steps * slot.step_flops, slot.name)

    def _hyperparameters(self) -> dict[str, np.ndarray]:
        if self._hyper is None:
            some = next(slot for slot in self._slots if slot is not None)
            self._hyper = packed_hyperparameters([(slot or some).spec for slot in self._slots])
        return self._hyper

    def _read(self) -> None:
        """Waits for the metrics of the last dispatch and writes their records."""
        if self._unread is None:
            self._drop_lost()
            return
        metrics, slots, n_steps = self._unread
        self._unread = None
        metrics = {name: np.asarray(values)[:n_steps] for name, values in metrics.items()}
        # After the wait, because this process may have been held up in it.
        self._drop_lost()
        for slot, before in slots:
            if slot.ended:
                continue
            columns = [metrics[k][:, slot.index].tolist() for k in METRICS if k in metrics]
            self._record(slot, before, list(zip(*columns, strict=True)))

    def _drop_lost(self) -> None:
        """Drops the runs that another process has taken over because this one was silent."""
        slots = self.slots()
        lost = broadcast_from_main(
            lambda: [slot.index for slot in slots if not self._queue.holds(slot.folder)]
        )
        for slot in slots:
            if slot.index not in lost:
                continue
            self._bar.log(
                f"{slot.name}: another process has taken it over while this one was silent"
            )
            self._bar.skip(slot.left_flops())
            self._leave(slot)

    def _leave(self, slot: Slot) -> None:
        """Frees a run's slot."""
        self._saver.drop(slot.checkpoints)
        slot.checkpoints.close()
        slot.ended = True
        self._slots[slot.index] = None
        self._hyper = None
        self._queue.release(slot.folder)

    def _record(self, slot: Slot, before: int, rows: list[tuple[float, ...]]) -> None:
        """Adds the numbers of consecutive steps. A run with a loss that isn't finite ends here."""
        spec = slot.spec
        records: list[dict[str, Any]] = []
        every = log_interval(spec.steps)
        now = time.monotonic()
        # The steps of a dispatch arrive together, so each is given an even share of its time.
        seconds, slot.last_read = (now - slot.last_read) / len(rows), now
        for step, row in enumerate(rows, before + 1):
            loss, grad_norm = row[:2]
            slot.lost_gradients = 0 if math.isfinite(grad_norm) else slot.lost_gradients + 1
            fault = None
            if not math.isfinite(loss):
                fault = f"the training loss is {loss} at step {step}"
            elif slot.lost_gradients == LOST_GRADIENTS:
                fault = (
                    f"the gradient norm is {grad_norm} at step {step} as in the "
                    f"{LOST_GRADIENTS - 1} steps before"
                )
            if fault:
                slot.log.append(records)
                self._end_diverged(slot, step, fault)
                return
            slot.good = (step, loss)
            slot.spikes.add((loss,))
            slot.window.append(row)
            slot.timed_steps += 1
            slot.timed_seconds += seconds
            if step % every == 0 or step == spec.steps:
                records.append(slot.take_summary(step))
        slot.log.append(records)

    def event_or_fail(self, slot: Slot) -> None:
        """Does what is due at a run's step. A run whose records are damaged fails alone."""
        try:
            self._event(slot)
        except RunFault as fault:
            self._bar.skip(slot.left_flops())
            self._fail(slot, fault)

    def _event(self, slot: Slot) -> None:
        """Keeps a run's state, evaluates it, ends it: whatever is due at its step.

        Raises:
          RunFault: the records of the run are damaged.
        """
        self._read()
        if slot.ended:
            return
        if slot.step in slot.kept:
            self._keep(slot)
        if not slot.evaluates():
            return
        # A run killed between its last checkpoint and its result has been evaluated already.
        if not _read_by_main(slot.is_evaluated):
            losses = self._evaluate(self._state, slot.index, slot.spec)
            self._drop_lost()
            if slot.ended:
                return
            fault = non_finite(losses, slot.step)
            if slot.step == slot.spec.steps and slot.spec.stopping is None:
                # A finite loss can be worse than guessing, which is no result either.
                fault = fault or worse_than_guessing(losses, slot.spec.model.vocab_size, slot.step)
            if fault:
                self._end_diverged(slot, slot.step, fault)
                return
            record = {**slot.place(slot.step), "eval": losses}
            if slot.step < slot.spec.steps and slot.spec.stopping is None:
                # Only the evaluation that becomes the result needs its windows.
                record = without_windows(record)
            slot.log.append([record])
            for waited in self.slots():
                waited.last_read = time.monotonic()
        if slot.step < slot.spec.steps and not _read_by_main(lambda: falls_no_more(slot.folder)):
            return
        one = self._program.take(self._state, np.int32(slot.index))
        if not all_finite(one["params"]):
            # Where nothing is evaluated, no loss shows what the last update has broken.
            fault = f"a parameter is not finite after step {slot.step}"
            self._end_diverged(slot, slot.step, fault)
            return
        self._checkpoint(slot, one)
        self._saver.wait(slot.checkpoints)
        self._drop_lost()
        if slot.ended:
            return
        self._bar.skip(slot.left_flops())
        self._end(slot, "done", None)

    def _keep(self, slot: Slot) -> None:
        """Saves the state that other runs start from."""
        branches = Checkpoints(slot.folder.branches, slot.folder.run_id, keep_all=True)
        if broadcast_from_main(lambda: slot.step not in branches.steps()):
            branches.save(slot.step, self._program.take(self._state, np.int32(slot.index)), {})
            branches.wait()
        branches.close()

    def _checkpoint(self, slot: Slot, one: State | None = None) -> None:
        if slot.saved_step != slot.step:
            if one is None:
                one = self._program.take(self._state, np.int32(slot.index))
            extra = {
                "window": slot.window,
                "metrics": slot.log.mark(),
                "spikes": slot.spikes.save(),
                "good": slot.good,
                "lost_gradients": slot.lost_gradients,
            }
            self._saver.save(slot.checkpoints, slot.step, one, extra)
            slot.saved_step = slot.step

    def _end_diverged(self, slot: Slot, step: int, fault: str) -> None:
        self._bar.skip(slot.left_flops())
        slot.step = step
        if slot.good is not None:
            fault += f"; the last good loss is {slot.good[1]:.4g} at step {slot.good[0]}"
        self._end(slot, "diverged", fault)

    def _end(self, slot: Slot, status: str, reason: str | None) -> None:
        def write() -> None:
            # The result is read from the log.
            slot.log.check()
            values = result(slot.folder, status, reason, self._device_kind(), slot.step)
            values["loss_spikes"] = slot.spikes.count
            slot.folder.end(values, slot.log.mark(), step=slot.step, seconds=slot.trained_seconds())

        try:
            _read_by_main(write)
        except RunFault as fault:
            self._fail(slot, fault)
        else:
            self._leave(slot)

    def _fail(self, slot: Slot, fault: RunFault) -> None:
        self._bar.log(f"{slot.name} failed: {fault}")
        seconds = slot.trained_seconds()
        slot.folder.write_status("failed", step=slot.step, seconds=seconds, reason=str(fault))
        self._leave(slot)

    def save(self, status: str) -> None:
        """Saves every run where it stands."""
        self._read()
        for slot in self.slots():
            self._checkpoint(slot)
        for slot in self.slots():
            if status == "preempted":
                self._saver.wait(slot.checkpoints)
            slot.folder.write_status(status, step=slot.step, seconds=slot.trained_seconds())

    def is_saving(self) -> bool:
        """Whether the last save of the runs is not written yet."""
        return self._saver.is_saving()

    def close(self) -> None:
        self._saver.close()
        for slot in self.slots():
            slot.checkpoints.close()


def _read_by_main(decide: Callable[[], T]) -> T:
    """`broadcast_from_main` of what the main process reads of a run's records.

    Raises:
      RunFault: they are damaged; in all processes, so that all go on with the other runs.
    """

    def or_fault() -> tuple[T | None, str | None]:
        try:
            return decide(), None
        except DamagedError as error:
            return None, str(error)

    value, fault = broadcast_from_main(or_fault)
    if fault is not None:
        raise RunFault(fault)
    return cast(T, value)
