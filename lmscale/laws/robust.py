"""Fits that outliers do not move, and the influence of each row on a fit.

Tukey's biweight with a scale estimated from the rows (an MM estimate, Yohai 1987). The weight of a
row falls with its residual, to zero beyond 4.685 robust standard deviations,

    w(r) = (1 - (r / (c s))^2)^2 for |r| < c s, else 0.

It is solved by weighted least squares, from the best of many fits to random halves of the rows. A fit
to all rows may already follow the outliers, and hide them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmscale.laws.cpu import float64_on_cpu
from lmscale.laws.known import median_of_known
from lmscale.laws.newton import Residual
from lmscale.laws.resample import jacobian
from lmscale.laws.solve import solve
from lmscale.laws.units import robust_scale

__all__ = ["Influence", "Tukey", "influence", "refit_tukey", "tukey"]

#: The biweight's constant, which is 95% efficient for normal noise.
_C = 4.685
_HALVES = 48
_ROUNDS = 40
#: Huber's delta on log loss for the fits to halves, since most halves contain outliers too.
_HALF_DELTA = 1e-3
#: The fits to halves are compared by this share of the rows, those with the smallest residuals.
_TRUSTED = 0.75
#: Most rows that are left out one by one; of larger tables, those with the largest first-order effect.
_LEFT_OUT = 128
#: A row is an outlier beyond this many robust standard deviations.
OUTLIER = 6.0


@dataclass(frozen=True)
class Tukey:
    """A biweight fit: parameters [P], scale of the residuals, weights [n], and objective.

    The objective is the sum of w r^2 / 2.
    """

    theta: np.ndarray
    scale: float
    weights: np.ndarray
    objective: float
    converged: bool


@functools.cache
def _residuals(residual: Residual) -> Callable[..., Any]:
    return jax.jit(
        jax.vmap(lambda theta, own, data: residual(theta, {**data, **own}), (0, 0, None))
    )


def residuals(
    residual: Residual, theta: np.ndarray, data: Any, own: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Residuals [K, n] at every row of `theta` [K, P], each with its own data if given."""
    with float64_on_cpu():
        at = jnp.asarray(np.asarray(theta, np.float64))
        return np.asarray(_residuals(residual)(at, dict(own or {}), data))


def biweight(left: np.ndarray, scale: float) -> np.ndarray:
    share = np.clip(np.abs(left) / (_C * scale), 0.0, 1.0)
    return (1 - share**2) ** 2


