"""Bytes and characters as vocabularies.

The ids are the end of a document, the 256 bytes, and in a vocabulary of characters one for every
character beyond ASCII that the training text holds. A character that the vocabulary lacks is its UTF-8 bytes, so
every text comes back exactly; for ASCII text both vocabularies are the same.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from functools import cached_property

import numpy as np

from lmscale.data.errors import DataError
from lmscale.data.tokenizer import Tokenizer, check_text

__all__ = ["N_BYTES_AND_MARKS", "CharacterTokenizer", "count_characters"]

#: The end of a document, and the bytes.
N_BYTES_AND_MARKS = 257
_EOD_ID = 0
_FIRST_BYTE_ID = 1
_ASCII = re.compile("[\\x00-\\x7f]+")


class CharacterTokenizer(Tokenizer):
    """Ids for bytes, and for some characters beyond ASCII (none: a vocabulary of bytes)."""

    kind = "characters"
    file = "characters.json"
    is_lossless = True

    def __init__(self, content: bytes):
        try:
            self.characters: str = json.loads(content)["characters"]
            right = all(ord(c) > 0x7F for c in self.characters)
        except (ValueError, KeyError, TypeError):
            right = False
        if not right:
            raise DataError('a vocabulary of characters is {"characters": "..."}, beyond ASCII')
        super().__init__(content, N_BYTES_AND_MARKS + len(self.characters), _EOD_ID)

    @classmethod
    def of(cls, characters: Iterable[str]) -> CharacterTokenizer:
        """The vocabulary of some characters beyond ASCII, in the order of their code points."""
        return cls(json.dumps({"characters": "".join(sorted(set(characters)))}).encode())

    def encode(self, text: str) -> np.ndarray:
        check_text(text)
        utf8 = np.frombuffer(text.encode(), np.uint8)
        ids = utf8.astype(self.dtype) + _FIRST_BYTE_ID
        if text.isascii() or not self.characters:
            return ids
        # A known character keeps the place of its first byte alone.
        is_first = utf8 & 0xC0 != 0x80
        character = self._ids[np.frombuffer(text.encode("utf-32-le"), "<u4")]
        of_byte = character[np.cumsum(is_first) - 1]
        return np.where(of_byte, of_byte, ids)[is_first | (of_byte == 0)].astype(self.dtype)

    def pieces(self) -> list[bytes]:
        single = [bytes([byte]) for byte in range(256)]
        return [b"", *single, *(c.encode() for c in self.characters)]

    @cached_property
    def _ids(self) -> np.ndarray:
        """The id of each code point, 0 where it has none of its own."""
        ids = np.zeros(0x110000, np.int32)
        places = np.frombuffer(self.characters.encode("utf-32-le"), "<u4")
        ids[places] = N_BYTES_AND_MARKS + np.arange(len(places))
        return ids


def count_characters(texts: Iterable[str], vocab_size: int | None = None) -> CharacterTokenizer:
    """The vocabulary of the characters of some texts: all, or the most frequent that `vocab_size` has room for."""
    counts: Counter[str] = Counter()
    for text in texts:
        # Most text is ASCII alone, which is told a hundred times as fast as it is counted.
        if not text.isascii():
            counts.update(_ASCII.sub("", text))
    beyond = sorted(counts, key=lambda c: (-counts[c], c))
    n = None if vocab_size is None else vocab_size - N_BYTES_AND_MARKS
    if n is not None and n < 0:
        raise DataError(
            f"a vocabulary of characters has at least {N_BYTES_AND_MARKS} ids, the bytes and the end "
            f"of a document, not {vocab_size}"
        )
    return CharacterTokenizer.of(beyond[:n])
