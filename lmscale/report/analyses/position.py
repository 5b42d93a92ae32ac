"""Loss by position in the context, architectures at matched size (Kaplan et al. 2020, Fig. 7 right).

Every model is evaluated on the same windows of text, so what makes one position harder than another
is common to all of them: it blurs where a single curve stops falling, but cancels in the difference
of two architectures. The finding therefore rests on the difference; the position at which each curve
stops is given with an interval that includes the text's noise.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmscale import laws
from lmscale.laws import FitError, FitResult, TableError
from lmscale.report import caveats, style
from lmscale.report.position_tables import curve_grid, pair_grid, span_grid, stop_range
from lmscale.report.section import Chart, KeyNumber, Measure, Section
from lmscale.studies.estimate import few_seeds
from lmscale.studies.results import Results
from lmscale.wording import (
    family_name,
    flipped,
    listed,
    si,
    with_interval,
)

__all__ = ["analyse", "log_means", "octave_means", "scatter", "stops_improving"]

NAME = "position"
TITLE = "Loss by position in the context"
#: A curve has stopped improving where all that is still to come is less than this (nats); Kaplan et
#: al. 2020 put the variation between seeds at as much.
STILL = 0.02
#: Two sizes match when they differ by less than this factor.
MATCHED = 1.5
#: The law a + b T^-c is drawn where its rms error over the plotted means is below this share.
FITS = 0.01
#: Most pairs that are drawn.
MOST_PAIRS = 3
#: Where the paper's LSTMs have stopped improving and its Transformers have not.
BEYOND = 100
#: The first tokens, on which its LSTMs equal its Transformers.
FIRST = 16
#: Plotted means per doubling of the position.
PER_OCTAVE = 4
#: Positions of a block, beyond which the text's noise is taken as independent; fewest blocks that tell.
BLOCK, LEAST_BLOCKS = 16, 6
#: Draws for each law a + b T^-c; there is one law a curve.
BOOTSTRAP = 400
_DRAWS = 2000

#: Positions from first to last, and the sign with which their mean enters a sum.
_Span = tuple[tuple[int, int], int]


@dataclass(frozen=True)
class _Curve:
    """One size of one family: loss at positions T = 1, 2, ... [seed, position]."""

    family: str
    n_params: float
    losses: np.ndarray
    fit: FitResult | None
    misfit: float
    failure: str
    #: Position beyond which it gains less than `STILL`; n_ctx where it never stops.
    stop: int
    stop_interval: tuple[int, int]

    @property
    def mean(self) -> np.ndarray:
        return self.losses.mean(axis=0)

    @property
    def n_ctx(self) -> int:
        return self.losses.shape[1]

    @property
    def stops(self) -> bool:
        return self.stop < self.n_ctx


@dataclass(frozen=True)
class _Pair:
    """Two architectures at matched size; `gap` is the second's loss above the first's."""

    base: _Curve
    other: _Curve
    #: (first position, last position, gap, interval), early and late in the context.
    early: tuple[int, int, float, tuple[float, float]]
    late: tuple[int, int, float, tuple[float, float]]
    widening: float
    widening_interval: tuple[float, float]
    #: Change of the gap beyond `BEYOND` tokens, where the context reaches far enough.
    beyond: tuple[float, tuple[float, float]] | None


def analyse(study: Results) -> Section:
    """Curves by position, their law, and where each architecture stops improving."""
    curves = _curves(study)
    if not curves:
        return Section(
            name=NAME,
            title=TITLE,
            finding="No losses by position yet: no run has ended well.",
        )
    pairs = _pairs(curves)
    warnings = _warnings(study, curves, pairs)
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(curves, pairs),
        conclusive=bool(pairs),
        details=_details(study, curves, pairs),
        key_numbers=_key_numbers(pairs),
        charts=[_chart(study, curves, pairs)],
        grids=[curve_grid(curves), *pair_grid(pairs), span_grid(curves)],
        fits={f"{c.family}/N={c.n_params:.0f}": c.fit for c in curves if c.fit is not None},
        measures=_measures(pairs),
        warnings=warnings,
    )


# --- curves -------------------------------------------------------------------------------------


def _curves(study: Results) -> list[_Curve]:
    usable, name = study.usable, study.eval_name
    if not len(usable) or name is None:
        return []
    curves = []
    for family in study.families:
        runs = usable[usable["family"] == family]
        for n_params, group in runs.groupby("params_kaplan", sort=True):
            longest = group[group["tokens"] == group["tokens"].max()]
            by_position = [
                study.ended[run]["loss_by_position"][name]
                for run in longest["run"]
                if name in study.ended.get(run, {}).get("loss_by_position", {})
            ]
            lengths = {len(values) for values in by_position}
            if len(lengths) == 1 and lengths.pop() >= 2:
                curves.append(_curve(family, float(n_params), np.array(by_position, float)))
    return curves


def _curve(family: str, n_params: float, losses: np.ndarray) -> _Curve:
    fit, misfit, failure = None, math.nan, ""
    try:
        # The means give every doubling of the position the same say.
        centres, plotted, _ = log_means(losses)
        points = {"position": centres, "loss": plotted}
        fit = laws.fit(points, "position", bootstrap=BOOTSTRAP)
        misfit = float(np.sqrt(np.mean((fit.predict(position=centres) / plotted - 1) ** 2)))
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        failure = str(error)
    stop, interval = stops_improving(losses)
    return _Curve(family, n_params, losses, fit, misfit, failure, stop, interval)


def _edges(n_ctx: int, per_octave: int) -> np.ndarray:
    """Distinct whole positions that split 1..n_ctx evenly in log T, the end included."""
    steps = max(1, math.ceil(per_octave * math.log2(n_ctx)))
    edges = np.unique(np.round(np.geomspace(1, n_ctx + 1, steps + 1)).astype(int))
    return edges


def log_means(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Plotted points: centre, mean over seeds and positions, [2, point] band over seeds."""
    edges = _edges(losses.shape[1], PER_OCTAVE)
    centres = np.array([math.sqrt(a * (b - 1)) for a, b in itertools.pairwise(edges)])
    per_seed = np.stack(
        [losses[:, a - 1 : b - 1].mean(axis=1) for a, b in itertools.pairwise(edges)],
        axis=1,
    )
    mean = per_seed.mean(axis=0)
    if len(losses) == 1:
        return centres, mean, np.full((2, len(mean)), np.nan)
    if len(losses) == 2:
        return centres, mean, np.stack([per_seed.min(axis=0), per_seed.max(axis=0)])
    from scipy.stats import t as student

    half = student.ppf(0.975, len(losses) - 1) * per_seed.std(axis=0, ddof=1)
    half = half / math.sqrt(len(losses))
    return centres, mean, np.stack([mean - half, mean + half])


