"""What repeated data are worth (Muennighoff et al. 2023).

A run of D tokens of which U are unique makes D/U epochs. Beside it stands a run of equal length on
fresh data. Two readings need no law: how much higher the repeated run's loss is, and how many fresh
tokens D' give the loss that it reaches, read off the fresh runs of its size and seed. The law says
D' = U + U R* (1 - exp(-R/R*)) with R = D/U - 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lmscale import laws
from lmscale.laws import FitError, FitResult, TableError
from lmscale.laws.data_constrained import MUENNIGHOFF, effective
from lmscale.laws.result import interval
from lmscale.report import caveats, style
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.studies.estimate import LEAST_SEEDS, few_seeds, interval_of_mean
from lmscale.studies.fits import refused
from lmscale.studies.results import Results
from lmscale.wording import family_name, listed, number, plural, si, with_interval

__all__ = ["analyse"]

NAME = "repeat"
TITLE = "The worth of repeated data"
#: A run is fresh where it sees no more than this many epochs.
ONCE = 1.01
#: An epoch count stands for another within this factor (the paper's 14 for 16).
NEAR = 1.3
#: Loss of the paper's model of 8.7 billion parameters after 4 epochs, above one on fresh data.
PAPER_EXCESS = (4, 0.005)
#: What intervals over seeds leave out: the order and the first weights vary with the seed, not this.
ONE_SET = "on one drawn set of unique tokens"
#: How far D' is read off beyond the longest fresh run, on its last two points.
REACH = 1.5
#: Draws of the law's fit.
BOOTSTRAP = 1000
#: Tokens of GPT-2's vocabulary, in which the paper's base law counts.
PAPER_VOCABULARY = 50_257


@dataclass(frozen=True)
class _Reading:
    """A number over seeds: its mean, and Student's interval where there are three seeds or more.

    Attributes:
      values: of every seed, the mean over the sizes.
      sizes: how many sizes have the number for every seed, out of `of`.
    """

    values: tuple[float, ...]
    sizes: int = 1
    of: int = 1

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def interval(self) -> tuple[float, float] | None:
        return interval_of_mean(self.values) if len(self.values) >= LEAST_SEEDS else None


def analyse(study: Results) -> Section:
    """Loss against epochs, beside fresh data; effective data; R_D* of the law."""
    families = study.families
    runs = _runs(study, families[0]) if families else pd.DataFrame()
    if not len(runs):
        return Section(name=NAME, title=TITLE, finding="No run has ended well yet.")
    pairs = _pairs(runs)
    fit = _fit(runs, int(study.table["vocab_size"].iloc[0]))
    if not len(pairs):
        return Section(
            name=NAME,
            title=TITLE,
            finding="No repeated run has a run of equal length on fresh data beside it yet.",
            fits={"data-constrained/chinchilla": fit},
        )
    measures = _measures(runs, pairs, fit)
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(pairs, fit),
        conclusive=True,
        details=_details(pairs, fit),
        key_numbers=_key_numbers(measures),
        charts=[_loss_chart(runs, pairs, study.bits_per_nat), _worth_chart(pairs, fit)],
        grids=[_worth_grid(pairs, fit), *_law_grid(fit)],
        fits={"data-constrained/chinchilla": fit},
        measures=measures,
        warnings=_warnings(study, families, runs, pairs, fit),
    )


# --- runs and fits ------------------------------------------------------------------------------


def _runs(study: Results, family: str) -> pd.DataFrame:
    """Columns params (embeddings counted, as in the paper), tokens, unique, epochs, loss, seed."""
    usable = study.usable
    if not len(usable):
        return usable
    usable = usable[usable["family"] == family]
    full = study.experiment.get("corpus", {}).get("train_tokens", math.nan)
    tokens = usable["tokens"].astype(float)
    unique = np.minimum(usable["unique_tokens"].astype(float).fillna(full), tokens)
    return pd.DataFrame(
        {
            "params": usable["params_chinchilla"].astype(float),
            "n_params": usable["params_kaplan"].astype(float),
            "tokens": tokens,
            "unique": unique,
            # The last step may overrun the set by less than a batch.
            "epochs": (tokens / unique).round(2),
            "loss": usable["loss"].astype(float),
            "seed": usable["seed"],
        }
    ).reset_index(drop=True)


def _is_fresh(runs: pd.DataFrame) -> pd.Series:
    return runs["epochs"] <= ONCE


def _pairs(runs: pd.DataFrame) -> pd.DataFrame:
    """Every repeated run with the fresh run of its size, length and seed.

    Adds the columns fresh (its loss, NaN without one), excess (relative) and worth: D'/U read off the
    fresh runs of its size and seed, NaN out of their reach.
    """
    fresh = runs[_is_fresh(runs)]
    repeated = runs[~_is_fresh(runs)]
    rows = []
    for row in repeated.to_dict("records"):
        own = fresh[(fresh["params"] == row["params"]) & (fresh["seed"] == row["seed"])]
        equal = own[(own["tokens"] / row["tokens"] - 1).abs() < 0.01]
        loss = float(equal["loss"].mean()) if len(equal) else math.nan
        worth = _tokens_at(own.groupby("tokens")["loss"].mean(), row["loss"]) / row["unique"]
        rows.append({**row, "fresh": loss, "excess": row["loss"] / loss - 1, "worth": worth})
    return pd.DataFrame(rows)


def _tokens_at(curve: pd.Series, loss: float) -> float:
    """Where a fresh curve (loss by tokens) reaches a loss, on straight lines in log-log."""
    # Noise can let a longer run end higher; the best so far never rises.
    x, y = np.log(curve.index.to_numpy(float)), np.log(curve.cummin().to_numpy(float))
    keep = np.concatenate([[True], np.diff(y) < 0]) if len(y) else np.array([], bool)
    x, y, at = x[keep], y[keep], math.log(loss)
    if len(x) < 2 or at > y[0]:
        return math.nan
    if at >= y[-1]:
        return float(np.exp(np.interp(-at, -y, x)))
    beyond = (at - y[-1]) * (x[-1] - x[-2]) / (y[-1] - y[-2])
    return float(np.exp(x[-1] + beyond)) if beyond <= math.log(REACH) else math.nan


def _fit(runs: pd.DataFrame, vocab_size: int) -> FitResult:
    """R_D* and R_N*, with a base law of these runs, or the paper's where its tokens are counted."""
    # What a cell strays from the law is common to its seeds, so that it is one point, their mean.
    cells = runs.assign(loss=np.log(runs["loss"])).groupby(["params", "tokens", "unique", "epochs"])
    rows = np.exp(cells["loss"].mean()).reset_index().rename(columns={"unique": "unique_tokens"})
    once = rows[_is_fresh(rows)]
    # The base law has five parameters, and one size says nothing about that of size.
    own = once["params"].nunique() >= 2 and len(once) >= 6
    if not own and vocab_size != PAPER_VOCABULARY:
        why = f"{plural(len(once), 'fresh cell')}, and the base law needs 6 of two sizes or more"
        return refused("data-constrained", why)
    try:
        fit = laws.fit(
            laws.Table.read(rows.drop(columns="epochs"), convention="chinchilla"),
            "data-constrained",
            base="fit" if own else "muennighoff",
            bootstrap=BOOTSTRAP,
        )
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        return refused("data-constrained", str(error))
    star = fit.parameters["R_D_star"]
    if not 1e-3 < star < 1e4:
        return refused(
            "data-constrained", f"R_D* ran off to {star:.2g}: the law does not describe it"
        )
    return fit


