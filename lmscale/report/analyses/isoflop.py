"""IsoFLOP profiles on the page: Approach 2 of Hoffmann et al. 2022, under every convention."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lmscale import laws
from lmscale.flops import CONVENTIONS
from lmscale.laws import FitError, FitResult, Profile, TableError
from lmscale.report import caveats, style
from lmscale.report.published import EXPONENTS
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.studies.exponents import LEAST_BUDGETS, difference, exponent
from lmscale.studies.fits import refused
from lmscale.studies.restate import Restated, native_convention, restate
from lmscale.studies.results import Results
from lmscale.studies.text import text_spread
from lmscale.wording import (
    between,
    family_name,
    listed,
    number,
    plural,
    power_of_ten,
    si,
    statuses,
    with_interval,
)

__all__ = ["analyse", "approach_2", "slug"]

NAME = "isoflop"
TITLE = "IsoFLOP profiles: the best model size for a budget"

#: What N is called under each convention.
_N_NAMES = {
    "kaplan": "parameters without embeddings",
    "chinchilla": "parameters with embeddings",
    "standard": "parameters with the head",
    "exact": "all parameters",
}


@dataclass(frozen=True)
class _Family:
    """One family's fits: convention -> fit and how its rows were made, or why there is none."""

    name: str
    runs: pd.DataFrame
    #: Budgets that the experiment declares for it.
    declared: int
    native: str
    fits: dict[str, FitResult]
    restated: dict[str, Restated]
    failures: dict[str, str]
    windows: dict[str, dict[str, float]]
    #: Standard deviation of the exponent of N over draws of the held-out documents.
    text: float | None = None

    @property
    def fit(self) -> FitResult | None:
        return self.fits.get(self.native)

    @property
    def exponents(self) -> dict[str, float] | None:
        return self.fit.exponents.get(self.native) if self.fit else None


def analyse(study: Results) -> Section:
    """Profiles and frontier of each family, and the exponent under each convention."""
    if "budget" not in study.table or not study.table["budget"].notna().any():
        return Section(
            name=NAME,
            title=TITLE,
            finding="No profiles: the runs of this experiment carry no budget of FLOPs.",
        )
    families = []
    for name in study.families:
        if study.table["family"].eq(name).any():
            families.append(_fit_family(study, name))
    fitted = [family for family in families if family.fit is not None]
    charts = [_triptych(study, family) for family in fitted]
    if any(fit.exponents for family in families for fit in family.fits.values()):
        charts.append(_forest(families))
    warnings = [w for family in families for w in _warnings(study, family)]
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(study, families),
        conclusive=any(family.exponents and not _too_noisy(family) for family in families),
        details=_details(families),
        key_numbers=[k for family in families for k in _key_numbers(family)],
        charts=charts,
        grids=[*_exponent_grid(families), *[_minima_grid(family) for family in fitted]],
        fits={
            f"{family.name}/{convention}": fit
            for family in families
            for convention, fit in {
                **family.fits,
                **{c: refused("isoflop", why) for c, why in family.failures.items()},
            }.items()
        },
        measures=_measures(families[0]) if families else {},
        warnings=warnings,
    )


def approach_2(study: Results, family: str) -> FitResult | None:
    """The profiles of one family in the count in which its budgets were set, for other analyses."""
    if "budget" not in study.table or not study.table["budget"].notna().any():
        return None
    return _fit_family(study, family).fit


# --- fitting ------------------------------------------------------------------------------------


