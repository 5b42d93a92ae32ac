"""Progress with an ETA for long work: a bar on a terminal, plain log lines elsewhere.

Everything goes to standard error, so that standard output stays free for results.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from lmscale.foreign_text import readable

#: Seconds between two log lines where there is no terminal.
LOG_SECONDS = 15.0


class Reporter(Protocol):
    """What training reports to: a `Tracker`, or in a worker process what passes it on to one."""

    def update(self, advance: float, note: str, /) -> None:
        """Adds `advance` to what is done; `note` says what is going on."""

    def skip(self, amount: float, /) -> None:
        """Takes off work that need not be done, or was done earlier."""

    def log(self, message: str, /) -> None:
        """A line that stays."""


class Tracker:
    """What the work, in any of its threads, reports to: how much is done, and what is going on."""

    def __init__(self, title: str, total: float, bar: Progress | None):
        self.title, self.total, self.done = title, total, 0.0
        self._bar = bar
        # Without a bar there is no task, and none is asked for.
        self._task = TaskID(0) if bar is None else bar.add_task(title, total=total, note="")
        self._start = self._logged = time.monotonic()
        self._lock = threading.Lock()

    def update(self, advance: float = 0.0, note: str = "") -> None:
        """Adds `advance` to what is done; `note` says what is going on."""
        with self._lock:
            self.done = min(self.total, self.done + advance)
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=note)
            return
        now = time.monotonic()
        if now - self._logged >= LOG_SECONDS:
            self._logged = now
            self.log(f"{self._line(now)} {note}".rstrip())

    def skip(self, amount: float) -> None:
        """Takes work off that need not be done, or was done earlier: the ETA is of what is left."""
        with self._lock:
            self.total = max(self.done, self.total - amount)
        if self._bar is not None:
            self._bar.update(self._task, total=self.total)

    def stage(self, stage: str, done: float, total: float) -> None:
        """For work in stages whose shares are not known beforehand: how far this one is."""
        self.done = 0.0
        self.update(self.total * done / max(total, 1e-9), stage)

    def log(self, message: str) -> None:
        """A line that stays."""
        message = "\n".join(map(readable, message.split("\n")))
        if self._bar is not None:
            self._bar.console.print(message, highlight=False, markup=False)
        else:
            print(message, file=sys.stderr, flush=True)

    def _line(self, now: float) -> str:
        elapsed = now - self._start
        share = self.done / self.total if self.total else 1.0
        left = f", about {elapsed * (1 - share) / share:.0f} s left" if share > 0 else ""
        return f"{self.title}: {share:.0%} after {elapsed:.0f} s{left}"


class _Silent(Tracker):
    def log(self, message: str) -> None:
        pass


@contextlib.contextmanager
def progress(title: str, total: float, *, silent: bool = False) -> Iterator[Tracker]:
    """A tracker for work of size `total`, shown while the context lasts unless `silent`."""
    if silent:
        yield _Silent(title, total, None)
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Tracker(title, total, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim"),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        yield Tracker(title, total, bar)