# --- readings -----------------------------------------------------------------------------------


def _epochs(pairs: pd.DataFrame, wanted: float) -> float | None:
    """The epoch count of the runs that stands for `wanted`."""
    found = min(pairs["epochs"].unique(), key=lambda e: abs(math.log(e / wanted)), default=None)
    return found if found and abs(math.log(found / wanted)) <= math.log(NEAR) else None


def _over_seeds(pairs: pd.DataFrame, value: Callable[[pd.DataFrame], pd.Series]) -> _Reading:
    """A number of every seed: its mean over the sizes that all seeds have."""
    values = value(pairs).astype(float)
    table = values.groupby([pairs["params"], pairs["seed"]]).mean().unstack()
    whole = table.dropna(axis=0)
    return _Reading(tuple(whole.mean(axis=0).dropna()), len(whole), len(table))


def _excess(pairs: pd.DataFrame, epochs: float) -> _Reading:
    return _over_seeds(pairs[pairs["epochs"] == epochs], lambda p: p["excess"])


def _share(pairs: pd.DataFrame, epochs: float) -> _Reading:
    """D' / D: what the tokens of so many epochs are worth, as a share of as many fresh ones."""
    return _over_seeds(pairs[pairs["epochs"] == epochs], lambda p: p["worth"] / p["epochs"])


