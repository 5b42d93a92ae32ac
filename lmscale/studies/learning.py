"""Learning curves of all sizes as one law, L(N, S_min) (Kaplan et al. 2020, eq. 1.6, Fig. 4 right)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np

from lmscale.laws import FitResult
from lmscale.studies.estimate import Estimate, few_seeds, undecided
from lmscale.studies.fits import attempt, refused
from lmscale.studies.learning_curves import (
    FAR,
    NO_CURVES,
    Ladder,
    fit_learning_curves,
    ladders,
    law_rejected_because,
    with_batch_error,
)
from lmscale.studies.registry import register
from lmscale.studies.results import Results

__all__ = ["Learning", "study", "undecided_because"]

LAW = "kaplan-ns"
NAMES = ("alpha_S", "alpha_N")


@dataclass(frozen=True)
class Learning:
    """What `study` finds, of the first family.

    Attributes:
      ladder: None where no run was evaluated along the way.
      fit: L(N, S_min) = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S; its intervals contain the error of
        B_crit(L).
      fit_at_batch_law: the same with B_crit(L) taken as exact; figures draw its band around the curves.
      estimates: "alpha_S" and "alpha_N".
      others: the same of every other family, with the same B_crit(L).
    """

    ladder: Ladder | None
    fit: FitResult
    fit_at_batch_law: FitResult = field(repr=False)
    estimates: dict[str, Estimate]
    others: tuple[Learning, ...] = ()

    @property
    def fits(self) -> dict[str, FitResult]:
        families = (self, *self.others)
        return {f"{one.ladder.family}/kaplan": one.fit for one in families if one.ladder}


@register("learning")
def study(results: Results) -> Learning:
    """The fit of L(N, S_min) to the learning curves of all sizes (Kaplan et al. 2020, eq. 1.6).

    found = learning.study(Results.read("results/compute"))
    print(found.estimates["alpha_S"], found.fit.predict(params=1e6, steps=1e4))
    """
    if not (found := ladders(results)):
        none = refused(LAW, NO_CURVES)
        return Learning(None, none, none, undecided(NAMES, NO_CURVES))
    first, *others = map(_of_family, found)
    return dataclasses.replace(first, others=tuple(others))


def _of_family(found: Ladder) -> Learning:
    exact = attempt(LAW, lambda: fit_learning_curves(found))
    fit = exact if exact.failure else with_batch_error(exact, found)
    why = fit.failure or undecided_because(fit, found)
    n, seeds = len(found.sizes), found.n_seeds
    estimates = {
        name: Estimate.of_parameter(fit, name, undecided_because=why, n=n, seeds=seeds)
        for name in NAMES
    }
    return Learning(found, fit, exact, estimates)


def undecided_because(fit: FitResult, found: Ladder) -> str:
    """Why the exponents of the law cannot test a claim; empty where they can."""
    batches = [size.batch_tokens / found.b_crit(size.loss) for size in found.sizes]
    # S_min = S / (1 + B_crit/B): far above the critical batch the correction hardly matters.
    unsure = "" if min(map(np.min, batches)) > FAR else found.unsure_batch()
    few = few_seeds(found.n_seeds, "an exponent of learning curves")
    return law_rejected_because(fit) or few or unsure
