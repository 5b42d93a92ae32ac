"""IsoFLOP profiles: the compute-optimal size at each budget, and how it grows with compute.

Approach 2 of Hoffmann et al. 2022 (sec. 3.2): at every budget C fit a parabola to the loss against
log N, read its minimum, then fit N_opt = k_N C^a and D_opt = k_D C^b through the minima. With
`method="akima"` the minimum is read off an Akima spline of log loss against log N, and the power
law is weighted by the minima's variance, as in Porian et al. 2024 (2406.19146, sec. 3).

A parabola is only a local picture of a profile, so the fit takes a window round the lowest loss;
`window_spread` shows what the choice does to the exponent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy.interpolate import Akima1DInterpolator
from scipy.special import digamma
from scipy.stats import norm
from scipy.stats import t as student_t

from lmscale.laws.result import FitError, FitResult, interval
from lmscale.laws.table import Runs, Table, TableError

__all__ = ["Profile", "fit_isoflop", "vertex_bias", "window_spread"]

Resample = Literal["auto", "runs", "residuals", "seeds"]

#: Resampling whole runs needs this many in every profile; with fewer, draws lose their curvature.
_RUNS_FOR_PAIRS = 12
#: Prior degrees of freedom with which a profile's noise is drawn towards that of all profiles.
_PRIOR_DOF = 4.0
#: Points of the spline between two neighbouring runs, and the least share of their distance that a
#: minimum's standard deviation can have (Porian et al. 2024).
_AKIMA_POINTS = 25
_AKIMA_LEAST_STD = 0.33


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One budget's curve of loss against model size, and its minimum.

    Points are sorted by size. Of a parabola, loss = c0 + c1 u + c2 u^2 with u = ln N - center and
    `coefficients` = (c0, c1, c2); a spline has none. `flag` is "ok", "few points", "not convex" or
    "no interior minimum", and `reason` says it in words; only "ok" profiles enter the frontier.
    """

    flops: float
    row: np.ndarray
    params: np.ndarray
    tokens: np.ndarray
    loss: np.ndarray
    #: Which points lie in the window and were fitted.
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
    #: Bootstrap standard deviation of ln n_opt.
    log_std: float = math.nan
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


