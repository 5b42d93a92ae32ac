"""The loss of the best model at each compute: its law, and a forecast of runs beyond the largest budget.

The law is L = L_inf + (C_c / C)^alpha_C through the minima of IsoFLOP profiles. `fit_loss` gives draws
of its parameters, which take the law to be true.

Real frontiers bend away from it: a recipe suits some sizes better than others, and a model begins
to learn what it could not. So a forecast (`forecast_loss`) lets the exponent wander: ln(L - L_inf) is a
line in ln C plus an integrated Wiener process (Wahba 1978, J. R. Statist. Soc. B 40, 364), whose
posterior mean is a cubic smoothing spline. Its rate is not known and is drawn with all else. Beyond the
runs the forecast then follows the slope of the last budgets, and is less sure the farther it goes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from scipy.interpolate import CubicHermiteSpline
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from lmscale.laws.result import interval
from lmscale.laws.scatter import LOSS_SCALE, tau_prior

__all__ = [
    "LEAST_ALPHA",
    "LossCurve",
    "LossForecast",
    "fit_loss",
    "forecast_loss",
    "narrow_floors",
]

T = TypeVar("T")

#: Points of the grid over the irreducible loss.
_LOSS_STEPS = 60
#: The grid over it is narrowed to where the posterior is, at most so many times.
_NARROWED = 8
#: Scale of the prior of the bend's rate: the change of alpha_C over one e-fold of compute. Of 0.003 to
#: 0.04 it has the highest marginal likelihood (e^36 times that of no bend) for the minima of the 15
#: configurations of Porian et al. 2024.
_BEND_SCALE = 0.02
#: Probability of no bend at all. With 0.3 a bend of that rate was covered by 88 to 90%, not 95%.
_NO_BEND = 0.1
#: The forecast's grids over L_inf, the scatter and the rate of the bend. Coarser than those of the law,
#: since their product counts.
_FORECAST_STEPS = 40, 16, 16
#: A loss is looked for along the forecast within this factor of the budgets, in steps of ln C.
_FARTHEST, _STEP = 1e15, 0.3
#: Least exponent of the loss; below it C_c would overflow.
LEAST_ALPHA = 0.005


@dataclass(frozen=True)
class LossCurve:
    """L = L_inf + (C_c / C)^alpha_C along the frontier: parameters, and draws of them."""

    parameters: dict[str, float]
    draws: dict[str, np.ndarray]
    #: Standard deviation of the losses about the curve (NaN with fewer than three).
    scatter: float
    #: Of the losses, from the noise of the runs [point, point].
    covariance: np.ndarray

    def to_details(self) -> dict[str, Any]:
        return {"parameters": self.parameters, "draws": self.draws, "covariance": self.covariance}


def fit_loss(
    log_flops: np.ndarray,
    loss: np.ndarray,
    covariance: np.ndarray,
    n_draws: int,
    rng: np.random.Generator,
) -> LossCurve:
    """The loss of the minima against compute, and draws from its posterior.

    The prior of L_inf is uniform between 0 and the lowest loss. It remains the posterior where the
    losses cannot tell the curve from a pure power law: with few budgets, or over few decades. Given
    L_inf, the level and the exponent are normal. Losses scatter about the curve with a tau, as ln N
    does (`between_posterior`).

    Args:
      log_flops, loss: [point], two or more.
      covariance: of the losses, from the noise of the runs.
    """
    grid = _LossGrid(log_flops, loss, covariance)
    solved = grid.posterior(_LOSS_STEPS)
    share = np.cumsum(solved.weight.sum(axis=1))
    middle = int(np.searchsorted(share, 0.5))
    of_middle = np.cumsum(solved.weight[middle])
    tau = int(np.searchsorted(of_middle / of_middle[-1], 0.5))
    parameters = _named(
        solved.floors[middle],
        solved.level[middle, tau],
        np.maximum(solved.alpha[middle, tau], LEAST_ALPHA),
        grid.center,
    )
    predicted = parameters["L_inf"] + (
        np.exp(np.log(parameters["C_c"]) - log_flops) ** parameters["alpha_C"]
    )
    free = len(loss) - (3 if len(loss) > 3 else 2)
    scatter = math.sqrt(np.sum((loss - predicted) ** 2) / free) if free > 0 else math.nan
    draws = {name: np.empty(0) for name in parameters}
    if n_draws:
        cells, level, alpha = solved.draw(n_draws, rng)
        draws = _named(solved.floors[cells[0]], level, alpha, grid.center)
    return LossCurve({name: float(v) for name, v in parameters.items()}, draws, scatter, covariance)


@dataclass(frozen=True)
class LossForecast:
    """The loss of the best model at any compute, by draws of a curve that may bend.

    ln(L - L_inf) = level - alpha x + bend(x), with x = ln C - center.

    Attributes:
      center: mean of ln C of the budgets.
      x: [budget], rising.
      floor, level, alpha: [draw].
      bend, slope: the bend and its derivative at the budgets [budget, draw].
      wander: how far the bend strays from its last slope one e-fold beyond the budgets [draw].
      scatter: of a single minimum about the curve, in nats [draw].
    """

    center: float
    x: np.ndarray
    floor: np.ndarray
    level: np.ndarray
    alpha: np.ndarray
    bend: np.ndarray
    slope: np.ndarray
    wander: np.ndarray
    scatter: np.ndarray

    def curves(self, flops: np.ndarray | float) -> np.ndarray:
        """The loss of the curve at each compute [..., draw]."""
        x = np.asarray(np.log(flops) - self.center)[..., None]
        inside = np.clip(x, self.x[0], self.x[-1])
        # Between budgets whose values and slopes are given, the process has a cubic as its mean.
        bend = CubicHermiteSpline(self.x, self.bend, self.slope)(inside[..., 0])
        beyond = x - inside
        last = np.where(beyond > 0, self.slope[-1], self.slope[0])
        bend = bend + beyond * last + np.abs(beyond) ** 1.5 * self.wander
        return self.floor + np.exp(self.level - self.alpha * x + bend)

    def __call__(self, flops: float) -> float:
        return float(np.median(self.curves(flops)))

    @cached_property
    def _tabled(self) -> tuple[np.ndarray, np.ndarray]:
        """The compute of a wide grid, and the loss there."""
        ends = np.log(_FARTHEST) * np.array([-1, 1]) + self.x[[0, -1]] + self.center
        flops = np.exp(np.arange(ends[0], ends[1], _STEP))
        return flops, np.median(self.curves(flops), axis=-1)

    def budget(self, loss: float) -> float:
        """The compute at which the curve first comes down to a loss; NaN where it does not."""
        flops, reached = self._tabled
        below = int(np.argmax(reached <= loss))
        if below == 0:
            return math.nan
        found = brentq(lambda at: self(at) - loss, flops[below - 1], flops[below], rtol=1e-9)
        return float(found)

    def interval(self, flops: float, level: float) -> tuple[float, float]:
        """The interval of a minimum at this compute, without the noise of its one run."""
        return interval(self.curves(flops) + self.scatter, level)


def forecast_loss(
    log_flops: np.ndarray,
    loss: np.ndarray,
    covariance: np.ndarray,
    n_draws: int,
    rng: np.random.Generator,
) -> LossForecast:
    """Draws of the loss along the frontier, where the exponent may change with compute.

    Args:
      log_flops, loss: [point], three or more.
      covariance: of the losses, from the noise of the runs.
      n_draws: at least one.
    """
    order = np.argsort(log_flops)
    log_flops, loss, covariance = log_flops[order], loss[order], covariance[np.ix_(order, order)]
    floors, *steps = _FORECAST_STEPS
    grid = _LossGrid(log_flops, loss, covariance, (steps[0], steps[1]))
    solved = grid.posterior(floors)
    (i, j), level, alpha = solved.draw(n_draws, rng)
    excess = loss - solved.floors[i][:, None]  # [draw, point]
    # What the line leaves of each loss, in nats.
    rest = excess * (np.log(excess) - (level[:, None] - alpha[:, None] * grid.x))
    with_values, states = _bend_states(grid.x)
    drawn = np.zeros((2 * len(loss), n_draws))
    normal = rng.standard_normal(drawn.shape)
    for cell in sorted(set(zip(i.tolist(), j.tolist(), strict=True))):
        rate = grid.rate[cell[1]]
        if rate == 0:
            continue
        of_cell = np.flatnonzero((i == cell[0]) & (j == cell[1]))
        seen = rate**2 * with_values * excess[of_cell[0]]
        gain = seen @ solved.precision[cell]
        own, axes = np.linalg.eigh(rate**2 * states - gain @ seen.T)
        root = axes * np.sqrt(np.maximum(own, 0.0))
        drawn[:, of_cell] = gain @ rest[of_cell].T + root @ normal[:, of_cell]
    bend, slope = np.split(drawn, 2)
    return LossForecast(
        center=grid.center,
        x=grid.x,
        floor=solved.floors[i],
        level=level,
        alpha=alpha,
        bend=bend,
        slope=slope,
        wander=grid.rate[j] / math.sqrt(3) * rng.standard_normal(n_draws),
        scatter=grid.tau[j] * rng.standard_normal(n_draws),
    )


def _named(floor: np.ndarray, level: np.ndarray, alpha: np.ndarray, center: float) -> dict:
    """ln(L - L_inf) = level - alpha (ln C - center), in the symbols of the papers."""
    return {"alpha_C": alpha, "C_c": np.exp(level / alpha + center), "L_inf": floor}


class _LossGrid:
    """ln(L - L_inf) as a line in ln C, on a grid over L_inf and over what the losses differ by.

    A loss differs from the line by the noise of its runs, by scatter of standard deviation tau, and by
    a bend of rate `rate`. The grid has one `component` for each pair of these two.

    Args:
      log_flops, loss, covariance: see `fit_loss`.
      steps: of the grids over tau and over the rate; a rate of 0 alone without the second.
    """

    def __init__(
        self,
        log_flops: np.ndarray,
        loss: np.ndarray,
        covariance: np.ndarray,
        steps: tuple[int, int | None] = (40, None),
    ):
        self.center = float(log_flops.mean())
        self.x, self.loss = log_flops - self.center, loss
        scatters, bends = steps
        tau, of_tau = tau_prior(LOSS_SCALE * float(np.mean(loss)), steps=scatters)
        rate, of_rate = np.zeros(1), np.zeros(1)
        if bends is not None:
            rate, of_rate = tau_prior(_BEND_SCALE, steps=bends, none=_NO_BEND)
        self.tau, self.rate = (grid.ravel() for grid in np.meshgrid(tau, rate, indexing="ij"))
        self.log_prior = (of_tau[:, None] + of_rate).ravel()
        floor = (1e-7 * float(np.mean(loss))) ** 2
        identity = np.eye(len(loss))
        self.covariance = covariance + (self.tau[:, None, None] ** 2 + floor) * identity
        self.bend = _bend_covariance(self.x, self.x)

    def precision(self, excess: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Inverse and log determinant of the losses' covariance [floor, component, ...].

        The first axis is 1 without bends, since only the size of a bend depends on L_inf.

        Args:
          excess: L - L_inf [floor, point].
        """
        covariance = self.covariance[None]
        if self.rate.any():
            bend = excess[:, :, None] * excess[:, None, :] * self.bend
            covariance = covariance + self.rate[:, None, None] ** 2 * bend[:, None]
        return np.linalg.inv(covariance), np.linalg.slogdet(covariance)[1]

    def solve(self, floors: np.ndarray) -> _Solved:
        """The line given each L_inf and component."""
        excess = self.loss - floors[:, None]
        precision, log_det = self.precision(excess)
        # Derivatives of the loss: the excess in the level, and -excess x in alpha.
        design = np.stack([excess, -excess * self.x], axis=-1)  # [floor, point, 2]
        y = excess * np.log(excess)
        left = np.einsum("fpi,ftpq->ftiq", design, precision)
        normal = np.einsum("ftiq,fqj->ftij", left, design)
        theta = np.linalg.solve(normal, np.einsum("ftiq,fq->fti", left, y)[..., None])[..., 0]
        rest = y[:, None] - np.einsum("fpi,fti->ftp", design, theta)
        chi = np.einsum("ftp,ftpq,ftq->ft", rest, precision, rest)
        level, alpha = theta[..., 0], theta[..., 1]
        covariance = np.linalg.inv(normal)
        # Flat in the loss at the center, which is L_inf + exp(level), and in its slope, -alpha exp(level).
        flat = 2 * level - 0.5 * np.linalg.slogdet(normal)[1]
        error = np.sqrt(covariance[..., 1, 1])
        falls = np.log(np.maximum(ndtr((alpha - LEAST_ALPHA) / error), 1e-300))
        log_weight = self.log_prior - 0.5 * (log_det + chi) + flat + falls
        weight = np.exp(log_weight - log_weight.max())
        return _Solved(floors, level, alpha, covariance, weight / weight.sum(), precision)

    def posterior(self, n_floors: int) -> _Solved:
        """The posterior on a grid of L_inf that holds nearly all of it; see `narrow_floors`."""

        def solve(floors: np.ndarray) -> tuple[_Solved, np.ndarray]:
            solved = self.solve(floors)
            return solved, solved.weight

        return narrow_floors(float(self.loss.min()), n_floors, solve)


