"""Whether a study's findings and a section are what the page is made of; those of users' files may not be."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from lmscale.laws import FitResult
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.studies.estimate import Estimate
from lmscale.user_files import WrongReturnError

__all__ = ["check_findings", "check_section"]

#: Members of a section that are sequences -> the type of their items, and how one is made.
_LISTS: dict[str, tuple[type, str]] = {
    "details": (str, "a sentence or more"),
    "warnings": (str, "a sentence or more"),
    "key_numbers": (KeyNumber, "report.KeyNumber.of_estimate(label, estimate)"),
    "charts": (Chart, "report.style.render(figure, name=.., caption=.., alt=..)"),
    "grids": (Grid, "report.Grid(caption=.., header=.., rows=..)"),
}


def check_findings(name: str, found: Any) -> None:
    """Raises a `WrongReturnError` where a study has not returned `Findings`."""
    who = f"the study {name!r}"
    if not (hasattr(found, "estimates") and hasattr(found, "fits")):
        raise WrongReturnError(
            f"{who} returned {_what(found)}: it must return an object with estimates "
            "(name -> Estimate) and fits (name -> FitResult, or {})"
        )
    _check_mapping(who, "estimates", found.estimates, Estimate)
    for key, one in found.estimates.items():
        _check_number(f"{who}: the estimate {key!r}", one)
    _check_fits(who, found.fits)


def check_section(name: str, section: Any) -> None:
    """Raises a `WrongReturnError` where a section is not made of what the page shows."""
    who = f"the section {name!r}"
    if not isinstance(section, Section):
        raise WrongReturnError(
            f"{who} returned {_what(section)}: it must return report.Section(name={name!r}, "
            "title=.., finding=.., charts=[..])"
        )
    if section.name != name:
        raise WrongReturnError(
            f"{who} has the name {section.name!r}: a section has the name of its study"
        )
    for text in ("title", "finding"):
        if not isinstance(getattr(section, text), str):
            raise WrongReturnError(
                f"{who}: its {text} must be text, not {_what(getattr(section, text))}"
            )
    for member, (kind, how) in _LISTS.items():
        items = getattr(section, member)
        if isinstance(items, str) or not isinstance(items, Sequence):
            raise WrongReturnError(
                f"{who}: its {member} must be a list of {kind.__name__}, not {_what(items)}"
            )
        for item in items:
            if not isinstance(item, kind):
                raise WrongReturnError(
                    f"{who}: its {member} hold {_what(item)} where a {kind.__name__} belongs: {how}"
                )
    for grid in section.grids:
        _check_grid(f"{who}: the table {grid.caption!r}", grid)
    _check_mapping(who, "measures", section.measures, Measure)
    for key, one in section.measures.items():
        _check_number(f"{who}: the measure {key!r}", one)
    _check_fits(who, section.fits)


def _check_mapping(who: str, member: str, items: Any, kind: type) -> None:
    if not isinstance(items, Mapping):
        raise WrongReturnError(
            f"{who}: its {member} must be a dictionary of name to {kind.__name__}, not {_what(items)}"
        )
    for key, item in items.items():
        if not isinstance(key, str) or not isinstance(item, kind):
            raise WrongReturnError(
                f"{who}: its {member} hold {key!r} -> {_what(item)}, where a name -> {kind.__name__} belongs"
            )


def _check_number(who: str, one: Estimate | Measure) -> None:
    if one.value is not None and not isinstance(one.value, Real):
        raise WrongReturnError(f"{who} must have a number or None, not {_what(one.value)}")
    edges: Any = one.interval
    if edges is not None and not (
        isinstance(edges, Sequence)
        and len(edges) == 2
        and all(isinstance(edge, Real) for edge in edges)
    ):
        raise WrongReturnError(f"{who} must have an interval (low, high) or None, not {edges!r}")
    if not isinstance(one.undecided_because, str):
        raise WrongReturnError(f"{who}: undecided_because must be text")


def _check_grid(who: str, grid: Grid) -> None:
    for row in grid.rows:
        if isinstance(row, str) or len(row) != len(grid.header):
            raise WrongReturnError(
                f"{who} has {len(grid.header)} columns, and a row of it holds {row!r}"
            )


def _check_fits(who: str, fits: Any) -> None:
    _check_mapping(who, "fits", fits, FitResult)
    for key, fit in fits.items():
        try:
            json.dumps(fit.to_json())
        except (TypeError, ValueError, AttributeError) as error:
            raise WrongReturnError(
                f"{who}: the fit {key!r} cannot be written to fits.json: {error}"
            ) from None


def _what(value: Any) -> str:
    """A value in an error: None, or what it is an instance of."""
    return "None" if value is None else f"a {type(value).__name__}"
