"""Tokens and steps to a loss, by model size (Kaplan et al. 2020, Figs. 2 left and 19)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmscale.laws import FitResult
from lmscale.studies.estimate import Estimate, few_seeds, undecided
from lmscale.studies.fits import attempt, refused
from lmscale.studies.learning_curves import (
    NO_CURVES,
    Ladder,
    fit_learning_curves,
    ladders,
)
from lmscale.studies.lines import lines_through
from lmscale.studies.registry import register
from lmscale.studies.results import Results
from lmscale.wording import number, plural

__all__ = ["Efficiency", "Reached", "has_one_batch", "study"]

#: Losses that are read, and sizes that must reach each.
TARGETS, LEAST_SIZES = 4, 3
#: Of the noise of seeds.
DRAWS = 400
#: The paper's ratio of a hundred is tested only where sizes span this factor; its own span a million.
PAPER_SPAN = 1e4


@dataclass(frozen=True)
class Reached:
    """What one loss took.

    Attributes:
      loss: in nats per token.
      tokens: E_min of every size that reached it, smallest size first; `at` of each is its N without embeddings.
      b_crit: B_crit(L) in tokens, so that S_min = E_min / b_crit updates.
      exponent: d ln E_min / d ln N; that of S_min is the same.
      ratio: E_min of the smallest size over that of the largest.
    """

    loss: float
    tokens: tuple[Estimate, ...]
    b_crit: float
    exponent: Estimate
    ratio: Estimate

    @property
    def sizes(self) -> list[float]:
        """N without embeddings."""
        return [one.at[0] for one in self.tokens]


@dataclass(frozen=True)
class Efficiency:
    """What `study` finds, of the first family.

    Attributes:
      ladder: None where no run was evaluated along the way.
      reached: the losses, highest first.
      law: the fitted L(N, S_min), without intervals.
      estimates: "exponent", of the tokens to a loss against N, the mean over losses; and "ratio", of
        the smallest to the largest size at the highest loss.
      others: the same of every other family, with the same B_crit(L).
    """

    ladder: Ladder | None
    reached: tuple[Reached, ...]
    law: FitResult
    estimates: dict[str, Estimate]
    others: tuple[Efficiency, ...] = ()

    @property
    def fits(self) -> dict[str, FitResult]:
        """None: the study `learning` has the law."""
        return {}


@register("efficiency")
def study(results: Results) -> Efficiency:
    """E_min and S_min of every size at a few losses (Kaplan et al. 2020, eqs. 5.2 and 5.4).

    found = efficiency.study(Results.read("results/sample_efficiency"))
    print(found.estimates["exponent"], found.reached[0].tokens)
    """
    if not (found := ladders(results)):
        none = undecided(("exponent", "ratio"), NO_CURVES)
        return Efficiency(None, (), refused("kaplan-ns", NO_CURVES), none)
    first, *others = map(_of_family, found)
    return replace(first, others=tuple(others))


def _of_family(found: Ladder) -> Efficiency:
    reached = _reached(found)
    if not reached:
        many = plural(len(found.sizes), "size")
        why = f"{many}, and a loss must be reached by {LEAST_SIZES} of them"
        none = undecided(("exponent", "ratio"), why)
        return Efficiency(found, (), refused("kaplan-ns", why), none)
    estimates = (_exponent(reached, found), _paper_ratio(reached[0]))
    law = attempt("kaplan-ns", lambda: fit_learning_curves(found, bootstrap=0))
    return Efficiency(found, reached, law, {one.name: one for one in estimates})


def has_one_batch(found: Ladder) -> bool:
    """Whether all sizes were trained with one batch."""
    return len({size.batch_tokens for size in found.sizes}) == 1


def _reached(found: Ladder) -> tuple[Reached, ...]:
    """Losses to read, highest first: from the lowest that all sizes reach to the lowest that enough sizes reach."""
    if len(found.sizes) < LEAST_SIZES:
        return ()
    lowest = sorted((size.loss.min() for size in found.sizes), reverse=True)
    highest = max(size.loss[0] for size in found.sizes)
    # A little above the lowest, so that most draws over seeds reach it too.
    first, last = 1.005 * lowest[0], 1.005 * lowest[-LEAST_SIZES]
    if first >= highest:
        return ()
    drawn = found.drawn_losses(DRAWS)
    targets = np.unique(np.geomspace(first, last, TARGETS))[::-1]
    read = [_at_loss(found, drawn, float(target)) for target in targets]
    return tuple(one for one in read if one is not None)


def _at_loss(found: Ladder, drawn: Sequence[np.ndarray] | None, target: float) -> Reached | None:
    took = [size.steps_to(target) for size in found.sizes]
    index = [i for i, steps in enumerate(took) if math.isfinite(steps)]
    if len(index) < LEAST_SIZES:
        return None
    sizes = [found.sizes[i] for i in index]
    b_crit = float(found.b_crit(target))
    # E_min / S: the batch, less what a batch above the critical one wastes.
    per_step = np.array([size.batch_tokens / (1 + size.batch_tokens / b_crit) for size in sizes])
    tokens, draws = np.array([took[i] for i in index]) * per_step, None
    if drawn is not None:
        again = [[found.sizes[i].steps_to(target, row) for row in drawn[i]] for i in index]
        draws = np.stack(again, axis=1) * per_step
    few = few_seeds(found.n_seeds, "an interval")
    log_n = np.log([size.n_params for size in sizes])
    n, seeds = len(sizes), found.n_seeds

    def estimate(
        name: str,
        value: float,
        of_draws: Callable[[np.ndarray], np.ndarray],
        at: tuple[float, ...],
    ) -> Estimate:
        read = None if draws is None else of_draws(draws)
        return Estimate.of_draws(name, value, read, undecided_because=few, at=at, n=n, seeds=seeds)

    ends = (sizes[0].n_params, sizes[-1].n_params)
    return Reached(
        loss=target,
        tokens=tuple(
            estimate("E_min", tokens[i], functools.partial(np.take, indices=i, axis=1), at)
            for i, at in enumerate((size.n_params,) for size in sizes)
        ),
        b_crit=b_crit,
        exponent=estimate(
            "exponent",
            float(lines_through(log_n, np.log(tokens))[0]),
            lambda d: lines_through(log_n, np.log(d))[0],
            ends,
        ),
        ratio=estimate("ratio", tokens[0] / tokens[-1], lambda d: d[:, 0] / d[:, -1], ends),
    )


def _exponent(reached: Sequence[Reached], found: Ladder) -> Estimate:
    """The exponent, averaged over the losses."""
    exponents = [one.exponent for one in reached]
    draws = [one.draws for one in exponents if one.draws is not None]
    return Estimate.of_draws(
        "exponent",
        float(np.mean([one.known for one in exponents])),
        np.mean(draws, axis=0) if len(draws) == len(exponents) else None,
        # At one loss B_crit is one number, so with one batch the exponent does not depend on it.
        undecided_because=next(filter(None, (one.undecided_because for one in exponents)), "")
        or ("" if has_one_batch(found) else found.unsure_batch()),
        at=exponents[0].at,
        n=len(reached),
        seeds=found.n_seeds,
    )


def _paper_ratio(reached: Reached) -> Estimate:
    """The ratio; undecided where the sizes span too little to compare it with the paper's."""
    span = reached.sizes[-1] / reached.sizes[0]
    if span >= PAPER_SPAN:
        return reached.ratio
    why = f"the sizes differ by a factor of {number(span, 2)}, the paper's by a million"
    return replace(reached.ratio, value=None, interval=None, draws=None, undecided_because=why)
