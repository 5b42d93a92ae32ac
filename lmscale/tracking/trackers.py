"""Where records of metrics.jsonl can be sent: TensorBoard, Weights & Biases, or a user's function."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from etils import epath

from lmscale.remote import is_remote
from lmscale.user_files import load_file, load_module

if TYPE_CHECKING:
    from lmscale.tracking.event_file import EventFile

__all__ = ["TrackedRun", "Tracker", "TrackingError", "make_tracker", "scalars"]

Record = Mapping[str, Any]


class TrackingError(ValueError):
    """A tracker that cannot be had; one line that says what would be right."""


@dataclass(frozen=True)
class TrackedRun:
    """A run whose records are sent.

    Attributes:
      name: of its folder.
      title: to show it by: what it is, and what tells it from the others of its sweep. It stays the
        same when the run resumes, and may be that of another run as well.
      group: of the sweep; the same whenever its store is trained on.
      spec: its spec, as in spec.json.
      labels: that the experiment gives it.
      folder: where its files are.
    """

    name: str
    title: str
    group: str
    spec: Mapping[str, Any]
    labels: Mapping[str, Any]
    folder: epath.Path

    @property
    def digest(self) -> str:
        """The hash at the end of its name, which tells it from all others."""
        return self.name.rsplit("-", 1)[-1]

    @property
    def store(self) -> epath.Path:
        """The folder of the sweep."""
        return self.folder.parent.parent


class Tracker(Protocol):
    """Takes the records of many runs. Any of its methods may fail; training goes on without it."""

    def log(self, run: TrackedRun, records: Sequence[Record], sent: int) -> None:
        """Takes the next records of a run; returns when they are safe.

        Args:
          run: whose they are.
          records: as metrics.jsonl has them, in their order, each once.
          sent: step of the last record that was taken before, by any process; 0 if there is none.
        """

    def end(self, run: TrackedRun, status: str) -> None:
        """No more records come from this process; `status` is the run's."""


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record by the names that they have in it; `eval/NAME/loss` of evaluations."""
    found = {
        name: value
        for name, value in record.items()
        if name != "step" and isinstance(value, (int, float))
    }
    for name, scores in (record.get("eval") or {}).items():
        for score, value in scores.items():
            if isinstance(value, (int, float)):
                found[f"eval/{name}/{score}"] = value
    return found


def make_tracker(name: str) -> Tracker:
    """The tracker of that name.

    Args:
      name: "tensorboard", "wandb", or "MODULE:FUNCTION" ("FILE.py:FUNCTION") for a function of one's
        own: function(run, records).

    Raises:
      TrackingError: there is none, or its package is not installed.
      UserFileError: the module or file of a function cannot be loaded.
    """
    if name == "tensorboard":
        return TensorBoard()
    if name == "wandb":
        return WandB()
    module, colon, function = name.rpartition(":")
    if not colon or not module or not function:
        raise TrackingError(
            f"a tracker is tensorboard, wandb or MODULE:FUNCTION of your own, not {name!r}"
        )
    return Function(_imported(module, function))


class TensorBoard:
    """An event file a run, under STORE/tensorboard."""

    def __init__(self) -> None:
        try:
            from lmscale.tracking.event_file import EventFile
        except ImportError:
            raise TrackingError(
                "--track tensorboard needs tensorboardX: pip install 'lmscale[tensorboard]'"
            ) from None
        self._new = EventFile
        self._files: dict[str, EventFile] = {}

    def log(self, run: TrackedRun, records: Sequence[Record], sent: int) -> None:
        file = self._files.get(run.name)
        if file is None:
            folder = str(run.store / "tensorboard" / f"{run.title}-{run.digest}")
            # What a killed process may have written beyond `sent` is not shown: it is sent again. It may have
            # been killed before it noted that it had sent anything.
            file = self._files[run.name] = self._new(folder, first_step=sent + 1 if sent else 0)
            if not sent:
                lines = [
                    f"    {name}: {value}" for name, value in {**run.labels, **run.spec}.items()
                ]
                file.text("spec", "\n".join(lines), 0)
        for record in records:
            for name, value in scalars(record).items():
                file.scalar(name, value, record["step"])
        file.flush()

    def end(self, run: TrackedRun, status: str) -> None:
        if (file := self._files.pop(run.name, None)) is not None:
            file.close()


class WandB:
    """A run of Weights & Biases for each of ours, in the group of its sweep.

    Its environment variables decide the rest: WANDB_MODE=offline, WANDB_PROJECT (lmscale), WANDB_ENTITY.
    """

    def __init__(self) -> None:
        try:
            import wandb
        except ImportError:
            raise TrackingError("--track wandb needs wandb: pip install 'lmscale[wandb]'") from None
        self._wandb = wandb
        self._runs: dict[str, Any] = {}

    def log(self, run: TrackedRun, records: Sequence[Record], sent: int) -> None:
        own = self._runs.get(run.name)
        if own is None:
            folder: dict[str, Any] = {} if is_remote(run.store) else {"dir": str(run.store)}
            own = self._runs[run.name] = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT") or "lmscale",
                group=run.group,
                name=run.title,
                id=f"{run.group}-{run.digest}",
                config={**run.labels, **run.spec, "run": run.name},
                resume="allow",
                reinit="create_new",
                settings=self._wandb.Settings(silent=True),
                **folder,
            )
        for record in records:
            own.log(scalars(record), step=record["step"])

    def end(self, run: TrackedRun, status: str) -> None:
        if (own := self._runs.pop(run.name, None)) is not None:
            own.summary["status"] = status
            own.finish(exit_code=0)


class Function:
    """A function of a user's own, called with the run and its new records, as metrics.jsonl has them."""

    def __init__(self, function: Callable[[TrackedRun, Sequence[Record]], None]):
        self._function = function

    def log(self, run: TrackedRun, records: Sequence[Record], sent: int) -> None:
        self._function(run, records)

    def end(self, run: TrackedRun, status: str) -> None:
        """Such a function hears of records only."""


def _imported(module: str, function: str) -> Callable[..., None]:
    if module.endswith(".py"):
        if not Path(module).is_file():
            raise TrackingError(f"there is no file {module}")
        found = load_file(Path(module))
    else:
        # As with `python -m`: modules of the folder that one is in.
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
        found = load_module(module)
    chosen = getattr(found, function, None)
    if not callable(chosen):
        raise TrackingError(f"{module} has no function {function!r}")
    return chosen
