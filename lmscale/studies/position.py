"""Loss by position in the context, architectures at matched size (Kaplan et al. 2020, Fig. 7 right).

Every model is evaluated on the same windows of text. So all models share what makes
one position harder than another. This noise hides where a single curve stops falling, but it cancels in
the difference of two architectures.

Where runs have scores on overlapping windows of enough text (`lmscale.spec.EvalSpec`), these are read: there
every token is a target at several positions, so that the text's noise cancels in a single curve as well. What
is left of it is how stretches of text differ.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np

from lmscale import laws
from lmscale.laws import FitResult
from lmscale.laws.quantiles import student_quantile
from lmscale.laws.result import interval as interval_of_draws
from lmscale.studies.cells import Cell, measured_cells
from lmscale.studies.estimate import LEVEL, Basis, Estimate, few_seeds, interval_of_mean, undecided
from lmscale.studies.fits import attempt
from lmscale.studies.registry import register
from lmscale.studies.results import Results

__all__ = [
    "Curve",
    "Pair",
    "Position",
    "contrast",
    "fit_position_law",
    "log_means",
    "octave_means",
    "scatter",
    "spans",
    "stops_improving",
    "study",
]

#: A curve has stopped improving where less than this is still to come (nats). Kaplan et al. 2020 give
#: the variation between seeds as this much.
STILL = 0.02
#: Two sizes match when they differ by less than this factor.
MATCHED = 1.5
#: Most pairs that are compared.
MOST_PAIRS = 3
#: Tokens after which the paper's LSTMs have stopped improving and its Transformers have not.
BEYOND = 100
#: The first tokens, on which its LSTMs equal its Transformers.
FIRST = 16
#: Ends of the first spans of positions; from there on every span doubles the context.
FIRST_SPANS = (16, 64, 128)
#: Means per doubling of the position.
PER_OCTAVE = 4
#: Positions of a block, beyond which the text's noise is taken as independent, and the fewest blocks
#: whose scatter says anything.
BLOCK, LEAST_BLOCKS = 16, 6
#: Fewest stretches of overlapping windows whose scatter says anything; with fewer, other windows are read.
LEAST_STRETCHES = 6
#: Draws for each law a + b T^-c, and for the position where a curve stops improving.
BOOTSTRAP, DRAWS = 400, 2000
ESTIMATES = ("early", "transformer_gain", "lstm_gain", "behind_beyond")

#: First and last position, and the sign with which their mean enters a sum.
Span = tuple[tuple[int, int], int]


@dataclass(frozen=True)
class Curve:
    """One size of one family.

    Attributes:
      by_stretch: [seed, stretch of overlapping windows, position], at T = 1, 2, ... tokens of context; one
        stretch for the windows of other evaluation sets.
      fit: the law a + b T^-c of its means (Kaplan et al. 2020, App. D.5).
      stop: the position beyond which it gains less than `STILL`; `n_ctx` where it never stops.
      stop_interval: 95%.
    """

    family: str
    architecture: str
    n_params: float
    by_stretch: np.ndarray
    fit: FitResult
    stop: int
    stop_interval: tuple[int, int]

    @property
    def losses(self) -> np.ndarray:
        """[seed, position]."""
        return self.by_stretch.mean(axis=1)

    @property
    def mean(self) -> np.ndarray:
        return self.losses.mean(axis=0)

    @property
    def n_ctx(self) -> int:
        return self.losses.shape[1]

    @property
    def stops(self) -> bool:
        return self.stop < self.n_ctx

    @property
    def misfit(self) -> float:
        """Relative rms error of the law over the means that it was fitted to; NaN without a law."""
        if self.fit.failure:
            return math.nan
        centres, means, _ = log_means(self.losses)
        return float(np.sqrt(np.mean((self.fit.predict(position=centres) / means - 1) ** 2)))


@dataclass(frozen=True)
class Pair:
    """Two architectures at matched size. Each estimate says how many nats `other` lies above `base`.

    Attributes:
      early, late: over the first sixteenth and the last half of the context.
      widening: late less early.
    """

    base: Curve
    other: Curve
    early: Estimate
    late: Estimate
    widening: Estimate

    @property
    def seeds(self) -> int:
        return min(len(self.base.losses), len(self.other.losses))


@dataclass(frozen=True)
class Position:
    """What `study` finds.

    Attributes:
      curves: by family, then by size.
      pairs: at most `MOST_PAIRS`, from the smallest to the largest size.
      estimates: in nats, of `lstm_pair`: "early", by how much the LSTM is above the Transformer on the
        first tokens; "transformer_gain" and "lstm_gain", by how much the loss of each still falls beyond
        `BEYOND` tokens; "behind_beyond", by how much the LSTM falls further behind there.
    """

    curves: tuple[Curve, ...]
    pairs: tuple[Pair, ...]
    estimates: dict[str, Estimate]

    @property
    def fits(self) -> dict[str, FitResult]:
        return {f"{c.family}/N={c.n_params:.0f}": c.fit for c in self.curves if not c.fit.failure}

    @property
    def lstm_pair(self) -> Pair | None:
        return _lstm_pair(self.pairs)


@register("position")
def study(results: Results) -> Position:
    """Loss by position and its law (Kaplan et al. 2020, App. D.5), and how architectures compare.

    found = position.study(Results.read("results/lstm_vs_transformer"))
    print(found.estimates["lstm_gain"], [curve.stop for curve in found.curves])
    """
    usable, curves = results.usable, []
    for family in results.families:
        for cell in measured_cells(usable[usable["family"] == family], ["params_kaplan"]):
            curves += _curve(results, cell)
    pairs = _pairs(curves)
    return Position(tuple(curves), pairs, {one.name: one for one in _estimates(pairs)})


def _curve(results: Results, cell: Cell) -> list[Curve]:
    """The curve of one size; empty where its runs have no losses by position."""
    ended = [results.ended.get(run, {}) for run in cell.runs]
    rows = [row for one in ended if (row := _by_stretch(one, results.eval_name)) is not None]
    if len({row.shape for row in rows}) != 1 or rows[0].shape[1] < 2:
        return []
    found = np.stack(rows)
    fit = attempt("position", lambda: fit_position_law(found.mean(axis=1), BOOTSTRAP))
    stop = stops_improving(found)
    return [Curve(cell["family"], cell["architecture"], cell.n_params, found, fit, *stop)]


def _by_stretch(result: Mapping[str, Any], eval_name: str | None) -> np.ndarray | None:
    """A run's losses [stretch, position]; None where there are none by position."""
    for found in result.get("loss_by_stretch", {}).values():
        if len(found) >= LEAST_STRETCHES:
            return np.array(found, float)
    row = result.get("loss_by_position", {}).get(eval_name)
    return None if row is None else np.array([row], float)


