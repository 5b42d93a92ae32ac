"""The lower envelope of all training curves: Approach 1 of Hoffmann et al. 2022 (Fig. 2)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lmscale import laws
from lmscale.laws import FitError, FitResult, TableError
from lmscale.report import style
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.sections.isoflop import slug
from lmscale.studies.exponents import (
    difference_of_pairs as difference,
)
from lmscale.studies.exponents import (
    exponent_and_interval as exponent,
)
from lmscale.studies.exponents import (
    home_convention,
)
from lmscale.studies.fits import refused
from lmscale.studies.isoflop import approach_2
from lmscale.studies.results import Results
from lmscale.sweep.curves import join_curves, learning_curve
from lmscale.wording import (
    family_name,
    number,
    plural,
    power_of_ten,
    si,
    with_interval,
)

__all__ = ["analyse", "draw_envelope", "draw_frontier"]

NAME = "envelope"
TITLE = "The lower envelope of the training curves"
NOISY = "the curves' noise moves the exponent by more than it scatters it, or they are too few"
#: Points of the envelope, and of a curve, that a figure shows.
_SHOWN = 90
#: Where Hoffmann et al. found the points of their envelope: this last share of a run.
LATE = 0.15


@dataclass(frozen=True)
class _Family:
    """One family's envelope, or why there is none. `runs` is what the curves were read from."""

    name: str
    convention: str
    runs: pd.DataFrame = field(repr=False)
    fit: FitResult | None
    failure: str = ""

    @property
    def exponent(self) -> tuple[float, tuple[float, float] | None] | None:
        return _held(self.fit, "N")


def _held(fit: FitResult | None, symbol: str) -> tuple[float, tuple[float, float] | None] | None:
    """An exponent with its interval, or without where noise moves it more than it scatters it."""
    found = exponent(fit, symbol)
    return (found[0], None) if found and _moved(fit) else found


def _moved(fit: FitResult) -> float:
    """How far noise moves the exponent of N, where that is more than its scatter; else 0.

    An envelope takes the lowest of noisy curves, which is a biased choice; the draws carry that bias
    as the distance of their median from the value that was read.
    """
    if not fit.draws:
        return 0.0
    low, middle, high = np.nanpercentile(fit.draws["a"], [15.9, 50, 84.1])
    shift = float(middle - fit.parameters["a"])
    return shift if abs(shift) > (high - low) / 2 else 0.0


def analyse(study: Results) -> Section:
    """The envelope of each family, and how its best size and data grow."""
    families = [_fit_family(study, name) for name in study.families]
    fitted = [family for family in families if family.fit is not None]
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(families),
        conclusive=any(_tells(family) for family in fitted),
        details=[_detail(family) for family in fitted],
        key_numbers=[k for family in fitted for k in _key_numbers(family)],
        charts=[_chart(family) for family in fitted],
        grids=_grid(fitted),
        fits={f"{f.name}/{f.convention}": f.fit or refused(NAME, f.failure) for f in families},
        measures=_measures(study, families[0]) if families else {},
        warnings=[w for family in fitted for w in _warnings(family)],
    )


def _fit_family(study: Results, name: str) -> _Family:
    usable = study.usable
    runs = usable[usable["family"] == name].reset_index(drop=True) if len(usable) else usable
    convention = home_convention(runs)
    if not len(runs):
        return _Family(name, convention, runs, None, "no run has ended well yet")
    curves = [
        learning_curve(study.metrics.get(row["run"], []), row, convention)
        for _, row in runs.iterrows()
    ]
    curves = [curve for curve in curves if len(curve)]
    if not curves:
        return _Family(name, convention, runs, None, "no run has a training curve")
    try:
        fit = laws.fit(join_curves(curves, convention), "envelope")
    except (TableError, FitError, ValueError, np.linalg.LinAlgError) as error:
        return _Family(name, convention, runs, None, str(error))
    return _Family(name, convention, runs, fit)


def _tells(family: _Family) -> bool:
    found = family.exponent
    return found is not None and found[1] is not None and 0 < found[1][0] and found[1][1] < 1


# --- words --------------------------------------------------------------------------------------


def _finding(families: list[_Family]) -> str:
    sentences = []
    for family in families:
        name = family_name(family.name)
        found = family.exponent
        if found is None:
            sentences.append(f"no envelope for the {name}: {family.failure}")
            continue
        a, d = with_interval(*found, "95% interval"), _held(family.fit, "D")
        if not _tells(family):
            sentences.append(f"these curves do not hold the exponent of the {name}: N ∝ C^{a}")
        else:
            sentences.append(
                f"along the envelope of the {name}'s training curves N ∝ C^{a} and "
                f"D ∝ C^{with_interval(*d)}"
            )
    text = "; ".join(sentences) or "no runs are declared"
    return text[0].upper() + text[1:] + "."


