"""Writes the report of a store: results.csv, report.html, figures/, fits.json and summary.json."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from lmscale.files import (
    DamagedError,
    digest,
    read_bytes,
    read_json,
    seal,
    write_atomically,
    write_json,
)
from lmscale.report import style
from lmscale.report.claims import Verdict, judge
from lmscale.report.forecast import forecast_section
from lmscale.report.page import page
from lmscale.report.registry import analyse_all
from lmscale.report.section import Section
from lmscale.report.summary import summarise
from lmscale.studies.registry import check_known
from lmscale.studies.results import Results
from lmscale.sweep.ownership import turn
from lmscale.sweep.store import Store

__all__ = [
    "Report",
    "fits_of",
    "read_results",
    "summary_of",
    "write_files",
    "write_page",
    "write_paper_figures",
    "write_report",
]


@dataclass(frozen=True)
class Report:
    """What the files of a report are made of; `reload_seconds` for a page that reloads itself."""

    results: Results
    sections: Sequence[Section]
    verdicts: Sequence[Verdict]
    reload_seconds: float | None = None


def write_report(store: Store, tell: Callable[[str], None] = lambda line: None) -> epath.Path:
    """Draws what the experiment's analyses make of the store as it stands.

    Writes results.csv; report.html (one file that needs no other); figures/NAME.png and .svg;
    fits.json: "analysis/family/convention" -> what `lmscale fit --json` prints; and summary.json, from
    which the front page over several stores is made. Each file is replaced whole.
    Equal stores give equal bytes.

    Of processes that end at the same time one after the other reads the store and writes, so that the
    files that stay are those of the last reading.

    Args:
      tell: is given a line when another process is writing.

    Returns:
      The path of report.html.

    Raises:
      OSError: when the store cannot be written to.
      StoreError: when an analysis is of a user's file that is not loaded.
    """
    check_known(store)
    with turn(store.path, tell) as waited:
        store.write_table()
        # Whom this process waited for may have read the same results.
        if waited and _is_of(store):
            return store.path / "report.html"
        results = Results.read(store)
        return write_files(store, Report(results, *read_results(results)))


def _is_of(store: Store) -> bool:
    """Whether the report was made of the results in results.csv."""
    try:
        summary = read_json(store.path / "summary.json") or {}
    except DamagedError:
        return False
    return summary.get("table") == _digest_of_table(store.path)


def _digest_of_table(folder: epath.Path) -> str:
    # Another process may write results.csv meanwhile, also in a bucket.
    return digest(read_bytes(folder / "results.csv") or b"")


def write_files(store: Store, report: Report) -> epath.Path:
    """Writes the files of `write_report` but for results.csv, which is written already."""
    (store.path / "figures").mkdir(parents=True, exist_ok=True)
    for section in report.sections:
        for chart in section.charts:
            write_atomically(store.path / "figures" / f"{chart.name}.svg", chart.svg)
            write_atomically(store.path / "figures" / f"{chart.name}.png", chart.png)
    write_json(store.path / "fits.json", fits_of(report.sections))
    path = write_page(store, report)
    # The last, because it says of which results all the others are.
    write_json(store.path / "summary.json", summary_of(store.path, report), sealed=True)
    return path


def write_page(store: Store, report: Report) -> epath.Path:
    """Writes report.html alone."""
    path = store.path / "report.html"
    html = page(
        report.results, report.sections, report.verdicts, reload_seconds=report.reload_seconds
    )
    write_atomically(path, html)
    return path


def write_paper_figures(
    store: Store, tell: Callable[[str], None] = lambda line: None
) -> list[epath.Path]:
    """Writes figures/paper/NAME.pdf and .svg of every figure, drawn for a paper (`style.paper`).

    Args:
      tell: is given a line for each analysis of a user's file that failed.

    Returns:
      The paths of the PDFs.

    Raises:
      StoreError: when an analysis is of a user's file that is not loaded.
    """
    check_known(store)
    results, folder = Results.read(store), store.path / "figures" / "paper"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with style.paper():
        sections, _ = read_results(results)
    for failure in (section.failure for section in sections if section.failure):
        tell(failure)
    for chart in (chart for section in sections for chart in section.charts):
        write_atomically(folder / f"{chart.name}.svg", chart.svg)
        write_atomically(folder / f"{chart.name}.pdf", chart.pdf)
        written.append(folder / f"{chart.name}.pdf")
    return written


def read_results(results: Results) -> tuple[list[Section], list[Verdict]]:
    """The sections of a store's page, and the verdicts on its claims."""
    sections = analyse_all(results.experiment.get("analyses", []), results)
    if (forecast := forecast_section(results)) is not None:
        sections.append(forecast)
    return sections, [judge(claim, sections, results) for claim in results.claims]


def fits_of(sections: Sequence[Section]) -> dict[str, Any]:
    """The content of fits.json: every fit is sealed, so that the keys are the fits' alone."""
    return {
        f"{section.name}/{key}": seal(fit.to_json())
        for section in sections
        for key, fit in section.fits.items()
    }


def summary_of(folder: epath.Path, report: Report) -> dict[str, Any]:
    """The content of summary.json; of a last page with the digest of the results.csv in the folder."""
    summary = summarise(report.results, report.sections, report.verdicts).to_json()
    if report.reload_seconds is not None:
        return summary
    return {**summary, "table": _digest_of_table(folder)}
