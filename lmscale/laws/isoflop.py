"""IsoFLOP profiles: the compute-optimal size at each budget, and how it grows with compute.

Approach 2 of Hoffmann et al. 2022 (sec. 3.2): at every budget C a parabola is fitted to the loss
against log N, and N_opt = k_N C^a and D_opt = k_D C^b are fitted through the minima. With
`method="akima"` the minimum is that of an Akima spline of log loss against log N, and the power law
is weighted by the variance of the minima, as in Porian et al. 2024 (2406.19146, sec. 3).

The values are those of the published method. The draws, and so the intervals, also cover what the
method leaves open: the noise of the runs, the choice of the window, the shape of a profile beyond a
parabola (`lmscale.laws.profile_draws`), and the scatter of the minima about the power law
(`lmscale.laws.frontier`). They do not cover a frontier that is no power law. An example is N with
the embedding counted: then a drifts with C.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from lmscale.laws import frontier
from lmscale.laws import profile_draws as draws_of
from lmscale.laws.budgets import BUDGET_TOLERANCE, read_budgets
from lmscale.laws.paired import Redrawn
from lmscale.laws.profile_bias import without_bias
from lmscale.laws.profile_draws import Noise, Reading, Resample
from lmscale.laws.profiles import (
    Points,
    Profile,
    ProfileFit,
    akima,
    borrow_curvature,
    in_window,
    lacks_minima,
    parabola,
)
from lmscale.laws.result import DRAWS, FitError, FitResult, interval
from lmscale.laws.table import Runs, Table

__all__ = [
    "LEAST_BUDGETS",
    "MIN_POINTS",
    "exponents_again",
    "fit_isoflop",
    "redraw_losses",
    "unusable_profiles",
    "window_spread",
]

#: Least standard deviation of a spline's minimum, as a share of the distance between two sizes
#: (Porian et al. 2024).
_AKIMA_LEAST_STD = 0.33
#: The parabola takes sizes within this factor of the one with the lowest loss, unless a caller asks for others.
_WINDOW = 4.0
#: Fewest sizes of a profile that has a minimum, unless a caller asks for fewer.
MIN_POINTS = 4
#: Fewest budgets of a frontier: two points always lie on a line, and only a third can contradict it.
LEAST_BUDGETS = 3

_NOISE_UNKNOWN = (
    "every profile has as few points as its parabola has coefficients, so nothing tells "
    "the noise of the runs: there are no intervals; run more sizes, or give the standard "
    "deviation of a run's loss (--noise)"
)


def fit_isoflop(
    table: Any,
    *,
    method: Literal["parabola", "akima"] = "parabola",
    window: float | None = _WINDOW,
    min_points: int = MIN_POINTS,
    weighted: bool | None = None,
    bootstrap: int = DRAWS,
    resample: Resample = "auto",
    noise: float | Callable[[np.ndarray], np.ndarray] | None = None,
    correct_bias: bool = False,
    budget_tolerance: float = BUDGET_TOLERANCE,
    redrawn: Redrawn | None = None,
    level: float = 0.95,
    seed: int = 0,
    columns: Any = None,
) -> FitResult:
    """Compute-optimal sizes by IsoFLOP profiles (Hoffmann et al. 2022, Approach 2).

    Args:
      table: anything that `Table.read` takes, with params, flops and loss (or tokens for one of
        the first two). Runs are grouped by the column `budget` where there is one, else by FLOPs.
      method: a parabola in ln N, or an Akima spline in log-log.
      window: the parabola takes the sizes within this factor of the one with the lowest loss (and
        at least the five nearest); None takes all. It sets the values; draws move to what windows
        of 2, 4, 8 and all sizes give.
      min_points: fewest points of a profile.
      weighted: weight the minima by 1 / variance in the power law; by default only for "akima".
      bootstrap: number of draws; 0 for none.
      resample: "runs" resamples runs within a budget, "residuals" adds resampled residuals to the
        fitted curve, "seeds" adds the deviations between repeated runs: of several seeds, by the
        column seed, or where the table has no column that could vary instead. "auto" takes seeds
        where sizes were repeated, runs where every profile has twelve or more, and residuals
        otherwise.
      noise: standard deviation of a run's loss, if it is known: then draws add normal noise of it
        to the measured losses.
      correct_bias: subtract from each minimum the shift that the parabola has on the surface of
        Approach 3 fitted to the same table (`vertex_bias`).
      budget_tolerance: runs whose FLOPs differ by less than this fraction share a budget.
      redrawn: the noise of every draw, given for each row of the table, in place of `bootstrap`
        draws of noise found here. Fits that are given the same have paired draws.

    Returns:
      `parameters` and `draws` a, b, k_N, k_D. In `details`:
        "profiles": one `Profile` a budget;
        "frontier": the minima that were used, columns flops, n_opt, d_opt, loss, log_std;
        "frontier_loss": {"parameters", "draws"} of L = L_inf + (C_c / C)^alpha_C through the
          minima, names alpha_C, C_c, L_inf (draws [K], not paired with those of a and k_N), and
          "covariance" of their losses [budget, budget];
        "scatter": standard deviations of the minima about both laws, {"log_n": of ln N_opt,
          "loss": in nats}; NaN where there are too few budgets.

    Raises:
      TableError: the table cannot be used at all. A table with fewer than two usable profiles
        still gives a result: without exponents, and with warnings that say why.
    """
    _check(method, window, min_points)
    runs, flops, points = read_budgets(Table.read(table, columns), budget_tolerance)
    rng = np.random.default_rng(seed)
    read = _reader(runs, points, np.log(flops), method, min_points, noise, resample, correct_bias)
    asked, notes = read(window), []
    if redrawn is not None:
        asked, bootstrap = _with_noise(asked, redrawn), len(redrawn)
    elif bootstrap and noise is None and not asked.noise.measured:
        bootstrap, notes = 0, [_NOISE_UNKNOWN]
    if method == "akima":
        at, loss = draws_of.draw_splines(points, asked.fits, asked.noise, bootstrap, rng)
    else:
        others = [read(factor) for factor in draws_of.WINDOWS if factor != window and bootstrap]
        at, loss = _draws(points, np.log(flops), asked, others, bootstrap, rng, correct_bias)
    profiles = [
        _profile(c, p, u, fit, x, y, level, method)
        for c, p, u, fit, x, y in zip(flops, points, asked.used, asked.fits, at, loss, strict=True)
    ]
    warnings = [*runs.warnings, *notes, *_profile_warnings(profiles)]
    weighted = method == "akima" if weighted is None else weighted
    how = _method_name(asked.noise, method) if bootstrap else "none"
    return _result(runs, profiles, asked.fits, method, how, weighted, level, rng, warnings)


def redraw_losses(
    table: Any,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    window: float | None = _WINDOW,
    columns: Any = None,
) -> Redrawn | None:
    """The losses of a table of IsoFLOP profiles, drawn again for several fits of the same runs.

    The noise is that of `fit_isoflop`: of repeated seeds where sizes were repeated, else of the residuals
    of the parabolas. None where nothing tells it.

    Raises:
      TableError: the table has no profiles.
    """
    table = Table.read(table, columns)
    runs, flops, points = read_budgets(table, BUDGET_TOLERANCE)

    def noise_of(resample: Resample) -> Noise:
        read = _reader(runs, points, np.log(flops), "parabola", MIN_POINTS, None, resample, False)
        return read(window).noise

    noise = noise_of("auto")
    if noise.kind == "runs":
        # Whole runs have no deviations that a run of another budget could take.
        noise = noise_of("residuals")
    if not noise.measured or noise.pool is None or noise.pool_rows is None:
        return None
    scale = np.zeros(table.n_rows)
    for p, own in zip(points, noise.scales, strict=True):
        scale[p.row - 1] = own
    rng = np.random.default_rng(seed)
    return Redrawn.of_pool(noise.pool, noise.pool_rows - 1, scale, draws, rng)


def _reader(
    runs: Runs,
    points: list[Points],
    log_flops: np.ndarray,
    method: str,
    min_points: int,
    noise: float | Callable[[np.ndarray], np.ndarray] | None,
    resample: Resample,
    correct_bias: bool,
) -> Callable[[float | None], Reading]:
    """A function that fits all profiles within a window."""

    def read(factor: float | None) -> Reading:
        used = [in_window(p, factor if method == "parabola" else None) for p in points]
        fits = [parabola(p, u, min_points) for p, u in zip(points, used, strict=True)]
        if method == "akima":
            fits = [akima(p, fit, min_points) for p, fit in zip(points, fits, strict=True)]
        how = draws_of.noise_of(points, used, fits, noise, resample, method)
        if method == "parabola":
            fits = borrow_curvature(points, fits, how.typical(), log_flops)
        if correct_bias:
            fits = without_bias(runs, points, used, fits)
        return Reading(used, fits, how)

    return read


def _check(method: str, window: float | None, min_points: int) -> None:
    if window is not None and window <= 1:
        raise FitError(f"window must be a factor above 1 (or none for all sizes), not {window!r}")
    if min_points < 3:
        raise FitError(
            f"a parabola needs 3 points: min points must be at least 3, not {min_points}"
        )
    if method not in ("parabola", "akima"):
        raise FitError(f"method must be parabola or akima, not {method!r}")


def unusable_profiles(result: FitResult, min_points: int = MIN_POINTS) -> str:
    """Why a fit by `fit_isoflop` has no exponents, in a line; "" if it has them."""
    if result.exponents:
        return ""
    profiles = result.details["profiles"]
    sizes = [len(np.unique(profile.params.round(6))) for profile in profiles]
    enough = [profile for profile, size in zip(profiles, sizes, strict=True) if size >= min_points]
    budgets = f"{len(profiles)} budget{'s' * (len(profiles) != 1)}"
    if len(enough) < 2:
        how_many = "no budget has" if not enough else "only one budget has"
        found = f"{how_many} {min_points} sizes (of {budgets}, the most has {max(sizes)})"
    else:
        reasons = "; ".join(
            f"{profile.flops:.3g}: {profile.reason}" for profile in profiles if not profile.ok
        )
        usable = sum(profile.ok for profile in profiles)
        found = f"{usable} of {budgets} have a usable profile and a power law needs 2 ({reasons})"
    return found


def window_spread(
    table: Any,
    windows: Sequence[float | None] = (2.0, 3.0, 4.0, 6.0, 8.0, 16.0, None),
    **options: Any,
) -> dict[str, dict[str, float]]:
    """The exponent a under several windows and under Akima: how much the choice matters.

    Returns:
      window (or "akima") -> {"N": a, "D": b, "profiles": number used}; windows in which fewer
      than two profiles are usable are left out.
    """
    table = Table.read(table, options.pop("columns", None))
    options = {"bootstrap": 0, **options}
    spread = {}
    choices: list[tuple[str, dict[str, Any]]] = [
        ("all" if w is None else f"{w:g}x", {"window": w}) for w in windows
    ]
    for name, choice in [*choices, ("akima", {"method": "akima", "weighted": False})]:
        result = fit_isoflop(table, **{**options, **choice})
        if result.exponents:
            exponents = next(iter(result.exponents.values()))
            spread[name] = {**exponents, "profiles": len(result.details["frontier"]["flops"])}
    return spread


def exponents_again(table: Any, losses: np.ndarray) -> np.ndarray:
    """The exponent a of `fit_isoflop` [draw] for other losses of the same runs [draw, row of the table].

    Only what the value depends on is made again, so that a draw takes a fraction of a fit. NaN where fewer
    than two profiles are usable, or a draw's runs do not determine a parabola.

    Raises:
      TableError: the table has no profiles.
    """
    _, flops, points = read_budgets(Table.read(table), BUDGET_TOLERANCE)
    found = np.full(len(losses), math.nan)
    for k, own in enumerate(losses):
        again = [dataclasses.replace(p, loss=own[p.row - 1]) for p in points]
        with contextlib.suppress(np.linalg.LinAlgError):
            found[k] = _exponent(again, np.log(flops))
    return found


def _exponent(points: list[Points], log_flops: np.ndarray) -> float:
    """The exponent a by parabolas, without draws."""
    used = [in_window(p, _WINDOW) for p in points]
    fits = [parabola(p, u, MIN_POINTS) for p, u in zip(points, used, strict=True)]
    if lacks_minima(fits):
        noise = draws_of.noise_of(points, used, fits, None, "auto", "parabola")
        fits = borrow_curvature(points, fits, noise.typical(), log_flops)
    ok = np.array([fit.ok for fit in fits])
    at = np.array([fit.center + fit.minimum for fit in fits if fit.ok])
    slope, _ = frontier.line(log_flops[ok], at[:, None], np.ones((len(at), 1)))
    return float(slope[0])


def _with_noise(asked: Reading, redrawn: Redrawn) -> Reading:
    """The reading with its noise given."""
    return dataclasses.replace(
        asked, noise=dataclasses.replace(asked.noise, given=redrawn.deviation)
    )


def _draws(
    points: list[Points],
    log_flops: np.ndarray,
    asked: Reading,
    others: list[Reading],
    n_draws: int,
    rng: np.random.Generator,
    corrected: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """ln N and loss [budget, draw] at the minima of parabolas, with noise, shape and window drawn.

    Args:
      corrected: the minima were corrected for the shape of the profile, so no other shape is drawn.
    """
    shifts = [
        draws_of.window_shift(points, asked, other, log_flops)
        for other in others
        if any(not np.array_equal(u, v) for u, v in zip(asked.used, other.used, strict=True))
    ]
    which = draws_of.choose_windows(len(shifts), n_draws, rng)
    plain = np.ones(n_draws, bool) if corrected else draws_of.plain_draws(which, rng)
    at, loss = draws_of.draw_minima(
        points, asked.used, asked.fits, asked.noise, log_flops, plain, rng
    )
    ok = np.array([fit.ok for fit in asked.fits])[:, None]
    at, loss = np.where(ok, at, np.nan), np.where(ok, loss, np.nan)
    return draws_of.with_windows(at, loss, shifts, which)


def _method_name(noise: Noise, method: str) -> str:
    if method == "akima":
        return f"{noise.name}, and scatter of the minima about the law"
    return f"{noise.name}, with windows, profile shapes and scatter about the law drawn"


def _profile(
    flops: float,
    p: Points,
    used: np.ndarray,
    fit: ProfileFit,
    at_draws: np.ndarray,
    loss_draws: np.ndarray,
    level: float,
    method: str,
) -> Profile:
    tokens_draws = fit.tokens[0] + fit.tokens[1] * (at_draws - fit.center)
    draws = np.stack([at_draws, tokens_draws, loss_draws])
    common = {
        "flops": float(flops),
        "row": p.row,
        "params": np.exp(p.x),
        "tokens": np.exp(p.log_tokens),
        "loss": p.loss,
        "used": np.ones(len(p.x), bool) if method == "akima" else used,
        "flag": fit.flag,
        "reason": fit.reason,
        "center": fit.center,
        "coefficients": fit.coefficients,
        "draws": draws,
    }
    if not fit.ok:
        return Profile(**common)
    at = fit.center + fit.minimum - fit.shift
    tokens = fit.tokens[0] + fit.tokens[1] * (at - fit.center)
    loss, log_std = fit.loss, math.nan
    found = np.isfinite(draws[0])
    if found.sum() > 1:
        log_std = float(np.std(draws[0][found]))
        if method == "akima":
            # Porian et al. 2024: the median of the draws is the estimate, and its standard
            # deviation is no less than a third of the distance between sizes.
            at, tokens, loss = np.median(draws[:, found], axis=1)
            spacing = (p.x[-1] - p.x[0]) / max(1, len(np.unique(p.x.round(9))) - 1)
            log_std = max(log_std, _AKIMA_LEAST_STD * spacing) / found.mean()
    n_low, n_high = interval(draws[0], level)
    d_low, d_high = interval(draws[1], level)
    return Profile(
        **common,
        n_opt=math.exp(at),
        d_opt=math.exp(tokens),
        loss_opt=float(loss),
        n_interval=(math.exp(n_low), math.exp(n_high)),
        d_interval=(math.exp(d_low), math.exp(d_high)),
        loss_interval=interval(draws[2], level),
        log_std=log_std,
    )


def _profile_warnings(profiles: list[Profile]) -> list[str]:
    warnings = []
    for profile in profiles:
        lost = np.mean(~np.isfinite(profile.draws[0])) if profile.draws.size else 0.0
        if not profile.ok:
            warnings.append(f"budget {profile.flops:.3g} left out: {profile.reason}")
        elif profile.reason:
            warnings.append(f"budget {profile.flops:.3g}: {profile.reason}")
        elif profile.params[np.argmin(profile.loss)] in (profile.params[0], profile.params[-1]):
            warnings.append(
                f"budget {profile.flops:.3g}: the lowest loss is at the edge of its sizes"
            )
        elif lost > 0.05:
            warnings.append(f"budget {profile.flops:.3g}: {lost:.0%} of draws have no minimum")
    return warnings


def _result(
    runs: Runs,
    profiles: list[Profile],
    fits: list[ProfileFit],
    method: str,
    interval_method: str,
    weighted: bool,
    level: float,
    rng: np.random.Generator,
    warnings: list[str],
) -> FitResult:
    good = [profile for profile in profiles if profile.ok]
    columns = {
        "flops": np.array([p.flops for p in good]),
        "n_opt": np.array([p.n_opt for p in good]),
        "d_opt": np.array([p.d_opt for p in good]),
        "loss": np.array([p.loss_opt for p in good]),
        "log_std": np.array([p.log_std for p in good]),
    }
    parameters: dict[str, float] = {}
    draws: dict[str, np.ndarray] = {}
    intervals: dict[str, tuple[float, float]] = {}
    more: dict[str, Any] = {}
    exponents, exponent_intervals = {}, {}
    if len(good) < 2:
        warnings.append(
            f"{len(good)} usable profile{'s' * (len(good) != 1)}, so no exponents: "
            f"a power law needs two"
        )
    else:
        slopes = np.array([fit.tokens[1] for fit in fits if fit.ok])
        parameters, draws, more = frontier.fit_power_laws(
            columns,
            np.stack([p.draws for p in good], axis=1),
            slopes,
            weighted=weighted,
            rng=rng,
            warnings=warnings,
        )
        intervals = {name: interval(values, level) for name, values in draws.items()}
        exponents = {runs.convention: {"N": parameters["a"], "D": parameters["b"]}}
        if intervals:
            exponent_intervals = {runs.convention: {"N": intervals["a"], "D": intervals["b"]}}
    fitted = _residuals(profiles)
    return FitResult(
        law="isoflop",
        parameters=parameters,
        intervals=intervals,
        interval_method=interval_method,
        level=level,
        objective=float(np.sum(fitted["residual"] ** 2)),
        objective_name="sum of squared residuals of the loss about the profiles",
        converged=len(good) >= 2,
        n_used=len(fitted["row"]),
        dropped=runs.dropped,
        exponents=exponents,
        exponent_intervals=exponent_intervals,
        warnings=tuple(warnings),
        residuals=fitted,
        ranges={
            name: (float(runs[name].min()), float(runs[name].max()))
            for name in ("params", "tokens", "flops")
        },
        draws=draws,
        details={"method": method, "profiles": tuple(profiles), "frontier": columns, **more},
    )


def _residuals(profiles: list[Profile]) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = {
        name: [np.empty(0)]
        for name in ("row", "flops", "params", "observed", "predicted", "residual")
    }
    for p in profiles:
        if p.coefficients is None and not p.ok:
            continue
        observed, size = p.loss[p.used], p.params[p.used]
        if p.coefficients is None:
            _, where = np.unique(np.log(size).round(9), return_inverse=True)
            predicted = (np.bincount(where, observed) / np.bincount(where))[where]
        else:
            predicted = p.curve(size)
        parts["row"].append(p.row[p.used].astype(float))
        parts["flops"].append(np.full(len(size), p.flops))
        parts["params"].append(size)
        parts["observed"].append(observed)
        parts["predicted"].append(predicted)
        parts["residual"].append(observed - predicted)
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    return {**columns, "row": columns["row"].astype(int)}
