"""Writes the report of a store: report.html, figures/, fits.json and summary.json."""

from __future__ import annotations

import importlib
import json
import pkgutil
from typing import Any

from etils import epath

from lmscale.files import digest, write_atomically, write_json
from lmscale.report import analyses
from lmscale.report.claims import Verdict, judge
from lmscale.report.forecast import forecast_section
from lmscale.report.page import lead_section, page
from lmscale.report.section import Section
from lmscale.report.study import Study
from lmscale.sweep.store import Store

__all__ = ["analyse", "analysis_names", "write_report"]


def analysis_names() -> list[str]:
    """What an experiment may name in its `analyses`."""
    return sorted(module.name for module in pkgutil.iter_modules(analyses.__path__))


def write_report(store: Store) -> epath.Path:
    """Draws what the experiment's analyses make of the store as it stands.

    Writes report.html (one file that needs no other), figures/NAME.png and .svg, and fits.json:
    "analysis/family/convention" -> what `lmscale fit --json` prints; and summary.json, from which
    the front page over several stores is made. Each file is replaced whole.
    Equal stores give equal bytes.

    Returns:
      The path of report.html.
    """
    study = Study.read(store)
    sections = [analyse(name, study) for name in study.experiment.get("analyses", [])]
    if (forecast := forecast_section(study)) is not None:
        sections.append(forecast)
    (store.path / "figures").mkdir(parents=True, exist_ok=True)
    for section in sections:
        for chart in section.charts:
            write_atomically(store.path / "figures" / f"{chart.name}.svg", chart.svg)
            write_atomically(store.path / "figures" / f"{chart.name}.png", chart.png)
    fits = _fits(sections)
    write_atomically(store.path / "fits.json", fits)
    verdicts = [judge(claim, sections) for claim in study.claims]
    # Whose keys are the fits' alone, so that its digest stands elsewhere.
    summary = {**_summary(study, sections, verdicts), "fits": digest(fits)}
    write_json(store.path / "summary.json", summary, sealed=True)
    write_atomically(store.path / "report.html", page(study, sections, verdicts))
    return store.path / "report.html"


def analyse(name: str, study: Study) -> Section:
    """One analysis of a study's data."""
    names = analysis_names()
    if name in names:
        return importlib.import_module(f"lmscale.report.analyses.{name}").analyse(study)
    return Section(
        name=name,
        title=name,
        finding=f"This version of lmscale has no analysis {name!r}; it has {', '.join(names)}.",
    )


def _summary(study: Study, sections: list[Section], verdicts: list[Verdict]) -> dict[str, Any]:
    lead = lead_section(sections)
    charts = [chart for section in [lead, *sections] if section for chart in section.charts]
    return {
        "title": study.title,
        "finding": lead.finding if lead else "",
        "figure": charts[0].name if charts else None,
        "runs": len(study.table),
        "seconds": float(study.table["seconds"].sum()) if len(study.table) else 0.0,
        "verdicts": [verdict.to_json() for verdict in verdicts],
    }


def _fits(sections: list[Section]) -> str:
    fits: dict[str, Any] = {
        f"{section.name}/{key}": fit.to_json()
        for section in sections
        for key, fit in section.fits.items()
    }
    return json.dumps(fits, indent=1, allow_nan=False) + "\n"
