"""IsoFLOP profiles: Approach 2 of Hoffmann et al. 2022 (section 3.2, Fig. 3), under every convention.

The runs of a budget have equal FLOPs under one convention of counting only. Under another convention
each budget is restated (`lmscale.studies.restate`).
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, Unpack

import numpy as np
import pandas as pd

from lmscale import laws
from lmscale.flops import CONVENTIONS
from lmscale.laws import FitResult, Profile, Redrawn, paired_slopes
from lmscale.studies.estimate import Basis, Estimate, undecided
from lmscale.studies.exponents import LEAST_BUDGETS, difference, exponent
from lmscale.studies.fits import attempt, refused
from lmscale.studies.groups import by_number
from lmscale.studies.registry import register
from lmscale.studies.restate import Restated, native_convention, restate
from lmscale.studies.results import Results
from lmscale.studies.text import text_spread
from lmscale.wording import listed, plural, statuses

__all__ = [
    "Family",
    "Isoflop",
    "approach_2",
    "minus_approach_2",
    "study",
    "tokens_per_param",
    "usable_runs",
]

NAMES = ("a", *(f"a_{convention}" for convention in CONVENTIONS))
NAMES += ("tokens_per_param_exponent", "tokens_per_param", "kaplan_minus_native")
NO_BUDGETS = "the runs of this experiment carry no budget of FLOPs"
NO_EXPONENT = "the profiles give no exponent"


@dataclass(frozen=True)
class Family:
    """One family's profiles.

    Attributes:
      declared: budgets that the experiment declares for it.
      native: the convention in which its budgets were set.
      fits: convention -> fit, the native one first. A fit may be refused (`FitResult.failure`), or
        have profiles and no exponent.
      restated: convention -> the rows that were fitted.
      windows: way to read the minima -> exponents (`laws.window_spread`).
      text: standard deviation of the exponent of N over draws of the held-out documents.
      paired: whether all fits read the same redrawn losses.
    """

    name: str
    runs: pd.DataFrame = field(repr=False)
    declared: int
    native: str
    fits: dict[str, FitResult]
    restated: dict[str, Restated] = field(default_factory=dict, repr=False)
    windows: dict[str, dict[str, float]] = field(default_factory=dict)
    text: float | None = None
    paired: bool = False

    @property
    def fit(self) -> FitResult:
        """The fit under the native convention."""
        return self.fits[self.native]

    @property
    def profiles(self) -> tuple[Profile, ...]:
        return self.fit.details.get("profiles", ())

    @property
    def usable(self) -> list[Profile]:
        """The profiles that the power law is fitted to."""
        return [profile for profile in self.profiles if profile.ok]

    @property
    def seeds(self) -> int:
        return int(self.runs["seed"].nunique()) if len(self.runs) else 0

    def exponent(self, symbol: str = "N", convention: str = "", name: str = "") -> Estimate:
        """The exponent of N_opt or D_opt in C, by default under the native convention."""
        fit, why = self.fits.get(convention or self.native, self.fit), self.why_no_exponent
        if fit is not self.fit:
            why = fit.warnings[-1] if fit.warnings else NO_EXPONENT
        return exponent(fit, symbol, name=name, missing=why, of=self.name, n=len(self.runs))

    @property
    def why_no_exponent(self) -> str:
        """What the profiles of the native convention lack."""
        if self.fit.failure:
            return self.fit.failure
        flags = Counter(p.flag for p in self.profiles if not p.ok)
        names = {"not convex": "a parabola that opens downwards"}
        bad = [f"{n} with {names.get(flag, flag)}" for flag, n in flags.most_common()]
        waiting = self.declared - len(self.profiles)
        bad += [f"{waiting} without results"] if waiting > 0 else []
        of = f"{len(self.usable)} of {plural(self.declared, 'budget')} with a usable profile"
        of += f" ({listed(bad)})" if bad else ""
        return f"{of}, where a power law needs {LEAST_BUDGETS}"


@dataclass(frozen=True)
class Isoflop:
    """What `study` finds.

    Attributes:
      families: the Transformer first; empty where no run carries a budget.
      estimates: of the first family. "a" (native convention) and "a_CONVENTION": N_opt ~ C^a;
        "tokens_per_param_exponent": of D_opt / N_opt in C; "tokens_per_param" at the largest budget
        with a usable profile (`at`); "kaplan_minus_native": difference of two exponents.
    """

    families: tuple[Family, ...]
    estimates: dict[str, Estimate]

    @property
    def fits(self) -> dict[str, FitResult]:
        return {
            f"{family.name}/{convention}": fit
            for family in self.families
            for convention, fit in family.fits.items()
        }


@register("isoflop")
def study(results: Results) -> Isoflop:
    """N_opt and D_opt over compute under each convention (Hoffmann et al. 2022, Approach 2).

    found = isoflop.study(Results.read("results/isoflop"))
    print(found.estimates["a"], found.families[0].profiles[0].n_opt)
    """
    if not _has_budgets(results):
        return Isoflop((), undecided(NAMES, NO_BUDGETS))
    families = tuple(_family(results, name) for name in results.families)
    return Isoflop(families, {one.name: one for one in _estimates(families[0])})


def _has_budgets(results: Results) -> bool:
    return "budget" in results.table and bool(results.table["budget"].notna().any())


def approach_2(results: Results, family: str) -> FitResult:
    """The profiles of one family under the convention in which its budgets were set."""
    return _approach_2(results, family)[0]


def _approach_2(results: Results, family: str) -> tuple[FitResult, Redrawn | None, list[str]]:
    """The profiles, the redrawn losses of their draws, and the names of the runs."""
    if not _has_budgets(results):
        return refused("isoflop", NO_BUDGETS), None, []
    runs = usable_runs(results, family)
    if not len(runs):
        return refused("isoflop", "no run has ended well yet"), None, []
    native = _native(results, family, runs)
    return native.fit, native.redrawn, runs["run"].tolist()


def minus_approach_2(
    results: Results,
    a: Estimate,
    again: Callable[[Redrawn, list[str]], FitResult],
    *,
    seeds: int,
) -> Estimate:
    """The exponent of N of another approach less that of the profiles of the same family.

    Args:
      again: makes the other fit once more, with the redrawn losses of the named runs.
    """
    name, missing = "a_minus_approach_2", "one of the two approaches gives no exponent"
    fit, redrawn, runs = _approach_2(results, a.of)
    other, draws = exponent(fit), None
    if a.is_known and a.interval is not None and other.is_known and redrawn is not None:
        draws = _drawn_exponent(again(redrawn, runs)) - _drawn_exponent(fit)
    return difference(
        name, a, other, missing, seeds=None if draws is not None else seeds, draws=draws
    )


def _drawn_exponent(fit: FitResult) -> np.ndarray:
    """[draw] the exponent of N, spread so that the percentiles of the draws give intervals of the fit's level."""
    alpha, beta = fit.draws.get("alpha"), fit.draws.get("beta")
    draws = fit.draws["a"] if alpha is None else beta / (alpha + beta)
    value = next(iter(fit.exponents.values()))["N"]
    return laws.widened(draws, value, fit.draw_level or fit.level, fit.level)


