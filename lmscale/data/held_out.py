"""Chooses the held-out documents of a corpus.

The SHA-256 of a document's text, read as a number in [0, 1), decides where it goes: the lowest numbers
go to validation, the highest to test. A document is held out only if it is no
copy. That means two things: no other document of the corpus holds half of it (near-duplicates), and
some stretch of it has less than a twentieth of its bytes in long copies of other documents. That
stretch, of a bounded length, is its contribution; the rest of a held-out document is dropped. All
other documents are training text, and so are those that are too short to be compared. So a document
lies in one split only, and held-out text does not occur in the training text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lmscale.cores import in_order
from lmscale.data.buckets import count_unique, read_bucket
from lmscale.data.copies import CopyFinder, Found, is_too_short
from lmscale.data.shingles import END

#: Documents of each held-out split where no fraction is given: this many, or a tenth of all where that
#: is less. Of a large text at most about MOST_DOCUMENTS are held out.
ENOUGH_DOCUMENTS = 200
MOST_DOCUMENTS = 2000
MAX_SHARE = 0.1
USUAL_SHARE = 0.01
#: Where many documents are copies, more documents are examined until enough originals are found.
_MAX_LOOKED_AT = 0.2
#: Bytes that one document contributes at most, unless the documents are so few that this would make
#: less than _ENOUGH_BYTES.
MAX_BYTES = 1 << 14
_ENOUGH_BYTES = 1 << 20
#: A document of which one other holds this share is its near-duplicate.
NEAR_DUPLICATE = 0.5
#: Largest share of a contribution that may lie in long copies.
MAX_COPIED = 0.05
#: Least length of a contribution: half of its document, or this many bytes.
_MIN_BYTES = 1 << 11
#: Reasons why an examined document stays in the training text.
LEFT = ("near_duplicates", "copied", "too_short")
#: Bytes of documents that are examined at a time.
_BATCH_BYTES = 1 << 20
#: Shares that are tried. They are coarse, so that a little more text leaves every split as it is.
_STEPS = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0)


@dataclass(frozen=True)
class SplitRule:
    """Validation takes the low end of [0, 1), test the high end, training the rest."""

    valid: float
    test: float

    @property
    def fractions(self) -> dict[str, float]:
        return {"train": 1.0 - self.valid - self.test, "valid": self.valid, "test": self.test}

    def split(self, digest: bytes) -> str:
        """The split of a document, if it is held out at all."""
        place = place_of(digest)
        if place < self.valid:
            return "valid"
        return "test" if place >= 1.0 - self.test else "train"


@dataclass(frozen=True)
class HeldOut:
    """What was chosen.

    Attributes:
      rule: the shares of the documents that were looked at.
      max_bytes: what one document contributes at most.
      texts: SHA-256 of each held-out document -> (its split, its contribution).
      left: SHA-256 of each examined document that stays in the training text -> why, one
        of `LEFT`: another document holds it, too little of it is no copy, or it is too short to be
        compared.
    """

    rule: SplitRule
    max_bytes: int
    texts: dict[bytes, tuple[str, bytes]]
    left: dict[bytes, str]

    def count(self, split: str) -> int:
        return sum(found == split for found, _ in self.texts.values())


def place_of(digest: bytes) -> float:
    """A document's place in [0, 1).

    It uses other bytes of the hash than the order of the store; otherwise all held-out text would lie at
    one end of that order.
    """
    return (int.from_bytes(digest[8:16]) >> 11) / 2.0**53


def choose_held_out(
    paths: Sequence[Path],
    valid: float | None,
    test: float | None,
    other_text: Callable[[], Iterator[np.ndarray]] | None = None,
    progress: Callable[[int], None] = lambda done: None,
    only_samples: bool = False,
) -> HeldOut:
    """Chooses from all documents of some buckets.

    Args:
      valid, test: the share of documents to look at for each split. None chooses the smallest, from
        1% (less where that is more than `MOST_DOCUMENTS`), that gives `ENOUGH_DOCUMENTS`, or a tenth
        of all documents.
      other_text: text outside of the corpus whose copies are not held out either: arrays of documents
        with `END` between them.
      progress: called with the bytes looked at.
      only_samples: short documents are held out and compared as long ones are.
    """
    n = count_unique(paths)
    given = {"valid": valid, "test": test}
    asked = [split for split, share in given.items() if share is None]

    def look(shares: dict[str, float]) -> HeldOut:
        rule = SplitRule(**{**given, **{split: shares[split] for split in asked}})
        return _look(paths, n, rule, other_text, progress, only_samples)

    if not asked:
        return look({})
    limit = min(_MAX_LOOKED_AT, (1.0 - (valid or 0.0) - (test or 0.0)) / 2)
    shares = [*(share for share in _shares(n) if share < limit), limit]
    needed = max(1, min(ENOUGH_DOCUMENTS, int(MAX_SHARE * n)))
    # Some of the examined documents will be copies.
    share = next((s for s in shares if s * n >= 1.5 * needed), shares[-1])
    while True:
        found = look(dict.fromkeys(asked, share))
        fewest = min(found.count(split) for split in asked)
        if fewest >= needed or share == shares[-1]:
            break
        wanted = share * 1.2 * needed / max(1, fewest)
        share = next((s for s in shares if s > share and s >= wanted), shares[-1])
    if not fewest:
        return _one_each(look(dict.fromkeys(asked, 0.5)), given)
    tried = [s for s in shares if s <= share]
    enough = {
        split: next((s for s in tried if _count(found, split, s) >= needed), share)
        for split in asked
    }
    return _narrowed(found, SplitRule(**{**given, **enough}))


def _shares(n: int) -> list[float]:
    """The shares to try, smallest first."""
    least = min(USUAL_SHARE, MOST_DOCUMENTS / max(1, n))
    shares = [round(step * 10.0**power, 12) for power in range(-9, 0) for step in _STEPS]
    first = next(i for i, share in enumerate(shares) if share >= least * (1 - 1e-9))
    return shares[first:]


def _count(found: HeldOut, split: str, share: float) -> int:
    """How many documents a split would hold if its share were smaller."""
    rule = SplitRule(share, share)
    return sum(rule.split(d) == split == there for d, (there, _) in found.texts.items())


def _narrowed(found: HeldOut, rule: SplitRule) -> HeldOut:
    """The same choice with smaller shares. Documents that are no longer held out become training text."""
    texts = {d: value for d, value in found.texts.items() if rule.split(d) == value[0]}
    left = {d: why for d, why in found.left.items() if rule.split(d) != "train"}
    return HeldOut(rule, found.max_bytes, texts, left)


def _one_each(found: HeldOut, given: dict[str, float | None]) -> HeldOut:
    """For a handful of documents: the first and the last one that are no copies."""
    places = sorted(map(place_of, found.texts))
    if len(places) < 2:
        return found
    ends = {
        "valid": np.nextafter(places[0], 1.0).item(),
        "test": np.nextafter(1.0 - places[-1], 1.0).item(),
    }
    shares = {split: ends[split] if share is None else share for split, share in given.items()}
    return _narrowed(found, SplitRule(**shares))


# Looking ----------------------------------------------------------------------------------------


def _look(
    paths: Sequence[Path],
    n: int,
    rule: SplitRule,
    other_text: Callable[[], Iterator[np.ndarray]] | None,
    progress: Callable[[int], None],
    only_samples: bool,
) -> HeldOut:
    """Examines every document in the shares of a rule, and holds it out unless it is a copy."""
    least = min((share for share in (rule.valid, rule.test) if share), default=1.0)
    max_bytes = max(MAX_BYTES, _ENOUGH_BYTES // max(1, round(least * n)))
    candidates: dict[bytes, tuple[bytes, int]] = {}
    texts: dict[bytes, tuple[str, bytes]] = {}
    left: dict[bytes, str] = {}
    for path in paths:
        for digest, _, text, _ in read_bucket(path):
            if rule.split(digest) == "train":
                continue
            # An excerpt is enough to choose a stretch from; a long document would need too much memory.
            excerpt = _excerpt(text, digest, 2 * max_bytes)
            if not only_samples and is_too_short(excerpt):
                left[digest] = "too_short"
            else:
                candidates[digest] = excerpt, len(text)
    excerpts = [excerpt for excerpt, _ in candidates.values()]
    # Without training text, one of several copies may be held out.
    finder = CopyFinder(excerpts, rule.fractions["train"] == 0, only_samples)
    if candidates:
        n_seen = _stream(paths, finder, {d: i for i, d in enumerate(candidates)}, progress)
        for text in other_text() if other_text else ():
            n_documents = int(np.count_nonzero(text == END)) + 1
            finder.look(text, n_seen, np.full(n_documents, -1))
            n_seen += n_documents
    contained = finder.contained()
    for number, (digest, (excerpt, length)) in enumerate(candidates.items()):
        if contained[number] >= NEAR_DUPLICATE:
            left[digest] = "near_duplicates"
            continue
        start, end = _stretch(finder.copied(number), max_bytes, int.from_bytes(digest[24:]))
        text = _whole_lines(excerpt, start, end)
        if len(text) >= min(length / 2, _MIN_BYTES) and text.strip():
            texts[digest] = rule.split(digest), text
        else:
            left[digest] = "copied"
    return HeldOut(rule, max_bytes, texts, left)


def _stream(
    paths: Sequence[Path],
    finder: CopyFinder,
    numbers: dict[bytes, int],
    progress: Callable[[int], None],
) -> int:
    """Compares the candidates with every document of the corpus. Returns the number of documents."""
    first = 0

    def search(batch: _Batch) -> tuple[_Batch, Found]:
        return batch, finder.search(np.frombuffer(bytes([END]).join(batch.texts), np.uint8))

    # NumPy lets go of the interpreter's lock while it searches.
    for batch, found in in_order(search, _batches(paths, numbers)):
        finder.note(found, first, np.array(batch.own))
        first += len(batch.texts)
        progress(batch.done)
    progress(sum(path.stat().st_size for path in paths))
    return first


class _Batch(NamedTuple):
    """Some documents, which candidate each of them is (-1: none), and bytes of buckets read with them."""

    texts: list[bytes]
    own: list[int]
    done: int


def _batches(paths: Sequence[Path], numbers: dict[bytes, int]) -> Iterator[_Batch]:
    """All documents of some buckets."""
    texts: list[bytes] = []
    own: list[int] = []
    size = done = 0
    for path in paths:
        for digest, _, text, _ in read_bucket(path):
            texts.append(text)
            own.append(numbers.get(digest, -1))
            size += len(text)
            if size >= _BATCH_BYTES:
                yield _Batch(texts, own, done)
                texts, own, size = [], [], 0
        done += path.stat().st_size
    if texts:
        yield _Batch(texts, own, done)


def _excerpt(text: bytes, digest: bytes, length: int) -> bytes:
    """A part of a document of about that length, from a place that its hash chooses."""
    if len(text) <= length:
        return text
    start = int.from_bytes(digest[16:24]) % (len(text) - length + 1)
    return _whole_lines(text, start, start + length)


def _stretch(copied: np.ndarray, length: int, number: int) -> tuple[int, int]:
    """(start, end) of the stretch of at most `length` bytes with the most original bytes.

    Copied bytes have a negative weight, chosen so that less than MAX_COPIED of the stretch is copied.

    Args:
      copied: bool [bytes].
      number: chooses among stretches that are equally good.
    """
    score = np.where(copied, 1.0 - 1.0 / MAX_COPIED, 1.0)
    total = np.concatenate([[0.0], np.cumsum(score)])
    end = int(np.argmax(total - np.minimum.accumulate(total)))
    start = int(np.argmin(total[: end + 1]))
    if end - start > length:
        gain = total[start + length : end + 1] - total[start : end + 1 - length]
        best = np.flatnonzero(gain == gain.max())
        start += int(best[number % len(best)])
        end = start + length
    return start, end


def _whole_lines(text: bytes, start: int, end: int) -> bytes:
    """The lines of a text that lie in a range; whole characters where there is no line end."""
    if start and text[start - 1 : start] != b"\n":
        line = text.find(b"\n", start, end) + 1
        start = line or start
    if end < len(text) and text[end - 1 : end] != b"\n":
        line = text.rfind(b"\n", start, end) + 1
        end = line if line > start else end
    # Bytes 10xxxxxx continue a character.
    while start < end and text[start] & 0xC0 == 0x80:
        start += 1
    while start < end < len(text) and text[end] & 0xC0 == 0x80:
        end -= 1
    return text[start:end]
