"""Rows and documents of the input that are no text: how many may be left out, and which were."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from lmscale.data.errors import BadDocument, DataError
from lmscale.data.inputs import kinds_in_words
from lmscale.data.where import RowFilter


@dataclass
class BadDocuments:
    """Rows and documents that were left out because they are no text.

    Attributes:
      allowed: as `skip_bad` of `build_corpus`.
      n_documents: how many good ones were read.
      count: how many were left out.
      reasons: how many for each reason.
      first: one line that says what is wrong with the first of them.
    """

    allowed: bool | int | float = True
    n_documents: int = 0
    count: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: str | None = None
    #: The conditions that rows must meet, which count those that do not.
    where: RowFilter | None = None

    def note(self, bad: BadDocument) -> None:
        """Counts one more.

        Raises:
          DataError: when that is more than are allowed.
        """
        if self.allowed is False:
            raise DataError(f"{bad} (--skip-bad, or skip_bad, leaves such documents out)")
        self.count += 1
        self.reasons[bad.reason] += 1
        self.first = self.first or str(bad)
        if self.allowed is not True and isinstance(self.allowed, int) and self.count > self.allowed:
            raise self._too_many(f"more than {self.allowed:,}")

    def check_share(self) -> None:
        """Raises `DataError` when the share of bad documents is larger than allowed."""
        if isinstance(self.allowed, float):
            total = self.n_documents + self.count
            if self.count > self.allowed * total:
                raise self._too_many(f"{self.count:,} of {total:,}, more than {self.allowed:.4g},")

    def why_nothing(self) -> str:
        """Why a source gave no document: what an error says after the name of the source."""
        if why := self.where and self.where.why_nothing():
            return f": {why}"
        return f" has no text{f': {self.first}' if self.first else ''}"

    def summary(self) -> dict[str, Any]:
        """What the manifest says of them."""
        reasons = dict(sorted(self.reasons.items()))
        filtered = {"filtered": self.where.left_out} if self.where else {}
        return {"bad": self.count, "bad_by_reason": reasons, "first_bad": self.first, **filtered}

    def _too_many(self, how_many: str) -> DataError:
        return DataError(
            f"{how_many} rows and documents are no text ({kinds_in_words(self.reasons)}; the first: "
            f"{self.first}): mend them, or allow more (--skip-bad, or skip_bad)"
        )