def _fit_family(study: Results, name: str) -> _Family:
    usable = study.usable
    runs = usable[usable["family"] == name].dropna(subset=["budget"]).reset_index(drop=True)
    declared = int(study.table[study.table["family"] == name]["budget"].nunique())
    fits, restated, failures, windows, text = {}, {}, {}, {}, None
    if not len(runs):
        pending = study.table[study.table["family"] == name]["status"]
        native = study.experiment.get("fields", {}).get("convention", "standard")
        states = statuses(pending)
        failures[native] = f"no run has ended well yet ({states})"
        return _Family(name, runs, declared, native, fits, restated, failures, windows)
    native = native_convention(runs, CONVENTIONS)
    order = [native, *[c for c in CONVENTIONS if c != native]]
    anchors = {
        budget: int(group["loss"].idxmin()) for budget, group in runs.groupby("budget", sort=True)
    }
    for convention in order:
        if convention != native and not (native in fits and fits[native].exponents):
            failures[convention] = "the profiles of the grid's own count give no exponent"
            continue
        try:
            view = restate(runs, convention, anchors)
            table = laws.Table.read(view.rows, convention=convention)
            fit = laws.fit(table, "isoflop")
        except (TableError, FitError, ValueError, np.linalg.LinAlgError) as error:
            failures[convention] = str(error)
            continue
        restated[convention] = view
        fits[convention] = _without_line_through_two(fit)
        if convention == native:
            anchors = _best_sizes(runs, fit, anchors)
            windows = laws.window_spread(table)
            text = _spread_over_texts(study, runs, view, native)
    return _Family(name, runs, declared, native, fits, restated, failures, windows, text)


def _spread_over_texts(
    study: Results, runs: pd.DataFrame, view: Restated, native: str
) -> float | None:
    """Standard deviation of the exponent of N over draws of the documents; None where unknown."""
    if view.moved:
        return None

    def exponent_of(losses: np.ndarray) -> float | None:
        table = laws.Table.read(view.rows.assign(loss=losses), convention=native)
        try:
            return laws.fit(table, "isoflop", bootstrap=0).parameters.get("a")
        except (TableError, FitError):
            return None

    return text_spread(study, runs["run"].tolist(), exponent_of)


def _without_line_through_two(fit: FitResult) -> FitResult:
    """The fit with its exponents taken away where fewer than three budgets hold them."""
    usable = len(fit.details["frontier"]["flops"])
    if usable >= LEAST_BUDGETS:
        return fit
    return dataclasses.replace(
        fit,
        parameters={},
        intervals={},
        exponents={},
        exponent_intervals={},
        draws={},
        converged=False,
        warnings=tuple(w for w in fit.warnings if "usable profile" not in w)
        + (
            (
                f"no exponent: {plural(usable, 'budget')} with a usable profile, "
                f"and a power law that can be wrong needs {LEAST_BUDGETS}"
            ),
        ),
    )


def _seeds(runs: pd.DataFrame) -> int:
    return int(runs["seed"].nunique()) if len(runs) else 0


def _best_sizes(runs: pd.DataFrame, fit: FitResult, lowest: dict[float, int]) -> dict[float, int]:
    """budget -> index of the run whose size is nearest to the profile's minimum."""
    best = dict(lowest)
    for profile in fit.details["profiles"]:
        if profile.ok:
            index = profile.row - 1
            nearest = int(index[np.argmin(np.abs(np.log(profile.params / profile.n_opt)))])
            best[float(runs["budget"][nearest])] = nearest
    return best


# --- words --------------------------------------------------------------------------------------


def _finding(study: Results, families: list[_Family]) -> str:
    good = [family for family in families if family.exponents]
    if not good:
        reasons = []
        for family in families:
            reasons.append(f"{family_name(family.name)}: {_why_no_exponent(family)}")
        return f"No exponent yet. {'; '.join(reasons)}."
    sentences = []
    for family in good:
        a = with_interval(
            family.exponents["N"], _interval(family.fit, "N", family.native), "95% interval"
        )
        growth = 10 ** family.exponents["N"], 10 ** family.exponents["D"]
        if not sentences and _too_noisy(family):
            sentences.append(
                f"Too noisy to tell how the best {family_name(family.name)} grows: N ∝ C^{a}"
            )
        elif not sentences:
            sentences.append(
                f"The best {family_name(family.name)} for a budget grows as N ∝ C^{a}: "
                f"ten times the compute is best spent on {number(growth[0], 2)} times the "
                f"parameters and {number(growth[1], 2)} times the tokens"
            )
        else:
            sentences.append(f"for the {family_name(family.name)} the exponent is {a}")
    interval = _interval(good[0].fit, "N", good[0].native)
    if not _too_noisy(good[0]) and interval and interval[0] <= 0.5 and interval[1] >= 0.73:
        sentences.append("that is too wide an interval to tell Hoffmann's 0.50 from Kaplan's 0.73")
    return "; ".join(sentences) + "."


