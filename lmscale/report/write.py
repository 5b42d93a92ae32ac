"""Writes the report of a store: report.html, figures/ and fits.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from etils import epath

from lmscale.files import write_atomically
from lmscale.report import curves, isoflop, position, size
from lmscale.report.page import page
from lmscale.report.section import Section
from lmscale.report.study import Study
from lmscale.sweep.store import Store

__all__ = ["ANALYSES", "write_report"]

#: Name in an experiment's `analyses` -> a pure function from the store's data to a section.
ANALYSES: dict[str, Callable[[Study], Section]] = {
    "isoflop": isoflop.analyse,
    "size": size.analyse,
    "position": position.analyse,
    "curves": curves.analyse,
}


def write_report(store: Store) -> epath.Path:
    """Draws what the experiment's analyses make of the store as it stands.

    Writes report.html (one file that needs no other), figures/NAME.png and .svg, and fits.json:
    "analysis/family/convention" -> what `lmscale fit --json` prints. Each file is replaced whole.
    Equal stores give equal bytes.

    Returns:
      The path of report.html.
    """
    study = Study.read(store)
    sections = [_analyse(name, study) for name in study.experiment.get("analyses", [])]
    (store.path / "figures").mkdir(parents=True, exist_ok=True)
    for section in sections:
        for chart in section.charts:
            write_atomically(store.path / "figures" / f"{chart.name}.svg", chart.svg)
            write_atomically(store.path / "figures" / f"{chart.name}.png", chart.png)
    write_atomically(store.path / "fits.json", _fits(sections))
    write_atomically(store.path / "report.html", page(study, sections))
    return store.path / "report.html"


def _analyse(name: str, study: Study) -> Section:
    if name in ANALYSES:
        return ANALYSES[name](study)
    return Section(
        name=name,
        title=name,
        finding=f"This version of lmscale has no analysis {name!r}; it has {', '.join(ANALYSES)}.",
    )


def _fits(sections: list[Section]) -> str:
    fits: dict[str, Any] = {
        f"{section.name}/{key}": fit.to_json()
        for section in sections
        for key, fit in section.fits.items()
    }
    return json.dumps(fits, indent=1, allow_nan=False) + "\n"
