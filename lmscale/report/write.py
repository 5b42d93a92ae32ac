"""Writes the report of a store: report.html, figures/ and fits.json."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from etils import epath

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
            _replace(store.path / "figures" / f"{chart.name}.svg", chart.svg.encode())
            _replace(store.path / "figures" / f"{chart.name}.png", chart.png)
    _replace(store.path / "fits.json", _fits(sections))
    _replace(store.path / "report.html", page(study, sections).encode())
    return store.path / "report.html"


def _analyse(name: str, study: Study) -> Section:
    if name in ANALYSES:
        return ANALYSES[name](study)
    return Section(
        name=name,
        title=name,
        finding=f"This version of lmscale has no analysis {name!r}; it has {', '.join(ANALYSES)}.",
    )


def _fits(sections: list[Section]) -> bytes:
    fits: dict[str, Any] = {
        f"{section.name}/{key}": fit.to_json()
        for section in sections
        for key, fit in section.fits.items()
    }
    return (json.dumps(fits, indent=1, allow_nan=False) + "\n").encode()


def _replace(path: epath.Path, data: bytes) -> None:
    """Replaces a file, so that a reader sees the old one or the new one."""
    if "://" in str(path):
        path.write_bytes(data)
        return
    temporary = f"{path}.{os.getpid()}.tmp"
    with open(temporary, "wb") as file:
        file.write(data)
    os.replace(temporary, path)
