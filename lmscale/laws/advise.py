"""From a law and a budget to a decision: how large a model, how many tokens, and what loss.

Laws of loss in N and D, also those of a user's own, are minimised on the line of equal cost
(`lmscale.laws.surface_advice`).
Laws that give N_opt(C) and D_opt(C) themselves are read directly (`lmscale.laws.frontier_advice`).

An interval holds more than the noise of the fitted runs:

- the scatter of the minima about the law;
- the law's error on its own largest budgets when it is fitted without them, in proportion to the
  distance of the extrapolation (`lmscale.laws.backtest`);
- for the loss along IsoFLOP minima instead, that its exponent may change with compute
  (`lmscale.laws.frontier_loss`);
- along an envelope, the difference that an irreducible loss makes, where the fitted curve has none;
- for the loss, the noise of one run and the chance that the advised size is not the best one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from lmscale.laws.advice import Advice
from lmscale.laws.allocation import surface_of
from lmscale.laws.backtest import BackTest, back_test
from lmscale.laws.frontier_advice import advise_on_frontier
from lmscale.laws.published import PUBLISHED, published
from lmscale.laws.result import FitError, FitResult
from lmscale.laws.surface_advice import advise_on_surface

__all__ = ["FARTHEST", "advise", "too_far"]

#: Advice warns beyond this factor above the largest fitted compute.
WARN_BEYOND = 1.5
#: Beyond this factor a single recommendation is refused. Public tests of laws beyond their runs end
#: near here, or a little further. The OLMo ladder missed the loss by 2% at 90 times and by 4% at 190
#: times its largest run, always to the low side. An IsoFLOP law from four budgets over a factor of
#: 14 advised, at 28 times, a size at least twice too large. At best, a power law gives the best size
#: to a factor of 30^(width of the exponent's interval). Below the smallest run the same factor
#: holds: tests of laws are rarer there, and sizes soon reach models that cannot be built.
FARTHEST = 30.0

#: For the error message; `lmscale.laws.allocation` knows them, and those of a user's own.
_SURFACES = ("parametric", "over-training", "data-constrained")
_FRONTIERS = ("isoflop", "envelope", "frontier")

#: Causes of `Advice.half_widths` in words.
_CAUSES = {
    "scatter": "scatter of the next point about the law",
    "run_noise": "noise of one run",
    "irreducible_loss": "with or without an irreducible loss",
    "back_test": "error on the largest budgets when left out, in proportion to ln C beyond the runs",
}


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
      unique_tokens: tokens that exist. Beyond them data repeat, with the worth that the law gives
        to repetition; a law without R_D* borrows that of Muennighoff et al. 2023, with a warning.
      inference_tokens: tokens that the model will process after training.
      level: share of the draws in the intervals; the fit's own by default.
      factors: multiples of the best size for `Advice.off_optimum`. Those that cannot be served
        within the budget are left out, with a warning.

    There is an answer however far the budget lies from the runs; `too_far` says when to refuse it.

    Raises:
      FitError: neither or both of flops and loss, a law that cannot answer, or a loss that it
        cannot reach.
    """
    result = _resolve(law)
    _check(flops, loss, unique_tokens, inference_tokens)
    level = (result.draw_level or result.level) if level is None else level
    test, untested = _tested(result)
    if surface_of(result) is not None:
        advice = advise_on_surface(
            result,
            flops=flops,
            loss=loss,
            unique_tokens=unique_tokens,
            inference_tokens=inference_tokens,
            level=level,
            factors=factors,
            test=test,
        )
    elif result.law in _FRONTIERS:
        if unique_tokens is not None or inference_tokens:
            raise FitError(
                f"the law {result.law} gives the frontier only; data limits and inference need "
                f"the loss off it: use parametric, over-training or data-constrained"
            )
        advice = advise_on_frontier(result, flops, loss, level, factors, test)
    else:
        raise FitError(
            f"the law {result.law} says nothing on how to split compute; use one of "
            f"{', '.join((*_SURFACES, *_FRONTIERS[:2]))}, a published law, or one of your own whose "
            "model has params and tokens"
        )
    return _finish(result, advice, untested)


def too_far(advice: Advice, farthest: float = FARTHEST) -> str | None:
    """Why there should be no single recommendation at this budget, in one line; else None.

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
    """The compute to compare with that of the runs, in words: inference does not count."""
    trained = advice.flops - advice.inference_flops
    return f"{trained:.3g} FLOPs{' of training' if advice.inference_flops else ''}"


def _resolve(law: FitResult | str) -> FitResult:
    if isinstance(law, FitResult):
        return law
    if law not in PUBLISHED:
        raise FitError(f"there is no published law {law!r}; choose from {', '.join(PUBLISHED)}")
    return published(law)


def _check(
    flops: float | None, loss: float | None, unique_tokens: float | None, inference_tokens: float
) -> None:
    if (flops is None) == (loss is None):
        raise FitError("give either flops (a budget) or loss (a target), not both or neither")
    for name, value in (("flops", flops), ("loss", loss), ("unique_tokens", unique_tokens)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise FitError(f"{name} must be a positive number, not {value!r}")
    if not (math.isfinite(inference_tokens) and inference_tokens >= 0):
        raise FitError(f"inference_tokens must not be negative, not {inference_tokens!r}")


def _tested(result: FitResult) -> tuple[BackTest | None, str]:
    """The law's back-test, or None and why there is none; published laws have no runs to test on."""
    if "published" in result.details or not (
        result.law in _FRONTIERS or surface_of(result) is not None
    ):
        return None, ""
    try:
        return back_test(result), ""
    except FitError as error:
        return None, str(error)


def _finish(result: FitResult, advice: Advice, untested: str) -> Advice:
    """Adds the distance from the fitted runs, the warnings and the sources."""
    published_law = "published" in result.details
    of_law = result.warnings
    if published_law and advice.intervals:
        # `interval_method` already says this.
        of_law = tuple(warning for warning in of_law if result.interval_method not in warning)
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
    # A published law without draws has its own warning.
    if not result.draws and not published_law:
        # Scatter and back-test alone would leave out the effect of the runs' noise on the law.
        advice = advice.replace(
            intervals={},
            half_widths={},
            off_optimum=tuple(
                dataclasses.replace(off, loss_interval=None) for off in advice.off_optimum
            ),
        )
        warnings.append("this fit was made without a bootstrap, so the advice has no intervals")
    method = [result.interval_method] if result.draws else []
    if result.law == "isoflop" and "loss" in advice.intervals:
        method.append("loss from draws of a curve whose exponent may change with compute")
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


def _what_intervals_leave_out(advice: Advice, published_law: bool) -> str:
    if not advice.intervals:
        return ""
    tested = any("back_test" in widths for widths in advice.half_widths.values())
    if published_law or not tested:
        return ": the interval covers noise, not a change of the law"
    return ": beyond the runs the interval takes the law's error to grow as it did within them"
