"""How well a law predicts its own largest budgets, and the error beyond them that follows.

A bootstrap covers the noise of the fitted runs. It does not cover that the law itself may bend. So the
law is fitted again without its largest budgets, and has to predict them. The part of its error that
noise does not explain is assumed to grow in proportion to ln C: half as far beyond the runs, half the
error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmscale.laws.allocation import optimum
from lmscale.laws.holdout import hold_out
from lmscale.laws.known import std_of_known
from lmscale.laws.quantiles import student_quantile
from lmscale.laws.result import FitError, FitResult
from lmscale.laws.table import TableError

__all__ = ["BackTest", "Line", "back_test", "widened"]

#: Fewest budgets for a test: two fix a line, and a third shows its noise.
_FEWEST_BUDGETS = 3


@dataclass(frozen=True)
class Line:
    """A least-squares line y = intercept + slope x, and how its points scatter about it."""

    x: np.ndarray
    slope: float
    intercept: float
    #: Standard deviation of the points about the line; NaN for two points.
    scatter: float

    @classmethod
    def through(cls, x: np.ndarray, y: np.ndarray) -> Line:
        slope, intercept = np.polyfit(x, y, 1)
        rest = y - intercept - slope * x
        freedom = len(x) - 2
        scatter = math.sqrt(float(np.sum(rest**2)) / freedom) if freedom > 0 else math.nan
        return cls(np.asarray(x), float(slope), float(intercept), scatter)

    def __call__(self, x: float) -> float:
        return self.intercept + self.slope * x

    def leverage(self, x: float) -> float:
        """Variance of the line at x over that of a point."""
        mean = float(self.x.mean())
        return 1 / len(self.x) + (x - mean) ** 2 / float(np.sum((self.x - mean) ** 2))

    def half_width(self, x: float, level: float) -> float:
        """Half-width of the interval of the line at x (Student's t, since the scatter is estimated)."""
        return self.quantile(level) * self.scatter * math.sqrt(self.leverage(x))

    def quantile(self, level: float) -> float:
        return float(student_quantile(0.5 + level / 2, max(1, len(self.x) - 2)))


@dataclass(frozen=True)
class BackTest:
    """Predictions of a law for budgets that it was fitted without.

    Attributes:
      flops: [k] the budgets that were left out.
      distance: [k] ln of these over the largest fitted budget.
      size_error: [k] ln of predicted over found N_opt.
      size_noise: [k] standard deviation of these errors from noise alone.
      loss_error, loss_noise: the same of the loss, of a surface. Of minima `forecast_loss` draws how far
        the loss may leave its law.
    """

    flops: np.ndarray
    distance: np.ndarray
    size_error: np.ndarray
    size_noise: np.ndarray
    loss_error: np.ndarray | None = None
    loss_noise: np.ndarray | None = None

    def drift(self, what: str) -> float:
        """Error beyond the noise per factor e of extrapolation, for "size" or "loss"."""
        error, noise = getattr(self, f"{what}_error"), getattr(self, f"{what}_noise")
        rest = np.maximum(error**2 - np.nan_to_num(noise) ** 2, 0.0) / self.distance**2
        known = np.isfinite(rest)
        return math.sqrt(float(rest[known].mean())) if known.any() else 0.0


def back_test(result: FitResult) -> BackTest:
    """Fits a law again without its largest budgets, and predicts them.

    Raises:
      FitError: there are too few budgets, or the law cannot be fitted without the largest.
    """
    if result.law == "isoflop":
        return _of_minima(result)
    if result.model is not None and {"params", "tokens"} <= result.residuals.keys():
        return _of_surface(result)
    raise FitError(f"the law {result.law} is not tested on budgets left out")


def _of_minima(result: FitResult) -> BackTest:
    """Tests on the minima of IsoFLOP profiles: every cut that leaves two budgets or more."""
    minima = result.details["frontier"]
    order = np.argsort(minima["flops"])
    x = np.log(np.asarray(minima["flops"], float)[order])
    if len(x) < _FEWEST_BUDGETS:
        raise FitError(f"{len(x)} budgets are too few to leave one out")
    y = np.log(np.asarray(minima["n_opt"], float)[order])
    noise = Line.through(x, y).scatter
    rows = []
    for kept in range(max(2, (len(x) + 1) // 2), len(x)):
        line = Line.through(x[:kept], y[:kept])
        for out in range(kept, len(x)):
            error, own = line(x[out]) - y[out], noise * math.sqrt(1 + line.leverage(x[out]))
            rows.append((math.exp(x[out]), x[out] - x[kept - 1], error, own))
    return BackTest(*np.array(rows).T)


def _of_surface(result: FitResult) -> BackTest:
    """A test on the runs of most compute (a fifth), by the same law fitted to the rest."""
    given = result.residuals
    table = {name: v for name, v in given.items() if name in ("params", "tokens", "unique_tokens")}
    table["loss"] = given["observed"]
    options: dict[str, Any] = {"bootstrap": 0}
    if result.law == "parametric":
        options |= {"method": result.details.get("method", "huber"), "starts": "coarse"}
    try:
        held = hold_out(table, result.law, **options)
        flops = float(held.at.max())
        found = [optimum(fit, fit.parameters, flops)[0] for fit in (held.fit, result)]
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        raise FitError(str(error)) from error
    spread = float(np.std(given["residual"]))
    size_noise = 0.0
    if result.draws:
        drawn = optimum(result, result.draws, flops)[0]
        size_noise = float(std_of_known(np.log(drawn)))
    return BackTest(
        flops=np.array([flops]),
        distance=np.array([math.log(held.extrapolation)]),
        size_error=np.array([math.log(found[0] / found[1])]),
        size_noise=np.array([size_noise]),
        loss_error=np.array([float(np.mean(np.log(held.predicted / held.observed)))]),
        loss_noise=np.array([spread / math.sqrt(len(held.row))]),
    )


def widened(
    value: float, interval: tuple[float, float] | None, half_width: float
) -> tuple[float, float]:
    """The interval with an independent half-width (in the logarithm) added in quadrature."""
    low, high = interval or (value, value)
    down, up = max(0.0, math.log(value / low)), max(0.0, math.log(high / value))
    return value * math.exp(-math.hypot(down, half_width)), value * math.exp(
        math.hypot(up, half_width)
    )
