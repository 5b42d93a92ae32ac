"""Noise between cells whose runs share seeds, and the intervals that follow from it.

Runs of one seed share their first weights and the order of their data, which moves the losses of all
cells alike. A comparison of cells is affected only by what remains after the mean of every cell and of
every seed is subtracted. With n cells and s seeds it has (n - 1)(s - 1) degrees of freedom.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lmscale.laws.quantiles import student_quantile
from lmscale.studies.estimate import LEVEL

__all__ = ["Noise", "additive_noise"]


@dataclass(frozen=True)
class Noise:
    """The noise of one run: its standard deviation, in the unit of the losses, and degrees of freedom.

    The half-widths are of 95% intervals of means over `seeds`.
    """

    std: float
    freedom: int
    seeds: int

    @property
    def half_of_mean(self) -> float:
        """Half-width for one cell's mean, without the part that seeds share across cells."""
        return self._student * self.std / math.sqrt(self.seeds)

    @property
    def half_of_difference(self) -> float:
        """Half-width for the difference of two cells that were chosen before their losses were seen."""
        return math.sqrt(2) * self.half_of_mean

    def half_of_largest(self, cells: int) -> float:
        """Half-width for any difference among so many cells, also of the two farthest apart (Tukey)."""
        return _studentized(cells, self.freedom) * self.std / math.sqrt(self.seeds)

    @property
    def _student(self) -> float:
        return float(student_quantile(0.5 + LEVEL / 2, self.freedom))


def additive_noise(losses: ArrayLike) -> Noise:
    """The noise of losses [cell, seed] about the sum of a mean for every cell and one for every seed."""
    losses = np.asarray(losses, float)
    cells, seeds = losses.shape
    rest = losses - losses.mean(axis=0) - losses.mean(axis=1, keepdims=True) + losses.mean()
    freedom = (cells - 1) * (seeds - 1)
    return Noise(math.sqrt(float(np.sum(rest**2)) / max(1, freedom)), freedom, seeds)


@functools.cache
def _studentized(cells: int, freedom: int) -> float:
    """The 95% point of the largest difference of so many means, in units of the standard error of one."""
    from scipy.stats import studentized_range  # a second of import, for a few reports

    return float(studentized_range.ppf(LEVEL, cells, freedom))
