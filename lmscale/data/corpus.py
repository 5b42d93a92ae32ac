"""A corpus: the tokens of a text in three splits, their tokeniser, and a manifest that describes both.

A corpus is a folder:

    manifest.json           counts, checksums, settings, sources, versions
    tokenizer.model         SentencePiece (or tokenizer.json, characters.json: see `tokenizer`)
    train.bin valid.bin test.bin
                            token ids, little-endian uint16 (uint32 beyond 65,536 ids)

Documents lie in the order of the SHA-256 of their text, each ended by the end-of-document token.
That order is random with respect to the content, so the first k training tokens are a random
sample, and smaller samples are part of larger ones. A document lies in one split, and what is held
out is no copy of training text (see `held_out`).

Every file is checked against its digest in the manifest when it is first used (see `checked`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from lmscale.data.checked import REMEDY, check_file
from lmscale.data.errors import DataError
from lmscale.data.remote import check_scheme, remote_error
from lmscale.data.tokenizer import Tokenizer
from lmscale.data.tokenizers_of_files import stored_tokenizer, tokenizer_file
from lmscale.files import DamagedError, check_fields, read_json
from lmscale.remote import is_remote

SPLITS = ("train", "valid", "test")
MANIFEST = "manifest.json"
FORMAT = 2
#: Required fields of a manifest, and of its parts.
_FIELDS = {
    **dict.fromkeys(("tokenizer", "splits", "held_out", "settings", "sources"), dict),
    **dict.fromkeys(("dropped", "versions"), dict),
    "dtype": str,
}
_TOKENIZER_FIELDS = {"sha256": str, "vocab_size": int, "eod_id": int}
_SPLIT_FIELDS = {
    **dict.fromkeys(("documents", "pieces", "bytes", "tokens", "largest"), int),
    "sha256": str,
}
_HELD_OUT_FIELDS = {"valid_fraction": float, "test_fraction": float}


def data_root() -> epath.Path:
    """The folder of all corpora: $LMSCALE_DATA, else ~/.cache/lmscale/data."""
    root = corpus_path(os.environ.get("LMSCALE_DATA") or "~/.cache/lmscale/data")
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
      vocab_size, eod_id: of the tokeniser; `tokenizer_file` is the name of its file.
      copies: by held-out split, {"share": of its tokens that lie in exact 32-token copies of training
        text, "documents": how many lie in copies by more than half}.

      mixture: where it is one, the sources: {"input", "weight", and for each split "tokens", "available" (what
        the source has), "epochs" and "largest" (its longest document)}.

    Raises:
      DataError: when the folder holds no corpus, one of another format, or cannot be read.
      DamagedError: when its manifest is not what was written.
    """

    def __init__(self, path: epath.PathLike):
        self.path = corpus_path(path)
        if _is_local(self.path):
            self.path = self.path.absolute()
        self.manifest = _read_manifest(self.path)
        in_root = self.path.parent == data_root()
        self.name = self.path.name if in_root else str(self.path)
        self.fingerprint: str = fingerprint(self.manifest)
        self.vocab_size: int = self.manifest["tokenizer"]["vocab_size"]
        self.eod_id: int = self.manifest["tokenizer"]["eod_id"]
        self.copies: dict[str, dict[str, Any]] = self.manifest.get("copies", {})
        self.mixture: list[dict[str, Any]] | None = self.manifest.get("mixture")
        self.tokenizer_file: str = tokenizer_file(self.manifest["tokenizer"])

    def __repr__(self) -> str:
        return f"Corpus({str(self.path)!r}, fingerprint={self.fingerprint!r})"

    @cached_property
    def tokenizer(self) -> Tokenizer:
        path = self.path / self.tokenizer_file
        model = _read_bytes(path)
        # The digest comes first, because later code trusts the content.
        if hashlib.sha256(model).hexdigest() != self.manifest["tokenizer"]["sha256"]:
            raise DamagedError(path, "it is not the tokeniser of this corpus any more", REMEDY)
        return stored_tokenizer(self.manifest["tokenizer"], model)

    @property
    def dtype(self) -> np.dtype:
        """Of the token ids."""
        return np.dtype(self.manifest["dtype"])

    @property
    def token_bytes(self) -> np.ndarray:
        """int32 [vocab_size]: UTF-8 bytes that each id stands for, 0 for the end of a document.

        `Tokenizer.count_bytes` sums it over the targets of windows, for exact bits per byte.
        """
        return self.tokenizer.token_bytes

    def tokens(self, split: str) -> np.ndarray:
        """Token ids [n_tokens] of a split, read-only; end-of-document tokens included.

        The file's digest is checked once, and again when its size or times have changed.

        Raises:
          DamagedError: when the file is missing or is not what was written.
          DataError: when it cannot be read.
        """
        entry = self._split(split)
        dtype = np.dtype(self.manifest["dtype"])
        if not entry["tokens"]:
            return np.empty(0, dtype)
        path = self.path / f"{split}.bin"
        if not _is_local(path):
            data = _read_bytes(path)
            if hashlib.sha256(data).hexdigest() != entry["sha256"]:
                raise DamagedError(path, "its content is not what was written", REMEDY)
            return np.frombuffer(data, dtype)
        try:
            self._check(split)
            return np.memmap(os.fspath(path), dtype, mode="r")
        except OSError as error:
            raise unreadable_corpus(path, error) from None

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

    def check(self) -> None:
        """Checks the files that were not checked since they were last written.

        Remote files are checked when they are read, because reading them is what takes time.

        Raises:
          DamagedError: when one is not what was written.
        """
        self.tokenizer  # noqa: B018 (its digest is compared when it is read)
        for split in SPLITS if _is_local(self.path) else ():
            self.tokens(split)

    def verify(self) -> None:
        """Reads everything; raises `DamagedError` if a byte has changed since it was written."""
        for _, error in self.check_files():
            if error is not None:
                raise error

    def check_files(self) -> Iterator[tuple[str, DamagedError | DataError | None]]:
        """Reads every file anew. Yields its name, and what is wrong with it or None."""
        yield MANIFEST, None  # the manifest was checked when the corpus was opened
        for name, look in (
            (self.tokenizer_file, lambda: Corpus(self.path).tokenizer),
            *((f"{split}.bin", lambda split=split: self._look(split)) for split in SPLITS),
        ):
            try:
                look()
            except (DamagedError, DataError) as error:
                yield name, error
            else:
                yield name, None

    def _look(self, split: str) -> None:
        """Reads a split anew."""
        if not self._split(split)["tokens"]:
            return
        if not _is_local(self.path):
            self.tokens(split)
            return
        try:
            self._check(split, again=True)
        except OSError as error:
            raise unreadable_corpus(self.path / f"{split}.bin", error) from None

    def _check(self, split: str, again: bool = False) -> None:
        """Checks the file of a split. Its size comes first, because that takes no reading."""
        entry = self._split(split)
        path = Path(os.fspath(self.path / f"{split}.bin"))
        expected = entry["tokens"] * np.dtype(self.manifest["dtype"]).itemsize
        size = path.stat().st_size if path.exists() else expected
        if size != expected:
            fault = f"it has {size:,} bytes, but {MANIFEST} says {expected:,}"
            raise DamagedError(path, fault, REMEDY)
        check_file(path, entry["sha256"], again=again)

    def _split(self, split: str) -> dict[str, Any]:
        if split not in SPLITS:
            raise DataError(f"a corpus has the splits {', '.join(SPLITS)}, not {split!r}")
        return self.manifest["splits"][split]


