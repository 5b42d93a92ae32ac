"""How far a long job is: a bar on a terminal, a line now and then elsewhere, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

#: Called with (stage, done, total): what is being done, and how much of it, in any unit.
Progress = Callable[[str, int, int], None]


class StandardErrorProgress:
    """Shows progress while the `with` block runs; jobs of a few seconds leave no lines behind."""

    def __init__(self, title: str, every_seconds: float = 10.0):
        self._title = title
        self._every_seconds = every_seconds
        self._next_line = time.monotonic() + every_seconds
        self._bar = None
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TimeRemainingColumn

            self._bar = Progress(
                "{task.description}",
                BarColumn(),
                TaskProgressColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self._show

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _show(self, stage: str, done: int, total: int) -> None:
        if self._bar is not None:
            if stage not in self._tasks:
                self._tasks[stage] = self._bar.add_task(f"{self._title}: {stage}")
            self._bar.update(self._tasks[stage], completed=done, total=total)
        elif time.monotonic() >= self._next_line:
            self._next_line = time.monotonic() + self._every_seconds
            percent = 100 * done // max(1, total)
            print(f"{self._title}: {stage}, {percent}%", file=sys.stderr, flush=True)
