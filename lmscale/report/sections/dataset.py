"""Loss over model size and dataset size: the joint law, overfitting, and where early stopping ends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lmscale.laws import FitResult
from lmscale.laws.kaplan import overfitting
from lmscale.laws.result import interval
from lmscale.report import caveats, figures, style
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.tables import MEANS, mean_of, parameter, table
from lmscale.studies.dataset import (
    LEAST_UPDATES,
    NOISE,
    PAPER,
    RULE,
    Dataset,
    Stops,
    data_share,
    enters_fit,
    overfitting_points,
    paper_points,
)
from lmscale.studies.estimate import Estimate
from lmscale.studies.learning_curves import evaluations
from lmscale.studies.results import Results
from lmscale.wording import between, number, plural, power_of_ten, sentence, si

NAME = "dataset"
TITLE = "Loss over model size and dataset size"


@register(NAME)
def section(found: Dataset, results: Results) -> Section:
    if not len(found.runs):
        finding = "No run on a dataset has ended well yet."
        return Section(name=NAME, title=TITLE, finding=finding)
    charts = [_law_chart(found, results.bits_per_nat)]
    if not found.laws.nd.failure:
        charts.append(_overfitting_chart(found))
    charts += _stopping_chart(found, results)
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        conclusive=not found.laws.nd.failure,
        details=_details(found),
        key_numbers=_key_numbers(found),
        charts=charts,
        grids=[*_law_grid(found.laws.nd), *_run_grid(found.runs)],
        fits=found.fits,
        measures=_measures(found),
        warnings=[*_warnings(found), *caveats.lost_runs(results)],
    )


# --- words --------------------------------------------------------------------------------------


def _tokens_range(need: Estimate) -> str:
    return f"{si(need.interval[0])} to {si(need.interval[1])}" if need.interval else ""


def _finding(found: Dataset) -> str:
    if found.laws.nd.failure:
        return f"No law L(N, D) yet: {found.laws.nd.failure}."
    need, exponent = found.requirement, found.estimates["overfitting_exponent"]
    known = ""
    if exponent.interval:
        known = f" (95% interval of the exponent {between(exponent.interval)})"
    tokens = f" ({_tokens_range(need)})" if need.interval else ""
    return (
        f"Overfitting depends on N^{exponent.value:.2f}/D{known}; at N = {si(found.largest)} it stays "
        f"below {NOISE:.0%} from {si(need.value)} tokens on{tokens}."
    )


def _details(found: Dataset) -> list[str]:
    nd, d, ns, stops = found.laws.nd, found.laws.d, found.laws.ns, found.stops
    texts = []
    if not nd.failure:
        constant, power = RULE
        texts.append(
            f"Kaplan et al. 2020 found N^{power:g}/D and {constant:g} N^{power:g} tokens, which at "
            f"N = {si(found.largest)} are {si(constant * found.largest**power)}; a token there carries "
            f"more text where its vocabulary is larger."
        )
    if not d.failure:
        text = (
            f"The loss of the largest model falls as D^−α with α = {parameter(d, 'alpha_D')}, where "
            f"the paper found 0.095"
        )
        if not nd.failure:
            low, high = d.ranges["tokens"]
            first, last = (data_share(nd, found.largest, tokens) for tokens in (low, high))
            text += (
                f"; by L(N, D) data are {first:.0%} of what limits it at D = {si(low)} and {last:.0%} "
                f"at {si(high)}"
            )
        texts.append(f"{text}.")
    if stops.judged:
        texts.append(
            f"Of {plural(stops.judged, 'cell')} of N and D whose runs stopped early, {stops.kept} had "
            f"their lowest test loss, in the mean over seeds, at or after the bound S_c / [L(N, D) − "
            f"L(N, ∞)]^(1/α_S), with S_c = {number(ns.parameters['S_c'])} and α_S = "
            f"{number(ns.parameters['alpha_S'])} from the learning curves on the largest dataset."
        )
    return texts


def _key_numbers(found: Dataset) -> list[KeyNumber]:
    if found.laws.nd.failure:
        return []
    exponent, need = found.estimates["overfitting_exponent"], found.requirement
    tokens = f"tokens that keep N = {si(found.largest)} from overfitting by {NOISE:.0%}"
    numbers = [
        KeyNumber.of_estimate("exponent r of overfitting in N^r / D", exponent),
        KeyNumber(
            label=tokens, value=si(need.value), interval=_tokens_range(need) or "no interval"
        ),
    ]
    if not found.laws.d.failure:
        alpha = Estimate.of_parameter(found.laws.d, "alpha_D")
        numbers.append(KeyNumber.of_estimate("exponent of L(D), largest size", alpha))
    return numbers


def _measures(found: Dataset) -> dict[str, Measure]:
    one = found.estimates["overfitting_exponent"]
    seeds = plural(one.seeds, "seed")
    shared = " that share each subset" if one.seeds > 1 else ""
    where = f"{plural(one.n, 'cell')} of N and D, {seeds}{shared}"
    more = found.estimates["more_overfitting"]
    what = {
        "more_overfitting": "L(N, D) / L(N, full set) of the largest size over that of the smallest, less 1, "
        f"geometric mean over {plural(more.n, 'subset')}, {plural(more.seeds, 'seed')}",
        "overfitting_exponent": f"α_N / α_D of L(N, D), {where}",
        "overfitting_at_rule": "L(N, D) / L(N, ∞) − 1 of the largest size at D = 5e3 N^0.74, by the "
        f"fitted law, {where}",
        "share_above_stopping_bound": f"share of {plural(found.stops.judged, 'cell')} of N and D that "
        f"stopped early at or above the bound of eq. 5.7, means over {seeds}",
        "data_exponent": "exponent of L(D), largest size, runs that stopped early"
        + (f", {seeds}{shared}" if shared else ""),
    }
    return {name: Measure.of(text, found.estimates[name]) for name, text in what.items()}


def _warnings(found: Dataset) -> list[str]:
    runs, fits = found.runs, found.laws
    warnings = []
    for name, fit in (("L(N, D)", fits.nd), ("L(D)", fits.d), ("L(N, S)", fits.ns)):
        warnings += [f"{name}: {sentence(text)}" for text in fit.warnings]
    if left_out := int((~enters_fit(runs)).sum()):
        warnings.append(
            f"{plural(left_out, 'run')} with fewer than {LEAST_UPDATES} updates an epoch left out of "
            f"L(N, D), as in the paper."
        )
    seeds = runs["seed"].nunique()
    warnings.append(
        f"{plural(seeds, 'seed')} a cell: intervals come from how the cells' means scatter about the "
        f"law. {'All seeds of a subset' if seeds > 1 else 'All sizes'} train on the same sequences, and "
        f"small subsets are parts of the larger ones, so that which sequences were drawn is in no "
        f"interval."
    )
    unstopped = runs[~runs["stopped"] & (runs["dataset"] < runs["dataset"].max())]
    if len(unstopped):
        warnings.append(
            f"{plural(len(unstopped), 'run')} on a subset trained to the last step without being "
            f"stopped: longer training might lower the loss."
        )
    warnings += caveats.one_family(found.families)
    if missing := len(found.stops.bound) - found.stops.judged:
        warnings.append(
            f"{plural(missing, 'cell')} that stopped early left out of the bound on early stopping: "
            f"the loss is no higher than the law's for unlimited data."
        )
    return warnings


# --- tables -------------------------------------------------------------------------------------


def _law_grid(nd: FitResult) -> list[Grid]:
    if nd.failure:
        return []

    def here(name: str) -> str:
        if name.startswith("alpha"):
            return parameter(nd, name)
        edges = nd.intervals.get(name)
        own = power_of_ten(nd.parameters[name])
        return f"{own} ({' to '.join(map(power_of_ten, edges))})" if edges else own

    def paper(name: str) -> str:
        value = PAPER.parameters[name]
        return number(value) if name.startswith("alpha") else power_of_ten(value)

    names = ("alpha_N", "alpha_D", "N_c", "D_c")
    rows = [(name.replace("alpha_", "α_"), here(name), paper(name)) for name in names]
    rms = float(np.sqrt(np.mean(np.square(nd.residuals["residual"]))))
    return table(
        "L(N, D) = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D with 95% intervals, N without embeddings, beside "
        "Kaplan et al. 2020, Table 2 (its residual is that of a refit to Fig. 9). N_c and D_c depend "
        "on the vocabulary.",
        [*rows, ("rms residual", f"{rms:.1%}", "0.8%")],
        {
            "parameter": lambda row: row[0],
            "here": lambda row: row[1],
            "paper": lambda row: row[2],
        },
        text=("parameter",),
    )


def _run_grid(runs: pd.DataFrame) -> list[Grid]:
    def epochs(cell: pd.DataFrame) -> str:
        tokens = cell["best_step"].mean() * cell["batch_tokens"].mean()
        return number(tokens / cell["dataset"].iloc[0], 2)

    return table(
        f"Lowest test loss of every size and dataset. {MEANS}",
        [cell for _, cell in runs.groupby(["params", "dataset"])],
        {
            "N": lambda cell: si(cell["params"].iloc[0]),
            "D": lambda cell: si(cell["dataset"].iloc[0]),
            "seeds": lambda cell: str(len(cell)),
            "loss (nats)": lambda cell: mean_of(cell["loss"]),
            "best step": lambda cell: si(cell["best_step"].mean()),
            "epochs by then": epochs,
            "stopped early": lambda cell: f"{int(cell['stopped'].sum())} of {len(cell)}",
        },
    )


# --- figures ------------------------------------------------------------------------------------


def _law_chart(found: Dataset, bits_per_nat: float | None) -> Chart:
    """L(N, D) as a fan of curves over D, one a size, beside the paper's."""
    with style.canvas(10.2, 4.6) as figure:
        figure.get_layout_engine().set(wspace=0.06)
        own, paper = figure.subplots(1, 2)
        draw_fan(own, found.runs, found.laws.nd)
        draw_fan(paper, paper_points(), PAPER)
        own.set_title("These runs")
        paper.set_title("Kaplan et al. 2020, Fig. 9")
        style.bits_axis(own, bits_per_nat)
        return style.render(
            figure,
            name="dataset",
            caption="Lowest test loss against the size of the training set, one colour a size, with "
            "the law L(N, D) fitted to all (Kaplan et al. 2020, eq. 1.5) and its 95% band. Points are "
            "means over seeds, bars their 95% interval (three or more seeds) or range (two); hollow "
            "points have too short an epoch to enter the fit. Right: the paper's measured points, read "
            "off its figure, and its published constants; its vocabulary is 50,257 tokens.",
            alt="Loss against dataset size for several model sizes, these runs and the paper's.",
        )


