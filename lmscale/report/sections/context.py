"""Loss by position over size and steps, and what a short context changes."""

from __future__ import annotations

import math
from typing import Any

from lmscale.report import caveats, figures, style
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.sections.position import (
    plot_means,
    plot_position_law,
    position_axis,
)
from lmscale.report.tables import parameter, shown, table
from lmscale.studies.context import MIDDLE, NEAR, Context, Model, octaves
from lmscale.studies.estimate import LEAST_SEEDS
from lmscale.studies.results import Results
from lmscale.wording import flipped, listed, plural, sentence, si, with_interval

NAME = "context"
TITLE = "Loss by position in the context"
#: c of the six laws of Kaplan et al. 2020, Fig. 20, from 1M to 774M parameters at a context of 1024.
PAPER_C = (0.47, 0.62)


@register(NAME)
def section(found: Context, results: Results) -> Section:
    if found.missing:
        finding = f"No losses by position yet: {found.missing}."
        return Section(name=NAME, title=TITLE, finding=finding)
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        conclusive=bool(found.fits),
        details=_details(found),
        key_numbers=_key_numbers(found),
        charts=[_position_chart(found, results), _size_chart(found)],
        grids=[*_law_grid(found), *_slope_grid(found), *_gain_grid(found)],
        fits=found.fits,
        measures=_measures(found),
        warnings=_warnings(found),
    )


# --- words --------------------------------------------------------------------------------------


def _finding(found: Context) -> str:
    best, ratio, gain = (
        found.long[-1],
        *map(found.estimates.get, ("first_token", "short_context_gain")),
    )
    parts = []
    if best.c.is_known:
        c = shown(best.c, "95% interval")
        parts.append(f"at N = {si(best.n_params)} loss falls along the context as T^−{c}")
    if ratio.is_known:
        times = shown(ratio)
        parts.append(f"the first token gains {times} times as much from size as the last half does")
    if gain.is_known:
        side = "better" if gain.value > 0 else "worse"
        nats = with_interval(*flipped(gain.value, gain.interval))
        n = found.short[0].n_ctx
        parts.append(
            f"on the first {n} tokens a context of {n} is {nats} nats per token {side} than one of "
            f"{best.n_ctx}"
        )
    return sentence("; ".join(parts)) or "No law along the position yet."


def _details(found: Context) -> list[str]:
    paragraphs = [
        "Position T is the number of tokens that a prediction can see. Intervals of the laws hold the "
        "noise of the text and, from two seeds on, of the seeds; where sizes or steps are compared at one position, "
        "the text is the same and only the seeds count."
    ]
    if found.fits:
        parts = [f"{shown(m.c)} at {si(m.n_params)}" for m in found.long if m.c.is_known]
        paragraphs.append(
            f"c by size: {listed(parts)}. Kaplan et al. 2020, Fig. 20, found {PAPER_C[0]} to "
            f"{PAPER_C[1]}, rising with size, from 1M to 774M parameters at a context of 1024."
        )
    if found.slopes:
        last = max(found.slopes)
        paragraphs.append(
            f"Slope of ln loss in ln N: {shown(found.slopes[1])} at T = 1 and "
            f"{shown(found.slopes[last])} at T = {last}."
        )
    delay = found.estimates["long_range_delay"]
    if delay.is_known:
        paragraphs.append(
            f"Long range takes {shown(delay)} times as many steps as short range to reach half of "
            f"what it gains in the end, at N = {si(found.long[-1].n_params)}."
        )
    return paragraphs


def _key_numbers(found: Context) -> list[KeyNumber]:
    best = found.long[-1]
    labels = {
        f"exponent c along the context, N = {si(best.n_params)}": best.c,
        "gain from size at the first token over the last half": found.estimates["first_token"],
        "nats that a short context is ahead on its tokens": found.estimates["short_context_gain"],
    }
    return [KeyNumber.of_estimate(label, one) for label, one in labels.items() if one.is_known]