def _gain_beyond(runs: pd.DataFrame, epochs: float) -> tuple[float, float, _Reading] | None:
    """How much the loss still falls from the last count up to `epochs` to the longest: a share."""
    repeated = runs[~_is_fresh(runs)]
    below = repeated[(repeated["epochs"] <= epochs) & (repeated["epochs"] > epochs / 2)]
    above = repeated[repeated["epochs"] > epochs]
    both = below.merge(above, on=["params", "unique", "seed"], suffixes=("", "_more"))
    if not len(both):
        return None
    first, last = both["epochs"].max(), both["epochs_more"].max()
    both = both[(both["epochs"] == first) & (both["epochs_more"] == last)]
    return first, last, _over_seeds(both, lambda p: 1 - p["loss_more"] / p["loss"])


def _law_share(fit: FitResult, epochs: float) -> tuple[float, tuple[float, float] | None]:
    """D' / D by the law."""
    value = float(effective(1.0, epochs - 1, fit.parameters["R_D_star"]) / epochs)
    drawn = effective(1.0, epochs - 1, fit.draws["R_D_star"]) / epochs
    return value, interval(drawn, fit.draw_level or fit.level)


def _measures(runs: pd.DataFrame, pairs: pd.DataFrame, fit: FitResult) -> dict[str, Measure]:
    measures = {}
    at = _epochs(pairs, 4)
    what = f"loss after {at or 4:g} epochs over that of as many fresh tokens, less one"
    measures["excess_at_4"] = _measure(what, _excess(pairs, at) if at else None, "of 4 epochs")
    at = _epochs(pairs, 16)
    what = f"fresh tokens that {at or 16:g} epochs are worth over the tokens seen"
    measures["worth_at_16"] = _measure(
        what, _share(pairs, at) if at else None, "of 16 epochs whose loss fresh runs reach"
    )
    gain = _gain_beyond(runs, 40)
    what = "share by which the loss falls " + (
        f"from {gain[0]:g} to {gain[1]:g} epochs" if gain else "beyond 40 epochs"
    )
    measures["gain_beyond_40"] = _measure(
        what, gain[2] if gain else None, "up to and beyond 40 epochs of one set of tokens"
    )
    what = f"R_D* of D' = U + U R_D* (1 − exp(−R/R_D*)), {plural(fit.n_used, 'cell')} of size and length, "
    what += "the base law held fixed"
    if fit.parameters:
        value = fit.parameters["R_D_star"]
        edges = fit.intervals.get("R_D_star")
        measures["R_D_star"] = Measure(what=what, value=value, interval=edges)
    else:
        measures["R_D_star"] = Measure(what=what, value=None, undecided_because=fit.warnings[0])
    return measures


def _measure(what: str, reading: _Reading | None, needs: str) -> Measure:
    if reading is None or not reading.values:
        return Measure(what=what, value=None, undecided_because=f"there are no runs {needs}")
    n, out = len(reading.values), reading.of - reading.sizes
    why = few_seeds(n)
    if out and not why:
        why = f"{plural(out, 'size')} of {reading.of} left out: not all seeds have runs {needs}"
    what = f"{what}, mean of {plural(reading.sizes, 'size')}, {plural(n, 'seed')} {ONE_SET}"
    return Measure(what=what, value=reading.mean, interval=reading.interval, undecided_because=why)


# --- words --------------------------------------------------------------------------------------