def tukey(
    residual: Residual,
    theta: np.ndarray,
    data: Any,
    *,
    weights: np.ndarray | None = None,
    seed: int = 0,
) -> Tukey:
    """The biweight fit, searched from `theta` [P] and from fits to random halves of the rows."""
    n = len(next(iter(data.values())))
    base = np.ones(n) if weights is None else np.asarray(weights, float)
    rng = np.random.default_rng(seed)
    size = max(n // 2, min(n, len(theta) + 2))
    halves = np.zeros((_HALVES, n))
    for half in halves:
        half[rng.choice(n, size, replace=False)] = 1.0
    starts = np.tile(theta, (_HALVES, 1))
    found = solve(residual, starts, data, halves * base, delta=_HALF_DELTA, max_steps=50)
    thetas = np.concatenate([theta[None], found.theta[np.isfinite(found.theta).all(axis=1)]])
    squares = np.sort(residuals(residual, thetas, data) ** 2, axis=1)
    trusted = np.sum(squares[:, : max(len(theta) + 1, int(_TRUSTED * n))], axis=1)
    best = thetas[np.argmin(np.nan_to_num(trusted, nan=np.inf))]
    left = residuals(residual, best[None], data)[0]
    # A fit to half of the rows follows some of them, so its scale is too small. The scale is estimated
    # again from the first biweight fit.
    for _ in range(2):
        scale = max(robust_scale(left, len(theta)), 1e-12)
        w, converged = biweight(left, scale), False
        for _ in range(_ROUNDS):
            best = solve(residual, best[None], data, base * w, stages=0).theta[0]
            left = residuals(residual, best[None], data)[0]
            last, w = w, biweight(left, scale)
            converged = bool(np.max(np.abs(w - last)) < 1e-7)
            if converged:
                break
    objective = 0.5 * float(np.sum(base * w * left**2))
    return Tukey(best, scale, w, objective, converged)


def refit_tukey(
    residual: Residual,
    fit: Tukey,
    data: Any,
    own: Mapping[str, np.ndarray],
    *,
    weights: np.ndarray | None = None,
    rounds: int = 6,
) -> np.ndarray:
    """The biweight fit of every draw [B, P], whose data `own` [B, n] replace entries of `data`."""
    draws, n = next(iter(own.values())).shape
    base = np.ones(n) if weights is None else np.asarray(weights, float)
    theta = np.tile(fit.theta, (draws, 1))
    for _ in range(rounds):
        w = base * biweight(residuals(residual, theta, data, own), fit.scale)
        theta = solve(residual, theta, data, w, own=own, stages=0, max_steps=50).theta
    return theta


# --- Influence ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Influence:
    """The influence of rows on one quantity of a fit.

    Attributes:
      quantity: its name.
      value: the quantity with all rows.
      row: numbers of the rows that were left out one at a time.
      without_row: the quantity without each of these.
      deviation: residual of each of these in robust standard deviations of the biweight fit.
      typical: robust standard error of the quantity by the jackknife.
      flagged: row numbers of outliers; without outliers, of rows that alone move the quantity by
        more than `typical` (tables of at most 128 rows).
      without_flagged: the quantity without all of those; None where none is flagged.
      robust_value: the quantity by the biweight fit.
    """

    quantity: str
    value: float
    row: np.ndarray
    without_row: np.ndarray
    deviation: np.ndarray
    typical: float
    flagged: tuple[int, ...]
    without_flagged: float | None
    robust_value: float

    @property
    def warning(self) -> str:
        """A warning that names outliers, or rows that move the quantity; "" where there are none."""
        if self.without_flagged is None:
            return ""
        moved = abs(self.without_flagged - self.value)
        outlier = float(np.max(self.deviation)) > OUTLIER
        if not outlier and moved < max(0.005, 0.5 * self.typical):
            return ""
        shown = ", ".join(str(row) for row in self.flagged[:8])
        more = f" and {len(self.flagged) - 8} more" if len(self.flagged) > 8 else ""
        many = len(self.flagged) > 1
        what = "outliers or influential" if many else "an outlier or influential"
        return (
            f"row{'s' * many} {shown}{more} {'are' if many else 'is'} {what} (up to "
            f"{np.max(self.deviation):.3g} robust standard deviations off): without "
            f"{'them' if many else 'it'} {self.quantity} is {self.without_flagged:.3f} in place "
            f"of {self.value:.3f}; look at {'them' if many else 'it'}, or fit with --robust tukey"
        )


def influence(
    residual: Residual,
    theta: np.ndarray,
    data: Any,
    rows: np.ndarray,
    quantity: str,
    of: Callable[[np.ndarray], np.ndarray],
    *,
    delta: float,
    weights: np.ndarray | None = None,
    seed: int = 0,
) -> tuple[Influence, Tukey]:
    """Fits again without each of the rows, and compares with the biweight fit.

    Args:
      theta: the fit [P].
      rows: [n] row numbers, for messages.
      of: thetas [K, P] -> the quantity [K].
      delta: Huber's, of the fit.

    Returns:
      the influence, and the biweight fit.
    """
    n = len(rows)
    base = np.ones(n) if weights is None else np.asarray(weights, float)
    robust = tukey(residual, theta, data, weights=weights, seed=seed)
    left = residuals(residual, theta[None], data)[0]
    deviation = np.abs(residuals(residual, robust.theta[None], data)[0]) / robust.scale
    outlier = (deviation > OUTLIER) & (robust.scale > 1e-9)
    index = np.arange(n)
    if n > _LEFT_OUT:
        slopes = jacobian(residual, theta, data)
        step = np.linalg.pinv(slopes, rcond=1e-9) * left
        value = of(theta[None])[0]
        first = np.abs(of(theta + step.T) - value)
        index = np.argsort(-np.nan_to_num(first))[:_LEFT_OUT]
        index = np.unique(np.concatenate([index, np.flatnonzero(outlier)[:_LEFT_OUT]]))
    kept = np.tile(base, (len(index), 1))
    kept[np.arange(len(index)), index] = 0.0
    starts = np.tile(theta, (len(index), 1))
    out = solve(residual, starts, data, kept, delta=delta, stages=1).theta
    value, changed = float(of(theta[None])[0]), of(out)
    shift = np.abs(changed - value)
    typical = np.sqrt(n) * 1.4826 * float(median_of_known(shift))
    alone = np.zeros(n, bool)
    # An outlier makes other rows look influential, so influential rows are flagged only without one.
    alone[index] = (shift > max(typical, 1e-9)) & (n <= _LEFT_OUT) & ~outlier.any()
    flagged = outlier | alone
    without = None
    if flagged.any() and np.sum(~flagged) > len(theta) + 1 and flagged.mean() <= 0.25:
        several = np.stack([theta, robust.theta])
        again = solve(residual, several, data, base * ~flagged, delta=delta, stages=1)
        without = float(of(again.theta[[int(np.argmin(again.objective))]])[0])
    return (
        Influence(
            quantity=quantity,
            value=value,
            row=rows[index],
            without_row=changed,
            deviation=deviation[index],
            typical=typical,
            flagged=tuple(int(row) for row in rows[flagged]) if without is not None else (),
            without_flagged=without,
            robust_value=float(of(robust.theta[None])[0]),
        ),
        robust,
    )
