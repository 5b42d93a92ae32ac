"""Encodes buckets of text into the token files of a corpus, by several processes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np

from lmscale.cores import n_cores
from lmscale.data.buckets import read_bucket
from lmscale.data.errors import BuildError, DataError
from lmscale.data.mixture import Part
from lmscale.data.sources import cut
from lmscale.data.tokenizer import Tokenizer
from lmscale.data.tokenizers_of_files import describe_tokenizer, stored_tokenizer
from lmscale.files import DamagedError, read_json, write_json

#: Bytes of text from which another encoding process is worth its start.
_BYTES_PER_PROCESS = 8 << 20
#: Of each split. `changed` documents do not come back from their tokens as they were (their bytes are
#: counted as they come back); `unknown` tokens stand for text that the vocabulary lacks.
COUNTS = ("documents", "pieces", "bytes", "tokens", "changed", "unknown")


def encode_buckets(
    sizes: Mapping[Path, int],
    model: Path,
    tokenizer: Tokenizer,
    cut_held_out: int | None,
    progress: Callable[[str, int, int], None],
) -> list[dict[str, Any]]:
    """Encodes buckets, by as many processes as there are cores and work for.

    Each becomes PATH.SPLIT.SOURCE for its splits and sources, and PATH.json with what it returns. A bucket
    that has become so already is not encoded again.

    Args:
      sizes: bytes of each bucket.
      model: the file of the tokeniser.
      cut_held_out: bytes of the pieces into which held-out texts are cut, as the training text is; or None.

    Returns:
      For each bucket the counts of "SPLIT.SOURCE": `COUNTS`; "largest", the tokens of the longest document;
      and of held-out texts that are cut "lengths", the pieces of each.
    """
    results = {path: counts for path in sizes if (counts := _counts_of(path)) is not None}
    paths = [path for path in sizes if path not in results]
    total, done = sum(sizes.values()), sum(sizes[path] for path in results)
    progress("encoding", done, total)
    n_processes = min(n_cores(), (total - done) // _BYTES_PER_PROCESS)
    if n_processes <= 1:
        for path in paths:
            results[path] = _encode_bucket(path, tokenizer, cut_held_out)
            done += sizes[path]
            progress("encoding", done, total)
        return [results[path] for path in sizes]
    with _EncodingProcesses(n_processes, model, tokenizer, cut_held_out) as processes:
        for number, counts in processes.run(paths):
            results[paths[number]] = counts
            done += sizes[paths[number]]
            progress("encoding", done, total)
    return [results[path] for path in sizes]


def part_of(
    paths: Iterable[Path],
    counts: Sequence[dict[str, Any]],
    split: str,
    source: int,
    n_documents: int | None = None,
) -> Part:
    """The encoded text of one source in a split.

    Args:
      n_documents: where texts are pieces of documents, of how many.
    """
    name = f"{split}.{source}"
    files = [Path(f"{path}.{name}") for path, c in zip(paths, counts, strict=True) if name in c]
    total = sum_of(counts, name)
    lengths = (n for c in counts if name in c for n in c[name].get("lengths", ()))
    n_documents = total["documents"] if n_documents is None else n_documents
    return Part(tuple(files), total["tokens"], total["pieces"], n_documents, tuple(lengths))


def sum_of(counts: Sequence[dict[str, Any]], name: str) -> dict[str, int]:
    """The counts of "SPLIT.SOURCE" in all buckets."""
    found = [c[name] for c in counts if name in c]
    return {
        **{key: sum(c[key] for c in found) for key in COUNTS},
        "largest": max((c["largest"] for c in found), default=0),
    }


def join_buckets(path: Path, part: Part) -> str:
    """Joins the files of a split into one; returns its SHA-256."""
    digest = hashlib.sha256()
    with open(path, "wb") as out:
        for file in part.files:
            data = file.read_bytes()
            digest.update(data)
            out.write(data)
    return digest.hexdigest()


def _encode_bucket(path: Path, tokenizer: Tokenizer, cut_held_out: int | None) -> dict[str, Any]:
    tokens: dict[str, list[np.ndarray]] = {}
    counts: dict[str, dict[str, Any]] = {}
    end = np.array([tokenizer.eod_id], tokenizer.dtype)
    for _, split, text, source in read_bucket(path):
        is_cut = cut_held_out is not None and split != "train"
        pieces = list(cut(text, cut_held_out)) if is_cut else [text]
        encoded = [part for piece in pieces for part in (tokenizer.encode(piece.decode()), end)]
        name = f"{split}.{source}"
        tokens.setdefault(name, []).extend(encoded)
        count = counts.setdefault(name, {**dict.fromkeys(COUNTS, 0), "largest": 0})
        count["documents"] += 1
        count["pieces"] += len(pieces)
        if is_cut:
            count.setdefault("lengths", []).append(len(pieces))
        if tokenizer.is_lossless:
            count["bytes"] += len(text)
        else:
            _count_decoded(count, tokenizer, pieces, encoded[::2])
        count["largest"] = max(count["largest"], sum(map(len, encoded)))
    for name, count in counts.items():
        after_end = np.concatenate([end, *tokens[name]])
        count["tokens"] = len(after_end) - 1
        if tokenizer.count_bytes(after_end) != count["bytes"]:
            raise RuntimeError(f"the tokens of {path} do not stand for the bytes of its text")
        after_end[1:].tofile(f"{path}.{name}")
    # Written last: it says that the bucket is done.
    write_json(_counts_file(path), counts)
    path.unlink()
    return counts


def _counts_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _counts_of(path: Path) -> dict[str, Any] | None:
    """The counts of a bucket that is encoded; None if it is not."""
    with contextlib.suppress(DamagedError):
        return read_json(_counts_file(path))
    return None


def _count_decoded(
    count: dict[str, Any], tokenizer: Tokenizer, pieces: Sequence[bytes], encoded: list[np.ndarray]
) -> None:
    """Counts a document whose tokeniser may not give it back: as bytes what it gives back."""
    changed = False
    for piece, ids in zip(pieces, encoded, strict=True):
        after_end = np.concatenate([[tokenizer.eod_id], ids]).astype(np.int64)
        # What comes back is built as an array: joining a document's pieces in Python takes longer.
        decoded = tokenizer.decode_documents(after_end, 0)[1:]
        count["bytes"] += len(decoded)
        changed = changed or decoded.tobytes() != piece
        if tokenizer.unknown_id is not None:
            count["unknown"] += int((ids == tokenizer.unknown_id).sum())
    count["changed"] += changed


class _EncodingProcesses:
    """Processes that encode buckets.

    They are plain children that speak JSON lines: `multiprocessing` would import the user's main
    program once more in each (or fork a process that runs threads of JAX), and neither is safe.
    """

    def __init__(self, n: int, model: Path, tokenizer: Tokenizer, cut_held_out: int | None):
        self._command = [
            # -P: a file in the current folder must not be imported instead of a module.
            *(sys.executable, "-P", "-c", "from lmscale.data.encode import _serve; _serve()"),
            *(str(model), json.dumps(describe_tokenizer(tokenizer)), str(cut_held_out or 0)),
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
                raise BuildError(
                    "a process that encodes text has died (out of memory?): run the same command again"
                ) from counts
            if "error" in counts:
                raise DataError(counts["error"])
            yield number, counts


def _serve() -> None:
    """The main program of an encoding process. It reads one bucket path a line and writes its counts as a line."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent handles Ctrl-C, and ends this process
    model, description, cut_held_out = sys.argv[1:]
    tokenizer = stored_tokenizer(json.loads(description), Path(model).read_bytes())
    parent = os.getppid()
    for line in sys.stdin:
        try:
            path = Path(line.removesuffix("\n"))
            answer = _encode_bucket(path, tokenizer, int(cut_held_out) or None)
        except DataError as error:
            answer = {"error": str(error)}
        except OSError:
            if os.getppid() != parent:
                return  # the build was killed, and another one goes on in its folder
            raise
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(answer), flush=True)
            continue
        os._exit(1)  # the same; ending in the usual way would try to write the rest
