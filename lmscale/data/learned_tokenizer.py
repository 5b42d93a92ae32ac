"""A fast SentencePiece BPE tokeniser that reproduces every Unicode string exactly.

Lossless: no normalisation, no added or removed spaces, and bytes for what the vocabulary lacks
(Kudo and Richardson 2018, byte fallback). One character needs care: SentencePiece writes a space
as U+2581, so a U+2581 of the text itself is encoded as its three bytes.

Fast: encoding works word by word through a dictionary, where a *word* ends wherever no piece can
continue. BPE merges only make pieces of the vocabulary, and by the trainer's rules a piece has
spaces at its front alone and never mixes letters with ASCII digits or punctuation. So the
result is identical to SentencePiece on the whole text, at two to three times the speed.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import sentencepiece

from lmscale.data.errors import DataError
from lmscale.data.tokenizer import EOD_PIECE, Tokenizer, check_text

#: Ids before the learnt pieces: unknown (never produced), end of document, 256 bytes.
N_RESERVED = 258
#: A smaller vocabulary has no room for characters and merges beside the bytes.
MIN_VOCAB = 300
#: Four times the largest vocabulary in use. More is a mistake, and would exhaust the trainer's memory.
MAX_VOCAB = 1_000_000

_SPACE_MARK = "\u2581"
#: Marks that the trainer uses itself: for spaces, unknown text, borders and the end of a string.
_NEVER_IN_PIECES = f"{_SPACE_MARK}\u2585\t\x00"
EOD_ID = 1
_FIRST_BYTE_ID = 2
#: Words in the cache, about 200 MB.
_MAX_WORDS = 1_000_000

# Possessive, because words never need backtracking. The end of a text yields an extra empty word.
_ASCII_WORD = re.compile(" *+(?:[A-Za-z]++|[^A-Za-z ]*+)")
# Any other character may share a piece with letters and with signs.
_LETTERS_OR_SIGNS = r"(?:[A-Za-z]++|[\x00-\x1f!-@\[-`{-\x7f]++)"
_WORD = re.compile(
    f" *+(?:{_LETTERS_OR_SIGNS}(?:[^\\x00-\\x7f]++{_LETTERS_OR_SIGNS}?)*+"
    f"|(?:[^\\x00-\\x7f]++{_LETTERS_OR_SIGNS}?)*+)"
)


class LearnedTokenizer(Tokenizer):
    """A model made by `train_tokenizer`."""

    kind = "learned"
    file = "tokenizer.model"
    is_lossless = True

    def __init__(self, content: bytes):
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=content)
        super().__init__(content, self._processor.get_piece_size(), EOD_ID)
        # A text with hardly any space (Chinese, a table) may give a vocabulary without a space.
        processor = self._processor
        self._has_space = processor.piece_to_id(_SPACE_MARK) != processor.unk_id()
        self._words = _WordCache(self._encode_word)

    def encode(self, text: str) -> np.ndarray:
        if text.isascii():
            words = _ASCII_WORD.findall(text)
        else:
            check_text(text)
            words = _WORD.findall(text)
        return np.frombuffer(b"".join(map(self._words.__getitem__, words)), self.dtype)

    def pieces(self) -> list[bytes]:
        processor = self._processor
        pieces = [b""] * self.vocab_size
        for i in range(self.vocab_size):
            if processor.is_byte(i):
                pieces[i] = bytes([int(processor.id_to_piece(i)[3:5], 16)])
            elif not (processor.is_control(i) or processor.is_unknown(i)):
                pieces[i] = processor.id_to_piece(i).replace(_SPACE_MARK, " ").encode()
        return pieces

    def _encode_word(self, word: str) -> bytes:
        ids: list[int] = []
        for i, part in enumerate(word.split(_SPACE_MARK)):
            if i:
                ids += [_FIRST_BYTE_ID + byte for byte in _SPACE_MARK.encode()]
            if self._has_space:
                ids += self._processor.encode(part)
                continue
            # SentencePiece would return the bytes of its own mark for a space.
            for j, unspaced in enumerate(part.split(" ")):
                ids += [_FIRST_BYTE_ID + ord(" ")] * (j > 0)
                ids += self._processor.encode(unspaced)
        return np.asarray(ids, self.dtype).tobytes()


class _WordCache(dict):
    """Maps a word to the bytes of its ids, on demand. It is emptied when it has grown too large."""

    def __init__(self, encode):
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> bytes:
        ids = self._encode(word)
        if len(word) <= 64:
            if len(self) >= _MAX_WORDS:
                self.clear()
            self[word] = ids
        return ids


def check_vocab_size(vocab_size: int) -> None:
    """Raises `DataError` when a vocabulary is too small or too large."""
    if vocab_size > MAX_VOCAB:
        raise DataError(f"vocab_size must be at most {MAX_VOCAB:,}, not {vocab_size:,}")
    if vocab_size < MIN_VOCAB:
        raise DataError(
            f"vocab_size must be at least {MIN_VOCAB}, not {vocab_size}: {N_RESERVED} ids are bytes "
            "and marks"
        )


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> LearnedTokenizer:
    """Learns a BPE vocabulary of exactly `vocab_size` ids from some documents.

    The same texts give the same model, byte for byte.

    Raises:
      DataError: when the vocabulary is too small to be one, or too large for the text.
    """
    check_vocab_size(vocab_size)
    n_chars = sum(map(len, texts))
    if not n_chars:
        raise DataError("there is no text to learn a vocabulary from")
    rare = _rare_characters(texts, n_most=(vocab_size - N_RESERVED) // 4)
    sentences = [
        sentence for text in texts for part in rare.split(text) for sentence in _sentences(part)
    ]
    if not sentences:
        raise DataError(
            "the text holds no character that a vocabulary can be learnt from (only tabs, zero bytes "
            "and the like): give text"
        )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            character_coverage=1.0,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            max_sentence_length=2**30,
            unk_id=0,
            eos_id=EOD_ID,
            eos_piece=EOD_PIECE,
            bos_id=-1,
            pad_id=-1,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        limit = re.search(r"value <= (\d+)", str(error))
        if limit:
            raise DataError(
                f"vocab_size {vocab_size} is too large for this text ({n_chars:,} characters to "
                f"learn from): it supports at most {limit[1]}"
            ) from None
        said = " ".join(str(error).split())[:200]
        raise DataError(
            f"no vocabulary of {vocab_size} can be learnt from this text: {said}"
        ) from None
    return LearnedTokenizer(model.getvalue())


def _rare_characters(texts: Sequence[str], n_most: int) -> re.Pattern:
    """A pattern of the rare characters that are encoded as bytes; the text for the trainer is cut there.

    Pieces of one character are at most `n_most`, and no more than cover 99.99% of the text: in a small
    vocabulary merges are worth more than a piece for every letter of every script.
    """
    counts = Counter()
    for text in texts:
        counts.update(text)
    for char in _NEVER_IN_PIECES:
        counts.pop(char, None)
    uncovered, total = counts.total(), counts.total()
    kept = []
    for char, n in counts.most_common(n_most):
        if uncovered <= 1e-4 * total:
            break
        kept.append(char)
        uncovered -= n
    return re.compile(f"[^{re.escape(''.join(sorted(kept)))}]+" if kept else "(?s:.)+")


def _sentences(text: str, length: int = 2000) -> Iterable[str]:
    """Pieces of about `length` characters, cut where a word begins: the trainer expects short sentences."""
    start = 0
    while len(text) - start > 2 * length:
        cut = re.compile(r"(?<! ) ").search(text, start + length, start + 2 * length)
        end = cut.start() if cut else start + 2 * length
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]