def fit_isoflop(
    table: Any,
    *,
    method: Literal["parabola", "akima"] = "parabola",
    window: float | None = 4.0,
    min_points: int = 4,
    weighted: bool | None = None,
    bootstrap: int = 1000,
    resample: Resample = "auto",
    noise: float | Callable[[np.ndarray], np.ndarray] | None = None,
    correct_bias: bool = False,
    budget_tolerance: float = 0.1,
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
        at least the five nearest); None takes all.
      min_points: fewest points of a profile.
      weighted: weight the minima by 1 / variance in the power law; by default only for "akima".
      bootstrap: number of draws; 0 for none.
      resample: "runs" resamples runs within a budget, "residuals" adds resampled residuals to the
        fitted curve, "seeds" adds the deviations between repeated runs. "auto" takes seeds where
        sizes were repeated, runs where every profile has twelve or more, and residuals otherwise.
      noise: standard deviation of a run's loss, if it is known: then draws add normal noise of it
        to the measured losses.
      correct_bias: subtract from each minimum the shift that the parabola has on the surface of
        Approach 3 fitted to the same table (`vertex_bias`).
      budget_tolerance: runs whose FLOPs differ by less than this fraction share a budget.

    Returns:
      `parameters` a, b, k_N, k_D; `details["profiles"]` one `Profile` a budget and
      `details["frontier"]` the minima that were used.

    Raises:
      TableError: the table cannot be used at all. A table with fewer than two usable profiles
        still gives a result: without exponents, and with warnings that say why.
    """
    table = Table.read(table, columns)
    runs = table.runs("params", "flops", "loss", "tokens", least=3, vary=("params",))
    if window is not None and window <= 1:
        raise FitError(f"window must be a factor above 1 (or None for all sizes), not {window!r}")
    budgets = _group_by_budget(runs, budget_tolerance)
    sizes = [len(set(runs["params"][index])) for _, index in budgets]
    if max(sizes) < 3:
        raise TableError(
            f"no budget has 3 sizes (there are {len(budgets)} budgets with up to {max(sizes)}); "
            f"isoflop needs several sizes at the same flops: try the law parametric"
        )
    if weighted is None:
        weighted = method == "akima"
    warnings = list(runs.warnings)
    rng = np.random.default_rng(seed)

    points = [_points(runs, index) for _, index in budgets]
    used = [_window(p, window if method == "parabola" else None) for p in points]
    fits = [_parabola(p, u, min_points) for p, u in zip(points, used, strict=True)]
    if method == "akima":
        fits = [_akima(p, fit, min_points) for p, fit in zip(points, fits, strict=True)]
    elif method != "parabola":
        raise FitError(f"method must be parabola or akima, not {method!r}")
    how, scales = _noise(points, used, fits, noise, resample, method)
    if correct_bias:
        fits = _without_bias(runs, points, used, fits)

    profiles = []
    for (flops, _), p, u, fit, scale in zip(budgets, points, used, fits, scales, strict=True):
        draws = _draw_minima(p, u, fit, how, scale, bootstrap, rng, method)
        profiles.append(_profile(flops, p, u, fit, draws, level, method))
    for profile in profiles:
        if not profile.ok:
            warnings.append(f"budget {profile.flops:.3g} left out: {profile.reason}")
        elif profile.params[np.argmin(profile.loss)] in (profile.params[0], profile.params[-1]):
            warnings.append(
                f"budget {profile.flops:.3g}: the lowest loss is at the edge of its sizes"
            )
        elif bootstrap and np.mean(~np.isfinite(profile.draws[0])) > 0.05:
            lost = np.mean(~np.isfinite(profile.draws[0]))
            warnings.append(f"budget {profile.flops:.3g}: {lost:.0%} of draws have no minimum")
    return _frontier(
        runs, profiles, method, how.name if bootstrap else "none", weighted, level, warnings
    )


def window_spread(
    table: Any, windows: Sequence[float | None] = (2.0, 3.0, 4.0, 6.0, 8.0, 16.0, None), **options
) -> dict[str, dict[str, float]]:
    """The exponent a under several windows and under Akima: how much the choice matters.

    Returns:
      window (or "akima") -> {"N": a, "D": b, "profiles": number used}; windows in which fewer
      than two profiles are usable are left out.
    """
    table = Table.read(table, options.pop("columns", None))
    options = {"bootstrap": 0, **options}
    spread = {}
    choices = [("all" if w is None else f"{w:g}x", {"window": w}) for w in windows]
    for name, choice in [*choices, ("akima", {"method": "akima", "weighted": False})]:
        result = fit_isoflop(table, **{**options, **choice})
        if result.exponents:
            exponents = next(iter(result.exponents.values()))
            spread[name] = {**exponents, "profiles": len(result.details["frontier"]["flops"])}
    return spread


def vertex_bias(
    alpha: float, beta: float, factor: float, n_points: int = 9, amplitude: float = 1.0
) -> float:
    """How far the parabola's minimum lies from the true one on a noiseless surface.

    On L = E + A/N^alpha + B/D^beta with sizes spread evenly in ln N from N_opt / factor to
    N_opt * factor at fixed C = 6 N D, the fitted minimum is exp(shift) N_opt, whatever C, E, A and
    B are (Czech 2026, 2603.22339). So exponents are safe on centred grids; intercepts are not.

    Returns:
      shift = ln N_fitted - ln N_opt (and minus that for ln D); 0 where alpha = beta.
    """
    u = np.linspace(-math.log(factor), math.log(factor), n_points)
    # At the optimum alpha A / N^alpha = beta B / D^beta, which we call 1.
    loss = amplitude * (np.exp(-alpha * u) / alpha + np.exp(beta * u) / beta)
    c2, c1, _ = np.polyfit(u, loss, 2)
    return float(-c1 / (2 * c2))


@dataclass(frozen=True)
class _Points:
    """One budget's runs, sorted by size."""

    x: np.ndarray  # ln N
    log_tokens: np.ndarray
    loss: np.ndarray
    weight: np.ndarray
    row: np.ndarray


@dataclass(frozen=True)
class _Fit:
    flag: str
    reason: str
    center: float = math.nan
    coefficients: tuple[float, float, float] | None = None
    #: Of the minimum: ln N - center.
    minimum: float = math.nan
    loss: float = math.nan
    #: ln D at the center, and its slope in ln N.
    tokens: tuple[float, float] = (math.nan, math.nan)
    residual: np.ndarray | None = None
    leverage: np.ndarray | None = None
    #: What `correct_bias` takes off ln N.
    shift: float = 0.0

    @property
    def ok(self) -> bool:
        return self.flag == "ok"