def octave_means(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean loss of the positions 1, 2-3, 4-7, ... with its standard error.

    The error adds what seeds differ by and how much positions scatter about their neighbours, which
    is the text's share: an octave of few positions is known poorly.

    Args:
      losses: [seed, position].

    Returns:
      First position, mean and standard error of each octave; a last octave that is cut short counts
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
    """Standard deviation of a position's loss as it counts in a mean over positions.

    From second differences, of positions and of the means of blocks of `BLOCK`, whichever is larger:
    a window's neighbouring positions share their text, so that their noise does not average out as
    that of independent ones, and differences of neighbours do not see it.
    """
    tail = mean[min(7, len(mean) // 2) :]
    if len(tail) < 3:
        return 0.0
    found = _second_differences(tail)
    # From a quarter of the context on a block spans little of the curve; a cubic takes off the rest.
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


def stops_improving(losses: np.ndarray) -> tuple[int, tuple[int, int]]:
    """Where the loss stops falling with the position.

    That is the first octave after which the mean over all later positions is less than `STILL`
    below the octave's own mean.

    Args:
      losses: [seed, position].

    Returns:
      The octave's first position (the context's length if the last octave still gains), and the
      95% interval over draws from the octaves' standard errors.
    """
    starts, means, errors = octave_means(losses)
    n_ctx = losses.shape[1]
    sizes = np.minimum(2 * starts, n_ctx + 1) - starts
    drawn = means + np.random.default_rng(0).standard_normal((_DRAWS, len(means))) * errors
    stop = _stop(means[None], sizes, starts, n_ctx)[0]
    low, high = np.percentile(
        _stop(drawn, sizes, starts, n_ctx), [2.5, 97.5], method="closest_observation"
    )
    # An octave is all that is resolved: it may have stopped anywhere within the last one.
    return int(stop), (int(low), int(min(2 * high - 1, n_ctx)))


def _stop(means: np.ndarray, sizes: np.ndarray, starts: np.ndarray, n_ctx: int) -> np.ndarray:
    """For octave means [draw, octave]: the first octave without a gain of `STILL` after it."""
    total = np.cumsum((means * sizes)[:, ::-1], axis=1)[:, ::-1]
    weight = np.cumsum(sizes[::-1])[::-1]
    later = total[:, 1:] / weight[1:]
    still = means[:, :-1] - later < STILL
    return np.where(still.any(axis=1), starts[np.argmax(still, axis=1)], n_ctx)


# --- pairs --------------------------------------------------------------------------------------


def _pairs(curves: list[_Curve]) -> list[_Pair]:
    """Up to three pairs of a Transformer and another architecture, smallest to largest size."""
    bases = [c for c in curves if c.family.startswith("transformer")]
    others = [c for c in curves if not c.family.startswith("transformer")]
    found = []
    for base in bases:
        near = [
            c
            for c in others
            if c.n_ctx == base.n_ctx
            and abs(math.log(c.n_params / base.n_params)) < math.log(MATCHED)
        ]
        if near:
            # Of the families that match about as well, the best model is the fair rival.
            closest = min(abs(math.log(c.n_params / base.n_params)) for c in near)
            near = [
                c
                for c in near
                if abs(math.log(c.n_params / base.n_params)) <= closest + math.log(1.1)
            ]
            found.append((base, min(near, key=lambda c: c.mean.mean())))
    if len(found) > MOST_PAIRS:
        found = [found[0], found[len(found) // 2], found[-1]]
    return [_pair(base, other) for base, other in found]


def _pair(base: _Curve, other: _Curve) -> _Pair:
    n_ctx = base.n_ctx
    early, late = (1, max(1, n_ctx // 16)), (n_ctx // 2 + 1, n_ctx)

    def gap(*spans: _Span) -> tuple[float, tuple[float, float]]:
        return _contrast(spans, other.losses, base.losses)

    beyond = _beyond(n_ctx)
    return _Pair(
        base,
        other,
        (*early, *gap((early, 1))),
        (*late, *gap((late, 1))),
        *gap((late, 1), (early, -1)),
        # What the other does not gain of what the base gains.
        gap(*beyond) if beyond else None,
    )


def _beyond(n_ctx: int) -> tuple[_Span, _Span] | None:
    """Positions after `BEYOND`, cut in two of equal ratio: the later less the earlier ones. None
    where the context leaves no doubling after it."""
    if n_ctx < 2 * BEYOND:
        return None
    middle = round(math.sqrt(BEYOND * n_ctx))
    return ((middle + 1, n_ctx), 1), ((BEYOND + 1, middle), -1)


def _contrast(
    spans: tuple[_Span, ...], losses: np.ndarray, base: np.ndarray | None = None
) -> tuple[float, tuple[float, float]]:
    """Signed sum of mean losses over spans of positions, of one architecture or above another.

    Args:
      spans: ((first position, last position), sign).
      losses, base: [seed, position].

    Returns:
      The value and its 95% interval, from what seeds differ by and how positions scatter.
    """
    members = [losses] if base is None else [losses, base]
    mean = losses.mean(axis=0) - (0 if base is None else base.mean(axis=0))
    spread = scatter(mean)
    value, variance, dof = 0.0, 0.0, 0
    for (first, last), sign in spans:
        value += sign * float(mean[first - 1 : last].mean())
        variance += spread**2 / (last - first + 1)
    for member in members:
        if len(member) > 1:
            sums = sum(sign * member[:, a - 1 : b].mean(axis=1) for (a, b), sign in spans)
            variance += float(sums.var(ddof=1)) / len(member)
            dof += len(member) - 1
    from scipy.stats import t as student

    half = float(student.ppf(0.975, dof) if dof else 1.96) * math.sqrt(variance)
    return value, (value - half, value + half)


# --- measures -----------------------------------------------------------------------------------


def _measures(pairs: list[_Pair]) -> dict[str, Measure]:
    """Of the largest matched pair of a Transformer and an LSTM."""
    names = {
        "early": "nats per token by which the LSTM is above the Transformer on the first tokens",
        "transformer_gain": f"nats that the Transformer gains beyond {BEYOND} tokens",
        "lstm_gain": f"nats that the LSTM gains beyond {BEYOND} tokens",
        "behind_beyond": f"nats by which the LSTM falls further behind beyond {BEYOND} tokens",
    }
    own = [p for p in pairs if p.other.family.startswith("lstm")]
    if not own:
        why = "no LSTM and Transformer of matched size have ended well"
        return {
            name: Measure(what=what, value=None, undecided_because=why)
            for name, what in names.items()
        }
    pair = own[-1]
    seeds = min(len(pair.base.losses), len(pair.other.losses))
    few = few_seeds(seeds)
    at = f"{_sizes(pair)}, {seeds} {'seed' if seeds == 1 else 'seeds'} each"

    def measure(name: str, where: str, value: float, interval: tuple[float, float]) -> Measure:
        return Measure(
            what=f"{names[name]} ({where}), {at}",
            value=value,
            interval=None if few else interval,
            undecided_because=few,
        )

    last = min(FIRST, pair.base.n_ctx)
    early = _contrast((((1, last), 1),), pair.other.losses, pair.base.losses)
    found = {"early": measure("early", f"1 to {last}", *early)}
    spans = _beyond(pair.base.n_ctx)
    if spans is None:
        why = f"the context of {pair.base.n_ctx} leaves no doubling beyond {BEYOND} tokens"
        rest = {
            k: Measure(what=v, value=None, undecided_because=why)
            for k, v in names.items()
            if k != "early"
        }
        return found | rest
    where = "from {} to {} on to {} to {}".format(*spans[1][0], *spans[0][0])
    for name, curve in (("transformer_gain", pair.base), ("lstm_gain", pair.other)):
        value, (low, high) = _contrast(spans, curve.losses)
        found[name] = measure(name, where, -value, (-high, -low))
    return found | {"behind_beyond": measure("behind_beyond", where, *pair.beyond)}


# --- words --------------------------------------------------------------------------------------


def _stop_words(curve: _Curve) -> str:
    if not curve.stops:
        early = curve.stop_interval[0]
        return f"improves through all {curve.n_ctx}" + (
            f" (95% interval from {early})" if early < curve.n_ctx else ""
        )
    return f"stops improving after about {curve.stop} tokens (95% interval {stop_range(curve)})"


def _finding(curves: list[_Curve], pairs: list[_Pair]) -> str:
    if not pairs:
        parts = [
            f"the {family_name(c.family)} of {si(c.n_params)} {_stop_words(c)}" for c in curves
        ]
        text = listed(parts[-2:])
        return text[0].upper() + text[1:] + "."
    pair = pairs[-1]
    names = family_name(pair.base.family), family_name(pair.other.family)
    stops = f"the {names[1]} {_stop_words(pair.other)}, the {names[0]} {_stop_words(pair.base)}"
    # Below the baseline all along, it has a lead, which shrinks where the difference rises.
    leads = pair.early[2] < 0 and pair.late[2] < 0
    (_, end, *early), (first, last, *late) = pair.early, pair.late
    if leads:
        early, late = flipped(*early), flipped(*late)
    early = f"{with_interval(*early)} nats over the first {end} tokens"
    late = f"{with_interval(*late)} over the last {last - first + 1}"
    low, high = pair.widening_interval
    what = f"the {names[1]}'s " + ("lead" if leads else "extra loss")
    if low <= 0 <= high:
        gap = f"{what} does not change with position beyond the noise: {early}, {late}"
    else:
        gap = f"{what} {'grows' if (low > 0) != leads else 'shrinks'} from {early} to {late}"
    return f"At {_sizes(pair)} {stops}; {gap}."


def _sizes(pair: _Pair) -> str:
    a, b = si(pair.base.n_params), si(pair.other.n_params)
    return f"N = {a}" if a == b else f"matched size (N = {a} and {b})"


def _details(study: Results, curves: list[_Curve], pairs: list[_Pair]) -> list[str]:
    n_ctx = max(c.n_ctx for c in curves)
    text = (
        f"Position T is the number of tokens that the prediction can see, 1 to {n_ctx}. A curve has "
        f"stopped improving after the first doubling of T beyond which the mean loss of all later "
        f"positions is less than {STILL} nats lower; the interval includes the noise of the text, "
        f"which is common to all models and cancels in the difference between two of them."
    )
    if pairs:
        text += (
            " Kaplan et al. 2020 found that LSTMs stop improving after fewer than 100 tokens while "
            "Transformers improve through all 1024."
        )
        if n_ctx < 256:
            text += f" With {n_ctx} positions that difference has little room to show."
    return [text]


def _key_numbers(pairs: list[_Pair]) -> list[KeyNumber]:
    if not pairs:
        return []
    pair = pairs[-1]
    name = family_name(pair.other.family)
    return [
        KeyNumber.of(
            f"nats that the {name} falls further behind from early to late positions",
            pair.widening,
            pair.widening_interval,
        )
    ]


def _warnings(study: Results, curves: list[_Curve], pairs: list[_Pair]) -> list[str]:
    warnings = []
    architectures = {c.family.split(",")[0].split(" ")[0] for c in curves}
    if len(architectures) > 1 and not pairs:
        warnings.append(
            f"No two sizes of different architectures are within {MATCHED:g}x of each other, so "
            f"they are not compared."
        )
    if len(architectures) == 1 and len(set(study.table["architecture"])) > 1:
        warnings.append("Only one architecture has ended well so far.")
    single = sum(len(c.losses) == 1 for c in curves)
    if single:
        warnings.append(
            f"{single} of {len(curves)} curves rest on one seed, so their bands leave out what "
            f"seeds differ by."
        )
    misfits = [c for c in curves if c.fit is not None and not c.misfit < FITS]
    if misfits:
        warnings.append(
            f"a + b T^−c does not describe {len(misfits)} of {len(curves)} curves to within "
            f"{FITS:.0%} ("
            + listed(
                [f"{family_name(c.family)} {si(c.n_params)}: {c.misfit:.1%}" for c in misfits[:4]]
            )
            + ("…" if len(misfits) > 4 else "")
            + "); it is not drawn there."
        )
    warnings += [
        f"{family_name(c.family)} {si(c.n_params)}: no law, because {c.failure}."
        for c in curves
        if c.failure
    ]
    return [*warnings, *caveats.search_edges(study)]


# --- figure -------------------------------------------------------------------------------------


def _chart(study: Results, curves: list[_Curve], pairs: list[_Pair]) -> Chart:
    families = list(dict.fromkeys(c.family for c in curves))
    styles = style.family_styles(families)
    if pairs:
        panels = [
            (_panel_title(p), [(p.base, styles[p.base.family]), (p.other, styles[p.other.family])])
            for p in pairs
        ]
    else:
        panels = []
        for family in families:
            own = [c for c in curves if c.family == family]
            colours = style.ordered_colours([c.n_params for c in own])
            marker = styles[family]["marker"]
            looks = [(c, {"color": colours[c.n_params], "marker": marker}) for c in own]
            panels.append((family_name(family), looks))
    any_band = any(len(c.losses) > 1 for c in curves)
    with style.canvas(max(5.6, 3.55 * len(panels)), 3.8) as figure:
        row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (title, looks) in zip(row, panels, strict=True):
            for curve, look in looks:
                _draw_curve(axes, curve, look, label_size=not pairs)
            axes.set_title(title)
            axes.set_xlabel("position T (tokens of context)")
            axes.set_xlim(0.85, 1.15 * max(c.n_ctx for c in curves))
            style.log_axis(axes.xaxis, "octave")
            axes.legend()
        row[0].set_ylabel("loss (nats per token)")
        style.bits_axis(row[-1], study.bits_per_nat)
        caption = (
            ("Loss by position, architectures at matched size (Kaplan et al. 2020, Fig. 7 right). ")
            if pairs
            else "Loss by position. "
        )
        caption += (
            f"Faint: every position; points: means over {PER_OCTAVE} bins per doubling"
            + (
                ", with bands over seeds (95% interval of the mean; the range for two)"
                if any_band
                else ""
            )
            + "; dotted: a + b T^−c where it fits; triangles below: where each curve stops improving."
        )
        return style.render(
            figure,
            name=NAME,
            caption=caption,
            alt="Loss against position in the context for "
            + listed([family_name(f) for f in families])
            + ".",
        )


def _panel_title(pair: _Pair) -> str:
    a, b = si(pair.base.n_params), si(pair.other.n_params)
    return f"N = {a}" if a == b else f"N = {a} and {b}"


def _draw_curve(axes: Any, curve: _Curve, look: dict[str, Any], label_size: bool) -> None:
    colour = look["color"]
    position = np.arange(1, curve.n_ctx + 1)
    axes.plot(position, curve.mean, color=colour, lw=0.6, alpha=0.3)
    centres, mean, band = log_means(curve.losses)
    if np.isfinite(band).all():
        axes.fill_between(centres, *band, color=colour, alpha=0.2, lw=0)
    if curve.fit is not None and curve.misfit < FITS:
        grid = np.geomspace(1, curve.n_ctx, 100)
        axes.plot(grid, curve.fit.predict(position=grid), color=colour, lw=1.2, ls=(0, (1, 1.5)))
    name = family_name(curve.family)
    label = f"N = {si(curve.n_params)}" if label_size else f"{name}, N = {si(curve.n_params)}"
    axes.plot(centres, mean, look["marker"], color=colour, ms=3.6, label=label, zorder=3)
    axes.plot(
        curve.stop,
        0.035,
        "^" if curve.stops else ">",
        transform=axes.get_xaxis_transform(),
        color=colour,
        ms=6.5,
        zorder=4,
        clip_on=False,
    )
