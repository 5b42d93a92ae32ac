"""From a law and a budget to a choice: how large a model, on how many tokens, and what it buys.

Laws of loss in N and D are minimised over N on the line of equal cost, so that data limits,
repeated data (Muennighoff et al. 2023) and the cost of inference (Sardana et al. 2024: 6 N D + 2 N
D_inference) enter without new formulas; frontiers that only give N_opt(C) and D_opt(C) are read as
they are (`lmscale.laws.frontier_advice`).

An interval holds more than the noise of the runs that were fitted: how the minima scatter about the law,
what the law got wrong about its own largest budgets when fitted without them, in proportion to the
distance (`lmscale.laws.backtest`), a curve with an irreducible loss where one without it was fitted, and
for the loss the noise of one run and the chance that the advised size is off the best.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import t as student_t

from lmscale.laws.backtest import BackTest, back_test, widened
from lmscale.laws.data_constrained import MUENNIGHOFF, data_constrained_loss
from lmscale.laws.frontier_advice import answer_on_frontier
from lmscale.laws.over_training import over_training_loss
from lmscale.laws.parametric import chinchilla_loss
from lmscale.laws.published import PUBLISHED, published
from lmscale.laws.result import FitError, FitResult, interval, plain

__all__ = ["FARTHEST", "Advice", "OffOptimum", "advise", "optimum", "too_far"]

#: Compute over the largest that was fitted, beyond which advice warns.
WARN_BEYOND = 1.5
#: And beyond which it should not be given as a point. The public tests of a law beyond its runs end near
#: here or a little further: the OLMo ladder missed the loss by 2% at 90 times and by 4% at 190 times its
#: largest run, always to the low side, and an IsoFLOP law of four budgets over a factor of 14 advised at
#: 28 times a size at least twice too large. A power law's best size is known to a factor of
#: 30^(width of the exponent's interval) at best. The same factor holds below the smallest run, where the
#: tests of a law are fewer still and sizes end in models that cannot be built.
FARTHEST = 30.0

#: Sizes tried on each pass of the search along a line of equal cost.
_GRID = 65
_PASSES = 5
#: Draws that the searches use; more would not move an interval's edge visibly.
_MOST_DRAWS = 1000
_SURFACES = ("parametric", "over-training", "data-constrained")
_FRONTIERS = ("isoflop", "envelope", "frontier")


@dataclass(frozen=True)
class OffOptimum:
    """What it costs to train `factor` times the best size on the same compute.

    `compute_factor` is how much more compute this loss takes than it would at its own best size.
    `loss_interval` is that of a run, and None where nothing is known of its error.
    """

    factor: float
    n_params: float
    n_tokens: float
    loss: float | None
    compute_factor: float
    loss_interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One recommendation.

    `model`, `batch_tokens`, `learning_rate`, `recipe` and `run` are for the caller to fill
    (`lmscale.sweep.recommend`).
    """

    flops: float
    n_params: float
    n_tokens: float
    loss: float | None
    tokens_per_param: float
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    #: How the intervals were made, in words.
    interval_method: str = "none"
    #: n_params and loss -> cause -> half-width of the interval, in the logarithm.
    half_widths: dict[str, dict[str, float]] = field(default_factory=dict)
    model: dict[str, Any] | None = None
    batch_tokens: int | None = None
    learning_rate: float | None = None
    #: Where batch and learning rate come from, or why there are none.
    recipe: str = ""
    #: The whole run as a spec, where a sweep's recipe gives one.
    run: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    off_optimum: tuple[OffOptimum, ...] = ()
    epochs: float | None = None
    inference_flops: float = 0.0
    law: str = ""
    source: str = ""
    #: Training compute over that of the largest run of the fit.
    extrapolation: float | None = None
    #: Training compute over that of the smallest run of the fit.
    over_smallest: float | None = None

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
    factors: Sequence[float] = (0.25, 0.5, 2.0, 4.0),
) -> Advice:
    """The best model and data for a budget, or the smallest budget for a target loss.

    Args:
      law: a fitted law, or the name of a published one.
      flops: compute for training (and inference, if any): C = 6 N D + 2 N D_inference.
      loss: instead of `flops`, the loss to be reached.
      unique_tokens: data that exist; beyond them they repeat, at the worth that the law gives
        repetition (a law without R_D* borrows Muennighoff et al.'s, with a warning).
      inference_tokens: tokens that the model will process after training.
      level: share of the draws in the intervals; the fit's own by default.
      factors: sizes off the best one of which `Advice.off_optimum` tells.

    However far the budget lies from the runs, there is an answer; `too_far` says when to refuse it.
    Sizes off the best one that cannot be served within the budget are left out, with a warning.

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
    test, untested = None, ""
    if "published" not in result.details and result.law in (*_SURFACES, *_FRONTIERS):
        try:
            test = back_test(result)
        except FitError as error:
            untested = str(error)
    if result.law in _SURFACES:
        advice = _from_surface(
            result, flops, loss, unique_tokens, inference_tokens, level, factors, test
        )
    elif result.law in _FRONTIERS:
        if unique_tokens is not None or inference_tokens:
            raise FitError(
                f"the law {result.law} gives the frontier only; data limits and inference need "
                f"the loss off it: use parametric, over-training or data-constrained"
            )
        found = answer_on_frontier(result, flops, loss, level, factors, test)
        advice = Advice(
            flops=found.flops,
            n_params=found.n_params,
            n_tokens=found.n_tokens,
            loss=found.loss,
            tokens_per_param=found.n_tokens / found.n_params,
            intervals=found.intervals,
            half_widths=found.half_widths,
            warnings=tuple(found.warnings),
            off_optimum=tuple(
                OffOptimum(factor, n, d, value, cost, reach)
                for factor, n, d, value, reach, cost in found.off
            ),
        )
    else:
        raise FitError(
            f"the law {result.law} says nothing on how to split compute; use one of "
            f"{', '.join((*_SURFACES, *_FRONTIERS[:2]))}, or a published law"
        )
    return _finish(result, advice, untested)


def too_far(advice: Advice, farthest: float = FARTHEST) -> str | None:
    """Why a point should not be given at this budget, in one line; None where it may.

    Args:
      farthest: largest factor above the largest run, and below the smallest one.
    """
    asked = _training_flops(advice)
    ways = "fit runs nearer to it, or take the extrapolation with --extrapolate"
    if advice.extrapolation is not None and advice.extrapolation > farthest:
        return (
            f"{asked} is {advice.extrapolation:.3g} times the largest run of this law, "
            f"which is trusted up to {farthest:g} times: ask for a smaller budget or a higher loss, {ways}"
        )
    if advice.over_smallest is not None and advice.over_smallest < 1 / farthest:
        return (
            f"{asked} is {advice.over_smallest:.3g} times the smallest run of this law, "
            f"which is trusted down to 1/{farthest:g} of it: ask for a larger budget or a lower loss, {ways}"
        )
    return None


def _training_flops(advice: Advice) -> str:
    """The compute that is compared with the runs', in words: serving is no training."""
    trained = advice.flops - advice.inference_flops
    return f"{trained:.3g} FLOPs{' of training' if advice.inference_flops else ''}"