def _too_noisy(family: _Family) -> bool:
    """Whether the exponent of N could be 0, or 1, or is not known at all."""
    interval = _interval(family.fit, "N", family.native)
    return interval is None or interval[0] <= 0 or interval[1] >= 1


def _why_no_exponent(family: _Family) -> str:
    if family.fit is None:
        return family.failures[family.native]
    profiles = family.fit.details["profiles"]
    flags = pd.Series([p.flag for p in profiles if not p.ok]).value_counts()
    bad = listed([f"{n} with {_a(flag)}" for flag, n in flags.items()])
    usable, waiting = sum(p.ok for p in profiles), family.declared - len(profiles)
    if waiting > 0:
        bad = listed([*([bad] if bad else []), f"{waiting} without results"])
    return (
        f"{usable} of {plural(family.declared, 'budget')} with a usable profile"
        f"{f' ({bad})' if bad else ''}, where a power law needs {LEAST_BUDGETS}"
    )


def _a(flag: str) -> str:
    return {"not convex": "a parabola that opens downwards"}.get(flag, flag)


def _details(families: list[_Family]) -> list[str]:
    paragraphs = []
    for family in families:
        if family.exponents is None:
            continue
        fit, interval = family.fit, _interval(family.fit, "N", family.native)
        holds = [
            f"{p.value:g} ({p.source}, {p.what})"
            for p in EXPONENTS
            if interval and interval[0] <= p.value <= interval[1]
        ]
        relation = (
            f"The interval of the exponent of N contains the published {listed(holds)}."
            if holds
            else "The interval of the exponent of N contains none of the published ones."
        )
        d = with_interval(family.exponents["D"], _interval(fit, "D", family.native))
        text = (
            f"{family_name(family.name)}, counted by the {family.native} convention in which the "
            f"budgets were set: D ∝ C^{d}. {relation}"
        )
        if len(family.windows) > 1:
            values = [w["N"] for w in family.windows.values()]
            text += (
                f" Other ways to read the minima (parabolas over sizes within a factor of 2 up to "
                f"all of them, and Porian's Akima spline) give exponents from "
                f"{between((min(values), max(values)), 2)}."
            )
        if family.text is not None:
            text += (
                f" Scored on other documents of the same kind, the same runs would give an exponent "
                f"that differs by {number(family.text, 1)} (standard deviation over draws of the "
                f"held-out documents)."
            )
        paragraphs.append(text)
    others = [f for f in families if any(c != f.native and f.fits[c].exponents for c in f.fits)]
    if others:
        paragraphs.append(
            "Under another convention the runs of a budget no longer cost the same, so each budget "
            "is restated as what its best size costs there, and every size's loss is read at that "
            "cost from its own runs: interpolated between those below and above, or carried by at "
            "most half the distance between budgets, about a surface quadratic in ln N and ln C. "
            "Sizes that would have to go farther are left out. Neighbouring profiles then share "
            "runs, so those intervals are somewhat too narrow."
        )
    return paragraphs


def _interval(fit: FitResult, symbol: str, convention: str) -> tuple[float, float] | None:
    found = fit.exponent_intervals.get(convention, {}).get(symbol)
    return found if found and all(math.isfinite(edge) for edge in found) else None


def _key_numbers(family: _Family) -> list[KeyNumber]:
    if family.exponents is None:
        return []
    fit = family.fit
    interval = _interval(fit, "N", family.native)
    numbers = [
        KeyNumber.of(
            f"exponent of N_opt, {family_name(family.name)}", family.exponents["N"], interval
        )
    ]
    last = [profile for profile in fit.details["profiles"] if profile.ok][-1]
    ratio, interval = _tokens_per_param(last)
    numbers.append(
        KeyNumber.of(
            f"tokens per parameter at {power_of_ten(last.flops)} FLOPs, {family_name(family.name)}",
            ratio,
            interval,
        )
    )
    return numbers