def tokens_per_param(profile: Profile, **rest: Unpack[Basis]) -> Estimate:
    """D_opt / N_opt at a usable profile's minimum."""
    draws = np.exp(profile.draws[1] - profile.draws[0]) if profile.draws.size else None
    basis: Basis = {**rest, "at": (profile.flops,)}
    return Estimate.of_draws("tokens_per_param", profile.d_opt / profile.n_opt, draws, **basis)


# --- fitting ------------------------------------------------------------------------------------


def usable_runs(results: Results, family: str) -> pd.DataFrame:
    """One family's rows that its profiles are fitted to, in the order of the fit's rows."""
    usable = results.usable
    return usable[usable["family"] == family].dropna(subset=["budget"]).reset_index(drop=True)


def _lowest(runs: pd.DataFrame) -> dict[float, int]:
    """budget -> index of the run of the lowest loss."""
    return {
        budget: int(part.index.to_numpy()[part["loss"].argmin()])
        for budget, part in by_number(runs, "budget")
    }


def _family(results: Results, name: str) -> Family:
    runs, table = usable_runs(results, name), results.table[results.table["family"] == name]
    declared = int(table["budget"].nunique())
    if not len(runs):
        native = results.experiment.get("fields", {}).get("convention", "standard")
        why = f"no run has ended well yet ({statuses(table['status'])})"
        return Family(name, runs, declared, native, {native: refused("isoflop", why)})
    native, redrawn, view, fit = _native(results, name, runs)
    anchors = _lowest(runs)
    fits, restated, windows, text = {native: fit}, {native: view} if view else {}, {}, None
    if view and not fit.failure:
        anchors = _best_sizes(runs, fit, anchors)
        windows = laws.window_spread(laws.Table.read(view.rows, convention=native))
        text = _spread_over_texts(results, runs, view, native)
    for convention in CONVENTIONS:
        if convention == native:
            continue
        if not fit.exponents:
            why = "the profiles of the grid's own count give no exponent"
            fits[convention] = refused("isoflop", why)
            continue
        view, fits[convention] = _fit(runs, convention, anchors, redrawn)
        restated |= {convention: view} if view else {}
    paired = redrawn is not None
    return Family(name, runs, declared, native, fits, restated, windows, text, paired)


class _Native(NamedTuple):
    """The profiles under the convention in which the budgets were set.

    Attributes:
      convention: its name.
      redrawn: the losses of the runs, drawn once for the fits under every convention.
      view: the rows that were fitted; None where the runs cannot be restated.
      fit: the profiles.
    """

    convention: str
    redrawn: Redrawn | None
    view: Restated | None
    fit: FitResult