def draw_fan(axes: Any, runs: pd.DataFrame, fit: FitResult) -> None:
    """Measured loss and a law L(N, D) against D, one curve a size.

    Args:
      runs: columns params, dataset, loss, batch_tokens; one row a seed.
      fit: of "kaplan-nd"; where it was refused, points alone.
    """
    colours = style.ordered_colours(runs["params"])
    grid = np.geomspace(runs["dataset"].min() / 1.3, runs["dataset"].max() * 1.3, 80)
    for size, color in colours.items():
        if not fit.failure:
            edges = None
            if fit.draws:
                with np.errstate(all="ignore"):
                    edges = fit.band(params=np.full_like(grid, size), tokens=grid)
            loss = fit.predict(params=size, tokens=grid)
            figures.plot_band(axes, grid, loss, edges, color, lw=1.2)
        _draw_cells(axes, runs[runs["params"] == size], "dataset", "loss", color)
    _size_legend(axes, colours)
    x, y = "D, tokens in the training set", "test loss (nats per token)"
    figures.size_axes(axes, x=x, y=y)


def _draw_cells(axes: Any, runs: pd.DataFrame, x: str, y: str, color: str) -> None:
    """Means over seeds with their bars, hollow where the cell did not enter the fit."""
    look = {"color": color, "marker": "o", "ms": 5, "mew": 0.5, "lw": 0}
    entered = enters_fit(runs)
    for part, style_of in ((runs[entered], look), (runs[~entered], figures.hollow(look, mew=1.2))):
        groups = [(place, cell[y]) for place, cell in part.groupby(x)]
        figures.plot_seeds(axes, groups, style_of)


