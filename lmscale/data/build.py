"""Builds a corpus: shuffle and deduplicate, split, learn the tokeniser, encode, write.

Everything follows from the SHA-256 of each document's text. Its first byte chooses a bucket on
disk, so memory stays bounded whatever the size of the text; inside a bucket documents are sorted
by hash, so equal ones meet and all but one are dropped; and the lowest hashes go to validation,
the next to test. A document thus keeps its split when text is added around it, and two corpora
with the same fractions never hold one document on different sides.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
from etils import epath

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
from lmscale.data.errors import DataError
from lmscale.data.installed import MAX_BYTES, OTHER_KINDS, find_installed, read_installed
from lmscale.data.sources import checksum, find_inputs, read_documents
from lmscale.data.tokenizer import Tokenizer, check_vocab_size, train_tokenizer
from lmscale.progress import progress as show_progress

#: Called with (stage, done, total): what is being done, and how much of it, in any unit.
Progress = Callable[[str, int, int], None]

INSTALLED = "installed-python"
#: Names that begin so are those of built-in corpora.
_RESERVED = "installed-"
DEFAULT_VOCAB = 4096

#: Text held in memory before it is written to the buckets.
_BUFFER_BYTES = 64 << 20
_REPORT_BYTES = 1 << 20
#: A process is worth its start for this much text.
_BYTES_PER_PROCESS = 8 << 20
#: Pieces of the built-in evaluation text: a few long files must not fill a set.
_EVALUATION_PIECE = 1 << 13


def build_corpus(
    name: str,
    inputs: Sequence[str],
    *,
    vocab_size: int | None = None,
    valid_fraction: float = 0.01,
    test_fraction: float = 0.01,
    tokenizer_from: str | None = None,
    text_field: str = "text",
    sample_bytes: int = 8_000_000,
    cut_documents: int | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Builds a corpus from files, or returns the one already built from them in the same way.

    The build happens beside its final place and moves there when it is complete, so what is found
    under a name is always whole. Processes that build the same corpus at once wait for the first.

    Args:
      name: of the folder under `data_root`.
      inputs: files, folders and patterns (see `sources`).
      vocab_size: ids of the tokeniser, 4,096 unless it comes from another corpus.
      valid_fraction, test_fraction: expected share of the documents in each; 0 for none.
      tokenizer_from: a corpus (name or path) whose tokeniser to use, so that its models can be
        evaluated on this one.
      text_field: the field of JSON lines, or column of Parquet, that holds the text.
      sample_bytes: training text from which the tokeniser is learnt.
      cut_documents: cut documents longer than this many bytes at line ends, for text that comes
        in few long documents; pieces of one document may then lie in different splits.
      progress: called as work proceeds; by default a bar or lines on standard error.

    Raises:
      DataError: one line, when the inputs, the settings or the name cannot be.
    """
    check_name(name)
    if name.startswith(_RESERVED):
        raise DataError(f"the name {name} is reserved for a built-in corpus: choose another one")
    _check_fractions(valid_fraction, test_fraction)
    for setting, value in (("sample_bytes", sample_bytes), ("cut_documents", cut_documents)):
        if value is not None and value < 1:
            raise DataError(f"{setting} must be at least 1, not {value}")
    tokenizer = None
    if tokenizer_from is not None:
        folder = epath.Path(tokenizer_from).expanduser()
        if "/" not in tokenizer_from:
            folder = data_root() / tokenizer_from
        tokenizer = Corpus(folder).tokenizer
        if vocab_size not in (None, tokenizer.vocab_size):
            raise DataError(
                f"the tokeniser of {tokenizer_from} has {tokenizer.vocab_size} ids, not "
                f"{vocab_size}: leave vocab_size out"
            )
        vocab_size = tokenizer.vocab_size
    vocab_size = DEFAULT_VOCAB if vocab_size is None else vocab_size
    check_vocab_size(vocab_size)
    settings = {
        "vocab_size": vocab_size,
        "valid_fraction": valid_fraction,
        "test_fraction": test_fraction,
        "text_field": text_field,
        "sample_bytes": sample_bytes,
        "cut_documents": cut_documents,
        "tokenizer_from": tokenizer.hash if tokenizer else None,
    }
    files = find_inputs(inputs)
    sources = sorted((checksum(file) for file in files), key=lambda source: source["sha256"])
    record = _summarize(sources)

    def documents() -> Iterator[tuple[bytes, int]]:
        before = 0
        for file in files:
            for text, position in read_documents(file, text_field):
                for piece in _cut(text, cut_documents) if cut_documents else (text,):
                    yield piece, before + position
            before += file.stat().length

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

    source = _Source(documents(), record["bytes"], record, settings, tokenizer)
    return _build_once(name, source, check_same, progress)