def _detail(family: _Family) -> str:
    fit = family.fit
    envelope = fit.details["envelope"]
    sizes = len(np.unique(envelope["n_opt"]))
    return (
        f"{family_name(family.name)}: {plural(fit.n_used, 'curve')} of training loss, each "
        f"smoothed by a spline as far as its own noise asks; at {len(envelope['flops']):,} budgets between "
        f"{power_of_ten(envelope['flops'][0])} and {power_of_ten(envelope['flops'][-1])} FLOPs "
        f"({family.convention} convention) the lowest curve belongs to one of {sizes} sizes. "
        f"{_late_share(family):.0%} of these points lie in the last {LATE:.0%} of a run, where its "
        f"learning rate has decayed (Hoffmann et al. 2022: all of theirs)."
    )


def _warnings(family: _Family) -> list[str]:
    name = family_name(family.name)
    warnings = [f"{name}: {w[0].upper()}{w[1:]}." for w in family.fit.warnings]
    if moved := _moved(family.fit):
        warnings.append(
            f"{name}: an envelope takes the lowest of its curves, and their noise alone moves the "
            f"exponent by {number(moved, 2)}, more than it scatters it; so there is no interval."
        )
    return warnings


def _late_share(family: _Family) -> float:
    """Share of the envelope's points in the last 15% of the run that they are read from."""
    envelope = family.fit.details["envelope"]
    ends = family.runs.groupby(f"params_{family.convention}")["tokens"].unique()
    late = []
    for n, d in zip(envelope["n_opt"], envelope["d_opt"], strict=True):
        key = ends.index[np.argmin(np.abs(ends.index.to_numpy(float) - n))]
        later = ends[key][ends[key] >= d * 0.999]
        late.append(len(later) > 0 and d >= (1 - LATE) * later.min())
    return float(np.mean(late))


def _key_numbers(family: _Family) -> list[KeyNumber]:
    found = family.exponent
    return [KeyNumber.of(f"exponent of N_opt by the envelope, {family_name(family.name)}", *found)]


def _measures(study: Results, family: _Family) -> dict[str, Measure]:
    """Of the first family, the Transformer where there is one."""
    who = f"{family_name(family.name)}, {family.convention} convention"
    if family.fit:
        who += f", {family.fit.n_used} training curves"
    measures = {}
    for key, symbol, letter in (("a", "N", "a"), ("b", "D", "b")):
        found = _held(family.fit, symbol)
        measures[key] = Measure(
            what=f"exponent of {symbol}_opt ∝ C^{letter} by Approach 1 ({who})",
            value=found[0] if found else None,
            interval=found[1] if found else None,
            undecided_because=NOISY if found and found[1] is None else family.failure,
        )
    measures["a_minus_approach_2"] = Measure.of(
        f"exponent of Approach 1 less that of Approach 2 on the same runs, the two intervals taken "
        f"as independent ({who})",
        difference(
            "a_minus_approach_2",
            family.exponent,
            exponent(approach_2(study, family.name)),
            "one of the two approaches gives no exponent",
            seeds=family.runs["seed"].nunique() if len(family.runs) else 0,
        ),
    )
    return measures


def _grid(families: list[_Family]) -> list[Grid]:
    if not families:
        return []
    rows = []
    for family in families:
        p = family.fit.parameters
        rows.append(
            [
                family_name(family.name),
                with_interval(*family.exponent),
                with_interval(*_held(family.fit, "D")),
                power_of_ten(p["k_N"], 3) if p["k_N"] < 1e-3 else number(p["k_N"]),
                power_of_ten(p["k_D"], 3) if p["k_D"] < 1e-3 else number(p["k_D"]),
            ]
        )
    rows.append(
        ["Hoffmann et al. 2022", "0.50 (0.488 to 0.502)", "0.50 (0.501 to 0.512)", "–", "–"]
    )
    return [
        Grid(
            caption="N_opt = k_N C^a and D_opt = k_D C^b along the envelope, with 95% intervals "
            "(Hoffmann et al. give 80%).",
            header=["family", "a", "b", "k_N", "k_D"],
            rows=rows,
            numeric=(1, 2, 3, 4),
        )
    ]


# --- figure -------------------------------------------------------------------------------------


