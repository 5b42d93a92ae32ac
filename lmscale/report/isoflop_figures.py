"""What figures of profiles, frontiers and their exponents draw: several sections use them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmscale.laws import FitResult, Profile
from lmscale.report import figures, style
from lmscale.report.notes import annotate
from lmscale.studies.estimate import Estimate
from lmscale.studies.exponents import frontier
from lmscale.wording import with_interval

__all__ = ["EXPONENT", "Entry", "frontier_axes", "plot_forest", "plot_frontier", "plot_profile"]

#: Label of an axis of exponents.
EXPONENT = r"exponent $a$ of $N_{\mathrm{opt}} \propto C^{\,a}$"
#: Dashes of a profile that the power law leaves out, and of a reference.
DASHED = (0, (4, 2))


def plot_profile(
    axes: Any,
    profile: Profile,
    color: str,
    *,
    marker: str = "o",
    fill: str | None = None,
    line: Any = None,
    means: bool = False,
    size: float = 4.5,
    minimum: float = 6,
    note: Callable[[float, float], str] | None = None,
    **options: Any,
) -> Any:
    """One budget's losses over size, its parabola and a diamond at the minimum; gives the points.

    Args:
      fill: of the points and the diamond, by default `color`. Points outside of the parabola's window
        are hollow.
      line: style of the parabola; by default dashed where the profile has no usable minimum.
      means: draw the mean of each size instead of every run.
      size, minimum: of the markers, in points.
      note: params and loss of a run -> what its point says (`lmscale.report.notes`); not with `means`.
      options: of the points, such as their label.
    """
    p, fill = profile, fill or color
    x, y, used = p.params, p.loss, p.used
    if means:
        x, index = np.unique(x, return_inverse=True)
        y, used = np.bincount(index, y) / np.bincount(index), np.full(len(x), True)
    look = {"color": color, "marker": marker, "lw": 0, "ms": size, "zorder": 3}
    handle = axes.plot(x[used], y[used], mfc=fill, **look, **options)[0]
    others = axes.plot(x[~used], y[~used], mfc=style.PAPER, **look)[0]
    if note is not None and not means:
        for points, mine in ((handle, used), (others, ~used)):
            annotate(points, [note(*one) for one in zip(x[mine], y[mine], strict=True)])
    if p.coefficients is not None and p.used.sum() >= 3:
        inside = p.params[p.used]
        n = np.geomspace(inside.min() / 1.15, inside.max() * 1.15, 80)
        axes.plot(n, p.curve(n), color=color, ls=line or ("-" if p.ok else DASHED), lw=1.3)
    if p.ok:
        axes.plot(
            p.n_opt, p.loss_opt, "D", ms=minimum, color=fill, mec=style.INK, mew=0.9, zorder=4
        )
    return handle


def plot_frontier(
    axes: Any, fit: FitResult, symbol: str, exponent: Estimate, limits: tuple[float, float]
) -> None:
    """The power law of N_opt (or D_opt) between two budgets, its band, and its exponent in words.

    No band is drawn where `exponent` has no interval.
    """
    flops = np.geomspace(*limits, 60)
    line, edges = frontier(fit, symbol, flops)
    edges = edges if exponent.interval else None
    figures.plot_band(axes, flops, line, edges, style.INK, lw=1.2)
    value, bounds = with_interval(exponent.value, exponent.interval).split(" (", 1)
    bounds = f"95%: {bounds.rstrip(')')}" if exponent.interval else "no interval"
    axes.annotate(
        f"${symbol}_{{\\mathrm{{opt}}}} \\propto C^{{\\,{value}}}$\n{bounds}",
        (0.04, 0.96),
        xycoords="axes fraction",
        va="top",
        fontsize=8.5,
        linespacing=1.4,
    )


def frontier_axes(axes: Any, symbol: str, title: str) -> None:
    """Labels and logarithmic scales: call it when everything has been drawn."""
    unit = "parameters" if symbol == "N" else "tokens"
    axes.set(xlabel="C (FLOPs)", ylabel=f"${symbol}_{{\\mathrm{{opt}}}}$ ({unit})", title=title)
    if not axes.has_data():
        axes.set(xticks=[], yticks=[])
        return
    style.log_axis(axes.xaxis, "power")
    style.log_axis(axes.yaxis, "count")


@dataclass(frozen=True)
class Entry:
    """One row of a forest: a value with its interval. `look` is that of `axes.plot`."""

    label: str
    value: float
    interval: tuple[float, float] | None
    look: Mapping[str, Any]


def plot_forest(axes: Any, groups: Mapping[str, Sequence[Entry]]) -> None:
    """Values with intervals one below the other, each group under its heading."""
    y, ticks = 0, []
    for heading, entries in groups.items():
        offset = {"xytext": (-6, 0), "textcoords": "offset points"}
        where = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "center"}
        axes.annotate(heading, (0, y), weight="bold", **where, **offset)
        for entry in entries:
            y += 1
            ticks.append((y, entry.label))
            if entry.interval and all(map(math.isfinite, entry.interval)):
                color = entry.look["color"]
                axes.plot(entry.interval, [y, y], color=color, lw=1.8, solid_capstyle="butt")
            axes.plot(entry.value, y, **{"mew": 1.2, "ms": 5.5, **entry.look})
        y += 1
    axes.set_ylim(y - 0.4, -0.6)
    axes.set_yticks(*zip(*ticks, strict=True))
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
