"""Kinds of claim that can be planted: results in which a claim holds by so much, or fails by so much.

Every kind goes through the study that reads the number, on results of a planted law with new noise in
every draw, and through `judge`. The grids are planted once; a draw replaces their losses.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmscale.report import Measure, Section
from lmscale.report.claims import judge
from lmscale.studies import cooldown, critical_batch, isoflop, size
from lmscale.studies.estimate import Estimate
from lmscale.studies.results import Results
from lmscale.sweep import Claim, finding, published_number
from tests.report import planted_curves
from tests.report import planted_store as planted
from tests.report.test_report_cooldown import declared as cooldown_runs

#: Budgets of the planted profiles, and the best size in their middle.
FOUR = tuple(np.geomspace(1e12, 27e12, 4))
SIX = tuple(np.geomspace(3e11, 3e14, 6))
MIDDLE = 9e5


@dataclass(frozen=True)
class Kind:
    """One kind of claim.

    Attributes:
      claim: a finding or a number.
      truths: planted values of the measure, some inside the claimed range and some outside, the
        nearest just beyond its edge.
      read: (truth, generator) -> the estimate that a study reads from newly drawn results.
    """

    name: str
    claim: Claim
    truths: tuple[float, ...]
    read: Callable[[float, np.random.Generator], Estimate]

    def holds(self, truth: float) -> bool:
        """Whether the claim is true; a number is false only where it is off by more than its width."""
        slack = self.claim.width or 0.0
        return self.claim.low - slack <= truth <= self.claim.high + slack

    def wrong(self, truth: float) -> str:
        """The word that would be wrong."""
        if self.claim.is_number:
            inside = self.claim.low <= truth <= self.claim.high
            return "differs" if inside else "" if self.holds(truth) else "consistent"
        return "disagrees" if self.holds(truth) else "agrees"

    def word(self, truth: float, rng: np.random.Generator) -> str:
        """The verdict on one draw."""
        study, name = self.claim.measure.split("/")
        measure = Measure.of(name, self.read(truth, rng))
        section = Section(name=study, title="", finding="", measures={name: measure})
        return judge(self.claim, [section]).word


def _store(runs: Sequence[Any], **options: Any) -> Results:
    with tempfile.TemporaryDirectory() as folder:
        return Results.read(planted.plant(folder, runs, analyses=[], noise=0.0, **options))


def _with_losses(results: Results, losses: np.ndarray) -> Results:
    return dataclasses.replace(results, table=results.table.assign(loss=losses))


# --- means over seeds ---------------------------------------------------------------------------


def _mean_of_seeds(truth: float, rng: np.random.Generator) -> Estimate:
    return Estimate.of_mean("gap", truth + 0.01 * rng.standard_normal(3))


# --- profiles -----------------------------------------------------------------------------------


def _law(exponent: float, budgets: tuple[float, ...]) -> planted.Law:
    """With N_opt ~ C^exponent, and the same best size at the middle of the budgets."""
    alpha, beta = 0.8 * (1 - exponent), 0.8 * exponent
    flops = math.sqrt(budgets[0] * budgets[-1]) / 6
    d_opt, base = flops / MIDDLE, planted.Law()
    # Both terms together are as large as in the law that the stores have otherwise.
    slope = 0.8 * base.A * MIDDLE**-base.alpha / (1 / alpha + 1 / beta) / 0.4
    return planted.Law(
        A=slope / alpha * MIDDLE**alpha, B=slope / beta * d_opt**beta, alpha=alpha, beta=beta
    )


@functools.cache
def _profiles(exponent: float, budgets: tuple[float, ...], one_seed: bool = False) -> Results:
    law = _law(exponent, budgets)
    grid = {"sizes": 5, "seeds": (0,)} if one_seed else {"sizes": 6}
    runs = planted.isoflop_runs(budgets, lstm=False, law=law, **grid)
    return _store(runs, law=law)


def _drawn_profiles(
    truth: float,
    rng: np.random.Generator,
    budgets: tuple[float, ...],
    scatter: float = 0.0,
    one_seed: bool = False,
) -> Results:
    """Profiles with noise of every run, and each budget's minimum off by `scatter` in ln N."""
    results, law = _profiles(truth, budgets, one_seed), _law(truth, budgets)
    table = results.table
    off = dict(zip(budgets, scatter * rng.standard_normal(len(budgets)), strict=True))
    moved = np.exp(table["budget"].map(off).to_numpy(float))
    n, d = table["params_standard"].to_numpy(float), table["tokens"].to_numpy(float)
    loss = law.E + law.A * (n / moved) ** -law.alpha + law.B * (d * moved) ** -law.beta
    return _with_losses(results, loss + 0.003 * rng.standard_normal(len(table)))


