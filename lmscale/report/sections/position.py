"""Loss by position: where each curve stops improving, and matched architectures side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from lmscale.laws import FitResult
from lmscale.report import caveats, figures, style
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.tables import MEANS, mean_of, parameter, shown, table
from lmscale.studies.position import (
    BEYOND,
    MATCHED,
    PER_OCTAVE,
    STILL,
    Curve,
    Pair,
    Position,
    log_means,
    spans,
)
from lmscale.studies.results import Results
from lmscale.wording import (
    family_name,
    flipped,
    listed,
    number,
    plural,
    sentence,
    si,
    with_interval,
)

__all__ = ["plot_means", "plot_position_law", "position_axis", "section"]

NAME = "position"
TITLE = "Loss by position in the context"
#: The law a + b T^-c is drawn where its rms error over the plotted means is below this share.
FITS = 0.01


@register(NAME)
def section(found: Position, results: Results) -> Section:
    if not found.curves:
        finding = "No losses by position yet: no run has ended well."
        return Section(name=NAME, title=TITLE, finding=finding)
    numbers = []
    if found.pairs:
        name = family_name(found.pairs[-1].other.family)
        label = f"nats that the {name} falls further behind from early to late positions"
        numbers = [KeyNumber.of_estimate(label, found.pairs[-1].widening)]
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        conclusive=bool(found.pairs),
        details=_details(found),
        key_numbers=numbers,
        charts=[_chart(found, results)],
        grids=[*_curve_grid(found), *_pair_grid(found), *_span_grid(found)],
        fits=found.fits,
        measures=_measures(found),
        warnings=[*_warnings(found, results), *caveats.search_edges(results)],
    )


# --- words --------------------------------------------------------------------------------------


def _whose(curve: Curve) -> str:
    return f"{family_name(curve.family)} {si(curve.n_params)}"


def _sizes(pair: Pair, two: str = "matched size (N = {} and {})") -> str:
    a, b = si(pair.base.n_params), si(pair.other.n_params)
    return f"N = {a}" if a == b else two.format(a, b)


def _stop_range(curve: Curve) -> str:
    low, high = curve.stop_interval
    return f"{low} to {high}" if high < curve.n_ctx else f"{low} to the end"


def _stop_words(curve: Curve) -> str:
    if curve.stops:
        return (
            f"stops improving after about {curve.stop} tokens (95% interval {_stop_range(curve)})"
        )
    early = curve.stop_interval[0]
    since = f" (95% interval from {early})" if early < curve.n_ctx else ""
    return f"improves through all {curve.n_ctx}{since}"


def _finding(found: Position) -> str:
    if not found.pairs:
        parts = [
            f"the {family_name(c.family)} of {si(c.n_params)} {_stop_words(c)}"
            for c in found.curves[-2:]
        ]
        return sentence(listed(parts))
    pair = found.pairs[-1]
    base, other = family_name(pair.base.family), family_name(pair.other.family)
    stops = f"the {other} {_stop_words(pair.other)}, the {base} {_stop_words(pair.base)}"
    # A family that is below the baseline everywhere has a lead. It shrinks where the difference rises.
    leads = pair.early.value < 0 and pair.late.value < 0
    ends = [(one.value, one.interval) for one in (pair.early, pair.late)]
    early, late = (with_interval(*(flipped(*end) if leads else end)) for end in ends)
    first, last = pair.late.at
    early = f"{early} nats over the first {pair.early.at[1]} tokens"
    late = f"{late} over the last {last - first + 1}"
    what = f"the {other}'s {'lead' if leads else 'extra loss'}"
    if pair.widening.may_be(0):
        gap = f"{what} does not change with position beyond the noise: {early}, {late}"
    else:
        rises = pair.widening.value > 0
        gap = f"{what} {'grows' if rises != leads else 'shrinks'} from {early} to {late}"
    return f"At {_sizes(pair)} {stops}; {gap}."


def _details(found: Position) -> list[str]:
    n_ctx = max(c.n_ctx for c in found.curves)
    text = (
        f"Position T is the number of tokens that the prediction can see, 1 to {n_ctx}. A curve has "
        f"stopped improving after the first doubling of T beyond which the mean loss of all later "
        f"positions is less than {STILL} nats lower. "
    )
    if (stretches := found.curves[0].by_stretch.shape[1]) > 1:
        text += (
            f"Losses are read on overlapping windows of {stretches} stretches of text. There every token "
            f"is a target at several positions, so that positions do not differ by their text; "
            f"intervals hold how stretches and seeds differ."
        )
    else:
        text += (
            "The interval includes the noise of the text, which is common to all models and cancels in "
            "the difference between two of them."
        )
    if found.pairs:
        text += (
            " Kaplan et al. 2020 found that LSTMs stop improving after fewer than 100 tokens while "
            "Transformers improve through all 1024."
        )
        if n_ctx < 256:
            text += f" With {n_ctx} positions that difference has little room to show."
    return [text]


def _measures(found: Position) -> dict[str, Measure]:
    behind = "nats per token by which the LSTM is above the Transformer on the first tokens"
    what = {
        "early": behind,
        "transformer_gain": f"nats that the Transformer gains beyond {BEYOND} tokens",
        "lstm_gain": f"nats that the LSTM gains beyond {BEYOND} tokens",
        "behind_beyond": f"nats by which the LSTM falls further behind beyond {BEYOND} tokens",
    }
    where = {2: "{} to {}", 4: "from {} to {} on to {} to {}"}
    measures = {}
    for name, one in found.estimates.items():
        said = what[name]
        if one.at:
            on = f"{_sizes(found.lstm_pair)}, {plural(one.seeds, 'seed')} each"
            said += f" ({where[len(one.at)].format(*one.at)}), {on}"
        measures[name] = Measure.of(said, one)
    return measures


def _warnings(found: Position, results: Results) -> list[str]:
    curves, warnings = found.curves, []
    architectures = {c.architecture for c in curves}
    if len(architectures) > 1 and not found.pairs:
        warnings.append(
            f"No two sizes of different architectures are within {MATCHED:g}x of each other, so "
            f"they are not compared."
        )
    if len(architectures) == 1 and len(set(results.table["architecture"])) > 1:
        warnings.append("Only one architecture has ended well so far.")
    if single := sum(len(c.losses) == 1 for c in curves):
        warnings.append(
            f"{single} of {len(curves)} curves rest on one seed, so their bands leave out what "
            f"seeds differ by."
        )
    misfits = [c for c in curves if not c.fit.failure and not c.misfit < FITS]
    if misfits:
        some = listed([f"{_whose(c)}: {c.misfit:.1%}" for c in misfits[:4]])
        warnings.append(
            f"a + b T^−c does not describe {len(misfits)} of {len(curves)} curves to within "
            f"{FITS:.0%} ({some}{'…' if len(misfits) > 4 else ''}); it is not drawn there."
        )
    return warnings + [
        f"{_whose(c)}: no law, because {c.fit.failure}." for c in curves if c.fit.failure
    ]


# --- tables -------------------------------------------------------------------------------------


def _curve_grid(found: Position) -> list[Grid]:
    def stop(c: Curve) -> str:
        if c.stops:
            return f"{c.stop} ({_stop_range(c)})"
        return f"never ({_stop_range(c)})" if c.stop_interval[0] < c.n_ctx else "never"

    return table(
        "Where each curve stops improving, and its law a + b T^−c (Kaplan et al. 2020, App. D.5), "
        "with 95% intervals; those of the law are over the plotted means, not over seeds.",
        found.curves,
        {
            "family": lambda c: family_name(c.family),
            "N": lambda c: si(c.n_params),
            "seeds": lambda c: str(len(c.losses)),
            "stops at T": stop,
            "a": lambda c: parameter(c.fit, "a"),
            "b": lambda c: parameter(c.fit, "b"),
            "c": lambda c: parameter(c.fit, "c"),
            "rms error": lambda c: f"{c.misfit:.1%}" if math.isfinite(c.misfit) else "–",
        },
        text=("family",),
    )


def _pair_grid(found: Position) -> list[Grid]:
    if not found.pairs:
        return []
    early, late = found.pairs[0].early.at, found.pairs[0].late.at
    return table(
        "Loss above the Transformer's at matched size (nats per token, 95% intervals from seeds and "
        "text).",
        found.pairs,
        {
            "model": lambda p: _whose(p.other),
            "against": lambda p: _whose(p.base),
            "ratio of N": lambda p: number(p.other.n_params / p.base.n_params),
            f"T = {early[0]} to {early[1]}": lambda p: shown(p.early),
            f"T = {late[0]} to {late[1]}": lambda p: shown(p.late),
            "change": lambda p: shown(p.widening),
        },
        text=("model", "against"),
    )


def _span_grid(found: Position) -> list[Grid]:
    def mean(c: Curve, first: int, last: int) -> str:
        return "–" if last > c.n_ctx else mean_of(c.losses[:, first - 1 : last].mean(axis=1))

    return table(
        f"Mean loss over spans of positions (nats per token). {MEANS}",
        found.curves,
        {
            "family": lambda c: family_name(c.family),
            "N": lambda c: si(c.n_params),
            "seeds": lambda c: str(len(c.losses)),
        }
        | {
            f"T = {first} to {last}": lambda c, first=first, last=last: mean(c, first, last)
            for first, last in spans(max(c.n_ctx for c in found.curves))
        },
        text=("family",),
    )


# --- figure -------------------------------------------------------------------------------------


def plot_means(axes: Any, losses: np.ndarray, color: str, **options: Any) -> None:
    """Means over bins of positions (`log_means`) with their band over seeds.

    Args:
      losses: [seed, position].
    """
    centres, means, band = log_means(losses)
    if np.isfinite(band).all():
        axes.fill_between(centres, *band, color=color, alpha=0.22, lw=0)
    options = {"marker": "o", "lw": 0, "ms": 3, "zorder": 3, **options}
    axes.plot(centres, means, color=color, **options)


def plot_position_law(axes: Any, fit: FitResult, n_ctx: int, color: str, **options: Any) -> None:
    """a + b T^-c over the whole context; nothing of a refused fit."""
    if not fit.failure:
        grid = np.geomspace(1, n_ctx, 100)
        axes.plot(grid, fit.predict(position=grid), color=color, **{"lw": 1.2, **options})


def position_axis(axes: Any) -> None:
    """Call it when everything has been drawn."""
    axes.set_xlabel("position T (tokens of context)")
    style.log_axis(axes.xaxis, "octave")


def _panels(found: Position) -> list[tuple[str, list[tuple[Curve, Mapping[str, Any], str]]]]:
    """Title, and (curve, look, label) of each: the pairs, or else the families."""
    families = list(dict.fromkeys(c.family for c in found.curves))
    looks = style.family_styles(families)
    if found.pairs:

        def named(c: Curve) -> tuple[Curve, Mapping[str, Any], str]:
            return c, looks[c.family], f"{family_name(c.family)}, N = {si(c.n_params)}"

        return [(_sizes(p, "N = {} and {}"), [named(p.base), named(p.other)]) for p in found.pairs]
    panels = []
    for family in families:
        own = [c for c in found.curves if c.family == family]
        colours = style.ordered_colours([c.n_params for c in own])
        sized = [looks[family] | {"color": colours[c.n_params]} for c in own]
        labels = [f"N = {si(c.n_params)}" for c in own]
        panels.append((family_name(family), list(zip(own, sized, labels, strict=True))))
    return panels


def _chart(found: Position, results: Results) -> Chart:
    panels = _panels(found)
    with style.canvas(max(5.6, 3.55 * len(panels)), 3.8) as figure:
        row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (title, members) in zip(row, panels, strict=True):
            for curve, look, label in members:
                _draw_curve(axes, curve, look, label)
            axes.set_title(title)
            axes.set_xlim(0.85, 1.15 * max(c.n_ctx for c in found.curves))
            position_axis(axes)
            axes.legend()
        row[0].set_ylabel(figures.LOSS)
        style.bits_axis(row[-1], results.bits_per_nat)
        names = listed(list(dict.fromkeys(family_name(c.family) for c in found.curves)))
        alt = f"Loss against position in the context for {names}."
        return style.render(figure, name=NAME, caption=_caption(found), alt=alt)


def _caption(found: Position) -> str:
    matched = ", architectures at matched size (Kaplan et al. 2020, Fig. 7 right)"
    matched = matched if found.pairs else ""
    several = any(len(c.losses) > 1 for c in found.curves)
    bands = (
        ", with bands over seeds (95% interval of the mean; the range for two)" if several else ""
    )
    return (
        f"Loss by position{matched}. Faint: every position; points: means over {PER_OCTAVE} bins per "
        f"doubling{bands}; dotted: a + b T^−c where it fits; triangles below: where each curve stops "
        f"improving."
    )


def _draw_curve(axes: Any, curve: Curve, look: Mapping[str, Any], label: str) -> None:
    color = look["color"]
    axes.plot(np.arange(1, curve.n_ctx + 1), curve.mean, color=color, lw=0.6, alpha=0.3)
    plot_means(axes, curve.losses, color, marker=look["marker"], ms=3.6, label=label)
    if curve.misfit < FITS:
        plot_position_law(axes, curve.fit, curve.n_ctx, color, ls=(0, (1, 1.5)))
    triangle = {"marker": "^" if curve.stops else ">", "ms": 6.5, "zorder": 4, "clip_on": False}
    place = axes.get_xaxis_transform()
    axes.plot(curve.stop, 0.035, transform=place, color=color, **triangle)
