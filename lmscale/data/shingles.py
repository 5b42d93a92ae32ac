"""Hashes of every window of a text, for finding text that occurs twice.

Text is compared as bytes. ASCII letters are made lower case and every run of white space becomes one
space, so that a copy with other indentation or line breaks is still found.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

#: Bytes of a shingle: about three words of prose.
SHINGLE = 16
#: Bytes of a shingle of a very short document.
SHORT_SHINGLE = 8
#: Bytes of the window that is looked up to find copies: about eight words of prose.
WINDOW = 48
#: Marks the end of a document. UTF-8 never uses this byte, so no window spans two documents unnoticed.
END = 0xFF

#: Windows that are hashed at once: their arrays of 64-bit hashes fit a core's cache.
_SLICE = 1 << 15
_SAMPLED_BELOW = np.uint64(2**61)


def random_words(numbers: np.ndarray, seed: int) -> np.ndarray:
    """A fixed pseudorandom uint64 for each number: SplitMix64 (Steele, Lea and Flood 2014)."""
    x = (numbers.astype(np.uint64) + np.uint64(seed)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ x >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ x >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return x ^ x >> np.uint64(31)


_OF_BYTE = random_words(np.arange(256), 0)
_FACTORS = random_words(np.arange(6), 1 << 40) | np.uint64(1)
_MIX = np.uint64(0x9E3779B97F4A7C15)
_PLAIN = np.arange(256, dtype=np.uint8)
_PLAIN[ord("A") : ord("Z") + 1] += 32
_PLAIN[[ord(char) for char in "\t\n\v\f\r"]] = ord(" ")


def plain(text: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A text in the form in which it is compared.

    Args:
      text: uint8 [n], documents with `END` between them.

    Returns:
      (uint8 [m], bool [n]): the bytes to compare, and which of the text's bytes they are.
    """
    lower = _PLAIN[text]
    space = lower == ord(" ")
    kept = np.ones(len(text), bool)
    kept[1:] = ~(space[1:] & space[:-1])
    return lower[kept], kept


class Hashes(NamedTuple):
    """Hashes of a stretch of text.

    Attributes:
      start: the place of its first byte.
      short, shingles: uint64 [k], of the `SHORT_SHINGLE` and the `SHINGLE` bytes from each byte on.
      sampled: int [j], the bytes of the stretch that are sampled: one in eight.
      windows: uint64 [j], of the `WINDOW` bytes from each sampled byte on.
    """

    start: int
    short: np.ndarray
    shingles: np.ndarray
    sampled: np.ndarray
    windows: np.ndarray


def hashes_of(text: np.ndarray) -> Iterator[Hashes]:
    """The hashes of a plain text uint8 [m], stretch by stretch. It is padded with `END`s.

    A byte is sampled by the hash of its shingle. Broder (1997) compares documents by such samples: the
    share of one's sampled shingles that is in the other's sample estimates the share of all shingles
    that the other has.
    """
    text = np.concatenate([text, np.full(WINDOW - 1, END, np.uint8)])
    for start in range(0, max(1, len(text) - WINDOW + 1), _SLICE):
        # Each step doubles the window: h_2n[i] = K_n h_n[i] + h_n[i + n], modulo 2^64.
        hashes, n = _OF_BYTE[text[start : start + _SLICE + WINDOW - 1]], 1
        short = hashes
        for factor in _FACTORS[:4]:
            hashes = hashes[:-n] * factor + hashes[n:]
            n *= 2
            if n == SHORT_SHINGLE:
                short = hashes
        every = hashes[: -2 * SHINGLE]
        at = np.flatnonzero(every * _MIX < _SAMPLED_BELOW)
        double = hashes[at] * _FACTORS[4] + hashes[at + SHINGLE]
        windows = double * _FACTORS[5] + hashes[at + 2 * SHINGLE]
        yield Hashes(start, short[: len(every)], every, at, windows)


class HashLookup:
    """Finds which of many hashes are among some keys.

    Attributes:
      keys: uint64 [n], sorted, each once.
      key_of: int32 [n_hashes], the number of the key of each hash that it was made from.
    """

    def __init__(self, hashes: np.ndarray):
        self.keys, key_of = np.unique(hashes, return_inverse=True)
        self.key_of = key_of.astype(np.int32)
        bits = min(24, max(10, len(self.keys).bit_length()))
        # Most hashes are not among the keys. A table of first bits tells so without a search.
        self._is_prefix_shift = np.uint64(64 - bits - 3)
        self._is_prefix = np.zeros(1 << bits + 3, bool)
        self._is_prefix[self.keys >> self._is_prefix_shift] = True
        # Start of the keys with the same first bits, because a search over all keys would miss the cache.
        prefixes = self.keys >> np.uint64(64 - bits)
        self._shift = np.uint64(64 - bits)
        first = np.searchsorted(prefixes, np.arange(1 << bits, dtype=np.uint64))
        self._first = first.astype(np.int32)
        self._most = int(np.bincount(prefixes.astype(np.int64)).max(initial=0))
        self._sentinel = np.append(self.keys, np.uint64(2**64 - 1))

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(positions in hashes, numbers of their keys) of the hashes that are keys."""
        at = np.flatnonzero(self._is_prefix[hashes >> self._is_prefix_shift])
        wanted = hashes[at]
        number = self._first[wanted >> self._shift]
        for _ in range(self._most):
            before = self._sentinel[number] < wanted
            if not before.any():
                break
            number += before
        same = (self._sentinel[number] == wanted) & (number < len(self.keys))
        return at[same], number[same]
