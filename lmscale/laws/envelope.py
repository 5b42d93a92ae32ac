"""Approach 1 of Hoffmann et al. 2022: the lower envelope of all training curves.

Each curve of log loss against log compute is smoothed and interpolated; at 1500 log-spaced budgets
the run with the lowest loss, and its neighbours in size, give N_opt(C), and power laws through these
give the exponents (sec. 3.1).

Curves are smoothed by a cubic spline in ln C whose penalty generalised cross-validation sets for
each curve (Craven & Wahba 1979): a curve without noise is interpolated, whatever its number of
points, and a noisy one is smoothed as far as its own noise asks.

Only budgets at which the power law itself lies inside the sizes that were run are fitted. Choosing
them by which run won (leaving out wins of the smallest and the largest) would flatten the law: of a
noisy smallest run only the losses would be kept.

Two stricter readings are set beside it, which use fewer of the budgets: the Pareto front (budgets
at which no smaller one has a loss as low) and the lower convex hull in ln C and ln L. Noise and
cooled-down ends of curves move the three apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator

from lmscale.laws.parametric import NAMES, chinchilla_loss
from lmscale.laws.projection import fit_by_projection
from lmscale.laws.resample import Noise, noise_scale_of, student_level
from lmscale.laws.result import FitResult, intervals_of
from lmscale.laws.table import Runs, Table, TableError
from lmscale.laws.units import Units

__all__ = ["fit_envelope"]

#: Places along a curve at which its residuals are kept.
_SHARES = 33
_FEWEST_CURVES = 6
#: Fewest sizes with learning curves that have an envelope.
LEAST_SIZES = 3
#: Sizes that must be best somewhere before the envelope is not said to rest on few.
_FEWEST_SIZES = 6
#: Parameters of the surface that take up what differs between curves of different sizes: E, A, alpha.
_FREE = 3
#: Points of a curve that the spline is fitted to at most: more are averaged in ln C first.
_MOST_POINTS = 400
#: Share of a curve, in ln C, that counts as its end.
_END = 0.02
#: How far apart the readings may lie before a warning says so.
_APART = 0.03
_READINGS = ("envelope", "pareto", "hull")


@dataclass(frozen=True)
class _Curve:
    """One run: ln C increasing, ln D, the smoothed ln L, and the function that smooths it."""

    name: str
    params: float
    log_c: np.ndarray
    log_d: np.ndarray
    smooth: np.ndarray
    at: Callable[[np.ndarray], np.ndarray]

    def shown(self) -> dict[str, Any]:
        flops, loss = np.exp(self.log_c), np.exp(self.smooth)
        return {"name": self.name, "params": self.params, "flops": flops, "loss": loss}


def fit_envelope(
    table: Any,
    *,
    points: int = 1500,
    smooth: float | None = None,
    bootstrap: int = 200,
    level: float = 0.95,
    seed: int = 0,
    columns: Any = None,
) -> FitResult:
    """Compute-optimal sizes from the envelope of learning curves.

    Args:
      table: a row is a point of a learning curve: params, flops (or tokens), loss, and group (which
        run). Without `group` every params value is one run.
      points: budgets at which the envelope is read.
      smooth: standard deviation, in ln C, of the local lines that smooth each curve; None lets each
        curve's own noise decide, 0 smooths nothing.
      bootstrap: draws. Each gives every curve the residuals, about the surface of Approach 3
        fitted to all of them, of another curve, and reads the new envelope. Half of the draws
        lie about what the envelope gave, and the others about the Pareto front and the convex hull:
        so the interval covers the noise of the runs and the way of reading, on the sizes that were
        run.

    Returns:
      parameters a, b, k_N, k_D; `details["envelope"]` the budgets with the best size, tokens and
      loss at each, `details["readings"]` the parameters by all three readings, and
      `details["curves"]` the smoothed curves.
    """
    table = Table.read(table, columns)
    runs = table.runs("params", "flops", "tokens", "loss", least=6, vary=("params",))
    curves = _curves(runs, smooth)
    sizes = {curve.params for curve in curves}
    if len(sizes) < LEAST_SIZES:
        raise TableError(
            f"{len(sizes)} size{' has' if len(sizes) == 1 else 's have'} learning curves and an "
            f"envelope needs {LEAST_SIZES}; give several rows a run, with columns params, flops, loss and group"
        )
    grid = np.linspace(min(c.log_c[0] for c in curves), max(c.log_c[-1] for c in curves), points)
    log_loss = np.stack([_within(c, grid, c.at(grid)) for c in curves])
    tokens = np.stack([np.interp(grid, c.log_c, c.log_d) for c in curves])
    size = np.log([c.params for c in curves])

    best, lowest = np.argmin(log_loss, axis=0), log_loss.min(axis=0)
    best_n, best_d = _between_sizes(log_loss, tokens, size)
    readings = {
        name: _read(grid, best_n[None], best_d[None], lowest[None], size, name)
        for name in _READINGS
    }
    found = readings["envelope"]
    use = found.used[0]
    parameters = {name: float(values[0]) for name, values in found.laws.items()}
    misfit = best_n - math.log(parameters["k_N"]) - parameters["a"] * grid
    warnings = list(runs.warnings)
    if not found.inside[0]:
        warnings.append(
            "no size between the smallest and the largest is ever best: the exponent says only "
            "what was run"
        )
    if bootstrap and len(curves) < _FEWEST_CURVES:
        warnings.append(
            f"{len(curves)} learning curves are too few to tell their noise from their shape, and "
            f"an interval needs {_FEWEST_CURVES}: there is none"
        )
        bootstrap = 0
    draws, share = {}, level
    if bootstrap:
        rng = np.random.default_rng(seed)
        draws = _draws(grid, curves, tokens, size, readings, bootstrap, rng)
        # Student's tails: the noise is known from so many curves only.
        share = student_level(level, len(curves) - _FREE)
    # Where the bias of taking the lowest exceeds the scatter, the draws lie to one side of the value.
    intervals = {
        name: (min(low, parameters[name]), max(high, parameters[name]))
        for name, (low, high) in intervals_of(draws, share).items()
    }
    laws = {
        name: {key: float(values[0]) for key, values in reading.laws.items()}
        for name, reading in readings.items()
    }
    warnings += _doubts(grid, curves, best, use, size, laws, intervals)
    convention = runs.convention
    return FitResult(
        law="envelope",
        parameters=parameters,
        intervals=intervals,
        interval_method=f"bootstrap of residuals over {len(curves)} whole learning curves about "
        f"the surface of Approach 3, and over the ways of reading the envelope"
        if bootstrap
        else "none",
        level=level,
        draw_level=share,
        objective=float(np.sum(misfit[use] ** 2)),
        objective_name="sum of squared residuals of ln N about the power law",
        n_used=len(curves),
        dropped=runs.dropped,
        exponents={convention: {"N": parameters["a"], "D": parameters["b"]}},
        exponent_intervals={convention: {"N": intervals["a"], "D": intervals["b"]}}
        if draws
        else {},
        warnings=tuple(warnings),
        ranges={
            name: (float(runs[name].min()), float(runs[name].max()))
            for name in ("params", "tokens", "flops")
        },
        draws=draws,
        details={
            "envelope": {
                "flops": np.exp(grid[use]),
                "n_opt": np.exp(size[best[use]]),
                "d_opt": np.exp(tokens[best, np.arange(points)][use]),
                "loss": np.exp(lowest[use]),
            },
            "readings": laws,
            "curves": [curve.shown() for curve in curves],
        },
    )


# --- Curves -------------------------------------------------------------------------------------


def _curves(runs: Runs, smooth: float | None) -> list[_Curve]:
    names = runs.labels.get("group", runs["params"].astype(str))
    curves = []
    for name in sorted(set(names)):
        index = np.flatnonzero(names == name)
        index = index[np.argsort(runs["flops"][index], kind="stable")]
        log_c, first = np.unique(np.log(runs["flops"][index]), return_index=True)
        index = index[first]
        if len(index) < 2:
            continue
        log_loss = np.log(runs["loss"][index])
        at = _smoothed(log_c, log_loss, smooth)
        params = float(np.median(runs["params"][index]))
        log_d = np.log(runs["tokens"][index])
        curves.append(_Curve(str(name), params, log_c, log_d, at(log_c), at))
    return curves


def _smoothed(
    log_c: np.ndarray, log_loss: np.ndarray, smooth: float | None
) -> Callable[[np.ndarray], np.ndarray]:
    """ln L as a function of ln C, through the points or as smooth as asked."""
    if smooth:
        log_loss = _local_lines(log_c, log_loss, smooth)
    if smooth is not None or len(log_c) < 8:
        # Without overshoot, and without the chords of a curved line that lie above it.
        return PchipInterpolator(log_c, log_loss, extrapolate=True)
    if len(log_c) > _MOST_POINTS or np.diff(log_c).min() < 1e-5 * np.ptp(log_c):
        log_c, log_loss = _binned(log_c, log_loss)
    return CubicSpline(log_c, _spline_values(log_c, log_loss), bc_type="natural")


def _spline_values(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The cubic smoothing spline at its knots x, by generalised cross-validation.

    With K the penalty of the squared second derivative (Green & Silverman 1994, sec. 2.1) the
    spline is (I + lambda K)^-1 y, diagonal in the eigenvectors of K; lambda has the least
    |y - H y|^2 / tr(I - H)^2 over a grid, since this has several minima.
    """
    n, h = len(x), np.diff(x) / (x[-1] - x[0])
    place = np.arange(n - 2)
    q, band = np.zeros((n, n - 2)), np.zeros((n - 2, n - 2))
    q[place, place], q[place + 2, place] = 1 / h[:-1], 1 / h[1:]
    q[place + 1, place] = -1 / h[:-1] - 1 / h[1:]
    band[place, place] = (h[:-1] + h[1:]) / 3
    band[place[:-1], place[1:]] = band[place[1:], place[:-1]] = h[1:-1] / 6
    penalty, vectors = np.linalg.eigh(q @ np.linalg.solve(band, q.T))
    penalty = np.maximum(penalty, 0.0)
    # Constants and straight lines are not penalised.
    penalty[:2] = 0.0
    along = vectors.T @ y
    strength = np.geomspace(1e-2 / penalty[-1], 1e3 / penalty[2], 120)[:, None]
    lost = strength * penalty / (1 + strength * penalty)
    score = np.sum((lost * along) ** 2, axis=1) / np.sum(lost, axis=1) ** 2
    return vectors @ ((1 - lost[np.argmin(score)]) * along)


