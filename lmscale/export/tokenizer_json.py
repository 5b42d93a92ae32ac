"""Our tokenisers as the `tokenizer.json` that transformers and tokenizers load.

A SentencePiece BPE model merges, of all adjacent pieces whose join is a piece, those with the highest
score; BPE of tokenizers merges by a list of pairs in order. So each piece gives a pair for every way to
cut it into two pieces, in the order of the pieces' scores. A unigram model keeps its scores. Bytes stand
for what the vocabulary lacks, in both libraries.

SentencePiece marks a space inside of a piece by U+2581. In a vocabulary of ours pieces hold the space
itself, so a U+2581 of the text is three bytes as in `lmscale.data.learned_tokenizer`, and nothing needs to
be normalised. A `.model` that was given by file replaces spaces by the mark, as its library does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import sentencepiece

from lmscale.data.tokenizer import EOD_PIECE, Tokenizer

__all__ = ["differing_text", "tokenizer_config", "tokenizer_json"]

_SPACE_MARK = "\u2581"
_BYTE_FALLBACK = {"type": "ByteFallback"}
_FUSE = {"type": "Fuse"}
#: Score of bytes and marks, which are not to be made from a text that spells their names.
_NEVER = -1e4


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The content of tokenizer.json. That of Hugging Face's own tokenisers is their file, unchanged."""
    if tokenizer.kind == "hugging face":
        return tokenizer.content.decode()
    if tokenizer.kind == "characters":
        vocab = {_name(tokenizer, i, piece): i for i, piece in enumerate(tokenizer.pieces())}
        model, normalizers = _bpe(vocab, []), list[dict[str, Any]]()
        decoders = [_BYTE_FALLBACK, _FUSE]
    else:
        model, normalizers, decoders = _of_sentencepiece(tokenizer)
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": tokenizer.eod_id,
                "content": tokenizer.end_piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": {"type": "Sequence", "normalizers": normalizers} if normalizers else None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }
    return json.dumps(content, ensure_ascii=False)


def tokenizer_config(n_ctx: int, end: str) -> dict[str, Any]:
    """The content of tokenizer_config.json; the end of a document also begins one, as in GPT-2."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end,
        "eos_token": end,
        "clean_up_tokenization_spaces": False,
        "model_max_length": n_ctx,
    }


def differing_text(tokenizer: Tokenizer, content: str, texts: Iterable[str]) -> str | None:
    """The first text that tokenizers, given a tokenizer.json, encodes otherwise than we do.

    Raises:
      ImportError: tokenizers is not installed.
    """
    import tokenizers

    other = tokenizers.Tokenizer.from_str(content)
    other.encode_special_tokens = True
    for text in texts:
        if other.encode(text, add_special_tokens=False).ids != tokenizer.encode(text).tolist():
            return text
    return None


def _of_sentencepiece(
    tokenizer: Tokenizer,
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """(model, normalizers, decoders) of a SentencePiece model, ours or one that was given by file."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.content)
    is_ours = tokenizer.kind == "learned"
    vocab, learnt = {}, {}
    for i in range(tokenizer.vocab_size):
        piece = processor.id_to_piece(i)
        special = processor.is_byte(i) or processor.is_control(i) or processor.is_unknown(i)
        name = piece.replace(_SPACE_MARK, " ") if is_ours and not special else piece
        vocab[name] = i
        if not special:
            learnt[name] = processor.get_score(i)
    if is_ours or all(score == round(score) for score in learnt.values()):
        model = _bpe(vocab, _merges(vocab, learnt))
    else:
        model = {
            "type": "Unigram",
            "unk_id": processor.unk_id(),
            "byte_fallback": any(processor.is_byte(i) for i in range(tokenizer.vocab_size)),
            "vocab": [[name, learnt.get(name, _NEVER)] for name in vocab],
        }
    if is_ours:
        return model, [], [_BYTE_FALLBACK, _FUSE]
    mark = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE_MARK}
    space = {"type": "Replace", "pattern": {"String": _SPACE_MARK}, "content": " "}
    if not tokenizer.prefix:
        return model, [mark], [space, _BYTE_FALLBACK, _FUSE]
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    prepend = {"type": "Prepend", "prepend": _SPACE_MARK}
    return model, [prepend, mark], [space, _BYTE_FALLBACK, _FUSE, strip]


def _merges(vocab: dict[str, int], scores: dict[str, float]) -> list[list[str]]:
    """The pairs of pieces to merge, first those that make the piece of the highest score."""
    pairs = [
        (-score, vocab[piece[:cut]], vocab[piece[cut:]])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    names = {i: name for name, i in vocab.items()}
    return [[names[left], names[right]] for _, left, right in sorted(pairs)]


def _bpe(vocab: dict[str, int], merges: list[list[str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": True,
        "ignore_merges": False,
        "vocab": vocab,
        "merges": merges,
    }


def _name(tokenizer: Tokenizer, i: int, piece: bytes) -> str:
    """The name of an id of a vocabulary of bytes and characters."""
    if i == tokenizer.eod_id:
        return EOD_PIECE
    return f"<0x{piece[0]:02X}>" if len(piece) == 1 else piece.decode()
