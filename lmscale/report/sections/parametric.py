"""The parametric loss surface, its frontier, and what it leaves unexplained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.ticker import FixedLocator, NullLocator

from lmscale import laws
from lmscale.laws import FitResult
from lmscale.report import caveats, figures, style
from lmscale.report.notes import annotate, run_note
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.sections.isoflop import slug
from lmscale.report.tables import paired_words, shown, table
from lmscale.studies.exponents import exponent
from lmscale.studies.parametric import PARAMETERS, Family, Parametric
from lmscale.studies.results import Results
from lmscale.wording import family_name, number, power_of_ten, sentence, with_interval

NAME = "parametric"
TITLE = "Loss as a function of size and data"
#: Published fits of the same form that stand beside one's own.
BESIDE = {"chinchilla": "Hoffmann et al. 2022", "besiroglu2024": "Besiroglu et al. 2024"}
#: Rows of the table that are exponents of the frontier.
EXPONENTS = {"a = beta/(alpha+beta)": "N", "b = alpha/(alpha+beta)": "D"}


@register(NAME)
def section(found: Parametric, results: Results) -> Section:
    fitted = [family for family in found.families if not family.fit.failure]
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        conclusive=any(family.is_informative for family in fitted),
        details=[_detail(family) for family in fitted],
        key_numbers=KeyNumber.of_known(
            {
                f"exponent of N_opt by the surface, {family_name(f.name)}": f.exponent()
                for f in fitted
            }
        ),
        charts=[
            chart
            for family in fitted
            for chart in (_surface_chart(family, results), _residual_chart(family))
        ],
        grids=_parameter_grid(fitted),
        fits=found.fits,
        measures=_measures(found),
        warnings=[w for f in fitted for w in caveats.about(f.name, caveats.of_fit(f.fit))],
    )


def _finding(found: Parametric) -> str:
    parts = []
    for family in found.families:
        name, a = family_name(family.name), family.exponent()
        if family.fit.failure:
            parts.append(f"no surface for the {name}: {family.fit.failure}")
        elif not a.is_known:
            parts.append(f"the surface of the {name} has no frontier: {_law(family.fit)}")
        elif family.is_informative:
            growth = f"N ∝ C^{shown(a, '95% interval')}"
            parts.append(
                f"the surface {_law(family.fit)} of the {name} puts the best size at {growth}"
            )
        else:
            growth = f"N ∝ C^{shown(a, '95% interval')}"
            parts.append(f"these runs do not determine the exponent of the {name}: {growth}")
    return sentence("; ".join(parts) or "no runs are declared")


def _law(fit: FitResult) -> str:
    e, a, b, alpha, beta = (number(fit.parameters[name]) for name in PARAMETERS)
    return f"L = {e} + {a}/N^{alpha} + {b}/D^{beta}"


def _detail(family: Family) -> str:
    fit, means = family.fit, family.budget_means
    text = (
        f"{family_name(family.name)}: {fit.n_used} runs, N and C counted by the {family.convention} "
        f"convention; the root mean square of the residuals of log loss is {family.residual_rms:.4f}, "
        f"intervals are from a {fit.interval_method}."
    )
    off = [mean for mean in means if mean.interval and not mean.may_be(0)]
    if off:
        worst = max(off, key=lambda mean: abs(mean.value))
        percent = f"{100 * worst.value:+.2f}%".replace("-", "−")
        text += (
            f" At {len(off)} of {len(means)} budgets the residuals lie to one side of zero, most at "
            f"{power_of_ten(worst.at[0])} FLOPs ({percent}): there the form does not fit the runs."
        )
    return text


def _measures(found: Parametric) -> dict[str, Measure]:
    who = ""
    if found.families:
        first = found.families[0]
        runs = f"{len(first.runs)} runs"
        who = f" ({family_name(first.name)}, {first.convention} convention, {runs})"
    what = {name: f"{name} of L = E + A/N^α + B/D^β" for name in PARAMETERS} | {
        "a": "exponent of N_opt ∝ C^a by Approach 3",
        "a_minus_approach_2": "exponent of Approach 3 less that of Approach 2 on the same runs, "
        + paired_words(found.estimates["a_minus_approach_2"]),
    }
    return {name: Measure.of(what[name] + who, one) for name, one in found.estimates.items()}


# --- table --------------------------------------------------------------------------------------


def _parameter_grid(families: list[Family]) -> list[Grid]:
    def column(fit: FitResult, ours: bool) -> Callable[[str], str]:
        def cell(row: str) -> str:
            if row in PARAMETERS:
                return _cell(fit.parameters[row], fit.intervals.get(row))
            a = exponent(fit, EXPONENTS[row])
            return shown(a) if ours else number(a.value)

        return cell

    return table(
        "L = E + A/N^α + B/D^β with 95% intervals, beside published fits. E, A and B depend on the text "
        "and the tokeniser; the exponents can be compared. Besiroglu et al. fitted the runs of "
        "Hoffmann et al. anew.",
        [*PARAMETERS, *EXPONENTS] if families else [],
        {"parameter": str}
        | {family_name(family.name): column(family.fit, True) for family in families}
        | {label: column(laws.published(name), False) for name, label in BESIDE.items()},
        text=("parameter",),
    )


def _cell(value: float, interval: tuple[float, float] | None) -> str:
    """As `with_interval`, but readable where an interval spans orders of magnitude."""
    if interval is None:
        return number(value, 4)
    low, high = interval
    if high - low < 2 * value:
        return with_interval(value, interval)
    return f"{number(value)} ({number(low, 2) if low > 1e-6 else '0'} to {number(high, 2)})"


# --- figures ------------------------------------------------------------------------------------


def _surface_chart(family: Family, results: Results) -> Chart:
    """Hoffmann et al. 2022, Fig. 4."""
    slices, name = family.has_budgets, family_name(family.name)
    with style.canvas(9.6 if slices else 5.4, 4.3) as figure:
        panels = figure.subplots(1, 1 + slices, squeeze=False)[0]
        _draw_contours(panels[0], family, results)
        if slices:
            _draw_slices(panels[1], family)
            style.bits_axis(panels[1], results.bits_per_nat)
        caption = (
            f"The loss surface of the {name} (Hoffmann et al. 2022, Fig. 4). Left: runs coloured by "
            f"loss, curves of equal fitted loss in the same colours, and the efficient frontier, which "
            f"crosses each where it costs least, with its 95% band ({family.fit.interval_method}); "
            f"dashed beyond the runs, dotted the frontier of Besiroglu et al. 2024, fitted to runs of "
            f"44M parameters and more."
        )
        if slices:
            caption += " Right: the same surface cut at each budget, with its 95% band."
        return style.render(
            figure,
            name=f"{NAME}-{slug(family.name)}",
            caption=caption,
            alt=f"Contours of the fitted loss of the {name} in the plane of compute and size, with "
            f"{len(family.runs)} runs and the efficient frontier.",
        )


def _draw_contours(axes: Any, family: Family, results: Results) -> None:
    """Runs, contours of equal loss and the efficient frontier, at C = 6ND."""
    n, loss = family.runs["params"].to_numpy(), family.runs["loss"].to_numpy()
    flops = 6 * n * family.runs["tokens"].to_numpy()
    levels = np.geomspace(loss.min(), loss.max(), 33)
    ladder = ListedColormap(list(style.ordered_colours(levels).values()))
    scale = LogNorm(loss.min(), loss.max(), clip=True)
    for contour in family.fit.details.get("contours", []):
        color = ladder(scale(contour["loss"]))
        axes.plot(contour["flops"], contour["params"], color=color, lw=1)
    limits = (flops.min() / 2.5, flops.max() * 6), (n.min() / 2, n.max() * 2)
    if "frontier" in family.fit.details:
        _draw_frontier(axes, family.fit, (flops.min(), flops.max()), limits[0])
    points = axes.scatter(
        flops, n, c=loss, cmap=ladder, norm=scale, s=22, zorder=3, ec=style.PAPER, lw=0.5
    )
    rows = results.table.set_index("run", drop=False)
    annotate(points, [run_note(rows.loc[name].to_dict()) for name in family.names])
    axes.set(xlim=limits[0], ylim=limits[1], xlabel="C = 6ND (FLOPs)", ylabel="N (parameters)")
    style.log_axis(axes.xaxis, "power")
    style.log_axis(axes.yaxis, "count")
    axes.set_title("Contours of equal loss")
    bar = axes.figure.colorbar(points, ax=axes, pad=0.02, aspect=28)
    ticks = np.geomspace(loss.min(), loss.max(), 5)
    bar.ax.yaxis.set_major_locator(FixedLocator(ticks))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.set_yticklabels([f"{tick:.2f}" for tick in ticks])
    bar.set_label(figures.LOSS)
    bar.outline.set_visible(False)


def _draw_frontier(
    axes: Any, fit: FitResult, runs: tuple[float, float], limits: tuple[float, float]
) -> None:
    """The efficient frontier, dashed beyond the budgets `runs`, and that of Besiroglu et al."""
    c, frontier = np.geomspace(*limits, 100), fit.details["frontier"]
    best = laws.optimal_allocation(fit.parameters, c).n_params
    inside = (c >= runs[0]) & (c <= runs[1])
    axes.plot(c[inside], best[inside], color=style.INK, lw=1.6, label="efficient frontier")
    axes.plot(c, best, color=style.INK, lw=1.1, ls=(0, (4, 2)))
    if "n_opt_low" in frontier:
        edges = frontier["n_opt_low"], frontier["n_opt_high"]
        axes.fill_between(frontier["flops"], *edges, color=style.MUTED, alpha=0.25, lw=0)
    theirs = laws.optimal_allocation(laws.published("besiroglu2024").parameters, c).n_params
    axes.plot(c, theirs, color=style.MUTED, lw=1.2, ls=":", label="Besiroglu et al. 2024")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)


def _draw_slices(axes: Any, family: Family) -> None:
    """The fitted loss over size at each budget, with the runs."""
    fit, colours, bands = family.fit, style.ordered_colours(family.runs["budget"]), []
    for budget, group in family.runs.groupby("budget", sort=True):
        look = {"color": colours[budget], "label": power_of_ten(budget)}
        flops = float(np.median(6 * group["params"] * group["tokens"]))
        n = np.geomspace(group["params"].min() / 1.2, group["params"].max() * 1.2, 60)
        columns = {"params": n, "tokens": flops / (6 * n)}
        axes.plot(n, fit.predict(**columns), color=look["color"], lw=1.3)
        if fit.draws:
            bands.append((n, *fit.band(**columns), look["color"]))
        axes.plot(group["params"], group["loss"], "o", ms=4, **look)
    figures.size_axes(
        axes, x="N (parameters)", y=figures.LOSS, title="Cut at each budget", log_y=False
    )
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
    for n, low, high, color in bands:
        axes.fill_between(n, low, high, color=color, alpha=0.2, lw=0)
    axes.set_ylim(bottom, top)


def _residual_chart(family: Family) -> Chart:
    """What the surface leaves, over compute and over size."""
    residuals, rows = family.fit.residuals, family.fitted_runs
    n, residual = residuals["params"], 100 * residuals["residual"]
    grouped = "budget" in rows and rows["budget"].notna().all()
    colours = style.ordered_colours(rows["budget"]) if grouped else {}
    colour = [colours[budget] for budget in rows["budget"]] if grouped else style.MUTED
    with style.canvas(7.0, 3.0) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for axes, x, kind in ((left, 6 * n * residuals["tokens"], "power"), (right, n, "count")):
            axes.axhline(0, color=style.INK, lw=0.8)
            axes.scatter(x, residual, c=colour, s=20, zorder=3, ec=style.PAPER, lw=0.5)
            axes.set_xscale("log")
            axes.margins(x=0.12)
            style.log_axis(axes.xaxis, kind)
        for mean in family.budget_means:
            at = 1.2 * mean.at[1]
            if mean.interval:
                left.plot([at] * 2, [100 * e for e in mean.interval], color=style.INK, lw=1.2)
            left.plot(at, 100 * mean.value, "D", ms=4, color=style.INK, zorder=4)
        left.set(xlabel="C = 6ND (FLOPs)", ylabel="residual of log loss (%)")
        right.set(xlabel="N (parameters)")
        points = "A point is a run."
        if grouped:
            points = "One colour a budget; diamonds are the mean of each with its 95% interval."
        return style.render(
            figure,
            name=f"{NAME}-residuals-{slug(family.name)}",
            caption=f"Residuals of the surface of the {family_name(family.name)}: measured over fitted "
            f"loss, in percent. {points}",
            alt=f"Residuals of {len(n)} runs over compute and size; root mean square "
            f"{100 * family.residual_rms:.2f} percent.",
        )