def _percent(value: float) -> str:
    """A share as a signed percentage: +0.4%, −1.2%."""
    return f"{value:+.1%}".replace("-", "−")


def _percent_with(reading: _Reading) -> str:
    if not reading.interval:
        return f"{_percent(reading.mean)} (no interval)"
    low, high = reading.interval
    return f"{_percent(reading.mean)} ({_percent(low)} to {_percent(high)})"


def _finding(pairs: pd.DataFrame, fit: FitResult) -> str:
    compared = pairs[pairs["fresh"].notna()]
    epochs = _epochs(compared, 4) or compared["epochs"].min()
    text = (
        f"After {epochs:g} epochs the loss is {_percent_with(_excess(pairs, epochs))} against that "
        f"of as many fresh tokens"
        if len(compared)
        else "No repeated run has a fresh one of equal length"
    )
    if fit.parameters:
        value = fit.parameters["R_D_star"]
        star = with_interval(value, fit.intervals.get("R_D_star"), "95% interval")
        text += f"; repeated tokens lose their worth with R_D* = {star} epochs"
    return text + "."


def _details(pairs: pd.DataFrame, fit: FitResult) -> list[str]:
    texts = []
    parts = []
    for epochs in sorted(pairs["epochs"].unique()):
        reading = _share(pairs, epochs)
        if reading.values and epochs >= 4:
            shown = with_interval(reading.mean, reading.interval)
            some = f" ({reading.sizes} of {reading.of} sizes)" if reading.sizes < reading.of else ""
            parts.append(f"{shown} at {epochs:g} epochs{some}")
    if parts:
        texts.append(
            "Read off the fresh runs, a token of a repeated set is worth, in fresh tokens, "
            f"{listed(parts)}; the paper's law says 0.93 at 4, 0.66 at 16 and 0.38 at 40."
        )
    if fit.parameters:
        forty = with_interval(*_law_share(fit, 40))
        texts.append(
            f"By the law fitted here 40 epochs are worth {forty} of as many fresh tokens. It has no "
            f"term for overfitting, so it cannot follow a loss that rises with more epochs."
        )
    return texts


def _key_numbers(measures: dict[str, Measure]) -> list[KeyNumber]:
    found = []
    labels = {
        "excess_at_4": "extra loss after 4 epochs, against fresh data",
        "worth_at_16": "worth of a token at 16 epochs, in fresh tokens",
        "R_D_star": "R_D*, epochs in which repeated data lose their worth",
    }
    for name, label in labels.items():
        measure = measures[name]
        if measure.value is None:
            continue
        if name == "excess_at_4":
            edges = " to ".join(map(_percent, measure.interval)) if measure.interval else ""
            found.append(
                KeyNumber(
                    label=label, value=_percent(measure.value), interval=edges or "no interval"
                )
            )
        else:
            found.append(KeyNumber.of(label, measure.value, measure.interval))
    return found


def _warnings(
    study: Results, families: list[str], runs: pd.DataFrame, pairs: pd.DataFrame, fit: FitResult
) -> list[str]:
    warnings = [f"{text[0].upper()}{text[1:]}." for text in fit.warnings]
    if fit.parameters and fit.parameters["E"] == MUENNIGHOFF["E"]:
        warnings.append(
            "Too few fresh runs for a base law of their own: the fit takes the paper's."
        )
    seeds = runs["seed"].nunique()
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
    if len(families) > 1:
        others = listed([family_name(f) for f in families[1:]])
        warnings.append(f"Only {family_name(families[0])} is analysed here, not {others}.")
    warnings.append(
        "All seeds, and all sizes of one set, repeat the same unique tokens: the intervals hold the "
        "seeds' noise, and not which tokens were drawn."
    )
    return warnings + caveats.lost_runs(study)


# --- tables -------------------------------------------------------------------------------------