@dataclass(frozen=True)
class _How:
    kind: str
    name: str
    #: Standardised deviations to draw from (None: normal).
    pool: np.ndarray | None = None


def _group_by_budget(runs: Runs, tolerance: float) -> list[tuple[float, np.ndarray]]:
    """(FLOPs, positions) of each budget, smallest first."""
    flops = runs["flops"]
    groups = []
    if "budget" in runs.labels:
        labels = runs.labels["budget"]
        for label in sorted(set(labels)):
            index = np.flatnonzero(labels == label)
            try:
                value = float(label)
            except ValueError:
                value = math.nan
            if not (math.isfinite(value) and value > 0):
                value = float(np.exp(np.mean(np.log(flops[index]))))
            groups.append((value, index))
        return sorted(groups, key=lambda group: group[0])
    order = np.argsort(flops, kind="stable")
    breaks = np.flatnonzero(np.diff(np.log(flops[order])) > math.log1p(tolerance)) + 1
    for index in np.split(order, breaks):
        groups.append((float(np.exp(np.mean(np.log(flops[index])))), index))
        spread = flops[index].max() / flops[index].min()
        if spread > (1 + tolerance) ** 4:
            raise TableError(
                f"the runs near {groups[-1][0]:.3g} flops run into each other over a factor of "
                f"{spread:.2g}; give a column budget, or a smaller budget_tolerance"
            )
    return groups


def _points(runs: Runs, index: np.ndarray) -> _Points:
    order = index[np.argsort(runs["params"][index], kind="stable")]
    weight = runs["weight"][order] if "weight" in runs else np.ones(len(order))
    return _Points(
        x=np.log(runs["params"][order]),
        log_tokens=np.log(runs["tokens"][order]),
        loss=runs["loss"][order],
        weight=weight / weight.mean(),
        row=runs.row[order],
    )


def _window(p: _Points, factor: float | None) -> np.ndarray:
    if factor is None:
        return np.ones(len(p.x), bool)
    distance = np.abs(p.x - p.x[np.argmin(p.loss)])
    sizes = np.unique(distance.round(9))
    reach = sizes[min(4, len(sizes) - 1)]
    return distance <= max(math.log(factor), reach) + 1e-9


def _few(p: _Points, used: np.ndarray, min_points: int) -> _Fit | None:
    sizes = len(np.unique(p.x[used].round(9)))
    if sizes >= max(3, min_points):
        return None
    reason = f"{sizes} size{'s' * (sizes != 1)}, where {max(3, min_points)} are needed"
    return _Fit("few points", reason)


def _parabola(p: _Points, used: np.ndarray, min_points: int) -> _Fit:
    few = _few(p, used, min_points)
    if few is not None:
        return few
    x, y, w = p.x[used], p.loss[used], p.weight[used]
    center = float(x.mean())
    design = np.stack([np.ones_like(x), x - center, (x - center) ** 2], axis=1)
    root = np.sqrt(w)
    q, r = np.linalg.qr(design * root[:, None])
    c0, c1, c2 = np.linalg.solve(r, q.T @ (root * y))
    slope, intercept = np.polyfit(x - center, p.log_tokens[used], 1)
    common = {
        "center": center,
        "coefficients": (float(c0), float(c1), float(c2)),
        "tokens": (float(intercept), float(slope)),
        "residual": y - design @ np.array([c0, c1, c2]),
        "leverage": np.sum(q**2, axis=1),
    }
    if c2 <= 0:
        return _Fit("not convex", "the parabola opens downwards", **common)
    minimum = -c1 / (2 * c2)
    loss = c0 - c1**2 / (4 * c2)
    if not p.x[0] <= center + minimum <= p.x[-1]:
        side = "below" if center + minimum < p.x[0] else "above"
        reason = f"its minimum lies {side} the sizes that were run"
        return _Fit("no interior minimum", reason, **common, minimum=minimum, loss=loss)
    return _Fit("ok", "", **common, minimum=float(minimum), loss=float(loss))


