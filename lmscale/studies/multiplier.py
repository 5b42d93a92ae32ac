"""The compute multiplier: how many times the compute one architecture needs to reach another's loss.

Each family has a frontier, L(C) = L_inf + (C_c / C)^alpha_C through the minima of its IsoFLOP profiles
(Hoffmann et al. 2022, Approach 2). At a loss L that two frontiers reach,

    m(L) = C_other(L) / C_base(L).

If m is the same at every loss, one number describes it: then both frontiers have the same exponent, and a
joint fit with one L_inf and one alpha_C gives m (`lmscale.laws.compute_multiplier`). Whether the exponents
are equal is tested. C is counted as the budgets of the grid were set.

The draws contain the noise of each family's runs, the choice of window and shape, and the scatter of the
minima. They are independent between the two families, except for the text: all runs are scored on the same
windows, so resampled documents move both frontiers together, and their common part cancels.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from lmscale.laws import FitResult, Profile
from lmscale.laws.compute_multiplier import (
    Minima,
    fit_jointly,
    log_compute,
    response,
)
from lmscale.laws.known import median_of_known
from lmscale.laws.result import interval as interval_of_draws
from lmscale.laws.windows import resample_documents
from lmscale.studies.estimate import LEVEL, Basis, Estimate
from lmscale.studies.exponents import home_convention
from lmscale.studies.isoflop import approach_2, usable_runs
from lmscale.studies.rate_search import SearchedCell, searched_cells
from lmscale.studies.registry import register
from lmscale.studies.results import Results
from lmscale.studies.text import LEAST_DOCUMENTS, windows_of
from lmscale.sweep.result_table import cell_columns

__all__ = ["Comparison", "Frontier", "Multiplier", "compare", "study"]

#: Losses between the ends of the common range at which the multiplier is read.
LOSSES = 41
#: Draws of the joint fit, and of the documents.
JOINT_DRAWS, TEXT_DRAWS = 1000, 200
#: Fewest rates of a search.
LEAST_RATES = 3
ONE_FAMILY = "these runs are of one architecture"


@dataclass(frozen=True)
class Frontier:
    """One family's loss along its best sizes.

    Attributes:
      fit: of `approach_2`; refused, or without exponents, where the profiles give no frontier.
      cells: those in which several learning rates were tried.
      rate_cost: how many nats the rule's rate lies above the best rate, median over these cells; 0
        where every cell takes its best rate, NaN where no rates were tried.
    """

    family: str
    fit: FitResult
    runs: pd.DataFrame = field(repr=False)
    cells: tuple[SearchedCell, ...] = field(repr=False)
    rate_cost: float

    @property
    def profiles(self) -> list[Profile]:
        """The profiles with a minimum, the smallest budget first."""
        return [p for p in self.fit.details.get("profiles", ()) if p.ok]

    @property
    def minima(self) -> Minima:
        return Minima.of_profiles(self.profiles)

    @property
    def curve(self) -> dict[str, float]:
        """alpha_C, C_c and L_inf."""
        return self.fit.details["frontier_loss"]["parameters"]

    @property
    def draws(self) -> dict[str, np.ndarray]:
        return self.fit.details["frontier_loss"]["draws"]

    @property
    def reach(self) -> tuple[float, float]:
        """The lowest and the highest loss of its minima."""
        losses = [profile.loss_opt for profile in self.profiles]
        return min(losses), max(losses)

    @property
    def missing(self) -> str:
        """Why there is no frontier; empty where there is one."""
        if self.fit.failure:
            return self.fit.failure
        if not self.fit.exponents:
            return self.fit.warnings[-1] if self.fit.warnings else "the profiles give no exponent"
        if not self.fit.draws:
            return "the noise of its runs is unknown"
        return ""

    @property
    def unsearched(self) -> str:
        """Why its learning rates are not tuned; empty where they are."""
        searched = [cell for cell in self.cells if len(cell.losses) >= LEAST_RATES]
        if not searched:
            return "its learning rates were not searched"
        budgets = {cell.columns["budget"] for cell in searched}
        # A profile has the FLOPs that its runs cost, which differ from the budget by a few steps.
        rows = [profile.row[0] - 1 for profile in (self.profiles[0], self.profiles[-1])]
        if not set(self.runs["budget"].iloc[rows]) <= budgets:
            return "its learning rates were not searched at its smallest and its largest budget"
        return ""


@dataclass(frozen=True)
class Comparison:
    """Two frontiers.

    Attributes:
      losses: [loss], from the highest to the lowest that both reach.
      extrapolated: whether no loss is reached by both; `losses` then lie between the two ranges.
      base_flops: compute at which the base reaches each loss, [loss].
      value, low, high: the multiplier at each loss and the edges of its 95% band, [loss].
      at: the loss in the middle of the range, by the logarithm of compute.
      middle: the multiplier at `at`.
      growth: g of m ~ C_base^g over the range: 0 for one multiplier at every loss.
      exponents: alpha_base / alpha_other - 1 with a common L_inf; `one_exponent` asks whether it may be 0.
      joint: the multiplier of the fit with one L_inf and one exponent.
      text: standard deviation of ln m at `at` over draws of the documents; None where unknown.
    """

    base: Frontier
    other: Frontier
    losses: np.ndarray
    extrapolated: bool
    base_flops: np.ndarray
    value: np.ndarray
    low: np.ndarray
    high: np.ndarray
    at: float
    middle: Estimate
    growth: Estimate
    exponents: Estimate
    joint: Estimate
    text: float | None

    @property
    def one_exponent(self) -> bool:
        """Whether the minima are consistent with one exponent for both."""
        return self.exponents.may_be(0.0)


@dataclass(frozen=True)
class Multiplier:
    """What `study` finds.

    Attributes:
      frontiers: the base first: the Transformer where there is one.
      comparisons: of each other family that has a frontier with the base.
      estimates: for every family NAME beside the base: "NAME", the multiplier in the middle of the range;
        "NAME_growth"; "NAME_joint"; "NAME_exponents".
    """

    convention: str
    frontiers: tuple[Frontier, ...]
    comparisons: tuple[Comparison, ...]
    estimates: dict[str, Estimate]
    fits: dict[str, FitResult] = field(default_factory=dict)

    @property
    def base(self) -> str:
        return self.frontiers[0].family if self.frontiers else ""


@register("multiplier")
def study(results: Results) -> Multiplier:
    """The compute multiplier of every architecture against the first.

    found = multiplier.study(Results.read("results/isoflop"))
    print(found.estimates["lstm"].value, found.estimates["lstm"].interval)
    """
    convention = home_convention(results.usable)
    if len(results.families) < 2:
        return Multiplier(convention, (), (), {})
    frontiers = tuple(_frontier(results, name) for name in results.families)
    base, *others = frontiers
    comparisons: list[Comparison] = []
    estimates: dict[str, Estimate] = {}
    for other in others:
        missing = [f"{f.family}: {f.missing}" for f in (base, other) if f.missing]
        if missing:
            estimates |= _undecided(other.family, missing[0])
            continue
        comparison = compare(base, other, _text_shifts(results, base, other))
        comparisons.append(comparison)
        parts = (comparison.middle, comparison.growth, comparison.joint, comparison.exponents)
        estimates |= {one.name: one for one in parts}
    return Multiplier(convention, frontiers, tuple(comparisons), estimates)


def _undecided(family: str, why: str) -> dict[str, Estimate]:
    names = [f"{family}{part}" for part in ("", "_growth", "_joint", "_exponents")]
    return {name: Estimate(name=name, undecided_because=why) for name in names}


def _frontier(results: Results, family: str) -> Frontier:
    cells = tuple(searched_cells(results, family))
    runs = usable_runs(results, family)
    costs = [cost for cell in cells if (cost := _rate_cost(cell, runs)) is not None]
    rate_cost = float(np.median(costs)) if costs else math.nan
    return Frontier(family, approach_2(results, family), runs, cells, rate_cost)


def _rate_cost(cell: SearchedCell, runs: pd.DataFrame) -> float | None:
    """How many nats the profiles lose by their learning rate, compared with the best rate that was tried."""
    same = np.ones(len(runs), bool)
    for name in cell_columns(runs):
        same &= (runs[name] == cell.columns[name]).to_numpy()
    factors = runs["lr_factor"][same].unique()
    return cell.extra.get(float(factors[0])) if len(factors) else None


# --- two frontiers ------------------------------------------------------------------------------


def compare(base: Frontier, other: Frontier, shifts: Shifts | None = None) -> Comparison:
    """The multiplier of `other` against `base`, both of which have a frontier.

    Args:
      shifts: how draws of the documents move the minima (`_text_shifts`).
    """
    low, high = (edge([f.reach[i] for f in (base, other)]) for i, edge in ((0, max), (1, min)))
    extrapolated = low >= high
    ends = np.array([max(low, high), min(low, high)])
    # Evenly spaced in the compute of the base.
    span = log_compute(base.curve, ends)
    losses = _loss(base.curve, np.linspace(span[0], span[1], LOSSES))
    losses[[0, -1]] = ends
    drawn, theirs = log_compute(base.draws, losses), log_compute(other.draws, losses)
    # Fits with the same seed draw the same random numbers, so equal indices are correlated: shuffle one.
    log_m = theirs[:, _generator(base, other).permutation(theirs.shape[1])] - drawn
    log_m, text = _with_text(log_m, base, other, losses, shifts)
    middle = LOSSES // 2
    value = np.exp(median_of_known(log_m, axis=1))
    edges = interval_of_draws(np.exp(log_m), LEVEL, axis=1)
    growth = (log_m[-1] - log_m[0]) / (drawn[-1] - drawn[0])
    why = _undecided_because(base, other, extrapolated, log_m[middle])
    basis: Basis = {
        "of": other.family,
        "n": len(base.profiles) + len(other.profiles),
        "undecided_because": why,
        "at": (float(losses[0]), float(losses[-1])),
    }
    name = other.family
    exponents, joint = _jointly(base, other, basis)
    at_middle: Basis = {**basis, "at": (float(losses[middle]),)}
    return Comparison(
        base=base,
        other=other,
        losses=losses,
        extrapolated=extrapolated,
        base_flops=np.exp(log_compute(base.curve, losses)),
        value=value,
        low=edges[0],
        high=edges[1],
        at=float(losses[middle]),
        middle=Estimate.of_draws(name, value[middle], np.exp(log_m[middle]), **at_middle),
        growth=Estimate.of_draws(f"{name}_growth", float(median_of_known(growth)), growth, **basis),
        exponents=exponents,
        joint=joint,
        text=text,
    )


def _generator(base: Frontier, other: Frontier) -> np.random.Generator:
    """A random generator seeded by the results: equal results give equal draws, whatever other families there are."""
    losses = np.concatenate([base.minima.loss, other.minima.loss]).round(9)
    return np.random.default_rng(zlib.crc32(losses.tobytes()))


def _loss(curve: dict[str, float], log_flops: np.ndarray) -> np.ndarray:
    return curve["L_inf"] + (curve["C_c"] / np.exp(log_flops)) ** curve["alpha_C"]


def _undecided_because(
    base: Frontier, other: Frontier, extrapolated: bool, log_m: np.ndarray
) -> str:
    """Why the multiplier cannot test a claim: both families must be tuned, and reach a common loss."""
    for one in (base, other):
        if one.unsearched:
            return f"{one.family}: {one.unsearched}, and only tuned rivals are compared"
    if extrapolated:
        return "the two frontiers reach no loss in common, so it is extrapolated"
    half = np.subtract(*interval_of_draws(log_m, LEVEL)[::-1]) / 2
    gap = abs(_rate_gap(base) - _rate_gap(other))
    if gap > half:
        return (
            f"the learning rates that the profiles take cost a factor of {math.exp(gap):.2g} more "
            "compute on one side than the best of the search, which is more than the interval"
        )
    return ""


def _rate_gap(frontier: Frontier) -> float:
    """`rate_cost` as a factor of compute, in the middle of the frontier; its ln."""
    minima, curve = frontier.minima, frontier.curve
    excess = float(np.mean(minima.loss)) - curve["L_inf"]
    return frontier.rate_cost / (curve["alpha_C"] * excess)


def _jointly(base: Frontier, other: Frontier, basis: Basis) -> tuple[Estimate, Estimate]:
    """The test of one exponent, and the multiplier by the joint fit, undecided where it fails."""
    minima = [base.minima, other.minima]
    rng = _generator(base, other)
    apart = fit_jointly(minima, JOINT_DRAWS, rng, shared_exponent=False).growth(1)
    one = fit_jointly(minima, JOINT_DRAWS, rng, shared_exponent=True)
    name = other.family
    exponents = Estimate.of_draws(f"{name}_exponents", float(np.median(apart)), apart, **basis)
    if not exponents.may_be(0.0) and not basis.get("undecided_because"):
        why = "the frontiers have different exponents, so no one multiplier describes them"
        basis = {**basis, "undecided_because": why}
    drawn = np.exp(one.log_multiplier(1))
    return exponents, Estimate.of_draws(f"{name}_joint", float(np.median(drawn)), drawn, **basis)


# --- the text -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shifts:
    """How draws of the documents move the losses at the minima of two families, [budget, draw]."""

    base: np.ndarray
    other: np.ndarray


def _text_shifts(results: Results, base: Frontier, other: Frontier) -> Shifts | None:
    """The shifts; None where losses by window are unknown, or come from too few documents."""
    runs = [*base.runs["run"], *other.runs["run"]]
    found = windows_of(results, runs)
    if found is None or len(set(found[1].tolist())) < LEAST_DOCUMENTS:
        return None
    losses, documents = found
    drawn = np.stack(list(resample_documents(losses, documents, TEXT_DRAWS)), axis=1)
    moved = drawn - losses.mean(axis=1, keepdims=True)
    n = len(base.runs)
    return Shifts(_at_minima(base, moved[:n]), _at_minima(other, moved[n:]))


def _at_minima(frontier: Frontier, moved: np.ndarray) -> np.ndarray:
    """The losses at the minima [budget, draw], for the losses of the runs in each draw [run, draw]."""
    rows = []
    for p in frontier.profiles:
        index, u = p.row[p.used] - 1, np.log(p.params[p.used]) - p.center
        solve = np.linalg.pinv(np.stack([np.ones_like(u), u, u**2], axis=1))
        at = math.log(p.n_opt) - p.center
        rows.append(np.array([1.0, at, at**2]) @ solve @ moved[index])
    return np.stack(rows)


def _with_text(
    log_m: np.ndarray, base: Frontier, other: Frontier, losses: np.ndarray, shifts: Shifts | None
) -> tuple[np.ndarray, float | None]:
    """ln m [loss, draw] with a draw of the documents added to each, and the spread that this gives in the middle."""
    if shifts is None:
        return log_m, None
    moved = _moves(other, losses, shifts.other) - _moves(base, losses, shifts.base)
    picks = np.random.default_rng(0).integers(moved.shape[1], size=log_m.shape[1])
    return log_m + moved[:, picks], float(np.std(moved[LOSSES // 2], ddof=1))


def _moves(frontier: Frontier, losses: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """ln C at each loss [loss, draw] when the minima move by `shifts` [budget, draw]."""
    tau = frontier.fit.details["scatter"]["loss"]
    tau = tau if math.isfinite(tau) else 0.0
    return response(frontier.minima, frontier.curve, tau, losses) @ shifts
