"""Learning curves for the envelope: ln L as a smooth function of ln C, one per run.

Curves are smoothed by a cubic spline in ln C. Generalised cross-validation sets its penalty for each
curve (Craven & Wahba 1979): a curve without noise is interpolated, whatever its number of points,
and a noisy one is smoothed as far as its own noise asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline, PchipInterpolator

from lmscale.laws.table import Runs

__all__ = ["Curve", "curves_of", "smoothed", "within"]

#: Most points of a curve that the spline is fitted to: more are averaged in ln C first.
_MOST_POINTS = 400


@dataclass(frozen=True)
class Curve:
    """One run: increasing ln C, ln D and smoothed ln L [point], and ln L as a function of ln C."""

    name: str
    params: float
    log_c: np.ndarray
    log_d: np.ndarray
    smooth: np.ndarray
    at: Callable[[np.ndarray], np.ndarray]

    def shown(self) -> dict[str, Any]:
        flops, loss = np.exp(self.log_c), np.exp(self.smooth)
        return {"name": self.name, "params": self.params, "flops": flops, "loss": loss}


def curves_of(runs: Runs, smooth: float | None) -> list[Curve]:
    """The curve of every run that has two points or more, in the order of their names.

    Args:
      smooth: see `lmscale.laws.envelope.fit_envelope`.
    """
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
        at = smoothed(log_c, log_loss, smooth)
        params = float(np.median(runs["params"][index]))
        log_d = np.log(runs["tokens"][index])
        curves.append(Curve(str(name), params, log_c, log_d, at(log_c), at))
    return curves


def smoothed(
    log_c: np.ndarray, log_loss: np.ndarray, smooth: float | None
) -> Callable[[np.ndarray], np.ndarray]:
    """ln L as a function of ln C: a smoothing spline, or local lines of width `smooth`."""
    if smooth:
        log_loss = _local_lines(log_c, log_loss, smooth)
    if smooth is not None or len(log_c) < 8:
        # Monotone between the points, so without overshoot; straight chords would lie above a convex
        # curve.
        return PchipInterpolator(log_c, log_loss, extrapolate=True)
    if len(log_c) > _MOST_POINTS or np.diff(log_c).min() < 1e-5 * np.ptp(log_c):
        log_c, log_loss = _binned(log_c, log_loss)
    return CubicSpline(log_c, _spline_values(log_c, log_loss), bc_type="natural")


def _spline_values(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The cubic smoothing spline at its knots x, by generalised cross-validation.

    With K the penalty of the squared second derivative (Green & Silverman 1994, sec. 2.1) the
    spline is (I + lambda K)^-1 y, which is diagonal in the eigenvectors of K. lambda is the one with
    the least |y - H y|^2 / tr(I - H)^2 on a grid, because that score has several minima.
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
    """Straight lines fitted locally with Gaussian weights; unlike a mean, they do not lag at the ends."""
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


def within(curve: Curve, grid: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values` where the curve was run, infinite elsewhere."""
    return np.where((grid >= curve.log_c[0]) & (grid <= curve.log_c[-1]), values, np.inf)
