"""Cooldowns from one trunk against a cosine per cell (Hägele et al. 2024)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from lmscale import laws
from lmscale.laws import FitError, FitResult, TableError
from lmscale.report import style
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.studies.estimate import LEAST_SEEDS, few_seeds, interval_of_mean
from lmscale.studies.exponents import (
    LEAST_BUDGETS,
    counted,
    home_convention,
)
from lmscale.studies.exponents import (
    difference_of_pairs as difference,
)
from lmscale.studies.exponents import (
    exponent_and_interval as exponent,
)
from lmscale.studies.fits import refused
from lmscale.studies.results import Results
from lmscale.wording import number, plural, power_of_ten, si, with_interval

__all__ = ["analyse", "draw_profiles"]

NAME = "cooldown"
TITLE = "Cooldowns from one trunk against a cosine per cell"
#: Labels of the experiment's runs.
TRUNK, COSINE, COOLDOWN = "trunk", "cosine", "cooldown"
SWEPT = ", swept"
#: Fewest updates of runs that speak of the paper's: 20 tokens a parameter of its smallest model (33M,
#: 0.1M tokens a batch) are 6,600. Which rate and schedule suit a run changes with its length.
LEAST_STEPS = 5_000
#: Why the FLOPs decide nothing: how close the budgets lie decides what a trunk saves.
OWN_COUNT = (
    "it is a count of this grid's runs, which its budgets decide: the paper's 0.42 is that of another "
    "suite"
)
#: How the two schedules look wherever they appear.
LOOKS = {
    COSINE: {"marker": "o", "ls": "-", "filled": True},
    COOLDOWN: {"marker": "s", "ls": (0, (4, 2)), "filled": False},
}


@dataclass(frozen=True)
class _Data:
    """The pairs of runs and what was made of them.

    Attributes:
      pairs: one row a (size, budget, seed) that ended well under both schedules: budget, params,
        seed, cosine, cooldown (losses).
      fits: schedule -> profiles, where they could be fitted.
      failures: schedule -> why not.
      spent: schedule -> budget (or 0 for the trunks) -> exact FLOPs that its runs executed.
      missing: declared runs of the grid without a result.
      steps: updates of the cells that are compared, the median; NaN without any.
    """

    pairs: pd.DataFrame
    fits: dict[str, FitResult]
    failures: dict[str, str]
    spent: dict[str, dict[float, float]]
    missing: int
    steps: float
    convention: str


def analyse(study: Results) -> Section:
    """What the cooldowns saved, what they lost, and whether the frontier is the same."""
    table = study.table
    if not len(table) or not {COSINE, COOLDOWN} <= set(table["family"]):
        return Section(
            name=NAME,
            title=TITLE,
            finding="No comparison: the experiment declares no runs of the families cosine and "
            "cooldown.",
        )
    data = _read(table)
    rates = _rates(table)
    measures = _measures(data, rates)
    charts = [_chart(data, measures)] if len(data.pairs) else []
    if len(rates):
        charts.append(_rate_chart(rates))
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(data, measures),
        conclusive=measures["loss_difference"].interval is not None and not data.missing,
        details=_details(data, measures),
        key_numbers=_key_numbers(measures),
        charts=charts,
        grids=_grid(data),
        fits={
            f"{schedule}/{data.convention}": data.fits.get(schedule)
            or refused("isoflop", data.failures.get(schedule, "no runs"))
            for schedule in (COSINE, COOLDOWN)
        },
        measures=measures,
        warnings=_warnings(data),
    )


# --- reading ------------------------------------------------------------------------------------


def _read(table: pd.DataFrame) -> _Data:
    grid = table[table["family"].isin([TRUNK, COSINE, COOLDOWN])]
    done = grid[(grid["status"] == "done") & np.isfinite(grid["loss"].astype(float))]
    cells = done[done["family"].isin([COSINE, COOLDOWN])].dropna(subset=["budget"])
    convention = home_convention(cells)
    rows = counted(cells, convention).assign(family=cells["family"], tokens=cells["tokens"])
    pairs = (
        rows.pivot_table(index=["budget", "params", "seed"], columns="family", values="loss")
        .reindex(columns=[COSINE, COOLDOWN])
        .dropna()
        .reset_index()
    )
    fits, failures = {}, {}
    for schedule in (COSINE, COOLDOWN):
        part = rows[rows["family"] == schedule].drop(columns="family")
        # Both grids on the same cells, or a missing run would move one frontier alone.
        part = part.merge(pairs[["budget", "params", "seed"]])
        try:
            fit = laws.fit(laws.Table.read(part, convention=convention), "isoflop")
        except (TableError, FitError, np.linalg.LinAlgError) as error:
            failures[schedule] = str(error)
            continue
        if len(fit.details["frontier"]["flops"]) < LEAST_BUDGETS:
            failures[schedule] = f"fewer than {LEAST_BUDGETS} budgets have a usable profile"
        fits[schedule] = fit
    share = 1 - grid["start_step"].astype(float) / grid["steps"]
    own = (grid["flops_exact"] * share).groupby([grid["family"], grid["budget"].fillna(0.0)]).sum()
    spent = {name: dict(own[name]) for name in (TRUNK, COSINE, COOLDOWN) if name in own.index}
    missing = len(grid) - len(done)
    return _Data(pairs, fits, failures, spent, missing, float(cells["steps"].median()), convention)


def _rates(table: pd.DataFrame) -> pd.DataFrame:
    """Runs of the swept cell: columns schedule, lr, seed, steps, loss."""
    swept = table[table["family"].str.endswith(SWEPT) & (table["status"] == "done")]
    return pd.DataFrame(
        {
            "schedule": swept["family"].str.removesuffix(SWEPT),
            "lr": swept["peak_lr"].astype(float),
            "seed": swept["seed"],
            "steps": swept["steps"],
            "loss": swept["loss"].astype(float),
        }
    ).reset_index(drop=True)


def _best_rate(lr: np.ndarray, loss: np.ndarray) -> float:
    """Minimum of a parabola in ln lr through the four losses about the lowest; NaN without one."""
    if len(lr) < 3:
        return math.nan
    order = np.argsort(np.abs(np.log(lr / lr[np.argmin(loss)])))[:4]
    c2, c1, _ = np.polyfit(np.log(lr[order]), loss[order], 2)
    best = math.exp(-c1 / (2 * c2)) if c2 > 0 else math.nan
    return best if lr.min() <= best <= lr.max() else math.nan


def _frontier_exponent(
    data: _Data, schedule: str
) -> tuple[float, tuple[float, float] | None] | None:
    return None if schedule in data.failures else exponent(data.fits.get(schedule))


def _measures(data: _Data, rates: pd.DataFrame) -> dict[str, Measure]:
    measures = {}
    ratio = _ratio(data.spent)
    measures["flops_ratio"] = Measure(
        what="FLOPs that trunks and cooldowns execute over those of the cosines, all seeds (exact "
        "convention)",
        value=ratio,
        undecided_because=f"{plural(data.missing, 'run')} without a result"
        if data.missing
        else OWN_COUNT,
    )
    gap, interval, seeds = _mean_gap(data.pairs)
    cells = data.pairs.groupby(["budget", "params"]).ngroups
    measures["loss_difference"] = Measure(
        what=f"loss of the cooldown less that of the cosine, in nats, mean of {cells} cells, "
        f"{plural(seeds, 'seed')}",
        value=gap,
        interval=interval,
        undecided_because=few_seeds(seeds) or _short(data.steps),
    )
    found = {schedule: _frontier_exponent(data, schedule) for schedule in (COSINE, COOLDOWN)}
    for schedule, value in found.items():
        measures[f"a_{schedule}"] = Measure(
            what=f"exponent of N_opt ∝ C^a on the grid of the {schedule}s, {data.convention} "
            f"convention",
            value=value[0] if value else None,
            interval=value[1] if value else None,
            undecided_because=data.failures.get(schedule, ""),
        )
    measures["a_difference"] = Measure.of(
        f"exponent on the grid of the cooldowns less that of the cosines, {data.convention} "
        f"convention, the two intervals taken as independent",
        difference(
            "a_difference",
            found[COOLDOWN],
            found[COSINE],
            next(iter(data.failures.values()), "one of the grids gives no exponent"),
            seeds=seeds,
        ),
    )
    measures["best_lr_ratio"] = _rate_measure(rates)
    return measures


def _ratio(spent: dict[str, dict[float, float]]) -> float | None:
    total = {schedule: sum(parts.values()) for schedule, parts in spent.items()}
    if not total.get(COSINE):
        return None
    return float((total.get(TRUNK, 0.0) + total.get(COOLDOWN, 0.0)) / total[COSINE])


def _mean_gap(
    pairs: pd.DataFrame,
) -> tuple[float | None, tuple[float, float] | None, int]:
    """Mean over cells of cooldown minus cosine, its 95% interval, and the seeds that every cell has.

    The branches of a trunk stray together, so a size and seed counts once: each size's mean over its
    budgets varies between seeds, and the sizes' variances add up (Satterthwaite's degrees of
    freedom).
    """
    if not len(pairs):
        return None, None, 0
    wide = pairs.assign(gap=pairs[COOLDOWN] - pairs[COSINE]).pivot_table(
        index=["budget", "params"], columns="seed", values="gap"
    )
    wide = wide.dropna() if len(wide.dropna()) else wide[wide.columns[:1]].dropna()
    by_size = wide.groupby("params")
    value, seeds = float(wide.to_numpy().mean()), wide.shape[1]
    if seeds < LEAST_SEEDS:
        return value, None, seeds
    share = (by_size.size() / len(wide)).to_numpy()
    parts = share**2 * by_size.mean().var(axis=1, ddof=1).to_numpy() / seeds
    freedom = (seeds - 1) * parts.sum() ** 2 / max((parts**2).sum(), 1e-300)
    half = float(student_t.ppf(0.975, max(freedom, 1.0)) * math.sqrt(parts.sum()))
    return value, (value - half, value + half), seeds


def _rate_measure(rates: pd.DataFrame) -> Measure:
    what = "best constant learning rate over the best peak of a cosine at the swept cell"
    if not len(rates):
        return Measure(
            what=what, value=None, undecided_because="no cell was trained at several learning rates"
        )
    ratios = []
    for _, group in rates.groupby("seed"):
        best = {
            schedule: _best_rate(part["lr"].to_numpy(), part["loss"].to_numpy())
            for schedule, part in group.groupby("schedule")
        }
        ratios.append(math.log(best.get(COOLDOWN, math.nan) / best.get(COSINE, math.nan)))
    sound = [r for r in ratios if math.isfinite(r)]
    what += f", {plural(len(ratios), 'seed')}"
    if not sound or len(sound) < len(ratios):
        return Measure(
            what=what,
            value=None,
            undecided_because=f"in {len(ratios) - len(sound)} of {plural(len(ratios), 'seed')} the lowest loss is "
            f"at the edge of the learning rates that were tried",
        )
    interval = interval_of_mean(sound) if len(sound) >= LEAST_SEEDS else None
    return Measure(
        what=what,
        value=math.exp(float(np.mean(sound))),
        interval=tuple(math.exp(edge) for edge in interval) if interval else None,
        undecided_because=few_seeds(len(sound)) or _short(float(rates["steps"].median())),
    )


def _short(steps: float) -> str:
    """Why runs of so few updates decide nothing of what the paper found in long ones."""
    if steps >= LEAST_STEPS:
        return ""
    return (
        f"the runs take {steps:,.0f} updates (median), where the paper's take 6,600 and more, and "
        f"which rate and schedule suit a run changes with its length"
    )


# --- words --------------------------------------------------------------------------------------


def _finding(data: _Data, measures: dict[str, Measure]) -> str:
    gap, ratio = measures["loss_difference"], measures["flops_ratio"]
    if gap.value is None:
        return f"No comparison yet: {plural(data.missing, 'run')} of the grid have no result."
    note = "" if gap.interval else "; too few seeds for an interval"
    return (
        f"One trunk per size with cooldowns costs {number(ratio.value, 2)} of the FLOPs of a cosine "
        f"per cell, and its loss differs by {with_interval(gap.value, gap.interval)} nats per token "
        f"(positive: the cooldown ends higher{note})."
    )


def _details(data: _Data, measures: dict[str, Measure]) -> list[str]:
    found = {s: _frontier_exponent(data, s) for s in (COSINE, COOLDOWN)}
    text = "; ".join(
        f"{schedule}: "
        + (
            f"N ∝ C^{with_interval(*value)}"
            if value
            else f"no exponent ({data.failures.get(schedule, 'no runs')})"
        )
        for schedule, value in found.items()
    )
    paragraphs = [
        (
            f"The frontiers of the two grids, on the cells that ended well under both schedules "
            f"({data.convention} convention): {text}."
        )
    ]
    rate = measures["best_lr_ratio"]
    if rate.value is not None:
        paragraphs.append(
            f"At the swept cell the best constant learning rate is "
            f"{with_interval(rate.value, rate.interval)} times the best peak of a cosine (Hägele et "
            f"al. 2024: about half)."
        )
    elif rate.undecided_because:
        paragraphs.append(
            f"The ratio of the best learning rates is not known: {rate.undecided_because}."
        )
    return paragraphs


def _key_numbers(measures: dict[str, Measure]) -> list[KeyNumber]:
    numbers = []
    ratio, gap = measures["flops_ratio"], measures["loss_difference"]
    if ratio.value is not None:
        numbers.append(KeyNumber(label="FLOPs over those of cosines", value=number(ratio.value, 2)))
    if gap.value is not None:
        numbers.append(
            KeyNumber.of("loss of the cooldown less the cosine's (nats)", gap.value, gap.interval)
        )
    return numbers


def _warnings(data: _Data) -> list[str]:
    warnings = []
    if data.missing:
        warnings.append(
            f"{plural(data.missing, 'run')} of the grid have no result; the comparison is of the "
            f"cells that have both."
        )
    for schedule, fit in data.fits.items():
        warnings += [f"Grid of the {schedule}s: {w[0].upper()}{w[1:]}." for w in fit.warnings]
    return warnings


def _grid(data: _Data) -> list[Grid]:
    rows = []
    for (budget, params), cell in data.pairs.groupby(["budget", "params"], sort=True):
        gap = (cell[COOLDOWN] - cell[COSINE]).to_numpy()
        interval = interval_of_mean(gap) if len(gap) >= LEAST_SEEDS else None
        rows.append(
            [
                power_of_ten(budget, 3),
                si(params),
                str(len(gap)),
                f"{cell[COSINE].mean():.3f}",
                f"{cell[COOLDOWN].mean():.3f}",
                with_interval(float(gap.mean()), interval)
                if interval
                else f"{number(float(gap.mean()))} (too few seeds)",
            ]
        )
    if not rows:
        return []
    return [
        Grid(
            caption="Final loss of every cell (nats per token, mean over seeds) and the difference "
            "between runs of one seed, with its 95% interval.",
            header=["C (FLOPs)", "N", "seeds", "cosine", "cooldown", "cooldown − cosine"],
            rows=rows,
            numeric=(0, 1, 2, 3, 4, 5),
        )
    ]


# --- figures ------------------------------------------------------------------------------------


def _chart(data: _Data, measures: dict[str, Measure]) -> Chart:
    colours = style.ordered_colours(sorted(set(data.pairs["budget"])))
    with style.canvas(10.4, 3.9) as figure:
        left, middle, right = figure.subplots(1, 3, width_ratios=[1.3, 1.05, 0.8])
        draw_profiles(left, data.fits, colours)
        left.set(xlabel=f"N, parameters ({data.convention})", ylabel="loss (nats per token)")
        left.set_title("Profiles of both grids")
        _draw_gaps(middle, data.pairs, colours, measures["loss_difference"])
        _draw_cost(right, data.spent, colours)
        handles = [left.plot([], [], "o", color=colour)[0] for colour in colours.values()]
        labels = [power_of_ten(c) for c in colours]
        for schedule, look in LOOKS.items():
            fill = style.MUTED if look["filled"] else style.PAPER
            (handle,) = left.plot(
                [], [], marker=look["marker"], ls=look["ls"], color=style.MUTED, mfc=fill
            )
            handles.append(handle)
            labels.append(schedule)
        figure.legend(
            handles,
            labels,
            title="budget C (FLOPs), and schedule",
            title_fontsize=8,
            loc="outside upper center",
            ncols=len(handles),
            handletextpad=0.4,
            columnspacing=1.3,
        )
        seeds = sorted(set(data.pairs.groupby(["budget", "params"]).size()))
        return style.render(
            figure,
            name=NAME,
            caption="An IsoFLOP grid of cosines and one of cooldowns from a trunk per size (Hägele "
            "et al. 2024). Left: mean final loss over size, parabolas and their minima (diamonds). "
            "Middle: how far the cooldown ends from the cosine of the same cell and seed, over the "
            f"loss of the cosine; {_bars(seeds)} The grey band is that of the mean of all cells. "
            f"Right: FLOPs that each grid executed.",
            alt=f"Losses of {data.pairs.groupby(['budget', 'params']).ngroups} cells under both "
            f"schedules, their difference, and the FLOPs spent on each grid.",
        )


def _bars(seeds: list[int]) -> str:
    if seeds and seeds[0] >= LEAST_SEEDS:
        return "bars are 95% intervals over seeds."
    return f"bars are 95% intervals where a cell has {LEAST_SEEDS} seeds or more."


def draw_profiles(axes: Any, fits: dict[str, FitResult], colours: dict[float, str]) -> None:
    """Profiles of several fits of the law "isoflop" over one another; colours by budget."""
    keys = np.array(sorted(colours))
    for schedule, fit in fits.items():
        look = LOOKS[schedule]
        for p in fit.details["profiles"]:
            colour = colours[keys[np.argmin(np.abs(np.log(keys / p.flops)))]]
            fill = colour if look["filled"] else style.PAPER
            mean = pd.Series(p.loss).groupby(p.params).mean()
            axes.plot(mean.index, mean, look["marker"], color=colour, mfc=fill, ms=4.5, zorder=3)
            if p.coefficients is not None:
                inside = p.params[p.used]
                n = np.geomspace(inside.min() / 1.1, inside.max() * 1.1, 60)
                axes.plot(n, p.curve(n), color=colour, ls=look["ls"], lw=1.2)
            if p.ok:
                axes.plot(p.n_opt, p.loss_opt, "D", ms=5, color=fill, mec=style.INK, zorder=4)
    style.log_axis(axes.xaxis, "count")


def _draw_gaps(axes: Any, pairs: pd.DataFrame, colours: dict[float, str], mean: Measure) -> None:
    axes.axhline(0, color=style.INK, lw=0.9)
    if mean.interval:
        axes.axhspan(*mean.interval, color=style.MUTED, alpha=0.22, lw=0)
    for (budget, _), cell in pairs.groupby(["budget", "params"]):
        gap = (cell[COOLDOWN] - cell[COSINE]).to_numpy()
        at, colour = cell[COSINE].mean(), colours[budget]
        if len(gap) >= LEAST_SEEDS:
            axes.plot([at, at], interval_of_mean(gap), color=colour, lw=1.4)
        axes.plot(at, gap.mean(), "s", color=colour, mfc=style.PAPER, mew=1.2, zorder=3)
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
                    axes.text(
                        x, flops / 2, "trunks", ha="center", va="center", color=style.PAPER, size=8
                    )
                height += flops
        label = power_of_ten(height) + (f"\n({height / total:.2f})" if x and total else "")
        axes.text(x, height, label, ha="center", va="bottom", size=8)
    axes.set_xticks([0, 1], [COSINE, COOLDOWN])
    axes.set_yticks([])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    axes.margins(y=0.16)
    axes.set_title("FLOPs executed")


def _rate_chart(rates: pd.DataFrame) -> Chart:
    """Loss over learning rate under both schedules at the swept cell."""
    styles = style.family_styles([COSINE, COOLDOWN])
    with style.canvas(4.4, 3.2) as figure:
        axes = figure.subplots()
        # Side by side, so that bars at one rate can be told apart.
        for schedule, shift in ((COSINE, 1 / 1.025), (COOLDOWN, 1.025)):
            part, look = rates[rates["schedule"] == schedule], styles[schedule]
            losses = part.groupby("lr")["loss"].apply(list)
            mean, at = losses.map(np.mean), losses.index * shift
            axes.plot(at, mean, color=look["color"], lw=1.3)
            for lr, values in zip(at, losses, strict=True):
                if len(values) >= LEAST_SEEDS:
                    axes.plot([lr, lr], interval_of_mean(values), color=look["color"], lw=1.4)
            axes.plot(at, mean, look["marker"], color=look["color"], label=schedule)
        axes.set(xlabel="peak learning rate", ylabel="loss (nats per token)")
        style.log_axis(axes.xaxis, "plain")
        axes.legend()
        return style.render(
            figure,
            name=f"{NAME}-learning-rate",
            caption="Final loss of one cell over the peak learning rate under both schedules, mean "
            "over seeds with 95% intervals; the two are drawn 2.5% apart on either side of the rate.",
            alt="Loss against learning rate for the cosine and the cooldown.",
        )