def fit_position_law(losses: np.ndarray, bootstrap: int) -> FitResult:
    """The law a + b T^-c, fitted to `log_means`: every doubling of the position has the same weight."""
    centres, means, _ = log_means(losses)
    return laws.fit({"position": centres, "loss": means}, "position", bootstrap=bootstrap)


# --- means over positions -----------------------------------------------------------------------


def log_means(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means over bins of positions, `PER_OCTAVE` for every doubling.

    Args:
      losses: [seed, position].

    Returns:
      Centres, means over seeds and positions, and [2, bin] the edges of their interval over seeds
      (`interval_of_mean`); NaN for one seed.
    """
    n_ctx = losses.shape[1]
    steps = max(1, math.ceil(PER_OCTAVE * math.log2(n_ctx)))
    edges = np.unique(np.round(np.geomspace(1, n_ctx + 1, steps + 1)).astype(int))
    bins = list(itertools.pairwise(edges))
    per_seed = np.stack([losses[:, a - 1 : b - 1].mean(axis=1) for a, b in bins], axis=1)
    band = [interval_of_mean(values) or (np.nan, np.nan) for values in per_seed.T]
    centres = np.array([math.sqrt(a * (b - 1)) for a, b in bins])
    return centres, per_seed.mean(axis=0), np.array(band).T


def octave_means(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean loss of the positions 1, 2-3, 4-7, ... with its standard error.

    The error has two parts: the scatter between seeds, and the scatter of positions about their neighbours.
    The second is the noise of the text, so the mean of an octave with few positions is less certain.

    Args:
      losses: [seed, position].

    Returns:
      First position, mean and standard error of each octave. A last octave that is cut short counts
      only if it holds half its positions.
    """
    mean = losses.mean(axis=0)
    n_ctx = len(mean)
    starts = [2**k for k in range(int(math.log2(n_ctx)) + 1)]
    if n_ctx + 1 - starts[-1] < starts[-1] / 2 and len(starts) > 1:
        starts.pop()
    spread = scatter(mean)
    values, errors = [], []
    for start in starts:
        part = losses[:, start - 1 : min(2 * start, n_ctx + 1) - 1]
        values.append(part.mean())
        variance = spread**2 / part.shape[1]
        if len(losses) > 1:
            variance += part.mean(axis=1).var(ddof=1) / len(losses)
        errors.append(math.sqrt(variance))
    return np.array(starts), np.array(values), np.array(errors)


def scatter(mean: np.ndarray) -> float:
    """The standard deviation of a position's loss that gives the right error of a mean over positions.

    It is read from second differences, once of positions and once of the means of blocks of `BLOCK`
    positions; the larger one is taken. Neighbouring positions share text, so their noise is correlated: it
    averages out more slowly than independent noise, and differences of neighbours do not show it.

    Args:
      mean: [position], over seeds.
    """
    tail = mean[min(7, len(mean) // 2) :]
    if len(tail) < 3:
        return 0.0
    found = _second_differences(tail)
    # From a quarter of the context on, the curve changes little within a block. A cubic takes off
    # what is left of the trend.
    n_blocks = (len(mean) - len(mean) // 4) // BLOCK
    if n_blocks >= LEAST_BLOCKS:
        late = mean[len(mean) - n_blocks * BLOCK :]
        x = np.linspace(-1, 1, len(late))
        rest = late - np.polyval(np.polyfit(x, late, 3), x)
        blocks = rest.reshape(n_blocks, BLOCK).mean(axis=1)
        found = max(found, math.sqrt(BLOCK) * _second_differences(blocks))
    return found


def _second_differences(values: np.ndarray) -> float:
    """Standard deviation of independent noise about a smooth curve."""
    return float(np.std(np.diff(values, 2)) / math.sqrt(6))


def spans(n_ctx: int) -> list[tuple[int, int]]:
    """First and last position of each span: 1-16, 17-64, 65-128, 129-256, ... up to the context."""
    ends = [end for end in FIRST_SPANS if end < n_ctx]
    while ends and ends[-1] >= FIRST_SPANS[-1] and 2 * ends[-1] < n_ctx:
        ends.append(2 * ends[-1])
    ends.append(n_ctx)
    return list(zip([1, *(end + 1 for end in ends[:-1])], ends, strict=True))


def stops_improving(losses: np.ndarray) -> tuple[int, tuple[int, int]]:
    """Where the loss stops falling with the position.

    That is the first octave after which the mean over all later positions is less than `STILL`
    below the octave's own mean.

    Args:
      losses: [seed, position], or [seed, stretch, position].

    Returns:
      The octave's first position (the context's length if the last octave still gains), and the
      95% interval over draws from the octaves' standard errors; of stretches from their covariance, because
      octaves have the same text.
    """
    stretches = losses if losses.ndim == 3 else losses[:, None]
    starts, means, errors = octave_means(stretches.mean(axis=1))
    n_ctx, rng = losses.shape[-1], np.random.default_rng(0)
    sizes = np.minimum(2 * starts, n_ctx + 1) - starts
    if stretches.shape[1] > 1:
        octaves = [(a, a + size - 1) for a, size in zip(starts, sizes, strict=True)]
        means_of = np.stack([_mean_over(stretches, octave) for octave in octaves], axis=2)
        covariance = _of_mean(means_of.mean(axis=0)) + _of_mean(means_of.mean(axis=1))
        drawn = rng.multivariate_normal(means, covariance, DRAWS)
    else:
        drawn = means + rng.standard_normal((DRAWS, len(means))) * errors
    # Octaves are counted, so that the edges of the interval are octaves too.
    low, high = interval_of_draws(_last_gain(drawn, sizes), LEVEL)
    places = np.append(starts[:-1], n_ctx)
    stop, low, high = (
        int(places[k])
        for k in (_last_gain(means[None], sizes)[0], math.floor(low), math.ceil(high))
    )
    # The resolution is an octave: the curve may stop anywhere within the last one.
    return stop, (low, min(2 * high - 1, n_ctx))


def _mean_over(losses: np.ndarray, span: tuple[int, int]) -> np.ndarray:
    """Means over the positions from the first to the last of a span."""
    return losses[..., span[0] - 1 : span[1]].mean(axis=-1)


def _of_mean(samples: np.ndarray) -> np.ndarray:
    """Covariance of the mean of samples [n, dimension]; zero for a single one."""
    n, dimension = samples.shape
    return np.cov(samples, rowvar=False) / n if n > 1 else np.zeros((dimension, dimension))


def _last_gain(means: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """For each draw of the octave means [draw, octave], the first octave after which less than `STILL` is gained.
    Nothing follows the last octave, so its index says that there is no such octave."""
    total = np.cumsum((means * sizes)[:, ::-1], axis=1)[:, ::-1]
    weight = np.cumsum(sizes[::-1])[::-1]
    later = total[:, 1:] / weight[1:]
    still = means[:, :-1] - later < STILL
    return np.where(still.any(axis=1), np.argmax(still, axis=1), means.shape[1] - 1)


# --- pairs --------------------------------------------------------------------------------------


def contrast(
    name: str,
    parts: Sequence[Span],
    losses: np.ndarray,
    base: np.ndarray | None = None,
    **rest: Unpack[Basis],
) -> Estimate:
    """Signed sum of mean losses over spans of positions, of one model or of one above another.

    The interval is Student's. It contains the scatter between seeds and that of the text, which is read from
    positions, or from stretches where there are several. With one seed it contains the text's only, and is normal
    where that is read from positions.

    Args:
      parts: ((first position, last position), sign), ...
      losses, base: [seed, position], or [seed, stretch, position].
      rest: of the `Estimate`, whose `at` is by default the ends of the spans.
    """
    members = [x if x.ndim == 3 else x[:, None] for x in (losses, base) if x is not None]
    mean = members[0].mean(axis=0) - (members[1].mean(axis=0) if len(members) > 1 else 0)
    by_stretch = _signed(mean, parts)
    # Variances of the value, and the degrees of freedom with which each is known.
    several = [_signed(member.mean(axis=1), parts) for member in members if len(member) > 1]
    known = [(float(sums.var(ddof=1)) / len(sums), len(sums) - 1) for sums in several]
    if len(by_stretch) > 1:
        known.append((float(by_stretch.var(ddof=1)) / len(by_stretch), len(by_stretch) - 1))
        variance = sum(part for part, _ in known)
        # Welch and Satterthwaite's.
        freedom = variance**2 / max(sum(part**2 / n for part, n in known), 1e-300)
    else:
        spread = scatter(mean[0])
        text = sum(spread**2 / (last - first + 1) for (first, last), _ in parts)
        variance = text + sum(part for part, _ in known)
        freedom = sum(n for _, n in known)
    half = float(student_quantile(0.5 + LEVEL / 2, freedom) if freedom else 1.96) * math.sqrt(
        variance
    )
    value = float(by_stretch.mean())
    basis: Basis = {"at": tuple(sorted(end for ends, _ in parts for end in ends)), **rest}
    return Estimate(name=name, value=value, interval=(value - half, value + half), **basis)


def _signed(losses: np.ndarray, parts: Sequence[Span]) -> np.ndarray:
    """The signed sum of mean losses over spans, of losses [..., position]."""
    return np.sum([sign * _mean_over(losses, span) for span, sign in parts], axis=0)


def _pairs(curves: Sequence[Curve]) -> tuple[Pair, ...]:
    """Each Transformer with another architecture of matching size; of several that match, the best."""
    bases = [c for c in curves if c.architecture == "transformer"]
    others = [c for c in curves if c.architecture != "transformer"]
    found = []
    for base in bases:
        apart = [(abs(math.log(c.n_params / base.n_params)), c) for c in others]
        same = base.by_stretch.shape[1:]
        apart = [
            (x, c) for x, c in apart if c.by_stretch.shape[1:] == same and x < math.log(MATCHED)
        ]
        closest = min((x for x, _ in apart), default=0.0)
        near = [c for x, c in apart if x <= closest + math.log(1.1)]
        if near:
            found.append((base, min(near, key=lambda c: c.mean.mean())))
    if len(found) > MOST_PAIRS:
        found = [found[0], found[len(found) // 2], found[-1]]
    return tuple(_pair(base, other) for base, other in found)


def _pair(base: Curve, other: Curve) -> Pair:
    n_ctx = base.n_ctx
    early, late = (1, max(1, n_ctx // 16)), (n_ctx // 2 + 1, n_ctx)
    gaps = {
        "early": [(early, 1)],
        "late": [(late, 1)],
        "widening": [(late, 1), (early, -1)],
    }
    return Pair(
        base,
        other,
        *(contrast(name, parts, other.by_stretch, base.by_stretch) for name, parts in gaps.items()),
    )


def _lstm_pair(pairs: Sequence[Pair]) -> Pair | None:
    """The largest pair of a Transformer and an LSTM."""
    return next((p for p in reversed(pairs) if p.other.architecture == "lstm"), None)


def _estimates(pairs: Sequence[Pair]) -> list[Estimate]:
    pair = _lstm_pair(pairs)
    if pair is None:
        why = "no LSTM and Transformer of matched size have ended well"
        return list(undecided(ESTIMATES, why).values())
    base, other, n_ctx = pair.base.by_stretch, pair.other.by_stretch, pair.base.n_ctx
    found = [contrast("early", [((1, min(FIRST, n_ctx)), 1)], other, base)]
    if n_ctx >= 2 * BEYOND:
        # The positions beyond are split into two parts of equal ratio.
        middle = round(math.sqrt(BEYOND * n_ctx))
        before, after = (BEYOND + 1, middle), (middle + 1, n_ctx)
        gain = [(before, 1), (after, -1)]
        found += [
            contrast("transformer_gain", gain, base),
            contrast("lstm_gain", gain, other),
            contrast("behind_beyond", [(after, 1), (before, -1)], other, base),
        ]
    few = few_seeds(pair.seeds)
    found = [
        dataclasses.replace(
            one,
            seeds=pair.seeds,
            undecided_because=few,
            interval=None if few else one.interval,
        )
        for one in found
    ]
    why = f"the context of {n_ctx} leaves no doubling beyond {BEYOND} tokens"
    return [*found, *undecided(ESTIMATES[len(found) :], why).values()]
