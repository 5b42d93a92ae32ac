"""How figures look: size, type, colours for light and dark pages, axes, and bytes that repeat.

Every colour that a figure may use comes from here and has a partner for dark pages. A figure is drawn
once, in the light colours; on the page its SVG refers to them as CSS variables (`inline`), so that it
follows the reader's colour scheme. Budgets and sizes, which are ordered, take viridis; families take
the colours of Okabe and Ito. Both can be told apart by colour-blind readers, and markers differ too.
"""

from __future__ import annotations

import contextlib
import contextvars
import io
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib import ticker
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.mathtext import MathTextParser
from matplotlib.text import Text

from lmscale.compat import set_legend_columns, set_log_scale
from lmscale.foreign_text import readable
from lmscale.report.notes import noted_artists, with_notes
from lmscale.report.section import Chart
from lmscale.wording import power_of_ten, si

__all__ = [
    "INK",
    "MUTED",
    "PAPER",
    "bits_axis",
    "canvas",
    "css_colours",
    "family_styles",
    "inline",
    "log_axis",
    "ordered_colours",
    "paper",
    "render",
]

PAPER, INK, MUTED, FAINT, ALARM = "#ffffff", "#20242b", "#667080", "#d9dde3", "#b3261e"

#: Okabe and Ito's colours, each with a lighter one for dark pages.
_FAMILY_COLOURS = (
    ("#0072b2", "#56aee8"),
    ("#d55e00", "#ff8f45"),
    ("#009e73", "#36c79d"),
    ("#cc79a7", "#e8a3c8"),
    ("#e69f00", "#f5c04a"),
    ("#7a5cc0", "#b39ae8"),
)
_MARKERS = ("o", "s", "^", "D", "v", "P")
_LADDER = 33

#: light -> dark.
_DARK = {PAPER: "#171b21", INK: "#e6e8eb", MUTED: "#9aa4b2", FAINT: "#363d47", ALARM: "#ff8a80"}
_DARK |= dict(_FAMILY_COLOURS)


def _ladder(index: int) -> tuple[str, str]:
    """Step `index` of viridis, without the end that is lost on white, or on black."""
    share = index / (_LADDER - 1)
    viridis = matplotlib.colormaps["viridis"]
    return to_hex(viridis(0.02 + 0.79 * share)), to_hex(viridis(0.30 + 0.68 * share))


_DARK |= dict(_ladder(index) for index in range(_LADDER))

_RC = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "mathtext.fontset": "dejavusans",
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.labelsize": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.which": "major",
    "axes.facecolor": PAPER,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "svg.fonttype": "path",
    "svg.hashsalt": "lmscale",
    "path.simplify": True,
}


#: Widths of a column and of both columns of a two-column paper, in inches; narrower figures than the second
#: number take one column.
_COLUMN, _BOTH, _TAKES_BOTH = 3.25, 6.75, 5.0
#: Type of a paper's figures in points, and what their lines and markers are scaled by.
_PAPER_TYPE, _PAPER_LINES = 8.0, 0.8
_PAPER_RC = {
    "font.size": _PAPER_TYPE,
    "axes.labelsize": _PAPER_TYPE,
    "axes.titlesize": _PAPER_TYPE,
    "axes.titleweight": "normal",
    "xtick.labelsize": _PAPER_TYPE,
    "ytick.labelsize": _PAPER_TYPE,
    "legend.fontsize": _PAPER_TYPE,
    "legend.title_fontsize": _PAPER_TYPE,
    # TrueType, which editors of PDF can change.
    "pdf.fonttype": 42,
}
_for_paper = contextvars.ContextVar("for_paper", default=False)


@contextlib.contextmanager
def paper() -> Iterator[None]:
    """Within, figures are drawn for a paper: a column or two wide, 8 points, no titles, also as PDF."""
    token = _for_paper.set(True)
    try:
        yield
    finally:
        _for_paper.reset(token)


