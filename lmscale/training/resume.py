"""Where a run goes on from: its newest sound checkpoint, else where it starts.

A checkpoint is sound when its files are what was written and the log of metrics still holds what it
held then. One that isn't is deleted, so that it isn't met again, and the older one is used, or the
run begins again: the same result in the end, after more work.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from lmscale.files import DamagedError
from lmscale.parallel.distributed import broadcast_from_main
from lmscale.training.checkpoint import Checkpoints, checkpoint_fault, delete_step, saved_steps
from lmscale.training.metrics_log import MetricsLog
from lmscale.training.run_folder import RunFolder


@dataclass
class Resumed:
    """A run as it was saved, or as it begins.

    Attributes:
      step: updates made.
      state: the arrays; None where the run begins from its seed.
      log: its metrics, cut back to that step.
      seconds: trained so far.
      extra: what the loop had saved beside them; empty at the beginning.
      from_checkpoint: whether it is a checkpoint of the run's own.
      checked: whether it had digests; those of earlier versions had none.
    """

    step: int
    state: Any
    log: MetricsLog
    seconds: float
    extra: dict[str, Any] = field(default_factory=dict)
    from_checkpoint: bool = False
    checked: bool = True


def take_up(
    folder: RunFolder, checkpoints: Checkpoints, like: Any, log: Callable[[str], None]
) -> Resumed:
    """The state that a run goes on from; its log of metrics is cut back to it.

    Args:
      folder: the run's.
      checkpoints: its own.
      like: shapes and places of one run's state.
      log: is told, in a line, of whatever was damaged and of what is used instead.

    Raises:
      DamagedError: when the state that the run starts from is damaged.
    """
    faults = broadcast_from_main(lambda: [str(error) for error in [folder.damage()] if error])
    seconds = broadcast_from_main(lambda: folder.status()["seconds"])
    if faults:
        folder.forget_end()
    found = None
    for step in broadcast_from_main(lambda: checkpoints.steps()[::-1]):
        try:
            state, extra, checked = checkpoints.restore(step, like)
            kept = _kept_metrics(folder, step, extra)
        except DamagedError as error:
            faults.append(str(error))
            checkpoints.discard(step)
            continue
        metrics = MetricsLog(folder.log_path, kept)
        found = Resumed(step, state, metrics, seconds, extra, from_checkpoint=True, checked=checked)
        place = f"goes on from step {step}"
        break
    if found is None:
        begin, state, place = 0, None, "is trained again from the beginning"
        if folder.spec.start is not None:
            begin, state = folder.start.step, restore_branch(folder, like)
            place = f"is trained again from step {begin} of {folder.start.run}"
        found = Resumed(begin, state, MetricsLog(folder.log_path), seconds)
    for fault in faults:
        log(f"{folder.path.name}: {fault}; it {place}")
        folder.note_damage(f"{fault}; it {place}")
    return found


def _kept_metrics(folder: RunFolder, step: int, extra: dict[str, Any]) -> bytes:
    """The part of the log that goes with a checkpoint, in the first process."""
    kept: list[bytes] = []

    def check() -> list[str] | None:
        try:
            kept.append(folder.kept_metrics(step, extra.get("metrics")))
        except DamagedError as error:
            return [error.path, error.fault]
        return None

    if (fault := broadcast_from_main(check)) is not None:
        raise DamagedError(*fault)
    return kept[0] if kept else b""


def restore_branch(folder: RunFolder, like: Any) -> Any:
    """The state that a run starts from, of the run that kept it.

    Raises:
      DamagedError: when it is not what was written.
    """
    trunk, step = folder.trunk(), folder.start.step
    try:
        with closing(Checkpoints(trunk.branches, trunk.run_id, read_only=True)) as branches:
            return branches.restore(step, like)[0]
    except DamagedError as error:
        raise DamagedError(
            error.path, error.fault, f"`lmscale run` makes it again, from {trunk.run_id}"
        ) from error


def retrain_damaged_trunk(trunk: RunFolder, step: int) -> str | None:
    """Has a run trained again where the state that others start from is damaged, or was never kept.

    A run keeps the states that were wanted when it was trained: an extension may want others of it. What
    says that it has ended is deleted, with its checkpoints from that step on, and the damaged state. So it
    is trained like any that hasn't ended, to the same result. To be called by one process, before any
    trains.

    Returns:
      What was done, in a line.
    """
    if step not in saved_steps(trunk.branches):
        if not _is_past(trunk, step):
            return None
        _train_again_from(trunk, step)
        fault = f"it kept no state at step {step}, which another run starts from"
        return f"{trunk.path.name}: {fault}; it is trained again to make it"
    damage = checkpoint_fault(trunk.branches, trunk.run_id, step)
    if damage is None:
        return None
    _train_again_from(trunk, step)
    line = f"{damage}; it is trained again to make it"
    trunk.note_damage(line)
    # Last, so that after a kill in between the damage is found again.
    delete_step(trunk.branches, step)
    return f"{trunk.path.name}: {line}"


def _is_past(trunk: RunFolder, step: int) -> bool:
    """Whether a run went through a step and will not, as it is, do so again."""
    if any(saved > step for saved in saved_steps(trunk.checkpoints)):
        return True
    status, result = trunk.state()
    # The state of the step at which a run diverged is not kept.
    lost = {"done": 0, "diverged": 1}
    return result is not None and status["step"] - lost[result["status"]] >= step


def _train_again_from(trunk: RunFolder, step: int) -> None:
    """Deletes what says that a run has ended, and its checkpoints from a step on."""
    trunk.forget_end()
    for saved in saved_steps(trunk.checkpoints):
        if saved >= step:
            delete_step(trunk.checkpoints, saved)
