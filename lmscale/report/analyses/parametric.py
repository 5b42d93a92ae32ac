"""The parametric loss surface: Approach 3 of Hoffmann et al. 2022 (eq. 2, Fig. 4)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.ticker import FixedLocator, NullLocator

from lmscale import laws
from lmscale.laws import FitError, FitResult, TableError
from lmscale.report import style
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.sections.isoflop import slug
from lmscale.studies.estimate import interval_of_mean
from lmscale.studies.exponents import (
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
from lmscale.studies.isoflop import approach_2
from lmscale.studies.results import Results
from lmscale.wording import family_name, number, power_of_ten, with_interval

__all__ = ["analyse", "draw_contours", "draw_slices"]

NAME = "parametric"
TITLE = "Loss as a function of size and data"
#: The grid of starts; see `laws.fit_parametric`.
STARTS = "relative"
PARAMETERS = ("E", "A", "B", "alpha", "beta")
#: Published fits of the same form that stand beside one's own.
BESIDE = {"chinchilla": "Hoffmann et al. 2022", "besiroglu2024": "Besiroglu et al. 2024"}


@dataclass(frozen=True)
class _Family:
    """One family's surface, or why there is none."""

    name: str
    convention: str
    runs: pd.DataFrame
    fit: FitResult | None
    failure: str = ""

    @property
    def exponent(self) -> tuple[float, tuple[float, float] | None] | None:
        return exponent(self.fit)


def analyse(study: Results) -> Section:
    """L(N, D) of each family, its frontier, and what it leaves unexplained."""
    families = [_fit_family(study, name) for name in study.families]
    fitted = [family for family in families if family.fit is not None]
    charts = []
    for family in fitted:
        charts += [_surface_chart(study, family), _residual_chart(family)]
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(families),
        conclusive=any(_tells(family) for family in fitted),
        details=[_detail(family) for family in fitted],
        key_numbers=[k for family in fitted for k in _key_numbers(family)],
        charts=charts,
        grids=_parameter_grid(fitted),
        fits={f"{f.name}/{f.convention}": f.fit or refused(NAME, f.failure) for f in families},
        measures=_measures(study, families[0]) if families else {},
        warnings=[
            f"{family_name(f.name)}: {w[0].upper()}{w[1:]}." for f in fitted for w in f.fit.warnings
        ],
    )


def _fit_family(study: Results, name: str) -> _Family:
    usable = study.usable
    runs = usable[usable["family"] == name].reset_index(drop=True) if len(usable) else usable
    convention = home_convention(runs)
    if not len(runs):
        return _Family(name, convention, runs, None, "no run has ended well yet")
    rows = counted(runs, convention)
    try:
        table = laws.Table.read(rows, convention=convention)
        fit = laws.fit(table, "parametric", starts=STARTS)
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        return _Family(name, convention, rows, None, str(error))
    return _Family(name, convention, rows, fit)


def _tells(family: _Family) -> bool:
    """Whether the exponent of N, which this form keeps between 0 and 1, is known to half of that."""
    found = family.exponent
    return found is not None and found[1] is not None and found[1][1] - found[1][0] < 0.5


# --- words --------------------------------------------------------------------------------------


def _finding(families: list[_Family]) -> str:
    sentences = []
    for family in families:
        name = family_name(family.name)
        if family.fit is None:
            sentences.append(f"No surface for the {name}: {family.failure}")
            continue
        found = family.exponent
        if found is None:
            sentences.append(f"the surface of the {name} has no frontier: {_law(family.fit)}")
            continue
        a = with_interval(*found, "95% interval")
        if not _tells(family):
            sentences.append(f"these runs do not hold the exponent of the {name}: N ∝ C^{a}")
            continue
        sentences.append(
            f"The surface {_law(family.fit)} of the {name} puts the best size at N ∝ C^{a}"
        )
    text = "; ".join(sentences) or "No runs are declared"
    return text[0].upper() + text[1:] + "."


def _law(fit: FitResult) -> str:
    p = fit.parameters
    return (
        f"L = {number(p['E'])} + {number(p['A'])}/N^{number(p['alpha'])} + "
        f"{number(p['B'])}/D^{number(p['beta'])}"
    )