def _worth_grid(pairs: pd.DataFrame, fit: FitResult) -> Grid:
    rows = []
    for epochs in sorted(pairs["epochs"].unique()):
        excess, share = _excess(pairs, epochs), _share(pairs, epochs)
        paper = float(effective(1.0, epochs - 1, MUENNIGHOFF["R_D_star"]) / epochs)
        rows.append(
            [
                f"{epochs:g}",
                _percent_with(excess) if excess.values else "–",
                with_interval(share.mean, share.interval) if share.values else "–",
                f"{share.sizes} of {share.of}",
                with_interval(*_law_share(fit, epochs)) if fit.parameters else "–",
                number(paper),
            ]
        )
    return Grid(
        caption="What repeating costs and what it is worth, means over the sizes that have every "
        "seed; 95% intervals over seeds (three or more), those of the law from a bootstrap over cells. "
        "Worth is D'/D, fresh tokens of equal loss over tokens seen, from the sizes whose losses the "
        "fresh runs reach.",
        header=[
            "epochs",
            "loss against fresh data",
            "worth, read off",
            "sizes",
            "worth, law fitted here",
            "worth, paper's law",
        ],
        rows=rows,
        numeric=(0, 1, 2, 3, 4, 5),
    )


def _fitted(fit: FitResult, name: str) -> str:
    if name not in fit.intervals:
        return number(fit.parameters[name])
    if np.ptp(fit.intervals[name]) == 0:
        # No draw moves R_N* where no model is larger than its unique tokens can feed.
        return "– (these runs do not determine it)"
    return with_interval(fit.parameters[name], fit.intervals[name])


def _law_grid(fit: FitResult) -> list[Grid]:
    if not fit.parameters:
        return []
    rows = [
        [
            name.replace("_star", "*").replace("alpha", "α").replace("beta", "β"),
            _fitted(fit, name),
            number(MUENNIGHOFF[name]),
        ]
        for name in ("R_D_star", "R_N_star", "E", "A", "B", "alpha", "beta")
    ]
    return [
        Grid(
            caption="L = E + A/N'^α + B/D'^β, N with embeddings: the base law is fitted to the runs of "
            "one epoch and held fixed, R_D* and R_N* to all. 95% intervals from a bootstrap over cells, without the "
            "noise of the base law.",
            header=["parameter", "here", "Muennighoff et al. 2023"],
            rows=rows,
            numeric=(1, 2),
        )
    ]


# --- figures ------------------------------------------------------------------------------------


def _loss_chart(runs: pd.DataFrame, pairs: pd.DataFrame, bits_per_nat: float | None) -> Chart:
    """Loss against epochs beside fresh data, and the extra loss."""
    with style.canvas(10.2, 4.0) as figure:
        left, right = figure.subplots(1, 2)
        sizes = sorted(pairs["n_params"].unique())
        colours = style.ordered_colours(sizes)
        # Both curves begin with the first epoch, in which all data are fresh.
        once = runs[_is_fresh(runs)].merge(pairs[["params", "unique"]].drop_duplicates())
        for size in sizes:
            own = pairs[pairs["n_params"] == size]
            compared = own.dropna(subset="fresh")
            start = once[once["n_params"] == size]
            label = f"N = {si(size)}"
            fresh = pd.concat([start.assign(fresh=start["loss"]), compared])
            _draw_by_epochs(left, fresh, "fresh", colours[size], "s")
            _draw_by_epochs(left, pd.concat([start, own]), "loss", colours[size], "o", label)
            _draw_by_epochs(right, compared, "excess", colours[size], "o")
        left.plot([], [], "s--", color=style.MUTED, mfc=style.PAPER, lw=1, label="fresh data")
        left.set(xlabel="epochs", ylabel="loss (nats per token)")
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
        unique = sorted(pairs["unique"].unique())
        sets = si(unique[0]) if len(unique) == 1 else f"{si(unique[0])} to {si(unique[-1])}"
        return style.render(
            figure,
            name="repeat",
            caption=f"Left: loss after so many epochs of {sets} unique tokens (solid), and of runs as "
            "long on fresh data (dashed, hollow). Right: the difference, relative to the fresh run of "
            "the same seed; the star is the paper's largest model. Points are means over seeds, bars "
            "their 95% interval (three or more seeds) or range (two).",
            alt="Loss against epochs for repeated and fresh data, and the difference.",
        )


