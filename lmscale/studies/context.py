"""Loss by position over size, during training and with a short context (Kaplan et al. 2020, Figs. 20
and 21).

All models of one context are evaluated on the same windows, so they share the noise of the text. It
cancels where sizes or steps are compared at one position. It does not cancel where a law is fitted along
the positions, or where two contexts are compared, because their windows differ.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmscale.laws import FitResult
from lmscale.laws.quantiles import student_quantile
from lmscale.studies.cells import Cell, measured_cells
from lmscale.studies.estimate import Basis, Estimate, few_seeds, interval_of_mean, undecided
from lmscale.studies.fits import attempt
from lmscale.studies.lines import fit_line
from lmscale.studies.position import fit_position_law, scatter
from lmscale.studies.registry import register
from lmscale.studies.results import Results
from lmscale.wording import number, si

__all__ = ["Context", "Model", "octaves", "study"]

#: The models and contexts that the paper's range of c speaks of: from half of its smallest ones.
PAPER_LEAST_N, PAPER_LEAST_CONTEXT = 5e5, 512
#: Positions that "short" range reaches from the first token, and those that "long" range starts from;
#: it reaches the last half of the context.
NEAR, MIDDLE = (3, 8), (9, 16)
#: Fewest sizes for a slope, and fewest evaluations for the time that a gain takes.
LEAST_SIZES, LEAST_STEPS = 3, 4
BOOTSTRAP = 400
ESTIMATES = ("exponent", "first_token", "long_range_delay", "short_context_gain")


@dataclass(frozen=True)
class Model:
    """One size with one context.

    Attributes:
      losses: [seed, position] at the end of training.
      steps: step -> [seed, position], during training and at its end.
      fit: a + b T^-c of the means over seeds.
      c: the exponent of `fit`; its interval contains the noise of the text and of the seeds.
    """

    n_params: float
    n_ctx: int
    losses: np.ndarray
    steps: dict[int, np.ndarray]
    fit: FitResult
    c: Estimate

    @property
    def seeds(self) -> int:
        return len(self.losses)

    def over(self, first: int, last: int) -> np.ndarray:
        """[seed] mean loss of the positions `first` to `last`."""
        return _over(self.losses, first, last)


@dataclass(frozen=True)
class Context:
    """What `study` finds.

    Attributes:
      long, short: the models of the longest and of the shortest context, by size; `short` is empty
        where there is one context.
      slopes: T -> slope of ln loss in ln N, for T = 1, 2, 4, ...
      gains: for every size (`at`), by how many nats the short context is better on its own positions.
      missing: why there is nothing to read; empty where there is.
      estimates: "exponent", c of the largest model; "first_token", the slope at the first token over
        that in the last half; "long_range_delay", the steps to half of the gain at long range over
        those at short range; "short_context_gain", the mean of `gains`.
    """

    long: tuple[Model, ...]
    short: tuple[Model, ...]
    slopes: dict[int, Estimate]
    gains: tuple[Estimate, ...]
    missing: str
    estimates: dict[str, Estimate]

    @property
    def fits(self) -> dict[str, FitResult]:
        return {f"N={m.n_params:.0f}": m.fit for m in self.long if not m.fit.failure}


@register("context")
def study(results: Results) -> Context:
    """Laws along the position, slopes with size at each, and what a short context changes.

    The law is L(T) = a + b T^-c (Kaplan et al. 2020, App. D.5).

    found = context.study(Results.read("results/context"))
    print(found.estimates["exponent"], found.slopes[1])
    """
    cells = measured_cells(results.usable, ["n_ctx", "params_kaplan"])
    models = [model for cell in cells for model in _model(results, cell)]
    contexts = sorted({m.n_ctx for m in models})
    if not models or contexts[-1] < 2 * MIDDLE[1]:
        missing = "the context is short" if models else "no run with a long context has ended well"
        return Context((), (), {}, (), missing, undecided(ESTIMATES, missing))
    long = tuple(m for m in models if m.n_ctx == contexts[-1])
    short = tuple(m for m in models if m.n_ctx == contexts[0]) if len(contexts) > 1 else ()
    gains, gain = _short_gain(long, short)
    found = (_exponent(long[-1]), _first_token(long), _delay(long[-1]), gain)
    return Context(long, short, _slopes(long), gains, "", {one.name: one for one in found})


def _model(results: Results, cell: Cell) -> list[Model]:
    """The model of one size and context; empty where its runs have no losses by position."""
    name = results.eval_name
    runs = [
        {
            step: e[name]["by_position"]
            for step, e in run.items()
            # A kept store may have no more than the last of a run.
            if name in e and "by_position" in e[name]
        }
        for run in map(results.evaluations, cell.runs)
    ]
    runs = [run for run in runs if run]
    if not runs:
        return []
    common = sorted(set.intersection(*map(set, runs)))
    steps = {step: np.array([run[step] for run in runs], float) for step in common}
    losses = np.array([run[max(run)] for run in runs], float)
    n_ctx = int(cell["n_ctx"])
    needs = "the context is short" if n_ctx < 2 * MIDDLE[1] else ""
    fit = attempt("position", lambda: fit_position_law(losses, BOOTSTRAP), needs=needs)
    c = Estimate.of_parameter(fit, "c", at=(cell.n_params,), seeds=len(losses))
    if not fit.failure:
        seeds = [
            attempt("position", functools.partial(fit_position_law, row[None], 0)) for row in losses
        ]
        refusals = [one for one in seeds if one.failure]
        if refusals:
            fit, c = refusals[0], Estimate(name="c", undecided_because=refusals[0].failure)
        else:
            c = _with_seeds(c, [one.parameters["c"] for one in seeds])
    return [Model(cell.n_params, n_ctx, losses, steps, fit, c)]


def _with_seeds(c: Estimate, seeds: Sequence[float]) -> Estimate:
    """`c`, whose interval contains the text's noise; here the scatter between seeds is added."""
    spread = interval_of_mean(seeds)
    if not (c.interval and spread):
        return c
    # Text and seeds are independent: their half-widths add as squares.
    half = 0.5 * (spread[1] - spread[0])
    low, high = (math.hypot(c.known - edge, half) for edge in c.interval)
    return dataclasses.replace(c, interval=(c.known - low, c.known + high), draws=None)


