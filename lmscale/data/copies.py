"""Finds which candidate documents are, wholly or in part, copies of other documents.

Two kinds of copies are found, both by hashes of windows (see `shingles`):

- *Long copies*: windows of 48 bytes that lie in two documents. One byte in eight begins such a window,
  chosen by what follows it, so that the same bytes are chosen in both: a copy of 80 bytes has one with a
  chance of 99%.
- *Near-duplicates*: the share of a candidate's shingles that are in one other document. Of a long
  candidate a sample is enough (Broder 1997, "On the resemblance and containment of documents": sampling
  modulo m); a sample of a short one may be empty, so all of its shingles are compared.

`held_out` asks this before it lets a document into the validation or test split, so that no copy crosses a
split, and has the thresholds.

Only the candidates are kept in memory, at about 12 bytes for each of their bytes (30 where they are short).
All other text is read as a stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from lmscale.data.shingles import (
    END,
    SHINGLE,
    SHORT_SHINGLE,
    WINDOW,
    Hashes,
    HashLookup,
    hashes_of,
    plain,
)

#: Bytes between chosen windows, on average.
_BETWEEN = 8
#: A shingle that occurs in more candidates than this is a common phrase, not a sign of a copy.
_MANY = 64
_NOBODY, _SEVERAL = -1, -2
#: Of candidates below this many bytes all shingles are compared; a sample of longer ones has about 14.
_SAMPLED_FROM = 128
#: A text of three shingles keeps half of them wherever one of its bytes is changed. Below this many bytes
#: that needs shorter shingles,
_SHORT_BELOW = 3 * SHINGLE
#: and below this many bytes a text is too short to be compared.
LEAST_COMPARED = 3 * SHORT_SHINGLE

#: Pairs (numbers of keys, documents that they occur in) of windows, and of shingles.
Found = tuple[list[tuple[np.ndarray, np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]


class CopyFinder:
    """Candidates, and how much of each was found in other documents so far.

    Args:
      candidates: texts in UTF-8.
      keep_first: text that only candidates share counts as original in the first of them.
      only_samples: short candidates are compared by a sample of their shingles too.
    """

    def __init__(
        self, candidates: Sequence[bytes], keep_first: bool = False, only_samples: bool = False
    ):
        self._candidates = candidates
        self._keep_first = keep_first
        self._n = len(candidates)
        windows, shingles, self._starts = [], [], []
        of_short, of_shortest = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
        for text in candidates:
            simple, _ = plain(np.frombuffer(text, np.uint8))
            n = _SAMPLED_FROM if only_samples else len(simple)
            found = [*hashes_of(simple)]
            shingles.append(_shingles(found, len(simple), n))
            if n < _SAMPLED_FROM:
                (of_shortest if n < _SHORT_BELOW else of_short).append(shingles[-1])
            hashes, starts = _windows(found, len(simple))
            windows.append(hashes)
            self._starts.append(starts)
        n_windows = np.array([len(starts) for starts in self._starts], np.int64)
        self._first_window = np.cumsum(n_windows) - n_windows
        self._windows = HashLookup(np.concatenate([np.zeros(0, np.uint64), *windows]))
        #: By window: the document that it was seen in, or that it was seen in none or in several.
        self._seen_in = np.full(len(self._windows.keys), _NOBODY, np.int32)
        size = np.array([len(own) for own in shingles], np.int64)
        #: By window: the first candidate that it was seen in, -1 for other documents.
        self._first_with = np.full(len(self._windows.keys), self._n, np.int32)
        owners = np.repeat(np.arange(self._n, dtype=np.int32), size)
        self._shingles = HashLookup(np.concatenate([np.zeros(0, np.uint64), *shingles]))
        #: Shingles that are looked for at every byte, not at sampled ones alone: few, so that it is quick.
        self._of_short = HashLookup(np.concatenate(of_short))
        self._of_shortest = HashLookup(np.concatenate(of_shortest))
        count = np.bincount(self._shingles.key_of, minlength=len(self._shingles.keys))
        #: Candidates of each shingle, one after the other.
        self._owners = owners[np.argsort(self._shingles.key_of, kind="stable")]
        self._first_owner = np.cumsum(count) - count
        self._n_owners = np.where(count > _MANY, 0, count)
        common = np.bincount(owners[count[self._shingles.key_of] > _MANY], minlength=self._n)
        self._n_own = size - common
        self._is_phrases = common > size / 2
        self._most_shared = np.zeros(self._n, np.int64)

    def look(self, text: np.ndarray, first: int, own: np.ndarray) -> None:
        """Looks for the candidates in some documents.

        Args:
          text: uint8 [n], whole documents with `END` between them.
          first: number of the first document; every document has a number of its own.
          own: int [n_documents], the candidate that the document is, -1 where it is none.
        """
        self.note(self.search(text), first, own)

    def search(self, text: np.ndarray) -> Found:
        """The part of `look` that changes nothing, and takes most of its time: threads may do it at once."""
        text, _ = plain(text)
        # An `END` counts to the document before it.
        ends = np.flatnonzero(text == END)
        found_windows, found_shingles = [], []
        for some in hashes_of(text):
            at, window = self._windows.find(some.windows)
            places = some.start + some.sampled[at]
            found_windows.append((window, np.searchsorted(ends, places)))
            for shingles, offsets in self._compared(some):
                at, shingle = self._shingles.find(shingles)
                places = some.start + offsets[at]
                found_shingles.append((shingle, np.searchsorted(ends, places)))
        return found_windows, found_shingles

    def _compared(self, some: Hashes) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(hashes of the shingles that may be a candidate's, their offsets in the stretch)."""
        yield some.shingles[some.sampled], some.sampled
        for hashes, keys in ((some.shingles, self._of_short), (some.short, self._of_shortest)):
            if len(keys.keys):
                at, _ = keys.find(hashes)
                yield hashes[at], at

    def note(self, found: Found, first: int, own: np.ndarray) -> None:
        """The other part of `look`: remembers what `search` found."""
        windows, shingles = found
        if windows:
            self._note_windows(*_distinct(windows, len(own)), first, own)
            self._note_shingles(*_distinct(shingles, len(own)), own)

    def _note_windows(
        self, window: np.ndarray, document: np.ndarray, first: int, own: np.ndarray
    ) -> None:
        np.minimum.at(self._first_with, window, own[document])
        window, at, count = np.unique(window, return_index=True, return_counts=True)
        document, before = document[at] + first, self._seen_in[window]
        again = (count > 1) | ((before != _NOBODY) & (before != document))
        self._seen_in[window] = np.where(again, _SEVERAL, document)

    def _note_shingles(self, shingle: np.ndarray, document: np.ndarray, own: np.ndarray) -> None:
        count = self._n_owners[shingle]
        before = np.cumsum(count) - count
        at = np.repeat(self._first_owner[shingle] - before, count) + np.arange(count.sum())
        owner, document = self._owners[at], np.repeat(document, count)
        other = own[document] < owner if self._keep_first else own[document] != owner
        pair, shared = np.unique(document[other] * self._n + owner[other], return_counts=True)
        np.maximum.at(self._most_shared, pair % max(1, self._n), shared)

    def contained(self) -> np.ndarray:
        """float [n_candidates]: the largest share of a candidate that is in one other document.

        It is 1 for a candidate that consists mostly of phrases that very many candidates have.
        """
        share = self._most_shared / np.maximum(1, self._n_own)
        return np.where(self._is_phrases, 1.0, share)

    def copied(self, candidate: int) -> np.ndarray:
        """bool [byte of the candidate]: whether it lies in a long copy of another document's text."""
        text = np.frombuffer(self._candidates[candidate], np.uint8)
        positions = np.flatnonzero(plain(text)[1])
        starts = self._starts[candidate]
        first = self._first_window[candidate]
        window = self._windows.key_of[first : first + len(starts)]
        if self._keep_first:
            starts = starts[self._first_with[window] < candidate]
        else:
            starts = starts[self._seen_in[window] == _SEVERAL]
        # A copy extends to both sides of its chosen windows.
        change = np.zeros(len(positions) + 1, np.int64)
        np.add.at(change, np.maximum(starts - _BETWEEN, 0), 1)
        np.add.at(change, np.minimum(starts + WINDOW + _BETWEEN, len(positions)), -1)
        inside = np.cumsum(change[:-1]) > 0
        # A byte that was left out of the comparison is treated like the byte before it.
        return np.repeat(inside, np.diff(positions, append=len(text)))


