"""The lower envelope of all training curves: Approach 1 of Hoffmann et al. 2022 (section 3.1, Fig. 2)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Unpack

import numpy as np
import pandas as pd

from lmscale import laws
from lmscale.laws import FitResult, Redrawn
from lmscale.laws.known import median_of_known
from lmscale.laws.result import interval
from lmscale.studies.estimate import Basis, Estimate, undecided
from lmscale.studies.exponents import exponent, home_convention
from lmscale.studies.fits import attempt
from lmscale.studies.groups import rows_of
from lmscale.studies.isoflop import minus_approach_2
from lmscale.studies.registry import register
from lmscale.studies.results import Results
from lmscale.sweep.curves import join_curves, learning_curve

__all__ = ["LATE", "Envelope", "Family", "selection_bias", "study", "unbiased_exponent"]

NOISY = "the curves' noise moves the exponent by more than it scatters it, or they are too few"
#: Hoffmann et al. found the points of their envelope in this last share of a run.
LATE = 0.15


@dataclass(frozen=True)
class Family:
    """One family's envelope, under one convention of counting. `curves` holds the curves of its `runs`."""

    name: str
    convention: str
    runs: pd.DataFrame = field(repr=False)
    fit: FitResult
    curves: laws.Table | None = field(default=None, repr=False)

    def exponent(self, symbol: str = "N") -> Estimate:
        """The exponent of N_opt or D_opt in C (`unbiased_exponent`)."""
        n = 0 if self.fit.failure else self.fit.n_used
        return unbiased_exponent(self.fit, symbol, of=self.name, n=n)

    def refit(self, redrawn: Redrawn, names: list[str]) -> FitResult:
        """The same envelope, with the draws of another fit: the named runs get the same noise in both.

        Args:
          redrawn: draws of the other fit, whose column k is a run.
          names: the run of each column of `redrawn`.
        """
        return laws.fit(self.curves, "envelope", redrawn=(redrawn, names))

    @property
    def seeds(self) -> int:
        return int(self.runs["seed"].nunique()) if len(self.runs) else 0

    @property
    def late_share(self) -> float:
        """Share of the envelope's points that lie in the last `LATE` of their run."""
        envelope = self.fit.details["envelope"]
        ends = self.runs.groupby(f"params_{self.convention}")["tokens"].unique()
        sizes, late = ends.index.to_numpy(float), []
        for n, d in zip(envelope["n_opt"], envelope["d_opt"], strict=True):
            tokens = ends.iloc[np.argmin(np.abs(sizes - n))]
            later = tokens[tokens >= d * 0.999]
            late.append(len(later) > 0 and d >= (1 - LATE) * later.min())
        return float(np.mean(late))


@dataclass(frozen=True)
class Envelope:
    """What `study` finds.

    Attributes:
      families: the Transformer first.
      estimates: of the first family. "a" and "b": N_opt ~ C^a, D_opt ~ C^b; "a_minus_approach_2".
    """

    families: tuple[Family, ...]
    estimates: dict[str, Estimate]

    @property
    def fits(self) -> dict[str, FitResult]:
        return {f"{family.name}/{family.convention}": family.fit for family in self.families}


@register("envelope")
def study(results: Results) -> Envelope:
    """N_opt and D_opt of the lowest curve at each budget (Hoffmann et al. 2022, Approach 1).

    found = envelope.study(Results.read("results/isoflop"))
    print(found.estimates["a"], found.families[0].late_share)
    """
    families = tuple(_family(results, name) for name in results.families)
    if not families:
        return Envelope((), undecided(("a", "b", "a_minus_approach_2"), "no runs are declared"))
    family = families[0]
    change = minus_approach_2(results, family.exponent(), family.refit, seeds=family.seeds)
    estimates = (family.exponent("N"), family.exponent("D"), change)
    return Envelope(families, {one.name: one for one in estimates})


def unbiased_exponent(fit: FitResult, symbol: str, **rest: Unpack[Basis]) -> Estimate:
    """An exponent; without an interval where noise biases it by more than it scatters it."""
    found = exponent(fit, symbol, **rest)
    if found.is_known and (found.interval is None or selection_bias(fit)):
        why = found.undecided_because or NOISY
        return dataclasses.replace(found, interval=None, undecided_because=why)
    return found


def selection_bias(fit: FitResult) -> float:
    """The bias of the exponent of N by noise, where it is larger than the scatter; else 0.

    An envelope takes the lowest of noisy curves, which biases it. The draws repeat that choice, so the
    bias is the distance of their median from the value that was read.
    """
    if not fit.draws:
        return 0.0
    low, high = interval(fit.draws["a"], 0.682)
    shift = float(median_of_known(fit.draws["a"])) - fit.parameters["a"]
    return shift if abs(shift) > (high - low) / 2 else 0.0


def _family(results: Results, name: str) -> Family:
    usable = results.usable
    runs = usable[usable["family"] == name].reset_index(drop=True) if len(usable) else usable
    convention = home_convention(runs)
    curves = [
        learning_curve(results.metrics.get(row["run"], []), row, convention)
        for row in rows_of(runs)
    ]
    curves = [curve for curve in curves if len(curve)]
    needs = "" if curves else "no run has a training curve"
    needs = needs if len(runs) else "no run has ended well yet"

    joined = join_curves(curves, convention) if not needs else None
    fit = attempt("envelope", lambda: laws.fit(joined, "envelope"), needs=needs)
    return Family(name, convention, runs, fit, joined)
