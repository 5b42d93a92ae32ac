"""The lower envelope of all training curves, and how its best size and data grow."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmscale import laws
from lmscale.laws import FitResult
from lmscale.report import caveats, figures, style
from lmscale.report.isoflop_figures import frontier_axes, plot_frontier
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.sections.isoflop import slug
from lmscale.report.tables import paired_words, shown, table
from lmscale.studies.envelope import LATE, Envelope, Family, selection_bias
from lmscale.studies.exponents import frontier, is_informative
from lmscale.studies.results import Results
from lmscale.wording import family_name, number, plural, power_of_ten, sentence

NAME = "envelope"
TITLE = "The lower envelope of the training curves"
#: Points of a curve that a figure shows.
SHOWN = 90


@register(NAME)
def section(found: Envelope, results: Results) -> Section:
    fitted = [family for family in found.families if not family.fit.failure]
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        conclusive=any(is_informative(family.exponent()) for family in fitted),
        details=[_detail(family) for family in fitted],
        key_numbers=KeyNumber.of_known(
            {
                f"exponent of N_opt by the envelope, {family_name(f.name)}": f.exponent()
                for f in fitted
            }
        ),
        charts=[_chart(family) for family in fitted],
        grids=_grid(fitted),
        fits=found.fits,
        measures=_measures(found),
        warnings=[w for family in fitted for w in _warnings(family)],
    )


def _finding(found: Envelope) -> str:
    parts = []
    for family in found.families:
        name, a = family_name(family.name), family.exponent()
        growth = f"N ∝ C^{shown(a, '95% interval')}"
        if not a.is_known:
            parts.append(f"no envelope for the {name}: {a.undecided_because}")
        elif is_informative(a):
            d = shown(family.exponent("D"))
            parts.append(
                f"along the envelope of the {name}'s training curves {growth} and D ∝ C^{d}"
            )
        else:
            parts.append(f"these curves do not determine the exponent of the {name}: {growth}")
    return sentence("; ".join(parts) or "no runs are declared")


def _detail(family: Family) -> str:
    envelope = family.fit.details["envelope"]
    first, last = (power_of_ten(envelope["flops"][i]) for i in (0, -1))
    return (
        f"{family_name(family.name)}: {plural(family.fit.n_used, 'curve')} of training loss, each "
        f"smoothed by a spline as far as its own noise asks. At {len(envelope['flops']):,} budgets "
        f"between {first} and {last} FLOPs ({family.convention} convention) the lowest curve belongs "
        f"to one of {len(np.unique(envelope['n_opt']))} sizes. {family.late_share:.0%} of these points "
        f"lie in the last {LATE:.0%} of a run, where its learning rate has decayed (Hoffmann et al. "
        f"2022: all of theirs)."
    )


def _warnings(family: Family) -> list[str]:
    own = caveats.of_fit(family.fit)
    if bias := selection_bias(family.fit):
        own.append(
            f"an envelope takes the lowest of its curves, and their noise alone moves the exponent by "
            f"{number(bias, 2)}, more than it scatters it; so there is no interval."
        )
    return caveats.about(family.name, own)


def _measures(found: Envelope) -> dict[str, Measure]:
    who = ""
    if found.families:
        first = found.families[0]
        who = f"{family_name(first.name)}, {first.convention} convention"
        who += "" if first.fit.failure else f", {first.fit.n_used} training curves"
        who = f" ({who})"
    what = {
        "a": "exponent of N_opt ∝ C^a by Approach 1",
        "b": "exponent of D_opt ∝ C^b by Approach 1",
        "a_minus_approach_2": "exponent of Approach 1 less that of Approach 2 on the same runs, "
        + paired_words(found.estimates["a_minus_approach_2"]),
    }
    return {name: Measure.of(text + who, found.estimates[name]) for name, text in what.items()}


def _grid(families: list[Family]) -> list[Grid]:
    def factor(name: str) -> Any:
        def cell(family: Family | None) -> str:
            k = family.fit.parameters[name] if family else np.nan
            return power_of_ten(k, 3) if k < 1e-3 else number(k)

        return cell

    theirs = {"N": "0.50 (0.488 to 0.502)", "D": "0.50 (0.501 to 0.512)"}
    return table(
        "N_opt = k_N C^a and D_opt = k_D C^b along the envelope, with 95% intervals (Hoffmann et al. "
        "give 80%).",
        [*families, None] if families else [],
        {
            "family": lambda f: family_name(f.name) if f else "Hoffmann et al. 2022",
            "a": lambda f: shown(f.exponent("N")) if f else theirs["N"],
            "b": lambda f: shown(f.exponent("D")) if f else theirs["D"],
            "k_N": factor("k_N"),
            "k_D": factor("k_D"),
        },
        text=("family",),
    )


# --- figure -------------------------------------------------------------------------------------


def _chart(family: Family) -> Chart:
    """Hoffmann et al. 2022, Fig. 2."""
    fit, name = family.fit, family_name(family.name)
    colours = style.ordered_colours([curve["params"] for curve in fit.details["curves"]])
    with style.canvas(10.4, 3.9) as figure:
        left, *others = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])
        _draw_envelope(left, fit, colours)
        for axes, symbol in zip(others, "ND", strict=True):
            _draw_frontier(axes, family, symbol, colours)
        figures.size_legend(figure, colours, f"N, parameters ({family.convention} convention)")
        return style.render(
            figure,
            name=f"{NAME}-{slug(family.name)}",
            caption=f"Approach 1 for the {name} (Hoffmann et al. 2022, Fig. 2). Left: smoothed training "
            f"loss of every run, one colour a size, and in black the envelope where it is read. Middle "
            f"and right: size and tokens of the lowest curve at each budget and the power laws through "
            f"them, with 95% bands ({fit.interval_method}); dotted is the paper's own law, fitted at "
            f"10¹⁸ FLOPs and more.",
            alt=f"{len(fit.details['curves'])} training curves over compute with their lower envelope; "
            f"the best size grows with compute to the power {fit.parameters['a']:.3f}.",
        )


def _draw_envelope(axes: Any, fit: FitResult, colours: dict[float, str]) -> None:
    """The curves, and the part of the envelope that the law was fitted to."""
    curves, envelope = fit.details["curves"], fit.details["envelope"]
    for curve in curves:
        flops, loss = _thin(curve["flops"], curve["loss"])
        axes.plot(flops, loss, color=colours[curve["params"]], lw=0.9)
    order = np.argsort(envelope["flops"])
    flops, loss = _thin(envelope["flops"][order], envelope["loss"][order], most=4 * SHOWN)
    axes.plot(flops, loss, color=style.INK, lw=2.2)
    # The first steps, where every curve falls from ln V, would squeeze all the rest.
    lowest = min(float(np.min(curve["loss"])) for curve in curves)
    top = float(np.max(envelope["loss"]))
    span = max(top - lowest, 1e-6)
    axes.set_ylim(lowest - 0.08 * span, top + 0.9 * span)
    last = max(float(curve["flops"].max()) for curve in curves)
    axes.set_xlim(float(envelope["flops"].min()) / 4, last * 1.3)
    axes.set(xlabel="C (FLOPs)", ylabel="training loss (nats per token)")
    axes.set_title("Training curves and their envelope")
    style.log_axis(axes.xaxis, "power")


def _draw_frontier(axes: Any, family: Family, symbol: str, colours: dict[float, str]) -> None:
    """The envelope's points, their power law and Hoffmann's."""
    envelope, column = family.fit.details["envelope"], "n_opt" if symbol == "N" else "d_opt"
    keys = np.array(sorted(colours))
    flops, value, n = _thin(envelope["flops"], envelope[column], envelope["n_opt"], most=2 * SHOWN)
    nearest = [colours[keys[np.argmin(np.abs(np.log(keys / x)))]] for x in n]
    limits = flops.min() / 1.5, flops.max() * 1.5
    plot_frontier(axes, family.fit, symbol, family.exponent(symbol), limits)
    grid = np.geomspace(*limits, 60)
    theirs, _ = frontier(laws.published("chinchilla-approach1"), symbol, grid)
    axes.plot(grid, theirs, color=style.MUTED, lw=1.2, ls=":")
    axes.scatter(flops, value, c=nearest, s=9, lw=0, zorder=3)
    axes.set(xscale="log", yscale="log")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.25)
    frontier_axes(axes, symbol, "Best size" if symbol == "N" else "Best number of tokens")


def _thin(x: np.ndarray, *columns: np.ndarray, most: int = SHOWN) -> tuple[np.ndarray, ...]:
    """At most that many of the points, evenly spread in ln x."""
    if len(x) <= most:
        return (x, *columns)
    wanted = np.geomspace(x[0], x[-1], most)
    index = np.unique(np.clip(np.searchsorted(x, wanted), 0, len(x) - 1))
    return tuple(column[index] for column in (x, *columns))
