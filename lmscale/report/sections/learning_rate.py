"""The best learning rate and batch: rules against N, D and B, beside the published ones."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from lmscale.laws import FitResult
from lmscale.report import figures, style
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.tables import edges, table
from lmscale.studies.learning_rate import LEAST_RATES, LearningRate, RateCell, published_rates
from lmscale.studies.results import Results
from lmscale.wording import listed, number, plural, si, with_interval

NAME = "learning_rate"
TITLE = "The best learning rate and batch"
#: Exponents of the rules -> what they are of.
VARIABLES = {"x": "N", "y": "D", "z": "B", "p": "N", "q": "D"}
#: Columns that name a cell.
PLACE = {"N": lambda cell: si(cell.n), "D": lambda cell: si(cell.d), "B": lambda cell: si(cell.b)}
#: Panels of the parabolas, in either direction.
MOST_PANELS = 3


@register(NAME)
def section(found: LearningRate, results: Results) -> Section:
    measures = _measures(found)
    if not found.cells:
        finding = f"No best rate yet: no cell has ended well at {LEAST_RATES} rates."
        return Section(name=NAME, title=TITLE, finding=finding, fits=found.fits, measures=measures)
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        conclusive=not found.rate.failure,
        details=_details(found),
        key_numbers=[
            KeyNumber.of(f"exponent of the best learning rate in {variable}", value, interval)
            for variable, value, interval in _exponents(found.rate)
        ],
        charts=[_parabola_chart(found), *_rule_chart(found)],
        grids=[*_rule_grid(found), *_cell_grid(found), *_published_grid(found)],
        fits=found.fits,
        measures=measures,
        warnings=_warnings(found),
    )


def _exponents(fit: FitResult) -> Iterator[tuple[str, float, tuple[float, float]]]:
    """(variable, exponent, interval) of a rule; nothing of a refused one."""
    for name, value in fit.parameters.items():
        if name in VARIABLES:
            yield VARIABLES[name], value, fit.intervals[name]


def _formula(fit: FitResult) -> str:
    """'N^−0.3 (…) D^0.1 (…)' with intervals."""
    return " ".join(f"{name}^{with_interval(*value)}" for name, *value in _exponents(fit))


def _finding(found: LearningRate) -> str:
    inside, cells = len(found.inside), plural(len(found.cells), "cell")
    if found.rate.failure:
        return f"No rule yet: {inside} of {cells} have their best rate inside the search."
    return (
        f"The best learning rate goes as {_formula(found.rate)} (95% intervals; N without embeddings, "
        f"D and B in tokens), from {inside} of {cells}."
    )


def _details(found: LearningRate) -> list[str]:
    paragraphs = []
    if math.isfinite(found.noise):
        paragraphs.append(
            f"Losses scatter by {found.noise:.4f} nats about the parabolas; the intervals are made "
            f"from this noise. To use the rule in another experiment: "
            f"hparams.fitted_rule('…/fits.json'), or --lr-fit where an experiment has it."
        )
    if not found.batch.failure:
        paragraphs.append(f"The best batch goes as {_formula(found.batch)} tokens.")
    if not found.rate_at_best_batch.failure:
        paragraphs.append(
            f"At the best batch the best rate goes as {_formula(found.rate_at_best_batch)}; Li et al. "
            f"2025 found N^−0.713 D^0.307 and a batch of D^0.571."
        )
    return paragraphs


def _measures(found: LearningRate) -> dict[str, Measure]:
    what = {
        "n_exponent": "exponent of the best rate in N at fixed D and B",
        "d_exponent": "exponent of the best rate in D at fixed N and B",
        "b_exponent": "exponent of the best rate in B at fixed N and D",
        "steplaw_n": "exponent of the rate in N at the best batch",
        "steplaw_d": "exponent of the rate in D at the best batch",
        "steplaw_batch": "exponent of the best batch in D",
    }
    ones = found.estimates
    many = {name: f", {plural(one.n, 'cell')}" if one.n else "" for name, one in ones.items()}
    return {name: Measure.of(text + many[name], ones[name]) for name, text in what.items()}


def _warnings(found: LearningRate) -> list[str]:
    warnings = []
    at_edge = Counter(cell.edge for cell in found.cells if cell.edge)
    if at_edge:
        parts = listed([f"{count} ({edge})" for edge, count in at_edge.items()])
        warnings.append(
            f"The best rate is at the edge of the search, or there is none, in {at_edge.total()} of "
            f"{plural(len(found.cells), 'cell')}: {parts}. They are left out of the rule: a wider "
            f"search (--lr-factors) would bring them in."
        )
    at_edge = Counter(batch.edge for batch in found.batches if batch.edge)
    if at_edge:
        parts = listed([f"{count} at the {edge}" for edge, count in at_edge.items()])
        warnings.append(
            f"The best batch is at the edge of those tried for {at_edge.total()} of "
            f"{len(found.batches)} pairs of N and D ({parts}); they are left out of the batch rule."
        )
    if found.too_few:
        warnings.append(
            f"{plural(found.too_few, 'cell')} with fewer than {LEAST_RATES} rates that ended well."
        )
    return warnings


# --- tables -------------------------------------------------------------------------------------


def _rule_grid(found: LearningRate) -> list[Grid]:
    def exponent(variable: str) -> Any:
        def show(row: tuple[str, FitResult]) -> str:
            known = {name: with_interval(*value) for name, *value in _exponents(row[1])}
            return known.get(variable, "–")

        return show

    rules = (
        ("best rate", found.rate),
        ("best batch (tokens)", found.batch),
        ("best rate at the best batch", found.rate_at_best_batch),
    )
    return table(
        "Rules: constant times N, D and B to these powers (95% intervals); N without embeddings, D and "
        "B in tokens.",
        [row for row in rules if not row[1].failure],
        {
            "of": lambda row: row[0],
            "constant": lambda row: number(next(iter(row[1].parameters.values()))),
            **{variable: exponent(variable) for variable in "NDB"},
            "residual": lambda row: f"{math.expm1(row[1].details['residual']):.0%}",
            "cells": lambda row: str(row[1].n_used),
        },
        text=("of",),
    )


def _cell_grid(found: LearningRate) -> list[Grid]:
    def best(cell: RateCell) -> str:
        if cell.edge:
            return f"– ({cell.edge})"
        return f"{number(cell.best.value)} ({edges(cell.best.interval)})"

    return table(
        "Best rate of every cell with its 95% interval, and the loss there (nats per token).",
        found.cells,
        {
            **PLACE,
            "best rate": best,
            "loss": lambda cell: f"{cell.losses.min() if cell.edge else cell.lowest:.3f}",
        },
    )


def _published_grid(found: LearningRate) -> list[Grid]:
    """At every N and D the batch of lowest loss, whose rate the published rules speak of."""
    cells = found.at_best_tried_batch

    def rule(name: str) -> Any:
        def show(cell: RateCell) -> str:
            rate = published_rates(cell, cell.d)[name]
            return f"{number(rate, 2)} ({number(rate / cell.best.value, 2)}×)"

        return show

    return table(
        "The rate found at the best batch tried, and what the published rules give, with its ratio to "
        "the rate found. They were fitted to far larger models and runs.",
        cells,
        {
            **PLACE,
            "found": lambda cell: number(cell.best.value, 2),
            **{name: rule(name) for cell in cells[:1] for name in published_rates(cell, cell.d)},
        },
    )


# --- figures ------------------------------------------------------------------------------------


def _parabola_chart(found: LearningRate) -> Chart:
    """Loss against rate: a panel a size and batch, a colour a number of tokens."""
    cells = found.cells
    sizes = _ends_and_middle(sorted({cell.n for cell in cells}))
    batches = _ends_and_middle(sorted({cell.b for cell in cells}))
    colours = style.ordered_colours([cell.d for cell in cells])
    with style.canvas(7.0, 0.9 + 1.75 * len(batches)) as figure:
        panels = figure.subplots(len(batches), len(sizes), squeeze=False, sharex=True, sharey=True)
        for row, b in zip(panels, batches, strict=True):
            for axes, n in zip(row, sizes, strict=True):
                for cell in (c for c in cells if (c.n, c.b) == (n, b)):
                    _draw_cell(axes, cell, colours[cell.d])
                axes.set_title(f"N = {si(n)}, B = {si(b)}", fontsize=8.5)
            row[0].set_ylabel("loss (nats)")
        for axes in panels[-1]:
            axes.set_xlabel("peak learning rate")
            style.log_axis(axes.xaxis, "power")
        lowest = [float(cell.losses.min()) for cell in cells]
        panels[0, 0].set_ylim(min(lowest) - 0.15, max(lowest) + 0.8)
        handles = [panels[0, 0].plot([], [], "o-", ms=3, color=colours[d])[0] for d in colours]
        labels = [f"D = {si(d)}" for d in colours]
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        return style.render(
            figure,
            name="learning_rate-cells",
            caption="Loss against the peak learning rate, with the parabola of every cell; diamonds "
            "mark its minimum and its 95% interval. Cells without a diamond have their best rate at "
            "the edge of the search. Losses far above are cut off.",
            alt=f"Loss against learning rate for {plural(len(cells), 'cell')}.",
        )


def _ends_and_middle(values: list[float]) -> list[float]:
    if len(values) <= MOST_PANELS:
        return values
    return [values[0], values[len(values) // 2], values[-1]]


def _draw_cell(axes: Any, cell: RateCell, colour: str) -> None:
    axes.plot(cell.rates, cell.losses, "o", ms=2.8, color=colour, alpha=0.8)
    if cell.edge:
        means = pd.Series(cell.losses).groupby(cell.rates).mean()
        axes.plot(means.index, means, ":", lw=0.8, color=colour)
        return
    rates = np.geomspace(cell.rates.min(), cell.rates.max(), 60)
    curve = np.polyval(cell.parabola, np.log(rates / cell.tried))
    axes.plot(rates, curve, color=colour, lw=1)
    if cell.best.interval:
        axes.plot(cell.best.interval, [cell.lowest] * 2, color=colour, lw=2.2, alpha=0.6)
    look = {"color": colour, "mec": style.PAPER, "mew": 0.6, "ms": 4, "zorder": 4}
    axes.plot(cell.best.value, cell.lowest, "D", **look)


def _rule_chart(found: LearningRate) -> list[Chart]:
    """The best rate against each variable; lines join cells that differ in it alone."""
    inside = found.inside
    if len(inside) < 2:
        return []
    colours = style.ordered_colours([cell.n for cell in inside])
    by_tokens = style.ordered_colours([cell.d for cell in inside])
    labels = {"n": "size N", "d": "tokens D", "b": "batch B (tokens)"}
    with style.canvas(7.0, 3.5) as figure:
        panels = figure.subplots(1, 3, sharey=True)
        for axes, (name, label) in zip(panels, labels.items(), strict=True):
            for line in _lines(inside, name):
                colour = by_tokens[line[0].d] if name == "n" else colours[line[0].n]
                bests = [replace(cell.best, at=(getattr(cell, name),)) for cell in line]
                look = {"color": colour, "marker": "o"}
                figures.plot_estimates(axes, bests, look, bar=0.6, lw=0.8, ms=4, mew=0)
            axes.set_xlabel(label)
        _draw_published(panels[0], inside)
        for axes in panels:
            style.log_axis(axes.xaxis, "count")
        style.log_axis(panels[0].yaxis, "power")
        panels[0].set_ylabel("best learning rate")
        for axes, values, letter in ((panels[0], by_tokens, "D"), (panels[1], colours, "N")):
            axes.legend(
                [axes.plot([], [], "o-", ms=3, color=colour)[0] for colour in values.values()],
                [f"{letter} = {si(value)}" for value in values],
                loc="upper center",
                bbox_to_anchor=(0.5, -0.2),
                ncols=2,
                columnspacing=0.8,
                handlelength=1.2,
            )
        return [
            style.render(
                figure,
                name=NAME,
                caption="The best learning rate of every cell, with its 95% interval, against size, "
                "tokens and batch; lines join cells that differ in that alone, coloured by D on the left "
                "and by N on the right. N is without embeddings. Grey: the published rules at these sizes "
                "and the middle number of tokens.",
                alt=f"Best learning rate of {plural(len(inside), 'cell')} against N, D and B.",
            )
        ]


def _lines(cells: Sequence[RateCell], name: str) -> list[list[RateCell]]:
    """The cells that differ in one attribute alone, sorted by it."""
    lines: dict[tuple, list[RateCell]] = {}
    for cell in sorted(cells, key=lambda cell: getattr(cell, name)):
        rest = tuple(getattr(cell, other) for other in "ndb" if other != name)
        lines.setdefault(rest, []).append(cell)
    return list(lines.values())


def _draw_published(axes: Any, inside: Sequence[RateCell]) -> None:
    tokens = sorted({cell.d for cell in inside})
    models = {cell.n: cell for cell in inside}
    models = [models[n] for n in sorted(models)]
    rates = pd.DataFrame([published_rates(cell, tokens[len(tokens) // 2]) for cell in models])
    dashes = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)))
    for name, dash in zip(rates, dashes, strict=True):
        sizes = [cell.n for cell in models]
        axes.plot(sizes, rates[name], ls=dash, color=style.MUTED, lw=1)
        axes.annotate(
            name,
            (sizes[0], rates[name][0]),
            xytext=(2, 2),
            textcoords="offset points",
            fontsize=6.5,
            color=style.MUTED,
            bbox={"fc": style.PAPER, "ec": "none", "pad": 0.4, "alpha": 0.8},
        )
