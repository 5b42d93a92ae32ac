"""Cooldowns from one trunk per size beside a cosine per cell: what they save, and what they lose."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmscale.report import caveats, figures, style
from lmscale.report.isoflop_figures import plot_profile
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.tables import paired_words, shown, table
from lmscale.studies.cooldown import COOLDOWN, COSINE, SCHEDULES, TRUNK, Cooldown, Pair
from lmscale.studies.estimate import LEAST_SEEDS
from lmscale.studies.results import Results
from lmscale.wording import number, plural, power_of_ten, si

NAME = "cooldown"
TITLE = "Cooldowns from one trunk against a cosine per cell"
#: How profiles of the two schedules look.
LINES = {COSINE: {"marker": "o", "line": "-"}, COOLDOWN: {"marker": "s", "line": (0, (4, 2))}}


@register(NAME)
def section(found: Cooldown, results: Results) -> Section:
    common = {"name": NAME, "title": TITLE, "fits": found.fits, "measures": _measures(found)}
    if not found.profiles:
        finding = (
            "No comparison: the experiment declares no runs of the families cosine and cooldown."
        )
        return Section(finding=finding, **common)
    return Section(
        finding=_finding(found),
        conclusive=found.estimates["loss_difference"].interval is not None and not found.missing,
        details=_details(found),
        key_numbers=_key_numbers(found),
        charts=[*_chart(found), *_rate_chart(found)],
        grids=_grid(found),
        warnings=_warnings(found),
        **common,
    )


def _finding(found: Cooldown) -> str:
    gap, ratio = found.estimates["loss_difference"], found.estimates["flops_ratio"]
    if not gap.is_known:
        return f"No comparison yet: {plural(found.missing, 'run')} of the grid have no result."
    note = "" if gap.interval else "; too few seeds for an interval"
    return (
        f"One trunk per size with cooldowns costs {number(ratio.value, 2)} of the FLOPs of a cosine per "
        f"cell, and its loss differs by {shown(gap)} nats per token (positive: the cooldown ends "
        f"higher{note})."
    )


def _details(found: Cooldown) -> list[str]:
    parts = []
    for schedule in SCHEDULES:
        a = found.estimates[f"a_{schedule}"]
        growth = f"N ∝ C^{shown(a)}" if a.is_known else f"no exponent ({a.undecided_because})"
        parts.append(f"{schedule}: {growth}")
    rate = found.estimates["best_lr_ratio"]
    rates = f"The ratio of the best learning rates is not known: {rate.undecided_because}."
    if rate.is_known:
        rates = (
            f"At the cell with several learning rates the best constant rate is {shown(rate)} times the "
            f"best peak of a cosine (Hägele et al. 2024: about half)."
        )
    return [
        f"The frontiers of the two grids, on the cells that ended well under both schedules "
        f"({found.convention} convention): {'; '.join(parts)}.",
        rates,
    ]


def _key_numbers(found: Cooldown) -> list[KeyNumber]:
    numbers = []
    ratio, gap = found.estimates["flops_ratio"], found.estimates["loss_difference"]
    if ratio.is_known:
        numbers.append(KeyNumber(label="FLOPs over those of cosines", value=number(ratio.value, 2)))
    if gap.is_known:
        label = "loss of the cooldown less the cosine's (nats)"
        numbers.append(KeyNumber.of_estimate(label, gap))
    return numbers


def _measures(found: Cooldown) -> dict[str, Measure]:
    gap, rate = found.estimates["loss_difference"], found.estimates["best_lr_ratio"]
    count = f"{found.convention} convention"
    of_rates = "best constant learning rate over the best peak of a cosine at the swept cell"
    what = {
        "flops_ratio": "FLOPs that trunks and cooldowns execute over those of the cosines, all seeds "
        "(exact convention)",
        "loss_difference": f"loss of the cooldown less that of the cosine, in nats, mean of {gap.n} "
        f"cells, {plural(gap.seeds, 'seed')}",
        "a_difference": f"exponent on the grid of the cooldowns less that of the cosines, {count}, "
        f"{paired_words(found.estimates['a_difference'], 'seeds drawn alike on both grids')}",
        "best_lr_ratio": of_rates + (f", {plural(rate.seeds, 'seed')}" if rate.seeds else ""),
    }
    for schedule in SCHEDULES:
        what[f"a_{schedule}"] = f"exponent of N_opt ∝ C^a on the grid of the {schedule}s, {count}"
    return Measure.of_each(what, found.estimates)


def _warnings(found: Cooldown) -> list[str]:
    warnings = []
    if found.missing:
        warnings.append(
            f"{plural(found.missing, 'run')} of the grid have no result; the comparison is of the "
            f"cells that have both."
        )
    for schedule, fit in found.profiles.items():
        warnings += [f"Grid of the {schedule}s: {text}" for text in caveats.of_fit(fit)]
    return warnings


def _grid(found: Cooldown) -> list[Grid]:
    def gap(pair: Pair) -> str:
        one = pair.gap
        return shown(one) if one.interval else f"{number(one.value)} (too few seeds)"

    return table(
        "Final loss of every cell (nats per token, mean over seeds) and the difference between runs of "
        "one seed, with its 95% interval.",
        found.pairs,
        {
            "C (FLOPs)": lambda pair: power_of_ten(pair.budget, 3),
            "N": lambda pair: si(pair.n_params),
            "seeds": lambda pair: str(pair.gap.seeds),
            "cosine": lambda pair: f"{pair.cosine:.3f}",
            "cooldown": lambda pair: f"{pair.cooldown:.3f}",
            "cooldown − cosine": gap,
        },
    )


# --- figures ------------------------------------------------------------------------------------


def _chart(found: Cooldown) -> list[Chart]:
    pairs = found.pairs
    if not pairs:
        return []
    colours = style.ordered_colours([pair.budget for pair in pairs])
    with style.canvas(10.4, 3.9) as figure:
        left, middle, right = figure.subplots(1, 3, width_ratios=[1.3, 1.05, 0.8])
        _draw_profiles(left, found, colours)
        _draw_gaps(middle, found, colours)
        _draw_cost(right, found.spent, colours)
        legend = [(power_of_ten(c), left.plot([], [], "o", color=colours[c])[0]) for c in colours]
        for schedule, look in LINES.items():
            fill = style.MUTED if schedule == COSINE else style.PAPER
            look = {"marker": look["marker"], "ls": look["line"], "mfc": fill}
            legend.append((schedule, left.plot([], [], color=style.MUTED, **look)[0]))
        title = "budget C (FLOPs), and schedule"
        figures.titled_legend(figure, legend, title, handletextpad=0.4)
        bars = "bars are 95% intervals over seeds."
        if min(pair.gap.seeds for pair in pairs) < LEAST_SEEDS:
            bars = f"bars are 95% intervals where a cell has {LEAST_SEEDS} seeds or more."
        chart = style.render(
            figure,
            name=NAME,
            caption="An IsoFLOP grid of cosines and one of cooldowns from a trunk per size (Hägele et "
            "al. 2024). Left: mean final loss over size, parabolas and their minima (diamonds). "
            "Middle: how far the cooldown ends from the cosine of the same cell and seed, over the "
            f"loss of the cosine; {bars} The grey band is that of the mean of all cells. Right: FLOPs "
            f"that each grid executed.",
            alt=f"Losses of {len(pairs)} cells under both schedules, their difference, and the FLOPs "
            f"spent on each grid.",
        )
    return [chart]


def _draw_profiles(axes: Any, found: Cooldown, colours: dict[float, str]) -> None:
    keys = np.array(sorted(colours))
    for schedule, fit in found.profiles.items():
        for p in fit.details.get("profiles", ()):
            colour = colours[keys[np.argmin(np.abs(np.log(keys / p.flops)))]]
            fill = colour if schedule == COSINE else style.PAPER
            plot_profile(axes, p, colour, fill=fill, means=True, minimum=5, **LINES[schedule])
    x = f"N, parameters ({found.convention})"
    figures.size_axes(axes, x=x, y=figures.LOSS, title="Profiles of both grids", log_y=False)


def _draw_gaps(axes: Any, found: Cooldown, colours: dict[float, str]) -> None:
    axes.axhline(0, color=style.INK, lw=0.9)
    if mean := found.estimates["loss_difference"].interval:
        axes.axhspan(*mean, color=style.MUTED, alpha=0.22, lw=0)
    for pair in found.pairs:
        at, colour = pair.cosine, colours[pair.budget]
        if pair.gap.interval:
            axes.plot([at, at], pair.gap.interval, color=colour, lw=1.4)
        axes.plot(at, pair.gap.value, "s", color=colour, mfc=style.PAPER, mew=1.2, zorder=3)
    axes.set(xlabel="loss of the cosine (nats per token)", ylabel="cooldown − cosine (nats)")
    axes.set_title("Difference by cell")


def _draw_cost(axes: Any, spent: dict[str, dict[float, float]], colours: dict[float, str]) -> None:
    """Bars of executed FLOPs, stacked by budget, the trunks below."""
    total = sum(spent.get(COSINE, {}).values())
    for x, families in enumerate(((COSINE,), (TRUNK, COOLDOWN))):
        height = 0.0
        for family in families:
            for budget, flops in sorted(spent.get(family, {}).items()):
                colour = colours.get(budget, style.MUTED)
                axes.bar(x, flops, bottom=height, color=colour, width=0.62, ec=style.PAPER, lw=0.6)
                if family == TRUNK:
                    look = {"ha": "center", "va": "center", "color": style.PAPER, "size": 8}
                    axes.text(x, flops / 2, "trunks", **look)
                height += flops
        label = power_of_ten(height) + (f"\n({height / total:.2f})" if x and total else "")
        axes.text(x, height, label, ha="center", va="bottom", size=8)
    axes.set_xticks([0, 1], SCHEDULES)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    axes.margins(y=0.16)
    axes.set_title("FLOPs executed")


def _rate_chart(found: Cooldown) -> list[Chart]:
    """Loss over learning rate under both schedules at the cell with several rates."""
    if not found.rates:
        return []
    looks = style.family_styles(SCHEDULES)
    with style.canvas(4.4, 3.2) as figure:
        axes = figure.subplots()
        # Side by side, so that bars at one rate can be told apart.
        for (schedule, losses), shift in zip(found.rates.items(), (1 / 1.025, 1.025), strict=True):
            look, at = looks[schedule], [lr * shift for lr in losses]
            for lr, loss in zip(at, losses.values(), strict=True):
                if loss.interval:
                    axes.plot([lr, lr], loss.interval, color=look["color"], lw=1.4)
            axes.plot(at, [loss.value for loss in losses.values()], **look, lw=1.3, label=schedule)
        axes.set(xlabel="peak learning rate", ylabel=figures.LOSS)
        style.log_axis(axes.xaxis, "plain")
        axes.legend()
        chart = style.render(
            figure,
            name=f"{NAME}-learning-rate",
            caption="Final loss of one cell over the peak learning rate under both schedules, mean over "
            "seeds with 95% intervals; the two are drawn 2.5% apart on either side of the rate.",
            alt="Loss against learning rate for the cosine and the cooldown.",
        )
    return [chart]
