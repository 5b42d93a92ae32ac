"""The loop: trains the runs of a pack, slot by slot, until none is left.

A pack has R slots. Every slot holds one run at its own step; when a run ends, the next one of the
queue takes its slot, in the same compiled program. The host knows every slot's step without asking
the device, so nothing waits for a number: losses are read one dispatch behind.

What a dispatch holds never changes a result. It runs as many steps as no slot has an event within
(an evaluation, the end), and a run's steps are the same however they are cut.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmscale import flops
from lmscale.files import DamagedError
from lmscale.parallel.distributed import agree, is_first
from lmscale.progress import Tracker
from lmscale.spec import RunSpec
from lmscale.training.checkpoint import Checkpoints, saved_steps
from lmscale.training.evaluation import Evaluator
from lmscale.training.feed import Feed
from lmscale.training.metrics_log import MetricsLog, log_interval
from lmscale.training.result import lowest, non_finite, result, without_windows, worse_than_guessing
from lmscale.training.resume import take_up
from lmscale.training.run_folder import RunFolder
from lmscale.training.spikes import SpikeCounter
from lmscale.training.step import METRICS, Program, State, all_finite, packed_hyperparameters

#: Steps in a row whose gradient norm isn't finite, after which a run counts as diverged: clipped by
#: such a norm every gradient is 0, so that it learns no more.
LOST_GRADIENTS = 10


class RunQueue:
    """Runs that wait for a slot; several packs of one program may draw from it, in threads.

    They leave in order, but a run that starts from another waits for it.
    """

    def __init__(self, folders: Sequence[RunFolder]):
        self._waiting = list(folders)
        # Asked for at every run that is taken.
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
            name = agree(self._first_that_can_start)
            folder = next((f for f in self._waiting if f.path.name == name), None)
            if folder is not None:
                self._waiting.remove(folder)
            return folder

    def put_back(self, folders: Sequence[RunFolder]) -> None:
        """Returns runs to the head of the queue."""
        with self._lock:
            self._waiting[:0] = folders

    def release(self, folder: RunFolder) -> None:
        """A run that was taken has ended, or is another process's now."""

    def holds(self, folder: RunFolder) -> bool:
        """Whether a run that was taken is still this process's to write; without claims it is."""
        return True

    def drain(self) -> list[RunFolder]:
        """Takes all that wait, whether they can start or not."""
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
        # Asked often, and a run that can start once always can.
        if folder not in self._ready and _can_start(folder):
            self._ready.add(folder)
        return folder in self._ready


class Preempted(Exception):
    """Training stopped because it was asked to; every run's state is saved."""


