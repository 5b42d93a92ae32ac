"""What several figures draw: measured cells with their bars, a law with its band, looks and legends.

A section of the page draws with these on the axes of a `style.canvas`; what only one section draws stays
in its own file. What several sections of IsoFLOP experiments share, such as the forest plot of exponents, is
in `isoflop_figures`; which rows a plot has, and in what order, is decided by its section.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lmscale.laws import FitResult
from lmscale.report import style
from lmscale.report.notes import annotate, cell_note, seeds_note
from lmscale.studies.cells import Cell
from lmscale.studies.estimate import Estimate, interval_of_mean
from lmscale.wording import si

__all__ = [
    "LOSS",
    "N",
    "bars_of",
    "colour_legend",
    "hollow",
    "legend_above",
    "loss_legend",
    "ordered_looks",
    "plot_band",
    "plot_cells",
    "plot_estimates",
    "plot_law",
    "plot_points",
    "plot_seeds",
    "plot_slope",
    "size_axes",
    "size_legend",
    "titled_legend",
]

#: Labels of the two commonest axes.
LOSS = "loss (nats per token)"
N = "N, parameters without embeddings"
#: How far beyond its runs a law is drawn.
_BEYOND = 1.2
_MARKERS = "osD^v<>P"


def ordered_looks(values: Sequence[float], *, log: bool = True) -> dict[float, dict[str, Any]]:
    """value -> colour and marker, of depths, sizes or budgets; see `style.family_styles` for families."""
    colours = style.ordered_colours(values, log)
    return {
        value: {"color": colours[value], "marker": _MARKERS[index % len(_MARKERS)]}
        for index, value in enumerate(sorted(set(values)))
    }


def plot_points(
    axes: Any,
    x: Any,
    y: Any,
    look: Mapping[str, Any],
    *,
    notes: Sequence[str] = (),
    **options: Any,
) -> None:
    """Points joined by a thin line, edged so that they can be told apart where they overlap.

    Args:
      notes: what each point says of its run (`lmscale.report.notes`).
    """
    look = {"lw": 1.1, "mec": style.PAPER, "mew": 0.4, **look, **options}
    annotate(axes.plot(x, y, **look)[0], notes)


def plot_cells(
    axes: Any,
    cells: Sequence[Cell],
    look: Mapping[str, Any],
    *,
    x: Callable[[Cell], float] = lambda cell: cell.n_params,
    above: Callable[[Cell], float] = lambda cell: 0.0,
    **options: Any,
) -> None:
    """The mean loss of each cell over its size, with the bar of its seeds (`Cell.interval`).

    Args:
      above: what is taken off a cell's losses, such as the loss of a law at its size.
      options: of the points; by default they are not joined.
    """
    groups = [(x(cell), np.array(cell.losses) - above(cell)) for cell in cells]
    notes = [cell_note(cell) for cell in cells]
    plot_seeds(axes, groups, look, **{"notes": notes, "lw": 0, "ms": 5.5, "mew": 0.5, **options})


def plot_seeds(
    axes: Any,
    groups: Iterable[tuple[float, Sequence[float]]],
    look: Mapping[str, Any],
    **options: Any,
) -> None:
    """The mean over seeds at each x, with the bar of its interval (`interval_of_mean`).

    Args:
      groups: x, and one value a seed.
      options: of the points; by default they are joined.
    """
    groups = list(groups)
    for x, values in groups:
        if edges := interval_of_mean(values):
            axes.plot([x] * 2, edges, color=look["color"], lw=1.4)
    means = [float(np.mean(values)) for _, values in groups]
    notes = [seeds_note(x, values) for x, values in groups]
    options = {"notes": notes, "zorder": 3, **options}
    plot_points(axes, [x for x, _ in groups], means, look, **options)


def hollow(look: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """The look of points that stand apart from the filled ones of the same colour."""
    return {**look, "mfc": style.PAPER, "mec": look["color"], "mew": 1.0, **options}


def plot_estimates(
    axes: Any,
    estimates: Sequence[Estimate],
    look: Mapping[str, Any],
    *,
    x: Callable[[Estimate], float] = lambda one: one.at[0],
    per: float = 1.0,
    bar: float = 1.4,
    **options: Any,
) -> None:
    """Estimates over where they were read, with the bars of their intervals.

    Args:
      per: what values and intervals are divided by.
      bar: line width of the bars.
      options: of the points; by default they are not joined.
    """
    known = [one for one in estimates if one.is_known]
    for one in known:
        if one.interval:
            edges = [edge / per for edge in one.interval]
            axes.plot([x(one)] * 2, edges, color=look["color"], lw=bar)
    options = {"lw": 0, "ms": 5, "mew": 0.5, "zorder": 3, **options}
    plot_points(
        axes, [x(one) for one in known], [one.value / per for one in known], look, **options
    )


def plot_law(
    axes: Any, fit: FitResult, color: str, *, x: str = "params", lw: float = 1.3, **options: Any
) -> None:
    """A fit's curve over the runs it was fitted to and a little beyond, with its 95% band.

    Nothing is drawn of a refused fit.
    """
    if fit.failure:
        return
    curve = fit.details["curve"]
    low, high = fit.ranges[x]
    inside = (curve["x"] >= low / _BEYOND) & (curve["x"] <= high * _BEYOND)
    edges = (curve["low"][inside], curve["high"][inside]) if "low" in curve else None
    plot_band(axes, curve["x"][inside], curve["loss"][inside], edges, color, lw=lw, **options)


def plot_band(
    axes: Any,
    x: np.ndarray,
    y: np.ndarray,
    edges: tuple[np.ndarray, np.ndarray] | None,
    color: str,
    **options: Any,
) -> None:
    """A line and the band between `edges`, where there are any."""
    axes.plot(x, y, color=color, **{"lw": 1.3, **options})
    if edges is not None and np.isfinite(edges).all():
        shade = {"alpha": 0.18, "lw": 0, "zorder": options.get("zorder", 1) - 1}
        axes.fill_between(x, *edges, color=color, **shade)


def plot_slope(
    axes: Any, x: np.ndarray, middle: float, level: float, slope: float, label: str
) -> None:
    """The power law of a paper's slope through a point of these runs, dotted.

    Its level is left out because it belongs to another text.
    """
    axes.plot(x, level * (x / middle) ** slope, ":", color=style.MUTED, lw=1.5, label=label)


def size_axes(axes: Any, *, x: str = N, y: str = "", title: str = "", log_y: bool = True) -> None:
    """Labels, and logarithmic scales: call it when everything has been drawn."""
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title)
    style.log_axis(axes.xaxis, "count")
    if log_y:
        style.log_axis(axes.yaxis, "plain")


def legend_above(figure: Any, looks: Mapping[str, Mapping[str, Any]], ncols: int = 5) -> None:
    """One legend for all panels: name -> look."""
    axes = figure.axes[0]
    handles = [
        axes.plot([], [], lw=1.1, mec=style.PAPER, mew=0.4, **look)[0] for look in looks.values()
    ]
    figure.legend(handles, list(looks), loc="outside upper center", ncols=min(ncols, len(looks)))


def titled_legend(
    figure: Any, entries: Sequence[tuple[str, Any]], title: str, **options: Any
) -> None:
    """Labels and what was drawn, above the panels; in one row unless `ncols` is given."""
    labels, handles = zip(*entries, strict=True)
    figure.legend(
        handles,
        labels,
        title=title,
        title_fontsize=8,
        loc="outside upper center",
        **{"ncols": len(entries), "columnspacing": 1.4, **options},
    )


def colour_legend(
    figure: Any,
    colours: Mapping[float, str],
    title: str,
    write: Callable[[float], str],
    **line: Any,
) -> None:
    """Values by colour, above all panels; `line` is the look of a handle."""
    axes = figure.axes[0]
    entries = [(write(x), axes.plot([], [], color=c, **line)[0]) for x, c in colours.items()]
    titled_legend(figure, entries, title, handlelength=1.2)


def loss_legend(figure: Any, colours: Mapping[float, str], **line: Any) -> None:
    """Losses that were read, by colour."""
    colour_legend(figure, colours, LOSS, lambda loss: f"{loss:.2f}", **line)


def size_legend(figure: Any, colours: Mapping[float, str], title: str = N) -> None:
    """N by colour: at most seven, whose colours can be told apart."""
    shown = {n: colours[n] for n in _told_apart(sorted(colours), 7)}
    colour_legend(figure, shown, title, si, lw=2)


def _told_apart(values: Sequence[float], most: int) -> list[float]:
    """At most that many of ascending values, no two of them close by the whole range's measure."""
    step = math.log(values[-1] / values[0]) / (1.5 * most)
    kept = list(values[:1])
    for value in values[1:]:
        if math.log(value / kept[-1]) > step:
            kept.append(value)
    if len(kept) <= most:
        return kept
    wanted = np.geomspace(kept[0], kept[-1], most)
    return sorted({min(kept, key=lambda v: abs(math.log(v / w))) for w in wanted})


def bars_of(cells: Sequence[Cell]) -> str:
    """What the points of `plot_cells` and their bars are, for a caption."""
    seeds = [len(cell.losses) for cell in cells]
    if max(seeds) == 1:
        return "one seed each"
    if min(seeds) >= 3:
        return "means over seeds with their 95% intervals"
    return "means over seeds with 95% intervals (the range for two seeds, nothing for one)"
