"""The power laws through the minima of IsoFLOP profiles, and their uncertainty.

Minima scatter about the law by more than the noise of their own runs: a learning rate suits some sizes
better than others, the grids of sizes lie differently about the minimum, seeds share their data. This
scatter is a random effect between budgets. Few budgets can only bound its standard deviation tau. So
tau has a posterior (`lmscale.laws.scatter`) and every draw takes one value of it. Few budgets then give
wide intervals.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lmscale.laws.frontier_loss import fit_loss
from lmscale.laws.known import percentiles_of_known
from lmscale.laws.scatter import LOG_N_SCALE, between_posterior, draw_between

__all__ = ["covariance_of", "fit_power_laws", "line"]


def line(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept of each column of y [point, draw], by weighted least squares.

    NaN with fewer than two points of positive weight.
    """
    total = w.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        x_mean = (w * x[:, None]).sum(axis=0) / total
        y_mean = (w * y).sum(axis=0) / total
        dx = x[:, None] - x_mean
        slope = (w * dx * (y - y_mean)).sum(axis=0) / (w * dx**2).sum(axis=0)
    slope = np.where((w > 0).sum(axis=0) >= 2, slope, np.nan)
    return slope, y_mean - slope * x_mean


def covariance_of(draws: np.ndarray) -> np.ndarray:
    """Covariance [point, point] of draws [point, draw]; tails beyond 1% are cut, NaN counts as median."""
    if draws.shape[1] < 2:
        return np.zeros((len(draws), len(draws)))
    low, middle, high = percentiles_of_known(draws, [1, 50, 99], axis=1)[..., None]
    filled = np.where(np.isfinite(draws), draws, middle)
    return np.cov(np.clip(filled, low, high))


def fit_power_laws(
    columns: dict[str, np.ndarray],
    drawn: np.ndarray,
    token_slopes: np.ndarray,
    *,
    weighted: bool,
    rng: np.random.Generator,
    warnings: list[str],
) -> tuple[dict[str, float], dict[str, np.ndarray], dict[str, Any]]:
    """The power laws N_opt = k_N C^a and D_opt = k_D C^b through two minima or more.

    Args:
      columns: flops, n_opt, d_opt, loss and log_std of each minimum [budget].
      drawn: [3, budget, draw], ln N, ln D and loss at the minima.
      token_slopes: [budget], slope of ln D in ln N within a budget (-1 where C = 6 N D). Scatter that
        moves the best size moves the best number of tokens as far in the other direction.
      weighted: weight the minima by 1 / variance.
      warnings: receives what there is to say of these minima.

    Returns:
      parameters a, b, k_N, k_D; draws of them; and the details "frontier_loss" and "scatter" (see
      `lmscale.laws.isoflop.fit_isoflop`).
    """
    x = np.log(columns["flops"])
    n_budgets = len(x)
    weight = np.ones(n_budgets)
    if weighted:
        if not np.all(columns["log_std"] > 0):
            warnings.append("the minima have no variances, so they are not weighted")
        else:
            weight = columns["log_std"] ** -2.0
    if n_budgets == 2:
        warnings.append("two usable profiles: the power law runs through both exactly")
    n_draws = drawn.shape[2]
    log_n = np.log(columns["n_opt"])
    posterior = between_posterior(x, log_n, covariance_of(drawn[0]), LOG_N_SCALE)
    scatter = draw_between(*posterior, n_budgets, n_draws, rng)
    parameters: dict[str, float] = {}
    draws: dict[str, np.ndarray] = {}
    for name, k, values, d in (
        ("a", "k_N", log_n, drawn[0] + scatter),
        ("b", "k_D", np.log(columns["d_opt"]), drawn[1] + scatter * token_slopes[:, None]),
    ):
        slope, intercept = line(x, values[:, None], weight[:, None])
        parameters[name], parameters[k] = float(slope[0]), float(np.exp(intercept[0]))
        if n_draws:
            found = np.isfinite(d)
            slope, intercept = line(x, np.where(found, d, 0.0), weight[:, None] * found)
            draws[name], draws[k] = slope, np.exp(intercept)
    rest = log_n - np.log(parameters["k_N"]) - parameters["a"] * x
    free = n_budgets - 2
    curve = fit_loss(x, columns["loss"], covariance_of(drawn[2]), n_draws, rng)
    more = {
        "frontier_loss": curve.to_details(),
        "scatter": {
            "log_n": math.sqrt(np.sum(rest**2) / free) if free else math.nan,
            "loss": curve.scatter,
        },
    }
    if n_draws:
        _warn_of_scatter(rest, columns["log_std"], posterior, warnings)
    order = ("a", "b", "k_N", "k_D")
    return {name: parameters[name] for name in order}, draws, more


def _warn_of_scatter(
    rest: np.ndarray,
    log_std: np.ndarray,
    posterior: tuple[np.ndarray, np.ndarray],
    warnings: list[str],
) -> None:
    """Warns where the scatter about the law is large, or where these budgets cannot show it."""
    n = len(rest)
    tau, weight = posterior
    if n < 4:
        high = float(tau[np.searchsorted(np.cumsum(weight), 0.95)])
        few = {2: "two", 3: "three"}[n]
        warnings.append(
            f"{few} budgets cannot show how the minima scatter about the power law: the intervals "
            f"allow for what published profiles show, up to {math.expm1(high):.0%} of N_opt at 95%, "
            f"and for any irreducible loss; where yours scatter less they cover more than their level"
        )
        return
    if not np.all(log_std > 0):
        return
    chi = float(np.sqrt(np.sum((rest / log_std) ** 2) / (n - 2)))
    if chi > 3:
        warnings.append(
            f"the minima scatter {chi:.1f} times more about the power law than the noise of their "
            f"runs explains; the intervals include it"
        )