def _detail(family: _Family) -> str:
    fit = family.fit
    residual = fit.residuals["residual"]
    text = (
        f"{family_name(family.name)}: {fit.n_used} runs, N and C counted by the "
        f"{family.convention} convention; the root mean square of the residuals of log loss is "
        f"{float(np.sqrt(np.mean(residual**2))):.4f}, intervals are from a {fit.interval_method}."
    )
    means = _budget_means(family)
    off = [(c, m) for c, m, i in means if i is not None and (i[0] > 0 or i[1] < 0)]
    if off:
        c, worst = max(off, key=lambda item: abs(item[1]))
        text += (
            f" At {len(off)} of {len(means)} budgets the residuals lie to one side of zero, most "
            f"at {power_of_ten(c)} FLOPs ({100 * worst:+.2f}%): there the form is not the runs'."
        ).replace("-", "−")
    return text


def _key_numbers(family: _Family) -> list[KeyNumber]:
    found = family.exponent
    if found is None:
        return []
    return [KeyNumber.of(f"exponent of N_opt by the surface, {family_name(family.name)}", *found)]


def _measures(study: Results, family: _Family) -> dict[str, Measure]:
    """Of the first family, the Transformer where there is one."""
    who = f"{family_name(family.name)}, {family.convention} convention, {len(family.runs)} runs"
    why = family.failure or "the surface has no frontier"
    measures = {}
    a, fit = family.exponent, family.fit
    measures["a"] = Measure(
        what=f"exponent of N_opt ∝ C^a by Approach 3 ({who})",
        value=a[0] if a else None,
        interval=a[1] if a else None,
        undecided_because="" if a else why,
    )
    for name in PARAMETERS:
        measures[name] = Measure(
            what=f"{name} of L = E + A/N^α + B/D^β ({who})",
            value=fit.parameters[name] if fit else None,
            interval=fit.intervals.get(name) if fit else None,
            undecided_because=family.failure,
        )
    measures["a_minus_approach_2"] = Measure.of(
        f"exponent of Approach 3 less that of Approach 2 on the same runs, the two intervals taken "
        f"as independent ({who})",
        difference(
            "a_minus_approach_2",
            a,
            exponent(approach_2(study, family.name)),
            "one of the two approaches gives no exponent",
            seeds=family.runs["seed"].nunique() if len(family.runs) else 0,
        ),
    )
    return measures


# --- table --------------------------------------------------------------------------------------


def _parameter_grid(families: list[_Family]) -> list[Grid]:
    if not families:
        return []
    fits = [family.fit for family in families]
    beside = [laws.published(name) for name in BESIDE]
    rows = []
    for name in PARAMETERS:
        ours = [_cell(f.parameters[name], f.intervals.get(name)) for f in fits]
        theirs = [_cell(f.parameters[name], f.intervals.get(name)) for f in beside]
        rows.append([name, *ours, *theirs])
    for label, symbol in (("a = beta/(alpha+beta)", "N"), ("b = alpha/(alpha+beta)", "D")):
        row = [label]
        for fit in fits:
            found = exponent(fit, symbol)
            row.append(with_interval(*found) if found else "–")
        rows.append([*row, *[number(exponent(fit, symbol)[0]) for fit in beside]])
    return [
        Grid(
            caption="L = E + A/N^α + B/D^β with 95% intervals, beside published fits. E, A "
            "and B depend on the text and the tokeniser; the exponents can be compared. "
            "Besiroglu et al. fitted the runs of Hoffmann et al. anew.",
            header=["parameter", *[family_name(f.name) for f in families], *BESIDE.values()],
            rows=rows,
            numeric=tuple(range(1, 1 + len(fits) + len(beside))),
        )
    ]


def _cell(value: float, interval: tuple[float, float] | None) -> str:
    """As `with_interval`, but readable where an interval spans orders of magnitude."""
    if interval is None:
        return number(value, 4)
    low, high = interval
    if high - low < 2 * value:
        return with_interval(value, interval)
    return f"{number(value)} ({number(low, 2) if low > 1e-6 else '0'} to {number(high, 2)})"


