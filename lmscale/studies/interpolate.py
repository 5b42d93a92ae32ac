"""Values between measured points, such as a loss at a size between two sizes that were trained."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["between"]


def between(
    x: Any, known_x: Any, known_y: Any, *, log: bool = True, slack: float = 0.0
) -> np.ndarray:
    """y at `x` on straight lines between neighbouring points; NaN outside of them.

    Args:
      x: any shape.
      known_x, known_y: [point], in any order.
      log: whether the lines are straight in ln x and ln y, where a power law is straight.
      slack: an x outside of the points by at most this share takes the value of the nearest end.
    """
    x, known_x, known_y = (np.asarray(values, float) for values in (x, known_x, known_y))
    order = np.argsort(known_x)
    known_x, known_y = known_x[order], known_y[order]
    inside = (x >= known_x[0] * (1 - slack)) & (x <= known_x[-1] * (1 + slack))
    if not log:
        return np.where(inside, np.interp(x, known_x, known_y), np.nan)
    y = np.exp(np.interp(np.log(x), np.log(known_x), np.log(known_y)))
    return np.where(inside, y, np.nan)
