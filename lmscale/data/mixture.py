"""Mixtures: documents of several sources in one order, by weight.

Each next document comes from the source whose share of the tokens so far is furthest below its weight.
So in every beginning of the text the weights are met to within a document of each source, and the order
follows from the documents alone. A source keeps the order of its documents; where it has too few for a
text of the length that is asked for, it begins again.
"""

from __future__ import annotations

import hashlib
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmscale.data.errors import DataError
from lmscale.data.inputs import as_text, is_there
from lmscale.data.tokenizer import Tokenizer

__all__ = ["Mixture", "Part", "interleaved", "parse_weights", "write_mixed"]

#: A bucket's record has a byte for the split and the source of a text.
MAX_SOURCES = 64
_WEIGHT = re.compile(r"(.+)=([0-9.]+(?:[eE][+-]?[0-9]+)?)(%?)")
#: Tokens that are written at once.
_AT_ONCE = 1 << 20


@dataclass(frozen=True)
class Mixture:
    """Sources and how much of the tokens each gives.

    Attributes:
      inputs: a file, folder or pattern each.
      weights: positive; they add up to 1.
      tokens: least length of the training text, for which sources are repeated; None ends it where the
        first source ends, without repetition.
    """

    inputs: tuple[str, ...]
    weights: tuple[float, ...]
    tokens: int | None = None

    @classmethod
    def of(cls, weights: Mapping[str, float], tokens: int | None = None) -> Mixture:
        """The mixture of some inputs by weights of any sum.

        Args:
          weights: input -> its share of the training text, in any unit.
          tokens: least length of the training text; None ends it where the first source ends.

        Raises:
          DataError: a weight is not positive and finite or too small or large beside the others, there are
            more than MAX_SOURCES, or tokens < 1.
        """
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight > 0):
                raise DataError(f"the weight of {name} must be a positive number, not {weight}")
        if len(weights) > MAX_SOURCES:
            raise DataError(f"a mixture has at most {MAX_SOURCES} sources, not {len(weights)}")
        if tokens is not None and tokens < 1:
            raise DataError(f"tokens must be at least 1, not {tokens}")
        total = sum(weights.values())
        shares = {name: weight / total for name, weight in weights.items()}
        for name, share in shares.items():
            if not share:
                raise DataError(
                    f"the weight of {name}, {weights[name]}, is no share of all, {total}: give weights of one unit"
                )
        return cls(tuple(shares), tuple(shares.values()), tokens)

    def settings(self) -> dict[str, Any]:
        """What the manifest says of it."""
        names = map(as_text, self.inputs)
        return {"mixture": dict(zip(names, self.weights, strict=True)), "tokens": self.tokens}


def check_room(mixture: Mixture, itemsize: int, folder: Path) -> None:
    """Raises `DataError` where the training text of a mixture does not fit the disk of a folder.

    Args:
      itemsize: bytes of a token.
    """
    need, free = (mixture.tokens or 0) * itemsize, shutil.disk_usage(folder).free
    if need > free:
        raise DataError(
            f"{mixture.tokens:,} tokens take {need // 10**9:,} GB, and {folder} has {free // 10**9:,} GB left on "
            "its disk: ask for fewer (tokens), or set LMSCALE_DATA to a larger disk"
        )


def parse_weights(inputs: Sequence[str]) -> Sequence[str] | dict[str, float]:
    """Inputs as a user writes them: all plain, or all as INPUT=WEIGHT.

    What is there under the whole name (a file, folder or pattern such as year=2024) has no weight.

    Raises:
      DataError: when only some have a weight.
    """
    weights, plain = {}, []
    for name in inputs:
        found = _WEIGHT.fullmatch(name)
        if not found or is_there(name):
            plain.append(name)
            continue
        try:
            weight = float(found[2])
        except ValueError:
            raise DataError(f"the weight in {name} is not a number") from None
        if found[1] in weights:
            raise DataError(f"{found[1]} has two weights: give each source once")
        weights[found[1]] = weight / 100 if found[3] else weight
    if weights and plain:
        raise DataError(
            f"{plain[0]} has no weight, and {next(iter(weights))} has one: give all inputs a weight "
            "(INPUT=0.7) or none"
        )
    return weights or inputs


