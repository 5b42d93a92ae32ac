"""Statistics of the numbers among values that may be NaN: NaN where all are.

NumPy's `nanmean` and the like print a warning where there is no number. Here that is no surprise: a bootstrap
draw often gives none, and sometimes none does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["mean_of_known", "median_of_known", "percentiles_of_known", "std_of_known"]


def mean_of_known(values: ArrayLike, axis: int | None = None) -> Any:
    """The mean over `axis` (all values without one) of the values that are not NaN."""
    return _of_known(np.nanmean, values, axis)


def median_of_known(values: ArrayLike, axis: int | None = None) -> Any:
    """The median over `axis` (all values without one) of the values that are not NaN."""
    return _of_known(np.nanmedian, values, axis)


def std_of_known(values: ArrayLike) -> Any:
    """The standard deviation, with divisor n, of the values that are not NaN."""
    return _of_known(np.nanstd, values, None)


def percentiles_of_known(
    values: ArrayLike,
    percentages: Sequence[float],
    axis: int | None = None,
    method: str = "linear",
) -> Any:
    """[percentage, ...] percentiles over `axis` of the values that are not NaN.

    Args:
      method: as of `np.percentile`.
    """
    # By a dictionary, as NumPy's types know the methods one by one.
    how: dict[str, Any] = {"q": percentages, "method": method}
    return _of_known(functools.partial(np.nanpercentile, **how), values, axis, len(percentages))


def _of_known(
    statistic: Callable[..., Any], values: ArrayLike, axis: int | None, *leading: int
) -> Any:
    """`statistic` of what is known; its result has the axes `leading` before those of the values."""
    values = np.asarray(values, float)
    unknown = np.isnan(values)
    nothing = unknown.all(axis=axis)
    if nothing.all():
        return np.full((*leading, *nothing.shape), np.nan)[()]
    # Zeros stand in where there is no number, so that NumPy has nothing to warn of.
    filled = np.where(unknown.all(axis=axis, keepdims=True), 0.0, values)
    return np.where(nothing, np.nan, statistic(filled, axis=axis))[()]
