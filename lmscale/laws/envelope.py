"""Approach 1 of Hoffmann et al. 2022: the lower envelope of all training curves.

Each curve of loss against compute is smoothed and interpolated; at 1500 log-spaced budgets the run
with the lowest loss gives N_opt(C), and power laws through these give the exponents (sec. 3.1).

Only budgets at which the power law itself lies inside the sizes that were run are fitted. Choosing
them by which run won (leaving out wins of the smallest and the largest) would flatten the law: of a
noisy smallest run only the losses would be kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.stats import norm
from scipy.stats import t as student_t

from lmscale.laws.parametric import chinchilla_loss, fit_parametric
from lmscale.laws.result import FitResult, interval
from lmscale.laws.table import Table, TableError

__all__ = ["fit_envelope"]

#: Places along a curve at which its residuals are kept.
_SHARES = 33
_FEWEST_CURVES = 6
#: Parameters of the surface that take up what differs between curves of different sizes: E, A, alpha.
_FREE = 3


def fit_envelope(
    table: Any,
    *,
    points: int = 1500,
    smooth: float = 10.0,
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
      smooth: standard deviation, in rows, of the Gaussian that smooths each curve; 0 for none.
      bootstrap: draws. Each gives every curve the residuals, about the surface of Approach 3
        fitted to all of them, of a curve drawn with replacement, and reads the new envelope: so
        the interval covers the noise of the runs, on the sizes that were run.

    Returns:
      parameters a, b, k_N, k_D; `details["envelope"]` the budgets with the best size, tokens and
      loss at each, and `details["curves"]` the smoothed curves.
    """
    table = Table.read(table, columns)
    runs = table.runs("params", "flops", "tokens", "loss", least=6, vary=("params",))
    names = runs.labels.get("group", runs["params"].astype(str))
    curves = []
    for name in sorted(set(names)):
        index = np.flatnonzero(names == name)
        index = index[np.argsort(runs["flops"][index])]
        log_c = np.log(runs["flops"][index])
        if len(index) < 2 or np.ptp(log_c) == 0:
            continue
        loss = runs["loss"][index]
        if smooth:
            loss = gaussian_filter1d(loss, smooth, mode="nearest")
        curves.append((str(name), runs["params"][index], runs["tokens"][index], log_c, loss))
    sizes = {float(np.median(c[1])) for c in curves}
    if len(sizes) < 3:
        raise TableError(
            f"{len(sizes)} sizes have learning curves and an envelope needs 3; give several rows "
            f"a run, with columns params, flops, loss and group"
        )
    grid = np.linspace(min(c[3][0] for c in curves), max(c[3][-1] for c in curves), points)
    loss = np.stack([np.interp(grid, c[3], c[4], np.inf, np.inf) for c in curves])
    tokens = np.stack([np.interp(grid, c[3], np.log(c[2])) for c in curves])
    size = np.log([np.median(c[1]) for c in curves])

    best = np.argmin(loss, axis=0)[None]
    found = _read(grid, best, loss.min(axis=0)[None], tokens, size)
    (best,), (use,) = best, found.used
    at = np.arange(points)
    warnings = list(runs.warnings)
    if not found.inside[0]:
        warnings.append(
            "no size between the smallest and the largest is ever best: the exponent says only "
            "what was run"
        )
    parameters = {name: float(values[0]) for name, values in found.laws.items()}
    misfit = size[best] - math.log(parameters["k_N"]) - parameters["a"] * grid
    if bootstrap and len(curves) < _FEWEST_CURVES:
        warnings.append(
            f"{len(curves)} learning curves are too few to tell their noise from their shape, and "
            f"an interval needs {_FEWEST_CURVES}: there is none"
        )
        bootstrap = 0
    draws = {}
    if bootstrap:
        drawn = _draws(grid, curves, tokens, size, bootstrap, np.random.default_rng(seed))
        draws = {
            name: value + drawn[name] if name in "ab" else value * np.exp(drawn[name])
            for name, value in parameters.items()
        }
    # Student's tails: the noise is known from so many curves only.
    freedom = max(1, len(curves) - _FREE)
    share = float(2 * norm.cdf(student_t.ppf(0.5 + level / 2, freedom)) - 1)
    intervals = {name: interval(values, share) for name, values in draws.items()}
    convention = runs.convention
    return FitResult(
        law="envelope",
        parameters=parameters,
        intervals=intervals,
        interval_method="bootstrap over the curves' residuals about the surface of Approach 3"
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
                "d_opt": np.exp(tokens[best, at][use]),
                "loss": loss[best, at][use],
            },
            "curves": [
                {
                    "name": c[0],
                    "params": float(np.median(c[1])),
                    "flops": np.exp(c[3]),
                    "loss": c[4],
                }
                for c in curves
            ],
        },
    )


