"""Approach 1 of Hoffmann et al. 2022: the lower envelope of all training curves.

Each curve of loss against compute is smoothed and interpolated; at 1500 log-spaced budgets the run
with the lowest loss gives N_opt(C), and power laws through these give the exponents (sec. 3.1).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from lmscale.laws.result import FitResult, interval
from lmscale.laws.table import Table, TableError

__all__ = ["fit_envelope"]


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
      bootstrap: draws over runs (whole curves).

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

    best = np.argmin(loss, axis=0)
    covered = np.isfinite(loss.min(axis=0))
    at = np.arange(points)
    # Where the smallest or largest size wins, the envelope is the edge of what was run.
    inner = covered & (size[best] > size.min()) & (size[best] < size.max())
    use = inner if len(np.unique(best[inner])) >= 2 else covered
    warnings = list(runs.warnings)
    if use is covered:
        warnings.append(
            "no size between the smallest and the largest is ever best: the exponent says only "
            "what was run"
        )
    n_slope, n_level = np.polyfit(grid[use], size[best[use]], 1)
    d_slope, d_level = np.polyfit(grid[use], tokens[best, at][use], 1)
    parameters = {
        "a": float(n_slope),
        "b": float(d_slope),
        "k_N": float(np.exp(n_level)),
        "k_D": float(np.exp(d_level)),
    }
    draws = _draws(grid, loss, tokens, size, bootstrap, np.random.default_rng(seed))
    intervals = {name: interval(values, level) for name, values in draws.items()}
    convention = runs.convention
    return FitResult(
        law="envelope",
        parameters=parameters,
        intervals=intervals,
        interval_method="bootstrap over learning curves" if bootstrap else "none",
        level=level,
        objective=float(np.sum((size[best[use]] - n_level - n_slope * grid[use]) ** 2)),
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
    loss: np.ndarray,
    tokens: np.ndarray,
    size: np.ndarray,
    n_draws: int,
    rng: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Exponents of the envelope of runs drawn with replacement.

    The best run of a draw is the first of all runs, ordered by loss, that was drawn.
    """
    if not n_draws:
        return {}
    n_runs, points = loss.shape
    every = max(1, points // 300)
    grid, loss, tokens = grid[::every], loss[:, ::every], tokens[:, ::every]
    order = np.argsort(loss, axis=0)
    drawn = rng.multinomial(n_runs, np.full(n_runs, 1 / n_runs), size=n_draws) > 0
    first = np.argmax(drawn[:, order], axis=1)
    best = np.take_along_axis(order, first, axis=0)
    at = np.arange(len(grid))
    found = np.isfinite(loss[best, at])
    n, d = size[best], tokens[best, at]
    # Sizes at the edge of the draw are left out, as in the fit itself.
    present = np.where(drawn, size, np.nan)
    inner = (
        found
        & (n > np.nanmin(present, axis=1)[:, None])
        & (n < np.nanmax(present, axis=1)[:, None])
    )
    w = np.where(inner.sum(axis=1, keepdims=True) > 2, inner, found).astype(float)
    total = w.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = (w @ grid) / total
        dx = grid - x[:, None]
        spread = (w * dx**2).sum(axis=1)
        out = {}
        for slope_name, level_name, values in (("a", "k_N", n), ("b", "k_D", d)):
            mean = (w * values).sum(axis=1) / total
            slope = (w * dx * (values - mean[:, None])).sum(axis=1) / spread
            out[slope_name], out[level_name] = slope, np.exp(mean - slope * x)
    return {name: out[name] for name in ("a", "b", "k_N", "k_D")}
