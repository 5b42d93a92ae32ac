"""Loss by position over size, during training and with a short context (Kaplan et al. 2020, Figs. 20
and 21).

All models of one context are evaluated on the same windows, so the noise of the text is common to
them: it cancels where sizes or steps are compared at a position, and counts where a law is fitted
along the positions or two contexts, whose windows differ, are compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from lmscale import laws
from lmscale.laws import FitError, FitResult, TableError
from lmscale.report import style
from lmscale.studies.position import log_means, scatter
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.studies.estimate import LEAST_SEEDS, few_seeds, interval_of_mean
from lmscale.studies.lines import fit_line
from lmscale.studies.results import Results
from lmscale.wording import flipped, listed, plural, si, with_interval

__all__ = ["analyse"]

NAME = "context"
TITLE = "Loss by position in the context"
#: c of the six laws of Kaplan et al. 2020, Fig. 20, from 1M to 774M parameters at a context of 1024.
PAPER_C = (0.47, 0.62)
#: The models and contexts that its range speaks of: from half of its smallest ones.
PAPER_LEAST_N, PAPER_LEAST_CONTEXT = 5e5, 512
#: Context that a token gains by: "short" range from the first token to these, "long" range from
#: `MIDDLE` to the last half of the context.
NEAR, MIDDLE = (3, 8), (9, 16)
#: Fewest sizes for a slope.
LEAST_SIZES = 3
BOOTSTRAP = 400


@dataclass(frozen=True)
class _Model:
    """The seeds of one size and context: `losses` is [seed, position] at the end of training."""

    n_params: float
    n_ctx: int
    losses: np.ndarray
    #: step -> [seed, position], during training and at its end.
    steps: dict[int, np.ndarray]
    fit: FitResult | None = None
    failure: str = ""
    #: c of the law, with the text's noise and the seeds' in its interval.
    c: float = math.nan
    c_interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class _Estimate:
    value: float
    interval: tuple[float, float] | None


def analyse(study: Results) -> Section:
    """Laws along the position, slopes with size at each, and what a short context changes."""
    models = _models(study)
    contexts = sorted({m.n_ctx for m in models}, reverse=True)
    long = [m for m in models if m.n_ctx == contexts[0]] if contexts else []
    if not long or contexts[0] < 2 * MIDDLE[1]:
        why = "no run with a long context has ended well" if not long else "the context is short"
        return Section(name=NAME, title=TITLE, finding=f"No losses by position yet: {why}.")
    short = [m for m in models if m.n_ctx == contexts[-1]] if len(contexts) > 1 else []
    slopes = _slopes(long)
    ratio, ratio_why = _ratio(long, slopes)
    delay, delay_why = _delay(long[-1])
    gains, gain, gain_why = _short_gain(long, short)
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(long, ratio, gain, short),
        conclusive=any(m.fit for m in long),
        details=_details(long, slopes, delay),
        key_numbers=_key_numbers(long, ratio, gain),
        charts=[_position_chart(study, long), _size_chart(study, long, short)],
        grids=[_law_grid(long), *_slope_grid(long, slopes), *_gain_grid(gains)],
        fits={f"N={m.n_params:.0f}": m.fit for m in long if m.fit},
        measures={
            "exponent": _exponent_measure(long),
            "first_token": Measure(
                what=f"slope of ln loss in ln N at the first token over that in the last half of "
                f"{contexts[0]}, {_basis(long)}",
                value=ratio and ratio.value,
                interval=ratio and ratio.interval,
                undecided_because=ratio_why,
            ),
            "long_range_delay": Measure(
                what=f"steps to half of the final gain, long range (T = {MIDDLE[0]}-{MIDDLE[1]} to "
                f"the last half) over short range (T = 1 to {NEAR[0]}-{NEAR[1]}), N = "
                f"{si(long[-1].n_params)}, {plural(len(long[-1].losses), 'seed')}",
                value=delay and delay.value,
                interval=delay and delay.interval,
                undecided_because=delay_why,
            ),
            "short_context_gain": Measure(
                what=f"nats per token that a context of {contexts[-1]} is ahead on its tokens, mean "
                f"of {plural(len(gains), 'size')}",
                value=gain and gain.value,
                interval=gain and gain.interval,
                undecided_because=gain_why,
            ),
        },
        warnings=_warnings(long, short),
    )


# --- reading ------------------------------------------------------------------------------------


def _models(study: Results) -> list[_Model]:
    """By context, then by size."""
    usable, name = study.usable, study.eval_name
    if not len(usable) or name is None:
        return []
    models = []
    for (n_ctx, n_params), group in usable.groupby(["n_ctx", "params_kaplan"], sort=True):
        group = group[group["tokens"] == group["tokens"].max()]
        evaluations = [study.ended.get(run, {}).get("evaluations", []) for run in group["run"]]
        by_step = [
            {e["step"]: e["eval"][name]["by_position"] for e in run if name in e["eval"]}
            for run in evaluations
        ]
        by_step = [run for run in by_step if run]
        if not by_step:
            continue
        common = sorted(set.intersection(*map(set, by_step)))
        steps = {step: np.array([run[step] for run in by_step], float) for step in common}
        losses = np.array([run[max(run)] for run in by_step], float)
        models.append(_with_law(_Model(float(n_params), int(n_ctx), losses, steps)))
    return models


def _with_law(model: _Model) -> _Model:
    if model.n_ctx < 2 * MIDDLE[1]:
        return model
    try:
        fit = _law(model.losses, BOOTSTRAP)
        seeds = [_law(row[None], 0).parameters["c"] for row in model.losses]
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        return _Model(model.n_params, model.n_ctx, model.losses, model.steps, failure=str(error))
    c, edges, spread = fit.parameters["c"], fit.intervals.get("c"), interval_of_mean(seeds)
    if edges and spread:
        # Text and seeds are independent: their half-widths add as squares.
        half = 0.5 * (spread[1] - spread[0])
        edges = (c - math.hypot(c - edges[0], half), c + math.hypot(edges[1] - c, half))
    return _Model(
        model.n_params, model.n_ctx, model.losses, model.steps, fit, c=c, c_interval=edges
    )


def _law(losses: np.ndarray, bootstrap: int) -> FitResult:
    """The law through means over a quarter of a doubling, which give every doubling the same say."""
    centres, means, _ = log_means(losses)
    points = {"position": centres, "loss": means}
    return laws.fit(points, "position", bootstrap=bootstrap)


# --- measures -----------------------------------------------------------------------------------


def _octaves(n_ctx: int) -> list[int]:
    return [2**k for k in range(int(math.log2(n_ctx)) + 1)]


def _rows(models: list[_Model], span: slice) -> tuple[np.ndarray, np.ndarray]:
    """(ln N, ln of the mean loss over positions) of every run."""
    x = [math.log(m.n_params) for m in models for _ in m.losses]
    y = [math.log(loss) for m in models for loss in m.losses[:, span].mean(axis=1)]
    return np.array(x), np.array(y)


def _slopes(models: list[_Model]) -> dict[int, _Estimate]:
    """T -> slope of ln loss in ln N, over the runs of all sizes."""
    if len({m.n_params for m in models}) < LEAST_SIZES:
        return {}
    found = {}
    for position in _octaves(models[0].n_ctx):
        line = fit_line(*_rows(models, slice(position - 1, position)))
        found[position] = _Estimate(line.slope, line.slope_interval())
    return found


def _ratio(models: list[_Model], slopes: Any) -> tuple[_Estimate | None, str]:
    """Slope at the first token over that of the last half, which the same runs decide."""
    if not slopes:
        return None, f"there are fewer than {LEAST_SIZES} sizes"
    x, first = _rows(models, slice(0, 1))
    last = _rows(models, slice(models[0].n_ctx // 2, None))[1]
    below = fit_line(x, last).slope
    if below >= 0:
        return None, "larger models are no better at the end of the context either"
    ratio = fit_line(x, first).slope / below
    # What the two slopes miss of that ratio, seed by seed: their common noise is gone from it.
    low, high = fit_line(x, first - ratio * last).slope_interval()
    edges = (ratio + high / below, ratio + low / below)
    return _Estimate(ratio, edges), few_seeds(min(len(m.losses) for m in models))


def _span(losses: np.ndarray, first: int, last: int) -> np.ndarray:
    """Mean over positions first to last, of every seed."""
    return losses[:, first - 1 : last].mean(axis=1)


def _range_gains(model: _Model) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Steps, and [step, seed] what short and long range gain in nats."""
    steps = np.array(sorted(model.steps))
    n = model.n_ctx
    near, far = [], []
    for step in steps:
        losses = model.steps[step]
        near.append(losses[:, 0] - _span(losses, *NEAR))
        far.append(_span(losses, *MIDDLE) - _span(losses, n // 2 + 1, n))
    return steps, np.array(near), np.array(far)


def _delay(model: _Model) -> tuple[_Estimate | None, str]:
    """How many times as many steps long range takes to half of its gain as short range."""
    if len(model.steps) < 4:
        return None, "the runs are evaluated at fewer than four steps"
    steps, near, far = _range_gains(model)
    ratios = []
    for seed in range(near.shape[1]):
        reached = [_half(steps, gain[:, seed]) for gain in (near, far)]
        if None in reached:
            return (
                None,
                "a gain is not positive at the end, or half of it came before the first look",
            )
        ratios.append(math.log(reached[1] / reached[0]))
    value = math.exp(float(np.mean(ratios)))
    if len(ratios) < LEAST_SEEDS:
        return _Estimate(value, None), few_seeds(len(ratios))
    return _Estimate(value, tuple(math.exp(edge) for edge in interval_of_mean(ratios))), ""


def _half(steps: np.ndarray, gain: np.ndarray) -> float | None:
    """The step from which the gain stays above half of its last value, between steps in ln step."""
    goal = 0.5 * gain[-1]
    if goal <= 0 or gain[0] >= goal:
        return None
    after = int(np.flatnonzero(gain < goal)[-1]) + 1
    share = (goal - gain[after - 1]) / (gain[after] - gain[after - 1])
    low, high = np.log(steps[after - 1]), np.log(steps[after])
    return float(np.exp(low + share * (high - low)))


def _short_gain(
    long: list[_Model], short: list[_Model]
) -> tuple[list[tuple[_Model, _Estimate]], _Estimate | None, str]:
    """What a short context is ahead by on its tokens: size by size, and the mean over sizes."""
    pairs = [(a, b) for a in long for b in short if a.n_params == b.n_params]
    if not pairs:
        return [], None, "no size was trained with two contexts"
    n = pairs[0][1].n_ctx
    # Windows of the two contexts begin at other places, and the long one has few of them.
    text = scatter(pairs[-1][0].losses.mean(axis=0)) ** 2 / n
    values, variances, gains = [], [], []
    seeds = min(len(m.losses) for pair in pairs for m in pair)
    for a, b in pairs:
        ahead, own = _span(a.losses, 1, n), _span(b.losses, 1, n)
        values.append(float(ahead.mean() - own.mean()))
        variances.append(
            sum(float(v.var(ddof=1)) / len(v) for v in (ahead, own)) if seeds > 1 else math.nan
        )
        half = student.ppf(0.975, max(1, 2 * seeds - 2)) * math.sqrt(text + variances[-1])
        edges = (values[-1] - half, values[-1] + half) if seeds >= LEAST_SEEDS else None
        gains.append((a, _Estimate(values[-1], edges)))
    mean = float(np.mean(values))
    if seeds < LEAST_SEEDS:
        return gains, _Estimate(mean, None), few_seeds(seeds)
    freedom = len(pairs) * (2 * seeds - 2)
    half = float(student.ppf(0.975, freedom)) * math.sqrt(
        text + np.sum(variances) / len(pairs) ** 2
    )
    return gains, _Estimate(mean, (mean - half, mean + half)), ""


def _exponent_measure(long: list[_Model]) -> Measure:
    model = long[-1]
    what = f"c of a + b T^−c at N = {si(model.n_params)} and a context of {model.n_ctx}"
    if model.fit is None:
        return Measure(what=what, value=None, undecided_because=f"no law: {model.failure}")
    if model.n_params < PAPER_LEAST_N or model.n_ctx < PAPER_LEAST_CONTEXT:
        return Measure(
            what=what,
            value=None,
            undecided_because=f"the largest model here, N = {si(model.n_params)} with a context of {model.n_ctx}, "
            f"is below the paper's range; its c is {with_interval(model.c, model.c_interval)}",
        )
    return Measure(what=what, value=model.c, interval=model.c_interval)


# --- words --------------------------------------------------------------------------------------


def _basis(models: list[_Model]) -> str:
    seeds = sorted({len(m.losses) for m in models})
    shown = plural(seeds[0], "seed") if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]} seeds"
    return f"{plural(len(models), 'size')}, {shown}"