def _size_legend(axes: Any, colours: Mapping[float, str]) -> None:
    """Below the panel, where it covers no data."""
    handles = [
        axes.plot([], [], "o-", color=color, ms=4.5, lw=1.2, label=f"N = {si(n)}")[0]
        for n, color in colours.items()
    ]
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": 3}
    axes.legend(handles=handles, **place, handlelength=1.4, columnspacing=1.2)


def _overfitting_chart(found: Dataset) -> Chart:
    """Overfitting against N^r / D: one curve for all sizes if the law holds."""
    with style.canvas(10.2, 4.4) as figure:
        panels = figure.subplots(1, 2)
        draw_overfitting(panels[0], found.runs, found.laws.nd)
        draw_overfitting(panels[1], paper_points(), PAPER)
        panels[0].set_title("These runs")
        panels[1].set_title("Kaplan et al. 2020, Fig. 9")
        return style.render(
            figure,
            name="dataset-overfitting",
            caption="Overfitting, the loss on a subset over the law's loss on unlimited data less "
            "one, against N^r/D with the fitted r = α_N/α_D: points of all sizes fall on the one curve "
            f"of the law if nothing else matters. Band: 95%; dashed: {NOISE:.0%}, the paper's noise "
            "between seeds. Right: the paper's points and constants.",
            alt="Overfitting against N to the r over D, these runs and the paper's.",
        )


