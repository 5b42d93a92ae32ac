"""A paper's claim as a value: a measure of the results, and the range in which it must lie."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Claim"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper found, stated so that results can agree or disagree.

    Attributes:
      text: the finding, in one sentence.
      source: the paper and its figure or section.
      measure: "ANALYSIS/NAME", a number that an analysis of the experiment takes from the results.
      low, high: the range that the finding allows the measure. Where the paper gives a value
        and no range, the range says how near counts as the same.
      would_tell: the scale at which the question can be decided, for readers of results that are
        too small to.
    """

    text: str
    source: str
    measure: str
    low: float = -math.inf
    high: float = math.inf
    would_tell: str = ""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"the claim {self.text!r} has no range: {self.low} to {self.high}")
        if "/" not in self.measure:
            raise ValueError(f"a measure is named ANALYSIS/NAME, not {self.measure!r}")

    def to_json(self) -> dict[str, str | float | None]:
        """JSON-ready; an open end of the range is null."""
        ends = {"low": self.low, "high": self.high}
        return vars(self) | {k: v if math.isfinite(v) else None for k, v in ends.items()}

    @classmethod
    def from_json(cls, values: dict[str, str | float | None]) -> Claim:
        """The inverse of `to_json`."""
        low, high = values["low"], values["high"]
        ends = {
            "low": -math.inf if low is None else low,
            "high": math.inf if high is None else high,
        }
        return cls(**(values | ends))