def _finding(
    long: list[_Model], ratio: _Estimate | None, gain: _Estimate | None, short: list[_Model]
) -> str:
    best = long[-1]
    parts = []
    if best.fit:
        shown = with_interval(best.c, best.c_interval, "95% interval")
        parts.append(f"at N = {si(best.n_params)} loss falls along the context as T^−{shown}")
    if ratio:
        shown = with_interval(ratio.value, ratio.interval)
        parts.append(f"the first token gains {shown} times as much from size as the last half does")
    if gain:
        side = "better" if gain.value > 0 else "worse"
        shown = with_interval(*flipped(gain.value, gain.interval))
        parts.append(
            f"on the first {short[0].n_ctx} tokens a context of {short[0].n_ctx} is {shown} nats "
            f"per token {side} than one of {best.n_ctx}"
        )
    if not parts:
        return "No law along the position yet."
    text = "; ".join(parts)
    return text[0].upper() + text[1:] + "."


def _details(long: list[_Model], slopes: dict[int, _Estimate], delay: Any) -> list[str]:
    fitted = [m for m in long if m.fit]
    paragraphs = [
        (
            "Position T is the number of tokens that a prediction can see. Intervals of the laws hold the "
            "noise of the text and of the seeds; where sizes or steps are compared at one position, "
            "the text is the same and only the seeds count."
        )
    ]
    if fitted:
        parts = [f"{with_interval(m.c, m.c_interval)} at {si(m.n_params)}" for m in fitted]
        paragraphs.append(
            f"c by size: {listed(parts)}. Kaplan et al. 2020, Fig. 20, found {PAPER_C[0]} to "
            f"{PAPER_C[1]}, rising with size, from 1M to 774M parameters at a context of 1024."
        )
    if slopes:
        first, last = slopes[1], slopes[max(slopes)]
        paragraphs.append(
            f"Slope of ln loss in ln N: {with_interval(first.value, first.interval)} at T = 1 and "
            f"{with_interval(last.value, last.interval)} at T = {max(slopes)}."
        )
    if delay:
        paragraphs.append(
            f"Long range takes {with_interval(delay.value, delay.interval)} times as many steps as "
            f"short range to reach half of what it gains in the end, at N = {si(long[-1].n_params)}."
        )
    return paragraphs


