"""Tables of IsoFLOP profiles from known surfaces, and the true frontier of each."""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Surface:
    """L = E + A/N^alpha + B/D^beta at C = 6 N D.

    With `embedding` the table counts N + embedding N^(1/3) as parameters, and so as FLOPs: a model
    of N parameters is about N^(1/3) wide. Then N_opt of the table is no exact power law of C.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    embedding: float = 0.0

    @classmethod
    def through(cls, flops: float, n_opt: float, loss: float, **shape: float) -> Surface:
        """The surface whose optimum at `flops` is `n_opt`, with that loss."""
        alpha, beta = shape["alpha"], shape["beta"]
        slope = (loss - shape["E"]) / (1 / alpha + 1 / beta)
        d_opt = flops / (6 * n_opt)
        return cls(A=slope / alpha * n_opt**alpha, B=slope / beta * d_opt**beta, **shape)

    @property
    def exponent(self) -> float:
        return self.beta / (self.alpha + self.beta)

    def loss(self, n: Any, flops: Any) -> np.ndarray:
        """At `n` parameters as the table counts them."""
        n = np.asarray(n, float)
        d, inner = flops / (6 * n), n
        if self.embedding:
            # N + e N^(1/3) = n by Newton's steps in ln N.
            x = np.log(n)
            for _ in range(30):
                whole = np.exp(x) + self.embedding * np.exp(x / 3)
                x = x - (np.log(whole) - np.log(n)) * whole / (
                    np.exp(x) + self.embedding * np.exp(x / 3) / 3
                )
            inner = np.exp(x)
        return self.E + self.A * inner**-self.alpha + self.B * d**-self.beta

    @functools.lru_cache(maxsize=1024)  # noqa: B019 (a frozen value)
    def optimum(self, flops: float) -> tuple[float, float]:
        """(N_opt, loss) on a fine grid, refined."""
        low, high = math.log(1e2), math.log(flops / 6)
        for _ in range(6):
            x = np.linspace(low, high, 400)
            value = self.loss(np.exp(x), flops)
            at = int(np.argmin(value))
            low, high = x[max(at - 2, 0)], x[min(at + 2, 399)]
        return float(np.exp(x[at])), float(value[at])


BESIROGLU = Surface(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)
#: Strongly unequal exponents: a = 1/3.
UNEQUAL = Surface.through(1e20, 2e9, 2.6, E=1.7, alpha=0.5, beta=0.25)
#: N counted with a vocabulary of 50,257 x width N^(1/3): a rises from 0.48 to 0.51 over four decades.
BENT = dataclasses.replace(BESIROGLU, embedding=50_257.0)
#: Of the size of the quickstart: 18 tokens a parameter at 1e11 FLOPs.
SMALL = Surface.through(1e11, 3.04e4, 3.6, E=1.6, alpha=0.35, beta=0.37)

QUICKSTART_BUDGETS = (2.5e10, 6e10, 1.5e11, 3.6e11)
QUICKSTART_SIZES = 24.0 * np.array([8, 12, 16, 24, 32, 48, 64, 96]) ** 2


@dataclass(frozen=True)
class Design:
    """A grid: sizes spaced evenly in ln N around `off` times the optimum, or of a fixed ladder."""

    surface: Surface
    budgets: tuple[float, ...]
    points: int = 5
    factor: float = 4.0
    #: The grid's centre over the true optimum.
    off: float = 1.0
    noise: float = 0.01
    #: The noise grows as N to minus this (relative to the middle of the smallest budget).
    uneven: float = 0.0
    #: Scatter of every budget's whole profile along ln N, from what no residual shows.
    scatter: float = 0.0
    ladder: tuple[float, ...] = ()

    def table(self, seed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        rows: dict[str, list] = {"params": [], "flops": [], "loss": []}
        reference = self.surface.optimum(self.budgets[0])[0]
        for c in self.budgets:
            centre = self.surface.optimum(c)[0] * self.off
            if self.ladder:
                ladder = np.array(self.ladder)
                sizes = np.sort(ladder[np.argsort(np.abs(np.log(ladder / centre)))[: self.points]])
            else:
                sizes = centre * np.geomspace(1 / self.factor, self.factor, self.points)
            moved = sizes * math.exp(-self.scatter * rng.normal())
            sd = self.noise * (sizes / reference) ** -self.uneven
            rows["params"].extend(sizes)
            rows["flops"].extend(np.full(self.points, c))
            rows["loss"].extend(self.surface.loss(moved, c) + sd * rng.normal(size=self.points))
        return {name: np.array(values) for name, values in rows.items()}
