"""The numbers of a run's folder, and where two folders differ."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

#: Numbers that depend on the clock.
CLOCK = {"tokens_per_second", "seconds"}
#: Fields of result.json that are names or digests, not results.
NAMES = {"run", "digest", "seal", "sha256"}


def numbers_of(folder: Path) -> dict[str, str]:
    """All of metrics.jsonl and result.json but what depends on the clock, as {place: JSON text}.

    JSON texts of floats are equal exactly where their bits are.
    """
    found: dict[str, str] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        kind = "evaluation" if "eval" in record else "training"
        _flatten(f"step {record['step']}, {kind}", record, found)
    _flatten("result", json.loads((folder / "result.json").read_text()), found)
    return found


def _flatten(place: str, value: Any, found: dict[str, str]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if key not in CLOCK | NAMES:
                _flatten(f"{place}: {key}", item, found)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            _flatten(f"{place}[{number}]", item, found)
    else:
        found[place] = json.dumps(value)


def verdict(before: dict[str, str], after: dict[str, str]) -> str:
    """How many numbers differ and the first of them, or "identical".

    Places that only one commit writes are counted, because a later commit may record more.
    """
    shared = [place for place in before if place in after]
    wrong = [place for place in shared if before[place] != after[place]]
    extra = ""
    for word, these, others in (("missing", before, after), ("new", after, before)):
        if alone := [place for place in these if place not in others]:
            extra += f" ({len(alone)} {word}: {alone[0]}{', ...' if len(alone) > 1 else ''})"
    if wrong:
        first = wrong[0]
        return (
            f"{len(wrong)} of {len(shared)} numbers differ, the first {first}: "
            f"{before[first]}, then {after[first]}{extra}"
        )
    return f"identical{extra}"