def _tokens_per_param(profile: Profile) -> tuple[float, tuple[float, float] | None]:
    ratio = profile.d_opt / profile.n_opt
    draws = profile.draws[1] - profile.draws[0] if profile.draws.size else np.empty(0)
    draws = draws[np.isfinite(draws)]
    if len(draws) < 20:
        return ratio, None
    low, high = np.exp(np.percentile(draws, [2.5, 97.5]))
    return ratio, (float(low), float(high))


def _warnings(study: Results, family: _Family) -> list[str]:
    name = family_name(family.name)
    warnings = []
    for convention, why in family.failures.items():
        if family.fit is not None and (convention == family.native or family.exponents):
            warnings.append(f"{name}, {convention}: no fit, because {why}.")
    for convention, fit in family.fits.items():
        for warning in fit.warnings:
            if convention == family.native or "no exponent" in warning:
                warnings.append(f"{name}, {convention}: {_sentence(warning)}")
    lost = study.table[
        (study.table["family"] == family.name)
        & ~study.table["status"].isin(["done", "pending", "running"])
    ]
    if len(lost) and family.fit is not None:
        kinds = statuses(lost["status"])
        warnings.append(f"{name}: the profiles lack runs that did not end well ({kinds}).")
    waiting = study.table[
        (study.table["family"] == family.name)
        & study.table["status"].isin(["pending", "running", "preempted"])
    ]
    if len(waiting):
        warnings.append(f"{name}: {plural(len(waiting), 'run')} not finished, so this will change.")
    warnings += [f"{name}: {text}" for text in caveats.search_edges(study, family.name)]
    return warnings


def _sentence(text: str) -> str:
    text = re.sub(
        r"\b\d(\.\d+)?e[+-]?\d+", lambda found: power_of_ten(float(found.group()), 3), text
    )
    text = text[0].upper() + text[1:]
    return text if text.endswith(".") else text + "."


def _why_none(family: _Family, convention: str) -> str:
    fit = family.fits.get(convention)
    if fit is None or convention == family.native:
        return family.failures.get(convention) or _why_no_exponent(family)
    return fit.warnings[-1] if fit.warnings else "the profiles give no exponent"


def _measures(family: _Family) -> dict[str, Measure]:
    """Of the first family, the Transformer where there is one."""
    name, measures = family_name(family.name), {}
    for key, convention in [("a", family.native), *((f"a_{c}", c) for c in CONVENTIONS)]:
        found = exponent(family.fits.get(convention))
        measures[key] = Measure(
            what=f"exponent of N_opt ∝ C^a by Approach 2, {convention} convention "
            f"({name}, {len(family.runs)} runs)",
            value=found[0] if found else None,
            interval=found[1] if found else None,
            undecided_because="" if found else _why_none(family, convention),
        )
    fit = family.fit
    why = "the profiles give no exponent"
    growth = fit.draws["b"] - fit.draws["a"] if fit and fit.draws else np.empty(0)
    growth = growth[np.isfinite(growth)]
    measures["tokens_per_param_exponent"] = Measure(
        what=f"exponent of D_opt/N_opt in C, {family.native} convention: 0 if model and data grow "
        f"alike ({name}, {len(family.runs)} runs)",
        value=fit.parameters["b"] - fit.parameters["a"] if family.exponents else None,
        interval=tuple(np.percentile(growth, [2.5, 97.5]).tolist()) if len(growth) > 20 else None,
        undecided_because="" if family.exponents else why,
    )
    last = [p for p in fit.details["profiles"] if p.ok][-1:] if fit else []
    ratio, interval = _tokens_per_param(last[0]) if last else (None, None)
    measures["tokens_per_param"] = Measure(
        what="D_opt/N_opt at the largest budget with a usable profile"
        + (f", {power_of_ten(last[0].flops)} FLOPs" if last else "")
        + f", {family.native} convention ({name})",
        value=ratio,
        interval=interval,
        undecided_because="" if last else "no profile has a minimum inside the sizes that were run",
    )
    measures["kaplan_minus_native"] = Measure.of(
        f"exponent counted without the vocabulary (kaplan) less that of the {family.native} "
        f"convention, the intervals taken as independent ({name})",
        difference(
            "kaplan_minus_native",
            exponent(family.fits.get("kaplan")),
            exponent(fit),
            "one of the two counts gives no exponent",
            seeds=_seeds(family.runs),
        ),
    )
    return measures