def _resolve(law: FitResult | str) -> FitResult:
    if isinstance(law, FitResult):
        return law
    if law not in PUBLISHED:
        raise FitError(f"there is no published law {law!r}; choose from {', '.join(PUBLISHED)}")
    return published(law)


def _finish(result: FitResult, advice: Advice, untested: str) -> Advice:
    published_law = "published" in result.details
    of_law = result.warnings
    if published_law and advice.intervals:
        # `interval_method` says it already.
        of_law = [warning for warning in of_law if result.interval_method not in warning]
    warnings = [*of_law, *advice.warnings]
    known = result.ranges.get("flops")
    extrapolation = over_smallest = None
    if known:
        trained = advice.flops - advice.inference_flops
        extrapolation, over_smallest = trained / known[1], trained / known[0]
        if extrapolation > WARN_BEYOND:
            warnings.append(
                f"{_training_flops(advice)} is {extrapolation:.3g} times the largest run of this fit"
                + _what_intervals_leave_out(advice, published_law)
            )
            if untested:
                warnings.append(f"not tested on budgets left out: {untested}")
        elif over_smallest < 1 / WARN_BEYOND:
            warnings.append(
                f"{_training_flops(advice)} is below the smallest run of this fit ({known[0]:.3g})"
            )
    else:
        warnings.append("the compute of this law's runs is not known, nor how far this lies beyond")
    # A published law says for itself why it has none.
    if not result.draws and not published_law:
        # Scatter and back-test alone would leave out what the noise of the runs does to the law.
        advice = advice.replace(
            intervals={},
            half_widths={},
            off_optimum=tuple(
                dataclasses.replace(off, loss_interval=None) for off in advice.off_optimum
            ),
        )
        warnings.append("this fit was made without a bootstrap, so the advice has no intervals")
    method = [result.interval_method] if result.draws else []
    causes = {cause for widths in advice.half_widths.values() for cause in widths}
    method += [_CAUSES[cause] for cause in _CAUSES if cause in causes]
    return advice.replace(
        warnings=tuple(dict.fromkeys(warnings)),
        extrapolation=extrapolation,
        over_smallest=over_smallest,
        interval_method="; ".join(method) if advice.intervals else "none",
        law=result.details.get("published", result.law),
        source=result.details.get("source", "fitted here"),
    )


