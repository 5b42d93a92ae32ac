"""What every tokeniser of a corpus can do: text to ids, ids back to text, and the bytes of each id.

There are four kinds (`lmscale.data.tokenizers_of_files` opens them): the one that lmscale learns,
SentencePiece's and Hugging Face's by file, and bytes with characters. Their ids are those of their
own libraries. An id stands for fixed bytes, so bits per byte are exact for any stretch of tokens.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar

import numpy as np

from lmscale.data.errors import DataError

__all__ = ["EOD_PIECE", "Tokenizer", "check_text", "token_dtype"]

#: The name of the end-of-document token of our own tokenisers; as text it is encoded like any other text.
EOD_PIECE = "<|endoftext|>"


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
      kind: a key of `lmscale.data.tokenizers_of_files.KINDS`.
      file: the name of its file in a corpus.
      is_lossless: every text comes back exactly. Others may normalise a text, or not know a character.
      content: the bytes of its file.
      hash: SHA-256 of the content, hexadecimal.
      vocab_size: number of ids.
      eod_id: the id that ends a document; it stands for no bytes. `end_piece` is its name.
      unknown_id: the id of text that the vocabulary lacks, which stands for no bytes, or None.
      prefix: what it puts in front of every document: nothing, or a space that is not part of the text.
      dtype: little-endian unsigned integers wide enough for an id.
    """

    kind: ClassVar[str]
    file: ClassVar[str]
    is_lossless: ClassVar[bool] = False
    prefix: bytes = b""
    unknown_id: int | None = None
    end_piece: str = EOD_PIECE

    def __init__(self, content: bytes, vocab_size: int, eod_id: int):
        self.content = content
        self.hash = hashlib.sha256(content).hexdigest()
        self.vocab_size = vocab_size
        self.eod_id = eod_id
        self.dtype = token_dtype(vocab_size)

    @abstractmethod
    def encode(self, text: str) -> np.ndarray:
        """Ids [n] of a document, without the end of document.

        Raises:
          DataError: when the text holds half a surrogate pair, which is no character.
        """

    @abstractmethod
    def pieces(self) -> list[bytes]:
        """The bytes that each id stands for, nothing for ids that are marks."""

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids from the start of a document; bytes that are not whole characters show as U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The UTF-8 bytes that ids from the start of a document stand for."""
        return b"".join([self._pieces[i] for i in ids]).removeprefix(self.prefix)

    def decode_documents(self, ids: np.ndarray, end: int) -> np.ndarray:
        """uint8 [n]: the UTF-8 bytes of whole documents, with the byte `end` for `eod_id`."""
        text, first, length = self._joined
        is_end = ids == self.eod_id
        prefixes = self._prefixes(np.concatenate([[self.eod_id], ids[:-1]]), ids)
        lengths = length[ids] - prefixes
        before = np.cumsum(lengths) - lengths
        places = np.repeat(first[ids] + prefixes - before, lengths) + np.arange(lengths.sum())
        decoded = text[places]
        decoded[before[is_end]] = end
        return decoded

    def count_bytes(self, windows: np.ndarray) -> int:
        """UTF-8 bytes of the targets of some windows [..., n + 1], whose first ids are inputs alone."""
        inputs, targets = windows[..., :-1], windows[..., 1:]
        n_bytes = self.token_bytes[targets].sum(dtype=np.int64)
        return int(n_bytes - self._prefixes(inputs, targets).sum())

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """int32 [vocab_size]: UTF-8 bytes of each id, 0 for marks such as the end of a document."""
        return np.array([len(piece) for piece in self._pieces], np.int32)

    @cached_property
    def _pieces(self) -> list[bytes]:
        return self.pieces()

    @cached_property
    def _joined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All pieces behind each other (uint8), where each begins, and its length; the end of a document has one."""
        pieces = [*self._pieces]
        pieces[self.eod_id] = b"\0"
        length = np.array([len(piece) for piece in pieces])
        return np.frombuffer(b"".join(pieces), np.uint8), np.cumsum(length) - length, length

    @cached_property
    def _has_prefix(self) -> np.ndarray:
        return np.array([piece.startswith(self.prefix) for piece in self._pieces])

    def _prefixes(self, before: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Bytes of each id that are the prefix of a document, given the id before each."""
        if not self.prefix:
            return np.zeros(ids.shape, np.int64)
        return len(self.prefix) * ((before == self.eod_id) & self._has_prefix[ids])


def token_dtype(vocab_size: int) -> np.dtype:
    """The integers that hold the ids of a vocabulary."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def check_text(text: str) -> None:
    """Raises `DataError` when a text holds a lone surrogate."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"character {error.start} of the text is the lone surrogate "
            f"U+{ord(text[error.start]):04X}, which is no character and has no bytes"
        ) from None
