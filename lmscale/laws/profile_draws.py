"""Draws of the minima of IsoFLOP profiles: the noise of the runs, the window, and the shape.

A minimum is uncertain for three reasons, and every draw has one value of each:

- noise: the losses are drawn again from runs, residuals or repeated seeds (`noise_of`);
- the window: another analyst might have fitted half or twice the range, or all sizes (`WINDOWS`). So
  some draws move to the minima of those windows, as far as these differ by more than noise
  (`window_shift`);
- the shape: a profile is a parabola only near its minimum. On L = E + A/N^alpha + B/D^beta the loss
  about it is c2 (u^2 + rho u^3 + q u^4 + ...) with u = ln N - ln N_opt, rho = (beta - alpha)/3 and
  q = (alpha^2 - alpha beta + beta^2)/12. rho and q are drawn from what the residuals of all budgets
  allow (`shape_posterior`). This covers the bias of an off-centre window.

The scatter of the minima about the power law is in `lmscale.laws.frontier`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy.special import digamma

from lmscale.laws.profiles import (
    Points,
    ProfileFit,
    akima_minima,
    mean_by_size,
    read_minima,
    share_curvature,
)
from lmscale.laws.quantiles import normal_quantile, student_quantile
from lmscale.laws.result import FitError

__all__ = [
    "WINDOWS",
    "Noise",
    "Reading",
    "Resample",
    "choose_windows",
    "draw_minima",
    "draw_splines",
    "noise_of",
    "plain_draws",
    "shape_posterior",
    "window_shift",
    "with_windows",
]

Resample = Literal["auto", "runs", "residuals", "seeds"]

#: Windows of some draws, in addition to the one asked for, and the share of the draws for each.
WINDOWS = (2.0, 4.0, 8.0, None)
_WINDOW_SHARE = 0.2
#: The prior of rho is normal about 0 with this standard deviation. Published surfaces have
#: |beta - alpha| up to 0.06, so |rho| up to 0.02. The prior allows a difference of 0.24 at 95%.
_SKEW = 0.04
#: Prior mean and standard deviation of q: exponents of about 0.3, and of up to 0.5.
_QUARTIC = (0.008, 0.006)
#: Share of the draws in the window asked for that take the profile as a parabola, whatever the
#: residuals say. The value itself is computed so, and has to lie in its interval.
_PLAIN_SHARE = 0.3
#: Fewest runs of a profile for resampling whole runs; with fewer, draws lose their curvature.
_RUNS_FOR_PAIRS = 12
#: Prior degrees of freedom with which the noise of a profile is shrunk towards that of all profiles.
_PRIOR_DOF = 4.0


@dataclass(frozen=True)
class Noise:
    """How losses are drawn again; `scales` are standard deviations, one array [run] per budget."""

    kind: str
    name: str
    scales: list[np.ndarray]
    #: Standardised deviations to draw from (None: normal).
    pool: np.ndarray | None = None
    #: False where neither residuals nor repeats show how large the noise is.
    measured: bool = True
    #: Rows of the table that the entries of `pool` are of.
    pool_rows: np.ndarray | None = None
    #: [draw, row of the table] what draws add to the losses, in place of noise of their own.
    given: np.ndarray | None = None

    def typical(self) -> list[float]:
        """One standard deviation per budget."""
        return [float(np.sqrt(np.mean(scale**2))) for scale in self.scales]


@dataclass(frozen=True)
class Reading:
    """The profiles of all budgets in one window."""

    used: list[np.ndarray]
    fits: list[ProfileFit]
    noise: Noise


def noise_of(
    points: Sequence[Points],
    used: Sequence[np.ndarray],
    fits: Sequence[ProfileFit],
    noise: Any,
    resample: Resample,
    method: str,
) -> Noise:
    """The noise of the runs: as given, from repeated seeds, or from the residuals of the parabolas.

    Args:
      noise: standard deviation of a run's loss, or a function from losses to it; None measures it.

    Raises:
      FitError: `resample` is unknown, or asks for seeds where there are none.
    """
    if noise is not None:
        sigma = noise if callable(noise) else (lambda loss: np.full(len(loss), float(noise)))
        scales = [np.asarray(sigma(p.loss), float) for p in points]
        return Noise("noise", "bootstrap: normal noise of the given size", scales)
    if resample not in ("auto", "runs", "residuals", "seeds"):
        raise FitError(f"resample must be auto, runs, residuals or seeds, not {resample!r}")
    deviations = [_seed_deviations(p, u) for p, u in zip(points, used, strict=True)]
    repeats = sum(dof for _, _, dof in deviations)
    if resample == "auto":
        fitted = [u.sum() for u, fit in zip(used, fits, strict=True) if fit.ok]
        if repeats >= 5:
            resample = "seeds"
        elif fitted and min(fitted) >= _RUNS_FOR_PAIRS and method == "parabola":
            resample = "runs"
        else:
            resample = "residuals"
    if resample == "seeds":
        if repeats < 1:
            raise FitError(
                "resample seeds needs sizes that were run with several seeds at a budget: the same "
                "size, budget and settings, told apart by a column seed"
            )
        parts, rows, dofs = (list(values) for values in zip(*deviations, strict=True))
        name = "bootstrap over seeds"
    else:
        parts = [
            np.empty(0)
            if f.residual is None or f.leverage is None
            else f.residual / np.sqrt(np.maximum(1 - f.leverage, 0.05))
            for f in fits
        ]
        rows = [p.row[u][: len(part)] for p, u, part in zip(points, used, parts, strict=True)]
        dofs = [0 if f.residual is None else max(0, len(f.residual) - 3) for f in fits]
        name = "bootstrap over residuals, pooled over budgets"
    if resample == "runs":
        name = "bootstrap over runs within each budget"
    scales, pool, pool_rows = _scales(points, parts, rows, dofs)
    if resample == "runs":
        return Noise(resample, name, scales, measured=sum(dofs) > 0)
    return Noise(resample, name, scales, pool, sum(dofs) > 0, pool_rows)


def _scales(
    points: Sequence[Points], parts: list[np.ndarray], rows: list[np.ndarray], dofs: list[int]
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The standard deviation of each budget, shrunk towards that of all; pooled deviations; their rows."""
    pooled = _typical_variance(
        [(np.mean(x**2), dof) for x, dof in zip(parts, dofs, strict=True) if dof]
    )
    # With few degrees of freedom the noise itself is uncertain: Student's t in place of a normal.
    widen = float(student_quantile(0.975, max(2, sum(dofs))) / normal_quantile(0.975))
    scales = []
    for part, dof, p in zip(parts, dofs, points, strict=True):
        own = dof * np.mean(part**2) if dof else 0.0
        variance = (own + _PRIOR_DOF * pooled) / (dof + _PRIOR_DOF)
        scales.append(np.full(len(p.x), widen * math.sqrt(variance)))
    told = [k for k, part in enumerate(parts) if dofs[k] and np.mean(part**2) > 0]
    pool, pool_rows = np.zeros(1), np.zeros(1, int)
    if told:
        pool = np.concatenate([parts[k] / math.sqrt(np.mean(parts[k] ** 2)) for k in told])
        pool_rows = np.concatenate([rows[k] for k in told])
    pool = pool - pool.mean()
    spread = pool.std()
    return scales, pool / spread if spread > 0 else pool, pool_rows