#: Causes of `Advice.half_widths` in words.
_CAUSES = {
    "scatter": "scatter of the next point about the law",
    "run_noise": "noise of one run",
    "irreducible_loss": "with or without an irreducible loss",
    "back_test": "error on the largest budgets when left out, in proportion to ln C beyond the runs",
}


def _what_intervals_leave_out(advice: Advice, published_law: bool) -> str:
    if not advice.intervals:
        return ""
    if published_law:
        return ": the interval covers noise, not a change of the law"
    tested = any("back_test" in widths for widths in advice.half_widths.values())
    return (
        ": beyond the runs the interval takes the law's error to grow as it did within them"
        if tested
        else ": the interval covers noise, not a change of the law"
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
        low, high = np.full(shape, math.log(1e-6)), np.full(shape, math.log(1e60))
        reachable = self.best(np.exp(high))[2] <= loss
        for _ in range(50):
            middle = (low + high) / 2
            enough = self.best(np.exp(middle))[2] <= loss
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return np.where(reachable, np.exp(high), np.nan)


#: Laws of loss in N and D as functions of their parameters.
_MODELS = {
    "parametric": chinchilla_loss,
    "over-training": over_training_loss,
    # Of fresh data.
    "data-constrained": chinchilla_loss,
}


def optimum(law: str, parameters: Mapping[str, Any], flops: Any) -> tuple[Any, Any, Any]:
    """(N, D, loss) of least loss at 6 N D = flops with fresh data; parameters may be draws."""
    if law not in _MODELS:
        raise FitError(f"the law {law} says nothing on how to split compute")
    return _Problem(parameters, _MODELS[law], None, 0.0).best(flops)


def _posed(
    result: FitResult, unique_tokens: float | None, inference_tokens: float
) -> tuple[_Problem, _Problem | None, list[str]]:
    """The problem by the law, by its draws (None without any), and what was borrowed for it."""
    warnings = []
    parameters, draws = dict(result.parameters), dict(result.draws)
    if unique_tokens is None and result.law == "data-constrained":
        parameters = {k: v for k, v in parameters.items() if not k.startswith("R_")}
    model = _MODELS[result.law]
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
    drawn = None
    if draws:
        some = {k: np.asarray(v)[:_MOST_DRAWS] if np.ndim(v) else v for k, v in draws.items()}
        drawn = dataclasses.replace(problem, parameters=some)
    return problem, drawn, warnings


def _from_surface(
    result: FitResult,
    flops: float | None,
    loss: float | None,
    unique_tokens: float | None,
    inference_tokens: float,
    level: float,
    factors: Sequence[float],
    test: BackTest | None,
) -> Advice:
    problem, drawn, warnings = _posed(result, unique_tokens, inference_tokens)
    if loss is not None:
        flops = float(problem.budget(loss))
        if not math.isfinite(flops):
            floor = result.parameters.get("E", math.nan)
            raise FitError(
                f"this law reaches no loss of {loss:.4g} with any compute"
                + (f": its irreducible loss is {floor:.4g}" if math.isfinite(floor) else "")
            )
    n, d, reached = (float(x) for x in problem.best(flops))
    widths = _surface_widths(result, flops - 2 * n * inference_tokens, level, test)
    intervals: dict[str, tuple[float, float]] = {}
    if drawn is not None:
        intervals = _size_intervals(
            drawn, flops, loss, (n, d), widths["n_params"].get("back_test", 0.0), level, warnings
        )

    def reach(size: float, tokens: float, value: float) -> tuple[float, float] | None:
        """The interval of a run of this size and length."""
        more = math.hypot(*widths["loss"].values()) if widths["loss"] else 0.0
        if drawn is None and not more:
            return None
        noise = None if drawn is None else interval(drawn.loss(size, tokens), level)
        return widened(value, noise, more)

    if loss is None and (known := reach(n, d, reached)) is not None:
        intervals["loss"] = known
    off, too_dear = [], []
    for factor in factors:
        size = n * factor
        if 2 * size * inference_tokens >= flops:
            too_dear.append(factor)
            continue
        tokens = float(problem._tokens(size, flops))
        value = float(problem.loss(size, tokens))
        cheapest = float(problem.budget(value)) if math.isfinite(value) else math.nan
        off.append(
            OffOptimum(factor, size, tokens, value, flops / cheapest, reach(size, tokens, value))
        )
    if too_dear:
        names = " and ".join(f"{factor:g} x" for factor in too_dear)
        warnings.append(
            f"{names} the parameters cannot be served within this budget: {inference_tokens:.3g} "
            f"tokens of a model {min(too_dear):g} x as large alone take "
            f"{2 * n * min(too_dear) * inference_tokens:.3g} FLOPs"
        )
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
        half_widths=widths,
        warnings=tuple(warnings),
        off_optimum=tuple(off),
        epochs=epochs,
        inference_flops=2 * n * inference_tokens,
    )


