"""One budget's profile of loss against model size: its window, its parabola or spline, its minimum.

The minimum of a profile may lie outside of its sizes, because of noise or because the grid is off
centre. Where this leaves too few budgets for a power law, `borrow_curvature` also reads minima that
lie close outside, with the curvature that the budgets share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.interpolate import Akima1DInterpolator

from lmscale.laws.table import Runs, Table

__all__ = [
    "Points",
    "Profile",
    "ProfileFit",
    "akima",
    "akima_minima",
    "borrow_curvature",
    "in_window",
    "lacks_minima",
    "mean_by_size",
    "parabola",
    "points_of",
    "read_minima",
    "seeds_of",
    "share_curvature",
]

#: Points of the spline between two neighbouring runs (Porian et al. 2024).
_AKIMA_POINTS = 25
#: With this many minima inside of the sizes, none outside is needed.
_ENOUGH_INSIDE = 3
#: A minimum is still found up to this share of the range of the sizes (in ln N) beyond an edge.
_OUTSIDE = 0.25
#: The same for a draw. Beyond it the minimum is that of a nearly flat parabola, and can be anywhere.
_OUTSIDE_DRAW = 1.0
#: The curvature of a profile is (alpha + beta) / 2 times the slope of its two terms. So it falls with
#: compute as the reducible loss does: as C^-0.05 to C^-0.18 in published laws.
_CURVATURE_EXPONENT = 0.12
#: Relative scatter of the curvatures of budgets about this trend.
_CURVATURE_SCATTER = 0.3


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One budget's curve of loss against model size, and its minimum.

    Points are sorted by size. A parabola is loss = c0 + c1 u + c2 u^2 with u = ln N - center and
    `coefficients` = (c0, c1, c2); a spline has no coefficients. `flag` is "ok", "few points", "not
    convex" or "no interior minimum", and `reason` explains it; only "ok" profiles enter the frontier.
    An "ok" profile with a `reason` has its minimum just outside of its sizes (`borrow_curvature`).
    """

    flops: float
    row: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    #: Which points lie in the window, and were fitted.
    used: np.ndarray
    flag: str
    reason: str
    center: float = math.nan
    coefficients: tuple[float, float, float] | None = None
    n_opt: float = math.nan
    d_opt: float = math.nan
    loss_opt: float = math.nan
    n_interval: tuple[float, float] = (math.nan, math.nan)
    d_interval: tuple[float, float] = (math.nan, math.nan)
    loss_interval: tuple[float, float] = (math.nan, math.nan)
    #: Standard deviation of ln n_opt over the draws.
    log_std: float = math.nan
    #: [3, draws]: ln N, ln D and loss at the minimum. They vary by the noise of the runs, the choice of
    #: the window and the unknown shape of the profile, but not by the scatter about the power law.
    draws: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)

    @property
    def ok(self) -> bool:
        return self.flag == "ok"

    def curve(self, n_params: Any) -> np.ndarray:
        """The fitted loss at the given sizes."""
        if self.coefficients is None:
            spline = Akima1DInterpolator(np.log(self.params[self.used]), self.loss[self.used])
            return spline(np.log(n_params))
        c0, c1, c2 = self.coefficients
        u = np.log(n_params) - self.center
        return c0 + c1 * u + c2 * u * u


@dataclass(frozen=True)
class Points:
    """One budget's runs, sorted by size.

    `seed` identifies repeated runs; None where nothing shows that runs are repeats. Runs that differ in
    `setting` are not repeats.
    """

    x: np.ndarray  # ln N
    log_tokens: np.ndarray
    loss: np.ndarray
    weight: np.ndarray
    row: np.ndarray
    seed: np.ndarray | None = None
    setting: np.ndarray | None = None


