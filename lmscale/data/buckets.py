"""Documents on disk, sorted by their hash: 256 buckets by the first byte of the SHA-256.

Memory stays bounded by the largest bucket, whatever the size of the text. Equal documents meet in a
bucket, and all but one are dropped.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from lmscale.data.corpus import SPLITS
from lmscale.data.sources import cut

#: Bytes of text that are kept in memory before they are written to the buckets.
_BUFFER_BYTES = 64 << 20
_REPORT_BYTES = 1 << 20
#: The header before each text: its hash, the numbers of its split and source in a byte, its length.
_HEAD = 32 + 1 + 8


class Record(NamedTuple):
    """A text in a bucket; the key decides its bucket and its place there."""

    key: bytes
    split: str
    text: bytes
    #: Its number in a mixture.
    source: int = 0


class BucketWriter:
    """Writes records into the buckets of a folder; a context."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._waiting: dict[int, list[bytes]] = {}
        self._held = 0

    def __enter__(self) -> Self:
        self._folder.mkdir(exist_ok=True)
        return self

    def __exit__(self, *_) -> None:
        self._flush()

    def write(self, record: Record) -> None:
        bucket = self._waiting.setdefault(record.key[0], [])
        label = SPLITS.index(record.split) + len(SPLITS) * record.source
        bucket += (record.key, label.to_bytes(1), len(record.text).to_bytes(8), record.text)
        self._held += len(record.text)
        if self._held > _BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        for number, parts in self._waiting.items():
            with open(self._folder / f"{number:03}", "ab") as file:
                file.writelines(parts)
        self._waiting.clear()
        self._held = 0


def scatter(
    documents: Iterable[tuple[bytes, int]],
    folder: Path,
    progress: Callable[[int], None],
    source: int = 0,
) -> tuple[int, int]:
    """Writes every document of a source, with its position in the input, to the bucket of its hash.

    Returns:
      (number of documents, number of empty ones, which are left out)
    """
    n_documents = n_empty = unreported = 0
    with BucketWriter(folder) as writer:
        for text, position in documents:
            if not text:
                n_empty += 1
                continue
            writer.write(Record(hashlib.sha256(text).digest(), "train", text, source))
            n_documents += 1
            unreported += len(text)
            if unreported > _REPORT_BYTES:
                progress(position)
                unreported = 0
    return n_documents, n_empty


def cut_buckets(folder: Path, pieces: Path, length: int) -> int:
    """Replaces the records in the buckets of a folder by pieces of at most `length` bytes of their texts.

    Args:
      pieces: a folder to write them in meanwhile.

    Returns:
      How many pieces there are.
    """
    shutil.rmtree(pieces, ignore_errors=True)
    n_pieces = 0
    with BucketWriter(pieces) as writer:
        for path in sorted(folder.iterdir()):
            for _, split, text, source in read_bucket(path):
                for piece in cut(text, length):
                    writer.write(Record(hashlib.sha256(piece).digest(), split, piece, source))
                    n_pieces += 1
    shutil.rmtree(folder)
    pieces.rename(folder)
    return n_pieces


def read_bucket(path: Path) -> list[Record]:
    """The records of a bucket in the order of their keys, each key once: that of the first source."""
    data = path.read_bytes()
    records, start = {}, 0
    while start < len(data):
        text = start + _HEAD
        end = text + int.from_bytes(data[text - 8 : text])
        key = data[start : start + 32]
        if key not in records:
            source, split = divmod(data[start + 32], len(SPLITS))
            records[key] = Record(key, SPLITS[split], data[text:end], source)
        start = end
    return sorted(records.values())


def count_unique(paths: Sequence[Path]) -> int:
    """Counts the different documents in some buckets without reading their text."""
    return sum(len(set(_keys(path))) for path in paths)


def _keys(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while head := file.read(_HEAD):
            yield head[:32]
            file.seek(int.from_bytes(head[-8:]), 1)