def is_too_short(text: bytes) -> bool:
    """Whether a text is too short to tell whether another is its near-duplicate."""
    return len(plain(np.frombuffer(text, np.uint8))[0]) < LEAST_COMPARED


def _windows(found: Sequence[Hashes], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(hashes of the sampled windows of a plain text of that length, their starts)."""
    starts = np.concatenate([some.start + some.sampled for some in found])
    whole = starts <= length - WINDOW
    windows = np.concatenate([some.windows for some in found])
    return windows[whole], starts[whole].astype(np.int32)


def _shingles(found: Sequence[Hashes], length: int, like: int) -> np.ndarray:
    """The different hashes by which a plain text is compared in the way of one of `like` bytes."""
    is_short = like < _SHORT_BELOW
    last = length - (SHORT_SHINGLE if is_short else SHINGLE)
    parts = []
    for some in found:
        n = max(0, last + 1 - some.start)
        if like < _SAMPLED_FROM:
            parts.append((some.short if is_short else some.shingles)[:n])
        else:
            parts.append(some.shingles[some.sampled[some.sampled < n]])
    return np.unique(np.concatenate(parts))


def _distinct(found: list[tuple[np.ndarray, np.ndarray]], n: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct pairs (key, document number below n) in some arrays of pairs, sorted by key."""
    key, document = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return np.divmod(np.unique(key.astype(np.int64) * n + document), n)
