"""Power laws through the lower envelope of learning curves, in three readings.

- "envelope" uses every budget;
- "pareto" uses the budgets at which no smaller one has a loss as low;
- "hull" uses the corners of the lower convex hull in ln C and ln L.

Noise and cooled-down ends of curves move the three apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["READINGS", "Envelopes", "between_sizes", "hull", "read_laws"]

READINGS = ("envelope", "pareto", "hull")


class Envelopes(NamedTuple):
    """Which budgets of each envelope were fitted, and the laws through them.

    Attributes:
      used: [envelope, point].
      inside: [envelope], whether a size between the smallest and the largest is ever best.
      laws: a, b, k_N and k_D, each [envelope].
    """

    used: np.ndarray
    inside: np.ndarray
    laws: dict[str, np.ndarray]


def read_laws(
    grid: np.ndarray,
    n: np.ndarray,
    d: np.ndarray,
    lowest: np.ndarray,
    size: np.ndarray,
    reading: str,
) -> Envelopes:
    """The power laws through envelopes.

    Only budgets at which the power law itself lies within the sizes that were run are fitted. To
    choose them by which run has the lowest loss (leaving out the smallest and the largest size)
    would flatten the law: of a noisy smallest run only its low losses would be kept.

    Args:
      grid: [point] ln C.
      n, d, lowest: [envelope, point] best ln N and ln D, and ln L there (infinite for none).
      size: [run] ln N.
      reading: one of `READINGS`.
    """
    found = np.isfinite(lowest)
    if reading == "pareto":
        found &= lowest <= np.minimum.accumulate(lowest, axis=1)
    elif reading == "hull":
        found = np.stack([hull(grid, row) for row in lowest])
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
        # Few curves can give draws so steep that the constant overflows to infinity or to zero. It
        # then counts as one of the largest or smallest.
        with np.errstate(over="ignore", under="ignore"):
            laws[slope_name], laws[level_name] = slope[:, 0], np.exp(level[:, 0])
    return Envelopes(used, inside, {name: laws[name] for name in ("a", "b", "k_N", "k_D")})


def _lines(grid: np.ndarray, values: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Slope and level [envelope, 1] of the straight lines through `values` [envelope, point]."""
    w = used.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        total = w.sum(axis=1, keepdims=True)
        x, y = (w @ grid)[:, None] / total, (w * values).sum(axis=1, keepdims=True) / total
        dx = grid - x
        slope = (w * dx * (values - y)).sum(axis=1, keepdims=True)
        slope = slope / (w * dx**2).sum(axis=1, keepdims=True)
        return slope, y - slope * x


def between_sizes(
    log_loss: np.ndarray, tokens: np.ndarray, size: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Best ln N and ln D [point], between the sizes that were run.

    The best of a few sizes is a staircase in C, and its steps tilt the power law through them. So the
    vertex of the parabola through the best size and its two neighbours is taken, at most half way
    to either of them. Where a neighbour was not run, it is the best size itself.

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


def hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
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