def _typical_variance(variances: list[tuple[float, int]]) -> float:
    """Geometric mean of estimated variances, corrected for the mean of the logarithm of chi^2.

    Budgets differ in noise and in how well a parabola fits them. The geometric mean keeps one bad
    profile from setting the noise of all.
    """
    logs = [
        math.log(variance) - float(digamma(dof / 2)) + math.log(dof / 2)
        for variance, dof in variances
        if variance > 0
    ]
    dofs = [dof for variance, dof in variances if variance > 0]
    return math.exp(np.average(logs, weights=dofs)) if logs else 0.0


def _seed_deviations(p: Points, used: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Deviations of repeated runs from their mean, scaled to the variance of a run; rows; and dof.

    Repeats differ in their seed only. If a size has two runs of one seed, something else was varied
    (a learning rate, a batch), and that is no noise.
    """
    if p.seed is None:
        return np.empty(0), np.empty(0, int), 0
    x, loss, seed = p.x[used].round(9), p.loss[used], p.seed[used]
    setting = np.zeros(len(p.x)) if p.setting is None else p.setting
    parts, rows, dof = [np.empty(0)], [np.empty(0, int)], 0
    for size in np.unique(x):
        same = x == size
        alike = len(np.unique(setting[used][same])) == 1
        if same.sum() > 1 and alike and len(np.unique(seed[same])) == same.sum():
            deviation = loss[same] - loss[same].mean()
            parts.append(deviation * math.sqrt(same.sum() / (same.sum() - 1)))
            rows.append(p.row[used][same])
            dof += int(same.sum()) - 1
    return np.concatenate(parts), np.concatenate(rows), dof


def window_shift(
    points: Sequence[Points], asked: Reading, other: Reading, log_flops: np.ndarray
) -> np.ndarray:
    """How far ln N_opt and the loss there move if another window is read [2, budget], corrected for noise.

    The two windows share most of their runs, yet noise alone makes their readings differ. Let s be the
    share of their mean square difference, over all budgets, that noise explains. The shift of a budget is
    1 - s^2 times the difference between its two readings. If noise explains the whole difference, the
    shift is 0. A budget whose minimum the other window does not show takes its shift from the line through
    the shifts of the other budgets.
    """
    moved = np.full((2, len(points)), np.nan)
    explained = np.zeros_like(moved)
    for k, p in enumerate(points):
        one, two = asked.fits[k], other.fits[k]
        if one.ok and two.ok:
            moved[0, k] = (two.center + two.minimum - two.shift) - (
                one.center + one.minimum - one.shift
            )
            moved[1, k] = two.loss - one.loss
            gradient = _gradient(p, other.used[k], two) - _gradient(p, asked.used[k], one)
            explained[:, k] = (gradient * asked.noise.scales[k]) ** 2 @ np.ones(len(p.x))
    found = np.isfinite(moved[0])
    if not found.any():
        return np.zeros_like(moved)
    for row, noise in zip(moved, explained, strict=True):
        if found.sum() > 1 and not found.all():
            row[~found] = np.polyval(np.polyfit(log_flops[found], row[found], 1), log_flops[~found])
        row[~np.isfinite(row)] = 0.0
        total = np.mean(row[found] ** 2)
        real = max(0.0, 1 - (np.mean(noise[found]) / total) ** 2) if total > 0 else 0.0
        np.multiply(row, real, out=row)
    return moved


def _gradient(p: Points, used: np.ndarray, fit: ProfileFit) -> np.ndarray:
    """Derivatives [2, run] of u and loss at the minimum of a parabola by the losses of all runs."""
    full = np.zeros((3, len(p.x)))
    full[:, used] = fit.solve
    u, c2 = fit.minimum, fit.curvature
    return np.stack(
        [-(full[1] + 2 * u * full[2]) / (2 * c2), full[0] + u * full[1] + u**2 * full[2]]
    )


def choose_windows(n_others: int, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """[draw]: 0 for the window asked for, 1 to `n_others` for another."""
    shares = [1 - _WINDOW_SHARE * n_others, *[_WINDOW_SHARE] * n_others]
    return rng.choice(n_others + 1, size=n_draws, p=shares)


def plain_draws(which: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which draws [draw] take the profile as a parabola; all draws in another window do."""
    return (which > 0) | (rng.random(len(which)) < _PLAIN_SHARE)


def with_windows(
    at: np.ndarray, loss: np.ndarray, shifts: Sequence[np.ndarray], which: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draws [budget, draw], each moved by the shift of its window (`window_shift`)."""
    choices = np.stack([np.zeros((2, len(at))), *shifts])[which]
    return at + choices[:, 0].T, loss + choices[:, 1].T


def draw_splines(
    points: Sequence[Points],
    fits: Sequence[ProfileFit],
    noise: Noise,
    n_draws: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """ln N and loss [budget, draw] at the minima of Akima splines through losses drawn again."""
    at, loss = (np.full((len(fits), n_draws), np.nan) for _ in range(2))
    for k, (p, fit, scale) in enumerate(zip(points, fits, noise.scales, strict=True)):
        if fit.ok and n_draws:
            sizes, drawn = mean_by_size(p.x, _losses(p.loss, p.row, noise, scale, n_draws, rng))
            at[k], loss[k] = akima_minima(sizes, drawn)
    return at, loss


def draw_minima(
    points: Sequence[Points],
    used: Sequence[np.ndarray],
    fits: Sequence[ProfileFit],
    noise: Noise,
    log_flops: np.ndarray,
    plain: np.ndarray,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """ln N and loss [budget, draw] at the minima of parabolas; NaN where there is none.

    Args:
      points, used, fits: of each budget, in one window.
      log_flops: [budget].
      plain: [draw], the draws without terms of third and fourth order.
    """
    n_draws = len(plain)
    at, loss = (np.full((len(fits), n_draws), np.nan) for _ in range(2))
    fitted = [k for k, fit in enumerate(fits) if fit.coefficients is not None]
    if not fitted or not n_draws:
        return at, loss
    coefficients = np.stack(
        [_coefficients(points[k], used[k], fits[k], noise, k, n_draws, rng) for k in fitted], axis=1
    )
    typical = noise.typical()
    covariance = np.stack([fits[k].covariance(typical[k]) for k in fitted])
    edges = np.array([points[k].x[[0, -1]] - fits[k].center for k in fitted])
    log_flops = np.asarray(log_flops)[fitted]

    def minima(drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shared, _ = share_curvature(drawn, covariance, log_flops, edges)
        return *read_minima(shared, edges), shared[2]

    u, value, c2 = minima(coefficients)
    mean, open_shape = shape_posterior(points, used, fits, noise)
    skew, quartic = rng.multivariate_normal(mean, open_shape, size=n_draws).T
    skew, quartic = np.where(plain, 0.0, skew), np.where(plain, 0.0, np.maximum(quartic, 0.0))
    # The effect of the higher orders on the fitted coefficients depends on the minimum itself.
    for _ in range(3):
        extra = [
            c2[i]
            * (
                fits[k].solve
                @ _higher_orders(points[k].x[used[k]] - fits[k].center, u[i], skew, quartic)
            )
            for i, k in enumerate(fitted)
        ]
        u, value, c2 = minima(coefficients - np.nan_to_num(np.stack(extra, axis=1)))
    for i, k in enumerate(fitted):
        at[k] = u[i] + fits[k].center - fits[k].shift
        loss[k] = value[i]
    return at, loss


def shape_posterior(
    points: Sequence[Points],
    used: Sequence[np.ndarray],
    fits: Sequence[ProfileFit],
    noise: Noise,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean [2] and covariance [2, 2] of (rho, q), which all budgets share.

    The prior is normal. The data are the residuals of the parabolas: the part of c2 (rho d^3 + q d^4)
    that a parabola cannot fit, compared with the noise of the runs.
    """
    precision = np.diag([_SKEW**-2.0, _QUARTIC[1] ** -2.0])
    right = precision @ np.array([0.0, _QUARTIC[0]])
    for p, u, fit, scale in zip(points, used, fits, noise.typical(), strict=True):
        if not fit.ok or fit.solve is None or fit.residual is None:
            continue
        x = p.x[u] - fit.center
        d = x - fit.minimum
        orders = fit.curvature * np.stack([d**3, d**4], axis=1)
        design = np.stack([np.ones_like(x), x, x * x], axis=1)
        left = orders - design @ (fit.solve @ orders)
        # Without noise the residuals are rounding errors.
        variance = max(scale, 1e-9 * float(np.mean(p.loss))) ** 2
        precision = precision + left.T @ left / variance
        right = right + left.T @ fit.residual / variance
    covariance = np.linalg.inv(precision)
    return covariance @ right, covariance


def _higher_orders(
    sizes: np.ndarray, minimum: np.ndarray, skew: np.ndarray, quartic: np.ndarray
) -> np.ndarray:
    """[run, draw]: rho d^3 + q d^4, d the distance from the minimum in ln N."""
    d = sizes[:, None] - minimum
    return d**3 * (skew + quartic * d)


def _losses(
    base: np.ndarray,
    row: np.ndarray,
    noise: Noise,
    scale: np.ndarray,
    n_draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """[draw, run]: `base` of the table's rows `row`, with deviations added."""
    if noise.given is not None:
        return base + noise.given[:, row - 1]
    size = (n_draws, len(base))
    pool = noise.pool
    deviation = rng.standard_normal(size) if pool is None else rng.choice(pool, size=size)
    return base + deviation * scale


def _coefficients(
    p: Points,
    used: np.ndarray,
    fit: ProfileFit,
    noise: Noise,
    k: int,
    n_draws: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Coefficients [3, draw] of parabolas through losses that were drawn again."""
    u, y = p.x[used] - fit.center, p.loss[used]
    if noise.kind == "runs" and noise.given is None:
        return _resampled_parabolas(u, y, p.weight[used], n_draws, rng)
    base = y
    if noise.kind == "residuals":
        base = y - fit.residual
    return fit.solve @ _losses(base, p.row[used], noise, noise.scales[k][used], n_draws, rng).T


def _resampled_parabolas(
    u: np.ndarray, y: np.ndarray, w: np.ndarray, n_draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Coefficients [3, draw] for runs drawn with replacement, with at least four sizes in a draw."""
    n = len(u)
    sizes, where = np.unique(u.round(9), return_inverse=True)
    least = min(4, len(sizes))
    member = np.eye(len(sizes))[where]
    counts = rng.multinomial(n, np.full(n, 1 / n), size=n_draws)
    for _ in range(50):
        poor = ((counts @ member) > 0).sum(axis=1) < least
        if not poor.any():
            break
        counts[poor] = rng.multinomial(n, np.full(n, 1 / n), size=int(poor.sum()))
    design = np.stack([np.ones_like(u), u, u * u], axis=1)
    weights = counts * w
    normal = np.einsum("bn,ni,nj->bij", weights, design, design)
    right = np.einsum("bn,ni,n->bi", weights, design, y)
    return np.linalg.solve(normal, right[..., None])[..., 0].T
