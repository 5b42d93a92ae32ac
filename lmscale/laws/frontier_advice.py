"""Advice from laws that give N_opt(C) and D_opt(C) by themselves: IsoFLOP, envelope, published ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmscale.laws.backtest import BackTest, Line, widened
from lmscale.laws.isoflop import unusable_profiles
from lmscale.laws.kaplan import off_optimum_cost
from lmscale.laws.power import loss_along_frontier
from lmscale.laws.result import FitError, FitResult, interval

__all__ = ["FrontierAnswer", "LossCurve", "answer_on_frontier", "run_noise"]

#: Budgets whose profiles give the cost of being off the best size: those nearest to the question.
_NEAREST_PROFILES = 3
#: Points of an envelope that its loss is read from.
_ENVELOPE_POINTS = 60


@dataclass(frozen=True)
class LossCurve:
    """Loss of the best runs, L_inf + (C_c / C)^alpha_C, and how well it is known.

    Attributes:
      draws: of its parameters, or empty.
      line: ln loss against ln C through the minima, for their scatter; None of a published law.
      scatter: standard deviation of the minima's log loss about the curve.
      rival: the same curve with an irreducible loss, where this one has none and there are points
        enough to fit it.
    """

    alpha: float
    c_c: float
    floor: float
    draws: dict[str, np.ndarray]
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

    def interval(self, flops: float, level: float) -> tuple[float, float] | None:
        """Of the curve, from its draws; None where there are none."""
        if not self.draws:
            return None
        p = self.draws
        low, high = interval(p["L_inf"] + (p["C_c"] / flops) ** p["alpha_C"], level)
        value = self(flops)
        return min(low, value), max(high, value)

    def half_widths(self, flops: float, level: float) -> dict[str, float]:
        """By cause, in ln L: what the draws leave out of the interval of a run on the frontier."""
        if self.line is None:
            return {}
        widths = {}
        if math.isfinite(self.scatter):
            # The next minimum's scatter about the curve, and the curve's own where nothing was drawn.
            own = 0.0 if self.draws else self.line.leverage(math.log(flops))
            widths["scatter"] = self.line.quantile(level) * self.scatter * math.sqrt(1 + own)
        if self.rival is not None:
            alpha, c_c, floor = self.rival
            other = floor + (c_c / flops) ** alpha
            widths["irreducible_loss"] = abs(math.log(other / self(flops)))
        return widths


@dataclass(frozen=True)
class FrontierAnswer:
    """What a frontier says of a budget; `off` holds (factor, N, D, loss, interval, cost)."""

    flops: float
    n_params: float
    n_tokens: float
    loss: float | None
    intervals: dict[str, tuple[float, float]]
    half_widths: dict[str, dict[str, float]]
    off: list[tuple]
    warnings: list[str]


def answer_on_frontier(
    result: FitResult,
    flops: float | None,
    loss: float | None,
    level: float,
    factors: Sequence[float],
    test: BackTest | None,
) -> FrontierAnswer:
    """The point of a frontier at a budget or a loss, with what being off it costs."""
    p = result.parameters
    if "a" not in p:
        # Only profiles may fail to give an exponent; the other laws then give no fit.
        raise FitError(f"this fit of {result.law} has no exponents: {unusable_profiles(result)}")
    curve, why = _loss_curve(result)
    warnings = [why] if why else []
    if loss is not None:
        if curve is None:
            raise FitError(
                f"the law {result.law} carries no loss along its frontier; ask by compute"
            )
        flops = curve.budget(loss)
        if not math.isfinite(flops):
            raise FitError(f"this frontier never reaches a loss of {loss:.4g}")
    n, d = p["k_N"] * flops ** p["a"], p["k_D"] * flops ** p["b"]
    known = result.ranges.get("flops")
    beyond = max(0.0, math.log(flops / known[1])) if known else 0.0
    widths = {"n_params": _size_widths(result, flops, level)}
    if test is not None:
        widths["n_params"]["back_test"] = 2 * test.drift("size") * beyond
    intervals = _size_intervals(result, flops, (n, d), widths["n_params"], level)
    reached, bends = None, _curvatures(result)
    if curve is not None:
        reached = curve(flops)
        widths["loss"] = curve.half_widths(flops, level)
        noise = run_noise(result)
        if math.isfinite(noise) and curve.line is not None:
            widths["loss"]["run_noise"] = 2 * noise / reached
        if test is not None:
            widths["loss"]["back_test"] = 2 * test.drift("loss") * beyond
    along = None
    if curve is not None:
        along = widened(reached, curve.interval(flops, level), _total(widths["loss"]))

    def run(factor: float) -> tuple[float | None, tuple[float, float] | None, float]:
        """(loss, interval, compute over what the same loss takes at its best size)."""
        if result.details.get("published") == "kaplan2020":
            # Kaplan's costs are for reaching the same loss, not for the same compute (Fig. 12).
            return None, None, float(off_optimum_cost(factor)[0])
        if not bends or reached is None:
            return None, None, math.nan
        value = reached + float(np.median(bends)) * math.log(factor) ** 2
        cheapest = curve.budget(value)
        sizes = intervals.get("n_params", (n, n))
        reach = _off_frontier(value, reached, along, bends, n * factor, sizes)
        return value, reach, flops / cheapest

    if along is not None and along[0] < along[1]:
        # The advised size may itself be off the best one.
        low, high = run(1.0)[1] or along
        if loss is None:
            intervals["loss"] = low, high
        elif math.isfinite(most := curve.budget(low)):
            # What a run at this budget may miss by, as the compute that makes up for it.
            intervals["flops"] = curve.budget(high), most
        else:
            warnings.append(
                f"the compute has no interval: a run may miss this loss by {reached - low:.2g} nats, "
                f"and the frontier never comes that far below it"
            )
    off = []
    for factor in factors:
        value, reach, cost = run(factor)
        if not math.isnan(cost):
            off.append((factor, n * factor, d / factor, value, reach, cost))
    return FrontierAnswer(flops, n, d, reached, intervals, widths, off, warnings)


def _total(widths: dict[str, float] | None) -> float:
    return math.hypot(*widths.values()) if widths else 0.0


def _size_widths(result: FitResult, flops: float, level: float) -> dict[str, float]:
    """What the draws of N_opt leave out: the scatter of the minima about the power law."""
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
        # At a given compute one falls as the other rises.
        "tokens_per_param": widened(d / n, ratio, 2 * more),
    }


def _off_frontier(
    value: float,
    reached: float,
    along: tuple[float, float],
    bends: list[float],
    size: float,
    best: tuple[float, float],
) -> tuple[float, float]:
    """The interval of a run of `size`, where the best size lies in `best` and the profile bends so."""
    low, high = (math.log(size / edge) for edge in (best[1], best[0]))
    nearest = 0.0 if low <= 0 <= high else min(abs(low), abs(high))
    farthest = max(abs(low), abs(high))
    up = max(bends) * farthest**2 - (value - reached)
    down = (value - reached) - min(bends) * nearest**2
    return (
        value - math.hypot(reached - along[0], max(0.0, down)),
        value + math.hypot(along[1] - reached, max(0.0, up)),
    )


def _loss_curve(result: FitResult) -> tuple[LossCurve | None, str]:
    """The loss along the frontier, or why there is none."""
    p = result.parameters
    if "alpha_C" in p:
        return LossCurve(p["alpha_C"], p["C_c"], 0.0, {}, None, math.nan, None), ""
    if "published" in result.details:
        return None, "this law gives no loss along its frontier"
    points = result.details.get("frontier") or result.details.get("envelope")
    if points is None or len(points["flops"]) < 3:
        return None, "too few points on the frontier to say what loss to expect"
    flops, loss = np.asarray(points["flops"], float), np.asarray(points["loss"], float)
    if len(flops) > _ENVELOPE_POINTS:
        every = np.linspace(0, len(flops) - 1, _ENVELOPE_POINTS).astype(int)
        flops, loss = flops[every], loss[every]
    given = result.details.get("frontier_loss") or {}
    if given:
        q, draws = given["parameters"], dict(given.get("draws") or {})
        curve = (q["alpha_C"], q["C_c"], q.get("L_inf", 0.0))
        if draws:
            draws.setdefault("L_inf", np.zeros(len(draws["alpha_C"])))
    else:
        draws, curve = {}, _fitted(flops, loss, offset=len(flops) >= 5)
    alpha, c_c, floor = curve
    rest = np.log(loss / (floor + (c_c / flops) ** alpha))
    freedom = len(flops) - (3 if floor > 0 else 2)
    scatter = math.sqrt(float(np.sum(rest**2)) / freedom) if freedom > 0 else math.nan
    rival = None
    if floor == 0 and len(flops) >= 4:
        rival = _fitted(flops, loss, offset=True)
    line = Line.through(np.log(flops), np.log(loss))
    return LossCurve(alpha, c_c, floor, draws, line, scatter, rival), ""


def _fitted(flops: np.ndarray, loss: np.ndarray, *, offset: bool) -> tuple[float, float, float]:
    p = loss_along_frontier(flops, loss, offset=offset).parameters
    return p["alpha_C"], p["C_c"], p.get("L_inf", 0.0)


def _curvatures(result: FitResult) -> list[float]:
    """Of the profiles of the largest budgets: loss = best + curvature (ln N/N_opt)^2."""
    profiles: Any = result.details.get("profiles", ())
    return [float(p.coefficients[2]) for p in profiles if p.ok and p.coefficients is not None][
        -_NEAREST_PROFILES:
    ]


def run_noise(result: FitResult) -> float:
    """Standard deviation of a run's loss about the fit, in nats; NaN where the fit does not tell."""
    rest = result.residuals.get("residual")
    if rest is None or "observed" not in result.residuals:
        return math.nan
    nats = np.asarray(result.residuals["observed"]) - np.asarray(result.residuals["predicted"])
    profiles = [p for p in result.details.get("profiles", ()) if p.coefficients is not None]
    freedom = len(nats) - (3 * len(profiles) if profiles else len(result.parameters))
    return math.sqrt(float(np.sum(nats**2)) / freedom) if freedom > 0 else math.nan
