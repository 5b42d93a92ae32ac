"""Advice from laws of loss in N and D: parametric, over-training and data-constrained."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lmscale.laws.advice import Advice, OffOptimum
from lmscale.laws.allocation import AllocationProblem, is_own, surface_of
from lmscale.laws.backtest import BackTest, widened
from lmscale.laws.data_constrained import MUENNIGHOFF
from lmscale.laws.over_training import as_parametric
from lmscale.laws.quantiles import student_quantile
from lmscale.laws.result import FitError, FitResult, interval

__all__ = ["advise_on_surface"]

#: Draws that the searches use. More would not move the edge of an interval visibly.
_MOST_DRAWS = 1000
#: Passes over the data beyond which a warning says what they are worth (Muennighoff et al. 2023).
_WORTHWHILE_EPOCHS = 4


def advise_on_surface(
    result: FitResult,
    *,
    flops: float | None,
    loss: float | None,
    unique_tokens: float | None,
    inference_tokens: float,
    level: float,
    factors: Sequence[float],
    test: BackTest | None,
) -> Advice:
    """The least loss at a budget, or the smallest budget for a loss; see `lmscale.laws.advise`.

    Args:
      test: how well the law predicted its own largest budgets, where that could be tested.

    Raises:
      FitError: the law does not reach the loss with any compute.
    """
    problem, drawn, warnings = _posed(result, unique_tokens, inference_tokens)
    budget = _budget(result, problem, flops, loss)
    n, d, reached = (float(x) for x in problem.best(budget))
    _check_inside(result, n, d, reached, budget)
    widths = _half_widths(result, budget - 2 * n * inference_tokens, level, test)
    intervals: dict[str, tuple[float, float]] = {}
    if drawn is not None:
        intervals = _size_intervals(
            drawn, budget, loss, (n, d), widths["n_params"].get("back_test", 0.0), level, warnings
        )

    def reach(size: float, tokens: float, value: float) -> tuple[float, float] | None:
        """The interval of the loss of one run of this size and length."""
        more = math.hypot(*widths["loss"].values()) if widths["loss"] else 0.0
        if drawn is None and not more:
            return None
        noise = None if drawn is None else interval(drawn.loss(size, tokens), level)
        return widened(value, noise, more)

    if loss is not None:
        if widths["loss"] and (known := reach(n, d, reached)):
            intervals |= _budget_interval(
                problem, reached, known, intervals.pop("flops", None), warnings
            )
    elif (known := reach(n, d, reached)) is not None:
        intervals["loss"] = known
    off = []
    for factor in factors:
        size = n * factor
        if 2 * size * inference_tokens >= budget:
            continue
        tokens = float(problem.tokens(size, budget))
        value = float(problem.loss(size, tokens))
        cheapest = float(problem.budget(value)) if math.isfinite(value) else math.nan
        off.append(
            OffOptimum(factor, size, tokens, value, budget / cheapest, reach(size, tokens, value))
        )
    warnings += _too_large_to_serve(n, budget, inference_tokens, factors)
    epochs = None
    if unique_tokens is not None:
        epochs = d / min(unique_tokens, d)
        if epochs > _WORTHWHILE_EPOCHS:
            warnings.append(
                f"the data repeat {epochs:.3g} times; beyond about four epochs each is worth "
                f"much less than fresh data"
            )
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
        epochs=epochs,
        inference_flops=2 * n * inference_tokens,
    )


def _budget(
    result: FitResult, problem: AllocationProblem, flops: float | None, loss: float | None
) -> float:
    """The budget of the question: as given, or the smallest that reaches the loss."""
    if flops is not None:
        return flops
    assert loss is not None, "a question has a budget or a loss"
    found = float(problem.budget(loss))
    if not math.isfinite(found):
        floor = result.parameters.get("E", math.nan)
        raise FitError(
            f"this law reaches no loss of {loss:.4g} with any compute"
            + (f": its irreducible loss is {floor:.4g}" if math.isfinite(floor) else "")
        )
    return found


def _check_inside(result: FitResult, n: float, d: float, loss: float, flops: float) -> None:
    """Raises a `FitError` where a user's law has no best size: its loss may fall all along the line."""
    if is_own(result) and not (math.isfinite(loss) and n > 2 and d > 2):
        raise FitError(
            f"the law {result.law} has no best size at {flops:.3g} FLOPs: its least loss on 6 N D = C lies "
            f"at N = {n:.3g} and D = {d:.3g}"
        )


