"""Before training: does each budget of a planned IsoFLOP grid have sizes on both sides of its minimum?

A profile whose minimum lies outside of its sizes gives no reliable exponent, and this shows only after
training. A law that is known before (the fit of a smaller grid, or a published law) predicts where the
minima will be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lmscale.laws.advise import advise
from lmscale.laws.result import FitError, FitResult

__all__ = ["Centering", "grid_centering"]

#: Sizes that a budget needs on either side of its minimum. A parabola has three coefficients, and with
#: one size on a side the noise of that run alone would decide where the minimum lies.
SIZES_TO_EITHER_SIDE = 2


@dataclass(frozen=True)
class Centering:
    """The sizes of one budget, compared with the best size by a prior law.

    Attributes:
      flops: the budget.
      sizes: parameters of its models, in increasing order.
      n_opt, n_interval: the best size by the prior law, and its interval (None where it has none).
      below, above: how many sizes lie on either side of it.
      offset: ln of the geometric mean of the smallest and largest size over n_opt.
    """

    flops: float
    sizes: tuple[float, ...]
    n_opt: float
    n_interval: tuple[float, float] | None
    below: int
    above: int
    offset: float

    @property
    def well_centered(self) -> bool:
        return min(self.below, self.above) >= SIZES_TO_EITHER_SIDE

    def __str__(self) -> str:
        """One line that says where the sizes lie, and what would be right."""
        interval = ""
        if self.n_interval is not None:
            interval = " ({:.3g} to {:.3g})".format(*self.n_interval)
        text = (
            f"budget {self.flops:.3g}: the prior's best size is {self.n_opt:.3g}{interval}, with "
            f"{self.below} of {len(self.sizes)} sizes below it and {self.above} above"
        )
        if self.well_centered:
            return text
        factor = math.exp(abs(self.offset))
        side, remedy = ("large", "smaller") if self.offset > 0 else ("small", "larger")
        return (
            f"{text}: the grid's middle is {factor:.2g}x too {side}; train {remedy} models too, so "
            f"that {SIZES_TO_EITHER_SIDE} lie to either side"
        )


def grid_centering(
    grid: Iterable[tuple[float, Sequence[float]]], law: FitResult | str
) -> list[Centering]:
    """The sizes of each budget of a planned grid, compared with the best size by a prior law.

    Args:
      grid: (budget in FLOPs, parameters of its models), counted by the law's convention.
      law: any law that splits compute between N and D: a fit, or the name of a published one.

    Raises:
      FitError: a budget has no sizes, or the law gives no best size.
    """
    found = []
    for flops, sizes in grid:
        ordered = tuple(sorted({float(n) for n in sizes}))
        if not ordered:
            raise FitError(f"the budget {flops:.3g} has no sizes")
        advice = advise(law, flops=float(flops))
        found.append(
            Centering(
                flops=float(flops),
                sizes=ordered,
                n_opt=advice.n_params,
                n_interval=advice.intervals.get("n_params"),
                below=sum(n < advice.n_params for n in ordered),
                above=sum(n > advice.n_params for n in ordered),
                offset=0.5 * math.log(ordered[0] * ordered[-1]) - math.log(advice.n_params),
            )
        )
    return found
