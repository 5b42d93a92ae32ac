"""Our tokeniser as the `tokenizer.json` that transformers and tokenizers load.

A SentencePiece BPE model merges, of all adjacent pieces whose join is a piece, those with the highest
score; BPE of tokenizers merges by a list of pairs in order. So each piece gives a pair for every way to
cut it into two pieces, in the order of the pieces' scores. Bytes stand for what the vocabulary lacks,
in both. SentencePiece marks a space inside of a piece by U+2581. Here pieces hold the space itself, so
a U+2581 of the text is three bytes as in `lmscale.data.tokenizer`, and nothing needs to be normalised.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sentencepiece

from lmscale.data.tokenizer import EOD_PIECE, Tokenizer

__all__ = ["differing_text", "tokenizer_config", "tokenizer_json"]

_SPACE_MARK = "\u2581"


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of tokenizer.json."""
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model)
    vocab, learnt = {}, {}
    for i in range(tokenizer.vocab_size):
        piece = processor.id_to_piece(i)
        special = processor.is_byte(i) or processor.is_control(i) or processor.is_unknown(i)
        name = piece if special else piece.replace(_SPACE_MARK, " ")
        vocab[name] = i
        if not special:
            learnt[name] = processor.get_score(i)
    pairs = [
        (-score, vocab[piece[:cut]], vocab[piece[cut:]])
        for piece, score in learnt.items()
        for cut in range(1, len(piece))
        if piece[:cut] in learnt and piece[cut:] in learnt
    ]
    names = {i: name for name, i in vocab.items()}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": tokenizer.eod_id,
                "content": EOD_PIECE,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [[names[left], names[right]] for _, left, right in sorted(pairs)],
        },
    }


def tokenizer_config(n_ctx: int) -> dict[str, Any]:
    """The content of tokenizer_config.json; the end of a document also begins one, as in GPT-2."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": EOD_PIECE,
        "eos_token": EOD_PIECE,
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
    for text in texts:
        if other.encode(text, add_special_tokens=False).ids != tokenizer.encode(text).tolist():
            return text
    return None
