"""IsoFLOP profiles: the best model size for a budget, under every convention of counting."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from lmscale.flops import CONVENTIONS
from lmscale.laws import Profile
from lmscale.report import caveats, figures, style
from lmscale.report.isoflop_figures import (
    EXPONENT,
    Entry,
    frontier_axes,
    plot_forest,
    plot_frontier,
    plot_profile,
)
from lmscale.report.notes import run_note
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.tables import paired_words, shown, table
from lmscale.studies.exponents import is_informative
from lmscale.studies.isoflop import Family, Isoflop, tokens_per_param
from lmscale.studies.published_exponents import EXPONENTS
from lmscale.studies.restate import Restated
from lmscale.studies.results import WAITING, Results
from lmscale.wording import (
    between,
    family_name,
    listed,
    number,
    plural,
    power_of_ten,
    sentence,
    si,
    statuses,
    with_interval,
)

NAME = "isoflop"
TITLE = "IsoFLOP profiles: the best model size for a budget"

#: What N is called under each convention.
N_NAMES = {
    "kaplan": "parameters without embeddings",
    "chinchilla": "parameters with embeddings",
    "standard": "parameters with the head",
    "exact": "all parameters",
}


@register(NAME)
def section(found: Isoflop, results: Results) -> Section:
    fitted = [family for family in found.families if not family.fit.failure]
    charts = [chart for family in fitted for chart in _views(family, results)]
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        conclusive=any(is_informative(family.exponent()) for family in found.families),
        details=_details(found),
        key_numbers=[k for family in fitted for k in _key_numbers(family)],
        charts=charts + _forest(found),
        grids=[*_exponent_grid(found), *[g for f in fitted for g in _minima_grid(f)]],
        fits=found.fits,
        measures=_measures(found),
        warnings=[w for family in found.families for w in _warnings(family, results)],
    )


# --- words --------------------------------------------------------------------------------------


def _finding(found: Isoflop) -> str:
    if not found.families:
        return "No profiles: the runs of this experiment carry no budget of FLOPs."
    good = [family for family in found.families if family.fit.exponents]
    if not good:
        reasons = [f"{family_name(f.name)}: {f.why_no_exponent}" for f in found.families]
        return f"No exponent yet. {'; '.join(reasons)}."
    first, *others = good
    name, a = family_name(first.name), first.exponent()
    if is_informative(a):
        n, d = (number(10 ** first.exponent(symbol).value, 2) for symbol in "ND")
        parts = [
            f"The best {name} for a budget grows as N ∝ C^{shown(a, '95% interval')}: ten times the "
            f"compute is best spent on {n} times the parameters and {d} times the tokens"
        ]
    else:
        growth = f"N ∝ C^{shown(a, '95% interval')}"
        parts = [f"Too noisy to tell how the best {name} grows: {growth}"]
    for family in others:
        exponent = shown(family.exponent(), "95% interval")
        parts.append(f"for the {family_name(family.name)} the exponent is {exponent}")
    if is_informative(a) and a.may_be(0.5) and a.interval[1] >= 0.73:
        parts.append("that is too wide an interval to tell Hoffmann's 0.50 from Kaplan's 0.73")
    return "; ".join(parts) + "."


def _details(found: Isoflop) -> list[str]:
    good = [family for family in found.families if family.fit.exponents]
    paragraphs = [_detail(family) for family in good]
    if any(c != f.native and fit.exponents for f in good for c, fit in f.fits.items()):
        paragraphs.append(
            "Under another convention the runs of a budget no longer cost the same. So each budget is "
            "restated as what its best size costs there, and every size's loss is read at that cost "
            "from its own runs: interpolated between those below and above, or extrapolated by at most "
            "half the distance between budgets, about a surface quadratic in ln N and ln C. Sizes that "
            "would need a larger step are left out. Neighbouring profiles then share runs, and so "
            "they do in every draw behind the intervals."
        )
    return paragraphs


def _detail(family: Family) -> str:
    a = family.exponent()
    inside = [f"{p.value:g} ({p.source}, {p.what})" for p in EXPONENTS if a.may_be(p.value)]
    holds = f"the published {listed(inside)}" if inside else "none of the published ones"
    text = (
        f"{family_name(family.name)}, counted by the {family.native} convention in which the budgets "
        f"were set: D ∝ C^{shown(family.exponent('D'))}. The interval of the exponent of N contains "
        f"{holds}."
    )
    if len(family.windows) > 1:
        values = [exponents["N"] for exponents in family.windows.values()]
        text += (
            f" Other ways to read the minima (parabolas over sizes within a factor of 2 up to all of "
            f"them, and Porian's Akima spline) give exponents from "
            f"{between((min(values), max(values)), 2)}."
        )
    if family.text is not None:
        text += (
            f" Scored on other documents of the same kind, the same runs would give an exponent that "
            f"differs by {number(family.text, 1)} (standard deviation over draws of the held-out "
            f"documents)."
        )
    return text


def _key_numbers(family: Family) -> list[KeyNumber]:
    if not family.fit.exponents:
        return []
    name, ratio = family_name(family.name), tokens_per_param(family.usable[-1])
    at = power_of_ten(ratio.at[0])
    return [
        KeyNumber.of_estimate(f"exponent of N_opt, {name}", family.exponent()),
        KeyNumber.of_estimate(f"tokens per parameter at {at} FLOPs, {name}", ratio),
    ]


def _measures(found: Isoflop) -> dict[str, Measure]:
    native = found.families[0].native if found.families else "grid's own"
    ratio, who, runs = found.estimates["tokens_per_param"], "", ""
    if found.families:
        who = f" ({family_name(ratio.of)})"
        runs = f" ({family_name(ratio.of)}, {ratio.n} runs)"
    at = f", {power_of_ten(ratio.at[0])} FLOPs" if ratio.at else ""
    what = {
        name: f"exponent of N_opt ∝ C^a by Approach 2, {convention} convention{runs}"
        for name, convention in [("a", native), *((f"a_{c}", c) for c in CONVENTIONS)]
    } | {
        "tokens_per_param_exponent": f"exponent of D_opt/N_opt in C, {native} convention: 0 if model "
        f"and data grow alike{runs}",
        "tokens_per_param": f"D_opt/N_opt at the largest budget with a usable profile{at}, {native} "
        f"convention{who}",
        "kaplan_minus_native": f"exponent counted without the vocabulary (kaplan) less that of the "
        f"{native} convention, {paired_words(found.estimates['kaplan_minus_native'])}{who}",
    }
    return Measure.of_each(what, found.estimates)


def _warnings(family: Family, results: Results) -> list[str]:
    table, counts = results.table[results.table["family"] == family.name], []
    for convention, fit in family.fits.items():
        native = convention == family.native
        if fit.failure and not native and family.fit.exponents:
            counts.append(f"{convention}: no fit, because {fit.failure}.")
        elif not fit.failure:
            told = [text for text in fit.warnings if native or "no exponent" in text]
            counts += [f"{convention}: {_with_powers(sentence(text))}" for text in told]
    own = []
    lost = table[~table["status"].isin(["done", "pending", "running"])]["status"]
    if len(lost) and not family.fit.failure:
        own.append(f"the profiles lack runs that did not end well ({statuses(lost)}).")
    waiting = int(table["status"].isin(WAITING).sum())
    if waiting:
        own.append(f"{plural(waiting, 'run')} not finished, so this will change.")
    own += caveats.search_edges(results, family.name)
    name = family_name(family.name)
    return [f"{name}, {text}" for text in counts] + caveats.about(family.name, own)


def _with_powers(text: str) -> str:
    """1e+12 as 10¹²."""
    pattern = r"\b\d(\.\d+)?e[+-]?\d+"
    return re.sub(pattern, lambda found: power_of_ten(float(found.group()), 3), text)


# --- tables -------------------------------------------------------------------------------------


def _exponent_grid(found: Isoflop) -> list[Grid]:
    def budgets(family: Family, convention: str) -> str:
        details = family.fits[convention].details
        if not family.fits[convention].exponents:
            return "–"
        return f"{len(details['frontier']['flops'])} of {len(details['profiles'])}"

    def how(family: Family, convention: str) -> str:
        fit = family.fits[convention]
        return (
            _how(family.restated[convention]) if fit.exponents else fit.failure or fit.warnings[-1]
        )

    return table(
        "The exponents of N_opt ∝ C^a and D_opt ∝ C^b under each convention of counting N and C, with "
        "95% intervals.",
        [
            (family, convention)
            for family in found.families
            for convention, fit in family.fits.items()
            if family.fit.exponents or not fit.failure
        ],
        {
            "family": lambda row: family_name(row[0].name),
            "convention": lambda row: row[1] + (" (grid)" if row[1] == row[0].native else ""),
            "a": lambda row: shown(row[0].exponent("N", row[1])),
            "b": lambda row: shown(row[0].exponent("D", row[1])),
            "budgets used": lambda row: budgets(*row),
            "how the runs were grouped": lambda row: how(*row),
        },
        text=("family", "convention", "how the runs were grouped"),
    )


def _how(view: Restated) -> str:
    if view.reach <= 1.0 and view.moved == 0.0:
        return view.how
    if not view.moved:
        return f"restated, within {view.reach - 1:.0%} of the runs"
    return f"restated, {view.moved:.0%} of losses read up to {view.reach:.2g}x from a run"


def _minima_grid(family: Family) -> list[Grid]:
    def guards(p: Profile) -> str:
        if not p.ok:
            return f"{p.flag}: {p.reason}"
        return p.reason or "; ".join(["convex, minimum inside", *filter(None, [_flag(p)])])

    return table(
        f"The minima of the {family_name(family.name)} profiles ({family.native} convention), with 95% "
        f"intervals.",
        family.profiles,
        {
            "C (FLOPs)": lambda p: power_of_ten(p.flops, 3),
            "N_opt": lambda p: _counts(p.n_opt, p.n_interval) if p.ok else "–",
            "D_opt (tokens)": lambda p: _counts(p.d_opt, p.d_interval) if p.ok else "–",
            "tokens per N": lambda p: shown(tokens_per_param(p)) if p.ok else "–",
            "loss (nats)": lambda p: with_interval(p.loss_opt, p.loss_interval) if p.ok else "–",
            "guards": guards,
        },
        text=("guards",),
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
    if not all(map(math.isfinite, interval)):
        return f"{si(value)} (no interval)"
    low, high = (si(edge, trim=False) for edge in interval)
    return f"{si(value, trim=False)} ({low} to {high})"


# --- figures ------------------------------------------------------------------------------------


def _views(family: Family, results: Results) -> list[Chart]:
    """The figure by the grid's own count, and by each other one that gives an exponent."""
    own = _triptych(family, results)
    others = [
        replace(
            _triptych(replace(family, native=convention), results, family.native),
            view=convention,
            other_view_of=own.name,
        )
        for convention, fit in family.fits.items()
        if convention != family.native and fit.exponents
    ]
    return [replace(own, view=f"{family.native} (the grid's own)"), *others]


