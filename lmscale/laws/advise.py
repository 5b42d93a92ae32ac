"""From a law and a budget to a choice: how large a model, on how many tokens, and what it buys.

Laws of loss in N and D are minimised over N on the line of equal cost, so that data limits,
repeated data (Muennighoff et al. 2023) and the cost of inference (Sardana et al. 2024: 6 N D + 2 N
D_inference) enter without new formulas; frontiers that only give N_opt(C) and D_opt(C) are read as
they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmscale.laws.data_constrained import MUENNIGHOFF, data_constrained_loss
from lmscale.laws.kaplan import off_optimum_cost
from lmscale.laws.power import loss_along_frontier
from lmscale.laws.published import PUBLISHED, published
from lmscale.laws.result import FitError, FitResult, interval, plain

__all__ = ["Advice", "OffOptimum", "advise"]

#: Sizes tried on each pass of the search along a line of equal cost.
_GRID = 65
_PASSES = 5
#: Draws that the searches use; more would not move an interval's edge visibly.
_MOST_DRAWS = 400
_SURFACES = ("parametric", "over-training", "data-constrained")
_FRONTIERS = ("isoflop", "envelope", "frontier")


@dataclass(frozen=True)
class OffOptimum:
    """What it costs to train `factor` times the best size on the same compute.

    `compute_factor` is how much more compute this loss takes than it would at its own best size.
    """

    factor: float
    n_params: float
    n_tokens: float
    loss: float | None
    compute_factor: float


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One recommendation; `model`, `batch_tokens` and `learning_rate` are for the caller to fill."""

    flops: float
    n_params: float
    n_tokens: float
    loss: float | None
    tokens_per_param: float
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    #: How the intervals were made, in words.
    interval_method: str = "none"
    model: dict[str, Any] | None = None
    batch_tokens: int | None = None
    learning_rate: float | None = None
    warnings: tuple[str, ...] = ()
    off_optimum: tuple[OffOptimum, ...] = ()
    epochs: float | None = None
    inference_flops: float = 0.0
    law: str = ""
    source: str = ""
    #: What this compute lies beyond the largest run of the fit.
    extrapolation: float | None = None

    def to_json(self) -> dict[str, Any]:
        return plain(self)

    def replace(self, **changes: Any) -> Advice:
        return dataclasses.replace(self, **changes)


def advise(
    law: FitResult | str,
    *,
    flops: float | None = None,
    loss: float | None = None,
    unique_tokens: float | None = None,
    inference_tokens: float = 0.0,
    level: float | None = None,
) -> Advice:
    """The best model and data for a budget, or the smallest budget for a target loss.

    Args:
      law: a fitted law, or the name of a published one.
      flops: compute for training (and inference, if any): C = 6 N D + 2 N D_inference.
      loss: instead of `flops`, the loss to be reached.
      unique_tokens: data that exist; beyond them they repeat, at the worth that the law gives
        repetition (a law without R_D* borrows Muennighoff et al.'s, with a warning).
      inference_tokens: tokens that the model will process after training.

    Raises:
      FitError: neither or both of flops and loss, a law that cannot answer, or a loss that it
        cannot reach.
    """
    result = _resolve(law)
    if (flops is None) == (loss is None):
        raise FitError("give either flops (a budget) or loss (a target), not both or neither")
    for name, value in (
        ("flops", flops),
        ("loss", loss),
        ("unique_tokens", unique_tokens),
    ):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise FitError(f"{name} must be a positive number, not {value!r}")
    if not (math.isfinite(inference_tokens) and inference_tokens >= 0):
        raise FitError(f"inference_tokens must not be negative, not {inference_tokens!r}")
    level = (result.draw_level or result.level) if level is None else level
    if result.law in _SURFACES:
        advice = _from_surface(result, flops, loss, unique_tokens, inference_tokens, level)
    elif result.law in _FRONTIERS:
        if unique_tokens is not None or inference_tokens:
            raise FitError(
                f"the law {result.law} gives the frontier only; data limits and inference need "
                f"the loss off it: use parametric, over-training or data-constrained"
            )
        advice = _from_frontier(result, flops, loss, level)
    else:
        raise FitError(
            f"the law {result.law} says nothing on how to split compute; use one of "
            f"{', '.join((*_SURFACES, *_FRONTIERS[:2]))}, or a published law"
        )
    return _finish(result, advice)