def _key_numbers(long: list[_Model], ratio: Any, gain: Any) -> list[KeyNumber]:
    numbers = []
    best = long[-1]
    if best.fit:
        numbers.append(
            KeyNumber.of(
                f"exponent c along the context, N = {si(best.n_params)}", best.c, best.c_interval
            )
        )
    if ratio:
        numbers.append(
            KeyNumber.of(
                "gain from size at the first token over the last half", *vars(ratio).values()
            )
        )
    if gain:
        numbers.append(
            KeyNumber.of("nats that a short context is ahead on its tokens", *vars(gain).values())
        )
    return numbers


def _warnings(long: list[_Model], short: list[_Model]) -> list[str]:
    warnings = []
    single = [m for m in (*long, *short) if len(m.losses) < LEAST_SEEDS]
    if single:
        warnings.append(
            f"{plural(len(single), 'model')} with fewer than {LEAST_SEEDS} seeds: differences there "
            f"decide nothing."
        )
    for m in long:
        if m.failure:
            warnings.append(f"N = {si(m.n_params)}: no law, because {m.failure}.")
        if m.fit:
            warnings += [
                f"N = {si(m.n_params)}: {text}."
                for text in m.fit.warnings
                if not text.startswith("the interval is over positions")
            ]
    return warnings


