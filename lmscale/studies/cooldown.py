"""Cooldowns from one trunk against a cosine per cell (Hägele et al. 2024, section 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from lmscale import laws
from lmscale.laws import FitResult, paired_slopes
from lmscale.laws.quantiles import student_quantile
from lmscale.studies.estimate import (
    LEAST_SEEDS,
    LEVEL,
    Estimate,
    few_seeds,
    interval_of_mean,
    undecided,
)
from lmscale.studies.exponents import (
    LEAST_BUDGETS,
    counted,
    difference,
    exponent,
    home_convention,
    seed_draws,
)
from lmscale.studies.fits import attempt
from lmscale.studies.groups import by_number
from lmscale.studies.registry import register
from lmscale.studies.results import Results
from lmscale.wording import plural

__all__ = ["COOLDOWN", "COSINE", "SCHEDULES", "TRUNK", "Cooldown", "Pair", "best_rate", "study"]

#: Labels of the experiment's runs.
TRUNK, COSINE, COOLDOWN = "trunk", "cosine", "cooldown"
SCHEDULES = (COSINE, COOLDOWN)
SWEPT = ", swept"
NAMES = (
    "flops_ratio",
    "loss_difference",
    "a_cosine",
    "a_cooldown",
    "a_difference",
    "best_lr_ratio",
)
#: Fewest updates of runs that speak of the paper's: 20 tokens a parameter of its smallest model (33M,
#: 0.1M tokens a batch) are 6,600. Which rate and schedule suit a run changes with its length.
LEAST_STEPS = 5_000
#: Why the ratio of FLOPs tests no claim: a trunk saves more the closer the budgets lie.
OWN_COUNT = (
    "it is a count of this grid's runs, which its budgets decide: the paper's 0.42 is that of another "
    "suite"
)


@dataclass(frozen=True)
class Pair:
    """One size at one budget under both schedules.

    Losses are means over the seeds that both schedules have; `gap` is cooldown less cosine."""

    budget: float
    n_params: float
    cosine: float
    cooldown: float
    gap: Estimate


@dataclass(frozen=True)
class Cooldown:
    """What `study` finds.

    Attributes:
      convention: of counting N and C.
      losses: one row a (budget, params, seed) that ended well under both schedules; columns cosine and
        cooldown.
      profiles: schedule -> profiles, both on the cells of `losses`; empty where the experiment does
        not declare both schedules.
      spent: schedule -> budget (or 0 for the trunks) -> exact FLOPs that its runs executed.
      missing: declared runs of the grid without a result.
      rates: schedule -> rate -> mean loss, of the one cell that was trained at several learning rates.
      estimates: "loss_difference" of cooldown less cosine, in nats; "flops_ratio" of trunks and
        cooldowns over cosines; "a_cosine", "a_cooldown" and "a_difference" of N_opt ~ C^a;
        "best_lr_ratio", the best constant rate over the best peak of a cosine.
    """

    convention: str
    losses: pd.DataFrame = field(repr=False)
    profiles: dict[str, FitResult]
    spent: dict[str, dict[float, float]]
    missing: int
    rates: dict[str, dict[float, Estimate]]
    estimates: dict[str, Estimate]

    @property
    def fits(self) -> dict[str, FitResult]:
        return {f"{name}/{self.convention}": fit for name, fit in self.profiles.items()}

    @property
    def pairs(self) -> list[Pair]:
        """By budget and size."""
        return [
            Pair(
                budget,
                n_params,
                float(cell[COSINE].mean()),
                float(cell[COOLDOWN].mean()),
                Estimate.of_mean("gap", cell[COOLDOWN] - cell[COSINE]),
            )
            for budget, of_budget in by_number(self.losses, "budget")
            for n_params, cell in by_number(of_budget, "params")
        ]


@register("cooldown")
def study(results: Results) -> Cooldown:
    """What cooldowns saved and lost, and whether the frontier is the same (Hägele et al. 2024).

    found = cooldown.study(Results.read("results/cooldown"))
    print(found.estimates["loss_difference"], found.pairs[0].gap)
    """
    table = results.table
    if not set(SCHEDULES) <= set(table["family"]):
        why = "the experiment declares no runs of the families cosine and cooldown"
        none = pd.DataFrame(columns=["budget", "params", "seed", *SCHEDULES])
        return Cooldown("standard", none, {}, {}, 0, {}, undecided(NAMES, why))
    grid = table[table["family"].isin([TRUNK, *SCHEDULES])]
    done = grid[(grid["status"] == "done") & np.isfinite(grid["loss"].astype(float))]
    cells = done[done["family"].isin(SCHEDULES)].dropna(subset=["budget"])
    convention = home_convention(cells)
    rows = counted(cells, convention).assign(family=cells["family"])
    losses = (
        rows.pivot_table(index=["budget", "params", "seed"], columns="family", values="loss")
        .reindex(columns=list(SCHEDULES))
        .dropna()
        .reset_index()
    )
    # Both grids have the same cells, because a run missing from one would move only that frontier.
    rows = rows.merge(losses[["budget", "params", "seed"]])
    profiles = {name: _profiles(rows[rows["family"] == name], convention) for name in SCHEDULES}
    spent, missing = _spent(grid), len(grid) - len(done)
    gap = _mean_gap(losses, float(cells["steps"].median()))
    a = {name: _exponent(name, profiles[name]) for name in SCHEDULES}
    drawn = None
    if all(one.is_known for one in a.values()):
        drawn = _paired_draws(rows, profiles, convention)
    no_exponent = (one.undecided_because for one in a.values() if not one.is_known)
    missing_text = next(no_exponent, "one of the grids gives no exponent")
    estimates = (
        _flops_ratio(spent, missing),
        gap,
        *a.values(),
        difference(
            "a_difference", a[COOLDOWN], a[COSINE], missing_text, seeds=gap.seeds, draws=drawn
        ),
        _best_rates(swept := _swept(table)),
    )
    rates = {
        name: {
            lr: Estimate.of_mean("loss", runs["loss"])
            for lr, runs in by_number(swept[swept["schedule"] == name], "lr")
        }
        for name in SCHEDULES
        if len(swept)
    }
    by_name = {one.name: one for one in estimates}
    return Cooldown(convention, losses, profiles, spent, missing, rates, by_name)


def best_rate(lr: np.ndarray, loss: np.ndarray) -> float:
    """Minimum of a parabola in ln lr through the four losses about the lowest; NaN without one."""
    if len(lr) < 3:
        return math.nan
    order = np.argsort(np.abs(np.log(lr / lr[np.argmin(loss)])))[:4]
    c2, c1, _ = np.polyfit(np.log(lr[order]), loss[order], 2)
    best = math.exp(-c1 / (2 * c2)) if c2 > 0 else math.nan
    return best if lr.min() <= best <= lr.max() else math.nan


def _profiles(rows: pd.DataFrame, convention: str) -> FitResult:
    def fit() -> FitResult:
        table = laws.Table.read(rows.drop(columns="family"), convention=convention)
        return laws.fit(table, "isoflop")

    return attempt("isoflop", fit, needs="" if len(rows) else "no runs")


def _paired_draws(
    rows: pd.DataFrame, profiles: dict[str, FitResult], convention: str
) -> np.ndarray | None:
    """Draws of the difference of exponents, cooldowns less cosines, with the same seeds drawn for both."""
    cosine, cooldown = (
        seed_draws(
            rows[rows["family"] == name].drop(columns="family"),
            "params",
            profiles[name],
            convention,
        )
        for name in SCHEDULES
    )
    return None if cosine is None or cooldown is None else paired_slopes(cooldown, cosine)


def _exponent(schedule: str, fit: FitResult) -> Estimate:
    name = f"a_{schedule}"
    if not fit.failure and len(fit.details["frontier"]["flops"]) < LEAST_BUDGETS:
        why = f"fewer than {LEAST_BUDGETS} budgets have a usable profile"
        return Estimate(name=name, undecided_because=why)
    return exponent(fit, name=name)


def _spent(grid: pd.DataFrame) -> dict[str, dict[float, float]]:
    """FLOPs that the runs executed themselves: those of a cooldown do not include its trunk."""
    share = 1 - grid["start_step"].astype(float) / grid["steps"]
    flops = grid["flops_exact"] * share
    own = flops.groupby([grid["family"], grid["budget"].fillna(0.0)]).sum()
    return {name: dict(own[name]) for name in (TRUNK, *SCHEDULES) if name in own.index}


def _flops_ratio(spent: dict[str, dict[float, float]], missing: int) -> Estimate:
    total = {schedule: sum(parts.values()) for schedule, parts in spent.items()}
    ratio = None
    if total.get(COSINE):
        ratio = float((total.get(TRUNK, 0.0) + total.get(COOLDOWN, 0.0)) / total[COSINE])
    why = f"{plural(missing, 'run')} without a result" if missing else OWN_COUNT
    return Estimate(name="flops_ratio", value=ratio, undecided_because=why)


def _mean_gap(losses: pd.DataFrame, steps: float) -> Estimate:
    """Mean over cells of cooldown less cosine, on the seeds that every cell has.

    Cooldowns from one trunk share its noise, so each size and seed counts once: a size's mean over its
    budgets has a variance between seeds, and the variances of the sizes add up (with Satterthwaite's
    degrees of freedom).
    """
    if not len(losses):
        return Estimate(name="loss_difference", undecided_because=few_seeds(0))
    wide = losses.assign(gap=losses[COOLDOWN] - losses[COSINE]).pivot_table(
        index=["budget", "params"], columns="seed", values="gap"
    )
    # A seed that has just begun leaves with its few cells, not the cells that it has not reached.
    counts = wide.notna().sum()
    wide = wide[counts.index[counts > counts.max() / 2]].dropna()
    by_size, seeds = wide.groupby("params"), wide.shape[1]
    value, interval = float(wide.to_numpy().mean()), None
    if seeds >= LEAST_SEEDS:
        share = (by_size.size() / len(wide)).to_numpy()
        parts = share**2 * by_size.mean().var(axis=1, ddof=1).to_numpy() / seeds
        freedom = (seeds - 1) * parts.sum() ** 2 / max((parts**2).sum(), 1e-300)
        quantile = float(student_quantile(0.5 + LEVEL / 2, max(freedom, 1.0)))
        half = quantile * math.sqrt(parts.sum())
        interval = (value - half, value + half)
    return Estimate(
        name="loss_difference",
        value=value,
        interval=interval,
        undecided_because=few_seeds(seeds) or _short(steps),
        n=len(wide),
        seeds=seeds,
    )


def _swept(table: pd.DataFrame) -> pd.DataFrame:
    """Runs of the cell at several learning rates: schedule, lr, seed, steps, loss."""
    swept = table[table["family"].str.endswith(SWEPT) & (table["status"] == "done")]
    if not len(swept):
        return pd.DataFrame(columns=["schedule", "lr", "seed", "steps", "loss"])
    schedule = swept["family"].str.removesuffix(SWEPT)
    swept = swept.assign(schedule=schedule, lr=swept["peak_lr"].astype(float))
    return swept[["schedule", "lr", "seed", "steps", "loss"]].astype({"loss": float})


def _best_rates(swept: pd.DataFrame) -> Estimate:
    name, ratios = "best_lr_ratio", []
    if not len(swept):
        why = "no cell was trained at several learning rates"
        return Estimate(name=name, undecided_because=why)
    for _, group in swept.groupby("seed"):
        best = {
            schedule: best_rate(part["lr"].to_numpy(), part["loss"].to_numpy())
            for schedule, part in group.groupby("schedule")
        }
        ratios.append(math.log(best.get(COOLDOWN, math.nan) / best.get(COSINE, math.nan)))
    known = [ratio for ratio in ratios if math.isfinite(ratio)]
    if len(known) < len(ratios):
        why = (
            f"in {len(ratios) - len(known)} of {plural(len(ratios), 'seed')} the lowest loss is at the "
            f"edge of the learning rates that were tried"
        )
        return Estimate(name=name, undecided_because=why, seeds=len(ratios))
    few, interval = few_seeds(len(known)), None
    if not few and (edges := interval_of_mean(known)) is not None:
        interval = (math.exp(edges[0]), math.exp(edges[1]))
    return Estimate(
        name=name,
        value=math.exp(float(np.mean(known))),
        interval=interval,
        undecided_because=few or _short(float(swept["steps"].median())),
        seeds=len(known),
    )


def _short(steps: float) -> str:
    """Why runs of so few updates cannot test what the paper found in long ones."""
    if steps >= LEAST_STEPS:
        return ""
    return (
        f"the runs take {steps:,.0f} updates (median), where the paper's take 6,600 and more, and "
        f"which rate and schedule suit a run changes with its length"
    )
