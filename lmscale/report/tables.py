"""Tables of a section, declared by their columns; and what several of them show in a cell."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np

from lmscale.laws import FitResult
from lmscale.report.section import Grid
from lmscale.studies.cells import Cell
from lmscale.studies.estimate import Estimate, interval_of_mean
from lmscale.studies.learning_curves import Ladder
from lmscale.wording import between, family_name, has_an_edge, number, with_interval

__all__ = [
    "MEANS",
    "by_family",
    "edges",
    "mean_loss",
    "mean_of",
    "paired_words",
    "parameter",
    "shown",
    "table",
]

#: For the caption of a table with `mean_loss`.
MEANS = "In brackets the 95% interval of the mean (three or more seeds) or the range (two)."

Row = TypeVar("Row")


def paired_words(
    difference: Estimate, alike: str = "both fitted to the same draws of the runs"
) -> str:
    """How the interval of a difference of two fits was made: `alike` where its draws are paired."""
    return alike if difference.draws is not None else "their intervals taken as independent"


def table(
    caption: str,
    rows: Iterable[Row],
    columns: Mapping[str, Callable[[Row], str]],
    *,
    text: Sequence[str] = (),
) -> list[Grid]:
    """One table, or none where there are no rows.

    Args:
      columns: heading -> what a row shows there.
      text: the headings whose cells are words, set flush left.
    """
    shown_rows = [[show(row) for show in columns.values()] for row in rows]
    numeric = tuple(index for index, heading in enumerate(columns) if heading not in text)
    grid = Grid(caption=caption, header=list(columns), rows=shown_rows, numeric=numeric)
    return [grid] if shown_rows else []


class OfFamily(Protocol):
    """What a study finds for one family with learning curves."""

    @property
    def ladder(self) -> Ladder | None: ...

    @property
    def estimates(self) -> dict[str, Estimate]: ...


def by_family(caption: str, families: Sequence[OfFamily], columns: Mapping[str, str]) -> list[Grid]:
    """Estimates of several families beside each other; no table for one family.

    Args:
      columns: name of an estimate -> heading.
    """
    rows = [(one.ladder.family, one.estimates) for one in families if one.ladder]
    shows = {
        heading: functools.partial(_estimate_of, name=name) for name, heading in columns.items()
    }
    return table(
        f"{caption} by family, with 95% intervals, all adjusted by the same B_crit(L).",
        rows if len(rows) > 1 else (),
        {"family": lambda row: family_name(row[0]), **shows},
        text=("family",),
    )


def _estimate_of(row: tuple[str, Mapping[str, Estimate]], *, name: str) -> str:
    return shown(row[1][name])


def shown(estimate: Estimate, note: str = "") -> str:
    """'0.52 (0.47 to 0.57)'; a dash where the results do not hold it."""
    if not estimate.is_known:
        return "–"
    return with_interval(estimate.value, estimate.interval, note)


def edges(interval: tuple[float, float] | None, write: Callable[[float], str] = number) -> str:
    """'1.2k to 3.4k', or '1.2 or more' where one end is open; a dash where there is no interval."""
    if interval is None or not has_an_edge(interval):
        return "–"
    if not all(map(math.isfinite, interval)):
        return between(interval)
    return f"{write(interval[0])} to {write(interval[1])}"


def mean_of(values: Sequence[float]) -> str:
    """The mean of one value a seed, with its interval (`interval_of_mean`)."""
    mean, interval = float(np.mean(values)), interval_of_mean(values)
    return with_interval(mean, interval) if interval else f"{number(mean, 4)} (one seed)"


def mean_loss(cell: Cell) -> str:
    """A cell's mean over its seeds."""
    return mean_of(cell.losses)


def parameter(fit: FitResult, name: str) -> str:
    """A fit's parameter with its interval; a dash where the fit was refused."""
    return shown(Estimate.of_parameter(fit, name))
