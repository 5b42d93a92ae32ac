"""Tokens and steps that a loss takes, by model size (Kaplan et al. 2020, Figs. 2 left and 19)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmscale import laws
from lmscale.laws import FitError, FitResult, TableError
from lmscale.report import style
from lmscale.report.caveats import BATCH_NOTE
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.studies.estimate import LEAST_SEEDS, few_seeds
from lmscale.studies.learning_curves import Ladder, Size, fit_learning_curves, ladder, seed_interval
from lmscale.studies.results import Results
from lmscale.wording import number, plural, si, with_interval

__all__ = ["analyse"]

NAME = "efficiency"
TITLE = "Sample efficiency: tokens and steps to a loss"
#: Losses that are read off, and sizes that must reach each.
TARGETS, LEAST_SIZES = 4, 3
DRAWS = 400
#: Sizes must differ by this factor for the paper's hundredfold to be asked about; its own differ by
#: a million.
PAPER_SPAN = 1e4


@dataclass(frozen=True)
class _Reached:
    """What one loss took.

    Attributes:
      loss: the target, in nats per token.
      sizes: [size] parameters without embeddings, of those that reached it.
      tokens: [size] E_min, steps: [size] S_min.
      drawn: [draw, size] E_min over seeds drawn again, or None.
    """

    loss: float
    sizes: np.ndarray
    tokens: np.ndarray
    steps: np.ndarray
    drawn: np.ndarray | None

    @property
    def slope(self) -> float:
        """d ln E_min / d ln N; at one batch S_min has the same."""
        return float(np.polyfit(np.log(self.sizes), np.log(self.tokens), 1)[0])

    @property
    def drawn_slopes(self) -> np.ndarray | None:
        if self.drawn is None:
            return None
        x = np.log(self.sizes) - np.log(self.sizes).mean()
        return np.log(self.drawn) @ x / np.sum(x**2)


def analyse(study: Results) -> Section:
    """E_min and S_min of every size at a few losses, and how they fall with size."""
    found = ladder(study)
    if found is None:
        return Section(name=NAME, title=TITLE, finding="No run has evaluations along the way yet.")
    reached = _reached(found)
    if not reached:
        return Section(
            name=NAME,
            title=TITLE,
            finding=f"No law yet: {plural(len(found.sizes), 'size')}, and a loss must be reached by "
            f"{LEAST_SIZES} of them.",
        )
    try:
        fit = fit_learning_curves(found, bootstrap=0)
    except (TableError, FitError, np.linalg.LinAlgError):
        fit = None
    exponent, ratio = _exponent(reached, found), _ratio(reached[0])
    measures = {"exponent": exponent, "ratio": _paper_ratio(reached[0], ratio)}
    warnings = [] if found.measured_batch else [BATCH_NOTE]
    if found.n_seeds < LEAST_SEEDS:
        warnings.append(f"Fewer than {LEAST_SEEDS} seeds a size: there are no intervals.")
    if not _one_batch(found):
        warnings.append("The sizes were trained with different batches; B_crit(L) makes up for it.")
    first = reached[0]
    fall = with_interval(exponent.value, exponent.interval, "95% interval")
    change = "fewer" if ratio.value > 1 else "more"
    times = with_interval(max(ratio.value, 1 / ratio.value), _folded(ratio))
    return Section(
        name=NAME,
        title=TITLE,
        finding=f"Over {len(reached)} losses the tokens to reach one go as N^{fall}: "
        f"to {first.loss:.2f} nats the model of N = {si(first.sizes[-1])} needs {times} times "
        f"{change} than that of {si(first.sizes[0])}.",
        conclusive=exponent.interval is not None,
        key_numbers=[
            KeyNumber.of(
                "exponent of the tokens to a loss, against N", exponent.value, exponent.interval
            )
        ],
        charts=[_chart(reached, fit, found)],
        grids=[_grid(reached)],
        measures=measures,
        warnings=warnings,
    )


def _folded(ratio: Measure) -> tuple[float, float] | None:
    if ratio.interval is None or ratio.value >= 1:
        return ratio.interval
    return 1 / ratio.interval[1], 1 / ratio.interval[0]


def _reached(found: Ladder) -> list[_Reached]:
    """Losses between the one that all sizes reach and the last that enough do, highest first."""
    if len(found.sizes) < LEAST_SIZES:
        return []
    lowest = sorted((size.loss.min() for size in found.sizes), reverse=True)
    highest = max(size.loss[0] for size in found.sizes)
    # A hair above the lowest, so that most draws over seeds reach it too.
    ends = [1.005 * lowest[0], 1.005 * lowest[-LEAST_SIZES]]
    if ends[0] >= highest:
        return []
    drawn = found.drawn_losses(DRAWS)
    result = []
    for target in np.unique(np.geomspace(*ends, TARGETS))[::-1]:
        took = [laws.steps_to_loss(s.steps, s.loss, [target])[0] for s in found.sizes]
        index = [i for i, steps in enumerate(took) if math.isfinite(steps)]
        if len(index) < LEAST_SIZES:
            continue
        sizes = [found.sizes[i] for i in index]
        again = None
        if drawn is not None:
            again = np.stack(
                [
                    [laws.steps_to_loss(s.steps, row, [target])[0] for row in drawn[i]]
                    for i, s in zip(index, sizes, strict=True)
                ],
                axis=1,
            ) * _tokens_per_step(sizes, target, found)
        tokens = np.array([took[i] for i in index]) * _tokens_per_step(sizes, target, found)
        result.append(
            _Reached(
                loss=float(target),
                sizes=np.array([s.n_params for s in sizes]),
                tokens=tokens,
                steps=tokens / float(found.b_crit(target)),
                drawn=again,
            )
        )
    return result


def _tokens_per_step(sizes: list[Size], target: float, found: Ladder) -> np.ndarray:
    """E_min / S: the batch, less what a batch above the critical one wastes."""
    batch = np.array([size.batch_tokens for size in sizes])
    return batch / (1 + batch / found.b_crit(target))


def _exponent(reached: list[_Reached], found: Ladder) -> Measure:
    slopes = [item.drawn_slopes for item in reached]
    draws = None if slopes[0] is None else np.mean(slopes, axis=0)
    sizes = reached[0].sizes
    return Measure(
        what=f"exponent of the tokens (and steps) to a loss against N, mean of {len(reached)} "
        f"losses from {reached[0].loss:.2f} to {reached[-1].loss:.2f}, N from {si(sizes[0])} to "
        f"{si(sizes[-1])}, {plural(found.n_seeds, 'seed')}",
        value=float(np.mean([item.slope for item in reached])),
        interval=seed_interval(draws),
        # At one loss B_crit is one number, and with one batch the exponent does not hang on it.
        undecided_because=few_seeds(found.n_seeds, "an interval")
        or ("" if _one_batch(found) else found.unsure_batch()),
    )


def _one_batch(found: Ladder) -> bool:
    return len({size.batch_tokens for size in found.sizes}) == 1


def _ratio(item: _Reached) -> Measure:
    draws = None if item.drawn is None else item.drawn[:, 0] / item.drawn[:, -1]
    return Measure(
        what=f"tokens to {item.loss:.2f} nats, N = {si(item.sizes[0])} over N = {si(item.sizes[-1])}",
        value=float(item.tokens[0] / item.tokens[-1]),
        interval=seed_interval(draws),
        undecided_because=""
        if draws is not None
        else f"an interval needs {LEAST_SEEDS} seeds a size",
    )


def _paper_ratio(item: _Reached, ratio: Measure) -> Measure:
    span = item.sizes[-1] / item.sizes[0]
    if span >= PAPER_SPAN:
        return ratio
    return Measure(
        what=ratio.what,
        value=None,
        undecided_because=f"the sizes differ by a factor of {number(span, 2)}, the paper's by a million",
    )


def _grid(reached: list[_Reached]) -> Grid:
    rows = []
    for item in reached:
        slope = with_interval(item.slope, seed_interval(item.drawn_slopes))
        for i, size in enumerate(item.sizes):
            spread = seed_interval(item.drawn[:, i]) if item.drawn is not None else None
            rows.append(
                [
                    f"{item.loss:.3f}",
                    si(size),
                    si(item.tokens[i]),
                    f"{si(spread[0])} to {si(spread[1])}" if spread else "–",
                    number(item.steps[i]),
                    slope if i == 0 else "",
                ]
            )
    return Grid(
        caption="Least tokens and steps to a loss, adjusted by B_crit(L), with 95% intervals over "
        "seeds; the exponent is that of a straight line through a loss' sizes.",
        header=["loss", "N", "E_min, tokens", "95% interval", "S_min, steps", "exponent"],
        rows=rows,
        numeric=(0, 1, 2, 3, 4, 5),
    )


def _chart(reached: list[_Reached], fit: FitResult | None, found: Ladder) -> Chart:
    colours = style.ordered_colours([item.loss for item in reached])
    with style.canvas(7.0, 3.1) as figure:
        left, right = figure.subplots(1, 2)
        for item in reached:
            _draw(left, right, item, colours[item.loss], found, fit)
        for axes, what in ((left, "$E_{min}$, tokens"), (right, "$S_{min}$, updates")):
            axes.set(xlabel="N, parameters without embeddings", ylabel=what)
            style.log_axis(axes.xaxis, "count")
            axes.autoscale_view()
            style.log_axis(axes.yaxis, "count")
        left.set_title("Tokens to a loss")
        right.set_title("Steps to a loss")
        figure.legend(
            *left.get_legend_handles_labels(),
            title="loss (nats per token)",
            title_fontsize=8,
            loc="outside upper center",
            ncols=len(reached),
        )
        lines = " Lines: the fitted L(N, S_min)." if fit else ""
        return style.render(
            figure,
            name="sample-efficiency",
            caption="Tokens and updates that each size needs to reach a loss, one colour a loss, "
            "adjusted to the least of each by B_crit(L) (Kaplan et al. 2020, Fig. 19); at one batch "
            f"the two differ by B_crit(L) alone. Bars: 95% intervals over seeds.{lines} The paper's "
            "largest and smallest models differ by about 100.",
            alt=f"Tokens and steps to {len(reached)} losses against model size.",
        )


def _draw(
    left: Any, right: Any, item: _Reached, colour: str, found: Ladder, fit: FitResult | None
) -> None:
    b_crit = float(found.b_crit(item.loss))
    if fit is not None:
        k = fit.parameters
        n = np.geomspace(found.sizes[0].n_params, found.sizes[-1].n_params, 80)
        over = item.loss - (k["N_c"] / n) ** k["alpha_N"]
        steps = np.where(over > 0, k["S_c"] / np.maximum(over, 1e-9) ** (1 / k["alpha_S"]), np.nan)
        # Close to a size's converged loss the line rises out of the figure.
        steps[steps > 3 * item.steps.max()] = np.nan
        left.plot(n, steps * b_crit, color=colour, lw=1.1)
        right.plot(n, steps, color=colour, lw=1.1)
    look = {"color": colour, "mec": style.PAPER, "mew": 0.5, "ms": 5, "zorder": 3}
    left.plot(item.sizes, item.tokens, "o", label=f"{item.loss:.2f}", **look)
    right.plot(item.sizes, item.steps, "o", **look)
    if item.drawn is not None:
        for i, size in enumerate(item.sizes):
            spread = seed_interval(item.drawn[:, i])
            if spread:
                for axes, per in ((left, 1.0), (right, b_crit)):
                    axes.plot([size] * 2, np.array(spread) / per, color=colour, lw=1.4)
