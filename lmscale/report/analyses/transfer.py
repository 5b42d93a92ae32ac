"""Loss on other distributions against that on the training distribution (Kaplan et al. 2020, Fig. 8).

Every model is evaluated on the same windows of every set, so what makes a text hard is common to
all of them and the differences between models rest on runs alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import norm

from lmscale.report import style
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.studies.estimate import LEAST_SEEDS, few_seeds, interval_of_mean
from lmscale.studies.lines import fit_line
from lmscale.studies.results import Results
from lmscale.wording import listed, number, plural, si, with_interval

__all__ = ["analyse"]

NAME = "transfer"
TITLE = "Loss on other text than the training text"
LEAST_SIZES = 3
#: The text that every machine has: prose, C, type stubs and tables lie farther from each other than
#: the paper's web text, books and Wikipedia.
BUILT_IN = "installed-"


@dataclass(frozen=True)
class _Size:
    """The runs of one size: set -> final losses [seed]; `path` set -> losses [seed, step]."""

    n_params: float
    final: dict[str, np.ndarray]
    path: dict[str, np.ndarray]

    @property
    def n_seeds(self) -> int:
        return len(next(iter(self.final.values())))


@dataclass(frozen=True)
class _Other:
    """Another distribution: d loss there / d loss on the training text, and what stage does.

    `slope` is NaN with fewer than three sizes; `shift` is in nats, NaN where no model passes the
    losses of smaller trained ones on its way. The measures take the farthest of several sets, so
    that each has a second, wider interval (`picked_`) for being picked: Bonferroni's.
    """

    name: str
    built_in: bool
    slope: float
    slope_interval: tuple[float, float] | None
    picked_slope_interval: tuple[float, float] | None
    shift: float
    shift_interval: tuple[float, float] | None
    picked_shift_interval: tuple[float, float] | None
    #: (smallest model's, largest model's) loss there less that on the training text.
    offsets: tuple[float, float]


def analyse(study: Results) -> Section:
    """Slopes against the loss on the training text, and whether the stage of training matters."""
    own = study.eval_name
    sizes = _sizes(study)
    names = [name for name in (sizes[0].final if sizes else ()) if name != own]
    if not names:
        why = "only one evaluation set" if sizes else "no run has ended well"
        return Section(name=NAME, title=TITLE, finding=f"No other text to compare with yet: {why}.")
    declared = study.experiment.get("fields", {}).get("eval_corpora", ())
    built_in = {name for name in names if BUILT_IN + name in declared}
    others = [_other(sizes, own, name, name in built_in, len(names)) for name in names]
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(others),
        conclusive=len(sizes) >= LEAST_SIZES,
        details=_details(sizes, others),
        key_numbers=_key_numbers(others),
        charts=[_chart(sizes, own, others)],
        grids=[_grid(others, sizes)],
        measures={
            "slope": _slope_measure(sizes, others),
            "stage_shift": _shift_measure(sizes, others),
        },
        warnings=_warnings(sizes),
    )


# --- reading ------------------------------------------------------------------------------------


def _sizes(study: Results) -> list[_Size]:
    usable = study.usable
    if not len(usable):
        return []
    sizes = []
    for n_params, group in usable.groupby("params_kaplan", sort=True):
        group = group[group["tokens"] == group["tokens"].max()]
        runs = [study.ended.get(run, {}).get("evaluations", []) for run in group["run"]]
        runs = [{e["step"]: e["eval"] for e in run} for run in runs if run]
        if not runs:
            continue
        names = list(runs[0][max(runs[0])])
        steps = sorted(set.intersection(*map(set, runs)))
        path = {
            name: np.array([[run[step][name]["loss"] for step in steps] for run in runs])
            for name in names
        }
        final = {name: values[:, -1] for name, values in path.items()}
        sizes.append(_Size(float(n_params), final, path))
    return sizes


def _other(sizes: list[_Size], own: str, name: str, built_in: bool, n_sets: int) -> _Other:
    x = np.concatenate([s.final[own] for s in sizes])
    y = np.concatenate([s.final[name] for s in sizes])
    cells = np.concatenate([np.full(s.n_seeds, s.n_params) for s in sizes])
    levels = (0.95, 1 - 0.05 / n_sets)
    slope, slopes = math.nan, (None, None)
    if len(sizes) >= LEAST_SIZES:
        line = fit_line(x, y, cells)
        slope, slopes = line.slope, [line.slope_interval(level) for level in levels]
    shift, shifts = _shift(sizes, own, name, levels)
    ends = [float(np.mean(s.final[name] - s.final[own])) for s in (sizes[0], sizes[-1])]
    return _Other(name, built_in, slope, *slopes, shift, *shifts, tuple(ends))


def _shift(
    sizes: list[_Size], own: str, name: str, levels: tuple[float, float]
) -> tuple[float, list[tuple[float, float] | None]]:
    """How far the largest model lies, on its way, above the trained ones of equal loss.

    The trained models are joined by straight lines between the means of neighbouring sizes.

    Returns:
      The mean over seeds and an interval for each of `levels`.
    """
    order = sorted(sizes, key=lambda s: float(s.final[own].mean()))
    line_x = np.array([s.final[own].mean() for s in order])
    line_y = np.array([s.final[name].mean() for s in order])
    largest = sizes[-1]
    shifts = []
    for x, y in zip(largest.path[own][:, :-1], largest.path[name][:, :-1], strict=True):
        inside = (x > line_x[0]) & (x < line_x[-1])
        if inside.any():
            shifts.append(float(np.mean(y[inside] - np.interp(x[inside], line_x, line_y))))
    if len(shifts) < largest.n_seeds or not shifts:
        return math.nan, [None, None]
    value = float(np.mean(shifts))
    if len(shifts) < LEAST_SEEDS:
        return value, [None, None]
    # The trained models' own scatter about their line, which their means share.
    rests = [s.final[name] - s.final[own] for s in sizes if s.n_seeds > 1]
    error = math.sqrt(np.mean([r.var(ddof=1) / len(r) for r in rests])) if rests else 0.0
    intervals = []
    for level in levels:
        low, high = interval_of_mean(shifts, level)
        half = math.hypot(0.5 * (high - low), float(norm.ppf(0.5 + level / 2)) * error)
        intervals.append((value - half, value + half))
    return value, intervals


# --- measures and words -------------------------------------------------------------------------


def _slope_measure(sizes: list[_Size], others: list[_Other]) -> Measure:
    if len(sizes) < LEAST_SIZES:
        return Measure(
            what="slope of the loss on other text",
            value=None,
            undecided_because=f"{plural(len(sizes), 'size')}",
        )
    near = [other for other in others if not other.built_in]
    worst = max(near or others, key=lambda other: abs(other.slope - 1))
    far = (
        "the built-in texts are of other kinds than the training text (prose, C, stubs, tables), "
        "where the paper's were prose like its own"
    )
    return Measure(
        what=f"nats that the loss on {worst.name} falls by for each nat on the training text (of "
        f"{plural(len(near or others), 'set')} the farthest from 1{_widened(others)}), "
        f"{_basis(sizes)}",
        value=worst.slope,
        interval=worst.picked_slope_interval,
        undecided_because=few_seeds(min(s.n_seeds for s in sizes), "a slope")
        or ("" if near else far),
    )


def _widened(others: list[_Other]) -> str:
    return ", with an interval wide enough for picking it" if len(others) > 1 else ""


def _shift_measure(sizes: list[_Size], others: list[_Other]) -> Measure:
    known = [other for other in others if math.isfinite(other.shift)]
    if not known:
        return Measure(
            what="loss on other text during training over that of trained models",
            value=None,
            undecided_because="no model on its way is seen at the losses of smaller trained ones",
        )
    worst = max(known, key=lambda other: abs(other.shift))
    seeds = sizes[-1].n_seeds
    return Measure(
        what=f"nats that the model of N = {si(sizes[-1].n_params)} lies above smaller trained ones on "
        f"{worst.name}, on its way at equal loss on the training text (of {plural(len(known), 'set')} "
        f"the farthest from 0{_widened(others)}), {plural(seeds, 'seed')}",
        value=worst.shift,
        interval=worst.picked_shift_interval,
        undecided_because=few_seeds(seeds),
    )


def _basis(sizes: list[_Size]) -> str:
    return f"{plural(len(sizes), 'size')}, {plural(min(s.n_seeds for s in sizes), 'seed')}"


def _finding(others: list[_Other]) -> str:
    parts = [
        f"{with_interval(o.slope, o.slope_interval)} on {o.name}"
        for o in others
        if math.isfinite(o.slope)
    ]
    if not parts:
        return "Too few sizes to say how the loss on other text follows that on the training text."
    text = (
        f"For each nat that larger models gain on the training text they gain {listed(parts)} (95% "
        f"intervals)"
    )
    known = [o for o in others if math.isfinite(o.shift)]
    if known:
        worst = max(known, key=lambda o: abs(o.shift))
        side = "above" if worst.shift > 0 else "below"
        text += (
            f"; at equal loss there, models on their way lie at most {abs(worst.shift):.3f} nats "
            f"{side} the trained ones ({worst.name})"
        )
    return text + "."


def _details(sizes: list[_Size], others: list[_Other]) -> list[str]:
    parts = [f"{number(o.offsets[0])} to {number(o.offsets[1])} ({o.name})" for o in others]
    return [
        (
            f"Offsets from the loss on the training text, N = {si(sizes[0].n_params)} to "
            f"{si(sizes[-1].n_params)}: {listed(parts)} nats per token. Kaplan et al. 2020 found a small "
            "and very slowly growing offset between web text, books and Wikipedia: text much nearer "
            "to each other than, say, Python and tables of numbers."
        ),
        (
            "Nats per token compare models on one text. Between texts they do not say which is "
            "harder, because a token stands for other numbers of bytes there."
        ),
    ]


def _key_numbers(others: list[_Other]) -> list[KeyNumber]:
    return [
        KeyNumber.of(
            f"nats gained on {o.name} for each nat on the training text", o.slope, o.slope_interval
        )
        for o in others[:2]
        if o.slope_interval
    ]


def _warnings(sizes: list[_Size]) -> list[str]:
    warnings = []
    if len(sizes) < LEAST_SIZES:
        warnings.append(f"{plural(len(sizes), 'size')}: a slope needs {LEAST_SIZES}.")
    if min(s.n_seeds for s in sizes) < LEAST_SEEDS:
        warnings.append(
            f"Some sizes have fewer than {LEAST_SEEDS} seeds, so their spread is hardly known."
        )
    return warnings


def _grid(others: list[_Other], sizes: list[_Size]) -> Grid:
    rows = [
        [
            o.name,
            number(o.offsets[0]),
            number(o.offsets[1]),
            with_interval(o.slope, o.slope_interval) if math.isfinite(o.slope) else "–",
            with_interval(o.shift, o.shift_interval) if math.isfinite(o.shift) else "–",
        ]
        for o in others
    ]
    return Grid(
        caption="Loss on other text against that on the training text (nats per token, 95% intervals). "
        "Shift: how far the largest model lies, on its way, above trained ones of equal loss on the "
        "training text.",
        header=[
            "text",
            f"offset, N = {si(sizes[0].n_params)}",
            f"offset, N = {si(sizes[-1].n_params)}",
            "slope",
            "shift",
        ],
        rows=rows,
        numeric=(1, 2, 3, 4),
    )


# --- figure -------------------------------------------------------------------------------------


def _chart(sizes: list[_Size], own: str, others: list[_Other]) -> Chart:
    names = [own, *[o.name for o in others]]
    looks = style.family_styles(["transformer", *names[1:]])
    looks[own] = looks.pop("transformer")
    labels = {own: "training text"} | {name: name for name in names[1:]}
    n = [s.n_params for s in sizes]
    with style.canvas(7.0, 3.7) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.15))
        for name in names:
            _draw_sizes(left, n, [s.final[name] for s in sizes], looks[name], labels[name])
        left.set_title("after training, by size")
        left.set_xlabel("N, parameters without embeddings")
        left.set_ylabel("loss (nats per token)")
        style.log_axis(left.xaxis, "count")
        x = np.array([s.final[own].mean() for s in sizes])
        # Early in training all losses are far above: they would press the rest together.
        room = 0.25 * (x.max() - x.min()) + 0.05
        far = x.max() + 3 * room
        for other in others:
            _draw_against(right, sizes, own, other.name, looks[other.name], far)
        span = np.array([x.min(), x.max()])
        right.plot(span, span, color=looks[own]["color"], lw=1.0, ls=(0, (1, 1.5)))
        right.set_title("against the training text")
        right.set_xlabel("loss on the training text (nats per token)")
        right.set_xlim(far, x.min() - room)
        right.locator_params(axis="x", nbins=5)
        figure.legend(
            *left.get_legend_handles_labels(),
            loc="outside lower center",
            ncols=len(names),
            columnspacing=1.2,
            handlelength=1.2,
        )
        return style.render(
            figure,
            name=NAME,
            caption="Loss on several texts (Kaplan et al. 2020, Fig. 8). Bars and bands: 95% intervals "
            "over seeds (the range for two). Right: points are trained models of each size, lines the "
            f"largest, N = {si(n[-1])}, during training, the mean over seeds; the axis runs from high "
            "to low loss, as training does; dotted: equal losses.",
            alt="Loss on "
            + listed([labels[name] for name in names])
            + " by size and during training.",
        )


def _bars(losses: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Means [cell] and what bars reach below and above them [2, cell], over seeds."""
    means = np.array([values.mean() for values in losses])
    edges = [interval_of_mean(values) or (values[0], values[0]) for values in losses]
    return means, np.abs(np.array(edges).T - means)


