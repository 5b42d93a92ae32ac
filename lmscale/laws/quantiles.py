"""Quantiles that intervals are made of.

`scipy.stats` has the same numbers, but takes a second to import, which every command would pay for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri, stdtrit


def normal_quantile(p: ArrayLike) -> np.ndarray:
    """Below which a standard normal number lies with probability p."""
    return ndtri(p)


def student_quantile(p: ArrayLike, freedom: ArrayLike) -> np.ndarray:
    """Below which a number of Student's distribution lies with probability p.

    Args:
      freedom: degrees of freedom, above 0; any real number.
    """
    return stdtrit(freedom, p)