def build_installed(vocab_size: int, progress: Progress | None = None) -> Corpus:
    """The built-in corpus at a vocabulary size, built on the first call.

    Once built it stays as it is, whatever is installed later.
    """
    check_vocab_size(vocab_size)
    settings = {
        "vocab_size": vocab_size,
        "valid_fraction": 0.01,
        "test_fraction": 0.01,
        "sample_bytes": 5_000_000,
        "max_bytes": MAX_BYTES,
    }
    files, record = find_installed()
    source = _Source(read_installed(files), len(files), record, settings, None)
    return _build_once(f"{INSTALLED}-v{vocab_size}", source, lambda corpus: None, progress)


def build_installed_kind(kind: str, training: Corpus, progress: Progress | None = None) -> Corpus:
    """Built-in text of another kind for models of `training`: its tokeniser, all of it validation.

    It is named after the tokeniser, built on the first call, and then stays as it is.
    """
    tokenizer = training.tokenizer
    name = f"{_RESERVED}{kind}-{tokenizer.hash[:8]}"
    if (data_root() / name / MANIFEST).exists():
        return Corpus(data_root() / name)
    files, record = find_installed(OTHER_KINDS[kind])
    documents = (
        (piece, number)
        for text, number in read_installed(files)
        for piece in _cut(text, _EVALUATION_PIECE)
    )
    settings = {
        "vocab_size": tokenizer.vocab_size,
        "valid_fraction": 1.0,
        "test_fraction": 0.0,
        "cut_documents": _EVALUATION_PIECE,
        "max_bytes": MAX_BYTES,
        "tokenizer_from": tokenizer.hash,
    }
    source = _Source(documents, len(files), record, settings, tokenizer)
    return _build_once(name, source, lambda corpus: None, progress)


@dataclass(frozen=True)
class _Source:
    """Documents with their position, the last position, and what the manifest says of them."""

    documents: Iterator[tuple[bytes, int]]
    total: int
    record: dict[str, Any]
    settings: dict[str, Any]
    tokenizer: Tokenizer | None


def _check_fractions(valid: float, test: float) -> None:
    for name, fraction in (("valid_fraction", valid), ("test_fraction", test)):
        if not 0 <= fraction < 1:
            raise DataError(f"{name} must be in [0, 1), not {fraction}")
    if valid + test >= 1:
        raise DataError(
            f"valid_fraction {valid} and test_fraction {test} leave nothing to train on"
        )


def _summarize(sources: list[dict[str, Any]]) -> dict[str, Any]:
    digest = hashlib.sha256("".join(source["sha256"] for source in sources).encode())
    # A list of a million files would make the manifest slow to open.
    return {
        "n_files": len(sources),
        "bytes": sum(source["bytes"] for source in sources),
        "sha256": digest.hexdigest(),
        "files": sources[:1000],
    }


def _cut(text: bytes, length: int) -> Iterator[bytes]:
    start = 0
    while len(text) - start > length:
        end = text.rfind(b"\n", start, start + length) + 1
        if end <= start:
            end = start + length
            # Bytes 10xxxxxx continue a character.
            while end > start + 1 and text[end] & 0xC0 == 0x80:
                end -= 1
        yield text[start:end]
        start = end
    yield text[start:]


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
                stack.enter_context(_lock(final))
            except OSError as error:
                raise DataError(
                    f"cannot build in {root} ({error.strerror}): set LMSCALE_DATA to a folder you "
                    "can write to"
                ) from None
        if final.exists():
            corpus = Corpus(final)
            check_same(corpus)
            return corpus
        # The lock says that no process of this machine is at work on it: these were killed.
        host = re.sub(r"[^A-Za-z0-9]", "-", socket.gethostname())
        for leftover in final.parent.glob(f".{name}.{host}.*.building"):
            shutil.rmtree(leftover, ignore_errors=True)
        if progress is None:
            progress = stack.enter_context(show_progress(f"corpus {name}", 1.0)).stage
        folder = final.parent / f".{name}.{host}.{os.getpid()}.building"
        folder.mkdir()
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        _build(name, folder, source, progress)
        try:
            folder.rename(final)
        except OSError:
            # Another machine was first, on a file system that does not share locks.
            if not final.exists():
                raise
            check_same(Corpus(final))
    return Corpus(final)