# --- tables -------------------------------------------------------------------------------------


def _law_grid(long: list[_Model]) -> Grid:
    rows = []
    for m in long:
        law = ["–"] * 3
        if m.fit:
            law = [
                with_interval(m.fit.parameters[p], m.fit.intervals.get(p)) for p in ("a", "b")
            ] + [with_interval(m.c, m.c_interval)]
        rows.append([si(m.n_params), str(len(m.losses)), f"{m.losses.mean():.3f}", *law])
    return Grid(
        caption=f"L(T) = a + b T^−c at a context of {long[0].n_ctx}, with 95% intervals: of a and b over "
        "positions, of c over positions and seeds.",
        header=["N", "seeds", "mean loss", "a", "b", "c"],
        rows=rows,
        numeric=(0, 1, 2, 3, 4, 5),
    )


def _slope_grid(long: list[_Model], slopes: dict[int, _Estimate]) -> list[Grid]:
    if not slopes:
        return []
    rows = [[str(t), with_interval(e.value, e.interval)] for t, e in slopes.items()]
    return [
        Grid(
            caption="How loss falls with size at each position: slope of ln loss in ln N with its 95% "
            "interval from how the sizes scatter about it.",
            header=["T", "slope"],
            rows=rows,
            numeric=(0, 1),
        )
    ]