def _draws(
    grid: np.ndarray,
    curves: Sequence[tuple],
    tokens: np.ndarray,
    size: np.ndarray,
    n_draws: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """How far the laws (k_N and k_D as logarithms) stray from those of the surface itself."""
    every = max(1, len(grid) // 300)
    grid, tokens = grid[::every], tokens[:, ::every]
    share = np.linspace(0, 1, _SHARES)
    n = np.exp(size)[:, None]
    points = np.stack([np.interp(share, _along(c), np.log(c[2])) for c in curves])
    observed = np.stack([np.interp(share, _along(c), c[4]) for c in curves])
    table = {
        "params": np.repeat(n, _SHARES),
        "tokens": np.exp(points).ravel(),
        "loss": observed.ravel(),
    }
    law = fit_parametric(table, method="varpro", bootstrap=0).parameters
    residual = np.log(observed / chinchilla_loss(law, params=n, tokens=np.exp(points)))
    residual *= math.sqrt(len(curves) / (len(curves) - _FREE))
    smooth = chinchilla_loss(law, params=n, tokens=np.exp(tokens))
    first, last = np.array([[c[3][0], c[3][-1]] for c in curves]).T[:, :, None]
    smooth = np.where((grid >= first) & (grid <= last), smooth, np.inf)
    place = np.clip((grid - first) / (last - first), 0, 1) * (_SHARES - 1)
    left = np.minimum(place.astype(int), _SHARES - 2)
    best = np.empty((n_draws + 1, len(grid)), int)
    lowest = np.empty(best.shape)
    run = np.arange(len(curves))[:, None]
    for i in range(n_draws + 1):
        # The last one is the surface without noise.
        given = residual[rng.integers(len(curves), size=len(curves))] * (i < n_draws)
        noise = given[run, left] + (place - left) * (given[run, left + 1] - given[run, left])
        loss = smooth * np.exp(noise)
        best[i], lowest[i] = np.argmin(loss, axis=0), loss.min(axis=0)
    laws = _read(grid, best, lowest, tokens, size).laws
    logs = {name: v if name in "ab" else np.log(v) for name, v in laws.items()}
    return {name: values[:-1] - values[-1] for name, values in logs.items()}


def _along(curve: tuple) -> np.ndarray:
    """How far along a curve its points lie, from 0 to 1 in ln C."""
    log_c = curve[3]
    return (log_c - log_c[0]) / (log_c[-1] - log_c[0])


class _Envelopes(NamedTuple):
    """One row an envelope: which budgets were fitted, and the laws through them."""

    used: np.ndarray
    #: Whether any size between the smallest and the largest is ever best.
    inside: np.ndarray
    laws: dict[str, np.ndarray]


def _read(
    grid: np.ndarray, best: np.ndarray, lowest: np.ndarray, tokens: np.ndarray, size: np.ndarray
) -> _Envelopes:
    """The power laws through envelopes.

    Args:
      grid: [point] ln C.
      best, lowest: [envelope, point] the run of lowest loss, and that loss (infinite for none).
      tokens: [run, point] ln D.
      size: [run] ln N.
    """
    found = np.isfinite(lowest)
    n, d = size[best], tokens[best, np.arange(len(grid))]
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
