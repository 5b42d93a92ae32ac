"""Verdicts: a claim of a paper held against what an analysis measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lmscale.report.section import Measure, Section
from lmscale.sweep.claims import Claim
from lmscale.wording import with_interval

__all__ = ["Verdict", "judge"]


@dataclass(frozen=True)
class Verdict:
    """`word` is agrees, disagrees or "can't tell"; `reason` is a sentence with the numbers."""

    claim: Claim
    measure: Measure | None
    word: str
    reason: str

    @property
    def found(self) -> str:
        """What was measured, with its interval; empty where nothing was."""
        if self.measure is None or self.measure.value is None:
            return ""
        return f"{self.measure.what}: {with_interval(self.measure.value, self.measure.interval)}."

    def to_json(self) -> dict[str, str]:
        return {
            "claim": self.claim.text,
            "source": self.claim.source,
            "word": self.word,
            "found": self.found,
            "reason": self.reason,
        }


def judge(claim: Claim, sections: Sequence[Section]) -> Verdict:
    """Agrees where the measure's whole interval lies in the claim's range, disagrees where none of
    it does, and otherwise can't tell. A number without an interval decides nothing, nor does one whose
    measure says why it cannot."""
    analysis, name = claim.measure.split("/", 1)
    section = next((s for s in sections if s.name == analysis), None)
    measure = section.measures.get(name) if section else None
    if measure is None or measure.value is None or not math.isfinite(measure.value):
        why = (
            measure.undecided_because
            if measure and measure.undecided_because
            else "these results do not hold that number"
        )
        return Verdict(claim, measure, "can't tell", _sentence(why, claim))
    if measure.interval is None or not all(map(math.isfinite, measure.interval)):
        why = measure.undecided_because or "the number has no interval, so its noise is unknown"
        return Verdict(claim, measure, "can't tell", _sentence(why, claim))
    if measure.undecided_because:
        return Verdict(claim, measure, "can't tell", _sentence(measure.undecided_because, claim))
    low, high = measure.interval
    allowed = _range(claim)
    if claim.low <= low and high <= claim.high:
        return Verdict(claim, measure, "agrees", f"The interval lies within {allowed}.")
    if high < claim.low or low > claim.high:
        return Verdict(claim, measure, "disagrees", f"The interval lies outside {allowed}.")
    why = f"the interval reaches across the bounds of {allowed}"
    return Verdict(claim, measure, "can't tell", _sentence(why, claim))


def _sentence(why: str, claim: Claim) -> str:
    text = why[0].upper() + why[1:].rstrip(".") + "."
    return text + (f" What would tell: {claim.would_tell.rstrip('.')}." if claim.would_tell else "")


def _range(claim: Claim) -> str:
    if math.isinf(claim.low):
        return f"the claimed range, at most {claim.high:g}"
    if math.isinf(claim.high):
        return f"the claimed range, at least {claim.low:g}"
    return f"the claimed range, {claim.low:g} to {claim.high:g}"