@dataclass
class _Slot:
    """A run in its slot, and what the host knows of it."""

    index: int
    folder: RunFolder
    checkpoints: Checkpoints
    order: Any
    step: int
    seconds: float
    #: Steps whose state other runs start from.
    kept: frozenset[int]
    step_flops: float
    #: Whether early stopping had ended the run when it was killed.
    stopped: bool
    log: MetricsLog
    spikes: SpikeCounter
    #: (step, training loss) of the last finite loss.
    good: tuple[int, float] | None
    #: Steps in a row, up to now, whose gradient norm wasn't finite.
    lost_gradients: int
    started: float = field(default_factory=time.monotonic)
    #: What the program measures (`METRICS`) at each step since the last record.
    window: list[tuple[float, ...]] = field(default_factory=list)
    #: Those of them that were timed, as after a restart not all are, and their seconds.
    timed_steps: int = 0
    timed_seconds: float = 0.0
    last_read: float = field(default_factory=time.monotonic)
    saved_step: int = -1
    ended: bool = False

    @property
    def spec(self) -> RunSpec:
        return self.folder.spec

    def next_event(self) -> int:
        """The next step at which this run evaluates, is kept or ends."""
        if self.stopped:
            return self.step
        every, last = self.spec.eval_every, self.spec.steps
        regular = last if every is None else (self.step // every + 1) * every
        chosen = (step for step in (*self.spec.eval_steps, *self.kept) if step > self.step)
        return min(last, regular, *chosen)

    def evaluates(self) -> bool:
        """Whether an evaluation is due at this step."""
        spec = self.spec
        regular = spec.eval_every is not None and self.step % spec.eval_every == 0
        return regular or self.step in spec.eval_steps or self.step == spec.steps

    def trained_seconds(self) -> float:
        return self.seconds + time.monotonic() - self.started


def train_pack(
    program: Program,
    queue: RunQueue,
    feed: Feed,
    evaluator: Evaluator,
    bar: Tracker,
    *,
    kept_steps: Mapping[str, Collection[int]] | None = None,
    checkpoint_seconds: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Trains the runs of a queue to their ends, taking up checkpoints where there are any.

    Args:
      program: built for the key that all runs share.
      queue: where the slots take their runs from, until none is left that can start.
      feed: their training tokens.
      evaluator: their evaluation sets.
      bar: counts the training FLOPs (exact convention) of all runs.
      kept_steps: run -> the steps at which other runs start from it.
      checkpoint_seconds: at most this much work is lost to a kill.
      stop: asked before every dispatch; when it says so, everything is saved and `Preempted` raised.

    Raises:
      Preempted: see `stop`.
      Exception: whatever broke the program; the runs in its slots are then back in the queue.
    """
    pack = _Pack(program, queue, feed, evaluator, bar, kept_steps or {})
    last_save = time.monotonic()

    def save_is_due() -> bool:
        return time.monotonic() - last_save >= checkpoint_seconds

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
                    pack.event(slot)
            if agree(save_is_due):
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
        queue: RunQueue,
        feed: Feed,
        evaluator: Evaluator,
        bar: Tracker,
        kept_steps: Mapping[str, Collection[int]],
    ):
        self._program = program
        self._queue = queue
        self._feed = feed
        self._evaluate = evaluator
        self._bar = bar
        self._kept_steps = kept_steps
        self._state: State = program.empty()
        self._slots: list[_Slot | None] = [None] * program.n_slots
        self._hyper = None
        self._told_unchecked = False
        #: The last dispatch: its metrics, still on the device, [(slot, step before)] and its steps.
        self._unread: tuple[dict[str, Any], list[tuple[_Slot, int]], int] | None = None

    def slots(self) -> list[_Slot]:
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

    def _enter_or_fail(self, index: int, folder: RunFolder, queue: RunQueue) -> _Slot | None:
        """The run in a slot; None where the state that it starts from is damaged."""
        try:
            return self._enter(index, folder)
        except DamagedError as error:
            # The same in all processes that train together. It is this run's alone.
            self._bar.log(f"{folder.path.name} failed: {error}")
            self._bar.skip(flops.flops_without_start(folder.spec))
            folder.write_status("failed", step=0, seconds=0.0, reason=str(error))
            return None
        except BaseException:
            queue.put_back([folder])
            raise

    def _enter(self, index: int, folder: RunFolder) -> _Slot:
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
        return _Slot(
            index=index,
            folder=folder,
            checkpoints=checkpoints,
            order=self._feed.order(spec),
            step=step,
            seconds=found.seconds,
            kept=frozenset(self._kept_steps.get(folder.path.name, ())),
            step_flops=step_flops,
            stopped=found.from_checkpoint and agree(lambda: _falls_no_more(folder)),
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
        runs = [slot and (slot.spec, slot.order, slot.step) for slot in self._slots]
        data = self._feed.chunk(runs, n_steps, self._program.chunk_steps)
        self._state, metrics = self._program.train(
            self._state, self._hyperparameters(), data, np.int32(n_steps), active
        )
        self._read()
        self._unread = (metrics, [(slot, slot.step) for slot in self.slots()], n_steps)
        for slot in self.slots():
            slot.step += n_steps
            self._bar.update(n_steps * slot.step_flops, slot.folder.path.name)

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
        # After the wait, in which this process may have been held up.
        self._drop_lost()
        for slot, before in slots:
            if slot.ended:
                continue
            columns = [metrics[k][:, slot.index].tolist() for k in METRICS if k in metrics]
            self._record(slot, before, list(zip(*columns, strict=True)))

    def _drop_lost(self) -> None:
        """Leaves the runs that another process has taken over, as this one had fallen silent."""
        slots = self.slots()
        lost = agree(lambda: [slot.index for slot in slots if not self._queue.holds(slot.folder)])
        for slot in slots:
            if slot.index not in lost:
                continue
            name = slot.folder.path.name
            self._bar.log(f"{name}: another process has taken it over while this one was silent")
            self._bar.skip((slot.spec.steps - slot.step) * slot.step_flops)
            self._leave(slot)

    def _leave(self, slot: _Slot) -> None:
        """Frees a run's slot."""
        slot.checkpoints.close()
        slot.ended = True
        self._slots[slot.index] = None
        self._hyper = None
        self._queue.release(slot.folder)

    def _record(self, slot: _Slot, before: int, rows: list[tuple[float, ...]]) -> None:
        """Adds the numbers of consecutive steps; a run whose numbers go bad ends here."""
        spec, records = slot.spec, []
        every = log_interval(spec.steps)
        now = time.monotonic()
        # The steps of a dispatch come all at once, so each took an even share of it.
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
                records.append(self._summary(slot, step))
                slot.window, slot.timed_steps, slot.timed_seconds = [], 0, 0.0
        slot.log.append(records)

    def _summary(self, slot: _Slot, step: int) -> dict[str, Any]:
        spec, n = slot.spec, len(slot.window)
        loss, grad_norm, lr, *piece = zip(*slot.window, strict=True)
        noise = {}
        if piece:
            # Means of |G_b|^2 of pieces and |G_B|^2 of whole batches: the parts of the noise scale.
            noise["grad_squared"] = math.fsum(norm**2 for norm in grad_norm) / n
            noise["piece_grad_squared"] = math.fsum(piece[0]) / n
        return {
            **_place(slot, step),
            "loss": math.fsum(loss) / n,
            "grad_norm": math.fsum(grad_norm) / n,
            "lr": lr[-1],
            **noise,
            "steps_averaged": n,
            "tokens_per_second": slot.timed_steps * spec.batch_tokens / slot.timed_seconds,
        }

    def event(self, slot: _Slot) -> None:
        """Keeps a run's state, evaluates it, ends it: whatever is due at its step."""
        self._read()
        if slot.ended:
            return
        if slot.step in slot.kept:
            self._keep(slot)
        if not slot.evaluates():
            return
        # A run killed between its last checkpoint and its result has been evaluated already.
        if not agree(lambda: _is_evaluated(slot)):
            losses = self._evaluate(self._state, slot.index, slot.spec)
            self._drop_lost()
            if slot.ended:
                return
            fault = non_finite(losses, slot.step)
            if slot.step == slot.spec.steps and slot.spec.stopping is None:
                # A finite loss can be no result either.
                fault = fault or worse_than_guessing(losses, slot.spec.model.vocab_size, slot.step)
            if fault:
                self._end_diverged(slot, slot.step, fault)
                return
            record = {**_place(slot, slot.step), "eval": losses}
            if slot.step < slot.spec.steps and slot.spec.stopping is None:
                # Only the evaluation that becomes the result needs its windows.
                record = without_windows(record)
            slot.log.append([record])
            for waited in self.slots():
                waited.last_read = time.monotonic()
        if slot.step < slot.spec.steps and not agree(lambda: _falls_no_more(slot.folder)):
            return
        one = self._program.take(self._state, np.int32(slot.index))
        if not all_finite(one["params"]):
            # The last update may break what no loss has seen, as where there is no evaluation.
            fault = f"a parameter is not finite after step {slot.step}"
            self._end_diverged(slot, slot.step, fault)
            return
        self._checkpoint(slot, one)
        slot.checkpoints.wait()
        self._drop_lost()
        if slot.ended:
            return
        self._bar.skip((slot.spec.steps - slot.step) * slot.step_flops)
        self._end(slot, "done", None)

    def _keep(self, slot: _Slot) -> None:
        """Saves the state that other runs start from."""
        branches = Checkpoints(slot.folder.branches, slot.folder.run_id, keep_all=True)
        if agree(lambda: slot.step not in branches.steps()):
            branches.save(slot.step, self._program.take(self._state, np.int32(slot.index)), {})
            branches.wait()
        branches.close()

    def _checkpoint(self, slot: _Slot, one: State | None = None) -> None:
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
            slot.checkpoints.save(slot.step, one, extra)
            slot.saved_step = slot.step

    def _end_diverged(self, slot: _Slot, step: int, fault: str) -> None:
        self._bar.skip((slot.spec.steps - slot.step) * slot.step_flops)
        slot.step = step
        if slot.good is not None:
            fault += f"; the last good loss is {slot.good[1]:.4g} at step {slot.good[0]}"
        self._end(slot, "diverged", fault)

    def _end(self, slot: _Slot, status: str, reason: str | None) -> None:
        if is_first():
            # The result is read from it.
            slot.log.check()
            values = result(slot.folder, status, reason, self._device_kind(), slot.step)
            values["loss_spikes"] = slot.spikes.count
            slot.folder.end(values, slot.log.mark(), step=slot.step, seconds=slot.trained_seconds())
        self._leave(slot)

    def save(self, status: str) -> None:
        """Saves every run where it stands."""
        self._read()
        for slot in self.slots():
            self._checkpoint(slot)
        for slot in self.slots():
            if status == "preempted":
                slot.checkpoints.wait()
            slot.folder.write_status(status, step=slot.step, seconds=slot.trained_seconds())

    def close(self) -> None:
        for slot in self.slots():
            slot.checkpoints.close()


def give_up(folder: RunFolder, device: str) -> None:
    """Writes down why a run cannot start from the run that its spec names."""
    spec, trunk = folder.spec, folder.trunk()
    ended = (trunk.result() or {}).get("status")
    if ended == "diverged":
        reason = f"the run that it starts from, {spec.start.run}, diverged"
        log = MetricsLog(folder.log_path)
        values = result(folder, "diverged", reason, device, 0)
        folder.end({**values, "loss_spikes": 0}, log.mark(), step=0, seconds=0.0)
        return
    reason = f"{spec.start.run}, which it starts from, kept no state at step {spec.start.step}"
    if ended == "done":
        reason += ": delete that run's folder to train it again"
    folder.write_status("failed", step=0, seconds=0.0, reason=reason)


def _can_start(folder: RunFolder) -> bool:
    """Whether a run waits for no other."""
    start = folder.spec.start
    if start is None or folder.checkpoints.exists():
        return True
    return start.step in saved_steps(folder.trunk().branches)


def _is_evaluated(slot: _Slot) -> bool:
    return any("eval" in r and r["step"] == slot.step for r in slot.folder.metrics())


def _falls_no_more(folder: RunFolder) -> bool:
    """Whether early stopping ends a run: the last `patience` evaluations brought no lower loss."""
    evaluations = [record for record in folder.metrics() if "eval" in record]
    if folder.spec.stopping is None or not evaluations:
        return False
    since = len(evaluations) - 1 - evaluations.index(lowest(evaluations))
    return since >= folder.spec.stopping.patience


def _place(slot: _Slot, step: int) -> dict[str, Any]:
    """How far a run is: the start of every record."""
    return {
        "step": step,
        "tokens": step * slot.spec.batch_tokens,
        "flops": step * slot.step_flops,
    }
