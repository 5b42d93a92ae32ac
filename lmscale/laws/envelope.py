"""Approach 1 of Hoffmann et al. 2022: the lower envelope of all training curves.

Each curve of log loss against log compute is smoothed and interpolated (`learning_curves`). At 1500
log-spaced budgets the run with the lowest loss, and its neighbours in size, give N_opt(C). Power
laws through these give the exponents (sec. 3.1). Two stricter readings, which use fewer of the
budgets, are reported beside it (`envelope_laws`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from lmscale.laws.chinchilla import chinchilla_loss
from lmscale.laws.envelope_laws import READINGS, Envelopes, between_sizes, read_laws
from lmscale.laws.known import mean_of_known
from lmscale.laws.learning_curves import Curve, curves_of, within
from lmscale.laws.paired import Redrawn
from lmscale.laws.projection import fit_by_projection
from lmscale.laws.resample import Noise, noise_scale_of, student_level
from lmscale.laws.result import FitResult, intervals_of
from lmscale.laws.surface import NAMES
from lmscale.laws.table import Runs, Table, TableError
from lmscale.laws.units import Units

__all__ = ["LEAST_SIZES", "fit_envelope"]

#: Fewest sizes with learning curves that have an envelope.
LEAST_SIZES = 3
#: Fewest learning curves that have an interval.
_FEWEST_CURVES = 6
#: With fewer sizes that are best somewhere, a warning says that the exponent rests on few.
_FEWEST_SIZES = 6
#: Places along a curve at which its residuals are kept.
_SHARES = 33
#: Parameters of the surface that take up differences between curves of different sizes: E, A, alpha.
_FREE = 3
#: Share of a curve, in ln C, that counts as its end.
_END = 0.02
#: A warning says so where the readings of a differ by more than this.
_APART = 0.03
#: Maps (ln N, ln D) to ln L.
Surface: TypeAlias = Callable[[Any, np.ndarray], np.ndarray]
#: Draws start from these readings in turn.
_TURNS = ("envelope", "pareto", "envelope", "hull")


def fit_envelope(
    table: Any,
    *,
    points: int = 1500,
    smooth: float | None = None,
    bootstrap: int = 200,
    redrawn: tuple[Redrawn, Sequence[str]] | None = None,
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
      redrawn: (draws, names) of another fit of the same runs, so that both fits read the same noise:
        for each draw, the run whose noise each run gets; and the names of its runs. There are then as
        many draws as the other fit has, whatever `bootstrap` says.

    Returns:
      parameters a, b, k_N, k_D; `details["envelope"]` the budgets with the best size, tokens and
      loss at each, `details["readings"]` the parameters by all three readings, and
      `details["curves"]` the smoothed curves.
    """
    table = Table.read(table, columns)
    runs = table.runs("params", "flops", "tokens", "loss", least=6, vary=("params",))
    curves = curves_of(runs, smooth)
    _require_sizes(curves)
    grid = np.linspace(min(c.log_c[0] for c in curves), max(c.log_c[-1] for c in curves), points)
    log_loss = np.stack([within(c, grid, c.at(grid)) for c in curves])
    tokens = np.stack([np.interp(grid, c.log_c, c.log_d) for c in curves])
    size = np.log([c.params for c in curves])

    best, lowest = np.argmin(log_loss, axis=0), log_loss.min(axis=0)
    best_n, best_d = between_sizes(log_loss, tokens, size)
    readings = {
        name: read_laws(grid, best_n[None], best_d[None], lowest[None], size, name)
        for name in READINGS
    }
    found = readings["envelope"]
    use = found.used[0]
    warnings = [*runs.warnings, *_too_little(found, curves, bootstrap)]
    draws: dict[str, np.ndarray] = {}
    share = level
    if bootstrap and len(curves) >= _FEWEST_CURVES:
        rng = np.random.default_rng(seed)
        n_draws = bootstrap if redrawn is None else len(redrawn[0])
        given, sign = _who_gets_whose(curves, redrawn, n_draws, rng)
        noise, surface = _noise_about_surface(curves, size)
        draws = _draws(grid, curves, tokens, size, readings, noise.drawn(given, sign), surface)
        share = student_level(level, noise.freedom)
    parameters = {name: float(values[0]) for name, values in found.laws.items()}
    intervals = _intervals_about(parameters, draws, share)
    laws = {
        name: {key: float(values[0]) for key, values in reading.laws.items()}
        for name, reading in readings.items()
    }
    warnings += _doubts(grid, curves, best, use, size, laws, intervals)
    details = {
        "envelope": {
            "flops": np.exp(grid[use]),
            "n_opt": np.exp(size[best[use]]),
            "d_opt": np.exp(tokens[best, np.arange(points)][use]),
            "loss": np.exp(lowest[use]),
        },
        "readings": laws,
        "curves": [curve.shown() for curve in curves],
    }
    misfit = best_n - math.log(parameters["k_N"]) - parameters["a"] * grid
    return _result(runs, parameters, misfit[use], warnings, details, draws, intervals, level, share)


