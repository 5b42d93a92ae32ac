"""Straight lines through runs of several sizes.

The seeds of a size share its deviation from the line. So the error is that of the means of sizes, with
(sizes - 2) degrees of freedom however many seeds each has. If the means happen to lie closer to the line
than the scatter between seeds explains, the scatter between seeds is used instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from lmscale.laws.quantiles import student_quantile

__all__ = ["Line", "fit_line", "lines_through"]


@dataclass(frozen=True)
class Line:
    """y = height + slope (x - middle), by least squares over the runs.

    Attributes:
      covariance: [2, 2] of (height, slope); NaN with fewer than three sizes.
      freedom: degrees of freedom of the covariance: sizes less two.
    """

    middle: float
    height: float
    slope: float
    covariance: np.ndarray
    freedom: int

    def slope_interval(self, level: float = 0.95) -> tuple[float, float] | None:
        if self.freedom < 1:
            return None
        half = float(
            student_quantile(0.5 + level / 2, self.freedom) * math.sqrt(self.covariance[1, 1])
        )
        return self.slope - half, self.slope + half

    def draws(self, n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Heights and slopes [n] from Student's distribution in two dimensions."""
        rng = np.random.default_rng(seed)
        root = np.linalg.cholesky(self.covariance + 1e-30 * np.eye(2))
        normal = rng.standard_normal((n, 2)) @ root.T
        normal /= np.sqrt(rng.chisquare(self.freedom, (n, 1)) / self.freedom)
        return self.height + normal[:, 0], self.slope + normal[:, 1]


def fit_line(x: np.ndarray, y: np.ndarray, sizes: np.ndarray | None = None) -> Line:
    """The line through runs of several sizes.

    Args:
      x, y: [run]; either may hold noise.
      sizes: [run] which size a run is of; by default those of one x.
    """
    labels, size = np.unique(x if sizes is None else sizes, return_inverse=True)
    n_sizes, count = len(labels), np.bincount(size).astype(float)
    middle = float(x.mean())
    design = np.stack([np.ones_like(x), x - middle], axis=1)
    normal = np.linalg.inv(design.T @ design)
    height, slope = normal @ design.T @ y
    rest = y - design @ (height, slope)
    of_size = np.bincount(size, rest) / count
    covariance = np.full((2, 2), np.nan)
    if n_sizes > 2:
        variance = n_sizes * np.average(of_size**2, weights=count) / (n_sizes - 2)
        if len(x) > n_sizes:
            own = float(np.sum((rest - of_size[size]) ** 2)) / (len(x) - n_sizes)
            variance = max(variance, own * float(np.mean(1 / count)))
        sums = np.stack([np.bincount(size, column) for column in design.T], axis=1)
        covariance = variance * normal @ (sums.T @ sums) @ normal
    return Line(middle, float(height), float(slope), covariance, n_sizes - 2)


def lines_through(
    x: np.ndarray, y: np.ndarray, weights: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Slopes and heights at x = 0 of the lines y = height + slope x by (weighted) least squares.

    Args:
      x: [point]; y: [..., point] for one line each, such as one a draw; weights: [point].
    """
    weights = np.ones(len(x)) if weights is None else weights
    middle = weights @ x / weights.sum()
    slope = y @ (weights * (x - middle)) / (weights @ (x - middle) ** 2)
    return slope, y @ weights / weights.sum() - slope * middle