@dataclass(frozen=True)
class ProfileFit:
    """The parabola (or spline) of a profile and its minimum; see `Profile` for `flag` and `reason`."""

    flag: str
    reason: str
    center: float = math.nan
    coefficients: tuple[float, float, float] | None = None
    #: ln N - center at the minimum.
    minimum: float = math.nan
    loss: float = math.nan
    #: ln D at the center, and its slope in ln N.
    tokens: tuple[float, float] = (math.nan, math.nan)
    residual: np.ndarray | None = None
    leverage: np.ndarray | None = None
    #: [3, runs]: the linear map from losses to coefficients.
    solve: np.ndarray | None = None
    #: What `correct_bias` subtracts from ln N.
    shift: float = 0.0

    @property
    def ok(self) -> bool:
        return self.flag == "ok"

    @property
    def curvature(self) -> float:
        """c2 of a parabola."""
        assert self.coefficients is not None, "a spline has no coefficients"
        return self.coefficients[2]

    def covariance(self, noise: float) -> np.ndarray:
        """[3, 3] of a parabola's coefficients, for losses with this standard deviation."""
        assert self.solve is not None, "a spline has no coefficients"
        return noise**2 * self.solve @ self.solve.T


def points_of(runs: Runs, index: np.ndarray, seed: np.ndarray | None = None) -> Points:
    """The runs at `index`, sorted by size.

    Args:
      seed: [run], what identifies repeats (`seeds_of`).
    """
    order = index[np.argsort(runs["params"][index], kind="stable")]
    weight = runs["weight"][order] if "weight" in runs else np.ones(len(order))
    varied = [runs[name][order] for name in ("batch_tokens", "unique_tokens") if name in runs]
    varied += [runs.labels[name][order] for name in ("group",) if name in runs.labels]
    return Points(
        x=np.log(runs["params"][order]),
        log_tokens=np.log(runs["tokens"][order]),
        loss=runs["loss"][order],
        weight=weight / weight.mean(),
        row=runs.row[order],
        seed=None if seed is None else seed[order].astype(str),
        setting=np.array([" ".join(map(str, values)) for values in zip(*varied, strict=True)])
        if varied
        else None,
    )


def seeds_of(table: Table, runs: Runs) -> np.ndarray | None:
    """What identifies repeats [run]: the seed, or the row if no other column could vary; else None."""
    if "seed" in runs.labels:
        return runs.labels["seed"]
    known = {*table.numbers, *table.labels}
    plain = {"params", "tokens", "flops", "loss", "weight", "budget"}
    return runs.row if len(table.header) == len(known) and known <= plain else None


def in_window(p: Points, factor: float | None) -> np.ndarray:
    """Which runs lie within `factor` of the size of lowest loss, or are among its five nearest."""
    if factor is None:
        return np.ones(len(p.x), bool)
    distance = np.abs(p.x - p.x[np.argmin(p.loss)])
    sizes = np.unique(distance.round(9))
    reach = sizes[min(4, len(sizes) - 1)]
    return distance <= max(math.log(factor), reach) + 1e-9


def _few(p: Points, used: np.ndarray, min_points: int) -> ProfileFit | None:
    sizes = len(np.unique(p.x[used].round(9)))
    if sizes >= max(3, min_points):
        return None
    reason = f"{sizes} size{'s' * (sizes != 1)}, where {max(3, min_points)} are needed"
    return ProfileFit("few points", reason)


def parabola(p: Points, used: np.ndarray, min_points: int) -> ProfileFit:
    """Least squares of loss against ln N over the runs in the window."""
    few = _few(p, used, min_points)
    if few is not None:
        return few
    x, y, w = p.x[used], p.loss[used], p.weight[used]
    center = float(x.mean())
    design = np.stack([np.ones_like(x), x - center, (x - center) ** 2], axis=1)
    root = np.sqrt(w)
    q, r = np.linalg.qr(design * root[:, None])
    solve = np.linalg.solve(r, q.T * root)
    c0, c1, c2 = solve @ y
    slope, intercept = np.polyfit(x - center, p.log_tokens[used], 1)
    fit = ProfileFit(
        "not convex",
        "the parabola opens downwards",
        center=center,
        coefficients=(float(c0), float(c1), float(c2)),
        tokens=(float(intercept), float(slope)),
        residual=y - design @ np.array([c0, c1, c2]),
        leverage=np.sum(q**2, axis=1),
        solve=solve,
    )
    if c2 <= 0:
        return fit
    minimum = float(-c1 / (2 * c2))
    fit = dataclasses.replace(
        fit, flag="ok", reason="", minimum=minimum, loss=float(c0 - c1**2 / (4 * c2))
    )
    if not p.x[0] <= center + minimum <= p.x[-1]:
        reason = f"its minimum lies {_side(p, center + minimum)} the sizes that were run"
        return dataclasses.replace(fit, flag="no interior minimum", reason=reason)
    return fit