def _exponent(budgets: tuple[float, ...], scatter: float = 0.0) -> Callable[..., Estimate]:
    def read(truth: float, rng: np.random.Generator) -> Estimate:
        fit = isoflop.approach_2(_drawn_profiles(truth, rng, budgets, scatter), "transformer")
        return isoflop.exponent(fit)

    return read


@functools.cache
def _counts_differ(one_seed: bool) -> float:
    """kaplan_minus_native of the noiseless profiles of exponent 0.5."""
    found = isoflop.study(_profiles(0.5, SIX, one_seed)).estimates["kaplan_minus_native"]
    return float(found.value)


def _count(truth: float, rng: np.random.Generator) -> Estimate:
    """The difference of two counts, less what the profiles have, plus `truth`."""
    results = _drawn_profiles(0.5, rng, SIX)
    return _moved_count(results, truth - _counts_differ(False))


def _count_of_one_seed(truth: float, rng: np.random.Generator) -> Estimate:
    """The same for the quickstart's one seed and five sizes, whose seed bends the losses of all runs."""
    results = _drawn_profiles(0.5, rng, SIX, one_seed=True)
    table = results.table
    size, budget = (np.log(table[name].to_numpy(float)) for name in ("params_standard", "budget"))
    size, budget = ((x - x.mean()) / x.std() for x in (size, budget))
    bends = np.stack([size, budget, size * budget, size**2])
    losses = table["loss"].to_numpy(float) + 0.003 * rng.standard_normal(4) @ bends
    return _moved_count(_with_losses(results, losses), truth - _counts_differ(True))


def _moved_count(results: Results, shift: float) -> Estimate:
    found = isoflop.study(results).estimates["kaplan_minus_native"]
    moved = (found.interval[0] + shift, found.interval[1] + shift)
    return dataclasses.replace(found, value=found.value + shift, interval=moved)


# --- two families -------------------------------------------------------------------------------


@functools.cache
def _sizes() -> Results:
    return _store(planted.size_runs(layers=(1,)), law=planted.SizeLaw())


def _gap(truth: float, rng: np.random.Generator) -> Estimate:
    """The LSTM lies `truth` above the Transformer at equal N."""
    results = _sizes()
    table = results.table
    law = planted.SizeLaw()
    base = (law.N_c / table["params_kaplan"].to_numpy(float)) ** law.alpha
    lstm = table["family"].str.startswith("lstm").to_numpy(float)
    losses = base + truth * lstm + 0.01 * rng.standard_normal(len(table))
    return size.study(_with_losses(results, losses)).estimates["gap"]


# --- cooldowns ----------------------------------------------------------------------------------


@functools.cache
def _cooldowns() -> Results:
    runs = cooldown_runs()
    results = _store(runs)
    # The study asks for longer runs than these; how long they are does not enter the planted losses.
    return dataclasses.replace(
        results, table=results.table.assign(steps=results.table["steps"] * 1000)
    )


def _cooled(truth: float, rng: np.random.Generator) -> Estimate:
    """Cooldowns end `truth` above cosines; a size and seed strays as a whole, and every run alone."""
    results = _cooldowns()
    table, law = results.table, planted.Law()
    n, d = table["params_standard"].to_numpy(float), table["tokens"].to_numpy(float)
    loss = law.E + law.A * n**-law.alpha + law.B * d**-law.beta
    cooled = table["family"].str.startswith("cooldown").to_numpy(float)
    shared = table.groupby(["family", "params_standard", "seed"]).ngroup().to_numpy()
    stray = 0.002 * rng.standard_normal(shared.max() + 1)[shared]
    losses = loss + truth * cooled + stray + 0.002 * rng.standard_normal(len(table))
    found = cooldown.study(_with_losses(results, losses))
    return found.estimates["loss_difference"]