@contextlib.contextmanager
def _lock(final: Path) -> Iterator[None]:
    """Held by one process of this machine at a time; released when it ends, however it ends."""
    with open(final.parent / f".{final.name}.lock", "w") as file:
        with contextlib.suppress(ImportError):
            import fcntl  # not on Windows, where renaming alone keeps corpora whole

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _build(name: str, folder: Path, source: _Source, progress: Progress) -> None:
    settings = source.settings
    buckets = folder / "buckets"
    buckets.mkdir()
    rule = _SplitRule(settings["valid_fraction"], settings["test_fraction"])
    n_documents, n_empty = _scatter(source, buckets, rule, progress)
    _check_splits(name, n_documents, rule)
    paths = sorted(buckets.iterdir())

    tokenizer = source.tokenizer
    if tokenizer is None:
        progress("learning the tokeniser", 0, 1)
        sample = _sample(paths, rule, settings["sample_bytes"])
        tokenizer = train_tokenizer(sample, settings["vocab_size"])
        progress("learning the tokeniser", 1, 1)
    (folder / TOKENIZER).write_bytes(tokenizer.model)

    counts = _encode_all(paths, folder / TOKENIZER, tokenizer, rule, progress)
    splits = {split: _join(folder, paths, counts, split) for split in SPLITS}
    shutil.rmtree(buckets)
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
        "dropped": {
            "duplicates": sum(count["duplicates"] for count in counts),
            "empty": n_empty,
        },
        "versions": {
            "python": platform.python_version(),
            "sentencepiece": metadata.version("sentencepiece"),
            "numpy": np.__version__,
        },
    }
    manifest["fingerprint"] = fingerprint(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def _check_splits(name: str, n_documents: dict[str, int], rule: _SplitRule) -> None:
    total = sum(n_documents.values())
    if not total:
        raise DataError(f"the input of corpus {name} has no text")
    for split, fraction in zip(SPLITS, rule.fractions):
        if fraction and not n_documents[split]:
            raise DataError(
                f"too little text: of {total} documents none fell to {split}, a share of "
                f"{fraction:.3g}; separate the documents of a text file by a line holding one form "
                "feed, cut long ones with cut_documents, or change valid_fraction and "
                "test_fraction (0 for none)"
            )


# Buckets ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _SplitRule:
    """Validation takes the lowest hashes, test the next, training the rest."""

    valid: float
    test: float

    @property
    def fractions(self) -> tuple[float, float, float]:
        return 1.0 - self.valid - self.test, self.valid, self.test

    def split(self, digest: bytes) -> str:
        position = int.from_bytes(digest[:8]) / 2**64
        if position < self.valid:
            return "valid"
        return "test" if position < self.valid + self.test else "train"


def _scatter(
    source: _Source, folder: Path, rule: _SplitRule, progress: Progress
) -> tuple[dict[str, int], int]:
    """Writes every document to the bucket of its hash.

    Returns:
      (documents by split, duplicates counted; empty documents, which are left out)
    """
    buckets: dict[int, list[bytes]] = {}
    n_documents = dict.fromkeys(SPLITS, 0)
    held = n_empty = unreported = 0

    def write() -> None:
        for number, records in buckets.items():
            with open(folder / f"{number:03}", "ab") as file:
                file.writelines(records)
        buckets.clear()

    for text, position in source.documents:
        if not text:
            n_empty += 1
            continue
        digest = hashlib.sha256(text).digest()
        bucket = buckets.setdefault(digest[0], [])
        bucket += (digest, len(text).to_bytes(8), text)
        n_documents[rule.split(digest)] += 1
        held += len(text)
        if held > _BUFFER_BYTES:
            write()
            held = 0
        unreported += len(text)
        if unreported > _REPORT_BYTES:
            progress("reading", position, source.total)
            unreported = 0
    write()
    progress("reading", source.total, source.total)
    return n_documents, n_empty


def _read_bucket(path: Path) -> tuple[list[tuple[bytes, bytes]], int]:
    """([(hash, text)] in the order of their hashes, duplicates dropped)."""
    data = path.read_bytes()
    documents, start, n_read = {}, 0, 0
    while start < len(data):
        text = start + 40
        end = text + int.from_bytes(data[start + 32 : text])
        documents[data[start : start + 32]] = data[text:end]
        start = end
        n_read += 1
    return sorted(documents.items()), n_read - len(documents)


def _sample(paths: Sequence[Path], rule: _SplitRule, n_bytes: int) -> list[str]:
    """About `n_bytes` of random training documents.

    They come from the far end of the order: the near end is what small subsets train on, and a
    tokeniser fits the text it was learnt from a little better than the rest.
    """
    sample = []
    for path in reversed(paths):
        for digest, text in reversed(_read_bucket(path)[0]):
            if n_bytes <= 0:
                return sample
            if rule.split(digest) == "train":
                sample.append(text[:n_bytes].decode(errors="ignore"))
                n_bytes -= len(text)
    return sample


# Encoding ---------------------------------------------------------------------------------------


def _encode_bucket(path: Path, tokenizer: Tokenizer, rule: _SplitRule) -> dict[str, Any]:
    """Encodes a bucket into PATH.train, PATH.valid and PATH.test; returns their counts."""
    documents, n_duplicates = _read_bucket(path)
    tokens: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    counts = {split: {"documents": 0, "bytes": 0, "tokens": 0} for split in SPLITS}
    end = np.array([tokenizer.eod_id], tokenizer.dtype)
    for digest, text in documents:
        split = rule.split(digest)
        tokens[split] += (tokenizer.encode(text.decode()), end)
        counts[split]["documents"] += 1
        counts[split]["bytes"] += len(text)
    for split in SPLITS:
        if not tokens[split]:
            continue
        ids = np.concatenate(tokens[split])
        counts[split]["tokens"] = len(ids)
        if tokenizer.token_bytes[ids].sum(dtype=np.int64) != counts[split]["bytes"]:
            raise RuntimeError(f"the tokens of {path} do not stand for the bytes of its text")
        ids.tofile(f"{path}.{split}")
    path.unlink()
    return {**counts, "duplicates": n_duplicates}


def _encode_all(
    paths: Sequence[Path],
    model: Path,
    tokenizer: Tokenizer,
    rule: _SplitRule,
    progress: Progress,
) -> list[dict[str, Any]]:
    """The counts of every bucket, encoded by as many processes as there are cores and work for."""
    sizes = [path.stat().st_size for path in paths]
    total, done = sum(sizes), 0
    n_processes = min(_n_cores(), total // _BYTES_PER_PROCESS)
    if n_processes <= 1:
        counts = []
        for path, size in zip(paths, sizes):
            counts.append(_encode_bucket(path, tokenizer, rule))
            done += size
            progress("encoding", done, total)
        return counts
    results: dict[int, dict[str, Any]] = {}
    with _EncodingProcesses(n_processes, model, rule) as processes:
        for number, counts in processes.run(paths):
            results[number] = counts
            done += sizes[number]
            progress("encoding", done, total)
    return [results[number] for number in range(len(paths))]


class _EncodingProcesses:
    """Processes that encode buckets.

    They are plain children that speak JSON lines: `multiprocessing` would import the user's main
    program once more in each (or fork a process that runs threads of JAX), and neither is safe.
    """

    def __init__(self, n: int, model: Path, rule: _SplitRule):
        self._command = [
            # -P: what lies in the current folder must not stand in for a module.
            *(sys.executable, "-P", "-c", "from lmscale.data.build import _serve; _serve()"),
            *(str(model), repr(rule.valid), repr(rule.test)),
        ]
        self._n = n
        self._children: list[subprocess.Popen] = []

    def __enter__(self) -> Self:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        for _ in range(self._n):
            child = subprocess.Popen(
                self._command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self._children.append(child)
        return self

    def __exit__(self, *_) -> None:
        for child in self._children:
            child.kill()
            child.communicate()

    def run(self, paths: Sequence[Path]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yields (number of the bucket, counts) as buckets are done."""
        waiting: queue.SimpleQueue = queue.SimpleQueue()
        finished: queue.SimpleQueue = queue.SimpleQueue()
        for item in enumerate(paths):
            waiting.put(item)

        def drive(child: subprocess.Popen) -> None:
            try:
                while True:
                    number, path = waiting.get_nowait()
                    child.stdin.write(f"{path}\n")
                    child.stdin.flush()
                    finished.put((number, json.loads(child.stdout.readline())))
            except queue.Empty:
                return
            except (OSError, ValueError) as error:
                finished.put((None, error))

        for child in self._children:
            threading.Thread(target=drive, args=(child,), daemon=True).start()
        for _ in paths:
            number, counts = finished.get()
            if number is None:
                raise RuntimeError("a process that encodes text has died") from counts
            yield number, counts


def _serve() -> None:
    """The main program of an encoding process: a bucket's path a line in, its counts a line out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's to handle
    model, valid, test = sys.argv[1:]
    tokenizer = Tokenizer(Path(model).read_bytes())
    rule = _SplitRule(float(valid), float(test))
    for line in sys.stdin:
        counts = _encode_bucket(Path(line.removesuffix("\n")), tokenizer, rule)
        print(json.dumps(counts), flush=True)


def _n_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _join(
    folder: Path, paths: Iterable[Path], counts: Sequence[dict[str, Any]], split: str
) -> dict[str, Any]:
    """Joins a split's buckets into one file; returns its entry in the manifest."""
    digest = hashlib.sha256()
    with open(folder / f"{split}.bin", "wb") as out:
        for path, count in zip(paths, counts):
            if count[split]["tokens"]:
                data = Path(f"{path}.{split}").read_bytes()
                digest.update(data)
                out.write(data)
    return {
        **{key: sum(c[split][key] for c in counts) for key in ("documents", "bytes", "tokens")},
        "sha256": digest.hexdigest(),
    }
