"""Builds a corpus: deduplicate, hold out, learn the tokeniser, encode, write.

Everything follows from the text of the documents: their SHA-256 decides the order in which they
are stored and which are held out (see `held_out`). Documents lie in buckets on disk by their hash,
so memory stays bounded whatever the size of the text, and the order of the input, the number of
files and the number of processes change nothing.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lmscale.data.buckets import BucketWriter, Record, read_bucket, scatter
from lmscale.data.building import building_folder, lock_of, remove_leftovers
from lmscale.data.corpus import (
    FORMAT,
    MANIFEST,
    SPLITS,
    TOKENIZER,
    Corpus,
    check_name,
    data_root,
    fingerprint,
)
from lmscale.data.encode import encode_buckets, join_buckets
from lmscale.data.errors import BadDocument, BuildError, DataError
from lmscale.data.held_out import LEFT, HeldOut, choose_held_out
from lmscale.data.inputs import checksum, find_inputs, kinds_in_words
from lmscale.data.installed import MAX_BYTES, OTHER_KINDS, find_installed, read_installed
from lmscale.data.shingles import END
from lmscale.data.sources import MAX_DOCUMENT_BYTES, cut, read_documents
from lmscale.data.token_copies import copies_of_training
from lmscale.data.tokenizer import Tokenizer, check_vocab_size, train_tokenizer
from lmscale.files import write_json
from lmscale.progress import progress as show_progress

#: Called with (stage, done, total): what is being done, and how much of it, in any unit.
Progress = Callable[[str, int, int], None]

INSTALLED = "installed-python"
#: Names that begin so are those of built-in corpora.
_RESERVED = "installed-"
DEFAULT_VOCAB = 4096
#: Training text of another corpus is decoded in such parts.
_TOKENS_AT_ONCE = 1 << 18


def build_corpus(
    name: str,
    inputs: Sequence[str],
    *,
    vocab_size: int | None = None,
    valid_fraction: float | None = None,
    test_fraction: float | None = None,
    tokenizer_from: str | None = None,
    text_field: str = "text",
    separator: str | None = None,
    skip_bad: bool | float = False,
    sample_bytes: int = 8_000_000,
    cut_documents: int | None = None,
    split_pieces: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """Builds a corpus from files, or returns the one already built from them in the same way.

    The build happens beside its final place and moves there when it is complete, so what is found
    under a name is always whole. Processes that build the same corpus at once wait for the first.

    Args:
      name: of the folder under `data_root`.
      inputs: files, folders and patterns (see `sources`).
      vocab_size: ids of the tokeniser, 4,096 unless it comes from another corpus.
      valid_fraction, test_fraction: the share of documents that each is chosen from; those that are
        copies stay in the training text. 0 for none. By default the smallest share, between 1% and
        10%, that gives 200 documents in each.
      tokenizer_from: a corpus (name or path) whose tokeniser to use, so that its models can be
        evaluated on this one. What is held out is then no copy of that corpus's training text either.
      text_field: the field of JSON lines, or column of Parquet, that holds the text.
      separator: the line that separates the documents of a text file, "" for an empty one; by default
        a line that holds a form feed or <|endoftext|> alone.
      skip_bad: leave out rows and documents that are no text, instead of refusing them: any number
        (True), at most so many (an int), or at most this share of all (a float below 1).
      sample_bytes: training text from which the tokeniser is learnt.
      cut_documents: store documents longer than this many bytes in pieces, cut at line ends, so that
        the pieces of few long documents are shuffled. All pieces of one stay on one side.
      split_pieces: take every piece for a document, for text that is one long document: pieces of it
        then lie on both sides.
      progress: called as work proceeds; by default a bar or lines on standard error.

    Raises:
      DataError: one line, when the inputs, the settings or the name cannot be.
    """
    check_name(name)
    if name.startswith(_RESERVED):
        raise DataError(f"the name {name} is reserved for a built-in corpus: choose another one")
    _check_settings(valid_fraction, test_fraction, sample_bytes, cut_documents, split_pieces)
    if isinstance(skip_bad, float) and not 0 < skip_bad < 1:
        raise DataError(f"skip_bad must be True, a whole number or a share below 1, not {skip_bad}")
    parent = _corpus_of_tokenizer(tokenizer_from, vocab_size) if tokenizer_from else None
    tokenizer = parent.tokenizer if parent else None
    vocab_size = tokenizer.vocab_size if tokenizer else vocab_size or DEFAULT_VOCAB
    check_vocab_size(vocab_size)
    settings = {
        "vocab_size": vocab_size,
        "valid_fraction": valid_fraction,
        "test_fraction": test_fraction,
        "text_field": text_field,
        "separator": separator,
        "skip_bad": skip_bad,
        "sample_bytes": sample_bytes,
        "cut_documents": cut_documents,
        "split_pieces": split_pieces,
        "tokenizer_from": tokenizer.hash if tokenizer else None,
        "apart_from": parent.fingerprint if parent else None,
    }
    skipped: Counter[str] = Counter()
    files = find_inputs(inputs, lambda kind: skipped.update([kind]))
    sources = sorted((checksum(file) for file in files), key=lambda source: source["sha256"])
    record = {**_summarize(sources), "skipped": dict(sorted(skipped.items()))}
    bad = BadDocuments(skip_bad)
    # A text that is cut into documents may be long.
    max_bytes = 4 * MAX_DOCUMENT_BYTES if split_pieces else MAX_DOCUMENT_BYTES

    def documents() -> Iterator[tuple[bytes, int]]:
        before = 0
        for file in files:
            for text, position in read_documents(file, text_field, separator, bad.note, max_bytes):
                bad.n_documents += 1
                for piece in cut(text, cut_documents) if split_pieces else (text,):
                    yield piece, before + position
            before += file.stat().length
        bad.check_share()

    def check_same(corpus: Corpus) -> None:
        there = corpus.manifest
        changes = [
            f"{key} {there['settings'].get(key)} instead of {value}"
            for key, value in settings.items()
            if there["settings"].get(key) != value
        ]
        if there["sources"].get("sha256") != record["sha256"]:
            changes.insert(0, "other inputs")
        if changes:
            raise DataError(
                f"corpus {name} exists with {', '.join(changes)}: choose another name, or remove "
                f"{corpus.path} first"
            )

    source = _Source(documents(), record["bytes"], record, settings, tokenizer, parent, bad)
    return _build_once(name, source, check_same, progress)


def build_installed(vocab_size: int, progress: Progress | None = None) -> Corpus:
    """The built-in corpus at a vocabulary size, built on the first call.

    Once built it stays as it is, whatever is installed later.
    """
    check_vocab_size(vocab_size)
    settings = {
        "vocab_size": vocab_size,
        "valid_fraction": None,
        "test_fraction": None,
        "sample_bytes": 5_000_000,
        "max_bytes": MAX_BYTES,
    }
    files, record = find_installed()
    source = _Source(read_installed(files), len(files), record, settings)
    return _build_once(f"{INSTALLED}-v{vocab_size}", source, lambda corpus: None, progress)


def build_installed_kind(kind: str, training: Corpus, progress: Progress | None = None) -> Corpus:
    """Built-in text of another kind for models of `training`: its tokeniser, all of it validation.

    Nothing of it is copied from the training text. It is named after the training corpus, built on
    the first call, and then stays as it is.
    """
    tokenizer = training.tokenizer
    name = f"{_RESERVED}{kind}-{training.fingerprint[:8]}"
    if (data_root() / name / MANIFEST).exists():
        return Corpus(data_root() / name)
    files, record = find_installed(OTHER_KINDS[kind])
    settings = {
        "vocab_size": tokenizer.vocab_size,
        "valid_fraction": 1.0,
        "test_fraction": 0.0,
        "max_bytes": MAX_BYTES,
        "tokenizer_from": tokenizer.hash,
        "apart_from": training.fingerprint,
    }
    documents = read_installed(files)
    source = _Source(documents, len(files), record, settings, tokenizer, training)
    return _build_once(name, source, lambda corpus: None, progress)


@dataclass
class BadDocuments:
    """Rows and documents that were left out because they are no text.

    Attributes:
      allowed: as `skip_bad` of `build_corpus`.
      n_documents: read besides.
      count: how many were left out.
      reasons: how many for each reason.
      first: one line that says what is wrong with the first of them.
    """

    allowed: bool | int | float = True
    n_documents: int = 0
    count: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: str | None = None

    def note(self, bad: BadDocument) -> None:
        """Counts one more.

        Raises:
          DataError: when that is more than are allowed.
        """
        if self.allowed is False:
            raise DataError(f"{bad} (--skip-bad, or skip_bad, leaves such documents out)")
        self.count += 1
        self.reasons[bad.reason] += 1
        self.first = self.first or str(bad)
        if self.allowed is not True and isinstance(self.allowed, int) and self.count > self.allowed:
            raise self._too_many(f"more than {self.allowed:,}")

    def check_share(self) -> None:
        """Raises `DataError` when, of all that was read, a larger share is bad than is allowed."""
        if isinstance(self.allowed, float):
            total = self.n_documents + self.count
            if self.count > self.allowed * total:
                raise self._too_many(f"{self.count:,} of {total:,}, more than {self.allowed:.4g},")

    def _too_many(self, how_many: str) -> DataError:
        return DataError(
            f"{how_many} rows and documents are no text ({kinds_in_words(self.reasons)}; the first: "
            f"{self.first}): mend them, or allow more (--skip-bad, or skip_bad)"
        )


@dataclass(frozen=True)
class _Source:
    """Documents with their position, the last position, and what the manifest says of them.

    Held-out documents are no copies of the training text of `apart_from` either.
    """

    documents: Iterator[tuple[bytes, int]]
    total: int
    record: dict[str, Any]
    settings: dict[str, Any]
    tokenizer: Tokenizer | None = None
    apart_from: Corpus | None = None
    bad: BadDocuments = field(default_factory=BadDocuments)


def _check_settings(
    valid: float | None,
    test: float | None,
    sample_bytes: int,
    cut_documents: int | None,
    split_pieces: bool,
) -> None:
    for name, fraction in (("valid_fraction", valid), ("test_fraction", test)):
        if fraction is not None and not 0 <= fraction < 1:
            raise DataError(f"{name} must be in [0, 1), not {fraction}")
    if (valid or 0.0) + (test or 0.0) >= 1:
        raise DataError(
            f"valid_fraction {valid} and test_fraction {test} leave nothing to train on"
        )
    for setting, value in (("sample_bytes", sample_bytes), ("cut_documents", cut_documents)):
        if value is not None and value < 1:
            raise DataError(f"{setting} must be at least 1, not {value}")
    if split_pieces and cut_documents is None:
        raise DataError("split_pieces needs cut_documents: the bytes of a piece")


def _corpus_of_tokenizer(name: str, vocab_size: int | None) -> Corpus:
    if "://" not in name and Path(name).is_file():
        raise DataError(
            f"{name} is a file, and a tokeniser is taken from a corpus of lmscale: give its name (see "
            "lmscale data list) or its folder; tokenisers of other tools are not read"
        )
    corpus = Corpus(name if "/" in name else data_root() / name)
    if vocab_size not in (None, corpus.vocab_size):
        raise DataError(
            f"the tokeniser of {name} has {corpus.vocab_size} ids, not {vocab_size}: leave "
            "vocab_size out"
        )
    return corpus


def _summarize(sources: list[dict[str, Any]]) -> dict[str, Any]:
    digest = hashlib.sha256("".join(source["sha256"] for source in sources).encode())
    # A list of a million files would make the manifest slow to open.
    return {
        "n_files": len(sources),
        "bytes": sum(source["bytes"] for source in sources),
        "sha256": digest.hexdigest(),
        "files": sources[:1000],
    }


# Building in place ------------------------------------------------------------------------------


def _build_once(name: str, source: _Source, check_same, progress: Progress | None) -> Corpus:
    root = data_root()
    if "://" in str(root):
        raise DataError(
            f"corpora are built on a local disk: unset LMSCALE_DATA ({root}), build, then copy the "
            "folder there"
        )
    final = Path(os.fspath(root)) / name
    with contextlib.ExitStack() as stack:
        if not final.exists():
            try:
                final.parent.mkdir(parents=True, exist_ok=True)
                remove_leftovers(final.parent)
                stack.enter_context(lock_of(final))
            except OSError as error:
                raise DataError(
                    f"cannot build in {root} ({error.strerror}): set LMSCALE_DATA to a folder you "
                    "can write to"
                ) from None
        if final.exists():
            corpus = Corpus(final)
            check_same(corpus)
            return corpus
        if progress is None:
            progress = stack.enter_context(show_progress(f"corpus {name}", 1.0)).stage
        folder = stack.enter_context(building_folder(final))
        try:
            _build(name, folder, source, progress)
            folder.rename(final)
        except (OSError, MemoryError) as error:
            # Another machine may have been first, on a file system that does not share locks.
            if not final.exists():
                said = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise BuildError(f"corpus {name} could not be built in {root}: {said}") from error
            check_same(Corpus(final))
    return Corpus(final)


def _build(name: str, folder: Path, source: _Source, progress: Progress) -> None:
    settings = source.settings
    documents = folder / "documents"
    n_documents, n_empty = scatter(
        source.documents, documents, lambda position: progress("reading", position, source.total)
    )
    if not n_documents:
        bad = f": {source.bad.first}" if source.bad.first else ""
        raise DataError(f"the input of corpus {name} has no text{bad}")
    progress("reading", source.total, source.total)
    paths = sorted(documents.iterdir())
    size = sum(path.stat().st_size for path in paths)
    held_out = choose_held_out(
        paths,
        settings["valid_fraction"],
        settings["test_fraction"],
        other_text=functools.partial(_training_text, source.apart_from),
        progress=lambda done: progress("looking for copies", done, size),
    )
    divided = _divide(paths, held_out, settings.get("cut_documents"), folder / "texts")
    _check_splits(name, divided["documents"], held_out)
    paths = sorted((folder / "texts").iterdir())

    tokenizer = source.tokenizer
    if tokenizer is None:
        progress("learning the tokeniser", 0, 1)
        sample = _sample(paths, settings["sample_bytes"])
        tokenizer = train_tokenizer(sample, settings["vocab_size"])
        progress("learning the tokeniser", 1, 1)
    (folder / TOKENIZER).write_bytes(tokenizer.model)

    counts = encode_buckets(
        paths, folder / TOKENIZER, tokenizer, settings.get("cut_documents"), progress
    )
    splits = {split: join_buckets(folder, paths, counts, split) for split in SPLITS}
    for split in SPLITS:
        splits[split] = {**splits[split], "documents": divided["documents"][split]}
    shutil.rmtree(documents)
    shutil.rmtree(folder / "texts")
    manifest = {
        "format": FORMAT,
        "name": name,
        "settings": settings,
        "sources": source.record,
        "tokenizer": {
            "sha256": tokenizer.hash,
            "vocab_size": tokenizer.vocab_size,
            "eod_id": tokenizer.eod_id,
        },
        "dtype": tokenizer.dtype.str,
        "splits": splits,
        "held_out": {
            "valid_fraction": held_out.rule.valid,
            "test_fraction": held_out.rule.test,
            "max_bytes": held_out.max_bytes,
            **{why: sum(w == why for w in held_out.left.values()) for why in LEFT},
            "dropped_bytes": divided["dropped_bytes"],
        },
        "dropped": {
            "duplicates": n_documents - divided["unique"],
            "empty": n_empty,
            "bad": source.bad.count,
            "bad_by_reason": dict(sorted(source.bad.reasons.items())),
            "first_bad": source.bad.first,
        },
        "versions": {
            "python": platform.python_version(),
            "sentencepiece": metadata.version("sentencepiece"),
            "numpy": np.__version__,
        },
    }
    progress("measuring copies", 0, 1)
    manifest["copies"] = _measure_copies(folder, manifest, source.apart_from)
    progress("measuring copies", 1, 1)
    manifest["fingerprint"] = fingerprint(manifest)
    write_json(folder / MANIFEST, manifest, sealed=True)


def _check_splits(name: str, n_documents: dict[str, int], held_out: HeldOut) -> None:
    total = sum(n_documents.values())
    for split, fraction in held_out.rule.fractions.items():
        if fraction and not n_documents[split]:
            copies = (
                f" ({len(held_out.left)} that are copied in others cannot be held out)"
                if held_out.left
                else ""
            )
            raise DataError(
                f"too little text: of {total} documents none fell to {split}, a share of "
                f"{fraction:.3g}{copies}; name the line that separates the documents of a text file "
                "(separator), take pieces of them for documents (cut_documents with split_pieces), "
                "or change valid_fraction and test_fraction (0 for none)"
            )


def _divide(
    paths: Sequence[Path], held_out: HeldOut, cut_documents: int | None, folder: Path
) -> dict[str, Any]:
    """Writes the text of all splits to the buckets of a folder, and removes the buckets it came from.

    A held-out document is there with its contribution, a training document in pieces when they are
    cut, each with the key of its own text.

    Returns:
      {"documents": of each split, "unique": different documents, "dropped_bytes": not kept}
    """
    n_documents = dict.fromkeys(SPLITS, 0)
    dropped = unique = 0
    keeps_rest = held_out.rule.fractions["train"] > 0
    with BucketWriter(folder) as writer:
        for path in paths:
            for key, _, text in read_bucket(path):
                unique += 1
                if key in held_out.texts:
                    split, kept = held_out.texts[key]
                    writer.write(Record(key, split, kept))
                    dropped += len(text) - len(kept)
                    n_documents[split] += 1
                elif not keeps_rest:
                    dropped += len(text)
                elif cut_documents and len(text) > cut_documents:
                    for piece in cut(text, cut_documents):
                        writer.write(Record(hashlib.sha256(piece).digest(), "train", piece))
                    n_documents["train"] += 1
                else:
                    writer.write(Record(key, "train", text))
                    n_documents["train"] += 1
            path.unlink()
    return {"documents": n_documents, "unique": unique, "dropped_bytes": dropped}


def _sample(paths: Sequence[Path], n_bytes: int) -> list[str]:
    """About `n_bytes` of random training documents.

    They come from the far end of the order: the near end is what small subsets train on, and a
    tokeniser fits the text it was learnt from a little better than the rest.
    """
    sample = []
    for path in reversed(paths):
        for _, split, text in reversed(read_bucket(path)):
            if n_bytes <= 0:
                return sample
            if split == "train":
                sample.append(text[:n_bytes].decode(errors="ignore"))
                n_bytes -= len(text)
    return sample


def _training_text(corpus: Corpus | None) -> Iterator[np.ndarray]:
    """The training documents of a corpus, as `choose_held_out` takes other text."""
    if corpus is None:
        return
    tokens = corpus.tokens("train")
    start = 0
    while start < len(tokens):
        # Whole documents: up to the last end in a chunk, or the first one after it.
        chunk = tokens[start : start + _TOKENS_AT_ONCE]
        ends = np.flatnonzero(chunk == corpus.eod_id)
        if not len(ends):
            ends = np.flatnonzero(tokens[start:] == corpus.eod_id)[:1]
        end = start + int(ends[-1])
        yield corpus.tokenizer.decode_documents(tokens[start:end], END)
        start = end + 1


def _measure_copies(
    folder: Path, manifest: dict[str, Any], apart_from: Corpus | None
) -> dict[str, Any]:
    """What is left of training text in the held-out splits; see `copies_of_training`."""
    dtype = np.dtype(manifest["dtype"])
    tokens = {
        split: np.memmap(folder / f"{split}.bin", dtype, mode="r")
        for split in SPLITS
        if manifest["splits"][split]["tokens"]
    }
    training = [tokens["train"]] if "train" in tokens else []
    if apart_from is not None:
        training.append(apart_from.tokens("train"))
    eod_id = manifest["tokenizer"]["eod_id"]
    return {
        split: copies_of_training(np.array(tokens[split]), training, eod_id)
        for split in ("valid", "test")
        if split in tokens
    }
