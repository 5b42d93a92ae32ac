"""Figures in Python: those of a report, and their parts on axes of your own.

    import lmscale
    import matplotlib.pyplot as plt

    results = lmscale.load("results/isoflop-cpu")
    lmscale.figures.charts(results, "isoflop")[0]          # a figure of the report, as it is there

    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
    fit = lmscale.fit(results, "isoflop")
    lmscale.figures.profiles(left, fit)
    lmscale.figures.frontier(right, fit, "N")

Every function draws with the colours of the report and leaves the rest of the axes alone, so that what
you draw before or after stays. Scales and labels are set; change them afterwards as you like.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmscale.laws import FitError, FitResult, Profile
from lmscale.report import figures as parts
from lmscale.report import style
from lmscale.report.isoflop_figures import frontier_axes, plot_frontier, plot_profile
from lmscale.report.registry import analyse
from lmscale.report.section import Chart
from lmscale.studies import find
from lmscale.studies.exponents import exponent
from lmscale.studies.results import Results
from lmscale.wording import power_of_ten

__all__ = ["charts", "curves", "frontier", "power_law", "profiles"]

#: Labels of axes by column.
_AXES = {"params": "N (parameters)", "tokens": "D (tokens)", "flops": "C (FLOPs)"}


def charts(results: Results | str | os.PathLike, study: str) -> Sequence[Chart]:
    """The figures that the report draws of a study.

        for chart in lmscale.figures.charts("results/isoflop-cpu", "isoflop"):
            chart.save(f"{chart.name}.svg")

    Args:
      results: of `lmscale.load`, or the folder of a store.
      study: a name in `lmscale.studies.names()`.

    Returns:
      Charts, which a notebook shows. Their `figure` is matplotlib's, to be changed and saved again. Empty
      where the results hold nothing to draw.

    Raises:
      KeyError: there is no such study; the message lists those that there are.
    """
    find(study)
    found = results if isinstance(results, Results) else Results.read(results)
    return analyse(study, found).charts


def profiles(axes: Any, fit: FitResult) -> dict[float, Any]:
    """IsoFLOP profiles: losses over size at each budget, their parabolas and minima.

    Args:
      axes: of matplotlib.
      fit: of the law isoflop.

    Returns:
      Budget in FLOPs -> its points, for a legend of your own.

    Raises:
      FitError: the fit is of another law.
    """
    found = _profiles(fit)
    colours = style.ordered_colours([profile.flops for profile in found])
    handles = {
        profile.flops: plot_profile(
            axes, profile, colours[profile.flops], label=f"{power_of_ten(profile.flops)} FLOPs"
        )
        for profile in found
    }
    parts.size_axes(axes, x=f"N, counted as {_convention(fit)}", y=parts.LOSS, log_y=False)
    return handles


def frontier(axes: Any, fit: FitResult, symbol: str = "N") -> None:
    """The best size (or number of tokens) of each budget, the power law through them, its 95% band.

    Args:
      axes: of matplotlib.
      fit: of the law isoflop.
      symbol: "N" or "D".

    Raises:
      FitError: the fit is of another law, or has no exponent.
    """
    if symbol not in ("N", "D"):
        raise FitError(f"symbol must be N or D, not {symbol!r}")
    found = _profiles(fit)
    if not fit.exponents:
        raise FitError("this fit has no power law: see its warnings")
    colours = style.ordered_colours([profile.flops for profile in found])
    flops = [profile.flops for profile in found]
    spread = 1.3
    plot_frontier(
        axes, fit, symbol, exponent(fit, symbol), (min(flops) / spread, max(flops) * spread)
    )
    for profile in (one for one in found if one.ok):
        value, edges = (
            (profile.n_opt, profile.n_interval)
            if symbol == "N"
            else (profile.d_opt, profile.d_interval)
        )
        colour = colours[profile.flops]
        if all(map(math.isfinite, edges)):
            axes.plot([profile.flops] * 2, edges, color=colour, lw=1.6)
        axes.plot(profile.flops, value, "D", color=colour, ms=6, mec=style.INK, mew=0.9, zorder=4)
    frontier_axes(axes, symbol, "")


def power_law(axes: Any, fit: FitResult, color: str = style.INK, label: str = "") -> None:
    """A law in one variable over the runs that it was fitted to, with its 95% band.

        fit = lmscale.fit("runs.csv", "power", x="params")
        lmscale.figures.power_law(axes, fit, "tab:blue", label=f"alpha = {fit.parameters['alpha_N']:.3f}")

    Args:
      axes: of matplotlib.
      fit: of the law power.
      color: of points, line and band.
      label: of the line, for a legend.

    Raises:
      FitError: the fit is of another law.
    """
    if "curve" not in fit.details or "x" not in fit.details["curve"]:
        raise FitError(f"power_law draws a fit of the law power, not of {fit.law}")
    x = next(name for name in _AXES if name in fit.residuals)
    parts.plot_law(axes, fit, color, x=x, label=label or None)
    axes.plot(fit.residuals[x], fit.residuals["observed"], "o", color=color, ms=4.5, mew=0)
    axes.set(xlabel=_AXES.get(x, x), ylabel=parts.LOSS)
    style.log_axis(axes.xaxis, "power" if x == "flops" else "count")
    style.log_axis(axes.yaxis, "plain")


def curves(axes: Any, results: Results | str | os.PathLike, x: str = "flops") -> dict[float, str]:
    """The training loss of every run while it trained, coloured by size.

    Args:
      axes: of matplotlib.
      results: of `lmscale.load`, or the folder of a store.
      x: "flops", "tokens" or "step".

    Returns:
      N (standard convention) -> its colour, for a legend of your own.
    """
    found = results if isinstance(results, Results) else Results.read(results)
    rows = found.curves.dropna(subset=["loss"])
    sizes = found.table.set_index("run")["params_standard"]
    colours = style.ordered_colours(sorted({float(sizes[run]) for run in rows["run"]}))
    for run, curve in rows.groupby("run", sort=False):
        axes.plot(curve[x], curve["loss"], color=colours[float(sizes[run])], lw=0.8)
    axes.set(xlabel=_AXES.get(x, x), ylabel=parts.LOSS)
    style.log_axis(axes.xaxis, "power" if x == "flops" else "count")
    style.log_axis(axes.yaxis, "plain")
    return colours


def _profiles(fit: FitResult) -> Sequence[Profile]:
    found = fit.details.get("profiles", ())
    if not np.size(found):
        raise FitError(f"profiles are of the law isoflop; this fit is of {fit.law}")
    return found


def _convention(fit: FitResult) -> str:
    return next(iter(fit.exponents), "given")
