"""Sample efficiency: the tokens and updates that each size needs to reach a loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmscale.report import figures, style
from lmscale.report.caveats import BATCH_NOTE
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.tables import by_family, edges, shown, table
from lmscale.studies.efficiency import Efficiency, Reached, has_one_batch
from lmscale.studies.estimate import LEAST_SEEDS
from lmscale.studies.learning_curves import NO_CURVES
from lmscale.studies.results import Results
from lmscale.wording import number, plural, sentence, si, with_interval

NAME = "efficiency"
TITLE = "Sample efficiency: tokens and steps to a loss"


@register(NAME)
def section(found: Efficiency, results: Results) -> Section:
    exponent = found.estimates["exponent"]
    if not found.reached:
        why = exponent.undecided_because
        finding = sentence(why) if why == NO_CURVES else f"No law yet: {why}."
        return Section(
            name=NAME,
            title=TITLE,
            finding=finding,
            grids=_families(found),
            measures=_measures(found),
        )
    label = "exponent of the tokens to a loss, against N"
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        conclusive=exponent.interval is not None,
        key_numbers=[KeyNumber.of_estimate(label, exponent)],
        charts=[_chart(found)],
        grids=[*_grid(found), *_families(found)],
        measures=_measures(found),
        warnings=_warnings(found),
    )


def _families(found: Efficiency) -> list[Grid]:
    columns = {"exponent": "exponent", "ratio": "smallest over largest size"}
    return by_family("Tokens to a loss against N", [found, *found.others], columns)


def _finding(found: Efficiency) -> str:
    first, exponent = found.reached[0], found.estimates["exponent"]
    times, interval, change = first.ratio.value, first.ratio.interval, "fewer"
    if times <= 1:
        times, change = 1 / times, "more"
        interval = interval and (1 / interval[1], 1 / interval[0])
    return (
        f"Over {len(found.reached)} losses the tokens to reach one go as "
        f"N^{shown(exponent, '95% interval')}: to {first.loss:.2f} nats the model of "
        f"N = {si(first.sizes[-1])} needs {with_interval(times, interval)} times {change} than that "
        f"of {si(first.sizes[0])}."
    )


def _measures(found: Efficiency) -> dict[str, Measure]:
    what = {
        "exponent": "exponent of the tokens (and steps) to a loss against N",
        "ratio": "tokens to a loss, the smallest model over the largest",
    }
    if found.reached:
        first, last = found.reached[0], found.reached[-1]
        low, high = si(first.sizes[0]), si(first.sizes[-1])
        seeds = plural(found.ladder.n_seeds, "seed")
        what["exponent"] += (
            f", mean of {len(found.reached)} losses from {first.loss:.2f} to {last.loss:.2f}, N from "
            f"{low} to {high}, {seeds}"
        )
        what["ratio"] = f"tokens to {first.loss:.2f} nats, N = {low} over N = {high}"
    return {name: Measure.of(text, found.estimates[name]) for name, text in what.items()}


def _warnings(found: Efficiency) -> list[str]:
    warnings = [] if found.ladder.measured_batch else [BATCH_NOTE]
    if found.ladder.n_seeds < LEAST_SEEDS:
        warnings.append(f"Fewer than {LEAST_SEEDS} seeds a size: there are no intervals.")
    if not has_one_batch(found.ladder):
        warnings.append("The sizes were trained with different batches; B_crit(L) corrects for it.")
    return warnings


def _grid(found: Efficiency) -> list[Grid]:
    return table(
        "Least tokens and steps to a loss, adjusted by B_crit(L), with 95% intervals over seeds; the "
        "exponent is that of a straight line through the sizes that reached a loss.",
        [(one, tokens) for one in found.reached for tokens in one.tokens],
        {
            "loss": lambda row: f"{row[0].loss:.3f}",
            "N": lambda row: si(row[1].at[0]),
            "E_min, tokens": lambda row: si(row[1].value),
            "95% interval": lambda row: edges(row[1].interval, si),
            "S_min, steps": lambda row: number(row[1].value / row[0].b_crit),
            "exponent": lambda row: shown(row[0].exponent) if row[1] is row[0].tokens[0] else "",
        },
    )


def _chart(found: Efficiency) -> Chart:
    colours = style.ordered_colours([one.loss for one in found.reached])
    with style.canvas(7.0, 3.1) as figure:
        left, right = figure.subplots(1, 2)
        for one in found.reached:
            look = {"color": colours[one.loss], "marker": "o"}
            _draw_law(left, right, one, found, look["color"])
            figures.plot_estimates(left, one.tokens, look)
            figures.plot_estimates(right, one.tokens, look, per=one.b_crit)
        for axes, label, title in (
            (left, "$E_{min}$, tokens", "Tokens to a loss"),
            (right, "$S_{min}$, updates", "Steps to a loss"),
        ):
            figures.size_axes(axes, y=label, title=title, log_y=False)
            axes.autoscale_view()
            style.log_axis(axes.yaxis, "count")
        figures.loss_legend(figure, colours, marker="o", ms=5, lw=0)
        lines = "" if found.law.failure else " Lines: the fitted L(N, S_min)."
        return style.render(
            figure,
            name="sample-efficiency",
            caption="Tokens and updates that each size needs to reach a loss, one colour a loss, "
            "adjusted to the least of each by B_crit(L) (Kaplan et al. 2020, Fig. 19); at one batch "
            f"the two differ by B_crit(L) alone. Bars: 95% intervals over seeds.{lines} The paper's "
            "largest and smallest models differ by about 100.",
            alt=f"Tokens and steps to {len(found.reached)} losses against model size.",
        )


def _draw_law(left: Any, right: Any, one: Reached, found: Efficiency, colour: str) -> None:
    """S_min(N) at a loss by the fitted law, and E_min with it."""
    if found.law.failure:
        return
    k, sizes = found.law.parameters, found.ladder.sizes
    n = np.geomspace(sizes[0].n_params, sizes[-1].n_params, 80)
    over = one.loss - (k["N_c"] / n) ** k["alpha_N"]
    steps = np.where(over > 0, k["S_c"] / np.maximum(over, 1e-9) ** (1 / k["alpha_S"]), np.nan)
    # Close to a size's converged loss the line rises out of the figure.
    steps[steps > 3 * max(tokens.value for tokens in one.tokens) / one.b_crit] = np.nan
    left.plot(n, steps * one.b_crit, color=colour, lw=1.1)
    right.plot(n, steps, color=colour, lw=1.1)
