"""Writes the report of a store: report.html, figures/, fits.json and summary.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from etils import epath

from lmscale.files import digest, write_atomically, write_json
from lmscale.report import style
from lmscale.report.claims import Verdict, judge
from lmscale.report.forecast import forecast_section
from lmscale.report.page import page
from lmscale.report.registry import analyse
from lmscale.report.section import Section
from lmscale.report.summary import summarise
from lmscale.studies.results import Results
from lmscale.sweep.store import Store

__all__ = [
    "Report",
    "fits_text",
    "read_results",
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


def write_report(store: Store) -> epath.Path:
    """Draws what the experiment's analyses make of the store as it stands.

    Writes report.html (one file that needs no other), figures/NAME.png and .svg, and fits.json:
    "analysis/family/convention" -> what `lmscale fit --json` prints; and summary.json, from which
    the front page over several stores is made. Each file is replaced whole.
    Equal stores give equal bytes.

    Returns:
      The path of report.html.
    """
    results = Results.read(store)
    return write_files(store, Report(results, *read_results(results)))


def write_files(store: Store, report: Report) -> epath.Path:
    """Writes the files of `write_report`."""
    results, sections, verdicts = report.results, report.sections, report.verdicts
    (store.path / "figures").mkdir(parents=True, exist_ok=True)
    for section in sections:
        for chart in section.charts:
            write_atomically(store.path / "figures" / f"{chart.name}.svg", chart.svg)
            write_atomically(store.path / "figures" / f"{chart.name}.png", chart.png)
    fits = fits_text(sections)
    write_atomically(store.path / "fits.json", fits)
    # Whose keys are the fits' alone, so that its digest stands elsewhere.
    summary = {**summarise(results, sections, verdicts).to_json(), "fits": digest(fits)}
    write_json(store.path / "summary.json", summary, sealed=True)
    return write_page(store, report)


def write_page(store: Store, report: Report) -> epath.Path:
    """Writes report.html alone."""
    path = store.path / "report.html"
    html = page(
        report.results, report.sections, report.verdicts, reload_seconds=report.reload_seconds
    )
    write_atomically(path, html)
    return path


def write_paper_figures(store: Store) -> list[epath.Path]:
    """Writes figures/paper/NAME.pdf and .svg of every figure, drawn for a paper (`style.paper`).

    Returns:
      The paths of the PDFs.
    """
    results, folder = Results.read(store), store.path / "figures" / "paper"
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with style.paper():
        sections, _ = read_results(results)
    for chart in (chart for section in sections for chart in section.charts):
        write_atomically(folder / f"{chart.name}.svg", chart.svg)
        write_atomically(folder / f"{chart.name}.pdf", chart.pdf)
        written.append(folder / f"{chart.name}.pdf")
    return written


def read_results(results: Results) -> tuple[list[Section], list[Verdict]]:
    """The sections of a store's page, and the verdicts on its claims."""
    sections = [analyse(name, results) for name in results.experiment.get("analyses", [])]
    if (forecast := forecast_section(results)) is not None:
        sections.append(forecast)
    return sections, [judge(claim, sections, results) for claim in results.claims]


def fits_text(sections: Sequence[Section]) -> str:
    """The content of fits.json."""
    fits: dict[str, Any] = {
        f"{section.name}/{key}": fit.to_json()
        for section in sections
        for key, fit in section.fits.items()
    }
    return json.dumps(fits, indent=1, allow_nan=False) + "\n"