def _chart(family: _Family) -> Chart:
    """Hoffmann et al. 2022, Fig. 2."""
    fit = family.fit
    curves = fit.details["curves"]
    colours = style.ordered_colours([curve["params"] for curve in curves])
    with style.canvas(10.4, 3.9) as figure:
        left, middle, right = figure.subplots(1, 3, width_ratios=[1.25, 1, 1])
        draw_envelope(left, fit)
        for axes, symbol in ((middle, "N"), (right, "D")):
            draw_frontier(axes, fit, symbol)
        left.set_title("Training curves and their envelope")
        middle.set_title("Best size")
        right.set_title("Best number of tokens")
        sizes = sorted(colours)
        handles = [left.plot([], [], color=colours[n], lw=2)[0] for n in sizes]
        figure.legend(
            handles,
            [si(n) for n in sizes],
            title=f"N, parameters ({family.convention} convention)",
            title_fontsize=8,
            loc="outside upper center",
            ncols=min(len(sizes), 12),
            handlelength=1.2,
            columnspacing=1.4,
        )
        return style.render(
            figure,
            name=f"{NAME}-{slug(family.name)}",
            caption=f"Approach 1 for the {family_name(family.name)} (Hoffmann et al. 2022, Fig. 2). "
            f"Left: smoothed training loss of every run, one colour a size, and in black the "
            f"envelope where it is read. Middle and right: size and tokens of the lowest curve at "
            f"each budget and the power laws through them, with 95% bands ({fit.interval_method}); "
            f"dotted is the paper's own law, fitted at 10¹⁸ FLOPs and more.",
            alt=f"{len(curves)} training curves over compute with their lower envelope; the best "
            f"size grows with compute to the power {fit.parameters['a']:.3f}.",
        )


def draw_envelope(axes: Any, fit: FitResult) -> None:
    """The curves of a fit of the law "envelope", and the part of the envelope that it used."""
    curves, envelope = fit.details["curves"], fit.details["envelope"]
    colours = style.ordered_colours([curve["params"] for curve in curves])
    for curve in curves:
        flops, loss = _thin(curve["flops"], curve["loss"])
        axes.plot(flops, loss, color=colours[curve["params"]], lw=0.9)
    order = np.argsort(envelope["flops"])
    flops, loss = _thin(envelope["flops"][order], envelope["loss"][order], 4 * _SHOWN)
    axes.plot(flops, loss, color=style.INK, lw=2.2)
    # The first steps, where every curve falls from ln V, would squeeze all the rest.
    lowest = min(float(np.min(curve["loss"])) for curve in curves)
    top = float(np.max(envelope["loss"]))
    span = max(top - lowest, 1e-6)
    axes.set_ylim(lowest - 0.08 * span, top + 0.9 * span)
    first = float(envelope["flops"].min()) / 4
    axes.set_xlim(first, max(float(c["flops"].max()) for c in curves) * 1.3)
    axes.set(xlabel="C (FLOPs)", ylabel="training loss (nats per token)")
    style.log_axis(axes.xaxis, "power")


def draw_frontier(axes: Any, fit: FitResult, symbol: str) -> None:
    """N_opt or D_opt along the envelope, its power law with a band, and Hoffmann's."""
    envelope, (power, k) = fit.details["envelope"], ("a", "k_N") if symbol == "N" else ("b", "k_D")
    column = "n_opt" if symbol == "N" else "d_opt"
    colours = style.ordered_colours([curve["params"] for curve in fit.details["curves"]])
    keys = np.array(sorted(colours))
    flops, value, n = _thin(envelope["flops"], envelope[column], 2 * _SHOWN, envelope["n_opt"])
    nearest = [colours[keys[np.argmin(np.abs(np.log(keys / x)))]] for x in n]
    grid = np.geomspace(flops.min() / 1.5, flops.max() * 1.5, 60)
    if fit.draws and not _moved(fit):
        with np.errstate(over="ignore", invalid="ignore"):
            drawn = fit.draws[k][:, None] * grid ** fit.draws[power][:, None]
        low, high = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
        axes.fill_between(grid, low, high, color=style.MUTED, alpha=0.22, lw=0)
    axes.plot(grid, fit.parameters[k] * grid ** fit.parameters[power], color=style.INK, lw=1.3)
    paper = laws.published("chinchilla-approach1").parameters
    axes.plot(grid, paper[k] * grid ** paper[power], color=style.MUTED, lw=1.2, ls=":")
    axes.scatter(flops, value, c=nearest, s=9, lw=0, zorder=3)
    text = with_interval(*_held(fit, symbol))
    found, rest = text.split(" (", 1)
    axes.annotate(
        f"${symbol}_{{\\mathrm{{opt}}}} \\propto C^{{\\,{found}}}$\n"
        + ("no interval" if "no interval" in rest else "95%: " + rest.rstrip(")")),
        (0.04, 0.96),
        xycoords="axes fraction",
        va="top",
        linespacing=1.4,
    )
    axes.set_xlabel("C (FLOPs)")
    unit = "parameters" if symbol == "N" else "tokens"
    axes.set_ylabel(f"${symbol}_{{\\mathrm{{opt}}}}$ ({unit})")
    axes.set_xscale("log")
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * (high / low) ** 0.25)
    style.log_axis(axes.xaxis, "power")
    style.log_axis(axes.yaxis, "count")


def _thin(x: np.ndarray, y: np.ndarray, most: int = _SHOWN, *more: np.ndarray) -> tuple:
    """At most that many of the points, evenly spread in ln x."""
    if len(x) > most:
        wanted = np.geomspace(x[0], x[-1], most)
        index = np.unique(np.clip(np.searchsorted(x, wanted), 0, len(x) - 1))
        return tuple(column[index] for column in (x, y, *more))
    return (x, y, *more)
