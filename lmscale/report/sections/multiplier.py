"""The compute multiplier: frontiers of several architectures, and what one costs against another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lmscale.laws.result import interval as interval_of_draws
from lmscale.report import caveats, figures, style
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.tables import shown, table
from lmscale.studies.estimate import LEVEL, Estimate
from lmscale.studies.multiplier import ONE_FAMILY, Comparison, Frontier, Multiplier
from lmscale.studies.results import Results
from lmscale.wording import family_name, listed, number, plural, power_of_ten, sentence

NAME = "multiplier"
TITLE = "Compute multiplier: what one architecture costs against another"
#: How far beyond its minima, as a factor of compute, a frontier is drawn.
_BEYOND = 1.25
#: Losses of the table.
_ROWS = 5


@register(NAME)
def section(found: Multiplier, results: Results) -> Section:
    charts = [_chart(found)] if found.comparisons else []
    known = {
        f"compute of the {family_name(c.other.family)} over that of the {family_name(c.base.family)}": c
        for c in found.comparisons
    }
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        conclusive=any(_is_decided(c.middle) for c in found.comparisons),
        details=[_detail(c) for c in found.comparisons],
        key_numbers=[KeyNumber.of_estimate(label, c.middle) for label, c in known.items()],
        charts=charts,
        grids=[*_by_family(found), *_by_loss(found)],
        measures=_measures(found),
        warnings=_warnings(found, results),
    )


def _is_decided(one: Estimate) -> bool:
    return one.interval is not None and not one.undecided_because


# --- words --------------------------------------------------------------------------------------


def _finding(found: Multiplier) -> str:
    if not found.frontiers:
        return f"No comparison: {ONE_FAMILY}."
    if not found.comparisons:
        whys = {e.undecided_because: None for e in found.estimates.values()}
        return f"No comparison yet: {'; '.join(whys)}."
    parts = [_claim_of(c) for c in found.comparisons]
    base = family_name(found.base)
    return sentence(f"{'; '.join(parts)} (the {base} is 1; C by the {found.convention} convention)")


def _claim_of(c: Comparison) -> str:
    """What one comparison says, in a clause."""
    other, base = family_name(c.other.family), family_name(c.base.family)
    times = shown(c.middle, "95% interval")
    text = f"the {other} needs {times} times the compute of the {base} to reach {c.at:.2f} nats"
    if c.middle.may_be(1.0):
        text += ", which may be no difference at all"
    if c.growth.interval and not c.growth.may_be(0.0):
        more = "grows" if c.growth.value > 0 else "falls"
        text += f", and the factor {more} with compute as C^{shown(c.growth)}"
    return text


def _detail(c: Comparison) -> str:
    other, base = family_name(c.other.family), family_name(c.base.family)
    high, low = c.losses[0], c.losses[-1]
    at = [power_of_ten(c.base_flops[i]) for i in (0, -1)]
    text = (
        f"{other} against {base}: both reach {high:.2f} down to {low:.2f} nats, which takes the {base} "
        f"{at[0]} to {at[1]} FLOPs. "
    )
    if c.extrapolated:
        text = (
            f"{other} against {base}: the two reach no loss in common. The multiplier is read between "
            f"{high:.2f} and {low:.2f} nats, where at least one frontier is extrapolated. "
        )
    ratio = f"at one irreducible loss their ratio less 1 is {shown(c.exponents, '95% interval')}"
    if c.one_exponent:
        text += (
            f"The minima bear one exponent for both: {ratio}. Fitted jointly with it, the multiplier is "
            f"{shown(c.joint, '95% interval')} at every loss."
        )
    else:
        text += (
            f"The minima do not bear one exponent for both: {ratio}. So no single number says it, and "
            "the joint fit decides nothing."
        )
    if c.text is not None:
        text += (
            f" Other documents of the same kind would move the multiplier by {number(100 * c.text, 1)}% "
            "(standard deviation; the same documents are drawn for both), which the intervals hold."
        )
    return text


def _measures(found: Multiplier) -> dict[str, Measure]:
    what = {}
    base = family_name(found.base)
    ranges = {c.other.family: c for c in found.comparisons}
    for frontier in found.frontiers[1:]:
        name, family = frontier.family, family_name(frontier.family)
        c = ranges.get(name)
        where = f" at {c.at:.2f} nats" if c else ""
        between = f", {c.losses[0]:.2f} to {c.losses[-1]:.2f} nats" if c else ""
        compute = f"compute of the {family} over that of the {base} to reach the same loss"
        what[name] = f"{compute}{where}"
        what[f"{name}_joint"] = f"{compute}, by a joint fit with one exponent{between}"
        what[f"{name}_growth"] = f"exponent of that multiplier in the {base}'s compute{between}"
        what[f"{name}_exponents"] = (
            f"exponent of the {base}'s frontier over the {family}'s, less 1, at one irreducible loss"
        )
    return Measure.of_each(what, found.estimates)


def _warnings(found: Multiplier, results: Results) -> list[str]:
    warnings = []
    for frontier in found.frontiers:
        own = caveats.search_edges(results, frontier.family)
        if frontier.missing:
            own.append(f"no frontier: {frontier.missing}.")
        elif frontier.unsearched:
            own.append(f"{frontier.unsearched}: give --lr-factors 0.5 1 2.")
        elif frontier.rate_cost > 0:
            own.append(
                f"the profiles take a rate that ends {number(frontier.rate_cost, 2)} nats above the best "
                f"of its search (median of {plural(len(frontier.cells), 'cell')})."
            )
        if len(frontier.runs) and frontier.runs["seed"].nunique() == 1:
            own.append(
                "one seed, so that its scatter is known from the scatter of its minima only."
            )
        warnings += caveats.about(frontier.family, own)
    whys = {
        c.middle.undecided_because: None for c in found.comparisons if c.middle.undecided_because
    }
    return warnings + [f"It decides no claim: {why}." for why in whys]


# --- tables -------------------------------------------------------------------------------------


def _by_family(found: Multiplier) -> list[Grid]:
    return table(
        f"Compute over that of the {family_name(found.base)}, with 95% intervals. “Growth” is the "
        "exponent of the multiplier in compute, 0 for one factor at every loss; “exponents” tests whether "
        "the frontiers have one exponent (0 if they have), which the joint fit supposes.",
        found.comparisons,
        {
            "architecture": lambda c: family_name(c.other.family),
            "losses that both reach": lambda c: (
                f"{c.losses[0]:.2f} to {c.losses[-1]:.2f}"
                + (" (extrapolated)" if c.extrapolated else "")
            ),
            "read at": lambda c: f"{c.at:.2f}",
            "multiplier": lambda c: shown(c.middle),
            "growth": lambda c: shown(c.growth),
            "exponents": lambda c: shown(c.exponents),
            "joint fit": lambda c: shown(c.joint) if c.one_exponent else "not borne by the data",
        },
        text=("architecture",),
    )


def _by_loss(found: Multiplier) -> list[Grid]:
    rows = [
        (c, int(i))
        for c in found.comparisons
        for i in np.linspace(0, len(c.losses) - 1, _ROWS).round()
    ]
    return table(
        "The multiplier at losses between the ends of the common range, with 95% intervals.",
        rows,
        {
            "architecture": lambda row: family_name(row[0].other.family),
            "loss (nats)": lambda row: f"{row[0].losses[row[1]]:.3f}",
            f"C of the {family_name(found.base)}": lambda row: power_of_ten(
                row[0].base_flops[row[1]], 3
            ),
            "multiplier": lambda row: shown(_at(row[0], row[1])),
        },
        text=("architecture",),
    )


def _at(c: Comparison, i: int) -> Estimate:
    interval = (float(c.low[i]), float(c.high[i]))
    return Estimate(name="m", value=float(c.value[i]), interval=interval)


# --- figure -------------------------------------------------------------------------------------


def _chart(found: Multiplier) -> Chart:
    """The frontiers, and the multiplier over the loss."""
    drawn = [frontier for frontier in found.frontiers if not frontier.missing]
    looks = style.family_styles([frontier.family for frontier in found.frontiers])
    with style.canvas(8.4, 3.7) as figure:
        left, right = figure.subplots(1, 2)
        for frontier in drawn:
            _draw_frontier(left, frontier, looks[frontier.family])
        left.set(xlabel="C (FLOPs)", ylabel=figures.LOSS, title="Loss of the best size")
        style.log_axis(left.xaxis, "power")
        _draw_multipliers(right, found, looks)
        names = {family_name(f.family): looks[f.family] for f in drawn}
        figures.legend_above(figure, names)
        others = listed([family_name(c.other.family) for c in found.comparisons])
        return style.render(
            figure,
            name=NAME,
            caption=f"Left: the losses at the minima of each architecture's profiles, and the frontier "
            f"L = L∞ + (C_c/C)^α through them. Right: how many times the compute of the "
            f"{family_name(found.base)} the others need to reach a loss, over the losses that both reach "
            "(dashed: extrapolated); lower losses, which take more compute, are to the right. Bars and bands are "
            "95% intervals. A level line is one factor at every loss.",
            alt=f"Frontiers of {len(drawn)} architectures, and the compute multiplier of {others} over "
            "the loss.",
        )


def _draw_frontier(axes: Any, frontier: Frontier, look: Mapping[str, Any]) -> None:
    profiles = frontier.profiles
    flops = [profile.flops for profile in profiles]
    x = np.geomspace(min(flops) / _BEYOND, max(flops) * _BEYOND, 60)
    curve, draws = frontier.curve, frontier.draws
    line = curve["L_inf"] + (curve["C_c"] / x) ** curve["alpha_C"]
    log_x = np.log(x)[:, None]
    with np.errstate(over="ignore"):
        band = draws["L_inf"] + np.exp(draws["alpha_C"] * (np.log(draws["C_c"]) - log_x))
    figures.plot_band(axes, x, line, interval_of_draws(band, LEVEL, axis=1), look["color"], lw=1.3)
    for profile in profiles:
        axes.plot([profile.flops] * 2, profile.loss_interval, color=look["color"], lw=1.4)
    losses = [profile.loss_opt for profile in profiles]
    figures.plot_points(axes, flops, losses, look, lw=0, ms=5.5, zorder=3)


def _draw_multipliers(axes: Any, found: Multiplier, looks: Mapping[str, Any]) -> None:
    axes.axhline(1.0, color=looks[found.base]["color"], lw=1.3, zorder=1)
    for c in found.comparisons:
        look = looks[c.other.family]
        ls = (0, (4, 2)) if c.extrapolated else "-"
        figures.plot_band(axes, c.losses, c.value, (c.low, c.high), look["color"], lw=1.5, ls=ls)
        middle = len(c.losses) // 2
        figures.plot_points(axes, c.losses[middle], c.value[middle], look, lw=0, ms=6, zorder=3)
    if not axes.xaxis_inverted():
        axes.invert_xaxis()
    axes.set(xlabel=figures.LOSS, title="Compute multiplier")
    axes.set_ylabel(f"compute over the {family_name(found.base)}'s")
    style.log_axis(axes.yaxis, "plain")