@contextlib.contextmanager
def canvas(width: float, height: float) -> Iterator[Figure]:
    """An empty figure of that many inches, drawn and rendered under this module's settings only."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_RC)
        if _for_paper.get():
            matplotlib.rcParams.update(_PAPER_RC)
            scale = (_COLUMN if width < _TAKES_BOTH else _BOTH) / width
            # Type does not shrink with the figure, so its height shrinks less than its width.
            width, height = width * scale, height * max(scale, 0.8)
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(figure)
        yield figure


def render(figure: Figure, *, name: str, caption: str, alt: str) -> Chart:
    """The figure as SVG and PNG; equal figures give equal bytes."""
    for text in figure.findobj(Text):
        _make_drawable(text)
    if _for_paper.get():
        _make_printable(figure)
    notes = noted_artists(figure)
    # Laid out once, for both: with an engine, each file would be drawn once more only to lay it out.
    engine = figure.get_layout_engine()
    if figure.axes and engine is not None:
        engine.execute(figure)
    figure.set_layout_engine(None)
    svg, png = io.StringIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    pdf = io.BytesIO()
    if _for_paper.get():
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", svg.getvalue(), flags=re.DOTALL)
    text = re.sub(r"<!DOCTYPE.*?>\s*", "", text, flags=re.DOTALL)
    # A hundredth of a point is finer than any screen; the rest of the digits is half the file.
    text = re.sub(r'(?<= d=")[^"]*', lambda path: _COORDINATE.sub(_shorter, path.group()), text)
    return Chart(
        name=name,
        caption=caption,
        alt=alt,
        svg=text,
        png=png.getvalue(),
        pdf=pdf.getvalue(),
        notes=notes,
        figure=figure,
    )


def _make_drawable(text: Text) -> None:
    """Takes out what SVG forbids, and takes dollars for dollars where they enclose no formula.

    Labels come from the store, which may hold anything.
    """
    shown = text.get_text()
    if (clean := "\n".join(map(readable, shown.split("\n")))) != shown:
        text.set_text(clean)
    if "$" in clean:
        try:
            for line in clean.split("\n"):
                MathTextParser("path").parse(line)
        except ValueError:
            text.set_parse_math(False)


def _make_printable(figure: Figure) -> None:
    """Type of 8 points, finer lines, and no titles but those that tell panels apart."""
    for axes in figure.axes:
        if not _is_told_apart(axes, figure.axes):
            axes.set_title("", loc="left")
    for text in figure.findobj(Text):
        text.set_fontsize(min(text.get_fontsize(), _PAPER_TYPE))
    for line in figure.findobj(Line2D):
        line.set_linewidth(_PAPER_LINES * line.get_linewidth())
        line.set_markersize(_PAPER_LINES * line.get_markersize())
    for legend in figure.findobj(Legend):
        _narrow(legend, figure)


def _is_told_apart(axes: Any, panels: Sequence[Any]) -> bool:
    """Whether another panel shows the same over the same, so that only a title says what is what."""

    def same(other: Any, name: str) -> bool:
        joined = getattr(axes, f"get_shared_{name}_axes")().joined(axes, other)
        label = getattr(axes, f"get_{name}label")()
        return joined or label == getattr(other, f"get_{name}label")() != ""

    others = [other for other in panels if other is not axes and other.get_title(loc="left")]
    return any(same(other, "x") and same(other, "y") for other in others)


def _narrow(legend: Legend, figure: Figure) -> None:
    """Breaks a legend into rows, until it fits the figure, or its panel's share of the figure's width."""
    columns = len(legend.get_texts())
    room = figure.bbox.width
    if legend in figure.legends:
        set_legend_columns(legend, columns)
    else:
        room /= max(1, sum(bool(axes.get_subplotspec()) for axes in figure.axes))
    while columns > 1:
        if legend.get_window_extent().width <= 0.98 * room:
            return
        columns = math.ceil(columns / 2) if columns > 4 else columns - 1
        set_legend_columns(legend, columns)


_COORDINATE = re.compile(r"-?\d+\.\d{3,}")


def _shorter(number: re.Match) -> str:
    return f"{float(number.group()):.2f}".rstrip("0").rstrip(".")


def inline(chart: Chart) -> str:
    """The chart's SVG for a page: points with notes, colours as CSS variables, ids of its own, no fixed size."""
    svg, _ = with_notes(chart.svg[chart.svg.index("<svg") :].rstrip(), chart.notes)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{chart.name}-\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{chart.name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{chart.name}-\1)", svg)

    def variable(match: re.Match) -> str:
        colour = match.group(0)
        return f"var(--c{colour[1:]},{colour})" if colour in _DARK else colour

    svg = re.sub(r"#[0-9a-f]{6}\b", variable, svg)
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(width|height)="[^"]*"', "", head)
    return f"{head}>{rest}"


