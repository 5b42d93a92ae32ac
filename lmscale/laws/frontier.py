"""The power law through the minima of IsoFLOP profiles, the loss along it, and their uncertainty.

Minima scatter about the law by more than the noise of their own runs: a learning rate suits some sizes
better than others, the grids of sizes lie differently about the minimum, seeds share their data. This
scatter is a random effect between budgets. Few budgets can only bound its standard deviation tau. So
tau has a posterior (`between_posterior`) and every draw takes one value of it. Few budgets then give
wide intervals.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri
from scipy.stats import cauchy

__all__ = [
    "LossCurve",
    "between_posterior",
    "covariance_of",
    "draw_between",
    "fit_loss",
    "fit_power_laws",
    "line",
]

#: Prior of tau: zero with this probability, otherwise half a Cauchy distribution. With less weight at
#: zero, grids without scatter would get intervals that are much too wide. With a narrower Cauchy
#: distribution, four budgets would cover a scatter of 0.1 and more too rarely.
_NO_SCATTER = 0.3
#: With this many contrasts or more, which tell tau by themselves, its prior is uniform, as Gelman 2006
#: (Bayesian Analysis 1, 515, sec. 7) recommends from five groups on. A prior that falls with tau takes
#: variance off grids that do scatter: with 8 budgets a scatter of 0.1 was covered by 91.5% and not 95%.
_ENOUGH_CONTRASTS = 5
#: Its scale for ln N_opt. In the 15 configurations of Porian et al. 2024 minima scatter by 0.04 to 0.14.
LOG_N_SCALE = 0.1
#: The same for the loss at the minima, as a share of it; in these configurations it is 0.2% to 1.5%.
LOSS_SCALE = 0.003
#: Steps of the grids over tau and over the irreducible loss.
_TAU_STEPS, _LOSS_STEPS = 40, 60
#: Least exponent of the loss; below it C_c would overflow.
LEAST_ALPHA = 0.005


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
    low, middle, high = np.nanpercentile(draws, [1, 50, 99], axis=1)[..., None]
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


def tau_prior(scale: float, contrasts: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A grid of tau, and the logarithm of its prior weights.

    Args:
      contrasts: how many there are of which the likelihood is.
    """
    tau = scale * np.concatenate([[0.0], np.geomspace(0.02, 50.0, _TAU_STEPS - 1)])
    if contrasts >= _ENOUGH_CONTRASTS:
        weight = np.gradient(tau)
        return tau, np.log(weight / weight.sum())
    weight = cauchy.pdf(tau / scale) * np.gradient(tau)
    weight[0] = 0.0
    weight *= (1 - _NO_SCATTER) / weight.sum()
    weight[0] = _NO_SCATTER
    return tau, np.log(weight)


