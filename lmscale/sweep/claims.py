"""A paper's claim as a value: an estimate from the results, and the range in which it must lie.

A paper says two kinds of things. A *finding* is a sign, an order, or an equivalence within a margin; it
can be decided on any text at any scale that meets its conditions. A *number* is a constant that the paper
measured on its own text; it is set beside one's own, and neither passes nor fails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Claim", "finding", "published_number"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says, stated so that results can be held against it.

    Made by `finding` or `published_number`.

    Attributes:
      text: the claim, in one sentence.
      source: the paper and its figure, equation or section.
      measure: "STUDY/NAME", an estimate that a study of the experiment takes from the results.
      low, high: of a finding, the range that it allows the estimate; of a number, the published value
        with its uncertainty.
      width: of a number, the widest 95% interval that is still informative; None for a finding.
      would_tell: what would decide the claim, shown where the results do not.
    """

    text: str
    source: str
    measure: str
    low: float = -math.inf
    high: float = math.inf
    width: float | None = None
    would_tell: str = ""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"the claim {self.text!r} has no range: {self.low} to {self.high}")
        if "/" not in self.measure:
            raise ValueError(f"an estimate is named STUDY/NAME, not {self.measure!r}")
        if self.width is not None and not self.high - self.low <= self.width < math.inf:
            raise ValueError(
                f"the number of the claim {self.text!r} has a range of {self.high - self.low}, wider "
                f"than the interval of {self.width} that is to tell anything about it"
            )

    @property
    def is_number(self) -> bool:
        return self.width is not None

    def to_json(self) -> dict[str, str | float | None]:
        """JSON-ready; an open end of the range is null."""
        ends = {"low": self.low, "high": self.high}
        return vars(self) | {k: v if math.isfinite(v) else None for k, v in ends.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Claim:
        """The inverse of `to_json`; stores of earlier versions have no `width`."""
        low, high = values["low"], values["high"]
        ends = {
            "low": -math.inf if low is None else low,
            "high": math.inf if high is None else high,
        }
        return cls(**{**values, **ends})


def finding(
    measure: str,
    text: str,
    source: str,
    *,
    at_least: float = -math.inf,
    at_most: float = math.inf,
    would_tell: str = "",
) -> Claim:
    """A sign (`at_least=0`), an order, or an equivalence within a margin (both ends); see `Claim`."""
    return Claim(
        measure=measure,
        text=text,
        source=source,
        low=at_least,
        high=at_most,
        would_tell=would_tell,
    )


def published_number(
    measure: str,
    text: str,
    source: str,
    low: float,
    high: float,
    *,
    width: float | None = None,
    would_tell: str = "",
) -> Claim:
    """A constant as the paper gives it, from `low` to `high`; see `Claim`.

    Args:
      width: by default twice the published range: an interval wider than that holds the paper's value
        and too many others.
    """
    width = 2 * (high - low) if width is None else width
    return Claim(
        measure=measure,
        text=text,
        source=source,
        low=low,
        high=high,
        width=width,
        would_tell=would_tell,
    )
