"""Built-in corpora that are not built yet, as a plan sees them: their size is estimated, nothing is read."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmscale.data.installed import MAX_BYTES, OTHER_KINDS, PYTHON, find_installed
from lmscale.data.learned_tokenizer import EOD_ID
from lmscale.data.tokenizer import token_dtype

__all__ = ["UnbuiltCorpus"]

#: Share of the text that each split has, where there is enough of it.
_SHARES = {"train": 0.97, "valid": 0.015, "test": 0.015}
#: Bytes a token of Python sources: 1.81 with 512 ids, and 0.41 more for each doubling (measured with 512
#: and 4,096).
_AT_512, _A_DOUBLING = 1.81, 0.41


@dataclass(frozen=True)
class UnbuiltCorpus:
    """Stands in for `Corpus` where runs are only declared.

    Attributes:
      name: that it will have.
      vocab_size: of its tokeniser.
      kind: of its text, one of `lmscale.data.installed.OTHER_KINDS`, or None for Python.
    """

    name: str
    vocab_size: int
    kind: str | None = None

    fingerprint = "not-built"
    mixture = None
    #: Built-in corpora learn their tokeniser.
    eod_id = EOD_ID

    @property
    def copies(self) -> dict[str, dict[str, Any]]:
        return {}

    @property
    def dtype(self) -> np.dtype:
        return token_dtype(self.vocab_size)

    def n_tokens(self, split: str) -> int:
        """Tokens of a split, estimated from the sizes of the files."""
        share = _SHARES[split] if self.kind is None else float(split == "valid")
        return int(share * _bytes_of(self.kind) / self.bytes_per_token(split))

    def bytes_per_token(self, split: str) -> float:
        """About how many bytes of Python sources a token is."""
        return max(1.0, _AT_512 + _A_DOUBLING * math.log2(self.vocab_size / 512))


@functools.cache
def _bytes_of(kind: str | None) -> int:
    """Bytes of the installed text of a kind: looked up once, as a plan of all experiments asks for each."""
    files, _ = find_installed(PYTHON if kind is None else OTHER_KINDS[kind])
    return min(MAX_BYTES, sum(file.stat().st_size for file in files if file.is_file()))