def _exponent(model: Model) -> Estimate:
    """Of the largest model, where the paper's range is about such models."""
    c = dataclasses.replace(model.c, name="exponent")
    if model.fit.failure:
        return dataclasses.replace(c, undecided_because=f"no law: {model.fit.failure}")
    if model.n_params < PAPER_LEAST_N or model.n_ctx < PAPER_LEAST_CONTEXT:
        why = (
            f"the largest model here, N = {si(model.n_params)} with a context of {model.n_ctx}, is "
            f"below the paper's range; its c is {number(model.c.known)}"
        )
        return Estimate(name="exponent", undecided_because=why)
    # The interval of one or two seeds has little or nothing of the scatter between seeds.
    return dataclasses.replace(c, undecided_because=few_seeds(c.seeds, "the exponent's interval"))


# --- sizes --------------------------------------------------------------------------------------


def octaves(n_ctx: int) -> list[int]:
    """The positions 1, 2, 4, ... up to the context."""
    return [2**k for k in range(int(math.log2(n_ctx)) + 1)]


def _log_log(models: Sequence[Model], first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """(ln N, ln of the mean loss over positions) of every run."""
    x = [math.log(m.n_params) for m in models for _ in m.losses]
    return np.array(x), np.log(np.concatenate([m.over(first, last) for m in models]))


def _slopes(models: Sequence[Model]) -> dict[int, Estimate]:
    if len({m.n_params for m in models}) < LEAST_SIZES:
        return {}
    slopes = {}
    for position in octaves(models[0].n_ctx):
        line = fit_line(*_log_log(models, position, position))
        interval = line.slope_interval()
        slopes[position] = Estimate(
            name="slope", value=line.slope, interval=interval, n=len(models)
        )
    return slopes


def _first_token(models: Sequence[Model]) -> Estimate:
    """Slope at the first token over the slope in the last half, both from the same runs."""
    name, n_ctx = "first_token", models[0].n_ctx
    if len({m.n_params for m in models}) < LEAST_SIZES:
        return Estimate(name=name, undecided_because=f"there are fewer than {LEAST_SIZES} sizes")
    x, first = _log_log(models, 1, 1)
    last = _log_log(models, n_ctx // 2 + 1, n_ctx)[1]
    below = fit_line(x, last).slope
    if below >= 0:
        why = "larger models are no better at the end of the context either"
        return Estimate(name=name, undecided_because=why)
    ratio = fit_line(x, first).slope / below
    # How far each run lies from that ratio: noise that both slopes share cancels.
    missed = fit_line(x, first - ratio * last).slope_interval()
    return Estimate(
        name=name,
        value=ratio,
        interval=missed and (ratio + missed[1] / below, ratio + missed[0] / below),
        undecided_because=few_seeds(min(m.seeds for m in models)),
        n=len(models),
    )


# --- steps --------------------------------------------------------------------------------------


def _over(losses: np.ndarray, first: int, last: int) -> np.ndarray:
    return losses[:, first - 1 : last].mean(axis=1)


def _delay(model: Model) -> Estimate:
    name, n, steps = "long_range_delay", model.n_ctx, sorted(model.steps)
    if len(steps) < LEAST_STEPS:
        return Estimate(
            name=name, undecided_because="the runs are evaluated at fewer than four steps"
        )
    losses = [model.steps[step] for step in steps]
    near = np.array([at[:, 0] - _over(at, *NEAR) for at in losses])
    far = np.array([_over(at, *MIDDLE) - _over(at, n // 2 + 1, n) for at in losses])
    ratios = []
    for of_near, of_far in zip(near.T, far.T, strict=True):
        short_range, long_range = _half(steps, of_near), _half(steps, of_far)
        if short_range is None or long_range is None:
            why = "a gain is not positive at the end, or half of it came before the first look"
            return Estimate(name=name, undecided_because=why)
        ratios.append(math.log(long_range / short_range))
    found = Estimate.of_mean(name, ratios, undecided_because=few_seeds(len(ratios)))
    log = found.interval
    edges = log and (math.exp(log[0]), math.exp(log[1]))
    return dataclasses.replace(found, value=math.exp(found.known), interval=edges)


def _half(steps: Sequence[int], gain: np.ndarray) -> float | None:
    """The step from which the gain stays above half of its last value, interpolated in ln step."""
    goal = 0.5 * gain[-1]
    if goal <= 0 or gain[0] >= goal:
        return None
    after = int(np.flatnonzero(gain < goal)[-1]) + 1
    share = (goal - gain[after - 1]) / (gain[after] - gain[after - 1])
    low, high = np.log(steps[after - 1]), np.log(steps[after])
    return float(np.exp(low + share * (high - low)))


# --- contexts -----------------------------------------------------------------------------------


def _short_gain(
    long: Sequence[Model], short: Sequence[Model]
) -> tuple[tuple[Estimate, ...], Estimate]:
    """By how many nats the short context is better on its own tokens: for every size, and the mean."""
    name = "short_context_gain"
    pairs = [(a, b) for a in long for b in short if a.n_params == b.n_params]
    if not pairs:
        why = "no size was trained with two contexts"
        return (), Estimate(name=name, undecided_because=why)
    n = pairs[0][1].n_ctx
    seeds = min(m.seeds for pair in pairs for m in pair)
    both = [(a.over(1, n), b.over(1, n)) for a, b in pairs]
    values = [float(a.mean() - b.mean()) for a, b in both]
    # Windows of the two contexts begin at different places, and the long one has few of them.
    text = scatter(pairs[-1][0].losses.mean(axis=0)) ** 2 / n
    few = few_seeds(seeds)
    errors = [
        0.0 if few else sum(float(v.var(ddof=1)) / len(v) for v in members) for members in both
    ]

    def estimate(value: float, variance: float, sizes: int, at: tuple[float, ...]) -> Estimate:
        basis: Basis = {"undecided_because": few, "at": at, "n": sizes, "seeds": seeds}
        if few:
            return Estimate(name=name, value=value, **basis)
        freedom = sizes * (2 * seeds - 2)
        half = float(student_quantile(0.975, freedom)) * math.sqrt(text + variance)
        return Estimate(name=name, value=value, interval=(value - half, value + half), **basis)

    gains = [
        estimate(value, error, 1, (a.n_params,))
        for (a, _), value, error in zip(pairs, values, errors, strict=True)
    ]
    mean = estimate(float(np.mean(values)), sum(errors) / len(pairs) ** 2, len(pairs), ())
    return tuple(gains), mean