def _resolve(law: FitResult | str) -> FitResult:
    if isinstance(law, FitResult):
        return law
    if law not in PUBLISHED:
        raise FitError(f"there is no published law {law!r}; choose from {', '.join(PUBLISHED)}")
    return published(law)


def _finish(result: FitResult, advice: Advice) -> Advice:
    warnings = [*result.warnings, *advice.warnings]
    known = result.ranges.get("flops")
    extrapolation = None
    if known:
        extrapolation = advice.flops / known[1]
        if extrapolation > 1.5:
            warnings.append(
                f"{advice.flops:.3g} FLOPs is {extrapolation:.3g} times the largest run of this fit"
                + (
                    ": the interval covers noise, not a change of the law"
                    if advice.intervals
                    else ""
                )
            )
        elif advice.flops < known[0] / 1.5:
            warnings.append(
                f"{advice.flops:.3g} FLOPs is below the smallest run of this fit ({known[0]:.3g})"
            )
    # A published law says for itself why it has none.
    if not advice.intervals and "published" not in result.details:
        warnings.append("this fit was made without a bootstrap, so the advice has no intervals")
    source = result.details.get("source", "fitted here")
    return advice.replace(
        warnings=tuple(dict.fromkeys(warnings)),
        extrapolation=extrapolation,
        interval_method=result.interval_method if advice.intervals else "none",
        law=result.details.get("published", result.law),
        source=source,
    )


# --- Laws of loss in N and D ------------------------------------------------------------------


@dataclass(frozen=True)
class _Problem:
    """A surface and what surrounds it; parameters may be arrays, one entry a draw."""

    parameters: Mapping[str, Any]
    model: Any
    unique_tokens: float | None
    inference_tokens: float

    def loss(self, n: Any, d: Any) -> Any:
        if self.unique_tokens is not None:
            return data_constrained_loss(
                self.parameters, params=n, tokens=d, unique_tokens=np.minimum(self.unique_tokens, d)
            )
        return self.model(self.parameters, params=n, tokens=d)

    def best(self, flops: Any) -> tuple[Any, Any, Any]:
        """(N, D, loss) of least loss at 6 N D + 2 N D_inference = flops, by successive grids."""
        flops = np.asarray(flops, float)
        shape = np.broadcast_shapes(flops.shape, *(np.shape(v) for v in self.parameters.values()))
        flops = np.broadcast_to(flops, shape)
        # D is positive only below this size.
        if self.inference_tokens:
            high = np.log(flops / (2 * self.inference_tokens)) - 1e-9
            high = np.minimum(high, np.log(flops / 6))
        else:
            high = np.log(flops / 6)
        low = np.minimum(np.zeros(shape), high - 1.0)
        share = np.linspace(0, 1, _GRID)
        problem = dataclasses.replace(
            self,
            parameters={k: v[..., None] if np.ndim(v) else v for k, v in self.parameters.items()},
        )
        for _ in range(_PASSES):
            x = low[..., None] + (high - low)[..., None] * share
            value = problem.loss(np.exp(x), self._tokens(np.exp(x), flops[..., None]))
            at = np.argmin(np.nan_to_num(value, nan=np.inf), axis=-1)
            left, right = np.maximum(at - 1, 0), np.minimum(at + 1, _GRID - 1)
            low = np.take_along_axis(x, left[..., None], -1)[..., 0]
            high = np.take_along_axis(x, right[..., None], -1)[..., 0]
        n = np.exp((low + high) / 2)
        d = self._tokens(n, flops)
        return n, d, self.loss(n, d)

    def _tokens(self, n: Any, flops: Any) -> Any:
        return np.maximum((flops / n - 2 * self.inference_tokens) / 6, 1e-6)

    def budget(self, loss: Any) -> Any:
        """The smallest compute with which `loss` is reached (NaN if none below 1e60), by bisection."""
        shape = np.broadcast_shapes(
            np.shape(loss), *(np.shape(v) for v in self.parameters.values())
        )
        low, high = np.full(shape, math.log(1e3)), np.full(shape, math.log(1e60))
        reachable = self.best(np.exp(high))[2] <= loss
        for _ in range(50):
            middle = (low + high) / 2
            enough = self.best(np.exp(middle))[2] <= loss
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return np.where(reachable, np.exp(high), np.nan)