def between_posterior(
    x: np.ndarray, y: np.ndarray, covariance: np.ndarray, scale: float, degree: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """The posterior of tau, the standard deviation between points about a line, on a grid.

    y = line(x) + errors with `covariance` + normal scatter of tau. The line is integrated out, so only
    the n - 2 contrasts that do not depend on it count (restricted likelihood). Two points have no such
    contrast, and the posterior is the prior. With `degree` 2 the same holds of a parabola in place of
    the line.

    Args:
      x, y: [point].
      covariance: [point, point] of the errors.
      scale: of the Cauchy distribution of the prior, in the units of y.

    Returns:
      tau [grid] and its weights, which sum to 1.
    """
    tau, log_weight = tau_prior(scale, len(x) - degree - 1)
    if len(x) > degree + 1:
        design = np.vander((x - x.mean()) / np.ptp(x), degree + 1)
        free = np.linalg.qr(design, mode="complete")[0][:, degree + 1 :]
        own, axes = np.linalg.eigh(free.T @ covariance @ free)
        contrast = axes.T @ free.T @ y
        variance = np.maximum(own, 0.0) + tau[:, None] ** 2 + 1e-18
        log_weight += -0.5 * np.sum(np.log(variance) + contrast**2 / variance, axis=1)
    weight = np.exp(log_weight - log_weight.max())
    return tau, weight / weight.sum()


def draw_between(
    tau: np.ndarray, weight: np.ndarray, n_points: int, n_draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Scatter [point, draw] between the points, each draw with its own tau."""
    return rng.choice(tau, size=n_draws, p=weight) * rng.standard_normal((n_points, n_draws))


@dataclass(frozen=True)
class LossCurve:
    """L = L_inf + (C_c / C)^alpha_C along the frontier: parameters, and draws of them."""

    parameters: dict[str, float]
    draws: dict[str, np.ndarray]
    #: Standard deviation of the losses about the curve (NaN with fewer than three).
    scatter: float

    def to_details(self) -> dict[str, dict]:
        return {"parameters": self.parameters, "draws": self.draws}


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
    low, high = 0.0, float(loss.min()) * (1 - 1e-6)
    for _ in range(8):
        floors = np.linspace(low, high, _LOSS_STEPS)
        weight = grid.weights(floors)
        held = np.flatnonzero(weight.sum(axis=1) > 1e-4 * weight.sum(axis=1).max())
        first, last = max(held[0] - 1, 0), min(held[-1] + 1, _LOSS_STEPS - 1)
        if last - first > _LOSS_STEPS // 3:
            break
        low, high = floors[first], floors[last]
    weight = weight / weight.sum()
    share = np.cumsum(weight.sum(axis=1))
    middle = int(np.searchsorted(share, 0.5))
    tau = int(np.searchsorted(np.cumsum(weight[middle]) / weight[middle].sum(), 0.5))
    level, alpha, _ = (value[middle, tau] for value in grid.normal(floors))
    parameters = _named(floors[middle], level, np.maximum(alpha, LEAST_ALPHA), grid.center)
    predicted = parameters["L_inf"] + (
        np.exp(np.log(parameters["C_c"]) - log_flops) ** parameters["alpha_C"]
    )
    free = len(loss) - (3 if len(loss) > 3 else 2)
    scatter = math.sqrt(np.sum((loss - predicted) ** 2) / free) if free > 0 else math.nan
    draws = {name: np.empty(0) for name in parameters}
    if n_draws:
        draws = _named(*grid.draw(floors, weight, n_draws, rng), grid.center)
    return LossCurve({name: float(v) for name, v in parameters.items()}, draws, scatter)


def _named(floor: np.ndarray, level: np.ndarray, alpha: np.ndarray, center: float) -> dict:
    """ln(L - L_inf) = level - alpha (ln C - center), in the symbols of the papers."""
    return {"alpha_C": alpha, "C_c": np.exp(level / alpha + center), "L_inf": floor}


class _LossGrid:
    """ln(L - L_inf) as a line in ln C, on a grid over L_inf and tau."""

    def __init__(self, log_flops: np.ndarray, loss: np.ndarray, covariance: np.ndarray):
        self.center = float(log_flops.mean())
        self.x, self.loss = log_flops - self.center, loss
        self.tau, self.log_prior = tau_prior(LOSS_SCALE * float(np.mean(loss)))
        floor = (1e-7 * float(np.mean(loss))) ** 2
        identity = np.eye(len(loss))
        self.covariance = covariance + (self.tau[:, None, None] ** 2 + floor) * identity
        self.precision = np.linalg.inv(self.covariance)
        self.log_det = np.linalg.slogdet(self.covariance)[1]

    def _solve(self, floors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(level, alpha), their precision matrix, and chi^2, each over [floor, tau]."""
        excess = self.loss - floors[:, None]
        # Derivatives of the loss: the excess in the level, and -excess x in alpha.
        design = np.stack([excess, -excess * self.x], axis=-1)  # [floor, point, 2]
        y = excess * np.log(excess)
        left = np.einsum("fpi,tpq->ftiq", design, self.precision)
        normal = np.einsum("ftiq,fqj->ftij", left, design)
        theta = np.linalg.solve(normal, np.einsum("ftiq,fq->fti", left, y)[..., None])[..., 0]
        rest = y[:, None] - np.einsum("fpi,fti->ftp", design, theta)
        chi = np.einsum("ftp,tpq,ftq->ft", rest, self.precision, rest)
        return theta, normal, chi

    def normal(self, floors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """level, alpha and their covariance matrix, each over [floor, tau]."""
        theta, normal, _ = self._solve(floors)
        return theta[..., 0], theta[..., 1], np.linalg.inv(normal)

    def weights(self, floors: np.ndarray) -> np.ndarray:
        """Posterior [floor, tau], not normalised; flat in L_inf, and in loss and slope at the center."""
        theta, normal, chi = self._solve(floors)
        excess = np.exp(theta[..., 0])
        # The loss at the center is L_inf + excess and its slope -alpha excess.
        flat = 2 * np.log(excess) - 0.5 * np.linalg.slogdet(normal)[1]
        error = np.sqrt(np.linalg.inv(normal)[..., 1, 1])
        falls = np.log(np.maximum(ndtr((theta[..., 1] - LEAST_ALPHA) / error), 1e-300))
        log_weight = self.log_prior - 0.5 * (self.log_det + chi) + flat + falls
        return np.exp(log_weight - log_weight.max())

    def draw(
        self, floors: np.ndarray, weight: np.ndarray, n_draws: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """L_inf, level and alpha [draw]; alpha is at least `LEAST_ALPHA`."""
        level, alpha, covariance = self.normal(floors)
        cell = rng.choice(weight.size, size=n_draws, p=weight.ravel() / weight.sum())
        i, j = np.unravel_index(cell, weight.shape)
        error = np.sqrt(covariance[i, j, 1, 1])
        # A normal distribution truncated below, sampled by its inverse.
        below = ndtr((LEAST_ALPHA - alpha[i, j]) / error)
        z = ndtri(np.clip(below + (1 - below) * rng.random(n_draws), 1e-12, 1 - 1e-12))
        drawn = np.maximum(alpha[i, j] + error * z, LEAST_ALPHA)
        slope = covariance[i, j, 0, 1] / covariance[i, j, 1, 1]
        rest = np.sqrt(np.maximum(covariance[i, j, 0, 0] - slope * covariance[i, j, 0, 1], 0.0))
        drawn_level = (
            level[i, j] + slope * (drawn - alpha[i, j]) + rest * rng.standard_normal(n_draws)
        )
        return floors[i], drawn_level, drawn
