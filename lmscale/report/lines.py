"""Straight lines through runs of several sizes, with bootstrap intervals over the runs."""

from __future__ import annotations

import numpy as np

from lmscale.laws.result import expanded, interval

__all__ = ["draw_runs", "slope", "slope_interval", "slope_with_interval"]


def draw_runs(x: np.ndarray, n: int = 2000) -> np.ndarray:
    """Bootstrap counts [draw, run] that keep at least two distinct x."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(len(x), np.full(len(x), 1 / len(x)), size=n)
    member = x[:, None] == np.unique(x)
    return counts[((counts @ member) > 0).sum(axis=1) >= 2]


def slope(x: np.ndarray, y: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """d y / d x by least squares, once for every row of counts (once for all runs without them)."""
    weights = np.ones((1, len(x))) if counts is None else counts
    dx = x - (weights @ x / weights.sum(axis=1))[:, None]
    return (weights * dx) @ y / (weights * dx**2).sum(axis=1)


def slope_interval(drawn: np.ndarray, n_runs: int) -> tuple[float, float]:
    """95% from draws of a number that slopes decide, made wide enough for few runs."""
    return interval(drawn, expanded(0.95, n_runs, 2), axis=0)


def slope_with_interval(
    x: np.ndarray, y: np.ndarray, cells: np.ndarray | None = None
) -> tuple[float, tuple[float, float]]:
    """The slope and its 95% interval; `cells` says which runs are of one x, where x has noise."""
    counts = draw_runs(x if cells is None else cells)
    return float(slope(x, y)[0]), slope_interval(slope(x, y, counts), len(x))
