"""The critical batch: hyperbolas of steps against tokens, B_crit(L), and the gradient noise scale."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lmscale import laws
from lmscale.report import figures, style
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.tables import edges, shown, table
from lmscale.studies.critical_batch import CriticalBatch, Hyperbola
from lmscale.studies.estimate import LEAST_SEEDS, Estimate
from lmscale.studies.results import Results
from lmscale.wording import listed, number, plural, si

NAME = "critical_batch"
TITLE = "The critical batch"
#: Kaplan et al. 2020, eq. 5.3: B_crit = 2.1e8 / L^(1/0.21) tokens.
PAPER_POWER = 1 / 0.21


@register(NAME)
def section(found: CriticalBatch, results: Results) -> Section:
    power, measures = found.estimates["power"], _measures(found)
    if not found.sizes:
        finding = f"No law yet: {power.undecided_because}."
        return Section(name=NAME, title=TITLE, finding=finding, fits=found.fits, measures=measures)
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        conclusive=power.interval is not None,
        details=_details(found),
        key_numbers=_key_numbers(found.estimates),
        charts=[_hyperbola_chart(found), _law_chart(found)],
        grids=_grid(found),
        fits=found.fits,
        measures=measures,
        warnings=_warnings(found),
    )


def _finding(found: CriticalBatch) -> str:
    size, power, ratio = found.sizes[-1], found.estimates["power"], found.estimates["size_ratio"]
    first, last, n = size.hyperbolas[0], size.hyperbolas[-1], si(size.n_params)
    text = (
        f"The critical batch of N = {n} goes from {si(first.b_crit.value)} tokens at a loss of "
        f"{first.loss:.2f} to {si(last.b_crit.value)} at {last.loss:.2f}"
    )
    if power.is_known:
        text += f", as 1/L to the power {shown(power)}"
    if ratio.is_known:
        smallest = si(found.sizes[0].n_params)
        text += f"; that of N = {n} is {shown(ratio)} times that of {smallest} at equal loss"
    return f"{text}."


def _details(found: CriticalBatch) -> list[str]:
    if found.law is None or found.law.power.value <= 0:
        return []
    power, scale, losses = found.law.power.value, math.exp(found.law.level), found.sizes[-1].losses
    middle = float(np.sqrt(losses[0] * losses[-1]))
    return [
        f"B_crit(L) = {number(scale, 3)} / L^{power:.2f} tokens over these losses: give "
        f"--critical-batch {scale:.3g} {1 / power:.3g} to the experiments compute and "
        f"sample_efficiency. At a loss of {middle:.2f} that is {si(found.law.at(middle))} tokens; "
        f"Kaplan et al. 2020 have {si(float(laws.critical_batch(middle)))} there, for another text and "
        f"vocabulary, in which the same loss means a far better model."
    ]


def _key_numbers(estimates: dict[str, Estimate]) -> list[KeyNumber]:
    labels = {
        "power": "power of 1/L in B_crit (Kaplan et al.: 4.8)",
        "size_ratio": "B_crit of the largest over the smallest size, at equal loss",
        "noise_ratio": "gradient noise scale over B_crit",
    }
    return [
        KeyNumber.of_estimate(label, estimates[name])
        if estimates[name].is_known
        else KeyNumber(label=label, value="–", interval="no interval")
        for name, label in labels.items()
    ]


def _measures(found: CriticalBatch) -> dict[str, Measure]:
    what = {
        "power": "power of 1/L in B_crit",
        "size_ratio": "B_crit of the largest size over that of the smallest, at equal loss",
        "noise_ratio": "gradient noise scale over B_crit",
    }
    if found.sizes:
        losses = np.concatenate([size.losses for size in found.sizes])
        sizes = plural(len(found.sizes), "size")
        what["power"] += (
            f", {sizes} together, losses from {losses.max():.2f} to {losses.min():.2f}, "
            f"{plural(min(size.n_seeds for size in found.sizes), 'seed')} a batch"
        )
        small, large = found.sizes[0].n_params, found.sizes[-1].n_params
        what["size_ratio"] = f"B_crit of N = {si(large)} over that of {si(small)}, at equal loss"
        what["noise_ratio"] += f", {sizes}"
    ratio = found.estimates["size_ratio"]
    if ratio.is_known:
        what["size_ratio"] += f" ({plural(ratio.n, 'target')})"
    return {name: Measure.of(text, found.estimates[name]) for name, text in what.items()}


def _warnings(found: CriticalBatch) -> list[str]:
    warnings = [f"N = {si(size.n_params)}: {size.fit.failure}." for size in found.refused]
    for size in found.sizes:
        own = [f"{warning}." for warning in size.fit.warnings]
        if size.misfit:
            first, last = size.misfit
            own.append(
                f"the smallest and the largest batch take {abs(first):.1%} and {abs(last):.1%} "
                f"{'more' if first > 0 else 'fewer'} updates than the hyperbola, those between the "
                f"other way: B_crit depends on which batches were run, which its interval counts."
            )
        if size.at_edge:
            own.append(
                f"in {size.at_edge} cells of batch and loss the best learning rate is the edge of "
                f"those tried."
            )
        warnings += [f"N = {si(size.n_params)}: {text}" for text in own]
    if min(size.n_seeds for size in found.sizes) < LEAST_SEEDS:
        warnings.append(f"Fewer than {LEAST_SEEDS} seeds a batch: there are no intervals.")
    return warnings


def _grid(found: CriticalBatch) -> list[Grid]:
    return table(
        "Least updates and tokens to a loss, critical batch and gradient noise scale (both in tokens, "
        "with 95% intervals: over seeds, and for B_crit over which batches were run).",
        [(size, one) for size in found.sizes for one in size.hyperbolas],
        {
            "N": lambda row: si(row[0].n_params),
            "loss": lambda row: f"{row[1].loss:.3f}",
            "S_min": lambda row: number(row[1].s_min.value),
            "E_min": lambda row: si(row[1].e_min.value),
            "B_crit": lambda row: si(row[1].b_crit.value),
            "interval of B_crit": lambda row: edges(row[1].b_crit.interval, si),
            "noise scale": lambda row: si(row[1].noise.value),
            "interval of the noise": lambda row: edges(row[1].noise.interval, si),
        },
    )


# --- figures ------------------------------------------------------------------------------------


def _hyperbola_chart(found: CriticalBatch) -> Chart:
    sizes = found.sizes
    colours = style.ordered_colours([loss for size in sizes for loss in size.losses])
    with style.canvas(7.0, 3.3) as figure:
        panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
        for axes, size in zip(panels, sizes, strict=True):
            for one in size.hyperbolas:
                _draw_hyperbola(axes, size.rows[size.rows["loss"] == one.loss], one, colours)
            axes.set_title(f"N = {si(size.n_params)}")
            axes.set_xlabel("S, updates to the loss")
            style.log_axis(axes.xaxis, "count")
        panels[0].set_ylabel("E, tokens to the loss")
        style.log_axis(panels[0].yaxis, "count")
        figures.loss_legend(figure, colours, marker="o", ms=4)
        return style.render(
            figure,
            name="batch-hyperbolas",
            caption="Updates against tokens to the same loss, a point a run, from small batches "
            "(right) to large ones (left), and the fitted (S/S_min − 1)(E/E_min − 1) = 1 (Kaplan et "
            "al. 2020, Fig. 18). Crosses: the critical batch, twice the least of each, with its 95% "
            "interval over seeds and batches.",
            alt="Updates against tokens to a loss for "
            + listed([f"N = {si(size.n_params)}" for size in sizes]),
        )


def _draw_hyperbola(axes: Any, rows: Any, one: Hyperbola, colours: dict[float, str]) -> None:
    batch, look = rows["batch_tokens"], {"color": colours[one.loss]}
    batches = np.geomspace(batch.min() / 1.5, batch.max() * 1.5, 80)
    steps = one.s_min.value * (1 + one.b_crit.value / batches)
    axes.plot(steps, steps * batches, lw=1.2, **look)
    look |= {"marker": "o", "ms": 4.2, "lw": 0}
    figures.plot_points(axes, rows["steps"], rows["steps"] * batch, look)
    s, e = 2 * one.s_min.value, 2 * one.e_min.value
    ink = {"color": style.INK}
    if one.s_min.interval and one.e_min.interval:
        axes.plot(2 * np.array(one.s_min.interval), [e] * 2, lw=0.8, **ink)
        axes.plot([s] * 2, 2 * np.array(one.e_min.interval), lw=0.8, **ink)
    axes.plot(s, e, "+", ms=6, mew=1.1, zorder=4, **ink)


def _law_chart(found: CriticalBatch) -> Chart:
    looks = style.family_styles(["transformer", "other", "third", "fourth"])
    losses = np.concatenate([size.losses for size in found.sizes])
    grid = np.geomspace(losses.min() / 1.03, losses.max() * 1.03, 60)
    with style.canvas(3.5, 3.6) as figure:
        axes = figure.subplots()
        _draw_law(axes, found, grid)
        for k, (size, look) in enumerate(zip(found.sizes, looks.values(), strict=False)):
            # Side by side, so that bars at one loss can be told apart.
            aside, name = 1.006 ** (2 * k - len(found.sizes) + 1), f"N = {si(size.n_params)}"
            figures.plot_estimates(
                axes,
                [one.b_crit for one in size.hyperbolas],
                look,
                x=lambda one, aside=aside: one.at[0] * aside,
                bar=1.3,
                ms=5.5,
                label=f"$B_{{crit}}$, {name}",
            )
            noises = [one.noise for one in size.hyperbolas]
            if any(one.is_known for one in noises):
                figures.plot_estimates(
                    axes,
                    noises,
                    figures.hollow(look),
                    x=lambda one, aside=aside: one.at[0] * aside * 1.003,
                    bar=0.8,
                    ms=5.5,
                    mew=1.0,
                    label=f"noise scale, {name}",
                )
        axes.set(xlabel="loss (nats per token), falling", ylabel="batch (tokens)")
        axes.set_xlim(grid[-1], grid[0])
        style.log_axis(axes.xaxis, "plain")
        axes.set_xlim(grid[-1], grid[0])
        style.log_axis(axes.yaxis, "count")
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=7
        )
        return style.render(
            figure,
            name="critical-batch",
            caption="Critical batch against loss (filled, 95% intervals over seeds and over which "
            "batches were run) and the gradient noise scale at the same losses (open, 95% intervals "
            "over seeds). Line and band: power law through the filled points of all sizes. Dotted: the "
            "slope of Kaplan et al. 2020, Fig. 10, through its middle; the level is that of another "
            "text.",
            alt="Critical batch and gradient noise scale against loss.",
        )


def _draw_law(axes: Any, found: CriticalBatch, loss: np.ndarray) -> None:
    """The power law with its band, and the paper's slope through its middle."""
    law = found.law
    if law is None:
        return
    label = f"$L^{{{-law.power.value:.1f}}}$"
    figures.plot_band(axes, loss, law.at(loss), law.band(loss), style.INK, label=label)
    middle = np.sqrt(loss[0] * loss[-1])
    figures.plot_slope(
        axes, loss, middle, law.at(middle), -PAPER_POWER, "Kaplan et al., slope $L^{-4.8}$"
    )
