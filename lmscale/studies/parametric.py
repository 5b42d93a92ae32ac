"""The parametric loss surface: Approach 3 of Hoffmann et al. 2022 (section 3.3, eq. 2, Fig. 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from lmscale import laws
from lmscale.laws import FitResult, Redrawn
from lmscale.studies.estimate import Estimate, undecided
from lmscale.studies.exponents import counted, exponent, home_convention
from lmscale.studies.fits import attempt
from lmscale.studies.groups import by_number
from lmscale.studies.isoflop import minus_approach_2
from lmscale.studies.registry import register
from lmscale.studies.results import Results

__all__ = ["PARAMETERS", "Family", "Parametric", "study"]

#: The grid of starts; see `laws.fit_parametric`.
STARTS = "relative"
PARAMETERS = ("E", "A", "B", "alpha", "beta")


@dataclass(frozen=True)
class Family:
    """One family's surface. `runs` holds params, tokens, flops, loss, seed under `convention`, and
    the budget where there is one; `names` are those of the runs."""

    name: str
    convention: str
    runs: pd.DataFrame = field(repr=False)
    fit: FitResult
    names: tuple[str, ...] = field(default=(), repr=False)

    def exponent(self, symbol: str = "N") -> Estimate:
        """The exponent of N_opt or D_opt in C along the efficient frontier."""
        why = "the surface has no frontier"
        return exponent(self.fit, symbol, missing=why, of=self.name, n=len(self.runs))

    def refit(self, redrawn: Redrawn, names: list[str]) -> FitResult:
        """The same surface, with the draws of another fit: the named runs get the same noise in both."""
        place = {name: k for k, name in enumerate(names)}
        rows = [place.get(name, -1) for name in self.names]
        found = self.fit.parameters
        start = [math.log(found[name]) for name in ("A", "B", "E")]
        return laws.fit(
            laws.Table.read(self.runs, convention=self.convention),
            "parametric",
            starts=np.array([[*start, found["alpha"], found["beta"]]]),
            redrawn=redrawn.of_rows(rows),
        )

    @property
    def is_informative(self) -> bool:
        """Whether the interval of the exponent of N is shorter than half of its possible range, 0 to 1."""
        interval = self.exponent().interval
        return interval is not None and interval[1] - interval[0] < 0.5

    @property
    def seeds(self) -> int:
        return int(self.runs["seed"].nunique()) if len(self.runs) else 0

    @property
    def fitted_runs(self) -> pd.DataFrame:
        """The rows of the residuals, in their order."""
        return self.runs.iloc[np.asarray(self.fit.residuals["row"]) - 1]

    @property
    def has_budgets(self) -> bool:
        return "budget" in self.runs and bool(self.runs["budget"].notna().any())

    @property
    def residual_rms(self) -> float:
        """Root mean square of the residuals of the logarithm of the loss."""
        return float(np.sqrt(np.mean(np.square(self.fit.residuals["residual"]))))

    @property
    def budget_means(self) -> list[Estimate]:
        """The mean residual of log loss at each budget; where its interval excludes 0, the surface does not fit.

        `at` holds the budget and the median 6 N D of its runs.
        """
        if "budget" not in self.runs:
            return []
        rows = self.fitted_runs.assign(residual=self.fit.residuals["residual"])
        return [
            Estimate.of_mean(
                "residual",
                part["residual"],
                at=(budget, float(np.median(6 * part["params"] * part["tokens"]))),
                n=len(part),
            )
            for budget, part in by_number(rows, "budget")
        ]


@dataclass(frozen=True)
class Parametric:
    """What `study` finds.

    Attributes:
      families: the Transformer first.
      estimates: of the first family. "a": N_opt ~ C^a; "E", "A", "B", "alpha", "beta" of
        L = E + A / N^alpha + B / D^beta; "a_minus_approach_2".
    """

    families: tuple[Family, ...]
    estimates: dict[str, Estimate]

    @property
    def fits(self) -> dict[str, FitResult]:
        return {f"{family.name}/{family.convention}": family.fit for family in self.families}


@register("parametric")
def study(results: Results) -> Parametric:
    """L = E + A / N^alpha + B / D^beta of each family (Hoffmann et al. 2022, eq. 2).

    found = parametric.study(Results.read("results/isoflop"))
    print(found.estimates["alpha"], found.families[0].fit.predict(params=1e6, tokens=1e8))
    """
    families = tuple(_family(results, name) for name in results.families)
    if not families:
        return Parametric(
            (), undecided(("a", *PARAMETERS, "a_minus_approach_2"), "no runs are declared")
        )
    family = families[0]
    change = minus_approach_2(results, family.exponent(), family.refit, seeds=family.seeds)
    parameters = (
        Estimate.of_parameter(family.fit, name, of=family.name, n=len(family.runs))
        for name in PARAMETERS
    )
    estimates = (family.exponent(), *parameters, change)
    return Parametric(families, {one.name: one for one in estimates})


def _family(results: Results, name: str) -> Family:
    usable = results.usable
    runs = usable[usable["family"] == name].reset_index(drop=True) if len(usable) else usable
    convention = home_convention(runs)
    rows = counted(runs, convention) if len(runs) else runs

    def fit() -> FitResult:
        return laws.fit(laws.Table.read(rows, convention=convention), "parametric", starts=STARTS)

    needs = "" if len(runs) else "no run has ended well yet"
    names = tuple(runs["run"]) if len(runs) else ()
    return Family(name, convention, rows, attempt("parametric", fit, needs=needs), names)