def draw_overfitting(axes: Any, runs: pd.DataFrame, fit: FitResult) -> None:
    """L(N, D) / L(N, infinity) - 1 against N^(alpha_N/alpha_D) / D.

    Args:
      runs: as in `draw_fan`.
      fit: of "kaplan-nd".
    """
    p, runs = fit.parameters, overfitting_points(runs, fit)
    ratio = p["alpha_N"] / p["alpha_D"]
    colours = style.ordered_colours(runs["params"])
    grid = np.geomspace(runs["x"].min() / 1.5, runs["x"].max() * 1.5, 100)
    middle = math.sqrt(min(colours) * max(colours))
    tokens = middle**ratio / grid
    axes.plot(grid, overfitting(p, middle, tokens), color=style.INK, lw=1.2)
    if fit.draws:
        with np.errstate(all="ignore"):
            drawn = overfitting({k: v[:, None] for k, v in fit.draws.items()}, middle, tokens)
        low, high = interval(drawn, fit.draw_level or fit.level)
        axes.fill_between(grid, low, high, color=style.MUTED, alpha=0.25, lw=0)
    axes.axhline(NOISE, color=style.MUTED, lw=0.9, ls=(0, (4, 2)))
    for size, color in colours.items():
        _draw_cells(axes, runs[runs["params"] == size], "x", "overfitting", color)
    _size_legend(axes, colours)
    axes.set(xlabel=f"$N^{{{ratio:.2f}}}$ / D", ylabel="overfitting, L(N, D) / L(N, ∞) − 1")
    style.log_axis(axes.xaxis, "power")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%".replace("-", "−"))


