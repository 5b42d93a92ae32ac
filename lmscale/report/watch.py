"""Keeps the page of a store fresh while it trains, in another terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from lmscale.files import DamagedError
from lmscale.remote import entries
from lmscale.report.claims import Verdict
from lmscale.report.live import is_finished, live_line, live_section
from lmscale.report.registry import analyse
from lmscale.report.section import Section
from lmscale.report.write import (
    Report,
    read_results,
    write_files,
    write_page,
    write_report,
)
from lmscale.studies.registry import check_known
from lmscale.studies.results import WAITING, Results
from lmscale.sweep.overview import Overview, overview
from lmscale.sweep.ownership import turn
from lmscale.sweep.store import Store

__all__ = ["wait_for_store", "watch"]

#: Analyses are made again when runs have ended, but take at most this share of the time: they fit many
#: draws, and the cores are for training.
_SHARE_OF_FITS = 0.1


def wait_for_store(
    folder: str,
    seconds: float,
    tell: Callable[[str], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Returns once a folder that is missing or empty holds a store; at once for any other folder.

    `lmscale run` declares a store after it has read its text, which may take minutes.

    Args:
      tell: is given a line if there is something to wait for.

    Raises:
      StoreError: the path cannot be a folder, or cannot be read.
    """
    store = Store(folder)
    if store.holds_experiment() or store.path.is_file():
        return
    if store.path.is_dir() and entries(store.path):
        return
    tell(f"{folder} holds nothing yet: waiting for `lmscale run` to begin; Ctrl-C ends this")
    while not store.holds_experiment():
        sleep(seconds)


def watch(
    store: Store,
    seconds: float,
    tell: Callable[[str], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Writes the page every so many seconds until no run waits for training.

    Curves and progress are always those of the moment. Fits and verdicts are made again when runs have ended.
    The page reloads itself meanwhile; the last one, written at the end or after Ctrl-C, does not.

    Args:
      tell: is given a line whenever the page is written.

    Raises:
      KeyboardInterrupt: after Ctrl-C, when the page has been written without its reload.
      StoreError: an analysis is of a user's file that is not loaded.
    """
    check_known(store)
    page = _LivePage(store, seconds, clock)
    try:
        while True:
            found = overview(store)
            if is_finished(found):
                break
            try:
                page.write(found)
                tell(live_line(found))
            except DamagedError as error:
                # A file is being replaced, or is damaged: the next look tells.
                tell(f"not drawn: {error}")
            sleep(seconds)
    except KeyboardInterrupt:
        page.end()
        raise
    tell(f"{live_line(found)}; {write_report(store)} is complete")


class _LivePage:
    """The page as last written, and when its fits were made."""

    def __init__(self, store: Store, seconds: float, clock: Callable[[], float]):
        self._store, self._seconds, self._clock = store, seconds, clock
        self._report: Report | None = None
        self._fitted: frozenset[str] | None = None
        self._made, self._took = 0.0, 0.0

    def write(self, found: Overview) -> None:
        results = Results.read(self._store)
        live, now = live_section(found, results), self._clock()
        if self._report is None:
            # The first fits may take minutes beside the training; curves are there at once.
            self._show(results, [live, analyse("curves", results)], [])
            return
        ended = frozenset(run.run for run in found.runs if run.status not in WAITING)
        rested = now - self._made >= self._took / _SHARE_OF_FITS
        if self._fitted is None or (ended != self._fitted and rested):
            sections, verdicts = read_results(results)
            self._fitted, self._made = ended, self._clock()
            self._took = self._made - now
            report = self._show(results, [live, *sections], verdicts)
            with turn(self._store.path, lambda line: None):
                self._store.write_table()
                write_files(self._store, report)
            return
        sections = [
            analyse("curves", results) if section.name == "curves" else section
            for section in self._report.sections
            if section.name != live.name
        ]
        self._show(results, [live, *sections], self._report.verdicts)

    def end(self) -> None:
        """Writes the last page without its reload."""
        if self._report is not None:
            write_page(self._store, replace(self._report, reload_seconds=None))

    def _show(
        self, results: Results, sections: Sequence[Section], verdicts: Sequence[Verdict]
    ) -> Report:
        self._report = Report(results, sections, verdicts, reload_seconds=self._seconds)
        write_page(self._store, self._report)
        return self._report
