"""Where a sweep stands, as seen from outside: from its store and what it has printed.

Nothing in lmscale tells a test its phase, so that what is killed is what users run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tests.torture.experiment import EVAL_EVERY

#: In the order of a sweep.
PHASES = (
    "corpus",
    "start-up",
    "compiling",
    "training",
    "evaluating",
    "checkpointing",
    "ending",
    "report",
)


class Watch:
    """Tells the phase of one process that works on a store, which may hold older work."""

    def __init__(self, store: Path, log: Path):
        self.store, self.log = store, log
        self._old_partial = set(self._partial())
        self._old = {path: _signature(path) for path in self._metrics()}

    def phase(self) -> str:
        """One of `PHASES`, corpus excepted; where runs differ the briefest phase counts."""
        said = self.log.read_text()
        if " -> " not in said:
            return "start-up"
        # What this process has changed, as what an earlier one left behind may look alike.
        active = [path for path in self._metrics() if _signature(path) != self._old.get(path)]
        states = {_state(path) for path in active}
        # The last checkpoint and the result are written while a run ends.
        if "ending" in states:
            return "ending"
        if set(self._partial()) - self._old_partial:
            return "checkpointing"
        for phase in ("evaluating", "training"):
            if phase in states:
                return phase
        folders = [path for path in self.store.glob("runs/*") if path.is_dir()]
        if folders and all((folder / "result.json").exists() for folder in folders):
            return "report"
        return "compiling"

    def _metrics(self) -> list[Path]:
        return list(self.store.glob("runs/*/metrics.jsonl"))

    def _partial(self) -> Iterator[Path]:
        """Checkpoints, and small files, that are being written."""
        yield from self.store.glob("runs/*/*/*tmp*")
        yield from self.store.glob("runs/*/*.tmp")


def _signature(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0)
    return found.st_mtime_ns, found.st_size


def _state(metrics: Path) -> str:
    """Where the run is that a file of metrics belongs to."""
    folder = metrics.parent
    if (folder / "result.json").exists():
        return "over"
    try:
        record = json.loads(metrics.read_bytes().rsplit(b"\n", 2)[-2])
        steps = json.loads((folder / "spec.json").read_text())["steps"]
    except (FileNotFoundError, IndexError, ValueError, KeyError, TypeError):
        return "training"
    if "eval" in record:
        return "ending" if record["step"] == steps else "training"
    due = record["step"] % EVAL_EVERY == 0 or record["step"] == steps
    return "evaluating" if due else "training"