def _gain_grid(gains: list[tuple[_Model, _Estimate]]) -> list[Grid]:
    if not gains:
        return []
    return [
        Grid(
            caption="Nats per token that the short context is ahead of the long one on its own "
            "positions, size by size (95% intervals from seeds and text).",
            header=["N", "ahead by"],
            rows=[[si(m.n_params), with_interval(e.value, e.interval)] for m, e in gains],
            numeric=(0, 1),
        )
    ]


# --- figures ------------------------------------------------------------------------------------


def _draw_law(
    axes: Any, fit: FitResult | None, losses: np.ndarray, colour: str, label: str
) -> None:
    """Means along the position with their band over seeds, and the law through them."""
    centres, means, band = log_means(losses)
    if np.isfinite(band).all():
        axes.fill_between(centres, *band, color=colour, alpha=0.25, lw=0)
    axes.plot(centres, means, "o", color=colour, ms=2.8, label=label, zorder=3)
    if fit is not None:
        grid = np.geomspace(1, losses.shape[1], 100)
        axes.plot(grid, fit.predict(position=grid), color=colour, lw=1.2)


def _position_chart(study: Results, long: list[_Model]) -> Chart:
    best = long[-1]
    sizes = style.ordered_colours([m.n_params for m in long])
    with style.canvas(7.0, 3.9) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        for m in long:
            _draw_law(left, m.fit, m.losses, sizes[m.n_params], f"N = {si(m.n_params)}")
        left.set_title("by size, after training")
        left.set_ylabel("loss (nats per token)")
        colours = style.ordered_colours(sorted(best.steps))
        for step, losses in sorted(best.steps.items()):
            centres, means, band = log_means(losses)
            if np.isfinite(band).all():
                right.fill_between(centres, *band, color=colours[step], alpha=0.25, lw=0)
            right.plot(centres, means, "o-", ms=2.4, lw=1.0, color=colours[step], label=f"{step:,}")
        right.set_title(f"by step, N = {si(best.n_params)}")
        for axes in (left, right):
            axes.set_xlabel("position T (tokens of context)")
            style.log_axis(axes.xaxis, "octave")
        left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.19), ncols=2, columnspacing=1.0)
        right.legend(
            title="steps",
            title_fontsize=8,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.19),
            ncols=4,
            columnspacing=1.0,
            handlelength=1.2,
        )
        style.bits_axis(right, study.bits_per_nat)
        return style.render(
            figure,
            name="context-position",
            caption="Loss by position (Kaplan et al. 2020, Fig. 20). Left: means over a quarter of a "
            "doubling with their law a + b T^−c. Right: the largest model at several steps. Bands are "
            "95% intervals of the mean over seeds (the range for two).",
            alt=f"Loss against position for {plural(len(long), 'size')}, and for one at "
            f"{plural(len(best.steps), 'step')}.",
        )


