"""Frontiers of architectures that need a known factor of each other's compute."""

import numpy as np
import pandas as pd

from lmscale.laws.isoflop import fit_isoflop
from lmscale.studies.multiplier import Comparison, Frontier, compare
from tests.laws.planted_isoflop import SMALL, Surface

BUDGETS = tuple(2e10 * 2.0**i for i in range(6))


def rival(times: float, growth: float = 0.0) -> Surface:
    """A surface whose frontier needs `times` (C/1e11)^growth the compute of that of SMALL."""
    n_opt, loss = SMALL.optimum(1e11)
    alpha, beta = SMALL.alpha / (1 + growth), SMALL.beta / (1 + growth)
    return Surface.through(1e11 * times, n_opt, loss, E=SMALL.E, alpha=alpha, beta=beta)


def frontier(name: str, surface: Surface, seed: int, noise: float = 0.01) -> Frontier:
    """A family on the surface, of five sizes a budget, with noise."""
    rng = np.random.default_rng(seed)
    rows = {"params": [], "flops": [], "loss": []}
    for budget in BUDGETS:
        sizes = surface.optimum(budget)[0] * np.geomspace(1 / 3, 3, 5)
        rows["params"].extend(sizes)
        rows["flops"].extend([budget] * 5)
        rows["loss"].extend(surface.loss(sizes, budget) + noise * rng.normal(size=5))
    fit = fit_isoflop({k: np.array(v) for k, v in rows.items()}, bootstrap=400)
    return Frontier(name, fit, pd.DataFrame({"budget": rows["flops"], "seed": 0}), (), 0.0)


def found(times: float, growth: float, seed: int = 0, names=("a", "b")) -> Comparison:
    """The comparison of two such frontiers."""
    base, other = names
    return compare(frontier(base, SMALL, seed), frontier(other, rival(times, growth), seed + 1))
