"""How much of the held-out text of a finished corpus is copied from training text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from lmscale.data.shingles import HashLookup, random_words

#: Least length in tokens of a copy that counts, a power of two; a sentence or so.
COPY_TOKENS = 32
#: The same where a token is a byte or a character.
COPY_CHARACTERS = 128
#: Windows that are hashed at once: their arrays of 64-bit hashes fit a core's cache.
_CHUNK = 1 << 15


def copies_of_training(
    held_out: np.ndarray,
    training: Iterable[np.ndarray],
    eod_id: int,
    n_tokens: int = COPY_TOKENS,
) -> dict[str, Any]:
    """Measures exact copies of `n_tokens` tokens or more within documents.

    Args:
      held_out: token ids [n] of a split, every document ended by `eod_id`.
      training: token ids of the training text: one array, or several that are searched one by one.

    Returns:
      {"share": of the tokens (ends of documents left out) that lie in a copy, "documents": number of
      documents of which more than half do}
    """
    copied = _copied(held_out, training, eod_id, n_tokens)
    is_end = held_out == eod_id
    ends = np.flatnonzero(is_end)
    starts = np.concatenate([[0], ends[:-1] + 1])
    before = np.concatenate([[0], np.cumsum(copied)])
    more_than_half = 2 * (before[ends] - before[starts]) > ends - starts
    n_text = len(held_out) - len(ends)
    return {
        "share": float(before[-1] / n_text) if n_text else 0.0,
        "documents": int(more_than_half.sum()),
    }


def _copied(
    held_out: np.ndarray, training: Iterable[np.ndarray], eod_id: int, n_tokens: int
) -> np.ndarray:
    """bool [n]: the tokens that lie in a copy."""
    ends_before = np.concatenate([[0], np.cumsum(held_out == eod_id)])
    hashes = np.concatenate([np.zeros(0, np.uint64), *_hashes(held_out, n_tokens)])
    whole = ends_before[n_tokens:] == ends_before[:-n_tokens] if len(hashes) else []
    places = np.flatnonzero(whole)
    windows = HashLookup(hashes[places])
    found = np.zeros(len(windows.keys), bool)
    for tokens in training:
        for some in _hashes(tokens, n_tokens):
            found[windows.find(some)[1]] = True
    copied = np.zeros(len(held_out) + 1, np.int64)
    begins = places[found[windows.key_of]]
    np.add.at(copied, begins, 1)
    np.add.at(copied, begins + n_tokens, -1)
    return np.cumsum(copied[:-1]) > 0


def _hashes(tokens: np.ndarray, n_tokens: int) -> Iterator[np.ndarray]:
    """uint64 hashes of all windows of `n_tokens` tokens, in pieces."""
    of_token = random_words(np.arange(int(tokens.max(initial=0)) + 1), 0)
    factors = random_words(np.arange(n_tokens.bit_length() - 1), 1 << 40) | np.uint64(1)
    for start in range(0, len(tokens) - n_tokens + 1, _CHUNK):
        # Each step doubles the window: h_2n[i] = K_n h_n[i] + h_n[i + n], modulo 2^64.
        hashes, n = of_token[tokens[start : start + _CHUNK + n_tokens - 1]], 1
        for factor in factors:
            hashes = hashes[:-n] * factor + hashes[n:]
            n *= 2
        yield hashes