def _native(results: Results, family: str, runs: pd.DataFrame) -> _Native:
    """The native profiles of a family's usable runs. Other studies read this fit too, so it is made once."""

    def make() -> _Native:
        convention, anchors = native_convention(runs, CONVENTIONS), _lowest(runs)
        redrawn = _redraw(runs, convention, anchors)
        return _Native(convention, redrawn, *_fit(runs, convention, anchors, redrawn))

    return results.once(("isoflop", family), make)


def _redraw(runs: pd.DataFrame, native: str, anchors: dict[float, int]) -> Redrawn | None:
    """The losses of the runs, drawn once for the fits under every convention; None without noise."""
    try:
        return laws.redraw_losses(
            laws.Table.read(restate(runs, native, anchors).rows, convention=native)
        )
    except (ValueError, np.linalg.LinAlgError):
        # The fit of the same rows says why.
        return None


def _fit(
    runs: pd.DataFrame, convention: str, anchors: dict[float, int], redrawn: Redrawn | None
) -> tuple[Restated | None, FitResult]:
    """The rows and the fit of the profiles under one convention, on the redrawn losses of the runs."""
    try:
        view = restate(runs, convention, anchors)
    except ValueError as error:
        return None, refused("isoflop", str(error))

    def fit() -> FitResult:
        given = view.redrawn(runs["loss"].to_numpy(float), redrawn) if redrawn else None
        table = laws.Table.read(view.rows, convention=convention)
        return laws.fit(table, "isoflop", redrawn=given)

    return view, _without_line_through_two(attempt("isoflop", fit))


def _without_line_through_two(fit: FitResult) -> FitResult:
    """The fit without its exponents, where fewer than three budgets have a usable profile."""
    if fit.failure or len(fit.details["frontier"]["flops"]) >= LEAST_BUDGETS:
        return fit
    usable = plural(len(fit.details["frontier"]["flops"]), "budget")
    needs = f"and a power law that can be wrong needs {LEAST_BUDGETS}"
    warnings = [text for text in fit.warnings if "usable profile" not in text]
    return dataclasses.replace(
        fit,
        parameters={},
        intervals={},
        exponents={},
        exponent_intervals={},
        draws={},
        converged=False,
        warnings=(*warnings, f"no exponent: {usable} with a usable profile, {needs}"),
    )


def _best_sizes(runs: pd.DataFrame, fit: FitResult, lowest: dict[float, int]) -> dict[float, int]:
    """budget -> index of the run whose size is nearest to the profile's minimum."""
    best = dict(lowest)
    for profile in fit.details["profiles"]:
        if profile.ok:
            index = profile.row - 1
            nearest = int(index[np.argmin(np.abs(np.log(profile.params / profile.n_opt)))])
            best[float(runs["budget"][nearest])] = nearest
    return best


def _spread_over_texts(
    results: Results, runs: pd.DataFrame, view: Restated, native: str
) -> float | None:
    """Standard deviation of the exponent of N over draws of the documents; None where unknown."""
    if view.moved:
        return None

    def exponents_of(losses: np.ndarray) -> np.ndarray:
        try:
            return laws.exponents_again(laws.Table.read(view.rows, convention=native), losses)
        except laws.TableError:
            return np.full(len(losses), np.nan)

    return text_spread(results, runs["run"].tolist(), exponents_of)


# --- estimates ----------------------------------------------------------------------------------


def _estimates(family: Family) -> list[Estimate]:
    """The estimates of a family: the first one, the Transformer where there is one."""
    found = [family.exponent(name="a")]
    found += [family.exponent(convention=c, name=f"a_{c}") for c in CONVENTIONS]
    fit = family.fit
    basis: Basis = {"of": family.name, "n": len(family.runs)}
    growth = _unknown("tokens_per_param_exponent", NO_EXPONENT, basis)
    if fit.exponents:
        draws = fit.draws["b"] - fit.draws["a"] if fit.draws else None
        value = fit.parameters["b"] - fit.parameters["a"]
        growth = Estimate.of_draws(growth.name, value, draws, **basis)
    why = "no profile has a minimum inside the sizes that were run"
    ratio = _unknown("tokens_per_param", why, basis)
    if family.usable:
        ratio = tokens_per_param(family.usable[-1], **basis)
    kaplan = family.fits.get("kaplan", fit)
    paired = bool(kaplan.draws and fit.draws) and family.paired
    # Draws of the runs hold what another seed would change: in three seeds of the quickstart this difference
    # varied by 0.005, where the interval of one seed reached 0.04 to either side.
    change = difference(
        "kaplan_minus_native",
        family.exponent(convention="kaplan"),
        family.exponent(),
        "one of the two counts gives no exponent",
        seeds=None if paired else family.seeds,
        draws=paired_slopes(kaplan, fit) if paired else None,
    )
    return [*found, growth, ratio, change]


def _unknown(name: str, why: str, basis: Basis) -> Estimate:
    known: Basis = {**basis, "undecided_because": why}
    return Estimate(name=name, **known)