def _side(p: Points, at: float) -> str:
    return "below" if at < p.x[0] else "above"


def akima(p: Points, lent: ProfileFit, min_points: int) -> ProfileFit:
    """The minimum of an Akima spline in log-log. The residuals of the parabola `lent` are its noise."""
    few = _few(p, np.ones(len(p.x), bool), min_points)
    if few is not None:
        return few
    x, loss = mean_by_size(p.x, p.loss[None])
    at, values = akima_minima(x, loss)
    slope, intercept = np.polyfit(p.x - lent.center, p.log_tokens, 1)
    fit = ProfileFit(
        "no interior minimum",
        "the spline's minimum lies at the edge of the sizes that were run",
        center=lent.center,
        tokens=(float(intercept), float(slope)),
        residual=lent.residual,
        leverage=lent.leverage,
    )
    if not np.isfinite(at[0]):
        return fit
    minimum = float(at[0] - lent.center)
    return dataclasses.replace(fit, flag="ok", reason="", minimum=minimum, loss=float(values[0]))


def mean_by_size(x: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct sizes [size], and losses [draw, run] averaged to [draw, size]."""
    sizes, where = np.unique(x.round(9), return_inverse=True)
    total = np.zeros((loss.shape[0], len(sizes)))
    np.add.at(total, (slice(None), where), loss)  # type: ignore[arg-type]  # numpy's stub: no slices
    return sizes, total / np.bincount(where)


def akima_minima(x: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """ln N and loss [draw] at the minimum of each spline through losses [draw, size]; NaN at an edge."""
    grid = np.linspace(x[0], x[-1], _AKIMA_POINTS * (len(x) - 1))
    curve = Akima1DInterpolator(x, np.log(np.maximum(loss, 1e-12)).T)(grid)
    best = np.argmin(curve, axis=0)
    inside = (best > 0) & (best < len(grid) - 1)
    value = np.exp(np.take_along_axis(curve, best[None], axis=0)[0])
    return np.where(inside, grid[best], np.nan), np.where(inside, value, np.nan)


def share_curvature(
    coefficients: np.ndarray,
    covariance: np.ndarray,
    log_flops: np.ndarray,
    edges: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Moves parabolas without a minimum inside of their sizes to the curvature of all budgets.

    A convex parabola with its minimum inside is not changed. The curvature of any other one is shrunk
    towards that of all budgets, as far as its own is uncertain, and the other two coefficients follow
    (the conditional mean of a normal distribution).

    Args:
      coefficients: [3, budget, draw] of 1, u, u^2.
      covariance: [budget, 3, 3] of the coefficients, from the noise of the runs.
      log_flops: [budget].
      edges: [budget, 2], u of the smallest and of the largest size.

    Returns:
      The coefficients, and which parabolas [budget, draw] were not changed.
    """
    at = _vertex(coefficients)
    inside = (at >= edges[:, :1]) & (at <= edges[:, 1:])
    if inside.all():
        return coefficients, inside
    target, spread = _shared_curvature(coefficients[2], covariance[:, 2, 2], log_flops)
    total = covariance[:, 2, 2] + spread**2
    # Without noise the curvature is certain.
    gain = np.where(total > 0, covariance[:, :, 2].T / np.maximum(total, 1e-300), 0.0)
    moved = coefficients + gain[:, :, None] * (target - coefficients[2])
    return np.where(inside, coefficients, moved), inside


def read_minima(coefficients: np.ndarray, edges: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """u and loss [budget, draw] at the minima of parabolas [3, budget, draw].

    NaN where a parabola is not convex, or so flat that its minimum lies more than the range of the
    sizes beyond them.
    """
    at = _vertex(coefficients)
    low, high = edges[:, :1], edges[:, 1:]
    reach = _OUTSIDE_DRAW * (high - low)
    found = (at > low - reach) & (at < high + reach)
    c0, c1, _ = coefficients
    # The minimum of a convex parabola: c0 - c1^2 / (4 c2).
    return np.where(found, at, np.nan), np.where(found, c0 + c1 * at / 2, np.nan)


def _vertex(coefficients: np.ndarray) -> np.ndarray:
    _, c1, c2 = coefficients
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(c2 > 0, -c1 / (2 * c2), np.nan)


def _shared_curvature(
    c2: np.ndarray, variance: np.ndarray, log_flops: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The curvature of each budget by the mean of all [budget, draw], and its standard deviation."""
    trend = np.exp(-_CURVATURE_EXPONENT * (log_flops - log_flops.mean()))
    scaled, variance = c2 / trend[:, None], variance / trend**2
    middle = np.median(scaled)
    weight = 1 / np.maximum(variance + (_CURVATURE_SCATTER * middle) ** 2, 1e-300)
    mean = weight @ scaled / weight.sum()
    spread = _CURVATURE_SCATTER * np.abs(np.median(mean)) * trend
    return mean * trend[:, None], spread


def lacks_minima(fits: Sequence[ProfileFit]) -> bool:
    """Whether so few budgets have their minimum inside that `borrow_curvature` looks outside."""
    inside = [fit.ok for fit in fits if fit.coefficients is not None]
    return len(inside) >= 2 and sum(inside) < min(len(inside), _ENOUGH_INSIDE)


def borrow_curvature(
    points: Sequence[Points],
    fits: Sequence[ProfileFit],
    noise: Sequence[float],
    log_flops: np.ndarray,
) -> list[ProfileFit]:
    """Reads the minima just outside of the sizes, with the curvature that all budgets share.

    This is done only where fewer than three budgets have their minimum inside, because a minimum
    outside depends on the parabola far more than one inside.

    Args:
      points, fits: of each budget.
      noise: standard deviation of a run's loss in each budget.
      log_flops: [budget].

    Returns:
      The fits. Some without a minimum inside are now "ok", with a reason.
    """
    if not lacks_minima(fits):
        return list(fits)
    fitted = [k for k, fit in enumerate(fits) if fit.coefficients is not None]
    log_flops = np.asarray(log_flops)[fitted]
    own = np.array([fits[k].coefficients for k in fitted]).T[:, :, None]
    covariance = np.stack([fits[k].covariance(noise[k]) for k in fitted])
    mean, _ = _shared_curvature(own[2], covariance[:, 2, 2], log_flops)
    error = 1 / math.sqrt(np.sum(1 / np.maximum(covariance[:, 2, 2], 1e-300)))
    # The curvature of all budgets together must differ from zero by more than its error.
    if mean.mean() < 2 * error:
        return list(fits)
    edges = np.array([points[k].x[[0, -1]] - fits[k].center for k in fitted])
    shared, kept = share_curvature(own, covariance, log_flops, edges)
    at, loss = read_minima(shared, edges)
    result = list(fits)
    for i, k in enumerate(fitted):
        low, high = edges[i]
        reach = _OUTSIDE * (high - low)
        if kept[i, 0] or not low - reach <= at[i, 0] <= high + reach:
            continue
        reason = "read with the curvature of all budgets"
        over = math.exp(max(low - at[i, 0], at[i, 0] - high))
        if over > 1:
            side = _side(points[k], at[i, 0] + fits[k].center)
            reason = f"its minimum lies {over:.3g}x {side} the sizes that were run, {reason}"
        result[k] = dataclasses.replace(
            fits[k],
            flag="ok",
            reason=reason,
            minimum=float(at[i, 0]),
            loss=float(loss[i, 0]),
            coefficients=(float(shared[0, i, 0]), float(shared[1, i, 0]), float(shared[2, i, 0])),
        )
    return result