def _measures(found: Context) -> dict[str, Measure]:
    best, n_ctx = found.long[-1], found.long[0].n_ctx
    size = f"N = {si(best.n_params)}"
    seeds = sorted({m.seeds for m in found.long})
    each = plural(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    ranges = (
        f"long range (T = {MIDDLE[0]}-{MIDDLE[1]} to the last half) over short range (T = 1 to "
        f"{NEAR[0]}-{NEAR[1]})"
    )
    short = found.short[0].n_ctx if found.short else n_ctx
    what = {
        "exponent": f"c of a + b T^−c at {size} and a context of {n_ctx}",
        "first_token": f"slope of ln loss in ln N at the first token over that in the last half of "
        f"{n_ctx}, {plural(len(found.long), 'size')}, {each}",
        "long_range_delay": f"steps to half of the final gain, {ranges}, {size}, "
        f"{plural(best.seeds, 'seed')}",
        "short_context_gain": f"nats per token that a context of {short} is ahead on its tokens, mean "
        f"of {plural(len(found.gains), 'size')}",
    }
    return {name: Measure.of(text, found.estimates[name]) for name, text in what.items()}


def _warnings(found: Context) -> list[str]:
    warnings = []
    few = sum(m.seeds < LEAST_SEEDS for m in (*found.long, *found.short))
    if few:
        warnings.append(
            f"{plural(few, 'model')} with fewer than {LEAST_SEEDS} seeds: differences there decide "
            f"nothing."
        )
    for m in found.long:
        own = [f"no law, because {m.fit.failure}."] if m.fit.failure else []
        # The intervals shown here hold the seeds too.
        over_positions = "The interval is over positions"
        own += [w for w in caveats.of_fit(m.fit) if not w.startswith(over_positions)]
        warnings += [f"N = {si(m.n_params)}: {text}" for text in own]
    return warnings


# --- tables -------------------------------------------------------------------------------------


def _law_grid(found: Context) -> list[Grid]:
    return table(
        f"L(T) = a + b T^−c at a context of {found.long[0].n_ctx}, with 95% intervals: of a and b over "
        "positions, of c over positions and seeds.",
        found.long,
        {
            "N": lambda m: si(m.n_params),
            "seeds": lambda m: str(m.seeds),
            "mean loss": lambda m: f"{m.losses.mean():.3f}",
            "a": lambda m: parameter(m.fit, "a"),
            "b": lambda m: parameter(m.fit, "b"),
            "c": lambda m: shown(m.c),
        },
    )


def _slope_grid(found: Context) -> list[Grid]:
    return table(
        "How loss falls with size at each position: slope of ln loss in ln N with its 95% interval "
        "from how the sizes scatter about it.",
        found.slopes.items(),
        {"T": lambda row: str(row[0]), "slope": lambda row: shown(row[1])},
    )


def _gain_grid(found: Context) -> list[Grid]:
    return table(
        "Nats per token that the short context is ahead of the long one on its own positions, size by "
        "size (95% intervals from seeds and text).",
        found.gains,
        {"N": lambda gain: si(gain.at[0]), "ahead by": shown},
    )


# --- figures ------------------------------------------------------------------------------------


def _legend_below(axes: Any, handles: Any = None, labels: Any = None, **options: Any) -> None:
    if handles is None:
        handles, labels = axes.get_legend_handles_labels()
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.19), "columnspacing": 1.0}
    axes.legend(handles, labels, **place, **options)