# --- figures ------------------------------------------------------------------------------------


def _surface_chart(study: Results, family: _Family) -> Chart:
    """Hoffmann et al. 2022, Fig. 4."""
    slices = "budget" in family.runs and family.runs["budget"].notna().any()
    with style.canvas(9.6 if slices else 5.4, 4.3) as figure:
        panels = figure.subplots(1, 1 + slices, squeeze=False)[0]
        draw_contours(panels[0], family.fit, family.runs)
        if slices:
            draw_slices(panels[1], family.fit, family.runs)
            style.bits_axis(panels[1], study.bits_per_nat)
        caption = (
            f"The loss surface of the {family_name(family.name)} (Hoffmann et al. 2022, Fig. 4). "
            f"Left: runs coloured by loss, curves of equal fitted loss in the same colours, and the "
            f"efficient frontier, which crosses each where it costs least, with its 95% band "
            f"({family.fit.interval_method}); dashed beyond the runs, dotted the frontier of "
            f"Besiroglu et al. 2024, fitted to runs of 44M parameters and more."
        )
        if slices:
            caption += " Right: the same surface cut at each budget, with its 95% band."
        return style.render(
            figure,
            name=f"{NAME}-{slug(family.name)}",
            caption=caption,
            alt=f"Contours of the fitted loss of the {family_name(family.name)} in the plane of "
            f"compute and size, with {len(family.runs)} runs and the efficient frontier.",
        )


def draw_contours(axes: Any, fit: FitResult, runs: pd.DataFrame) -> None:
    """Runs (params, tokens, loss), contours of equal loss and the efficient frontier, at C = 6ND."""
    n, flops = runs["params"].to_numpy(), 6 * runs["params"].to_numpy() * runs["tokens"].to_numpy()
    loss = runs["loss"].to_numpy()
    low, high = loss.min(), loss.max()
    contours = fit.details.get("contours", [])
    levels = np.geomspace(low, high, 33)
    ladder = ListedColormap(list(style.ordered_colours(levels).values()))
    scale = LogNorm(low, high, clip=True)
    for contour in contours:
        axes.plot(contour["flops"], contour["params"], color=ladder(scale(contour["loss"])), lw=1)
    limits = (flops.min() / 2.5, flops.max() * 6), (n.min() / 2, n.max() * 2)
    frontier = fit.details.get("frontier")
    if frontier:
        c = np.geomspace(*limits[0], 100)
        best = laws.optimal_allocation(fit.parameters, c).n_params
        inside = (c >= flops.min()) & (c <= flops.max())
        axes.plot(c[inside], best[inside], color=style.INK, lw=1.6, label="efficient frontier")
        axes.plot(c, best, color=style.INK, lw=1.1, ls=(0, (4, 2)))
        if "n_opt_low" in frontier:
            axes.fill_between(
                frontier["flops"],
                frontier["n_opt_low"],
                frontier["n_opt_high"],
                color=style.MUTED,
                alpha=0.25,
                lw=0,
            )
        theirs = laws.optimal_allocation(laws.published("besiroglu2024").parameters, c).n_params
        axes.plot(c, theirs, color=style.MUTED, lw=1.2, ls=":", label="Besiroglu et al. 2024")
    points = axes.scatter(
        flops, n, c=loss, cmap=ladder, norm=scale, s=22, zorder=3, ec=style.PAPER, lw=0.5
    )
    axes.set(xlim=limits[0], ylim=limits[1], xlabel="C = 6ND (FLOPs)", ylabel="N (parameters)")
    style.log_axis(axes.xaxis, "power")
    style.log_axis(axes.yaxis, "count")
    axes.set_title("Contours of equal loss")
    if frontier:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    bar = axes.figure.colorbar(points, ax=axes, pad=0.02, aspect=28)
    ticks = np.geomspace(low, high, 5)
    bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.set_yticklabels([f"{tick:.2f}" for tick in ticks])
    bar.set_label("loss (nats per token)")
    bar.outline.set_visible(False)


