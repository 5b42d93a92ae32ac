"""The search for the learning rate: the loss of every cell at each rate that was tried.

Models are compared at their best rates. The comparison is fair only if the search was wide enough: where
the best rate is the lowest or the highest that was tried, a rate beyond it might be better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lmscale.laws import FitResult
from lmscale.studies.estimate import Estimate
from lmscale.studies.groups import by_number, first_row
from lmscale.studies.registry import register
from lmscale.studies.results import Results
from lmscale.sweep.result_table import cell_columns

__all__ = ["RateSearch", "SearchedCell", "searched_cells", "study"]


@dataclass(frozen=True)
class SearchedCell:
    """Runs that differ in learning rate and seed only, at two rates or more.

    Attributes:
      columns: of the store's table, of the cell's first run.
      losses: factor -> mean loss over the seeds that ended well, NaN where none did.
      done, lost: factor -> how many seeds ended well, and how many failed for good.
    """

    columns: Mapping[str, Any] = field(repr=False)
    losses: dict[float, float]
    done: dict[float, int]
    lost: dict[float, int]

    @property
    def family(self) -> str:
        return str(self.columns["family"])

    @property
    def n_params(self) -> float:
        """N without embeddings."""
        return float(self.columns["params_kaplan"])

    @property
    def rule_rate(self) -> float:
        """The learning rate of the rule, which the factors multiply."""
        return float(self.columns["peak_lr"] / self.columns["lr_factor"])

    @property
    def curve(self) -> dict[float, float]:
        """factor -> mean loss, where a seed ended well."""
        return {factor: loss for factor, loss in self.losses.items() if math.isfinite(loss)}

    @property
    def best(self) -> float:
        """The factor of lowest mean loss."""
        return min(self.curve, key=self.curve.__getitem__)

    @property
    def extra(self) -> dict[float, float]:
        """factor -> nats above the lowest mean loss."""
        return {factor: loss - self.losses[self.best] for factor, loss in self.curve.items()}

    @property
    def neighbours(self) -> list[float]:
        """Nats above the lowest mean loss at the factors next to the best one."""
        extra = list(self.extra.values())
        index = list(self.extra).index(self.best)
        return extra[max(0, index - 1) : index] + extra[index + 1 : index + 2]

    @property
    def edge(self) -> str:
        """ "lowest" or "highest" where the best factor is an end of the search, else "".

        A factor whose runs were lost counts as tried, so the next one inside it is no end.
        """
        return {min(self.losses): "lowest", max(self.losses): "highest"}.get(self.best, "")


@dataclass(frozen=True)
class RateSearch:
    """What `study` finds; it has no estimates of its own and fits no law."""

    cells: tuple[SearchedCell, ...]
    estimates: dict[str, Estimate] = field(default_factory=dict)
    fits: dict[str, FitResult] = field(default_factory=dict)


@register("rate_search")
def study(results: Results) -> RateSearch:
    """Loss against the learning rate, cell by cell.

    found = rate_search.study(Results.read("results/lstm_vs_transformer"))
    print([(cell.family, cell.n_params, cell.best, cell.edge) for cell in found.cells])
    """
    return RateSearch(tuple(searched_cells(results)))


def searched_cells(results: Results, family: str | None = None) -> list[SearchedCell]:
    """The cells, of one family or of all, that ended well at two rates or more.

    In the order of the page: by family, budget and size.
    """
    table = results.table
    if "lr_factor" not in table or not len(table):
        return []
    if family is not None:
        table = table[table["family"] == family]
    lost = set(results.lost["run"])
    cells = [
        _cell(runs, lost)
        for _, runs in table.groupby(cell_columns(table), dropna=False, sort=False)
    ]
    order = {name: index for index, name in enumerate(results.families)}
    return sorted(
        (cell for cell in cells if len(cell.curve) > 1),
        key=lambda c: (order[c.family], c.columns.get("budget") or 0, c.n_params),
    )


def _cell(runs: pd.DataFrame, lost_runs: set[str]) -> SearchedCell:
    losses, done, lost = {}, {}, {}
    for factor, part in by_number(runs, "lr_factor"):
        ended = part[(part["status"] == "done") & np.isfinite(part["loss"].astype(float))]
        losses[factor] = float(ended["loss"].mean()) if len(ended) else math.nan
        done[factor] = len(ended)
        lost[factor] = int(part["run"].isin(lost_runs).sum())
    return SearchedCell(first_row(runs), losses, done, lost)