def interleaved(
    sources: Sequence[Callable[[], Iterator[np.ndarray]]],
    weights: Sequence[float],
    n_tokens: int | None = None,
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (source, document) in the order of a mixture.

    Args:
      sources: gives the documents (token ids) of each source from the first one on.
      weights: of each source.
      n_tokens: ends when so many are reached, and repeats sources for that; None ends where the next
        document would be one of a source that has no more.
    """
    streams = [source() for source in sources]
    taken = [0] * len(sources)
    while n_tokens is None or sum(taken) < n_tokens:
        number = min(range(len(sources)), key=lambda i: (taken[i] / weights[i], i))
        document = next(streams[number], None)
        if document is None:
            if n_tokens is None:
                return
            streams[number] = sources[number]()
            document = next(streams[number])
        taken[number] += len(document)
        yield number, document


@dataclass(frozen=True)
class Part:
    """The text of one source in a split, which may be stored in pieces of its documents.

    Attributes:
      files: in order.
      tokens, pieces: how many they hold.
      documents: that the pieces are of.
      lengths: of held-out documents, pieces of each in the order of the files; empty where they are not cut.
    """

    files: tuple[Path, ...]
    tokens: int
    pieces: int
    documents: int
    lengths: tuple[int, ...] = ()

    def n_documents(self, pieces: int) -> int:
        """How many documents the first so many pieces are of; the source is passed over again and again.

        The pieces of a training document lie apart: a part of them counts as so many whole documents.
        """
        passes, rest = divmod(pieces, max(1, self.pieces))
        if self.lengths:
            begun = int(np.searchsorted(np.cumsum(self.lengths) - self.lengths, rest))
        else:
            begun = math.ceil(rest * self.documents / max(1, self.pieces))
        return passes * self.documents + begun

    def read(self, dtype: np.dtype, eod_id: int) -> Iterator[np.ndarray]:
        """The ids of each piece, the end of document included."""
        for file in self.files:
            ids = np.fromfile(file, dtype)
            start = 0
            for end in (np.flatnonzero(ids == eod_id) + 1).tolist():
                yield ids[start:end]
                start = end


def write_mixed(
    path: Path, parts: Sequence[Part], mixture: Mixture, tokenizer: Tokenizer, n_tokens: int | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Writes the tokens of a split of a mixture.

    Returns:
      (counts of the split as in a manifest, for each source {"documents", "pieces", "tokens", "available":
      tokens that it has, "epochs": how often they are passed over, "largest": tokens of its longest piece})
    """
    digest = hashlib.sha256()
    end = np.array([tokenizer.eod_id], tokenizer.dtype)
    shares: list[dict[str, Any]] = [
        {"documents": 0, "pieces": 0, "tokens": 0, "available": part.tokens, "largest": 0}
        for part in parts
    ]
    waiting: list[np.ndarray] = []
    held = n_bytes = 0

    def flush() -> None:
        nonlocal held, n_bytes
        ids = np.concatenate([end, *waiting])
        n_bytes += tokenizer.count_bytes(ids)
        file.write(ids[1:].tobytes())
        digest.update(ids[1:].tobytes())
        waiting.clear()
        held = 0

    sources = [lambda part=part: part.read(tokenizer.dtype, tokenizer.eod_id) for part in parts]
    with open(path, "wb") as file:
        for number, piece in interleaved(sources, mixture.weights, n_tokens):
            share = shares[number]
            share["pieces"] += 1
            share["tokens"] += len(piece)
            share["largest"] = max(share["largest"], len(piece))
            waiting.append(piece)
            held += len(piece)
            if held >= _AT_ONCE:
                flush()
        flush()
    for share, part in zip(shares, parts, strict=True):
        share["documents"] = part.n_documents(share["pieces"])
        share["epochs"] = share["tokens"] / share["available"] if share["available"] else 0.0
    counts = {
        **{key: sum(share[key] for share in shares) for key in ("documents", "pieces", "tokens")},
        "bytes": n_bytes,
        "largest": max(share["largest"] for share in shares),
        "sha256": digest.hexdigest(),
    }
    return counts, shares
