"""The budgets of a table of IsoFLOP runs: which runs share one, and their points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lmscale.laws.profiles import Points, points_of, seeds_of
from lmscale.laws.table import Runs, Table, TableError

__all__ = ["BUDGET_TOLERANCE", "read_budgets"]

#: Runs whose FLOPs differ by less than this fraction share a budget.
BUDGET_TOLERANCE = 0.1


def read_budgets(table: Table, tolerance: float) -> tuple[Runs, np.ndarray, list[Points]]:
    """The runs of a table, and of every budget its FLOPs and its points, smallest first.

    Args:
      tolerance: runs whose FLOPs differ by less than this fraction share a budget, where the table has
        no column `budget`.

    Raises:
      TableError: no budget has three sizes, or budgets run into each other.
    """
    runs = table.runs("params", "flops", "loss", "tokens", least=3, vary=("params",))
    budgets = _group_by_budget(runs, tolerance)
    _require_sizes(runs, budgets)
    seeds = seeds_of(table, runs)
    points = [points_of(runs, index, seeds) for _, index in budgets]
    return runs, np.array([flops for flops, _ in budgets]), points


def _require_sizes(runs: Runs, budgets: Sequence[tuple[float, np.ndarray]]) -> None:
    sizes = [len(set(runs["params"][index])) for _, index in budgets]
    if max(sizes) < 3:
        raise TableError(
            f"no budget has 3 sizes (there are {len(budgets)} budgets with up to {max(sizes)}); "
            f"isoflop needs several sizes at the same flops: try the law parametric"
        )


def _group_by_budget(runs: Runs, tolerance: float) -> list[tuple[float, np.ndarray]]:
    """(FLOPs, positions) of each budget, smallest first."""
    flops = runs["flops"]
    groups = []
    if "budget" in runs.labels:
        labels = runs.labels["budget"]
        for label in sorted(set(labels)):
            index = np.flatnonzero(labels == label)
            try:
                value = float(label)
            except ValueError:
                value = math.nan
            if not (math.isfinite(value) and value > 0):
                value = float(np.exp(np.mean(np.log(flops[index]))))
            groups.append((value, index))
        return sorted(groups, key=lambda group: group[0])
    order = np.argsort(flops, kind="stable")
    breaks = np.flatnonzero(np.diff(np.log(flops[order])) > math.log1p(tolerance)) + 1
    for index in np.split(order, breaks):
        groups.append((float(np.exp(np.mean(np.log(flops[index])))), index))
        spread = flops[index].max() / flops[index].min()
        if spread > (1 + tolerance) ** 4:
            raise TableError(
                f"the runs near {groups[-1][0]:.3g} flops run into each other over a factor of "
                f"{spread:.2g}; give a column budget, or a smaller budget tolerance "
                f"(--budget-tolerance)"
            )
    return groups
