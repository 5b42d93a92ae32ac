"""How far points scatter about a line beyond their own noise: a random effect with a prior.

The standard deviation tau of the scatter is not known. Few points can only bound it, so it has a
posterior, and every draw takes one value of it.
"""

from __future__ import annotations

import numpy as np

__all__ = ["LOG_N_SCALE", "LOSS_SCALE", "between_posterior", "draw_between", "tau_prior"]

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


def tau_prior(
    scale: float, contrasts: int = 0, steps: int = 40, none: float = _NO_SCATTER
) -> tuple[np.ndarray, np.ndarray]:
    """A grid of tau, and the logarithm of its prior weights.

    Args:
      contrasts: how many there are of which the likelihood is.
      steps: points of the grid.
      none: probability of no scatter, where there are few contrasts.
    """
    tau = scale * np.concatenate([[0.0], np.geomspace(0.02, 50.0, steps - 1)])
    if contrasts >= _ENOUGH_CONTRASTS:
        weight = np.gradient(tau)
        return tau, np.log(weight / weight.sum())
    weight = 1 / np.pi / (1 + (tau / scale) ** 2) * np.gradient(tau)
    weight[0] = 0.0
    weight *= (1 - none) / weight.sum()
    weight[0] = none
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