def _intervals_about(
    parameters: dict[str, float], draws: dict[str, np.ndarray], share: float
) -> dict[str, tuple[float, float]]:
    """The intervals of the draws, extended to the parameters.

    Taking the lowest curve is biased. Where the bias exceeds the scatter, all draws lie on one side of
    the parameter.
    """
    return {
        name: (min(low, parameters[name]), max(high, parameters[name]))
        for name, (low, high) in intervals_of(draws, share).items()
    }


def _require_sizes(curves: Sequence[Curve]) -> None:
    sizes = {curve.params for curve in curves}
    if len(sizes) < LEAST_SIZES:
        raise TableError(
            f"{len(sizes)} size{' has' if len(sizes) == 1 else 's have'} learning curves and an "
            f"envelope needs {LEAST_SIZES}; give several rows a run, with columns params, flops, loss and group"
        )


def _too_little(found: Envelopes, curves: Sequence[Curve], bootstrap: int) -> list[str]:
    """Warnings about curves that cannot give an exponent or an interval."""
    warnings = []
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
    return warnings


def _result(
    runs: Runs,
    parameters: dict[str, float],
    misfit: np.ndarray,
    warnings: list[str],
    details: dict[str, Any],
    draws: dict[str, np.ndarray],
    intervals: dict[str, tuple[float, float]],
    level: float,
    share: float,
) -> FitResult:
    n_curves = len(details["curves"])
    convention = runs.convention
    return FitResult(
        law="envelope",
        parameters=parameters,
        intervals=intervals,
        interval_method=f"bootstrap of residuals over {n_curves} whole learning curves about "
        f"the surface of Approach 3, and over the ways of reading the envelope"
        if draws
        else "none",
        level=level,
        draw_level=share,
        objective=float(np.sum(misfit**2)),
        objective_name="sum of squared residuals of ln N about the power law",
        n_used=n_curves,
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
        details=details,
    )


# --- Draws --------------------------------------------------------------------------------------


