"""Opens tokenisers: the file of a corpus, and the files that a user names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from lmscale.data.character_tokenizer import CharacterTokenizer
from lmscale.data.errors import DataError
from lmscale.data.foreign_tokenizers import HuggingFaceTokenizer, SentencePieceTokenizer
from lmscale.data.learned_tokenizer import LearnedTokenizer
from lmscale.data.tokenizer import Tokenizer

__all__ = ["KINDS", "describe_tokenizer", "read_tokenizer", "stored_tokenizer", "tokenizer_file"]

KINDS: dict[str, type[Tokenizer]] = {
    kind.kind: kind
    for kind in (
        LearnedTokenizer,
        SentencePieceTokenizer,
        HuggingFaceTokenizer,
        CharacterTokenizer,
    )
}
#: Files of a folder of transformers, the first that is there.
_IN_FOLDER = ("tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
#: Beside a tokenizer.json: which of its tokens ends a document.
_BESIDE = ("tokenizer_config.json", "special_tokens_map.json")


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """What the manifest of a corpus says of its tokeniser."""
    return {
        "sha256": tokenizer.hash,
        "vocab_size": tokenizer.vocab_size,
        "eod_id": tokenizer.eod_id,
        # Corpora from before there were others do not name their kind.
        **({} if tokenizer.kind == LearnedTokenizer.kind else {"kind": tokenizer.kind}),
    }


def tokenizer_file(description: dict[str, Any]) -> str:
    """The name of the file of a described tokeniser.

    Raises:
      DataError: when it is of a kind that is not known.
    """
    return _kind(description).file


def stored_tokenizer(description: dict[str, Any], content: bytes) -> Tokenizer:
    """The tokeniser of a corpus, from its description and its file's content."""
    kind = _kind(description)
    if kind in (SentencePieceTokenizer, HuggingFaceTokenizer):
        try:
            return kind(content, description["eod_id"])
        except DataError as error:
            raise DataError(f"the tokeniser of the corpus cannot be opened: {error}") from None
    return kind(content)


def read_tokenizer(path: str, end_token: str | None = None) -> Tokenizer:
    """The tokeniser in a file, told by its content: a SentencePiece model or a tokenizer.json.

    Args:
      path: of the file, or of a folder of transformers that holds it.
      end_token: the token that ends a document. By default what is said beside a tokenizer.json
        (tokenizer_config.json), or the usual one of its kind.

    Raises:
      DataError: one line that names the file, and what is wrong with it.
    """
    try:
        (end_token or "").encode()
    except UnicodeEncodeError:
        raise DataError(f"the end token {end_token!r} is not UTF-8") from None
    file = Path(os.path.expanduser(path))  # pathlib's own fails for a user that is not there
    try:
        if file.is_dir():
            inside = [file / name for name in _IN_FOLDER if (file / name).is_file()]
            if not inside:
                raise DataError(f"the folder {path} holds none of {', '.join(_IN_FOLDER)}")
            file = inside[0]
        content = file.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"there is no tokeniser {path}: give a SentencePiece .model, a tokenizer.json, bytes or characters"
        ) from None
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from None
    is_json = content.lstrip()[:1] == b"{"
    try:
        if is_json:
            return HuggingFaceTokenizer(content, end_token or _named_beside(file))
        return SentencePieceTokenizer(content, end_token)
    except DataError as error:
        known = "" if is_json else "; known are a SentencePiece .model and a tokenizer.json"
        raise DataError(f"{file} cannot be the tokeniser: {error}{known}") from None


def _named_beside(file: Path) -> str | None:
    """The end-of-text token that transformers' files beside a tokenizer.json name."""
    for name in _BESIDE:
        try:
            token = json.loads((file.parent / name).read_bytes()).get("eos_token")
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(token, dict):
            token = token.get("content")
        if isinstance(token, str):
            return token
    return None


def _kind(description: dict[str, Any]) -> type[Tokenizer]:
    name = description.get("kind", LearnedTokenizer.kind)
    if name not in KINDS:
        raise DataError(
            f"its tokeniser is of the kind {str(name)[:40]!r}, and this version of lmscale reads "
            f"{', '.join(KINDS)}"
        )
    return KINDS[name]