def _draw_sizes(
    axes: Any, n: list[float], losses: list[np.ndarray], look: dict, label: str
) -> None:
    means, bars = _bars(losses)
    axes.errorbar(
        n,
        means,
        bars,
        fmt=look["marker"] + "-",
        color=look["color"],
        lw=1.1,
        elinewidth=0.8,
        label=label,
    )


def _draw_against(
    axes: Any, sizes: list[_Size], own: str, name: str, look: dict, far: float
) -> None:
    """Trained models as points, and below a loss of `far` the mean path of the largest."""
    x = sizes[-1].path[own].mean(axis=0)
    y, bars = _bars(list(sizes[-1].path[name].T))
    near = x < far
    x, y, bars = x[near], y[near], bars[:, near]
    axes.plot(x, y, color=look["color"], lw=1.1)
    axes.fill_between(x, y - bars[0], y + bars[1], color=look["color"], alpha=0.1, lw=0)
    (x, x_bars), (y, y_bars) = (_bars([s.final[key] for s in sizes]) for key in (own, name))
    axes.errorbar(
        x,
        y,
        y_bars,
        x_bars,
        fmt=look["marker"],
        color=look["color"],
        ms=5,
        mec=style.PAPER,
        mew=0.6,
        elinewidth=0.8,
        zorder=4,
    )