def _too_large_to_serve(
    n: float, flops: float, inference_tokens: float, factors: Sequence[float]
) -> list[str]:
    """Names the multiples of the best size whose inference alone takes the whole budget."""
    too_large = [factor for factor in factors if 2 * (n * factor) * inference_tokens >= flops]
    if not too_large:
        return []
    names = " and ".join(f"{factor:g} x" for factor in too_large)
    return [
        f"{names} the parameters cannot be served within this budget: {inference_tokens:.3g} "
        f"tokens of a model {min(too_large):g} x as large alone take "
        f"{2 * n * min(too_large) * inference_tokens:.3g} FLOPs"
    ]


def _posed(
    result: FitResult, unique_tokens: float | None, inference_tokens: float
) -> tuple[AllocationProblem, AllocationProblem | None, list[str]]:
    """The problem with the law's parameters, with its draws (None without any), and warnings."""
    surface = surface_of(result)
    assert surface is not None, "a law of loss in N and D"
    warnings = []
    parameters, draws = dict(result.parameters), dict(result.draws)
    if unique_tokens is None and result.law == "data-constrained":
        parameters = {k: v for k, v in parameters.items() if not k.startswith("R_")}
    if unique_tokens is not None:
        if is_own(result):
            raise FitError(
                f"the law {result.law} does not say what repeated tokens are worth: ask without a limit of "
                "unique tokens, or take the law data-constrained"
            )
        if result.law == "over-training":
            parameters, draws = as_parametric(parameters), as_parametric(draws) if draws else {}
        if "R_D_star" not in parameters:
            borrowed = {name: MUENNIGHOFF[name] for name in ("R_D_star", "R_N_star")}
            parameters = {**parameters, **borrowed}
            if draws:
                draws |= {name: np.asarray(value) for name, value in borrowed.items()}
            warnings.append(
                "this law has not seen repeated data; what an epoch is worth is borrowed from "
                "Muennighoff et al. 2023"
            )
    problem = AllocationProblem(parameters, surface, unique_tokens, inference_tokens)
    drawn = None
    if draws:
        some = {k: np.asarray(v)[:_MOST_DRAWS] if np.ndim(v) else v for k, v in draws.items()}
        drawn = dataclasses.replace(problem, parameters=some)
    return problem, drawn, warnings


def _size_intervals(
    drawn: AllocationProblem,
    flops: float,
    loss: float | None,
    best: tuple[float, float],
    width: float,
    level: float,
    warnings: list[str],
) -> dict[str, tuple[float, float]]:
    """Intervals of N and D (and of the budget for a given loss) from draws, widened by `width`."""
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
    # At a given compute N falls as D grows, so their ratio moves twice as far.
    intervals["tokens_per_param"] = widened(d / n, interval(dd / dn, level), 2 * width)
    return intervals


def _budget_interval(
    problem: AllocationProblem,
    loss: float,
    reach: tuple[float, float],
    drawn: tuple[float, float] | None,
    warnings: list[str],
) -> dict[str, tuple[float, float]]:
    """The interval of the compute for a loss: that of the draws, widened for what they leave out.

    A run may miss the loss, which more compute makes up for, and it may be better, so that less is enough.

    Args:
      reach: the interval of the loss of a run at the compute for `loss`.
      drawn: the interval of the draws' budgets, where there are draws.
    """
    least, most = (float(problem.budget(edge)) for edge in (reach[1], reach[0]))
    if not math.isfinite(most):
        warnings.append(
            f"the compute has no interval: a run may miss this loss by {loss - reach[0]:.2g} nats, and by this "
            f"law no compute comes that far below it"
        )
        return {}
    low, high = drawn or (least, most)
    return {"flops": (min(least, low), max(most, high))}


def _half_widths(
    result: FitResult, flops: float, level: float, test: BackTest | None
) -> dict[str, dict[str, float]]:
    """What the draws of a surface leave out, by cause: half-widths in the logarithm."""
    widths: dict[str, dict[str, float]] = {"n_params": {}, "loss": {}}
    rest = result.residuals.get("residual")
    freedom = 0 if rest is None else len(rest) - len(result.parameters)
    if freedom > 0:
        # The draws know the surface, but not how far the next run lies from it.
        noise = math.sqrt(float(np.sum(np.square(_log_residual(result)))) / freedom)
        widths["loss"]["scatter"] = float(student_quantile(0.5 + level / 2, freedom)) * noise
    if test is not None:
        beyond = max(0.0, math.log(flops / result.ranges["flops"][1]))
        widths["n_params"]["back_test"] = 2 * test.drift("size") * beyond
        widths["loss"]["back_test"] = 2 * test.drift("loss") * beyond
    return widths


def _log_residual(result: FitResult) -> np.ndarray:
    return np.log(result.residuals["observed"] / result.residuals["predicted"])
