"""Loss on several texts, by size and during training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lmscale.report import figures, style
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.tables import shown, table
from lmscale.studies.estimate import LEAST_SEEDS, Estimate, interval_of_mean
from lmscale.studies.results import Results
from lmscale.studies.transfer import LEAST_SIZES, Transfer
from lmscale.wording import apart, listed, number, plural, si

NAME = "transfer"
TITLE = "Loss on other text than the training text"


@register(NAME)
def section(found: Transfer, results: Results) -> Section:
    if not found.others:
        why = "only one evaluation set" if found.sizes else "no run has ended well"
        finding = f"No other text to compare with yet: {why}."
        return Section(name=NAME, title=TITLE, finding=finding)
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        conclusive=len(found.sizes) >= LEAST_SIZES,
        details=_details(found),
        key_numbers=[
            KeyNumber.of_estimate(
                f"nats gained on {other.name} for each nat on the training text", other.slope
            )
            for other in found.others[:2]
            if other.slope.interval
        ],
        charts=[_chart(found)],
        grids=_grid(found),
        measures=_measures(found),
        warnings=_warnings(found),
    )


def _finding(found: Transfer) -> str:
    parts = [f"{shown(o.slope)} on {o.name}" for o in found.others if o.slope.is_known]
    if not parts:
        return "Too few sizes to say how the loss on other text follows that on the training text."
    text = (
        f"For each nat that larger models gain on the training text they gain {listed(parts)} (95% "
        f"intervals)"
    )
    shift = found.estimates["stage_shift"]
    if shift.is_known:
        amount, side, edges = apart(shift.value, shift.interval)
        text += (
            f"; at equal loss there, models on their way lie {amount} nats {side} the trained ones "
            f"({shift.of}; {edges})"
        )
    return f"{text}."


def _details(found: Transfer) -> list[str]:
    parts = [f"{number(o.offsets[0])} to {number(o.offsets[1])} ({o.name})" for o in found.others]
    return [
        f"Offsets from the loss on the training text, N = {si(found.sizes[0].n_params)} to "
        f"{si(found.sizes[-1].n_params)}: {listed(parts)} nats per token. Kaplan et al. 2020 found a "
        "small and very slowly growing offset between web text, books and Wikipedia: text much nearer "
        "to each other than, say, Python and tables of numbers.",
        "Nats per token compare models on one text. Between texts they do not say which is harder, "
        "because a token stands for other numbers of bytes there.",
    ]


def _measures(found: Transfer) -> dict[str, Measure]:
    picked = ", with an interval wide enough for picking it" if len(found.others) > 1 else ""
    what = {
        "slope": "slope of the loss on other text",
        "stage_shift": "loss on other text during training over that of trained models",
    }

    def slope(one: Estimate) -> str:
        return (
            f"nats that the loss on {one.of} falls by for each nat on the training text (of "
            f"{plural(len(found.candidates), 'set')} the farthest from 1{picked}), "
            f"{plural(one.n, 'size')}, {plural(one.seeds, 'seed')}"
        )

    def shift(one: Estimate) -> str:
        return (
            f"nats that the model of N = {si(one.at[0])} lies above smaller trained ones on {one.of}, "
            f"on its way at equal loss on the training text (of {plural(len(found.shifted), 'set')} "
            f"the farthest from 0{picked}), {plural(one.seeds, 'seed')}"
        )

    say = {"slope": slope, "stage_shift": shift}
    return {
        name: Measure.of(say[name](one) if one.is_known else what[name], one)
        for name, one in found.estimates.items()
    }


def _warnings(found: Transfer) -> list[str]:
    warnings = []
    if len(found.sizes) < LEAST_SIZES:
        warnings.append(f"{plural(len(found.sizes), 'size')}: a slope needs {LEAST_SIZES}.")
    if min(size.seeds for size in found.sizes) < LEAST_SEEDS:
        warnings.append(
            f"Some sizes have fewer than {LEAST_SEEDS} seeds, so their spread is hardly known."
        )
    return warnings


def _grid(found: Transfer) -> list[Grid]:
    first, last = (si(size.n_params) for size in (found.sizes[0], found.sizes[-1]))
    return table(
        "Loss on other text against that on the training text (nats per token, 95% intervals). "
        "Shift: how far the largest model lies, on its way, above trained ones of equal loss on the "
        "training text.",
        found.others,
        {
            "text": lambda o: o.name,
            f"offset, N = {first}": lambda o: number(o.offsets[0]),
            f"offset, N = {last}": lambda o: number(o.offsets[1]),
            "slope": lambda o: shown(o.slope),
            "shift": lambda o: shown(o.shift),
        },
        text=("text",),
    )


# --- figure -------------------------------------------------------------------------------------


def _chart(found: Transfer) -> Chart:
    names = [found.own, *[other.name for other in found.others]]
    # The training text has the Transformers' look.
    looks = style.family_styles(["transformer", *names[1:]])
    looks = dict(zip(names, looks.values(), strict=True))
    labels = {found.own: "training text"}
    with style.canvas(7.0, 3.7) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.15))
        for name in names:
            groups = [(size.n_params, size.final(name)) for size in found.sizes]
            figures.plot_seeds(left, groups, looks[name], label=labels.get(name, name))
        title = "after training, by size"
        figures.size_axes(left, y=figures.LOSS, title=title, log_y=False)
        _draw_against(right, found, looks)
        figure.legend(
            *left.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=len(names),
            columnspacing=1.2,
            handlelength=1.2,
        )
        largest = si(found.sizes[-1].n_params)
        return style.render(
            figure,
            name=NAME,
            caption="Loss on several texts (Kaplan et al. 2020, Fig. 8). Bars and bands: 95% intervals "
            "over seeds (the range for two). Right: points are trained models of each size, lines the "
            f"largest, N = {largest}, during training, the mean over seeds; the axis runs from high "
            "to low loss, as training does; dotted: equal losses.",
            alt=f"Loss on {listed([labels.get(name, name) for name in names])} by size and during "
            "training.",
        )


def _draw_against(axes: Any, found: Transfer, looks: dict[str, dict[str, Any]]) -> None:
    """Against the loss on the training text: trained models, and the path of the largest."""
    x = np.array([size.final(found.own).mean() for size in found.sizes])
    # Early in training all losses are far above: they would press the rest together.
    room = 0.25 * (x.max() - x.min()) + 0.05
    far = x.max() + 3 * room
    for other in found.others:
        _draw_path(axes, found, other.name, looks[other.name], far)
        for size in found.sizes:
            if edges := interval_of_mean(size.final(found.own)):
                color = looks[other.name]["color"]
                axes.plot(edges, [size.final(other.name).mean()] * 2, color=color, lw=0.9)
        groups = zip(x, [size.final(other.name) for size in found.sizes], strict=True)
        figures.plot_seeds(axes, groups, looks[other.name], lw=0, ms=5, mew=0.6, zorder=4)
    span = np.array([x.min(), x.max()])
    axes.plot(span, span, color=looks[found.own]["color"], lw=1.0, ls=(0, (1, 1.5)))
    axes.set_title("against the training text")
    axes.set_xlabel("loss on the training text (nats per token)")
    axes.set_xlim(far, x.min() - room)
    axes.locator_params(axis="x", nbins=5)


def _draw_path(axes: Any, found: Transfer, name: str, look: Mapping[str, Any], far: float) -> None:
    """Below a loss of `far` on the training text: the mean over seeds, with its band."""
    path = found.sizes[-1].path
    x, y = path[found.own].mean(axis=0), path[name].T
    edges = np.array([interval_of_mean(losses) or (losses[0], losses[0]) for losses in y]).T
    near = x < far
    axes.plot(x[near], y.mean(axis=1)[near], color=look["color"], lw=1.1)
    axes.fill_between(x[near], *edges[:, near], color=look["color"], alpha=0.1, lw=0)