def _size_intervals(
    drawn: _Problem,
    flops: float,
    loss: float | None,
    best: tuple[float, float],
    width: float,
    level: float,
    warnings: list[str],
) -> dict[str, tuple[float, float]]:
    """Of N and D (and the budget, where a loss was asked for) from draws, widened by `width`."""
    n, d = best
    intervals = {}
    at = np.asarray(flops) if loss is None else drawn.budget(loss)
    dn, dd, _ = drawn.best(np.where(np.isfinite(at), at, flops))
    if loss is not None:
        lost = ~np.isfinite(at)
        if lost.mean() > 0.01:
            warnings.append(f"{lost.mean():.0%} of draws never reach this loss")
        intervals["flops"] = interval(at, level)
        dn, dd = np.where(lost, np.nan, dn), np.where(lost, np.nan, dd)
    intervals["n_params"] = widened(n, interval(dn, level), width)
    intervals["n_tokens"] = widened(d, interval(dd, level), width)
    # At a given compute one falls as the other rises.
    intervals["tokens_per_param"] = widened(d / n, interval(dd / dn, level), 2 * width)
    return intervals


def _surface_widths(
    result: FitResult, flops: float, level: float, test: BackTest | None
) -> dict[str, dict[str, float]]:
    """What the draws of a surface leave out, by cause: half-widths in the logarithm."""
    widths: dict[str, dict[str, float]] = {"n_params": {}, "loss": {}}
    rest = result.residuals.get("residual")
    freedom = 0 if rest is None else len(rest) - len(result.parameters)
    if freedom > 0:
        # Of log loss; the draws know the surface, not the next run about it.
        noise = math.sqrt(float(np.sum(np.square(_log_residual(result)))) / freedom)
        widths["loss"]["scatter"] = float(student_t.ppf(0.5 + level / 2, freedom)) * noise
    if test is not None:
        beyond = max(0.0, math.log(flops / result.ranges["flops"][1]))
        widths["n_params"]["back_test"] = 2 * test.drift("size") * beyond
        widths["loss"]["back_test"] = 2 * test.drift("loss") * beyond
    return widths


def _log_residual(result: FitResult) -> np.ndarray:
    return np.log(result.residuals["observed"] / result.residuals["predicted"])