def _triptych(family: Family, results: Results, grid: str = "") -> Chart:
    """Hoffmann et al. 2022, Fig. 3.

    Args:
      grid: the count in which the budgets were set, where `family` is restated in another.
    """
    profiles, name = family.profiles, family_name(family.name)
    colours = style.ordered_colours([p.flops for p in profiles])
    with style.canvas(10.6, 3.9) as figure:
        left, *others = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])
        legend, note = [], _note_between if grid else _note_of(family)
        for p in profiles:
            label = power_of_ten(p.flops) + (f" ({_flag(p)})" if _flag(p) else "")
            legend.append((label, plot_profile(left, p, colours[p.flops], note=note)))
        ncols = min(len(profiles), 4 if any(map(_flag, profiles)) else 10)
        x = f"N, {N_NAMES[family.native]}"
        figures.size_axes(left, x=x, y=figures.LOSS, title="Profiles", log_y=False)
        style.bits_axis(left, results.bits_per_nat)
        for axes, symbol in zip(others, "ND", strict=True):
            _draw_minima(axes, family, symbol, colours)
        figures.titled_legend(figure, legend, "budget C (FLOPs)", ncols=ncols, handletextpad=0.3)
        points = f"a point for each of {family.seeds} seeds"
        if family.seeds == 1:
            points = "one seed, so that the points have no bars and their noise shows about the "
            points += "parabolas"
        restated = f", the grid's {grid} budgets restated as {family.native} counts" if grid else ""
        caption = (
            f"IsoFLOP profiles of the {name} (Hoffmann et al. 2022, Fig. 3){restated}. Left: final loss over "
            f"model size, one colour a budget, {points}; the parabola is fitted to the filled points "
            f"(hollow ones lie outside its window), diamonds mark its minimum. Middle and right: the "
            f"minima and the power law through them; bars and bands are 95% intervals "
            f"({family.fit.interval_method})."
        )
        bad = [f"{power_of_ten(p.flops)}: {p.reason}" for p in profiles if not p.ok]
        if bad:
            left_out = f"{plural(len(bad), 'profile')} that the power law leaves out"
            caption += f" Dashed: {left_out} ({'; '.join(bad)})."
        alt = f"{len(profiles)} IsoFLOP profiles of {name}"
        if family.fit.exponents:
            alt += f"; best size grows with compute to the power {family.exponent().value:.3f}"
        ending = f"-{family.native}" if grid else ""
        return style.render(
            figure, name=f"{NAME}-{slug(family.name)}{ending}", caption=caption, alt=f"{alt}."
        )