def css_colours(dark: bool) -> str:
    """Declarations of the variables that `inline` refers to."""
    return "".join(f"--c{a[1:]}:{b if dark else a};" for a, b in _DARK.items())


def family_styles(families: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each family; Transformers are blue circles wherever they appear."""
    styles = {}
    others = 1
    for family in families:
        plain_transformer = family == "transformer"
        index = 0 if plain_transformer else others
        others += not plain_transformer
        colour = _FAMILY_COLOURS[index % len(_FAMILY_COLOURS)][0]
        styles[family] = {"color": colour, "marker": _MARKERS[index % len(_MARKERS)]}
    return styles


def ordered_colours(values: Sequence[float], log: bool = True) -> dict[float, str]:
    """value -> colour on the ladder, dark for small and bright for large."""
    values = sorted(set(values))
    if len(values) == 1:
        return {values[0]: _ladder(_LADDER // 3)[0]}
    place = np.log(values) if log else np.asarray(values, float)
    share = (place - place[0]) / (place[-1] - place[0])
    return {
        value: _ladder(round(float(s) * (_LADDER - 1)))[0]
        for value, s in zip(values, share, strict=True)
    }


def log_axis(axis: Any, kind: str) -> None:
    """A log scale with as many plain labels as fit.

    Args:
      axis: `axes.xaxis` or `axes.yaxis`, after everything has been drawn.
      kind: "count" labels 12k, "power" labels 10¹², "plain" labels 2.5, "octave"
        labels powers of two.
    """
    set_log_scale(axis)
    low, high = sorted(axis.get_view_interval())
    ticks = _log_ticks(low, high, most=4 if _for_paper.get() else 6)
    if kind == "octave":
        ticks = [2**k for k in range(21) if low <= 2**k <= high]
        ticks = ticks[:: math.ceil(len(ticks) / 8)]
    labels = (
        _even(ticks)
        if kind == "plain"
        else [power_of_ten(t) if kind == "power" else si(t) for t in ticks]
    )
    axis.set_major_locator(ticker.FixedLocator(ticks))
    axis.set_major_formatter(ticker.FixedFormatter(labels))
    axis.set_minor_locator(ticker.NullLocator())


def bits_axis(axes: Any, bits_per_nat: float | None) -> None:
    """A second scale on the right in bits per byte, where the tokeniser is known.

    Call it when the axes' limits are final.
    """
    if bits_per_nat is None:
        return
    other = axes.secondary_yaxis(
        "right", functions=(lambda y: y * bits_per_nat, lambda y: y / bits_per_nat)
    )
    low, high = sorted(y * bits_per_nat for y in axes.get_ylim())
    ticks = [t for t in ticker.MaxNLocator(nbins=6).tick_values(low, high) if low <= t <= high]
    other.yaxis.set_major_locator(ticker.FixedLocator(ticks))
    other.yaxis.set_major_formatter(ticker.FixedFormatter(_even(ticks)))
    other.yaxis.set_minor_locator(ticker.NullLocator())
    other.set_ylabel("bits per byte", color=MUTED)
    other.spines["right"].set_visible(True)


def _even(ticks: Sequence[float]) -> list[str]:
    """Labels with as many decimals as the finest tick needs."""
    places = next(
        (p for p in range(6) if all(abs(round(t, p) - t) < 1e-6 * abs(t) for t in ticks)), 6
    )
    return [f"{tick:.{places}f}" for tick in ticks]


def _log_ticks(low: float, high: float, least: int = 3, most: int = 6) -> list[float]:
    """Round numbers between `low` and `high`: decades if there are enough, else finer steps."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7)):
        ticks = [s * 10.0**e for e in range(first, last + 1) for s in steps]
        ticks = [t for t in ticks if low * 0.999 <= t <= high * 1.001]
        if len(ticks) >= least:
            return ticks[:: math.ceil(len(ticks) / most)]
    # Less than a factor of two or so: evenly spaced round numbers.
    found = ticker.MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    return [float(t) for t in found if low <= t <= high]