def _position_chart(found: Context, results: Results) -> Chart:
    best, steps = found.long[-1], sorted(found.long[-1].steps)
    sizes = style.ordered_colours([m.n_params for m in found.long])
    colours = style.ordered_colours(steps)
    with style.canvas(7.0, 3.9) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for m in found.long:
            color = sizes[m.n_params]
            plot_means(left, m.losses, color, label=f"N = {si(m.n_params)}")
            plot_position_law(left, m.fit, m.n_ctx, color)
        left.set_title("by size, after training")
        left.set_ylabel(figures.LOSS)
        for step in steps:
            plot_means(right, best.steps[step], colours[step], lw=1.0, ms=2.4, label=f"{step:,}")
        right.set_title(f"by step, N = {si(best.n_params)}")
        position_axis(left)
        position_axis(right)
        _legend_below(left, ncols=2)
        _legend_below(right, title="steps", title_fontsize=8, ncols=4, handlelength=1.2)
        style.bits_axis(right, results.bits_per_nat)
        return style.render(
            figure,
            name="context-position",
            caption="Loss by position (Kaplan et al. 2020, Fig. 20). Left: means over a quarter of a "
            "doubling with their law a + b T^−c. Right: the largest model at several steps. Bands are "
            "95% intervals of the mean over seeds (the range for two).",
            alt=f"Loss against position for {plural(len(found.long), 'size')}, and for one at "
            f"{plural(len(steps), 'step')}.",
        )


def _size_chart(found: Context) -> Chart:
    with style.canvas(7.0, 3.9) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        _draw_sizes(left, found)
        _draw_exponents(right, [m for m in found.long if m.c.is_known])
        return style.render(
            figure,
            name="context-size",
            caption="Left: loss against size at fixed positions (Kaplan et al. 2020, Fig. 21); open "
            "points and dashes are models trained with the short context; bars are 95% intervals over "
            "seeds (the range for two). Right: the exponent of the law along the context with its 95% "
            f"interval over text and seeds; grey: the paper's {PAPER_C[0]} to {PAPER_C[1]}, for 1M to "
            "774M parameters at a context of 1024.",
            alt="Loss against model size at several positions, and the exponent c against model size.",
        )


def _draw_sizes(axes: Any, found: Context) -> None:
    n_ctx = found.long[0].n_ctx
    positions = octaves(n_ctx)
    positions = positions[:: math.ceil(len(positions) / 8)]
    ends = octaves(found.short[0].n_ctx) if found.short else ()
    positions = sorted({*positions, *ends, n_ctx})
    colours = style.ordered_colours(positions)
    looks = {p: {"color": color, "marker": "o", "ms": 3.8} for p, color in colours.items()}
    handles = [axes.plot([], [], **looks[p])[0] for p in positions]
    labels = [f"T = {p}" for p in positions]

    def draw(models: tuple[Model, ...], position: int, look: dict[str, Any]) -> None:
        groups = [(m.n_params, m.losses[:, position - 1]) for m in models]
        figures.plot_seeds(axes, groups, look)

    for p in positions:
        draw(found.long, p, looks[p])
    if found.short:
        short = found.short[0].n_ctx
        for p in (p for p in positions if p <= short):
            draw(found.short, p, figures.hollow(looks[p], ls=(0, (3, 1.5))))
        look = figures.hollow({"color": style.INK, "marker": "o", "ms": 3.8}, ls="--")
        handles.append(axes.plot([], [], **look)[0])
        labels.append(f"context {short}")
    figures.size_axes(axes, y=figures.LOSS, title="loss at fixed positions", log_y=False)
    _legend_below(axes, handles, labels, ncols=4, handlelength=1.6)


def _draw_exponents(axes: Any, models: list[Model]) -> None:
    axes.axhspan(*PAPER_C, color=style.MUTED, alpha=0.2, lw=0)
    for m in models:
        axes.plot([m.n_params] * 2, m.c.interval or [m.c.value] * 2, color=style.INK, lw=0.9)
    c = [m.c.value for m in models]
    axes.plot([m.n_params for m in models], c, "o", color=style.INK, ms=4)
    axes.set_title("exponent along the context")
    axes.set(xlabel=figures.N, ylabel="c of a + b T$^{-c}$")
    if models:
        style.log_axis(axes.xaxis, "count")
