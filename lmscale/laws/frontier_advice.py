"""Advice from laws that give N_opt(C) and D_opt(C) directly: IsoFLOP, envelope, published frontiers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmscale.laws.advice import Advice, OffOptimum
from lmscale.laws.backtest import BackTest, Line, widened
from lmscale.laws.frontier_loss import LossForecast, forecast_loss
from lmscale.laws.isoflop import unusable_profiles
from lmscale.laws.kaplan import off_optimum_cost
from lmscale.laws.power import loss_along_frontier
from lmscale.laws.result import FitError, FitResult, interval

__all__ = ["EnvelopeLoss", "advise_on_frontier", "run_noise"]

#: The cost of another size is read from the profiles of this many budgets: the largest ones.
_NEAREST_PROFILES = 3
#: Points of an envelope that the loss along it is fitted to.
_ENVELOPE_POINTS = 60
#: Draws of the loss along the frontier of IsoFLOP profiles.
_FORECAST_DRAWS = 1000


@dataclass(frozen=True)
class EnvelopeLoss:
    """L_inf + (C_c / C)^alpha_C along an envelope or a published frontier, and how well it is known.

    Attributes:
      alpha, c_c, floor: alpha_C, C_c and L_inf.
      line: ln loss against ln C through the points; None for a published law.
      scatter: standard deviation of the points' log loss about the curve.
      rival: (alpha_C, C_c, L_inf) of a curve with an irreducible loss, where this one has none and
        there are enough points to fit it.
    """

    alpha: float
    c_c: float
    floor: float
    line: Line | None
    scatter: float
    rival: tuple[float, float, float] | None

    def __call__(self, flops: float) -> float:
        return self.floor + (self.c_c / flops) ** self.alpha

    def budget(self, loss: float) -> float:
        """The compute that reaches a loss; NaN where none does."""
        if loss <= self.floor or self.alpha <= 0:
            return math.nan
        return self.c_c / (loss - self.floor) ** (1 / self.alpha)

    def half_widths(self, flops: float, level: float) -> dict[str, float]:
        """Half-widths of the interval of a run on the frontier, by cause, in ln L."""
        if self.line is None:
            return {}
        widths = {}
        if math.isfinite(self.scatter):
            # The scatter of the next point about the curve, and the error of the curve itself.
            own = self.line.leverage(math.log(flops))
            widths["scatter"] = self.line.quantile(level) * self.scatter * math.sqrt(1 + own)
        if self.rival is not None:
            alpha, c_c, floor = self.rival
            other = floor + (c_c / flops) ** alpha
            widths["irreducible_loss"] = abs(math.log(other / self(flops)))
        return widths


def advise_on_frontier(
    result: FitResult,
    flops: float | None,
    loss: float | None,
    level: float,
    factors: Sequence[float],
    test: BackTest | None,
) -> Advice:
    """The point of a frontier at a budget or a loss, and the cost of other sizes there.

    Raises:
      FitError: the fit has no exponents, or its frontier has no loss or never reaches this one.
    """
    p = result.parameters
    if "a" not in p:
        # Only IsoFLOP profiles can give a fit without exponents; the other laws raise an error.
        raise FitError(f"this fit of {result.law} has no exponents: {unusable_profiles(result)}")
    curve, why = _loss_curve(result)
    warnings = [why] if why else []
    budget = _budget(result, curve, flops, loss)
    n, d = p["k_N"] * budget ** p["a"], p["k_D"] * budget ** p["b"]
    known = result.ranges.get("flops")
    beyond = max(0.0, math.log(budget / known[1])) if known else 0.0
    widths = {"n_params": _size_widths(result, budget, level)}
    if test is not None:
        widths["n_params"]["back_test"] = 2 * test.drift("size") * beyond
    intervals = _size_intervals(result, budget, (n, d), widths["n_params"], level)
    near: _Neighbours | None = None
    reached = None
    if curve is not None:
        reached = curve(budget)
        drawn = None
        if isinstance(curve, LossForecast):
            drawn, widths["loss"] = curve.interval(budget, level), {}
        else:
            widths["loss"] = curve.half_widths(budget, level)
        noise = run_noise(result)
        if math.isfinite(noise) and "published" not in result.details:
            widths["loss"]["run_noise"] = 2 * noise / reached
        along = widened(reached, drawn, _total(widths["loss"]))
        near = _Neighbours(
            curve, budget, n, reached, along, _curvatures(result), intervals.get("n_params", (n, n))
        )
        if along[0] < along[1]:
            found, warning = _target_interval(near, asked_for_loss=loss is not None)
            intervals |= found
            warnings += warning
    off = []
    for factor in factors:
        if result.details.get("published") == "kaplan2020":
            # Kaplan's cost compares runs that reach the same loss, not runs of the same compute
            # (Fig. 12), so there is no loss to go with it.
            value, reach, cost = None, None, float(off_optimum_cost(factor)[0])
        elif near is not None and near.bends:
            value, reach, cost = near.run(factor)
        else:
            continue
        if not math.isnan(cost):
            off.append(OffOptimum(factor, n * factor, d / factor, value, cost, reach))
    return Advice(
        flops=budget,
        n_params=n,
        n_tokens=d,
        loss=reached,
        tokens_per_param=d / n,
        intervals=intervals,
        half_widths=widths,
        warnings=tuple(warnings),
        off_optimum=tuple(off),
    )


def _budget(
    result: FitResult,
    curve: EnvelopeLoss | LossForecast | None,
    flops: float | None,
    loss: float | None,
) -> float:
    """The budget of the question: as given, or where the frontier reaches the loss."""
    if flops is not None:
        return flops
    assert loss is not None, "a question has a budget or a loss"
    if curve is None:
        raise FitError(f"the law {result.law} carries no loss along its frontier; ask by compute")
    found = curve.budget(loss)
    if not math.isfinite(found):
        raise FitError(f"this frontier never reaches a loss of {loss:.4g}")
    return found


@dataclass(frozen=True)
class _Neighbours:
    """Runs at a budget, on the frontier and beside it.

    Attributes:
      n, reached, along: the best size, its loss, and the interval of that.
      bends: curvatures of the nearest profiles (`_curvatures`).
      sizes: interval of the best size.
    """

    curve: EnvelopeLoss | LossForecast
    flops: float
    n: float
    reached: float
    along: tuple[float, float]
    bends: list[float]
    sizes: tuple[float, float]

    def run(self, factor: float) -> tuple[float, tuple[float, float], float]:
        """A run of `factor` times the best size: loss, interval, and its compute over the compute
        that reaches the same loss at the best size. Needs `bends`."""
        value = self.reached + float(np.median(self.bends)) * math.log(factor) ** 2
        return value, self._reach(value, self.n * factor), self.flops / self.curve.budget(value)

    def _reach(self, value: float, size: float) -> tuple[float, float]:
        """The interval of the loss `value` of a run of `size`; the best size may be anywhere in
        `sizes`, and a profile may have any of the curvatures."""
        low, high = (math.log(size / edge) for edge in (self.sizes[1], self.sizes[0]))
        nearest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
        farthest = max(abs(low), abs(high))
        up = max(self.bends) * farthest**2 - (value - self.reached)
        down = (value - self.reached) - min(self.bends) * nearest**2
        return (
            value - math.hypot(self.reached - self.along[0], max(0.0, down)),
            value + math.hypot(self.along[1] - self.reached, max(0.0, up)),
        )


def _target_interval(
    near: _Neighbours, *, asked_for_loss: bool
) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """The interval of the loss at the budget; or of the budget, where a loss was asked for."""
    # The advised size may itself not be the best one.
    low, high = near.run(1.0)[1] if near.bends else near.along
    if not asked_for_loss:
        return {"loss": (low, high)}, []
    # The compute that makes up for the most that a run at this budget may miss the loss by.
    most = near.curve.budget(low)
    if math.isfinite(most):
        return {"flops": (near.curve.budget(high), most)}, []
    return {}, [
        f"the compute has no interval: a run may miss this loss by {near.reached - low:.2g} nats, "
        f"and the frontier never comes that far below it"
    ]


def _total(widths: dict[str, float] | None) -> float:
    return math.hypot(*widths.values()) if widths else 0.0


def _size_widths(result: FitResult, flops: float, level: float) -> dict[str, float]:
    """What the draws of N_opt leave out, by cause: the scatter of the minima about the power law."""
    minima = result.details.get("frontier")
    if minima is None or "scatter" in result.details or len(minima["flops"]) < 3:
        return {}
    line = Line.through(np.log(minima["flops"]), np.log(minima["n_opt"]))
    return {"scatter": line.half_width(math.log(flops), level)}


def _size_intervals(
    result: FitResult,
    flops: float,
    best: tuple[float, float],
    widths: dict[str, float],
    level: float,
) -> dict[str, tuple[float, float]]:
    n, d = best
    draws, more = result.draws, _total(widths)
    if not draws and not more:
        return {}
    found: dict[str, tuple[float, float] | None] = dict.fromkeys(("n_params", "n_tokens"))
    ratio = None
    if draws:
        dn, dd = draws["k_N"] * flops ** draws["a"], draws["k_D"] * flops ** draws["b"]
        found = {"n_params": interval(dn, level), "n_tokens": interval(dd, level)}
        ratio = interval(dd / dn, level)
    return {
        "n_params": widened(n, found["n_params"], more),
        "n_tokens": widened(d, found["n_tokens"], more),
        # At a given compute N falls as D grows, so their ratio moves twice as far.
        "tokens_per_param": widened(d / n, ratio, 2 * more),
    }


def _loss_curve(result: FitResult) -> tuple[EnvelopeLoss | LossForecast | None, str]:
    """The loss along the frontier, or why there is none."""
    p = result.parameters
    if "alpha_C" in p:
        return EnvelopeLoss(p["alpha_C"], p["C_c"], 0.0, None, math.nan, None), ""
    if "published" in result.details:
        return None, "this law gives no loss along its frontier"
    points = result.details.get("frontier") or result.details.get("envelope")
    if points is None or len(points["flops"]) < 3:
        return None, "too few points on the frontier to say what loss to expect"
    flops, loss = np.asarray(points["flops"], float), np.asarray(points["loss"], float)
    if "frontier_loss" in result.details:
        covariance = np.asarray(result.details["frontier_loss"]["covariance"], float)
        rng = np.random.default_rng(0)
        return forecast_loss(np.log(flops), loss, covariance, _FORECAST_DRAWS, rng), ""
    if len(flops) > _ENVELOPE_POINTS:
        every = np.linspace(0, len(flops) - 1, _ENVELOPE_POINTS).astype(int)
        flops, loss = flops[every], loss[every]
    alpha, c_c, floor = _fitted(flops, loss, offset=len(flops) >= 5)
    rest = np.log(loss / (floor + (c_c / flops) ** alpha))
    freedom = len(flops) - (3 if floor > 0 else 2)
    scatter = math.sqrt(float(np.sum(rest**2)) / freedom) if freedom > 0 else math.nan
    rival = None
    if floor == 0 and len(flops) >= 4:
        rival = _fitted(flops, loss, offset=True)
    line = Line.through(np.log(flops), np.log(loss))
    return EnvelopeLoss(alpha, c_c, floor, line, scatter, rival), ""


def _fitted(flops: np.ndarray, loss: np.ndarray, *, offset: bool) -> tuple[float, float, float]:
    p = loss_along_frontier(flops, loss, offset=offset).parameters
    return p["alpha_C"], p["C_c"], p.get("L_inf", 0.0)


def _curvatures(result: FitResult) -> list[float]:
    """Curvatures of the profiles of the largest budgets: loss = best + curvature (ln N/N_opt)^2."""
    profiles: Any = result.details.get("profiles", ())
    return [float(p.coefficients[2]) for p in profiles if p.ok and p.coefficients is not None][
        -_NEAREST_PROFILES:
    ]


def run_noise(result: FitResult) -> float:
    """Standard deviation of a run's loss about the fit, in nats; NaN where the fit cannot show it."""
    rest = result.residuals.get("residual")
    if rest is None or "observed" not in result.residuals:
        return math.nan
    nats = np.asarray(result.residuals["observed"]) - np.asarray(result.residuals["predicted"])
    profiles = [p for p in result.details.get("profiles", ()) if p.coefficients is not None]
    freedom = len(nats) - (3 * len(profiles) if profiles else len(result.parameters))
    return math.sqrt(float(np.sum(nats**2)) / freedom) if freedom > 0 else math.nan
