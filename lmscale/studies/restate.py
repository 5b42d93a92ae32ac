"""The runs of an IsoFLOP grid read under another convention of counting FLOPs.

A grid holds one count of FLOPs constant within a budget. Under another count its runs no longer share
a budget: the small models, most of whose FLOPs are the head's, lose more than the large ones. To
group them by their old budget would compare models at unequal compute. So each budget is restated as
what its own best size costs under the new count, and every size's loss is read there from its own
runs: interpolated between the neighbours below and above, about a smooth surface.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from lmscale.laws import Redrawn

__all__ = ["Restated", "budget_spread", "native_convention", "restate"]

#: Runs whose FLOPs differ by less than this factor share a budget.
SAME = 1.1
#: Fewest runs that a quadratic surface with its six coefficients is fitted to.
_LEAST_RUNS = 9


@dataclass(frozen=True)
class Restated:
    """Rows params, tokens, flops, loss, budget (and seed) for a fit of profiles.

    `how` says in a word what was done; `moved` is the share of losses that were read away from a run,
    and `reach` the largest factor in FLOPs from a reading to its nearest run. `weights` [row, run] make
    the log losses of the rows from those of the runs; None where every row is a run.
    """

    rows: pd.DataFrame
    how: str
    moved: float = 0.0
    reach: float = 1.0
    weights: np.ndarray | None = field(default=None, repr=False)

    def redrawn(self, losses: np.ndarray, runs: Redrawn) -> Redrawn:
        """The rows' losses in the draws of the runs, whose losses are `losses` [run].

        A row is made from several runs, so it has no single source and sign: those of its largest
        weight stand for it.
        """
        if self.weights is None:
            return runs
        of_runs = np.log(np.maximum(losses + runs.deviation, 1e-3 * losses))
        deviation = np.exp(of_runs @ self.weights.T) - self.rows["loss"].to_numpy(float)
        main = np.argmax(self.weights, axis=1)
        return Redrawn(deviation, runs.source[:, main], runs.sign[:, main])


def budget_spread(runs: pd.DataFrame, convention: str) -> float:
    """The largest ratio of FLOPs within one budget."""
    flops = runs.groupby("budget")[f"flops_{convention}"]
    return float((flops.max() / flops.min()).max())


def native_convention(runs: pd.DataFrame, conventions: tuple[str, ...]) -> str:
    """The convention under which the runs of a budget agree best: the one the grid was made in."""
    return min(conventions, key=lambda convention: budget_spread(runs, convention))


def restate(runs: pd.DataFrame, convention: str, anchors: dict[float, int]) -> Restated:
    """The runs under `convention`.

    Args:
      runs: with columns budget, params_*, flops_*, tokens, loss, n_layer, width (and seed).
      convention: which columns to read N and C from.
      anchors: budget -> the run index at which the budget is restated (its best size).

    Raises:
      ValueError: too few runs to say how loss varies between budgets.
    """
    flops = runs[f"flops_{convention}"].to_numpy(float)
    rows = pd.DataFrame(
        {
            "params": runs[f"params_{convention}"].to_numpy(float),
            "tokens": runs["tokens"].to_numpy(float),
            "flops": flops,
            "loss": runs["loss"].to_numpy(float),
            "seed": runs["seed"].to_numpy(),
        }
    )
    if budget_spread(runs, convention) <= SAME:
        middle = np.exp(np.log(rows["flops"]).groupby(runs["budget"].to_numpy()).transform("mean"))
        return Restated(rows.assign(budget=middle), "the budgets agree under this count")
    if len(rows) < _LEAST_RUNS:
        raise ValueError(
            f"{len(rows)} runs, where {_LEAST_RUNS} are needed to interpolate between budgets"
        )
    targets = sorted({float(flops[index]) for index in anchors.values()})
    if len(targets) < 2:
        raise ValueError("one budget: there is nothing to interpolate between")
    spacing = math.exp(float(np.median(np.diff(np.log(targets)))))
    limit = math.sqrt(spacing)
    surface = _Surface(rows)
    shape = list(zip(runs["n_layer"], runs["width"], runs["seed"], strict=True))
    read, moves, weights = [], [], []
    for target in targets:
        for key in sorted(set(shape)):
            own = rows[[item == key for item in shape]].sort_values("flops")
            found = surface.weights(own, target, limit)
            if found is not None:
                weight, move = found
                per_token = float(own["flops"].iloc[0] / own["tokens"].iloc[0])
                read.append(
                    {
                        "params": float(own["params"].iloc[0]),
                        "tokens": target / per_token,
                        "flops": target,
                        "loss": math.exp(weight @ surface.log_loss),
                        "seed": key[2],
                        "budget": target,
                    }
                )
                moves.append(move)
                weights.append(weight)
    if not read:
        raise ValueError("no size has runs on both sides of a budget")
    return Restated(
        pd.DataFrame(read),
        "restated",
        moved=float(np.mean(np.array(moves) > SAME)),
        reach=float(max(moves)),
        weights=np.array(weights),
    )


class _Surface:
    """ln L as a quadratic in ln N and ln C: the trend about which losses are interpolated."""

    def __init__(self, rows: pd.DataFrame):
        n, c = np.log(rows["params"].to_numpy()), np.log(rows["flops"].to_numpy())
        self._centre = n.mean(), c.mean()
        self.log_loss = np.log(rows["loss"].to_numpy())
        design = self._design(n, c)
        #: [6, run] from log losses to coefficients, and [run, run] to what the surface leaves.
        self._solve = np.linalg.pinv(design)
        self._leave = np.eye(len(rows)) - design @ self._solve

    def _design(self, n: np.ndarray, c: np.ndarray) -> np.ndarray:
        u, v = n - self._centre[0], c - self._centre[1]
        return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], axis=-1)

    def weights(
        self, own: pd.DataFrame, target: float, limit: float
    ) -> tuple[np.ndarray, float] | None:
        """[run] of which the log loss of one size (and seed) at `target` FLOPs is made, and the factor
        to its nearest run.

        Args:
          own: the rows of that size, by FLOPs; their index is their place among all.
        """
        c, n = np.log(own["flops"].to_numpy()), np.log(own["params"].to_numpy())
        at = math.log(target)
        move = math.exp(float(np.min(np.abs(c - at))))
        if not c[0] <= at <= c[-1] and move > limit:
            return None
        trend = self._design(n[:1], np.array([at]))[0] @ self._solve
        between = np.array([np.interp(at, c, one) for one in np.eye(len(c))])
        return trend + between @ self._leave[own.index], move