def fingerprint(manifest: dict[str, Any]) -> str:
    """16 hexadecimal digits of what determines the tokens. They do not depend on place and time of the build."""
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


def corpus_path(path: epath.PathLike) -> epath.Path:
    """The path of a corpus's folder from the text that a user gave.

    Raises:
      DataError: when it is in a store that is not read in place.
    """
    check_scheme(str(path))
    return epath.Path(path).expanduser()


def _read_manifest(folder: epath.Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        if _is_local(folder) and os.path.isfile(folder):
            raise DataError(f"{folder} is a file, not the folder of a corpus")
        manifest = read_json(path, {}, REMEDY)
    except (DataError, DamagedError):
        raise
    except Exception as error:  # Each remote store has its own errors.
        raise unreadable_corpus(path, error) from None
    if manifest is None:
        raise DataError(f"{folder} is no corpus: it has no {MANIFEST} (see lmscale data list)")
    if manifest.get("format") != FORMAT:
        raise DataError(
            f"{folder} has format {manifest.get('format')!r}, and this version of lmscale "
            f"reads {FORMAT}, where no held-out text is copied from training text: remove that "
            "folder and build it again"
        )
    check_fields(manifest, path, _FIELDS, REMEDY)
    check_fields(manifest["tokenizer"], path, _TOKENIZER_FIELDS, REMEDY)
    check_fields(manifest["held_out"], path, _HELD_OUT_FIELDS, REMEDY)
    check_fields(manifest["splits"], path, dict.fromkeys(SPLITS, dict), REMEDY)
    for split in SPLITS:
        check_fields(manifest["splits"][split], path, _SPLIT_FIELDS, REMEDY)
    if manifest["dtype"] not in ("<u2", "<u4"):
        raise DamagedError(path, f"its dtype is {manifest['dtype']!r}", REMEDY)
    # Manifests of earlier versions have no seal, but their fingerprint covers what determines the tokens.
    if manifest.get("fingerprint", fingerprint(manifest)) != fingerprint(manifest):
        raise DamagedError(path, "its content is not what was written", REMEDY)
    return manifest


def _read_bytes(path: epath.Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DamagedError(path, "it is missing", REMEDY) from None
    except Exception as error:  # Each remote store has its own errors.
        raise unreadable_corpus(path, error) from None


def unreadable_corpus(path: epath.Path, error: Exception) -> Exception:
    """The error to raise when a corpus at a path could not be read for this reason."""
    if not _is_local(path):
        return remote_error(path, error)
    if isinstance(error, OSError | ValueError):
        return DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}")
    return error


def _is_local(path: epath.Path) -> bool:
    return not is_remote(path)