def _note_of(family: Family) -> Callable[[float, float], str]:
    """Params and loss of a run, as the grid's convention counts -> what its point says."""

    def key(n: float, loss: float) -> tuple[int, str]:
        # A fit takes logarithms, which costs the last digits.
        return round(n), f"{loss:.10g}"

    rows = family.runs.to_dict("records")
    notes = {key(row[f"params_{family.native}"], row["loss"]): run_note(row) for row in rows}
    return lambda n, loss: notes[key(n, loss)]


def _note_between(n: float, loss: float) -> str:
    """Of a point that is read between runs."""
    return f"N = {si(n)}, loss {loss:.4g}, read from the runs of this size"


def _draw_minima(axes: Any, family: Family, symbol: str, colours: dict[float, str]) -> None:
    """The minima and the power law through them."""
    title = "Best size" if symbol == "N" else "Best number of tokens"
    title = title if family.fit.exponents else f"{title}: no law"
    if family.usable:
        flops = [p.flops for p in family.usable]
        spread = max(2.0, (max(flops) / min(flops)) ** 0.15)
        limits = min(flops) / spread, max(flops) * spread
        axes.set_xlim(*limits)
        if family.fit.exponents:
            plot_frontier(axes, family.fit, symbol, family.exponent(symbol), limits)
    for p in family.usable:
        value, edges = (p.n_opt, p.n_interval) if symbol == "N" else (p.d_opt, p.d_interval)
        if all(map(math.isfinite, edges)):
            axes.plot([p.flops] * 2, edges, color=colours[p.flops], lw=1.6)
        look = {"color": colours[p.flops], "mec": style.INK, "mew": 0.9}
        axes.plot(p.flops, value, "D", ms=6, zorder=4, **look)
    frontier_axes(axes, symbol, title)


