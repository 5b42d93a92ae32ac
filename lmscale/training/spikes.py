"""Loss spikes: steps whose training loss jumps far above what it was shortly before."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from typing import Any

#: Steps of a block; a step is held against the block before its own.
BLOCK = 100
#: Robust standard deviations above the block's median from which a loss is a spike.
DEVIATIONS = 6.0
#: Median absolute deviation of a normal distribution, in standard deviations.
_NORMAL_MAD = 0.6745


class SpikeCounter:
    """Counts the spikes of a run as its losses come in.

    A step's loss is a spike where it exceeds m + 6 s, with m the median and s = MAD / 0.6745 the
    robust standard deviation of the losses of the 100 steps of the block before. Consecutive steps
    above are one spike. Blocks begin at the run's first step, so that neither restarts nor the
    size of a dispatch change the count.

    Args:
      saved: what `save` returned, to go on from there.
    """

    def __init__(self, saved: dict[str, Any] | None = None):
        saved = saved or {}
        self.count: int = saved.get("count", 0)
        self._above: bool = saved.get("above", False)
        self._limit: float | None = saved.get("limit")
        self._block: list[float] = list(saved.get("block", ()))

    def add(self, losses: Iterable[float]) -> None:
        """Takes the (finite) losses of the next steps."""
        for loss in losses:
            above = self._limit is not None and loss > self._limit
            self.count += above and not self._above
            self._above = above
            self._block.append(loss)
            if len(self._block) == BLOCK:
                median = statistics.median(self._block)
                spread = statistics.median(abs(x - median) for x in self._block) / _NORMAL_MAD
                limit = median + DEVIATIONS * spread
                self._limit = limit if math.isfinite(limit) else None
                self._block = []

    def save(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "count": self.count,
            "above": self._above,
            "limit": self._limit,
            "block": self._block,
        }