def _local_lines(x: np.ndarray, y: np.ndarray, width: float) -> np.ndarray:
    """Straight lines fitted locally with Gaussian weights: they do not lag where a curve ends."""
    out = np.empty(len(x))
    for i, centre in enumerate(x):
        weight = np.exp(-0.5 * ((x - centre) / width) ** 2)
        u = x - centre
        total, first, second = weight.sum(), weight @ u, weight @ u**2
        spread = second - first**2 / total
        slope = (weight @ (u * y) - first * (weight @ y) / total) / max(spread, 1e-300)
        level = weight @ y / total
        out[i] = level - slope * first / total if spread > 1e-12 * total else level
    return out


def _binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of `_MOST_POINTS` equal cells of x, the empty ones left out."""
    cell = np.minimum(((x - x[0]) / (x[-1] - x[0]) * _MOST_POINTS).astype(int), _MOST_POINTS - 1)
    count = np.bincount(cell, minlength=_MOST_POINTS)
    kept = count > 0
    means = [np.bincount(cell, v, minlength=_MOST_POINTS)[kept] / count[kept] for v in (x, y)]
    return means[0], means[1]


def _within(curve: _Curve, grid: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values` where the curve was run, infinite elsewhere."""
    return np.where((grid >= curve.log_c[0]) & (grid <= curve.log_c[-1]), values, np.inf)


