"""`Estimate`: one number that a study found, with its interval, and why it cannot test a claim if so.

Every interval of a study comes from here, from `lmscale.laws.result.interval` (of draws) or from a
fit. A study never returns a bare number that a claim could be compared with.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike

from lmscale.laws import FitResult
from lmscale.laws.quantiles import student_quantile
from lmscale.laws.result import interval as percentile_interval

__all__ = [
    "LEAST_SEEDS",
    "LEVEL",
    "Basis",
    "Estimate",
    "few_seeds",
    "interval_of_draws",
    "interval_of_mean",
    "lacking_seeds",
    "undecided",
]

#: Fewest seeds for an interval, and so for a verdict: two seeds say almost nothing about noise.
LEAST_SEEDS = 3
#: The level of every interval of a study.
LEVEL = 0.95
#: An interval needs more finite draws than this, and they must be this share of all draws: if more draws
#: fail, the interval of the others is too narrow.
LEAST_DRAWS, LEAST_SHARE = 20, 0.9


class Basis(TypedDict, total=False):
    """Keyword arguments of an `Estimate` beside its number."""

    undecided_because: str
    of: str
    at: tuple[float, ...]
    n: int
    seeds: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its interval.

        gap = size.study(results).estimates["gap"]
        print(gap.value, gap.interval, gap.undecided_because)

    Attributes:
      name: by which claims and figures refer to it.
      value: None where the results do not hold it.
      interval: 95%, over seeds or bootstrap draws; None where there is no noise to judge it by.
      draws: [draw] of the bootstrap, NaN where one gave no number; None without a bootstrap.
      undecided_because: why it cannot test a claim: what is missing, or in what these runs differ from
        those that the claim is about. Empty where it can.
      of: its family or model, where the study chose one of several.
      at: the size (or two, of a range) that it was read at.
      n: how many models, pairs or budgets it was read from (the study says which).
      seeds: how many seeds each of these has.
    """

    name: str
    value: float | None = None
    interval: tuple[float, float] | None = None
    draws: np.ndarray | None = field(default=None, repr=False)
    undecided_because: str = ""
    of: str = ""
    at: tuple[float, ...] = ()
    n: int = 0
    seeds: int = 0

    @classmethod
    def of_draws(
        cls, name: str, value: float, draws: np.ndarray | None, **rest: Unpack[Basis]
    ) -> Estimate:
        """An estimate whose interval is that of its draws (`interval_of_draws`); without draws it has none."""
        interval = None if draws is None else interval_of_draws(draws)
        if draws is not None and interval is None:
            why = rest.get("undecided_because") or "draws of the runs often give no number"
            rest["undecided_because"] = why
        return cls(name=name, value=float(value), interval=interval, draws=draws, **rest)

    @classmethod
    def of_mean(cls, name: str, values: ArrayLike, **rest: Unpack[Basis]) -> Estimate:
        """The mean of one value a seed [seed] (`interval_of_mean`)."""
        values = np.asarray(values, float)
        few = few_seeds(len(values), "an interval")
        basis: Basis = {"undecided_because": few, "seeds": len(values), **rest}
        interval = None if few else interval_of_mean(values)
        return cls(name=name, value=float(np.mean(values)), interval=interval, **basis)

    @classmethod
    def of_parameter(cls, fit: FitResult, name: str, **rest: Unpack[Basis]) -> Estimate:
        """One parameter of a fit; undecided, with the reason, where the fit was refused."""
        if fit.failure:
            rest["undecided_because"] = fit.failure
            return cls(name=name, **rest)
        return cls(
            name=name,
            value=fit.parameters[name],
            interval=fit.intervals.get(name),
            draws=fit.draws.get(name),
            **rest,
        )

    @classmethod
    def of_fit(
        cls,
        fit: FitResult,
        name: str,
        read: Callable[[Mapping[str, Any]], Any],
        **rest: Unpack[Basis],
    ) -> Estimate:
        """A number computed from the parameters of a fit; its interval comes from the draws of the fit.

        Args:
          read: parameters, each a number or [draw] -> the number, or [draw].
        """
        if fit.failure:
            rest["undecided_because"] = fit.failure
            return cls(name=name, **rest)
        value, interval, draws = float(read(fit.parameters)), None, None
        if fit.draws:
            with np.errstate(all="ignore"):
                draws = read(fit.draws)
            interval = interval_of_draws(draws, fit.draw_level or fit.level)
        return cls(name=name, value=value, interval=interval, draws=draws, **rest)

    @property
    def is_known(self) -> bool:
        return self.value is not None and math.isfinite(self.value)

    @property
    def known(self) -> float:
        """The value, of an estimate that has one.

        Raises:
          ValueError: where there is none.
        """
        if self.value is None:
            raise ValueError(f"{self.name} is not known: {self.undecided_because}")
        return self.value

    def may_be(self, value: float) -> bool:
        """Whether the interval holds `value`; False where there is no interval."""
        return self.interval is not None and self.interval[0] <= value <= self.interval[1]


def undecided(names: Sequence[str], why: str) -> dict[str, Estimate]:
    """Estimates without values, for a study whose results give none."""
    return {name: Estimate(name=name, undecided_because=why) for name in names}


def few_seeds(seeds: int, what: str = "a difference") -> str:
    """Why `what` needs more seeds than these; empty where they suffice."""
    return "" if seeds >= LEAST_SEEDS else f"{what} needs {LEAST_SEEDS} seeds, not {seeds}"


def lacking_seeds(why: str) -> bool:
    """Whether `why` says, in the words of `few_seeds`, that there are too few seeds."""
    return re.search(rf"needs {LEAST_SEEDS} seeds, not \d", why) is not None


def interval_of_draws(draws: np.ndarray, level: float = LEVEL) -> tuple[float, float] | None:
    """The percentile interval of draws; None where too few are finite (`LEAST_SHARE`)."""
    finite = np.isfinite(draws)
    if finite.sum() <= LEAST_DRAWS or finite.mean() < LEAST_SHARE:
        return None
    return percentile_interval(draws, level)


def interval_of_mean(values: ArrayLike, level: float = LEVEL) -> tuple[float, float] | None:
    """Student's interval of a mean for three or more seeds, the range for two, None for one."""
    values = np.asarray(values, float)
    if len(values) < 2:
        return None
    if len(values) == 2:
        return float(values.min()), float(values.max())
    half = student_quantile(0.5 + level / 2, len(values) - 1) * values.std(ddof=1)
    half = float(half / math.sqrt(len(values)))
    return float(values.mean()) - half, float(values.mean()) + half
