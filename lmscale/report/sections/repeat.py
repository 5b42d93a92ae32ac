"""What repeated data cost against fresh data, and what they are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lmscale.laws import FitResult
from lmscale.laws.data_constrained import MUENNIGHOFF, effective, fed_params
from lmscale.laws.result import interval
from lmscale.report import caveats, figures, style
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.tables import parameter, shown, table
from lmscale.studies.estimate import LEAST_SEEDS, Estimate
from lmscale.studies.repeat import Repeat, decay, is_fresh, nearest
from lmscale.studies.results import Results
from lmscale.wording import listed, number, plural, sentence, si

NAME = "repeat"
TITLE = "The worth of repeated data"
#: Loss of the paper's model of 8.7 billion parameters after 4 epochs, above one on fresh data.
PAPER_EXCESS = (4, 0.005)
#: What intervals over seeds leave out: the order and the first weights vary with the seed, not this.
ONE_SET = "on one drawn set of unique tokens"
#: How the base law enters the intervals where it was fitted to the same runs.
OWN_BASE = "each draw with a base law of its own"
#: By which factor the points of one size lie beside those of the next.
ASIDE = 1.04
LABELS = {
    "excess_at_4": "extra loss after 4 epochs, against fresh data",
    "worth_at_16": "worth of a token at 16 epochs, in fresh tokens",
    "R_D_star": "R_D*, epochs in which repeated data lose their worth",
}


@register(NAME)
def section(found: Repeat, results: Results) -> Section:
    if not len(found.pairs):
        finding = "No repeated run has a run of equal length on fresh data beside it yet."
        finding = finding if len(found.runs) else "No run has ended well yet."
        return Section(name=NAME, title=TITLE, finding=finding, fits=found.fits)
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        conclusive=True,
        details=_details(found),
        key_numbers=_key_numbers(found.estimates),
        charts=[_loss_chart(found, results.bits_per_nat), _worth_chart(found)],
        grids=[*_worth_grid(found), *_law_grid(found)],
        fits=found.fits,
        measures=_measures(found),
        warnings=[*_warnings(found), *caveats.lost_runs(results)],
    )


# --- words --------------------------------------------------------------------------------------


def _percent(value: float) -> str:
    """A share as a signed percentage: +0.4%, −1.2%."""
    return f"{value:+.1%}".replace("-", "−")


def _percents(one: Estimate) -> str:
    if not one.is_known:
        return "–"
    edges = " to ".join(map(_percent, one.interval)) if one.interval else "no interval"
    return f"{_percent(one.value)} ({edges})"


def _finding(found: Repeat) -> str:
    compared = found.pairs[found.pairs["fresh"].notna()]
    text = "No repeated run has a fresh one of equal length"
    if len(compared):
        epochs = nearest(compared, 4) or compared["epochs"].min()
        excess = next(row.excess for row in found.epochs if row.epochs == epochs)
        text = (
            f"After {epochs:g} epochs the loss is {_percents(excess)} against that of as many fresh "
            f"tokens"
        )
    star = found.estimates["R_D_star"]
    if star.is_known:
        text += (
            f"; repeated tokens lose their worth with R_D* = {shown(star, '95% interval')} epochs"
        )
    return f"{text}."


def _details(found: Repeat) -> list[str]:
    texts, parts = [], []
    for row in found.epochs:
        if row.worth.is_known and row.epochs >= 4:
            n, of = row.worth.n, row.sizes
            some = f" ({n} of {of} sizes)" if n < of else ""
            parts.append(f"{shown(row.worth)} at {row.epochs:g} epochs{some}")
    if parts:
        texts.append(
            "Read off the fresh runs, a token of a repeated set is worth, in fresh tokens, "
            f"{listed(parts)}; the paper's law says 0.93 at 4, 0.66 at 16 and 0.38 at 40."
        )
    if not found.fit.failure:
        forty = Estimate.of_fit(
            found.fit, "worth", lambda p: effective(1.0, 39.0, p["R_D_star"]) / 40
        )
        texts.append(
            f"By the law fitted here 40 epochs are worth {shown(forty)} of as many fresh tokens. It "
            f"has no term for overfitting, so it cannot follow a loss that rises with more epochs."
        )
    return texts


def _key_numbers(estimates: Mapping[str, Estimate]) -> list[KeyNumber]:
    found = []
    for name, label in LABELS.items():
        one = estimates[name]
        if not one.is_known:
            continue
        if name == "excess_at_4":
            value, edges = _percents(one).removesuffix(")").split(" (")
            found.append(KeyNumber(label=label, value=value, interval=edges))
        else:
            found.append(KeyNumber.of_estimate(label, one))
    return found


def _measures(found: Repeat) -> dict[str, Measure]:
    estimates = found.estimates
    base = OWN_BASE if _has_own_base(found.fit) else "the base law held fixed"
    gain, star = estimates["gain_beyond_40"], estimates["R_D_star"]
    fall = "from {:g} to {:g} epochs".format(*gain.at) if gain.at else "beyond 40 epochs"
    four, sixteen = (
        (estimates[name].at or (wanted,))[0]
        for name, wanted in (("excess_at_4", 4), ("worth_at_16", 16))
    )
    what = {
        "excess_at_4": f"loss after {four:g} epochs over that of as many fresh tokens, less one",
        "worth_at_16": f"fresh tokens that {sixteen:g} epochs are worth over the tokens seen",
        "gain_beyond_40": f"share by which the loss falls {fall}",
        "R_D_star": f"R_D* of D' = U + U R_D* (1 − exp(−R/R_D*)), {plural(star.n, 'cell')} of size and "
        f"length, {base}",
    }
    for name in ("excess_at_4", "worth_at_16", "gain_beyond_40"):
        one = estimates[name]
        if one.is_known:
            over = f"mean of {plural(one.n, 'size')}, {plural(one.seeds, 'seed')}"
            what[name] += f", {over} {ONE_SET}"
    return {name: Measure.of(text, estimates[name]) for name, text in what.items()}


def _warnings(found: Repeat) -> list[str]:
    fit, pairs = found.fit, found.pairs
    warnings = [sentence(text) for text in fit.warnings]
    if not fit.failure and fit.parameters["E"] == MUENNIGHOFF["E"]:
        warnings.append(
            "Too few fresh runs for a base law of their own: the fit takes the paper's."
        )
    seeds = found.runs["seed"].nunique()
    if seeds < LEAST_SEEDS:
        warnings.append(
            f"{plural(seeds, 'seed')}: the spread of the differences to fresh data is not known."
        )
    rising = pairs.groupby(["params", "unique", "epochs"])["loss"].mean()
    rising = rising.groupby(["params", "unique"]).agg(lambda s: s.iloc[-1] > 1.005 * s.min())
    if rising.any():
        warnings.append(
            f"The loss of {plural(int(rising.sum()), 'size')} rises again with the most epochs: these "
            f"runs overfit, which the law leaves out."
        )
    warnings += caveats.one_family(found.families)
    warnings.append(
        "All seeds, and all sizes of one set, repeat the same unique tokens: the intervals hold the "
        "seeds' noise, and not which tokens were drawn."
    )
    return warnings


# --- tables -------------------------------------------------------------------------------------


def _worth_grid(found: Repeat) -> list[Grid]:
    star = MUENNIGHOFF["R_D_star"]
    return table(
        "What repeating costs and what it is worth, means over the sizes that have every seed; 95% "
        "intervals over seeds (three or more), those of the law from a bootstrap over cells. Worth is "
        "D'/D, fresh tokens of equal loss over tokens seen, from the sizes whose losses the fresh runs "
        "reach.",
        found.epochs,
        {
            "epochs": lambda row: f"{row.epochs:g}",
            "loss against fresh data": lambda row: _percents(row.excess),
            "worth, read off": lambda row: shown(row.worth),
            "sizes": lambda row: f"{row.worth.n} of {row.sizes}",
            "worth, law fitted here": lambda row: shown(row.by_law),
            "worth, paper's law": lambda row: number(
                float(effective(1.0, row.epochs - 1, star) / row.epochs)
            ),
        },
    )


def _has_own_base(fit: FitResult) -> bool:
    """Whether the base law was fitted to these runs: only then do the draws hold its parameters."""
    return "A" in fit.draws


def _feeds_all(found: Repeat) -> bool:
    """Whether no model is larger than its unique tokens can feed, so that R_N* does not enter the law."""
    runs = found.runs
    fed = fed_params(found.fit.parameters, runs["unique"].to_numpy(float))
    return bool(np.all(runs["params"].to_numpy(float) <= fed))


def _law_grid(found: Repeat) -> list[Grid]:
    fit = found.fit

    def here(name: str) -> str:
        if name not in fit.intervals:
            return number(fit.parameters[name])
        if name == "R_N_star" and (np.ptp(fit.intervals[name]) == 0 or _feeds_all(found)):
            return "– (these runs do not determine it)"
        return shown(decay(fit, name)) if name.endswith("_star") else parameter(fit, name)

    names = ("R_D_star", "R_N_star", "E", "A", "B", "alpha", "beta")
    return table(
        "L = E + A/N'^α + B/D'^β, N with embeddings: the base law is fitted to the runs of one epoch "
        "and held fixed, R_D* and R_N* to all. 95% intervals from a bootstrap over cells, "
        f"{OWN_BASE if _has_own_base(fit) else 'without the noise of the base law'}.",
        () if fit.failure else names,
        {
            "parameter": lambda name: (
                name.replace("_star", "*").replace("alpha", "α").replace("beta", "β")
            ),
            "here": here,
            "Muennighoff et al. 2023": lambda name: number(MUENNIGHOFF[name]),
        },
        text=("parameter",),
    )


# --- figures ------------------------------------------------------------------------------------


def _loss_chart(found: Repeat, bits_per_nat: float | None) -> Chart:
    """Loss against epochs beside fresh data, and the extra loss."""
    unique = sorted(found.pairs["unique"].unique())
    sets = si(unique[0]) if len(unique) == 1 else f"{si(unique[0])} to {si(unique[-1])}"
    with style.canvas(10.2, 4.0) as figure:
        left, right = figure.subplots(1, 2)
        _draw_losses(left, right, found)
        left.set(xlabel="epochs", ylabel=figures.LOSS)
        left.set_title("Loss of repeated and fresh data")
        right.axhline(0, color=style.MUTED, lw=0.9, ls="--")
        label = "Muennighoff et al. 2023, 8.7B"
        right.plot(*PAPER_EXCESS, "*", color=style.INK, ms=9, zorder=5, label=label)
        right.set(xlabel="epochs", ylabel="extra loss over fresh data")
        right.set_title("Extra loss of repeated data")
        right.yaxis.set_major_formatter(lambda y, _: f"{100 * y:g}%".replace("-", "−"))
        for axes in (left, right):
            axes.legend()
            style.log_axis(axes.xaxis, "octave")
        style.log_axis(left.yaxis, "plain")
        style.bits_axis(left, bits_per_nat)
        return style.render(
            figure,
            name="repeat",
            caption=f"Left: loss after so many epochs of {sets} unique tokens (solid), and of runs as "
            "long on fresh data (dashed, hollow). Right: the difference, relative to the fresh run of "
            "the same seed; the star is the paper's largest model. Points are means over seeds, bars "
            "their 95% interval (three or more seeds) or range (two).",
            alt="Loss against epochs for repeated and fresh data, and the difference.",
        )


def _draw_losses(left: Any, right: Any, found: Repeat) -> None:
    pairs, sizes = found.pairs, sorted(found.pairs["n_params"].unique())
    colours = style.ordered_colours(sizes)
    # Both curves begin with the first epoch, in which all data are fresh.
    sets = pairs[["params", "unique"]].drop_duplicates()
    once = found.runs[is_fresh(found.runs)].merge(sets)

    def groups(rows: pd.DataFrame, column: str) -> list[tuple[float, pd.Series]]:
        return [(epochs, cell[column].dropna()) for epochs, cell in rows.groupby("epochs")]

    for size in sizes:
        own, start = (rows[rows["n_params"] == size] for rows in (pairs, once))
        compared = own.dropna(subset="fresh")
        look = {"color": colours[size], "marker": "o", "ms": 5, "mew": 0.5, "lw": 1.0}
        fresh = pd.concat([start.assign(fresh=start["loss"]), compared])
        hollow = figures.hollow(look, marker="s", ms=4.2, ls="--")
        figures.plot_seeds(left, groups(fresh, "fresh"), hollow)
        repeated = groups(pd.concat([start, own]), "loss")
        figures.plot_seeds(left, repeated, look, label=f"N = {si(size)}")
        figures.plot_seeds(right, groups(compared, "excess"), look)
    look = figures.hollow({"color": style.MUTED, "marker": "s", "ls": "--", "lw": 1})
    left.plot([], [], **look, label="fresh data")


def _worth_chart(found: Repeat) -> Chart:
    with style.canvas(6.4, 4.4) as figure:
        axes = figure.subplots()
        draw_worth(axes, found.fit, found.pairs)
        return style.render(
            figure,
            name="repeat-worth",
            caption="Effective data: the fresh tokens that repeated ones are worth, over the unique "
            "tokens, against epochs. Points: read off the fresh runs of the same size and seed, means "
            "with their 95% interval over seeds (the range for two), hollow where those do not reach "
            "every seed; curves: D'/U = 1 + R_D* (1 − exp(−R/R_D*)), fitted to these runs (band: 95%) "
            "and with the paper's R_D* = 15.4; dashed: fresh data.",
            alt="Effective data against epochs, measured, fitted and as published.",
        )


def draw_worth(axes: Any, fit: FitResult, pairs: pd.DataFrame) -> None:
    """D'/U against epochs: measured points, the fitted law with its band, and the paper's.

    Args:
      fit: of "data-constrained"; where it was refused, the paper's curve alone.
      pairs: columns n_params, epochs, worth (D'/U); one row a seed.
    """
    most = pairs["epochs"].max()
    grid = np.geomspace(1, 1.15 * most, 120)
    axes.plot(grid, grid, color=style.MUTED, lw=1, ls="--", label="fresh data")
    star = MUENNIGHOFF["R_D_star"]
    label = f"Muennighoff et al. 2023, $R_D^*$ = {star:.1f}"
    axes.plot(grid, effective(1, grid - 1, star), color=style.INK, lw=1.2, ls="-.", label=label)
    sizes = sorted(pairs["n_params"].unique())
    colours = style.ordered_colours(sizes)
    if not fit.failure:
        own, color = fit.parameters["R_D_star"], colours[sizes[len(sizes) // 2]]
        edges = None
        if fit.draws:
            drawn = effective(1, grid - 1, fit.draws["R_D_star"][:, None])
            edges = interval(drawn, fit.draw_level or fit.level)
        label = f"these runs, $R_D^*$ = {number(own)}"
        figures.plot_band(axes, grid, effective(1, grid - 1, own), edges, color, label=label)
    _draw_sizes(axes, pairs, sizes, colours)
    axes.set(xlabel="epochs D / U", ylabel="effective data D' / U", xlim=(0.9, 1.2 * most))
    axes.set_ylim(0.8, min(1.2 * most, 3 * max(17, pairs["worth"].max())))
    # Bars may reach anywhere within the axes.
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    style.log_axis(axes.xaxis, "octave")
    style.log_axis(axes.yaxis, "octave")


def _draw_sizes(
    axes: Any, pairs: pd.DataFrame, sizes: Sequence[float], colours: Mapping[float, str]
) -> None:
    """The measured points, those of one epoch count side by side."""
    for index, size in enumerate(sizes):
        aside = ASIDE ** (index - (len(sizes) - 1) / 2)
        look = {"color": colours[size], "marker": "o", "ms": 5, "mew": 0.5, "lw": 0}
        groups = {True: [], False: []}
        for epochs, cell in pairs[pairs["n_params"] == size].groupby("epochs"):
            within = cell["worth"].dropna()
            if len(within):
                groups[len(within) == len(cell)].append((epochs * aside, within))
        figures.plot_seeds(axes, groups[True], look, zorder=4)
        figures.plot_seeds(axes, groups[False], figures.hollow(look), zorder=4)
        axes.plot([], [], "o", color=colours[size], ms=5, label=f"N = {si(size)}")