# --- tables -------------------------------------------------------------------------------------


def _exponent_grid(families: list[_Family]) -> list[Grid]:
    rows = []
    for family in families:
        for convention in (family.native, *[c for c in CONVENTIONS if c != family.native]):
            fit = family.fits.get(convention)
            if fit is None and (convention not in family.failures or family.exponents is None):
                continue
            label = convention + (" (grid)" if convention == family.native else "")
            exponents = fit.exponents.get(convention) if fit else None
            if exponents is None:
                why = family.failures.get(convention) or fit.warnings[-1]
                rows.append([family_name(family.name), label, "–", "–", "–", why])
                continue
            used = len(fit.details["frontier"]["flops"])
            rows.append(
                [
                    family_name(family.name),
                    label,
                    with_interval(exponents["N"], _interval(fit, "N", convention)),
                    with_interval(exponents["D"], _interval(fit, "D", convention)),
                    f"{used} of {len(fit.details['profiles'])}",
                    _how(family.restated[convention]),
                ]
            )
    if not rows:
        return []
    return [
        Grid(
            caption="The exponents of N_opt ∝ C^a and D_opt ∝ C^b under each convention of counting "
            "N and C, with 95% intervals.",
            header=["family", "convention", "a", "b", "budgets used", "how the runs were grouped"],
            rows=rows,
            numeric=(2, 3, 4),
        )
    ]


def _how(view: Restated) -> str:
    if view.reach <= 1.0 and view.moved == 0.0:
        return view.how
    if not view.moved:
        return f"restated, within {view.reach - 1:.0%} of the runs"
    return f"restated, {view.moved:.0%} of losses read up to {view.reach:.2g}x from a run"


def _minima_grid(family: _Family) -> Grid:
    rows = []
    for p in family.fit.details["profiles"]:
        if p.ok:
            ratio, interval = _tokens_per_param(p)
            per = with_interval(ratio, interval)
            rows.append(
                [
                    power_of_ten(p.flops, 3),
                    _counts(p.n_opt, p.n_interval),
                    _counts(p.d_opt, p.d_interval),
                    per,
                    with_interval(p.loss_opt, p.loss_interval),
                    p.reason or "; ".join(["convex, minimum inside", *filter(None, [_flag(p)])]),
                ]
            )
        else:
            rows.append([power_of_ten(p.flops, 3), "–", "–", "–", "–", f"{p.flag}: {p.reason}"])
    return Grid(
        caption=f"The minima of the {family_name(family.name)} profiles "
        f"({family.native} convention), with 95% intervals.",
        header=["C (FLOPs)", "N_opt", "D_opt (tokens)", "tokens per N", "loss (nats)", "guards"],
        rows=rows,
        numeric=(0, 1, 2, 3, 4),
    )


def _flag(p: Profile) -> str:
    """What a guard says against a profile, if anything."""
    if not p.ok:
        return p.flag
    if p.reason:
        return "minimum just outside"
    lowest = p.params[np.argmin(p.loss)]
    return "lowest run at the edge" if lowest in (p.params[0], p.params[-1]) else ""


def _counts(value: float, interval: tuple[float, float]) -> str:
    if not all(math.isfinite(edge) for edge in interval):
        return f"{si(value)} (no interval)"
    low, high = (si(edge, trim=False) for edge in interval)
    return f"{si(value, trim=False)} ({low} to {high})"


# --- figures ------------------------------------------------------------------------------------