# --- Draws --------------------------------------------------------------------------------------


def _draws(
    grid: np.ndarray,
    curves: Sequence[_Curve],
    tokens: np.ndarray,
    size: np.ndarray,
    readings: dict[str, _Envelopes],
    n_draws: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Draws of a, b, k_N and k_D, about each reading in turn, as far as those differ by more than noise.

    An envelope takes the lowest of noisy curves, which is biased. How far a drawn envelope strays
    from the one of the surface without noise is therefore taken off the value that was read, and
    not added to it (the basic bootstrap).
    """
    every = max(1, len(grid) // 300)
    grid, tokens = grid[::every], tokens[:, ::every]
    noise, surface = _noise(curves, size)
    smooth = np.stack([_within(c, grid, surface(n, d)) for c, n, d in zip(curves, size, tokens)])
    drawn = noise.draw(n_draws, rng).reshape(n_draws, len(curves), _SHARES)
    # The last one is the surface without noise.
    drawn = np.concatenate([drawn, np.zeros((1, *drawn.shape[1:]))])
    first, last = np.array([[c.log_c[0], c.log_c[-1]] for c in curves]).T[:, :, None]
    place = np.clip((grid - first) / (last - first), 0, 1) * (_SHARES - 1)
    left = np.minimum(place.astype(int), _SHARES - 2)
    run = np.arange(len(curves))[:, None]
    best_n, best_d, lowest = (np.empty((n_draws + 1, len(grid))) for _ in range(3))
    for i, given in enumerate(drawn):
        step = given[run, left + 1] - given[run, left]
        log_loss = smooth + given[run, left] + (place - left) * step
        best_n[i], best_d[i] = _between_sizes(log_loss, tokens, size)
        lowest[i] = log_loss.min(axis=0)
    drawn_laws = {name: _read(grid, best_n, best_d, lowest, size, name).laws for name in readings}
    laws = drawn_laws["envelope"]
    # Which reading each draw starts from: envelope, pareto, envelope, hull, ...
    turn = [("envelope", "pareto", "envelope", "hull")[i % 4] for i in range(n_draws)]
    part = {name: _beyond_noise(readings, drawn_laws, name) for name in readings}
    draws = {}
    for name, values in laws.items():
        slope = name in "ab"
        put, back = (np.asarray, np.asarray) if slope else (np.log, np.exp)
        # Constants of very steep draws may be 0 or infinite.
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            own = put(readings["envelope"].laws[name][0])
            read = {
                # A reading without a law (NaN) has no part in it.
                other: own + share * (put(readings[other].laws[name][0]) - own) if share else own
                for other, share in part.items()
            }
            values = put(values)
            shift = np.array([read[other] for other in turn])
            draws[name] = back(shift - (values[:-1] - values[-1]))
    return draws


def _beyond_noise(
    readings: dict[str, _Envelopes], drawn: dict[str, dict[str, np.ndarray]], name: str
) -> float:
    """How much of the way to another reading the draws about it move, from 0 to 1.

    Readings of noisy curves differ by noise alone, which the draws hold already. Where noise explains
    the whole square of the gap in a the share is 0; it grows to 1 as 1 - explained^2, as between
    the windows of an IsoFLOP profile (`profile_draws.window_shift`).

    Args:
      drawn: reading -> laws of each drawn envelope, the last one that of the surface without noise.
    """
    gap = readings[name].laws["a"][0] - readings["envelope"].laws["a"][0]
    apart = drawn[name]["a"] - drawn["envelope"]["a"]
    by_noise = float(np.nanmean((apart[:-1] - apart[-1]) ** 2))
    return max(0.0, 1 - (by_noise / gap**2) ** 2) if gap else 0.0


def _noise(
    curves: Sequence[_Curve], size: np.ndarray
) -> tuple[Noise, Callable[[float, np.ndarray], np.ndarray]]:
    """Residuals of the smoothed curves about the surface of Approach 3, a curve being one unit, and
    that surface: (ln N, ln D) -> ln L."""
    share = np.linspace(0, 1, _SHARES)
    along = [c.log_c[0] + share * (c.log_c[-1] - c.log_c[0]) for c in curves]
    log_d = np.stack([np.interp(x, c.log_c, c.log_d) for x, c in zip(along, curves)])
    observed = np.stack([c.at(x) for x, c in zip(along, curves)])
    log_n = np.repeat(size, _SHARES)
    u, v = log_n - log_n.mean(), log_d.ravel() - log_d.mean()
    fit = fit_by_projection(u, v, np.exp(observed.ravel())[None], np.ones(len(u))).theta[0]
    a, b, e, alpha, beta = fit
    law = dict(
        zip(
            NAMES,
            (
                math.exp(e),
                math.exp(a + alpha * log_n.mean()),
                math.exp(b + beta * log_d.mean()),
                alpha,
                beta,
            ),
            strict=True,
        )
    )

    def surface(log_n: float, log_d: np.ndarray) -> np.ndarray:
        return np.log(chinchilla_loss(law, params=np.exp(log_n), tokens=np.exp(log_d)))

    residual = observed - surface(size[:, None], log_d)
    residual *= math.sqrt(len(curves) / (len(curves) - _FREE))
    units = Units(np.repeat(np.arange(len(curves)), _SHARES), "learning curves")
    scale = noise_scale_of(residual.ravel(), units, u[:, None] / np.ptp(u), len(curves) - _FREE)
    return Noise(
        residual.ravel(), scale, units, len(curves) - _FREE, np.arange(residual.size)
    ), surface


# --- Warnings -----------------------------------------------------------------------------------


def _doubts(
    grid: np.ndarray,
    curves: Sequence[_Curve],
    best: np.ndarray,
    use: np.ndarray,
    size: np.ndarray,
    laws: dict[str, dict[str, float]],
    intervals: dict[str, tuple[float, float]],
) -> list[str]:
    """What there is to say against this envelope."""
    warnings = []
    deciding = len(np.unique(size[best[use]].round(9)))
    if deciding < _FEWEST_SIZES:
        warnings.append(
            f"{deciding} sizes decide the envelope: the exponent rests on few, and their spacing "
            f"is its resolution"
        )
    spans = np.array([[c.log_c[0], c.log_c[-1]] for c in curves])[best[use]]
    reach = _END * (spans[:, 1] - spans[:, 0])
    at_end = np.mean(grid[use] > spans[:, 1] - reach)
    at_start = np.mean(grid[use] < spans[:, 0] + reach)
    for part, where, remedy in (
        (at_end, "end", "train the runs for longer"),
        (at_start, "start", "record the runs from earlier on"),
    ):
        if part > 0.1:
            warnings.append(
                f"{part:.0%} of the envelope's budgets lie at the {where} of the best curve: "
                f"another size may be better there; {remedy}, or fit their last losses with "
                f"isoflop or parametric"
            )
    values = [law["a"] for law in laws.values() if np.isfinite(law["a"])]
    if max(values) - min(values) > _APART:
        said = ", ".join(f"{name} {law['a']:.3f}" for name, law in laws.items())
        warnings.append(
            f"the exponent a depends on how the curves are read ({said}): noise, or ends of curves "
            f"that are steeper than the rest, decide it"
        )
    if intervals and not intervals["a"][0] <= laws["envelope"]["a"] <= intervals["a"][1]:
        warnings.append(
            "an envelope takes the lowest of its curves, and their noise alone moves the exponent "
            "by more than the interval is wide"
        )
    return warnings


# --- Reading ------------------------------------------------------------------------------------


class _Envelopes(NamedTuple):
    """One row an envelope: which budgets were fitted, and the laws through them."""

    used: np.ndarray
    #: Whether any size between the smallest and the largest is ever best.
    inside: np.ndarray
    laws: dict[str, np.ndarray]


def _read(
    grid: np.ndarray,
    n: np.ndarray,
    d: np.ndarray,
    lowest: np.ndarray,
    size: np.ndarray,
    reading: str,
) -> _Envelopes:
    """The power laws through envelopes.

    Args:
      grid: [point] ln C.
      n, d, lowest: [envelope, point] best ln N and ln D, and ln L there (infinite for none).
      size: [run] ln N.
      reading: which budgets count: all ("envelope"), those of the Pareto front, or of the hull.
    """
    found = np.isfinite(lowest)
    if reading == "pareto":
        found &= lowest <= np.minimum.accumulate(lowest, axis=1)
    elif reading == "hull":
        found = np.stack([_hull(grid, row) for row in lowest])
    # Half a step inside the smallest and the largest size.
    sizes = np.unique(size.round(9))
    low, high = sizes[:2].mean(), sizes[-2:].mean()
    inner = found & (n > low) & (n < high)
    inside = inner.any(axis=1)
    enough = np.ptp(np.where(inner, n, low), axis=1) > 0
    used = np.where((inside & enough)[:, None], inner, found)
    for _ in range(20):
        slope, level = _lines(grid, n, used)
        with np.errstate(invalid="ignore", divide="ignore"):
            start, stop = (low - level) / slope, (high - level) / slope
        between = found & (grid >= start) & (grid <= stop)
        sound = (between.sum(axis=1) > 2) & (slope[:, 0] > 0)
        used = np.where(sound[:, None], between, used)
    laws = {}
    for slope_name, level_name, values in (("a", "k_N", n), ("b", "k_D", d)):
        slope, level = _lines(grid, values, used)
        # A few curves give draws so steep that their constant is beyond any float: it counts as one of
        # the largest or smallest.
        with np.errstate(over="ignore", under="ignore"):
            laws[slope_name], laws[level_name] = slope[:, 0], np.exp(level[:, 0])
    return _Envelopes(used, inside, {name: laws[name] for name in ("a", "b", "k_N", "k_D")})


def _lines(grid: np.ndarray, values: np.ndarray, used: np.ndarray) -> tuple[Any, Any]:
    """Slope and level [envelope, 1] of the straight lines through `values` [envelope, point]."""
    w = used.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = w.sum(axis=1, keepdims=True)
        x, y = (w @ grid)[:, None] / total, (w * values).sum(axis=1, keepdims=True) / total
        dx = grid - x
        slope = (w * dx * (values - y)).sum(axis=1, keepdims=True)
        slope = slope / (w * dx**2).sum(axis=1, keepdims=True)
        return slope, y - slope * x


def _between_sizes(
    log_loss: np.ndarray, tokens: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Best ln N and ln D [point], between the sizes that were run.

    The lowest of a few sizes is a staircase in C, whose steps tilt the power law through them. So
    the vertex is taken of the parabola through the best size and its two neighbours, at most half
    way to either; where one of them was not run, the best size itself.

    Args:
      log_loss, tokens: [run, point] ln L (infinite outside of a run) and ln D.
      size: [run] ln N.
    """
    sizes, of_run = np.unique(size.round(9), return_inverse=True)
    point = np.arange(log_loss.shape[1])
    runs = [np.flatnonzero(of_run == i) for i in range(len(sizes))]
    lowest = np.stack([rows[np.argmin(log_loss[rows], axis=0)] for rows in runs])
    loss, d = log_loss[lowest, point], tokens[lowest, point]
    best = np.argmin(loss, axis=0)
    at = np.clip(best, 1, len(sizes) - 2)
    x = np.stack([sizes[at - 1], sizes[at], sizes[at + 1]])
    y = np.stack([loss[at - 1, point], loss[at, point], loss[at + 1, point]])
    sound = np.isfinite(y).all(axis=0) & (best == at)
    y = np.where(sound, y, 0.0)
    left, right = (y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1])
    curved = right - left
    sound &= curved > 0
    # The slope of the parabola through three points is linear between the two midpoints.
    low, high = (x[0] + x[1]) / 2, (x[1] + x[2]) / 2
    vertex = low - left * (high - low) / np.where(sound, curved, 1.0)
    n = np.where(sound, np.clip(vertex, low, high), sizes[best])
    other = np.clip(np.where(n > sizes[best], best + 1, best - 1), 0, len(sizes) - 1)
    gap = sizes[other] - sizes[best]
    share = np.where(gap != 0, (n - sizes[best]) / np.where(gap != 0, gap, 1.0), 0.0)
    return n, d[best, point] * (1 - share) + d[other, point] * share


def _hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points are corners of the lower convex hull, up to the lowest of them."""
    corners: list[int] = []
    for i in np.flatnonzero(np.isfinite(y))[: int(np.argmin(y)) + 1]:
        while len(corners) > 1:
            j, k = corners[-2], corners[-1]
            if (y[k] - y[j]) * (x[i] - x[j]) < (y[i] - y[j]) * (x[k] - x[j]):
                break
            corners.pop()
        corners.append(int(i))
    mask = np.zeros(len(x), bool)
    mask[corners] = True
    return mask
