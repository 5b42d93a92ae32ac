"""A run in a slot of a pack, and what the host knows of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from lmscale.spec import RunSpec
from lmscale.training.checkpoint import Checkpoints
from lmscale.training.metrics_log import MetricsLog
from lmscale.training.result import lowest
from lmscale.training.run_folder import RunFolder
from lmscale.training.spikes import SpikeCounter


@dataclass
class Slot:
    """A run in its slot.

    Attributes:
      index: of the slot.
      folder: the run's.
      checkpoints: in that folder.
      order: of its batches, see `BatchSource.order`.
      step: updates queued so far.
      seconds: trained before this process, summed over restarts.
      kept: steps whose state other runs start from.
      step_flops: FLOPs of a step (exact convention).
      stopped: whether early stopping had ended the run when it was killed.
      log: its metrics.
      spikes: counts its loss spikes.
      good: (step, training loss) of the last finite loss.
      lost_gradients: steps in a row, up to now, whose gradient norm is not finite.
      started: when this process took it.
      window: what the program measures (`METRICS`) at each step since the last record.
      timed_steps, timed_seconds: of the steps in `window`, those that this process has timed.
      last_read: when numbers of it were read last.
      saved_step: of its newest checkpoint.
      ended: whether it has left the slot.
    """

    index: int
    folder: RunFolder
    checkpoints: Checkpoints
    order: Any
    step: int
    seconds: float
    kept: frozenset[int]
    step_flops: float
    stopped: bool
    log: MetricsLog
    spikes: SpikeCounter
    good: tuple[int, float] | None
    lost_gradients: int
    started: float = field(default_factory=time.monotonic)
    window: list[tuple[float, ...]] = field(default_factory=list)
    timed_steps: int = 0
    timed_seconds: float = 0.0
    last_read: float = field(default_factory=time.monotonic)
    saved_step: int = -1
    ended: bool = False

    @property
    def spec(self) -> RunSpec:
        return self.folder.spec

    @property
    def name(self) -> str:
        """The run's id."""
        return self.folder.path.name

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
        return self.spec.is_evaluated_at(self.step)

    def is_evaluated(self) -> bool:
        """Whether the log holds an evaluation of this step."""
        return any("eval" in r and r["step"] == self.step for r in self.folder.metrics())

    def trained_seconds(self) -> float:
        """Seconds trained so far, summed over restarts."""
        return self.seconds + time.monotonic() - self.started

    def left_flops(self) -> float:
        """FLOPs of the steps that are not queued yet."""
        return (self.spec.steps - self.step) * self.step_flops

    def place(self, step: int) -> dict[str, Any]:
        """How far the run is at a step: the start of every record."""
        return {
            "step": step,
            "tokens": step * self.spec.batch_tokens,
            "flops": step * self.step_flops,
        }

    def take_summary(self, step: int) -> dict[str, Any]:
        """The record of the steps in `window`, which is empty then."""
        n = len(self.window)
        loss, grad_norm, lr, *squared = zip(*self.window, strict=True)
        noise = {}
        if squared:
            # Means of |G_b|^2 of micro-batches and |G_B|^2 of batches, which give the noise scale.
            noise["grad_squared"] = math.fsum(norm**2 for norm in grad_norm) / n
            noise["piece_grad_squared"] = math.fsum(squared[0]) / n
        record = {
            **self.place(step),
            "loss": math.fsum(loss) / n,
            "grad_norm": math.fsum(grad_norm) / n,
            "lr": lr[-1],
            **noise,
            "steps_averaged": n,
            "tokens_per_second": self.timed_steps * self.spec.batch_tokens / self.timed_seconds,
        }
        self.window, self.timed_steps, self.timed_seconds = [], 0, 0.0
        return record


def falls_no_more(folder: RunFolder) -> bool:
    """Whether early stopping ends a run: the last `patience` evaluations brought no lower loss."""
    evaluations = [record for record in folder.metrics() if "eval" in record]
    if folder.spec.stopping is None or not evaluations:
        return False
    since = len(evaluations) - 1 - evaluations.index(lowest(evaluations))
    return since >= folder.spec.stopping.patience