def _draw_by_epochs(
    axes: Any, rows: pd.DataFrame, column: str, colour: str, marker: str, label: str | None = None
) -> None:
    """Means over seeds against epochs, joined, with their bars; fresh data are hollow and dashed."""
    cells = rows.groupby("epochs")[column].apply(tuple)
    if not len(cells):
        return
    fresh = marker == "s"
    for epochs, values in cells.items():
        edges = interval_of_mean(values)
        if edges:
            axes.plot([epochs] * 2, edges, color=colour, lw=1.3)
    axes.plot(
        cells.index,
        cells.map(np.mean),
        marker,
        ls="--" if fresh else "-",
        color=colour,
        lw=1.0,
        ms=4.2 if fresh else 5,
        mfc=style.PAPER if fresh else colour,
        mec=colour if fresh else style.PAPER,
        mew=1.0 if fresh else 0.5,
        label=label,
        zorder=3,
    )


def _worth_chart(pairs: pd.DataFrame, fit: FitResult) -> Chart:
    with style.canvas(6.4, 4.4) as figure:
        axes = figure.subplots()
        draw_worth(axes, fit, pairs)
        return style.render(
            figure,
            name="repeat-worth",
            caption="Effective data: the fresh tokens that repeated ones are worth, over the unique "
            "tokens, against epochs. Points: read off the fresh runs of the same size and seed, means "
            "with their 95% interval over seeds, hollow where those do not reach every seed; curves: D'/U = 1 + R_D* (1 − exp(−R/R_D*)), fitted "
            "to these runs (band: 95%) and with the paper's R_D* = 15.4; dashed: fresh data.",
            alt="Effective data against epochs, measured, fitted and as published.",
        )


def draw_worth(axes: Any, fit: FitResult, pairs: pd.DataFrame) -> None:
    """D'/U against epochs: measured points, the fitted law with its band, and the paper's.

    Args:
      fit: of "data-constrained"; without parameters, the paper's curve alone.
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
    if fit.parameters:
        own = fit.parameters["R_D_star"]
        colour = colours[sizes[len(sizes) // 2]]
        label = f"these runs, $R_D^*$ = {number(own)}"
        axes.plot(grid, effective(1, grid - 1, own), color=colour, lw=1.4, label=label)
        if fit.draws:
            drawn = effective(1, grid[:, None] - 1, fit.draws["R_D_star"])
            low, high = interval(drawn, fit.draw_level or fit.level, axis=-1)
            axes.fill_between(grid, low, high, color=colour, alpha=0.18, lw=0)
    _draw_sizes(axes, pairs, sizes, colours)
    axes.set(xlabel="epochs D / U", ylabel="effective data D' / U", xlim=(0.9, 1.2 * most))
    axes.set_ylim(0.8, min(1.2 * most, 3 * max(17, pairs["worth"].max())))
    # Bars may reach anywhere within the axes.
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2)
    style.log_axis(axes.xaxis, "octave")
    style.log_axis(axes.yaxis, "octave")


def _draw_sizes(axes: Any, pairs: pd.DataFrame, sizes: Sequence[float], colours: dict) -> None:
    """The measured points, those of one epoch count side by side."""
    for index, size in enumerate(sizes):
        shift = 1.04 ** (index - (len(sizes) - 1) / 2)
        own = pairs[pairs["n_params"] == size]
        for epochs, cell in own.groupby("epochs"):
            within = cell["worth"].dropna()
            if not len(within):
                continue
            reading, whole = _Reading(tuple(within)), len(within) == len(cell)
            if reading.interval:
                edges = np.maximum(reading.interval, 0.1)
                axes.plot([epochs * shift] * 2, edges, color=colours[size], lw=1.3)
            axes.plot(
                epochs * shift,
                reading.mean,
                "o",
                color=colours[size],
                mfc=colours[size] if whole else style.PAPER,
                mec=style.PAPER if whole else colours[size],
                mew=0.5 if whole else 1.0,
                ms=5,
                zorder=4,
            )
        axes.plot([], [], "o", color=colours[size], ms=5, label=f"N = {si(size)}")
