"""Hashes of every window of a text, for finding text that occurs twice.

Text is compared as bytes, with ASCII letters in lower case and every run of white space as one
space, so that other indentation or line breaks hide nothing.
"""

from __future__ import annotations

import numpy as np

#: Bytes of a shingle: about three words of prose.
SHINGLE = 16
#: Bytes of the window that is looked up to find copies: about eight words of prose.
WINDOW = 48
#: Ends a document. UTF-8 has no such byte, so no window of a document holds it.
END = 0xFF

#: Arrays of 64-bit hashes of this many windows stay in a core's cache.
_SLICE = 1 << 15
_ONE_IN = np.uint64(8)


def random_words(numbers: np.ndarray, seed: int) -> np.ndarray:
    """Fixed pseudorandom uint64s, one a number: SplitMix64 (Steele, Lea and Flood 2014)."""
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
    """A text as it is compared.

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


def window_hashes(text: np.ndarray):
    """Hashes of all windows of a plain text uint8 [m], slice by slice.

    Yields:
      (start, uint64 [k], uint64 [l]): the hashes of the shingles and of the windows of `WINDOW` bytes
      that begin at the text's byte start, start + 1, ...
    """
    for start in range(0, len(text), _SLICE):
        part = text[start : start + _SLICE + WINDOW - 1]
        # Twice the length a step: h_2n[i] = K_n h_n[i] + h_n[i + n], modulo 2^64.
        hashes, n = _OF_BYTE[part], 1
        for factor in _FACTORS[:4]:
            hashes = hashes[:-n] * factor + hashes[n:]
            n *= 2
        shingles = hashes
        double = hashes[:-n] * _FACTORS[4] + hashes[n:]
        windows = double[: -SHINGLE or None] * _FACTORS[5] + shingles[2 * SHINGLE :]
        yield start, shingles[:_SLICE], windows


def is_sampled(shingles: np.ndarray) -> np.ndarray:
    """Positions of the shingles that stand for a text: one in eight, by their hash.

    Broder (1997) compares documents by such samples: the share of one's sample that is in the other's
    estimates the share of its shingles that are.
    """
    return np.flatnonzero((shingles * _MIX) >> np.uint64(32) & (_ONE_IN - np.uint64(1)) == 0)


class HashLookup:
    """Finds which of many hashes are among some keys.

    Attributes:
      keys: uint64 [n], sorted, each once.
      key_of: int [n_hashes], the number of the key of each hash that it was made from.
    """

    def __init__(self, hashes: np.ndarray):
        self.keys, self.key_of = np.unique(hashes, return_inverse=True)
        # Most hashes are no key: a table of their first bits says so without a search.
        bits = min(28, max(10, len(self.keys).bit_length() + 4))
        self._shift = np.uint64(64 - bits)
        self._table = np.zeros(1 << bits, bool)
        self._table[self.keys >> self._shift] = True

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(positions in hashes, numbers of their keys) of the hashes that are keys."""
        at = np.flatnonzero(self._table[hashes >> self._shift])
        number = np.searchsorted(self.keys, hashes[at])
        number[number == len(self.keys)] = 0
        same = self.keys[number] == hashes[at] if len(self.keys) else np.zeros(len(at), bool)
        return at[same], number[same]
