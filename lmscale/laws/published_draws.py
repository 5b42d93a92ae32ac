"""Draws of published laws, from what their papers publish.

No paper publishes joint draws of its constants. If A and alpha are drawn independently, each within
its own interval, A/N^alpha varies too much at the very runs that determine it. The best size for a
budget is then uncertain by a factor of ten, where the fit determines it to a factor of two. So the
correlation is taken from the design: the sizes and tokens of the runs determine which combinations of
the parameters the losses fix, whatever the losses are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lmscale.laws.quantiles import normal_quantile
from lmscale.laws.surface import NAMES

__all__ = ["design_correlation", "frontier_draws", "hoffmann_design", "joint_draws"]

#: Number of draws of a law whose paper publishes intervals.
N_DRAWS = 2000
#: IsoFLOP budgets of Hoffmann et al. 2022, section 3.2.
_BUDGETS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)


def hoffmann_design() -> tuple[np.ndarray, np.ndarray]:
    """Sizes and tokens like those of Hoffmann et al. 2022: (N, D) of 228 runs.

    The paper does not say which sizes were trained at which budget. Approach 2 has nine budgets; here
    each has twelve sizes within a factor of 4 of the best one, between 44M and 16B. Approach 1 has
    sizes from 70M to 10B, each for four horizons over a factor of 16; here 30 sizes at 5, 10, 20 and 80
    tokens per parameter.
    """
    params, tokens = [], []
    for budget in _BUDGETS:
        # 20 tokens per parameter.
        centre = math.sqrt(budget / 120)
        sizes = np.geomspace(max(4.4e7, centre / 4), min(1.6e10, centre * 4), 12)
        params.append(sizes)
        tokens.append(budget / (6 * sizes))
    for ratio in (5.0, 10.0, 20.0, 80.0):
        sizes = np.geomspace(7e7, 1e10, 30)
        params.append(sizes)
        tokens.append(ratio * sizes)
    return np.concatenate(params), np.concatenate(tokens)


def design_correlation(
    parameters: Mapping[str, float], params: np.ndarray, tokens: np.ndarray
) -> np.ndarray:
    """Correlation [5, 5] of ln E, ln A, ln B, alpha, beta fitted to log losses at a design.

    The covariance of a fit is proportional to inverse(J^T J), where J has the derivatives of ln L by the
    parameters. This holds for least squares and for Huber's function; the scale cancels.
    """
    terms = np.stack(
        [
            np.full(len(params), parameters["E"]),
            parameters["A"] * params ** -parameters["alpha"],
            parameters["B"] * tokens ** -parameters["beta"],
        ]
    )
    share = terms / terms.sum(axis=0)
    jacobian = np.stack([*share, -share[1] * np.log(params), -share[2] * np.log(tokens)], axis=1)
    covariance = np.linalg.inv(jacobian.T @ jacobian)
    std = np.sqrt(np.diag(covariance))
    return covariance / np.outer(std, std)


def joint_draws(
    parameters: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    level: float,
    correlation: np.ndarray,
) -> dict[str, np.ndarray]:
    """Draws of E, A, B, alpha, beta with the published intervals and this correlation.

    Each parameter is log-normal on either side of its value, so its draws have the published median and
    interval (a normal copula).
    """
    rng = np.random.default_rng(0)
    z = rng.multivariate_normal(np.zeros(len(NAMES)), correlation, size=N_DRAWS, method="eigh")
    return {
        name: _two_sided(parameters[name], intervals[name], level, z[:, i])
        for i, name in enumerate(NAMES)
    }


def frontier_draws(
    parameters: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    level: float,
    flops: tuple[float, float],
) -> dict[str, np.ndarray]:
    """Draws of N_opt = k_N C^a and D_opt = k_D C^b, a + b = 1, from the interval of a.

    N_opt and D_opt are kept fixed at the middle of the budgets, because the error of the level is not
    published.
    """
    draws = {name: np.full(N_DRAWS, value) for name, value in parameters.items()}
    z = np.random.default_rng(0).standard_normal(N_DRAWS)
    draws["a"] = _two_sided(parameters["a"], intervals["a"], level, z)
    draws["b"] = 1 - draws["a"]
    middle = math.sqrt(math.prod(flops))
    for scale, slope in (("k_N", "a"), ("k_D", "b")):
        draws[scale] = parameters[scale] * middle ** (parameters[slope] - draws[slope])
    return draws


def _two_sided(
    value: float, interval: tuple[float, float], level: float, z: np.ndarray
) -> np.ndarray:
    """Log-normal draws on either side of `value`, from standard normal draws z."""
    low, high = interval
    side = np.where(z < 0, math.log(value / low), math.log(high / value))
    return value * np.exp(z / normal_quantile(0.5 + level / 2) * side)
