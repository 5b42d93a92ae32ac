"""What counting embeddings does to an exponent (Pearce & Song 2024, 2406.12907).

On a surface that is a power law in total parameters N_T, small models look as if compute should go
to parameters when embeddings are left out of the count, because N_T = N + omega N^(1/3) there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = [
    "KAPLAN_FLOPS",
    "KAPLAN_SIZES",
    "OMEGA",
    "exact_exponent",
    "frontier_flops",
    "local_exponents",
]

#: N_T = N + omega N^(1/3) fitted to the sizes of Hoffmann et al. 2022 (vocabulary 32,000).
OMEGA = 47_491.0

#: Non-embedding sizes over the range of Kaplan et al. 2020.
KAPLAN_SIZES = np.geomspace(10**2.9, 10**9.2, 20)

#: Non-embedding compute over which one of these sizes is best and neither end is.
KAPLAN_FLOPS = (10**12.95, 10**20.7)


def frontier_flops(parameters: Mapping[str, float], params: Any, omega: float = OMEGA) -> Any:
    """The non-embedding compute 6 N D at which non-embedding size N is optimal.

    Minimises L(N_T(N), D) at fixed C = 6 N D: alpha A N_T'(N) N / N_T^(alpha+1) = beta B / D^beta.
    """
    a, b, alpha, beta = (parameters[name] for name in ("A", "B", "alpha", "beta"))
    n = np.asarray(params, float)
    total = n + omega * np.cbrt(n)
    slope = n + omega / 3 * np.cbrt(n)
    tokens = (beta * b * total ** (1 + alpha) / (alpha * a * slope)) ** (1 / beta)
    return 6 * n * tokens


def exact_exponent(parameters: Mapping[str, float], params: Any, omega: float = OMEGA) -> Any:
    """d ln N / d ln C along `frontier_flops`, at each size."""
    alpha, beta = parameters["alpha"], parameters["beta"]
    x = np.cbrt(np.asarray(params, float)) ** 2
    slope = (
        1 + ((1 + alpha) * (x + omega / 3) / (x + omega) - (x + omega / 9) / (x + omega / 3)) / beta
    )
    return 1 / slope


def local_exponents(
    parameters: Mapping[str, float],
    params: Any = None,
    flops: tuple[float, float] = KAPLAN_FLOPS,
    omega: float = OMEGA,
    points: int = 100,
    token_grid: np.ndarray | None = None,
) -> dict[str, float]:
    """The exponents that an experiment with these sizes would report, counting without embeddings.

    At each of `points` log-spaced budgets C = 6 N D the size with the lowest loss is taken, as in
    the paper's own simulation, and power laws are fitted through them. The authors' code rounds
    tokens to a grid of 1000 values from 1e6 to 1e25, which moves the exponent by 0.005;
    `token_grid` does the same.

    Returns:
      slopes against C: N, D, loss, and reducible_loss (L - E).
    """
    n = KAPLAN_SIZES if params is None else np.asarray(params, float)
    budgets = np.geomspace(*flops, points)
    tokens = budgets / (6 * n[:, None])
    if token_grid is not None:
        tokens = token_grid[np.abs(tokens[..., None] - token_grid).argmin(axis=-1)]
    total = n + omega * np.cbrt(n)
    reducible = (
        parameters["A"] * total[:, None] ** -parameters["alpha"]
        + parameters["B"] * tokens ** -parameters["beta"]
    )
    best, at = np.argmin(reducible, axis=0), np.arange(points)
    least = reducible[best, at]

    def slope(y: np.ndarray) -> float:
        return float(np.polyfit(np.log(budgets), np.log(y), 1)[0])

    return {
        "N": slope(n[best]),
        "D": slope(tokens[best, at]),
        "loss": slope(parameters["E"] + least),
        "reducible_loss": slope(least),
    }
