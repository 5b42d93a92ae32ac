"""The loss surface of Hoffmann et al. 2022, its optimum at a budget, and what figures draw of it.

    L(N, D) = E + A / N^alpha + B / D^beta          (eq. 2)

At C = 6 N D the optimum has a closed form (eq. 4):

    N_opt = G (C/6)^a',  D_opt = G^-1 (C/6)^b',  G = (alpha A / (beta B))^(1/(alpha+beta)),
    a' = beta/(alpha+beta),  b' = alpha/(alpha+beta)

`lmscale.laws.parametric` fits it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from lmscale.laws.result import FitError, FitResult, interval
from lmscale.laws.surface import NAMES

__all__ = [
    "Allocation",
    "chinchilla_loss",
    "frontier_and_contours",
    "iso_loss",
    "optimal_allocation",
]


class Allocation(NamedTuple):
    """Compute-optimal size, tokens, loss and tokens per parameter at a budget."""

    n_params: Any
    n_tokens: Any
    loss: Any
    tokens_per_param: Any


def chinchilla_loss(parameters: Any, *, params: Any, tokens: Any, **_: Any) -> Any:
    """E + A/N^alpha + B/D^beta."""
    e, a, b, alpha, beta = (parameters[name] for name in NAMES)
    return e + a * params**-alpha + b * tokens**-beta


def optimal_allocation(parameters: Any, flops: Any) -> Allocation:
    """The minimum of the surface at C = 6 N D (Hoffmann et al. 2022, eq. 4)."""
    _, a, b, alpha, beta = (np.asarray(parameters[name], float) for name in NAMES)
    total = alpha + beta
    log_g = np.log(alpha * a / (beta * b)) / total
    log_c = np.log(np.asarray(flops, float) / 6.0)
    n = np.exp(log_g + beta / total * log_c)
    d = np.exp(-log_g + alpha / total * log_c)
    return Allocation(n, d, chinchilla_loss(parameters, params=n, tokens=d), d / n)


def iso_loss(
    parameters: Any, loss: float, points: int = 128, reach: float = 30.0
) -> dict[str, Any]:
    """One contour of equal loss as curves of params, tokens and flops (Hoffmann et al., Fig. 4).

    It covers sizes within a factor `reach` of the size that reaches the loss with least compute, and
    only sizes that reach it with finite data.
    """
    e, a, b, alpha, beta = (parameters[name] for name in NAMES)
    if loss <= e:
        raise FitError(f"no run reaches a loss of {loss:.4g}: the irreducible loss is {e:.4g}")
    # At the optimum the two terms A/N^alpha and B/D^beta are in the ratio beta : alpha.
    best = (a * (alpha + beta) / (beta * (loss - e))) ** (1 / alpha)
    least = (a / (loss - e)) ** (1 / alpha)
    n = np.geomspace(max(best / reach, least * 1.02), best * reach, points)
    d = (b / (loss - e - a * n**-alpha)) ** (1 / beta)
    return {"loss": loss, "params": n, "tokens": d, "flops": 6 * n * d}


def frontier_and_contours(result: FitResult) -> dict[str, Any]:
    """What figures draw of a fit whose alpha and beta are positive.

    Returns:
      "frontier": [point] columns flops, n_opt, d_opt, loss, tokens_per_param, with the edges of the
      intervals (n_opt_low, ...) where there are draws, up to 100 times the compute of the runs; and
      "contours": ten curves of equal loss (`iso_loss`).
    """
    low, high = result.ranges["flops"]
    flops = np.geomspace(low, high * 100, 64)
    best = optimal_allocation(result.parameters, flops)
    frontier = {
        "flops": flops,
        "n_opt": best.n_params,
        "d_opt": best.n_tokens,
        "loss": best.loss,
        "tokens_per_param": best.tokens_per_param,
    }
    if result.draws:
        sound = (result.draws["alpha"] > 0) & (result.draws["beta"] > 0)
        draws = {name: values[sound] for name, values in result.draws.items()}
        drawn = optimal_allocation(draws, flops[:, None])
        for name, values in (
            ("n_opt", drawn.n_params),
            ("d_opt", drawn.n_tokens),
            ("loss", drawn.loss),
        ):
            frontier[f"{name}_low"], frontier[f"{name}_high"] = interval(
                values, result.draw_level or result.level, axis=1
            )
    observed = result.residuals["observed"]
    floor = result.parameters["E"]
    bottom = max(observed.min(), floor + 1e-3 * (observed.max() - floor))
    levels = floor + np.geomspace(max(bottom - floor, 1e-6), observed.max() - floor, 10)
    return {"frontier": frontier, "contours": [iso_loss(result.parameters, x) for x in levels]}