def draw_slices(axes: Any, fit: FitResult, runs: pd.DataFrame) -> None:
    """The fitted loss over size at each budget, with the runs; columns budget, params, tokens."""
    colours = style.ordered_colours(runs["budget"])
    bands = []
    for budget, group in runs.groupby("budget", sort=True):
        colour = colours[budget]
        flops = float(np.median(6 * group["params"] * group["tokens"]))
        n = np.geomspace(group["params"].min() / 1.2, group["params"].max() * 1.2, 60)
        axes.plot(n, fit.predict(params=n, tokens=flops / (6 * n)), color=colour, lw=1.3)
        if fit.draws:
            bands.append((n, *fit.band(params=n, tokens=flops / (6 * n)), colour))
        axes.plot(
            group["params"], group["loss"], "o", color=colour, ms=4, label=power_of_ten(budget)
        )
    axes.set(xlabel="N (parameters)", ylabel="loss (nats per token)", title="Cut at each budget")
    style.log_axis(axes.xaxis, "count")
    axes.legend(
        title="C (FLOPs)",
        title_fontsize=8,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.15),
        ncols=min(5, len(colours)),
        columnspacing=1,
        handletextpad=0.3,
    )
    # A band that runs away must not set the scale.
    bottom, top = axes.get_ylim()
    for n, low, high, colour in bands:
        axes.fill_between(n, low, high, color=colour, alpha=0.2, lw=0)
    axes.set_ylim(bottom, top)


def _budget_means(family: _Family) -> list[tuple[float, float, tuple[float, float] | None]]:
    """(FLOPs, mean residual of log loss, its interval) of each budget."""
    if "budget" not in family.runs:
        return []
    used = family.runs.iloc[np.asarray(family.fit.residuals["row"]) - 1]
    residual = pd.Series(family.fit.residuals["residual"], index=used.index)
    return [
        (float(budget), float(part.mean()), interval_of_mean(part) if len(part) > 2 else None)
        for budget, part in residual.groupby(used["budget"])
    ]


def _residual_chart(family: _Family) -> Chart:
    """What the surface leaves, over compute and over size."""
    residuals = family.fit.residuals
    n, residual = residuals["params"], 100 * residuals["residual"]
    flops = 6 * n * residuals["tokens"]
    used = family.runs.iloc[np.asarray(residuals["row"]) - 1]
    grouped = "budget" in used and used["budget"].notna().all()
    colours = style.ordered_colours(used["budget"]) if grouped else {}
    colour = [colours[b] for b in used["budget"]] if grouped else style.MUTED
    with style.canvas(7.0, 3.0) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, x, kind in zip(panels, (flops, n), ("power", "count"), strict=True):
            axes.axhline(0, color=style.INK, lw=0.8)
            axes.scatter(x, residual, c=colour, s=20, zorder=3, ec=style.PAPER, lw=0.5)
            axes.set_xscale("log")
            axes.margins(x=0.12)
            style.log_axis(axes.xaxis, kind)
        for c, mean, interval in _budget_means(family):
            at = float(np.median(flops[(used["budget"] == c).to_numpy()])) * 1.2
            if interval:
                panels[0].plot([at] * 2, [100 * e for e in interval], color=style.INK, lw=1.2)
            panels[0].plot(at, 100 * mean, "D", ms=4, color=style.INK, zorder=4)
        panels[0].set(xlabel="C = 6ND (FLOPs)", ylabel="residual of log loss (%)")
        panels[1].set(xlabel="N (parameters)")
        return style.render(
            figure,
            name=f"{NAME}-residuals-{slug(family.name)}",
            caption=f"Residuals of the surface of the {family_name(family.name)}: measured over "
            f"fitted loss, in percent. "
            + (
                "One colour a budget; diamonds are the mean of each with its 95% interval."
                if grouped
                else "A point is a run."
            ),
            alt=f"Residuals of {len(n)} runs over compute and size; root mean square "
            f"{math.sqrt(float(np.mean(residual**2))):.2f} percent.",
        )