def _draws(
    grid: np.ndarray,
    curves: Sequence[Curve],
    tokens: np.ndarray,
    size: np.ndarray,
    readings: Mapping[str, Envelopes],
    drawn: np.ndarray,
    surface: Surface,
) -> dict[str, np.ndarray]:
    """Draws of a, b, k_N and k_D, about each of the readings in turn (`_TURNS`).

    An envelope takes the lowest of noisy curves, which is biased. So the difference between a drawn
    envelope and that of the surface without noise is subtracted from the value, and not added to it
    (the basic bootstrap). The other readings count as far as they differ from the envelope by more
    than noise (`_beyond_noise`).

    Args:
      drawn: [draw, curve and place] the noise of the curves at `_SHARES` places of each.
      surface: the curves without noise.
    """
    n_draws = len(drawn)
    every = max(1, len(grid) // 300)
    grid, tokens = grid[::every], tokens[:, ::every]
    smooth = np.stack(
        [within(c, grid, surface(n, d)) for c, n, d in zip(curves, size, tokens, strict=True)]
    )
    drawn = drawn.reshape(n_draws, len(curves), _SHARES)
    # The last envelope is that of the surface without noise.
    drawn = np.concatenate([drawn, np.zeros((1, *drawn.shape[1:]))])
    first, last = np.array([[c.log_c[0], c.log_c[-1]] for c in curves]).T[:, :, None]
    place = np.clip((grid - first) / (last - first), 0, 1) * (_SHARES - 1)
    left = np.minimum(place.astype(int), _SHARES - 2)
    run = np.arange(len(curves))[:, None]
    best_n, best_d, lowest = (np.empty((n_draws + 1, len(grid))) for _ in range(3))
    for i, given in enumerate(drawn):
        step = given[run, left + 1] - given[run, left]
        log_loss = smooth + given[run, left] + (place - left) * step
        best_n[i], best_d[i] = between_sizes(log_loss, tokens, size)
        lowest[i] = log_loss.min(axis=0)
    drawn_laws = {
        name: read_laws(grid, best_n, best_d, lowest, size, name).laws for name in readings
    }
    laws = drawn_laws["envelope"]
    turn = [_TURNS[i % len(_TURNS)] for i in range(n_draws)]
    part = {name: _beyond_noise(readings, drawn_laws, name) for name in readings}
    draws = {}
    for name, values in laws.items():
        slope = name in "ab"
        put, back = (np.asarray, np.asarray) if slope else (np.log, np.exp)
        # The constants of very steep draws may be 0 or infinite.
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            own = put(readings["envelope"].laws[name][0])
            read = {
                # A reading without a law (NaN) has share 0.
                other: own + share * (put(readings[other].laws[name][0]) - own) if share else own
                for other, share in part.items()
            }
            drawn_values = put(values)
            shift = np.array([read[other] for other in turn])
            draws[name] = back(shift - (drawn_values[:-1] - drawn_values[-1]))
    return draws


def _who_gets_whose(
    curves: Sequence[Curve],
    redrawn: tuple[Redrawn, Sequence[str]] | None,
    n_draws: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Whose residuals each curve gets [draw, curve], and their sign.

    A curve that the other fit lacks draws for itself. Draws here subtract the effect of their noise
    (the basic bootstrap), so that shared noise enters with the opposite sign.
    """
    count = len(curves)
    given = rng.integers(count, size=(n_draws, count))
    sign = rng.choice([-1.0, 1.0], (n_draws, count))
    if redrawn is None:
        return given, sign
    shared, names = redrawn
    place = {name: k for k, name in enumerate(names)}
    row = np.array([place.get(curve.name, -1) for curve in curves])
    curve_of = np.full(len(names), -1)
    curve_of[row[row >= 0]] = np.flatnonzero(row >= 0)
    source = curve_of[shared.source[:, row]]
    known = (row >= 0) & (source >= 0)
    return np.where(known, source, given), np.where(known, -shared.sign[:, row], sign)


def _beyond_noise(
    readings: Mapping[str, Envelopes], drawn: dict[str, dict[str, np.ndarray]], name: str
) -> float:
    """How far the draws about another reading move towards it: a share from 0 to 1.

    Readings of noisy curves differ by noise alone, which the draws already contain. Where noise
    explains the whole square of the gap in a, the share is 0. It grows to 1 as 1 - explained^2, as
    between the windows of an IsoFLOP profile (`profile_draws.window_shift`).

    Args:
      drawn: reading -> the laws of each drawn envelope; the last is that of the surface without noise.
    """
    gap = readings[name].laws["a"][0] - readings["envelope"].laws["a"][0]
    apart = drawn[name]["a"] - drawn["envelope"]["a"]
    by_noise = float(mean_of_known((apart[:-1] - apart[-1]) ** 2))
    return max(0.0, 1 - (by_noise / gap**2) ** 2) if gap else 0.0


def _noise_about_surface(curves: Sequence[Curve], size: np.ndarray) -> tuple[Noise, Surface]:
    """The residuals of the smoothed curves about the surface of Approach 3, and that surface.

    Whole curves are drawn.
    """
    share = np.linspace(0, 1, _SHARES)
    along = [c.log_c[0] + share * (c.log_c[-1] - c.log_c[0]) for c in curves]
    log_d = np.stack([np.interp(x, c.log_c, c.log_d) for x, c in zip(along, curves, strict=True)])
    observed = np.stack([c.at(x) for x, c in zip(along, curves, strict=True)])
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

    def surface(log_n: Any, log_d: np.ndarray) -> np.ndarray:
        return np.log(chinchilla_loss(law, params=np.exp(log_n), tokens=np.exp(log_d)))

    residual, freedom = _corrected(observed - surface(size[:, None], log_d))
    units = Units(np.repeat(np.arange(len(curves)), _SHARES), "learning curves")
    scale = noise_scale_of(residual.ravel(), units, u[:, None] / np.ptp(u), len(curves) - _FREE)
    return Noise(residual.ravel(), scale, units, freedom, np.arange(residual.size)), surface


def _corrected(residual: np.ndarray) -> tuple[np.ndarray, float]:
    """The noise of the curves [curve, place], from what a surface left of it; and its degrees of freedom.

    The surface takes up differences between curves, and next to nothing of what varies along them. So the
    mean of each curve is scaled for what was taken up, and the rest is kept. A curve tells the noise
    between curves once and the noise along curves as often as its parts are independent; the freedom of
    the sum is Satterthwaite's.
    """
    count, places = residual.shape
    between = residual.mean(axis=1, keepdims=True)
    along = residual - between
    between *= math.sqrt(count / (count - _FREE))
    variances = float(np.mean(between**2)), float(np.mean(along**2))
    # The sum of the autocorrelations up to the first that is not positive is the length of a part.
    products = [float(np.mean(along[:, lag:] * along[:, : places - lag])) for lag in range(places)]
    kept = int(np.argmax(np.array([*products[1:], 0.0]) <= 0))
    length = 1 + 2 * sum(products[1 : kept + 1]) / variances[1] if variances[1] else 1.0
    parts = max(1.0, places / length - 1)
    terms = variances[0] ** 2 / (count - _FREE) + variances[1] ** 2 / (count * parts)
    freedom = sum(variances) ** 2 / terms if terms else count - _FREE
    return between + along, float(freedom)


# --- Warnings -----------------------------------------------------------------------------------


def _doubts(
    grid: np.ndarray,
    curves: Sequence[Curve],
    best: np.ndarray,
    use: np.ndarray,
    size: np.ndarray,
    laws: dict[str, dict[str, float]],
    intervals: dict[str, tuple[float, float]],
) -> list[str]:
    """Warnings about an envelope that rests on little, or on how it was read."""
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
