"""Five steps from Kaplan's exponent to Hoffmann's (Porian et al. 2024, Fig. 1)."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pandas as pd

from lmscale import laws
from lmscale.laws import FitResult, paired_slopes
from lmscale.studies.estimate import Estimate
from lmscale.studies.exponents import LEAST_BUDGETS, difference, exponent, seed_draws
from lmscale.studies.fits import attempt
from lmscale.studies.registry import register
from lmscale.studies.results import Results
from lmscale.wording import plural

__all__ = ["STEPS", "Reading", "Reconcile", "Step", "study"]

#: An evaluation belongs to a budget if its compute differs from it by at most this share.
NEAR = 0.05


@dataclass(frozen=True)
class Step:
    """One step: its runs, how they are counted, and the exponents of Porian et al. 2024 for two texts, with
    95% intervals."""

    number: int
    family: str
    convention: str
    refined_web: tuple[float, tuple[float, float]]
    web_text: tuple[float, tuple[float, float] | None]


STEPS = (
    Step(1, "step 1 and 2", "kaplan", (0.835, (0.824, 0.846)), (0.864, (0.819, 0.897))),
    Step(2, "step 1 and 2", "standard", (0.706, (0.691, 0.717)), (0.699, None)),
    Step(3, "step 3", "standard", (0.602, (0.591, 0.617)), (0.603, None)),
    Step(4, "step 4", "standard", (0.571, (0.560, 0.589)), (0.574, None)),
    Step(5, "step 5", "standard", (0.497, (0.491, 0.505)), (0.518, (0.493, 0.541))),
)


@dataclass(frozen=True)
class Reading:
    """What one step gives.

    Attributes:
      rows: one for each loss that was read: params, tokens, flops, loss, seed, budget and size (N with
        the head).
      fit: the profiles; it may have too few for an exponent.
    """

    step: Step
    rows: pd.DataFrame = field(repr=False)
    fit: FitResult

    @cached_property
    def drawn(self) -> FitResult | None:
        """The profiles with the seeds of every size drawn anew, the same in every step."""
        return seed_draws(self.rows, "size", self.fit, self.step.convention)

    @property
    def failure(self) -> str:
        """Why there is no exponent; empty where there is one."""
        if self.fit.failure:
            return self.fit.failure
        usable = len(self.fit.details["frontier"]["flops"])
        if usable >= LEAST_BUDGETS:
            return ""
        of = f"{usable} of {plural(self.rows['budget'].nunique(), 'budget')} with a usable profile"
        return f"{of}, where a power law needs {LEAST_BUDGETS}"

    @property
    def seeds(self) -> int:
        return int(self.rows["seed"].nunique()) if len(self.rows) else 0

    @property
    def exponent(self) -> Estimate:
        name = f"a_{self.step.number}"
        if self.failure:
            return Estimate(name=name, undecided_because=self.failure, seeds=self.seeds)
        return exponent(self.fit, name=name, seeds=self.seeds)


@dataclass(frozen=True)
class Reconcile:
    """What `study` finds.

    Attributes:
      readings: of the five steps.
      estimates: "a_1" to "a_5" of N_opt ~ C^a; "change_2" to "change_5", each from the step before;
        "change_all" from the first to the last. A change has draws where both steps drew the same
        seeds; otherwise its two exponents count as independent.
    """

    readings: tuple[Reading, ...]
    estimates: dict[str, Estimate]

    @property
    def fits(self) -> dict[str, FitResult]:
        return {f"step {r.step.number}/{r.step.convention}": r.fit for r in self.readings}

    @property
    def reach(self) -> float | None:
        """The largest factor that the budgets of a step span."""
        factors = [
            r.rows["budget"].max() / r.rows["budget"].min() for r in self.readings if r.seeds
        ]
        return max(factors, default=None)


@register("reconcile")
def study(results: Results) -> Reconcile:
    """The exponent at every step, and the change from each to the next (Porian et al. 2024, Fig. 1).

    found = reconcile.study(Results.read("results/reconcile"))
    print(found.estimates["a_1"], found.estimates["change_all"])
    """
    readings = tuple(_read(results, step) for step in STEPS)
    found = [r.exponent for r in readings]
    for before, after in itertools.pairwise(readings):
        found.append(_change(f"change_{after.step.number}", before, after))
    found.append(_change("change_all", readings[0], readings[-1]))
    return Reconcile(readings, {one.name: one for one in found})


def _read(results: Results, step: Step) -> Reading:
    fields = results.experiment.get("fields", {})
    budgets = fields.get("kaplan_budgets" if step.convention == "kaplan" else "budgets", ())
    usable = results.usable
    runs = usable[usable["family"] == step.family] if len(usable) else usable
    rows = pd.DataFrame(
        [row for _, run in runs.iterrows() for row in _crossings(results, run, step, budgets)]
    )

    def fit() -> FitResult:
        table = laws.Table.read(rows.drop(columns="size"), convention=step.convention)
        return laws.fit(table, "isoflop")

    needs = "" if len(rows) else "no run of it has ended well yet"
    return Reading(step, rows, attempt("isoflop", fit, needs=needs))


def _crossings(
    results: Results, run: pd.Series, step: Step, budgets: Iterable[float]
) -> list[dict[str, Any]]:
    """A run's loss at every budget that it was evaluated at, or that it was trained for."""
    per_token = float(run[f"flops_{step.convention}"] / run["tokens"])
    if "budget" in run and math.isfinite(run["budget"]):
        budgets, at = [float(run["budget"])], [(float(run["tokens"]), float(run["loss"]))]
    else:
        name = results.eval_name
        at = [
            (float(record["tokens"]), float(record["eval"][name]["loss"]))
            for record in results.ended.get(run["run"], {}).get("evaluations", [])
            if name in record["eval"]
        ]
    rows = []
    for budget in budgets:
        wanted = budget / per_token
        near = min(at, key=lambda item: abs(item[0] - wanted), default=None)
        if near and abs(near[0] / wanted - 1) <= NEAR and math.isfinite(near[1]):
            row = {"params": float(run[f"params_{step.convention}"]), "tokens": near[0]}
            row |= {"flops": float(budget), "budget": float(budget), "loss": near[1]}
            row |= {"seed": int(run["seed"]), "size": float(run["params_standard"])}
            rows.append(row)
    return rows


def _change(name: str, before: Reading, after: Reading) -> Estimate:
    for reading in (before, after):
        if reading.failure:
            why = f"step {reading.step.number}: {reading.failure}"
            return Estimate(name=name, undecided_because=why)
    draws = None
    if after.drawn is not None and before.drawn is not None:
        draws = paired_slopes(after.drawn, before.drawn)
    return difference(
        name,
        after.exponent,
        before.exponent,
        "",
        seeds=min(before.seeds, after.seeds),
        draws=draws,
    )
