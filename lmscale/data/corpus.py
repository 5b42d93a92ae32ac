"""A corpus: tokens of a text in three splits, its tokeniser, and what is known of both.

A corpus is a folder:

    manifest.json           counts, checksums, settings, sources, versions
    tokenizer.model         SentencePiece
    train.bin valid.bin test.bin
                            token ids, little-endian uint16 (uint32 beyond 65,536 ids)

Documents lie in the order of the SHA-256 of their text, each ended by the end-of-document token.
That order is random with respect to the content, so the first k training tokens are a random
sample, and smaller samples are part of larger ones. A document lies in one split, and what is held
out is no copy of training text (see `held_out`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from functools import cached_property
from typing import Any

import numpy as np
from etils import epath

from lmscale.data.errors import DataError
from lmscale.data.tokenizer import Tokenizer

SPLITS = ("train", "valid", "test")
MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
FORMAT = 2


def data_root() -> epath.Path:
    """The folder of all corpora: $LMSCALE_DATA, else ~/.cache/lmscale/data."""
    root = epath.Path(os.environ.get("LMSCALE_DATA") or "~/.cache/lmscale/data").expanduser()
    return root.absolute() if _is_local(root) else root


def check_name(name: str) -> None:
    """Raises `DataError` unless `name` can be a folder on every file system."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
        raise DataError(
            f"a corpus cannot be named {name!r}: use up to 100 letters, digits, '-', '_' and '.', "
            "the first a letter or a digit"
        )


class Corpus:
    """A finished corpus, opened for reading. Tokens are memory-mapped when the folder is local.

    Attributes:
      name: of its folder under the data root, or the whole path when it lies elsewhere.
      path: its folder.
      manifest: the content of manifest.json.
      fingerprint: 16 hexadecimal digits of the tokeniser, the tokens and the split rule.
      vocab_size, eod_id: of the tokeniser.
      copies: by held-out split, {"share": of its tokens that lie in exact 32-token copies of training
        text, "documents": of which more than half do}.

    Raises:
      DataError: when the folder holds no corpus, or one that is damaged.
    """

    def __init__(self, path: epath.PathLike):
        self.path = epath.Path(path).expanduser()
        if _is_local(self.path):
            self.path = self.path.absolute()
        try:
            self.manifest = json.loads((self.path / MANIFEST).read_text())
        except FileNotFoundError:
            raise DataError(f"{self.path} is no corpus: it has no {MANIFEST}") from None
        except json.JSONDecodeError as error:
            raise DataError(f"{self.path / MANIFEST} is damaged: {error}") from None
        if self.manifest.get("format") != FORMAT:
            raise DataError(
                f"{self.path} has format {self.manifest.get('format')!r}, and this version of lmscale "
                f"reads {FORMAT}, where no held-out text is copied from training text: remove that "
                "folder and build it again"
            )
        in_root = self.path.parent == data_root()
        self.name = self.path.name if in_root else str(self.path)
        self.fingerprint: str = fingerprint(self.manifest)
        self.vocab_size: int = self.manifest["tokenizer"]["vocab_size"]
        self.eod_id: int = self.manifest["tokenizer"]["eod_id"]
        self.copies: dict[str, dict[str, Any]] = self.manifest.get("copies", {})

    def __repr__(self) -> str:
        return f"Corpus({str(self.path)!r}, fingerprint={self.fingerprint!r})"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer((self.path / TOKENIZER).read_bytes())
        if tokenizer.hash != self.manifest["tokenizer"]["sha256"]:
            raise DataError(f"{self.path / TOKENIZER} is not the tokeniser of this corpus any more")
        return tokenizer

    @property
    def token_bytes(self) -> np.ndarray:
        """int32 [vocab_size]: UTF-8 bytes that each id stands for, 0 for the end of a document.

        Summed over the targets of any window, it gives the bytes for exact bits per byte.
        """
        return self.tokenizer.token_bytes

    def tokens(self, split: str) -> np.ndarray:
        """Token ids [n_tokens] of a split, read-only; end-of-document tokens included.

        Raises:
          DataError: when the file is missing or shorter or longer than the manifest says.
        """
        entry = self._split(split)
        dtype = np.dtype(self.manifest["dtype"])
        if not entry["tokens"]:
            return np.empty(0, dtype)
        path = self.path / f"{split}.bin"
        try:
            if _is_local(path):
                tokens = np.memmap(os.fspath(path), dtype, mode="r")
            else:
                tokens = np.frombuffer(path.read_bytes(), dtype)
        except (FileNotFoundError, ValueError) as error:
            raise DataError(f"{path} is missing or damaged: {error}") from None
        if len(tokens) != entry["tokens"]:
            raise DataError(
                f"{path} holds {len(tokens):,} tokens, but {MANIFEST} says {entry['tokens']:,}: "
                "build the corpus again"
            )
        return tokens

    def n_tokens(self, split: str) -> int:
        """Tokens of a split, with one end-of-document token a document, or a piece of one."""
        return self._split(split)["tokens"]

    def n_bytes(self, split: str) -> int:
        """UTF-8 bytes of a split's text."""
        return self._split(split)["bytes"]

    def n_documents(self, split: str) -> int:
        """Documents of a split; one that was cut is stored in several pieces."""
        return self._split(split)["documents"]

    def bytes_per_token(self, split: str) -> float:
        """UTF-8 bytes a token of a split, end-of-document tokens counted; NaN when it is empty."""
        n_tokens = self.n_tokens(split)
        return self.n_bytes(split) / n_tokens if n_tokens else float("nan")

    def verify(self) -> None:
        """Reads everything and raises `DataError` if a byte has changed since it was written."""
        self.tokenizer  # noqa: B018 (its checksum is compared when it is read)
        for split in SPLITS:
            digest = hashlib.sha256(self.tokens(split)).hexdigest()
            if digest != self._split(split)["sha256"]:
                raise DataError(f"{self.path / split}.bin has changed: build the corpus again")

    def _split(self, split: str) -> dict[str, Any]:
        if split not in SPLITS:
            raise DataError(f"a corpus has the splits {', '.join(SPLITS)}, not {split!r}")
        return self.manifest["splits"][split]


def fingerprint(manifest: dict[str, Any]) -> str:
    """16 hexadecimal digits of what determines the tokens: the same wherever and when it is built."""
    content = {
        "tokenizer": manifest["tokenizer"]["sha256"],
        "tokens": {split: manifest["splits"][split]["sha256"] for split in SPLITS},
        "fractions": [
            manifest["held_out"]["valid_fraction"],
            manifest["held_out"]["test_fraction"],
        ],
    }
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def _is_local(path: epath.Path) -> bool:
    return "://" not in str(path)