def _akima(p: _Points, parabola: _Fit, min_points: int) -> _Fit:
    """The minimum of an Akima spline in log-log; the parabola lends its residuals as noise."""
    few = _few(p, np.ones(len(p.x), bool), min_points)
    if few is not None:
        return few
    x, loss = _mean_by_size(p.x, p.loss[None])
    at, values = _akima_minima(x, loss)
    slope, intercept = np.polyfit(p.x - parabola.center, p.log_tokens, 1)
    common = {
        "center": parabola.center,
        "tokens": (float(intercept), float(slope)),
        "residual": parabola.residual,
        "leverage": parabola.leverage,
    }
    if not np.isfinite(at[0]):
        reason = "the spline's minimum lies at the edge of the sizes that were run"
        return _Fit("no interior minimum", reason, **common)
    return _Fit("ok", "", **common, minimum=float(at[0] - parabola.center), loss=float(values[0]))


def _mean_by_size(x: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sizes, where = np.unique(x.round(9), return_inverse=True)
    total = np.zeros((loss.shape[0], len(sizes)))
    np.add.at(total, (slice(None), where), loss)
    return sizes, total / np.bincount(where)


def _akima_minima(x: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For losses [draw, size]: ln N of each spline's minimum (NaN at an edge) and its loss."""
    grid = np.linspace(x[0], x[-1], _AKIMA_POINTS * (len(x) - 1))
    curve = Akima1DInterpolator(x, np.log(np.maximum(loss, 1e-12)).T)(grid)
    best = np.argmin(curve, axis=0)
    inside = (best > 0) & (best < len(grid) - 1)
    value = np.exp(np.take_along_axis(curve, best[None], axis=0)[0])
    return np.where(inside, grid[best], np.nan), np.where(inside, value, np.nan)


def _noise(
    points: list[_Points],
    used: list[np.ndarray],
    fits: list[_Fit],
    noise: Any,
    resample: Resample,
    method: str,
) -> tuple[_How, list[np.ndarray]]:
    """How draws are made, and the standard deviation of each run of each budget."""
    if noise is not None:
        sigma = noise if callable(noise) else (lambda loss: np.full(len(loss), float(noise)))
        return _How("noise", "bootstrap: normal noise of the given size"), [
            np.asarray(sigma(p.loss), float) for p in points
        ]
    if resample not in ("auto", "runs", "residuals", "seeds"):
        raise FitError(f"resample must be auto, runs, residuals or seeds, not {resample!r}")
    deviations = [_seed_deviations(p, u) for p, u in zip(points, used, strict=True)]
    repeats = sum(dof for _, dof in deviations)
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
            raise FitError("resample seeds needs sizes that were run more than once at a budget")
        parts = [deviation for deviation, _ in deviations]
        dofs = [dof for _, dof in deviations]
        name = "bootstrap over seeds"
    else:
        parts = [
            np.empty(0)
            if f.residual is None
            else f.residual / np.sqrt(np.maximum(1 - f.leverage, 0.05))
            for f in fits
        ]
        dofs = [0 if f.residual is None else max(0, len(f.residual) - 3) for f in fits]
        name = "bootstrap over residuals, pooled over budgets"
    pooled = _typical_variance(
        [(np.mean(x**2), dof) for x, dof in zip(parts, dofs, strict=True) if dof]
    )
    # With few degrees of freedom the noise itself is uncertain: Student's t in place of a normal.
    widen = float(student_t.ppf(0.975, max(2, sum(dofs))) / norm.ppf(0.975))
    scales = []
    for part, dof, p in zip(parts, dofs, points, strict=True):
        own = dof * np.mean(part**2) if dof else 0.0
        variance = (own + _PRIOR_DOF * pooled) / (dof + _PRIOR_DOF)
        scales.append(np.full(len(p.x), widen * math.sqrt(variance)))
    pool = np.concatenate(
        [
            part / math.sqrt(np.mean(part**2))
            for part, dof in zip(parts, dofs, strict=True)
            if dof and np.mean(part**2) > 0
        ]
        or [np.zeros(1)]
    )
    pool = pool - pool.mean()
    spread = pool.std()
    if resample == "runs":
        return _How("runs", "bootstrap over runs within each budget"), scales
    return _How(resample, name, pool / spread if spread > 0 else pool), scales


def _typical_variance(variances: list[tuple[float, int]]) -> float:
    """Geometric mean of estimated variances, corrected for what the logarithm of chi^2 takes off.

    Budgets differ in noise and in how well a parabola suits them, so one bad profile must not set
    the noise of all.
    """
    logs = [
        math.log(variance) - float(digamma(dof / 2)) + math.log(dof / 2)
        for variance, dof in variances
        if variance > 0
    ]
    dofs = [dof for variance, dof in variances if variance > 0]
    return math.exp(np.average(logs, weights=dofs)) if logs else 0.0


def _seed_deviations(p: _Points, used: np.ndarray) -> tuple[np.ndarray, int]:
    """Deviations of repeated runs from their mean, scaled to a run's variance, and their dof."""
    x, loss = p.x[used].round(9), p.loss[used]
    parts, dof = [], 0
    for size in np.unique(x):
        same = loss[x == size]
        if len(same) > 1:
            parts.append((same - same.mean()) * math.sqrt(len(same) / (len(same) - 1)))
            dof += len(same) - 1
    return (np.concatenate(parts) if parts else np.empty(0)), dof


def _draw_minima(
    p: _Points,
    used: np.ndarray,
    fit: _Fit,
    how: _How,
    scale: np.ndarray,
    n_draws: int,
    rng: np.random.Generator,
    method: str,
) -> np.ndarray:
    """[3, draws]: ln N, ln D and loss at the minimum of each draw; NaN where it has none."""
    if not fit.ok or not n_draws:
        return np.full((3, n_draws), np.nan)
    if method == "akima":
        used = np.ones(len(p.x), bool)
    x, y, w = p.x[used], p.loss[used], p.weight[used]
    u = x - fit.center
    if how.kind == "runs":
        c0, c1, c2 = _resampled_parabolas(u, y, w, n_draws, rng)
    else:
        if how.pool is None:
            deviation = rng.standard_normal((n_draws, len(x)))
        else:
            deviation = rng.choice(how.pool, size=(n_draws, len(x)))
        base = y
        if how.kind == "residuals" and method == "parabola":
            b0, b1, b2 = fit.coefficients
            base = b0 + b1 * u + b2 * u * u
        drawn = base + deviation * scale[used]
        if method == "akima":
            sizes, drawn = _mean_by_size(x, drawn)
            at, loss = _akima_minima(sizes, drawn)
            tokens = fit.tokens[0] + fit.tokens[1] * (at - fit.center)
            return np.stack([at, tokens, loss])
        root = np.sqrt(w)
        design = np.stack([np.ones_like(u), u, u * u], axis=1) * root[:, None]
        c0, c1, c2 = np.linalg.pinv(design) @ (drawn * root).T
    with np.errstate(divide="ignore", invalid="ignore"):
        minimum = np.where(c2 > 0, -c1 / (2 * c2), np.nan)
        loss = c0 - c1**2 / (4 * c2)
    # A nearly flat draw can put its minimum anywhere; one range beyond the sizes is no minimum.
    span = p.x[-1] - p.x[0]
    at = fit.center + minimum
    sane = np.isfinite(at) & (at > p.x[0] - span) & (at < p.x[-1] + span)
    at = np.where(sane, at - fit.shift, np.nan)
    tokens = fit.tokens[0] + fit.tokens[1] * (at - fit.center)
    return np.stack([at, tokens, np.where(sane, loss, np.nan)])


def _resampled_parabolas(
    u: np.ndarray, y: np.ndarray, w: np.ndarray, n_draws: int, rng: np.random.Generator
) -> np.ndarray:
    """[3, draws]: coefficients for runs drawn with replacement, at least four sizes a draw."""
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


def _profile(
    flops: float,
    p: _Points,
    used: np.ndarray,
    fit: _Fit,
    draws: np.ndarray,
    level: float,
    method: str,
) -> Profile:
    common = {
        "flops": flops,
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


def _without_bias(
    runs: Runs, points: list[_Points], used: list[np.ndarray], fits: list[_Fit]
) -> list[_Fit]:
    """Each minimum moved by the shift that the same parabola has on the fitted surface."""
    from lmscale.laws.parametric import fit_parametric

    surface = fit_parametric(
        {name: runs[name] for name in ("params", "tokens", "loss")}, method="varpro", bootstrap=0
    ).parameters
    moved = []
    for p, u, fit in zip(points, used, fits, strict=True):
        if fit.ok and fit.coefficients is not None:
            exact = (
                surface["E"]
                + surface["A"] * np.exp(-surface["alpha"] * p.x)
                + surface["B"] * np.exp(-surface["beta"] * p.log_tokens)
            )
            on_surface = _parabola(dataclasses.replace(p, loss=exact), u, 3)
            # Along the profile ln D = d0 + d1 (ln N - center), so the true minimum is closed form.
            d0, d1 = fit.tokens
            a, b = surface["alpha"], surface["beta"]
            left = math.log(a * surface["A"]) - a * fit.center
            right = math.log(-d1 * b * surface["B"]) - b * d0
            truth = (left - right) / (a - b * d1)
            if on_surface.flag != "not convex" and math.isfinite(truth):
                fit = dataclasses.replace(fit, shift=on_surface.minimum - truth)
        moved.append(fit)
    return moved


def _frontier(
    runs: Runs,
    profiles: list[Profile],
    method: str,
    interval_method: str,
    weighted: bool,
    level: float,
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
    parameters, intervals, draws = {}, {}, {}
    exponents, exponent_intervals = {}, {}
    if len(good) < 2:
        warnings.append(
            f"{len(good)} usable profile{'s' * (len(good) != 1)}, so no exponents: "
            f"a power law needs two"
        )
    else:
        x = np.log(columns["flops"])
        weight = np.ones(len(good))
        if weighted:
            if not np.all(columns["log_std"] > 0):
                warnings.append("the minima have no variances, so they are not weighted")
            else:
                weight = columns["log_std"] ** -2.0
        if len(good) == 2:
            warnings.append("two usable profiles: the power law runs through both exactly")
        drawn = np.stack([p.draws for p in good], axis=1)  # [3, profile, draw]
        for name, k, values, d in (
            ("a", "k_N", columns["n_opt"], drawn[0]),
            ("b", "k_D", columns["d_opt"], drawn[1]),
        ):
            slope, intercept = _weighted_line(x, np.log(values)[:, None], weight[:, None])
            parameters[name], parameters[k] = float(slope[0]), float(np.exp(intercept[0]))
            if d.shape[1]:
                found = np.isfinite(d)
                slope, intercept = _weighted_line(
                    x, np.where(found, d, 0.0), weight[:, None] * found
                )
                draws[name], draws[k] = slope, np.exp(intercept)
                intervals[name] = interval(slope, level)
                intervals[k] = interval(draws[k], level)
        parameters = {name: parameters[name] for name in ("a", "b", "k_N", "k_D")}
        exponents = {runs.convention: {"N": parameters["a"], "D": parameters["b"]}}
        if intervals:
            exponent_intervals = {runs.convention: {"N": intervals["a"], "D": intervals["b"]}}
        _warn_of_scatter(columns, x, weight, warnings)
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
        details={"method": method, "profiles": tuple(profiles), "frontier": columns},
    )


def _weighted_line(x: np.ndarray, y: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and intercept of each column of y [point, draw]; NaN with fewer than two points."""
    total = w.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        x_mean = (w * x[:, None]).sum(axis=0) / total
        y_mean = (w * y).sum(axis=0) / total
        dx = x[:, None] - x_mean
        slope = (w * dx * (y - y_mean)).sum(axis=0) / (w * dx**2).sum(axis=0)
    slope = np.where((w > 0).sum(axis=0) >= 2, slope, np.nan)
    return slope, y_mean - slope * x_mean


def _warn_of_scatter(
    columns: dict[str, np.ndarray], x: np.ndarray, weight: np.ndarray, warnings: list[str]
) -> None:
    """Minima that scatter about the line far more than their own uncertainty tell of no noise."""
    std = columns["log_std"]
    if len(x) < 4 or not np.all(std > 0):
        return
    y = np.log(columns["n_opt"])
    slope, intercept = _weighted_line(x, y[:, None], weight[:, None])
    chi = float(np.sqrt(np.sum(((y - slope[0] * x - intercept[0]) / std) ** 2) / (len(x) - 2)))
    if chi > 3:
        warnings.append(
            f"the minima scatter {chi:.1f} times more about the power law than their bootstrap "
            f"says; the intervals leave that out"
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