def _from_surface(
    result: FitResult,
    flops: float | None,
    loss: float | None,
    unique_tokens: float | None,
    inference_tokens: float,
    level: float,
) -> Advice:
    warnings = []
    parameters, draws = dict(result.parameters), dict(result.draws)
    if unique_tokens is None and result.law == "data-constrained":
        parameters = {k: v for k, v in parameters.items() if not k.startswith("R_")}
    model = result.model
    if result.law == "data-constrained" and unique_tokens is None:
        from lmscale.laws.parametric import chinchilla_loss

        model = chinchilla_loss
    if unique_tokens is not None:
        if result.law == "over-training":
            from lmscale.laws.over_training import as_parametric

            parameters, draws = as_parametric(parameters), as_parametric(draws) if draws else {}
        if "R_D_star" not in parameters:
            borrowed = {name: MUENNIGHOFF[name] for name in ("R_D_star", "R_N_star")}
            parameters, draws = {**parameters, **borrowed}, {**draws, **borrowed} if draws else {}
            warnings.append(
                "this law has not seen repeated data; what an epoch is worth is borrowed from "
                "Muennighoff et al. 2023"
            )
    problem = _Problem(parameters, model, unique_tokens, inference_tokens)
    if draws:
        some = {k: np.asarray(v)[:_MOST_DRAWS] if np.ndim(v) else v for k, v in draws.items()}
        drawn = dataclasses.replace(problem, parameters=some)
    if loss is not None:
        flops = float(problem.budget(loss))
        if not math.isfinite(flops):
            floor = result.parameters.get("E", math.nan)
            raise FitError(
                f"this law reaches no loss of {loss:.4g} with any compute"
                + (f": its irreducible loss is {floor:.4g}" if math.isfinite(floor) else "")
            )
    n, d, reached = (float(x) for x in problem.best(flops))
    intervals = {}
    if draws:
        at = np.asarray(flops) if loss is None else drawn.budget(loss)
        dn, dd, dl = drawn.best(np.where(np.isfinite(at), at, flops))
        if loss is not None:
            lost = ~np.isfinite(at)
            if lost.mean() > 0.01:
                warnings.append(f"{lost.mean():.0%} of draws never reach this loss")
            intervals["flops"] = interval(at, level)
            dn, dd = np.where(lost, np.nan, dn), np.where(lost, np.nan, dd)
        intervals["n_params"] = interval(dn, level)
        intervals["n_tokens"] = interval(dd, level)
        intervals["tokens_per_param"] = interval(dd / dn, level)
        if loss is None:
            intervals["loss"] = interval(dl, level)
    off = []
    for factor in (0.25, 0.5, 2.0, 4.0):
        size = n * factor
        tokens = float(problem._tokens(size, flops))
        value = float(problem.loss(size, tokens))
        cheapest = float(problem.budget(value)) if math.isfinite(value) else math.nan
        off.append(OffOptimum(factor, size, tokens, value, flops / cheapest))
    epochs = None
    if unique_tokens is not None:
        epochs = d / min(unique_tokens, d)
        if epochs > 4:
            warnings.append(
                f"the data repeat {epochs:.3g} times; beyond about four epochs each is worth "
                f"much less than fresh data"
            )
    return Advice(
        flops=flops,
        n_params=n,
        n_tokens=d,
        loss=reached,
        tokens_per_param=d / n,
        intervals=intervals,
        warnings=tuple(warnings),
        off_optimum=tuple(off),
        epochs=epochs,
        inference_flops=2 * n * inference_tokens,
    )


