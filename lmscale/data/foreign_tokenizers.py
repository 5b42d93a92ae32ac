"""Tokenisers of other tools, by file: a SentencePiece `.model` and a Hugging Face `tokenizer.json`.

Their own libraries encode, so ids are theirs. Special tokens (`<|endoftext|>`, `</s>`) are never made
from the text of a document: it is encoded as text, as `tiktoken.encode_ordinary` does.

The bytes of each id are read from the vocabulary, and tried against the library's own decoding when a
file is opened. A tokeniser whose ids do not stand for fixed bytes (WordPiece of BERT) is refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import sentencepiece

from lmscale.data.errors import DataError
from lmscale.data.tokenizer import Tokenizer, check_text

__all__ = ["HuggingFaceTokenizer", "SentencePieceTokenizer"]

SPACE_MARK = "\u2581"
#: Names of the token that ends a document, where a tokenizer.json does not say which it is.
_END_TOKENS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "<|eos|>")
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
#: Tried when a file is opened: both libraries must give back the same text.
_TRIED = ("a", "The quick (brown) fox's 3.14% of 2,000:\n\tx = y_1", "naïve – Größe 日本語 😀")


class SentencePieceTokenizer(Tokenizer):
    """A model of SentencePiece (BPE, unigram, characters), as the library itself encodes.

    Args:
      content: of the `.model` file.
      end_token: the piece that ends a document; the model's own end of sentence if it is None.

    Raises:
      DataError: when the content is no such model, or has no such token.
    """

    kind = "sentencepiece"
    file = "tokenizer.model"

    def __init__(self, content: bytes, end_token: str | int | None = None):
        try:
            # The library takes empty content for none at all.
            processor = sentencepiece.SentencePieceProcessor(model_proto=content or b"-")
        except RuntimeError:
            raise DataError("it is no SentencePiece model") from None
        size = processor.get_piece_size()
        self._processor = processor
        eod_id = end_token
        if end_token is None:
            eod_id = processor.eos_id()
            if eod_id < 0:
                raise DataError(
                    "it has no end of sentence: name the piece that ends a document (end_token)"
                )
        elif isinstance(end_token, str):
            eod_id = processor.piece_to_id(end_token)
            if processor.id_to_piece(eod_id) != end_token:
                raise DataError(f"it has no piece {end_token!r}")
        super().__init__(content, size, eod_id)
        self.end_piece = processor.id_to_piece(eod_id)
        unknown = processor.unk_id()
        self.unknown_id = unknown if unknown >= 0 else None
        self.prefix = _prefix_of(self)
        _check_decoding(self, processor.decode)

    def encode(self, text: str) -> np.ndarray:
        check_text(text)
        return np.array(self._processor.encode(text), self.dtype)

    def pieces(self) -> list[bytes]:
        processor = self._processor
        marks = {self.eod_id}
        return [
            b""
            if i in marks or processor.is_control(i) or processor.is_unknown(i)
            else bytes([int(processor.id_to_piece(i)[3:5], 16)])
            if processor.is_byte(i)
            else processor.id_to_piece(i).replace(SPACE_MARK, " ").encode()
            for i in range(self.vocab_size)
        ]


class HuggingFaceTokenizer(Tokenizer):
    """A `tokenizer.json` of tokenizers: byte-level BPE (GPT-2, Llama 3, Qwen), or BPE and unigram as
    SentencePiece makes them (Llama 2, Mistral, Gemma).

    Args:
      content: of the file.
      end_token: the token that ends a document, by name or id; one of the usual names if it is None.

    Raises:
      DataError: when the content is no such file, is of another kind, or has no such token.
    """

    kind = "hugging face"
    file = "tokenizer.json"

    def __init__(self, content: bytes, end_token: str | int | None = None):
        # One process a core encodes already, and forked threads of the library would only warn.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        try:
            import tokenizers
        except ImportError:
            raise DataError("it needs tokenizers to be read: pip install 'lmscale[hf]'") from None
        try:
            description: dict[str, Any] = json.loads(content)
            model: dict[str, Any] = description["model"]
            model["vocab"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise DataError(
                "it is no tokenizer.json of tokenizers (an object with model and vocab)"
            ) from None
        try:
            self._to_bytes = _bytes_of_pieces(description.get("decoder"))
        except (AttributeError, KeyError, TypeError):
            raise DataError("its decoder is not what tokenizers writes") from None
        try:
            backend = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises Exception itself
            raise DataError(f"tokenizers cannot read it: {str(error)[:200]}") from None
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = True
        self._backend = backend
        size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        super().__init__(content, size, _end_id(backend, end_token))
        self.end_piece = backend.id_to_token(self.eod_id)
        unknown = model.get("unk_token")
        self.unknown_id = (
            backend.token_to_id(unknown) if unknown is not None else model.get("unk_id")
        )
        self.prefix = _prefix_of(self)
        _check_decoding(self, backend.decode)

    def encode(self, text: str) -> np.ndarray:
        check_text(text)
        ids = self._encode(text)
        if (ids == self.eod_id).any():
            # A unigram model makes the token from a text that spells it: such a word is encoded in two parts.
            name = self.end_piece
            inside = re.compile(f"(?<={re.escape(name[:1])})(?={re.escape(name[1:])})")
            ids = np.concatenate([self._encode(part) for part in inside.split(text)])
        return ids

    def _encode(self, text: str) -> np.ndarray:
        encoded = self._backend.encode_batch_fast([text], add_special_tokens=False)[0]
        return np.array(encoded.ids, self.dtype)

    def pieces(self) -> list[bytes]:
        # A vocabulary may have holes.
        pieces = [b""] * self.vocab_size
        for name, i in self._backend.get_vocab(with_added_tokens=True).items():
            pieces[i] = self._to_bytes(name)
        for i, token in self._backend.get_added_tokens_decoder().items():
            pieces[i] = b"" if token.special else self._to_bytes(token.content)
        for mark in (self.eod_id, self.unknown_id):
            if mark is not None:
                pieces[mark] = b""
        return pieces


def _end_id(backend: Any, end_token: str | int | None) -> int:
    if isinstance(end_token, int):
        return end_token
    names = _END_TOKENS if end_token is None else (end_token,)
    found = (backend.token_to_id(name) for name in names)
    end_id = next((i for i in found if i is not None), None)
    if end_id is None:
        raise DataError(
            f"it has no token {end_token!r}"
            if end_token is not None
            else f"it has none of the tokens {', '.join(names)}: name the one that ends a document "
            "(end_token)"
        )
    return end_id


def _bytes_of_pieces(decoder: dict[str, Any] | None) -> Callable[[str], bytes]:
    """How a piece becomes bytes, by the decoder of a tokenizer.json.

    Raises:
      DataError: when its pieces do not stand for fixed bytes.
    """
    parts: Sequence[dict[str, Any]] = [decoder or {"type": "none"}]
    if parts[0].get("type") == "Sequence":
        parts = parts[0]["decoders"] or [{"type": "none"}]
    kinds = [part.get("type") for part in parts]
    known = {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}
    if other := [str(kind) for kind in kinds if kind not in known]:
        raise DataError(
            f"its decoder is {other[0]}, whose tokens do not stand for fixed bytes of text: lmscale reads "
            "byte-level BPE (GPT-2, Llama 3, Qwen) and what SentencePiece makes (Llama 2, Mistral, Gemma)"
        )
    replaced = {}
    for part in parts:
        if part.get("type") == "Metaspace":
            replaced[part.get("replacement", SPACE_MARK)] = " "
        elif part.get("type") == "Replace" and isinstance(part.get("pattern"), dict):
            replaced[part["pattern"].get("String", SPACE_MARK)] = part["content"]

    def byte_level(piece: str) -> bytes:
        try:
            return bytes([_BYTE_OF_CHAR[c] for c in piece])
        except KeyError:
            return piece.encode()

    def plain(piece: str) -> bytes:
        byte = _BYTE_PIECE.fullmatch(piece) if "ByteFallback" in kinds else None
        if byte:
            return bytes([int(byte[1], 16)])
        for old, new in replaced.items():
            piece = piece.replace(old, new)
        return piece.encode()

    return byte_level if "ByteLevel" in kinds else plain


def _byte_of_char() -> dict[str, int]:
    """GPT-2's printable character for each byte: itself where it is one, else the next from U+0100."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(0x100 + i): byte for i, byte in enumerate(others)},
    }


_BYTE_OF_CHAR = _byte_of_char()


def _prefix_of(tokenizer: Tokenizer) -> bytes:
    """The space that a tokeniser puts in front of a document, or nothing."""
    text = tokenizer.decode_bytes(tokenizer.encode("a"))
    return b" " if text == b" a" else b""


def _check_decoding(tokenizer: Tokenizer, decode: Callable[[list[int]], str]) -> None:
    """Raises `DataError` unless the library decodes some texts to the bytes that we count."""
    for text in _TRIED:
        ids = tokenizer.encode(text)
        if tokenizer.unknown_id is not None:
            ids = ids[ids != tokenizer.unknown_id]
        theirs, ours = decode(ids.tolist()), tokenizer.decode(ids)
        if theirs != ours:
            raise DataError(
                f"its library gives back {theirs[:40]!r} for tokens that stand for {ours[:40]!r}, so bytes "
                "could not be counted"
            )