def _triptych(study: Results, family: _Family) -> Chart:
    """Hoffmann et al. 2022, Fig. 3."""
    fit: FitResult = family.fit
    profiles: tuple[Profile, ...] = fit.details["profiles"]
    colours = style.ordered_colours([p.flops for p in profiles])
    with style.canvas(10.6, 3.9) as figure:
        left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])
        handles = [_draw_profile(left, p, colours[p.flops]) for p in profiles]
        left.set(xlabel=f"N, {_N_NAMES[family.native]}", ylabel="loss (nats per token)")
        left.set_title("Profiles")
        style.log_axis(left.xaxis, "count")
        style.bits_axis(left, study.bits_per_nat)
        for axes, symbol, title in (
            (middle, "N", "Best size"),
            (right, "D", "Best number of tokens"),
        ):
            _draw_frontier(axes, fit, family.native, symbol, colours)
            axes.set_title(title if fit.parameters else f"{title}: no exponent")
        figure.legend(
            handles,
            [power_of_ten(p.flops) + (f" ({_flag(p)})" if _flag(p) else "") for p in profiles],
            title="budget C (FLOPs)",
            title_fontsize=8,
            loc="outside upper center",
            ncols=min(len(profiles), 4 if any(map(_flag, profiles)) else 9),
            handletextpad=0.3,
            columnspacing=1.4,
        )
        bad = [p for p in profiles if not p.ok]
        caption = (
            f"IsoFLOP profiles of the {family_name(family.name)} (Hoffmann et al. 2022, Fig. 3). "
            f"Left: final loss over model size, one colour a budget, {_points(family)}; the parabola "
            f"is fitted to the filled points (hollow ones lie outside its window), diamonds mark its "
            f"minimum. Middle and right: the minima and the power law through them; bars and bands "
            f"are 95% intervals ({fit.interval_method})."
        )
        if bad:
            caption += (
                f" Dashed: {plural(len(bad), 'profile')} that the power law leaves out ("
                + "; ".join(f"{power_of_ten(p.flops)}: {p.reason}" for p in bad)
                + ")."
            )
        exponents = fit.exponents.get(family.native)
        alt = f"{len(profiles)} IsoFLOP profiles of {family_name(family.name)}"
        if exponents:
            alt += f"; best size grows with compute to the power {exponents['N']:.3f}"
        return style.render(
            figure, name=f"{NAME}-{slug(family.name)}", caption=caption, alt=alt + "."
        )


def _points(family: _Family) -> str:
    seeds = _seeds(family.runs)
    if seeds == 1:
        return "one seed, so that the points have no bars and their noise shows about the parabolas"
    return f"a point for each of {seeds} seeds"


def _draw_profile(axes: Any, p: Profile, colour: str) -> Any:
    handle = axes.plot(p.params[p.used], p.loss[p.used], "o", color=colour, zorder=3)[0]
    axes.plot(
        p.params[~p.used], p.loss[~p.used], "o", mfc=style.PAPER, mec=colour, color=colour, zorder=3
    )
    if p.coefficients is not None and p.used.sum() >= 3:
        inside = p.params[p.used]
        grid = np.geomspace(inside.min() / 1.15, inside.max() * 1.15, 80)
        axes.plot(grid, p.curve(grid), color=colour, linestyle="-" if p.ok else (0, (4, 2)), lw=1.3)
    if p.ok:
        axes.plot(p.n_opt, p.loss_opt, "D", ms=6, color=colour, mec=style.INK, mew=0.9, zorder=4)
    return handle


def _draw_frontier(
    axes: Any, fit: FitResult, convention: str, symbol: str, colours: dict[float, str]
) -> None:
    name, k = ("a", "k_N") if symbol == "N" else ("b", "k_D")
    good = [p for p in fit.details["profiles"] if p.ok]
    if good:
        flops = np.array([p.flops for p in good])
        value = np.array([p.n_opt if symbol == "N" else p.d_opt for p in good])
        edges = np.array([p.n_interval if symbol == "N" else p.d_interval for p in good])
        spread = max(2.0, (flops.max() / flops.min()) ** 0.15)
        axes.set_xlim(flops.min() / spread, flops.max() * spread)
        if fit.parameters:
            grid = np.geomspace(flops.min() / spread, flops.max() * spread, 60)
            line = fit.parameters[k] * grid ** fit.parameters[name]
            axes.plot(grid, line, color=style.INK, lw=1.2)
            if fit.draws:
                drawn = fit.draws[k][:, None] * grid ** fit.draws[name][:, None]
                low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
                axes.fill_between(grid, low, high, color=style.MUTED, alpha=0.22, lw=0)
            interval = _interval(fit, symbol, convention)
            exponent = with_interval(fit.parameters[name], interval)
            axes.annotate(
                f"${symbol}_{{\\mathrm{{opt}}}} \\propto C^{{\\,{_shown(exponent)[0]}}}$\n"
                f"{_shown(exponent)[1]}",
                (0.04, 0.96),
                xycoords="axes fraction",
                va="top",
                fontsize=8.5,
                linespacing=1.4,
            )
        for c, v, (low, high) in zip(flops, value, edges, strict=True):
            if math.isfinite(low) and math.isfinite(high):
                axes.plot([c, c], [low, high], color=colours[c], lw=1.6)
            axes.plot(c, v, "D", ms=6, color=colours[c], mec=style.INK, mew=0.9, zorder=4)
    axes.set_xlabel("C (FLOPs)")
    unit = "parameters" if symbol == "N" else "tokens"
    axes.set_ylabel(f"${symbol}_{{\\mathrm{{opt}}}}$ ({unit})")
    if good:
        style.log_axis(axes.xaxis, "power")
        style.log_axis(axes.yaxis, "count")
    else:
        axes.set(xticks=[], yticks=[])


