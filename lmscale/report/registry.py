"""Sections by the name of their study: those of this package and those of a user's own file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmscale import studies
from lmscale.report import sections
from lmscale.report.made import check_findings, check_section
from lmscale.report.section import KeyNumber, Measure, Section
from lmscale.report.tables import shown, table
from lmscale.studies import Findings, Results
from lmscale.user_files import file_of, source_of, told_by
from lmscale.wording import listed, sentence

__all__ = ["AnalysisError", "analyse", "analyse_all", "register"]

Writer = Callable[[Any, Results], Section]
_SECTIONS: dict[str, Writer] = {}
#: The sections of this package, imported when they are asked for.
_OURS = {module.name for module in pkgutil.iter_modules(sections.__path__)}


class AnalysisError(RuntimeError):
    """A study or section of a user's file that failed; the message is one line."""


def register(name: str) -> Callable[[Writer], Writer]:
    """Makes a function the section of the study of that name: (its findings, results) -> `Section`.

    @report.register("wave")
    def section(found: Wave, results: Results) -> Section: ...

    Raises:
      ValueError: when another function has the name.
    """

    def add(writer: Writer) -> Writer:
        known, ours = _SECTIONS.get(name), f"{sections.__name__}.{name}"
        taken = known is not None and source_of(known) != source_of(writer)
        if taken or (name in _OURS and writer.__module__ != ours):
            owner = known.__module__ if taken and known is not None else ours
            raise ValueError(
                f"the name {name!r} is taken by the section of {owner}: choose another"
            )
        _SECTIONS[name] = writer
        return writer

    return add


def analyse(name: str, results: Results) -> Section:
    """What a study finds in a store's results, as a section of the page.

    A study without a section of its own is shown by its estimates.

    Raises:
      AnalysisError: when the study or section of a user's file raises an error, or returns something
        else than findings and a `Section`.
    """
    try:
        study = studies.find(name)
    except KeyError:
        known = ", ".join(studies.names())
        finding = f"This version of lmscale has no analysis {name!r}; it has {known}."
        return Section(name=name, title=name, finding=finding)
    if name not in _SECTIONS and name in _OURS:
        importlib.import_module(f"{sections.__name__}.{name}")
    write = _SECTIONS.get(name)
    with told_by(AnalysisError, study, also_ours=True):
        found = study(results)
        if file_of(study):
            check_findings(name, found)
        if write is None:
            return _plain(name, found)
    with told_by(AnalysisError, write, also_ours=True):
        section = write(found, results)
        if file_of(write):
            check_section(name, section)
    return section


def analyse_all(names: Sequence[str], results: Results) -> list[Section]:
    """The sections of a page. That of a user's study that fails says so, so that the page has all others."""
    made, drawn = [], dict[str, str]()
    for name in names:
        try:
            section = analyse(name, results)
            _check_figures(section, drawn)
        except AnalysisError as error:
            section = Section(
                name=name,
                title=_heading(name),
                finding=f"This analysis failed: {error}.",
                failure=f"the analysis {name!r} failed: {error}",
            )
        drawn |= {chart.name: name for chart in section.charts}
        made.append(section)
    return made


def _check_figures(section: Section, drawn: Mapping[str, str]) -> None:
    """Raises an `AnalysisError` where a figure would be written over another of the page.

    Args:
      drawn: figure -> the section that has it.
    """
    names = [chart.name for chart in section.charts]
    for name in names:
        if names.count(name) > 1:
            raise AnalysisError(f"it has two figures {name!r}: give each a name of its own")
        if name in drawn:
            raise AnalysisError(
                f"the section {drawn[name]!r} has a figure {name!r} already: give this one another name"
            )


def _heading(name: str) -> str:
    return sentence(name.replace("_", " ")).rstrip(".")


def _plain(name: str, found: Findings) -> Section:
    """Every estimate in a table, and in a sentence those that are known."""
    known = [one for one in found.estimates.values() if one.is_known]
    parts = [f"{one.name} is {shown(one, '95% interval')}" for one in known]
    return Section(
        name=name,
        title=_heading(name),
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
