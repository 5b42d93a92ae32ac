"""Sections by the name of their study: those of this package and those of a user's own file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

from lmscale import studies
from lmscale.report import sections
from lmscale.report.section import KeyNumber, Measure, Section
from lmscale.report.tables import shown, table
from lmscale.studies import Findings, Results
from lmscale.wording import listed, sentence

__all__ = ["analyse", "register"]

Writer = Callable[[Any, Results], Section]
_SECTIONS: dict[str, Writer] = {}
#: The sections of this package, imported when they are asked for.
_OURS = {module.name for module in pkgutil.iter_modules(sections.__path__)}


def register(name: str) -> Callable[[Writer], Writer]:
    """Makes a function the section of the study of that name: (its findings, results) -> `Section`.

    @report.register("wave")
    def section(found: Wave, results: Results) -> Section: ...
    """

    def add(writer: Writer) -> Writer:
        _SECTIONS[name] = writer
        return writer

    return add


def analyse(name: str, results: Results) -> Section:
    """What a study finds in a store's results, as a section of the page.

    A study without a section of its own is shown by its estimates.
    """
    try:
        study = studies.find(name)
    except KeyError:
        known = ", ".join(studies.names())
        finding = f"This version of lmscale has no analysis {name!r}; it has {known}."
        return Section(name=name, title=name, finding=finding)
    if name not in _SECTIONS and name in _OURS:
        importlib.import_module(f"{sections.__name__}.{name}")
    found = study(results)
    write = _SECTIONS.get(name)
    return write(found, results) if write else _plain(name, found)


def _plain(name: str, found: Findings) -> Section:
    """Every estimate in a table, and in a sentence those that are known."""
    known = [one for one in found.estimates.values() if one.is_known]
    parts = [f"{one.name} is {shown(one, '95% interval')}" for one in known]
    return Section(
        name=name,
        title=sentence(name.replace("_", " ")).rstrip("."),
        finding=sentence(listed(parts)) or "These results hold none of the study's numbers.",
        conclusive=any(one.interval and not one.undecided_because for one in known),
        key_numbers=[KeyNumber.of_estimate(one.name, one) for one in known[:3]],
        grids=table(
            "What the study reads, with 95% intervals.",
            found.estimates.values(),
            {
                "estimate": lambda one: one.name,
                "value": shown,
                "seeds": lambda one: str(one.seeds or "–"),
                "cannot decide because": lambda one: one.undecided_because,
            },
            text=("estimate", "cannot decide because"),
        ),
        fits=dict(found.fits),
        measures={one.name: Measure.of(one.name, one) for one in found.estimates.values()},
    )