def _shown(text: str) -> tuple[str, str]:
    """'0.52 (0.47 to 0.57)' as '0.52' and '95%: 0.47 to 0.57'."""
    value, rest = text.split(" (", 1)
    return value, "no interval" if "no interval" in rest else "95%: " + rest.rstrip(")")


def _forest(families: list[_Family]) -> Chart:
    """Our exponents under every convention above the published ones."""
    styles = style.family_styles([family.name for family in families])
    rows: list[tuple[str, float, tuple[float, float] | None, dict[str, Any]]] = []
    headings: list[tuple[int, str]] = []
    for family in families:
        shown = [c for c in CONVENTIONS if c in family.fits and family.fits[c].exponents]
        if not shown:
            continue
        headings.append((len(rows), family_name(family.name) + ", this experiment"))
        rows.append(None)
        for convention in shown:
            fit = family.fits[convention]
            native = convention == family.native
            rows.append(
                (
                    convention + (" (grid)" if native else ""),
                    fit.exponents[convention]["N"],
                    _interval(fit, "N", convention),
                    {**styles[family.name], "mfc": None if native else style.PAPER},
                )
            )
    headings.append((len(rows), "published"))
    rows.append(None)
    for p in EXPONENTS:
        look = {"color": style.MUTED, "marker": "o", "mfc": None}
        rows.append((f"{p.source}, {p.what}", p.value, p.interval, look))
    with style.canvas(7.6, 0.75 + 0.235 * len(rows)) as figure:
        axes = figure.subplots()
        axes.axvline(0.5, color=style.MUTED, lw=0.8, ls=(0, (4, 3)), zorder=0)
        for y, row in enumerate(rows):
            if row is None:
                continue
            _, value, interval, look = row
            if interval is not None:
                axes.plot(interval, [y, y], color=look["color"], lw=1.8, solid_capstyle="butt")
            axes.plot(
                value,
                y,
                look["marker"],
                color=look["color"],
                mfc=look["mfc"] or look["color"],
                mew=1.2,
                ms=5.5,
            )
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_yticks(
            [y for y, row in enumerate(rows) if row],
            [row[0] for row in rows if row],
        )
        for y, text in headings:
            axes.annotate(
                text,
                (0, y),
                xycoords=("axes fraction", "data"),
                xytext=(-6, 0),
                textcoords="offset points",
                ha="right",
                va="center",
                weight="bold",
            )
        axes.tick_params(axis="y", length=0)
        axes.grid(False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.set_xlabel(r"exponent $a$ of $N_{\mathrm{opt}} \propto C^{\,a}$")
        return style.render(
            figure,
            name=f"{NAME}-exponents",
            caption="The exponent a under every convention of counting N and C, beside published "
            "values. Filled: the count in which the grid's budgets were set; hollow: the same runs "
            "read under another count. Bars are 95% intervals, except Hoffmann's (80%); Kaplan et "
            "al. give none. The dashed line is equal growth of N and D.",
            alt="Exponents with intervals under each convention, and published exponents.",
        )


def slug(family: str) -> str:
    """A family's part of a figure's file name, which a long one is cut for."""
    return "-".join("".join(c if c.isalnum() else " " for c in family).split()).lower()[:60]