def _forest(found: Isoflop) -> list[Chart]:
    """Our exponents under every convention above the published ones."""
    looks, groups = style.family_styles([family.name for family in found.families]), {}
    for family in found.families:
        entries = []
        for convention in CONVENTIONS:
            a, native = family.exponent("N", convention), convention == family.native
            look = looks[family.name] | ({} if native else {"mfc": style.PAPER})
            label = convention + (" (grid)" if native else "")
            entries += [Entry(label, a.value, a.interval, look)] if a.is_known else []
        if entries:
            groups[f"{family_name(family.name)}, this experiment"] = entries
    if not groups:
        return []
    grey = {"color": style.MUTED, "marker": "o"}
    groups["published"] = [
        Entry(f"{p.source}, {p.what}", p.value, p.interval, grey) for p in EXPONENTS
    ]
    rows = sum(1 + len(entries) for entries in groups.values())
    with style.canvas(7.6, 0.75 + 0.235 * rows) as figure:
        axes = figure.subplots()
        axes.axvline(0.5, color=style.MUTED, lw=0.8, ls=(0, (4, 3)), zorder=0)
        plot_forest(axes, groups)
        axes.set_xlabel(EXPONENT)
        chart = style.render(
            figure,
            name=f"{NAME}-exponents",
            caption="The exponent a under every convention of counting N and C, beside published "
            "values. Filled: the count in which the grid's budgets were set; hollow: the same runs "
            "read under another count. Bars are 95% intervals, except Hoffmann's (80%); Kaplan et "
            "al. give none. The dashed line is equal growth of N and D.",
            alt="Exponents with intervals under each convention, and published exponents.",
        )
    return [chart]


def slug(family: str) -> str:
    """A family's part of a figure's file name, which a long one is cut for."""
    return "-".join("".join(c if c.isalnum() else " " for c in family).split()).lower()[:60]
