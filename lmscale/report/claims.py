"""Verdicts: a claim of a paper held against what a study measured."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lmscale.report.command import repeat_command
from lmscale.report.section import Measure, Section
from lmscale.studies.estimate import LEAST_SEEDS, lacking_seeds
from lmscale.studies.results import Results
from lmscale.sweep.claims import Claim
from lmscale.wording import duration, has_an_edge, listed, number, plural, sentence, with_interval

__all__ = ["WORDS", "Verdict", "VerdictGroup", "grouped", "judge", "tally"]

#: The words of a verdict, in the order in which a page shows them -> what each says.
WORDS = {
    "agrees": "The whole 95% interval lies where the paper's finding puts it.",
    "disagrees": "None of the 95% interval lies where the paper's finding puts it.",
    "consistent": "The 95% interval overlaps the paper's range and is narrow enough to say so.",
    "differs": "The 95% interval does not overlap the paper's range, which was measured on another text.",
    "not decided": "The 95% interval reaches across; each line says what it excludes.",
    "not tested here": "These runs do not meet the conditions of the paper's finding.",
}


@dataclass(frozen=True)
class Verdict:
    """One of `WORDS`; `reason` is a sentence or two with the numbers."""

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
            "kind": "number" if self.claim.is_number else "finding",
            "word": self.word,
            "found": self.found,
            "reason": self.reason,
        }


@dataclass(frozen=True)
class VerdictGroup:
    """The verdicts of one word, with the advice that holds for them, each said once."""

    word: str
    meaning: str
    verdicts: tuple[Verdict, ...]
    advice: tuple[str, ...]


def judge(claim: Claim, sections: Sequence[Section], results: Results | None = None) -> Verdict:
    """Holds a claim against the sections' estimates, by their 95% intervals; see `WORDS`.

    An estimate without an interval decides nothing. One that says why it is undecided lacks the
    conditions of the claim, or the data.

    Args:
      results: what the sections are of, for the cost of seeds where these are missing.
    """
    study, name = claim.measure.split("/", 1)
    section = next((s for s in sections if s.name == study), None)
    measure = section.measures.get(name) if section else None
    if measure is None or measure.value is None or not math.isfinite(measure.value):
        why = measure.undecided_because if measure else _missing(name, section)
        return _untested(claim, measure, why or "these results do not hold that number")
    if measure.undecided_because:
        verdict = _untested(claim, measure, measure.undecided_because)
        more = _more_seeds(results) if results and lacking_seeds(measure.undecided_because) else ""
        return dataclasses.replace(verdict, reason=f"{verdict.reason} {more}".strip())
    if measure.interval is None or not has_an_edge(measure.interval):
        why = "The number has no interval, so its noise is unknown, and it excludes nothing."
        return Verdict(claim, measure, "not decided", why)
    return _judge_number(claim, measure) if claim.is_number else _judge_finding(claim, measure)


def _missing(name: str, section: Section | None) -> str:
    """Why a section has not the number that a claim asks for; empty where nothing more is known."""
    if section is not None and section.failure:
        return section.failure
    if section is not None and section.measures:
        has = ", ".join(section.measures)
        return f"the study {section.name} has no number {name!r} of these results; it has {has}"
    return ""


def grouped(verdicts: Sequence[Verdict]) -> list[VerdictGroup]:
    """The verdicts by word, in the order of `WORDS`; words that nothing got are left out."""
    groups = []
    for word, meaning in WORDS.items():
        mine = tuple(verdict for verdict in verdicts if verdict.word == word)
        open_ones = mine if word in ("not decided", "not tested here") else ()
        advice = dict.fromkeys(v.claim.would_tell.rstrip(".") for v in open_ones)
        if mine:
            groups.append(VerdictGroup(word, meaning, mine, tuple(filter(None, advice))))
    return groups


def tally(words: Sequence[str]) -> str:
    """How many claims got which word, in a sentence."""
    if not words:
        return "No claim of a paper is declared."
    counts = Counter(words)
    shown = listed([f"{counts[word]} {word}" for word in WORDS if counts[word]])
    return f"{plural(len(words), 'claim')} of the papers: {shown}."


def _more_seeds(results: Results) -> str:
    """The seeds that would meet the condition, and what they cost at the speed of the ended runs."""
    table = results.table
    spent = table[table["status"] == "done"].groupby("seed")["seconds"].sum()
    if not len(spent):
        return ""
    seeds = list(spent.index[:LEAST_SEEDS])
    seeds += [k for k in range(LEAST_SEEDS) if k not in seeds][: LEAST_SEEDS - len(seeds)]
    missing = sum(float(spent.max() - spent.get(seed, 0.0)) for seed in seeds)
    command = repeat_command(results.experiment, {"--seeds": [str(seed) for seed in sorted(seeds)]})
    return (
        f"Cheapest remedy: {command} --extend --out STORE adds the missing seeds in about "
        f"{duration(missing)} of training, summed over runs."
    )


def _untested(claim: Claim, measure: Measure | None, why: str) -> Verdict:
    return Verdict(claim, measure, "not tested here", sentence(why))


def _judge_finding(claim: Claim, measure: Measure) -> Verdict:
    low, high = measure.interval
    allowed = _range(claim)
    if claim.low <= low and high <= claim.high:
        return Verdict(claim, measure, "agrees", f"The interval lies within {allowed}.")
    if high < claim.low or low > claim.high:
        return Verdict(claim, measure, "disagrees", f"The interval lies outside {allowed}.")
    why = f"The interval reaches across the bounds of {allowed}."
    return Verdict(claim, measure, "not decided", f"{why} {_excluded(measure)}")


def _judge_number(claim: Claim, measure: Measure) -> Verdict:
    low, high = measure.interval
    theirs = f"the paper's {number(claim.low)} to {number(claim.high)}"
    if high < claim.low or low > claim.high:
        return Verdict(claim, measure, "differs", f"The interval excludes {theirs}.")
    if high - low <= claim.width:
        return Verdict(claim, measure, "consistent", f"The interval holds some of {theirs}.")
    wide = f"is {number(high - low)} wide" if math.isfinite(high - low) else "is open at one end"
    why = (
        f"The interval holds some of {theirs}, but {wide}: it would have to be narrower than "
        f"{number(claim.width)} to tell."
    )
    return Verdict(claim, measure, "not decided", f"{why} {_excluded(measure)}")


def _excluded(measure: Measure) -> str:
    low, high = measure.interval
    sides = [f"below {number(low)}"] * math.isfinite(low) + [
        f"above {number(high)}"
    ] * math.isfinite(high)
    return f"It excludes everything {' and '.join(sides)}."


def _range(claim: Claim) -> str:
    if math.isinf(claim.low):
        return f"the claimed range, at most {_plain(claim.high)}"
    if math.isinf(claim.high):
        return f"the claimed range, at least {_plain(claim.low)}"
    return f"the claimed range, {_plain(claim.low)} to {_plain(claim.high)}"


def _plain(end: float) -> str:
    return f"{end:g}".replace("-", "−")