# --- the critical batch -------------------------------------------------------------------------


@functools.cache
def _batches(power: float) -> tuple[Results, dict[str, np.ndarray]]:
    """A store of batch sizes whose B_crit grows as 1/L^power, and its losses without noise."""
    # The law's constants are set so that B_crit is the same at a loss of 4.5 whatever the power.
    law = {**planted_curves.LAW, "B_star": 2500.0 * 4.5**power, "alpha_B": 1 / power}
    runs = planted_curves.batch_runs()

    def curve(spec: Any, steps: np.ndarray) -> np.ndarray:
        return planted_curves.curve(spec, steps, law)

    with tempfile.TemporaryDirectory() as folder:
        results = planted_curves.plant(
            folder, runs, analyses=["critical_batch"], noise=0.0, law=curve
        )
    losses = {
        run.spec.run_id: curve(run.spec, np.array(run.spec.eval_steps, float)) for run in runs
    }
    return results, losses


def _batch_power(truth: float, rng: np.random.Generator) -> Estimate:
    results, losses = _batches(truth)
    metrics = {}
    for run, records in results.metrics.items():
        off = 0.002 * (rng.standard_normal() + 0.3 * rng.standard_normal(len(losses[run])))
        drawn = iter(losses[run] * np.exp(off))
        metrics[run] = [
            {**record, "eval": {"valid": {"loss": next(drawn)}}} if "eval" in record else record
            for record in records[-len(losses[run]) :]
        ]
    return critical_batch.study(dataclasses.replace(results, metrics=metrics)).estimates["power"]


KINDS = (
    Kind(
        "sign of a mean over three seeds",
        finding("seeds/gap", "", "", at_least=0.0),
        (0.03, 0.005, -0.0005, -0.01),
        _mean_of_seeds,
    ),
    Kind(
        "mean over three seeds within a margin of 0.03",
        finding("seeds/gap", "", "", at_least=-0.03, at_most=0.03),
        (0.0, 0.025, 0.031, 0.06),
        _mean_of_seeds,
    ),
    Kind(
        "exponent of four budgets within 0.45 to 0.55",
        finding("isoflop/a", "", "", at_least=0.45, at_most=0.55),
        (0.5, 0.54, 0.555, 0.6),
        _exponent(FOUR),
    ),
    Kind(
        "the same, six budgets whose minima scatter by 0.1",
        finding("isoflop/a", "", "", at_least=0.45, at_most=0.55),
        (0.5, 0.54, 0.555, 0.6),
        _exponent(SIX, scatter=0.1),
    ),
    Kind(
        "published exponent 0.46 to 0.53, four budgets",
        published_number("isoflop/a", "", "", 0.46, 0.53),
        (0.5, 0.47, 0.53, 0.69),
        _exponent(FOUR),
    ),
    Kind(
        "sign of the difference of two counts, six budgets",
        finding("isoflop/kaplan_minus_native", "", "", at_least=0.0),
        (0.03, 0.005, -0.0005, -0.03),
        _count,
    ),
    Kind(
        "the same, one seed that bends all losses alike",
        finding("isoflop/kaplan_minus_native", "", "", at_least=0.0),
        (0.03, 0.005, -0.0005, -0.03),
        _count_of_one_seed,
    ),
    Kind(
        "order of two families at equal size",
        finding("size/gap", "", "", at_least=0.0),
        (0.02, 0.004, -0.0005, -0.02),
        _gap,
    ),
    Kind(
        "two families equal within 0.02",
        finding("size/gap", "", "", at_least=-0.02, at_most=0.02),
        (0.0, 0.018, 0.021, 0.04),
        _gap,
    ),
    Kind(
        "cooldown equal to cosine within 0.005",
        finding("cooldown/loss_difference", "", "", at_least=-0.005, at_most=0.005),
        (0.0, 0.004, 0.0052, 0.012),
        _cooled,
    ),
    Kind(
        "critical batch grows at least as 1/L^3",
        finding("critical_batch/power", "", "", at_least=3.0),
        (5.0, 3.2, 2.95, 1.5),
        _batch_power,
    ),
)