def _size_chart(study: Results, long: list[_Model], short: list[_Model]) -> Chart:
    positions = _octaves(long[0].n_ctx)
    positions = positions[:: math.ceil(len(positions) / 8)]
    shown = sorted({*positions, *(_octaves(short[0].n_ctx) if short else ()), long[0].n_ctx})
    colours = style.ordered_colours(shown)
    with style.canvas(7.0, 3.9) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.25, 1))
        for models, line, face in ((long, "-", True), (short, (0, (3, 1.5)), False)):
            if not models:
                continue
            for position in (p for p in shown if p <= models[0].n_ctx):
                _draw_position(left, models, position, colours[position], line, face)
        left.set_title("loss at fixed positions")
        left.set_xlabel("N, parameters without embeddings")
        left.set_ylabel("loss (nats per token)")
        style.log_axis(left.xaxis, "count")
        handles = [left.plot([], [], "o-", ms=3, color=colours[p])[0] for p in shown]
        labels = [f"T = {p}" for p in shown]
        if short:
            handles.append(left.plot([], [], "o--", ms=3.4, mfc=style.PAPER, color=style.INK)[0])
            labels.append(f"context {short[0].n_ctx}")
        left.legend(
            handles,
            labels,
            loc="upper center",
            bbox_to_anchor=(0.5, -0.19),
            ncols=4,
            columnspacing=1.0,
            handlelength=1.6,
        )
        _draw_exponents(right, [m for m in long if m.fit])
        return style.render(
            figure,
            name="context-size",
            caption="Left: loss against size at fixed positions (Kaplan et al. 2020, Fig. 21); open "
            "points and dashes are models trained with the short context; bars are 95% intervals over "
            "seeds. Right: the exponent of the law along the context with its 95% interval over text "
            f"and seeds; grey: the paper's {PAPER_C[0]} to {PAPER_C[1]}, for 1M to 774M parameters at "
            "a context of 1024.",
            alt="Loss against model size at several positions, and the exponent c against model size.",
        )


def _draw_position(
    axes: Any, models: list[_Model], position: int, colour: str, line: Any, filled: bool
) -> None:
    x = [m.n_params for m in models]
    losses = [m.losses[:, position - 1] for m in models]
    y = [float(values.mean()) for values in losses]
    edges = [interval_of_mean(values) or (v, v) for values, v in zip(losses, y, strict=True)]
    bars = np.abs(np.array(edges).T - np.array(y))
    axes.errorbar(
        x,
        y,
        bars,
        fmt="o",
        ls=line,
        lw=1.1,
        ms=3.4,
        elinewidth=0.8,
        color=colour,
        mfc=colour if filled else style.PAPER,
    )


def _draw_exponents(axes: Any, fitted: list[_Model]) -> None:
    axes.axhspan(*PAPER_C, color=style.MUTED, alpha=0.2, lw=0)
    for m in fitted:
        low, high = m.c_interval or (m.c, m.c)
        bars = [[max(0.0, m.c - low)], [max(0.0, high - m.c)]]
        axes.errorbar(m.n_params, m.c, bars, fmt="o", color=style.INK, ms=4, elinewidth=0.9)
    axes.set_title("exponent along the context")
    axes.set_xlabel("N, parameters without embeddings")
    axes.set_ylabel("c of a + b T$^{-c}$")
    if fitted:
        style.log_axis(axes.xaxis, "count")