def narrow_floors(
    lowest: float, n_floors: int, solve: Callable[[np.ndarray], tuple[T, np.ndarray]]
) -> T:
    """A posterior on a grid of L_inf that holds all but 1e-4 of it.

    The prior of L_inf is uniform between 0 and the lowest loss.

    Args:
      lowest: the lowest loss.
      n_floors: points of the grid.
      solve: L_inf [floor] -> what is wanted, and the posterior on that grid [floor, component], which
        need not be normalised.
    """
    low, high = 0.0, lowest * (1 - 1e-6)
    for _ in range(_NARROWED):
        floors = np.linspace(low, high, n_floors)
        solved, weight = solve(floors)
        share = weight.sum(axis=1)
        held = np.flatnonzero(share > 1e-4 * share.max())
        first, last = max(held[0] - 1, 0), min(held[-1] + 1, n_floors - 1)
        if last - first > n_floors // 3:
            break
        low, high = floors[first], floors[last]
    return solved


@dataclass(frozen=True)
class _Solved:
    """The posterior of the line on a grid of `_LossGrid`.

    Attributes:
      floors: L_inf [floor].
      level, alpha: ln(L - L_inf) = level - alpha (ln C - center) [floor, component].
      covariance: of (level, alpha) [floor, component, 2, 2].
      weight: posterior of the grid, which sums to 1 [floor, component].
      precision: of the losses [floor or 1, component, point, point].
    """

    floors: np.ndarray
    level: np.ndarray
    alpha: np.ndarray
    covariance: np.ndarray
    weight: np.ndarray
    precision: np.ndarray

    def draw(self, n_draws: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Indices [2, draw] into the grid, then level and alpha [draw]; alpha is at least `LEAST_ALPHA`."""
        cell = rng.choice(self.weight.size, size=n_draws, p=self.weight.ravel())
        i, j = np.unravel_index(cell, self.weight.shape)
        level, alpha, covariance = self.level[i, j], self.alpha[i, j], self.covariance[i, j]
        error = np.sqrt(covariance[:, 1, 1])
        # A normal distribution truncated below, sampled by its inverse.
        below = ndtr((LEAST_ALPHA - alpha) / error)
        z = ndtri(np.clip(below + (1 - below) * rng.random(n_draws), 1e-12, 1 - 1e-12))
        drawn = np.maximum(alpha + error * z, LEAST_ALPHA)
        slope = covariance[:, 0, 1] / covariance[:, 1, 1]
        rest = np.sqrt(np.maximum(covariance[:, 0, 0] - slope * covariance[:, 0, 1], 0.0))
        drawn_level = level + slope * (drawn - alpha) + rest * rng.standard_normal(n_draws)
        return np.stack([i, j]), drawn_level, drawn


def _bend_covariance(s: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Covariance [s, t] of an integrated Wiener process of rate 1 that leaves 0 both ways from 0.

    Its value and slope at 0 are 0: a line has both already.
    """
    a, b = np.abs(s)[:, None], np.abs(t)[None, :]
    near, far = np.minimum(a, b), np.maximum(a, b)
    return np.where(s[:, None] * t[None, :] > 0, near**2 * (3 * far - near) / 6, 0.0)


def _bend_states(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Covariances of the process' values and slopes at x: [2 point, point] with the values, and
    [2 point, 2 point] of all."""
    a, b = np.abs(x)[:, None], np.abs(x)[None, :]
    side = np.sign(x)[:, None] * np.sign(x)[None, :] > 0
    values = _bend_covariance(x, x)
    # The slope at a with the value at b. Away from 0 on the other side the slope has the other sign.
    mixed = np.where(side, np.sign(x)[:, None] * np.where(a < b, a * b - a**2 / 2, b**2 / 2), 0.0)
    slopes = np.where(side, np.minimum(a, b), 0.0)
    with_values = np.concatenate([values, mixed])
    return with_values, np.concatenate([with_values, np.concatenate([mixed.T, slopes])], axis=1)