# --- Frontiers --------------------------------------------------------------------------------


def _from_frontier(
    result: FitResult, flops: float | None, loss: float | None, level: float
) -> Advice:
    p, draws = result.parameters, result.draws
    if "a" not in p:
        raise FitError(f"this fit of {result.law} has no exponents: {'; '.join(result.warnings)}")
    curve, slope, warnings = _frontier_loss(result)
    if loss is not None:
        if curve is None:
            raise FitError(f"the law {result.law} carries no loss along its frontier; give flops")
        alpha, c_c, floor = curve
        if loss <= floor or alpha <= 0:
            raise FitError(f"this frontier never reaches a loss of {loss:.4g}")
        flops = c_c / (loss - floor) ** (1 / alpha)
    n, d = p["k_N"] * flops ** p["a"], p["k_D"] * flops ** p["b"]
    reached = None
    if curve is not None:
        alpha, c_c, floor = curve
        reached = floor + (c_c / flops) ** alpha
    intervals = {}
    if draws:
        dn, dd = draws["k_N"] * flops ** draws["a"], draws["k_D"] * flops ** draws["b"]
        intervals = {
            "n_params": interval(dn, level),
            "n_tokens": interval(dd, level),
            "tokens_per_param": interval(dd / dn, level),
        }
    off = []
    for factor in (0.25, 0.5, 2.0, 4.0):
        value, cost = None, math.nan
        if result.details.get("published") == "kaplan2020":
            # Kaplan's costs are for reaching the same loss, not for the same compute (Fig. 12).
            cost = float(off_optimum_cost(factor)[0])
        elif slope is not None and reached is not None:
            value = reached + slope * math.log(factor) ** 2
            alpha, c_c, floor = curve
            cost = flops / (c_c / (value - floor) ** (1 / alpha)) if alpha > 0 else math.nan
        if not math.isnan(cost):
            off.append(OffOptimum(factor, n * factor, d / factor, value, cost))
    return Advice(
        flops=flops,
        n_params=n,
        n_tokens=d,
        loss=reached,
        tokens_per_param=d / n,
        intervals=intervals,
        warnings=tuple(warnings),
        off_optimum=tuple(off),
    )


def _frontier_loss(
    result: FitResult,
) -> tuple[tuple[float, float, float] | None, float | None, list[str]]:
    """(alpha, C_c, floor) of the loss along the frontier, and the curvature of the profiles."""
    p = result.parameters
    if "alpha_C" in p:
        return (p["alpha_C"], p["C_c"], 0.0), None, []
    if "published" in result.details:
        return None, None, ["this law gives no loss along its frontier"]
    points = result.details.get("frontier") or result.details.get("envelope")
    if points is None or len(points["flops"]) < 3:
        return None, None, ["too few points on the frontier to say what loss to expect"]
    flops, loss = np.asarray(points["flops"]), np.asarray(points["loss"])
    if len(flops) > 60:
        every = np.linspace(0, len(flops) - 1, 60).astype(int)
        flops, loss = flops[every], loss[every]
    fit = loss_along_frontier(flops, loss)
    curve = (
        fit.parameters["alpha_C"],
        fit.parameters["C_c"],
        fit.parameters.get("L_inf", 0.0),
    )
    curvatures = [
        profile.coefficients[2]
        for profile in result.details.get("profiles", ())
        if profile.ok and profile.coefficients is not None
    ]
    # The largest budgets are the ones nearest to where advice is asked.
    curvature = float(np.median(curvatures[-3:])) if curvatures else None
    return curve, curvature, []
