"""Verdicts on many draws of one planted truth, counted by their word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.verdicts.kinds import Kind

#: Most verdicts that may be wrong where a claim is true or false.
MOST_WRONG = 0.05


@dataclass(frozen=True)
class Count:
    """Words of the verdicts on `draws` results of one truth."""

    kind: str
    truth: float
    holds: bool
    words: dict[str, int]
    wrong: int

    @property
    def draws(self) -> int:
        return sum(self.words.values())

    @property
    def share_wrong(self) -> float:
        return self.wrong / self.draws

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "share_wrong": self.share_wrong}


def count(kind: Kind, draws: int, seed: int = 0) -> list[Count]:
    """One count for every truth of a kind."""
    counts = []
    for place, truth in enumerate(kind.truths):
        words = Counter(
            kind.word(truth, np.random.default_rng([seed, place, i])) for i in range(draws)
        )
        found = words[kind.wrong(truth)] if kind.wrong(truth) else 0
        counts.append(Count(kind.name, truth, kind.holds(truth), dict(words), found))
    return counts


def as_table(counts: Sequence[Count], *, header: bool = True) -> str:
    """Rows of a table in Markdown."""
    words = ("agrees", "disagrees", "consistent", "differs", "not decided", "not tested here")
    lines = []
    if header:
        lines += ["| claim | truth | holds | verdicts | wrong |", "|---|---|---|---|---|"]
    for one in counts:
        said = ", ".join(f"{one.words[word]} {word}" for word in words if one.words.get(word))
        holds = "yes" if one.holds else "no"
        lines.append(f"| {one.kind} | {one.truth:g} | {holds} | {said} | {one.share_wrong:.1%} |")
    return "\n".join(lines)