def _stopping_chart(found: Dataset, results: Results) -> list[Chart]:
    """The bound on early stopping, and learning curves of one size over the datasets."""
    drawn = found.runs[found.runs["params"] == found.largest]
    drawn = drawn[drawn["seed"] == drawn["seed"].min()]
    curves = [row for row in drawn.itertuples() if row.run in results.metrics]
    if not curves:
        return []
    both = bool(found.stops.judged)
    right = (
        f"Test loss (solid) and training loss (dashed, with dropout) of N = {si(found.largest)} over "
        "the updates, one colour a dataset, one seed; points: the lowest test loss, which the run keeps."
    )
    left = (
        "Left: the update of the lowest test loss where runs stopped early (mean over seeds, with "
        "their range), against the bound of Kaplan et al. 2020, eq. 5.7, with its 95% interval; the "
        "bound says that nothing lies in the grey. Right: "
    )
    with style.canvas(10.2, 4.4) as figure:
        panels = figure.subplots(1, 1 + both, squeeze=False)[0]
        if both:
            draw_stops(panels[0], found.stops)
        _draw_curves(panels[-1], curves, results)
        panels[-1].set_title(f"N = {si(found.largest)}")
        caption = left + right[0].lower() + right[1:] if both else right
        return [
            style.render(
                figure,
                name="dataset-stopping",
                caption=f"{caption} As in the paper's Fig. 16.",
                alt="Where early stopping ends runs against its bound, and learning curves by dataset.",
            )
        ]


def draw_stops(axes: Any, stops: Stops) -> None:
    """Update of the lowest test loss of every cell against the bound of eq. 5.7."""
    low, high = stops.bound_interval()
    cells = stops.cells.assign(bound=stops.bound, low=low, high=high)
    cells = cells[np.isfinite(stops.bound)]
    colours = style.ordered_colours(cells["params"])
    ends = [cells[["bound", "first"]].min().min() / 1.6, cells[["bound", "last"]].max().max() * 1.6]
    for cell in cells.itertuples():
        color = colours[cell.params]
        edges = np.clip([cell.low, cell.high], *ends)
        axes.plot(edges, [cell.step] * 2, color=color, lw=0.9, alpha=0.6)
        axes.plot([cell.bound] * 2, [cell.first, cell.last], color=color, lw=0.9, alpha=0.6)
        axes.plot(cell.bound, cell.step, "o", color=color, mec=style.PAPER, mew=0.5, zorder=3)
    axes.plot(ends, ends, color=style.INK, lw=1)
    axes.fill_between(ends, [ends[0]] * 2, ends, color=style.FAINT, alpha=0.5, lw=0, zorder=0)
    axes.set(xlim=ends, ylim=ends)
    axes.set_xlabel(r"bound $S_c$ / [L(N, D) − L(N, ∞)]$^{1/\alpha_S}$ (updates)")
    axes.set_ylabel("update of the lowest test loss")
    axes.set_title("Early stopping")
    _size_legend(axes, colours)
    style.log_axis(axes.xaxis, "count")
    style.log_axis(axes.yaxis, "count")


def _draw_curves(axes: Any, curves: Sequence[Any], results: Results) -> None:
    curves = sorted(curves, key=lambda row: row.dataset)
    # By rank: the full set lies so far off that the subsets would look alike.
    ranks = style.ordered_colours(range(len(curves)), log=False)
    for row, color in zip(curves, ranks.values(), strict=True):
        records = results.metrics[row.run]
        steps, losses = evaluations(records)
        trained = [(r["step"], r["loss"]) for r in records if r.get("loss") is not None]
        trained = [(step, loss) for step, loss in trained if len(steps) and step >= steps[0]]
        if trained:
            dashed = {"lw": 0.8, "ls": (0, (3, 1.5)), "alpha": 0.8}
            axes.plot(*zip(*trained, strict=True), color=color, **dashed)
        axes.plot(steps, losses, color=color, lw=1.4, label=f"D = {si(row.dataset)}")
        axes.plot(row.best_step, row.loss, "o", color=color, mec=style.PAPER, mew=0.6, zorder=4)
    axes.legend(loc="upper right", handlelength=1.4)
    figures.size_axes(axes, x="updates", y=figures.LOSS)
