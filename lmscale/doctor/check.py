"""What a check is, and how checks are run: one that crashes costs itself alone."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "warning", "failed"]


@dataclass(frozen=True)
class Place:
    """Where checks look.

    Attributes:
      out: the folder that results would go to; it may be remote, as gs://bucket/x.
      scratch: a folder of our own for files of the checks, which is deleted afterwards.
    """

    out: str | Path
    scratch: Path


@dataclass(frozen=True)
class Finding:
    """What a check found.

    Attributes:
      status: "ok"; "warning" where lmscale works but not as well as it could; "failed".
      text: the finding in a line.
      remedy: what to do about a warning or a failure.
      facts: numbers and names for programs, as JSON.
    """

    status: Status
    text: str
    remedy: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """A check.

    Attributes:
      name: one word, for tables and JSON.
      run: the check.
      needed: whether lmscale cannot train where it fails.
      long: whether it takes more than a few seconds; `--quick` leaves it out.
      first: whether the checks after it make no sense, or crash, where it fails.
    """

    name: str
    run: Callable[[Place], Finding]
    needed: bool = False
    long: bool = False
    first: bool = False


@dataclass(frozen=True)
class Result:
    """A finding, whose it is and how long it took."""

    check: Check
    finding: Finding
    seconds: float

    @property
    def fatal(self) -> bool:
        """Whether a needed check failed."""
        return self.check.needed and self.finding.status == "failed"

    def to_json(self) -> dict[str, Any]:
        found = self.finding
        return {
            "check": self.check.name,
            "status": found.status,
            "needed": self.check.needed,
            "text": found.text,
            "remedy": found.remedy,
            "facts": found.facts,
            "seconds": self.seconds,
        }


def run_checks(checks: Sequence[Check], place: Place) -> Iterator[Result]:
    """Runs the checks one after the other. What one raises is its failure."""
    for check in checks:
        start = time.monotonic()
        try:
            found = check.run(place)
        except Exception as error:  # Whatever it is: the other checks have something to say too.
            found = _crashed(error)
        yield Result(check, found, time.monotonic() - start)
        if check.first and found.status == "failed":
            return


def _crashed(error: Exception) -> Finding:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    says = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return Finding(
        "failed",
        says[:300],
        "the reason is in full in the output of --json",
        {"traceback": traceback.format_exc().splitlines()[-30:]},
    )


def verdict(results: Sequence[Result]) -> str:
    """All findings in a sentence."""
    fatal = [one.check.name for one in results if one.fatal]
    failed = [r.check.name for r in results if r.finding.status == "failed" and not r.fatal]
    warned = [one.check.name for one in results if one.finding.status == "warning"]
    if fatal:
        return f"lmscale will not work here until this is mended: {', '.join(fatal)}."
    notes = [f"could not be checked: {', '.join(failed)}"] if failed else []
    notes += [f"read the remedies of: {', '.join(warned)}"] if warned else []
    return f"lmscale works here{'; ' if notes else ''}{'; '.join(notes)}."
