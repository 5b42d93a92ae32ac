"""From documents to the files of a corpus: hold out, learn the tokeniser, encode, write the manifest.

Everything follows from the text of the documents: their SHA-256 decides the order in which they
are stored and which are held out (see `held_out`). Documents lie in buckets on disk by their hash,
so memory stays bounded whatever the size of the text, and the order of the input, the number of
files and the number of processes change nothing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lmscale.cores import in_order
from lmscale.data.bad_documents import BadDocuments
from lmscale.data.buckets import (
    BucketWriter,
    Record,
    count_unique,
    cut_buckets,
    read_bucket,
    scatter,
)
from lmscale.data.character_tokenizer import CharacterTokenizer, count_characters
from lmscale.data.copies import LEAST_COMPARED
from lmscale.data.corpus import FORMAT, MANIFEST, SPLITS, Corpus, fingerprint
from lmscale.data.encode import encode_buckets, join_buckets, part_of, sum_of
from lmscale.data.errors import DataError
from lmscale.data.held_out import LEFT, MAX_BYTES, HeldOut, choose_held_out
from lmscale.data.inputs import as_text
from lmscale.data.learned_tokenizer import train_tokenizer
from lmscale.data.mixture import Mixture, write_mixed
from lmscale.data.shingles import END
from lmscale.data.sources import cut
from lmscale.data.stages import Stages
from lmscale.data.token_copies import COPY_CHARACTERS, COPY_TOKENS, copies_of_training
from lmscale.data.tokenizer import Tokenizer
from lmscale.data.tokenizers_of_files import describe_tokenizer, stored_tokenizer, tokenizer_file
from lmscale.files import write_json

#: Called with (stage, done, total): the name of the stage, and the work done and in all, in any unit.
Progress = Callable[[str, int, int], None]

#: The setting `tokenizer` of a vocabulary of the characters of the text.
CHARACTERS = "characters"
#: With fewer documents than this, pieces of them are taken for documents: as many as are wanted, if none
#: gets shorter than this.
FEW_TO_HOLD_OUT = 10
WANTED_PIECES = 2000
SHORTEST_PIECE = 1 << 11
#: Tokens of another corpus that are decoded at once.
_TOKENS_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Source:
    """What a corpus is made of.

    Attributes:
      documents: (text, position) of each, for every source of the mixture (one, if it is none);
        positions count up to `total`, in any unit.
      record, settings: what the manifest says of the inputs and of the build.
      tokenizer: learnt from the training text when None.
      apart_from: a corpus whose training text no held-out document may copy either.
      bad: what was left out of the input.
      mixture: the weights of the sources.
      only_samples: as `choose_held_out` has it.
    """

    documents: Sequence[Iterator[tuple[bytes, int]]]
    total: int
    record: dict[str, Any]
    settings: dict[str, Any]
    tokenizer: Tokenizer | None = None
    apart_from: Corpus | None = None
    bad: BadDocuments = field(default_factory=BadDocuments)
    mixture: Mixture | None = None
    only_samples: bool = False

    @cached_property
    def key(self) -> str:
        """A digest of all that decides the bytes of the corpus; a killed build goes on under it."""
        told = [FORMAT, self.settings, self.record, _versions()]
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def write_corpus(name: str, folder: Path, source: Source, progress: Progress) -> None:
    """Writes the files of a corpus to a folder: tokeniser, tokens of every split, manifest.

    Stages that the same build had finished before it was killed are not done again.

    Raises:
      DataError: when the input has no text, or too little for its splits.
    """
    stages = Stages(folder, source.key)
    read = stages.result("read") or stages.finish("read", _read(name, folder, source, progress))
    divided = stages.result("divided") or stages.finish(
        "divided", _hold_out(name, folder, source, progress)
    )
    shutil.rmtree(folder / "documents", ignore_errors=True)
    sizes = {folder / "texts" / bucket: size for bucket, size in divided["buckets"].items()}
    tokenizer = _tokenizer(folder, source, stages, [*sizes], progress)
    cut_documents = source.settings.get("cut_documents")
    counts = encode_buckets(sizes, folder / tokenizer.file, tokenizer, cut_documents, progress)
    manifest = {
        **_described(name, source, tokenizer),
        **_join(folder, source, tokenizer, [*sizes], counts, divided),
        "held_out": divided["held_out"],
        **({"cut_by_itself": read["cut"]} if "cut" in read else {}),
        "dropped": {"duplicates": read["documents"] - divided["unique"], **read["dropped"]},
    }
    shutil.rmtree(folder / "texts")
    progress("measuring copies", 0, 1)
    manifest["copies"] = _measure_copies(folder, manifest, source.apart_from)
    progress("measuring copies", 1, 1)
    manifest["fingerprint"] = fingerprint(manifest)
    write_json(folder / MANIFEST, manifest, sealed=True)
    stages.remove()


def _read(name: str, folder: Path, source: Source, progress: Progress) -> dict[str, Any]:
    """Writes all documents to buckets; returns how many, and what was left out."""
    documents = folder / "documents"
    shutil.rmtree(documents, ignore_errors=True)
    found = []
    for number, some in enumerate(source.documents):
        if source.bad.where:
            source.bad.where.begin()
        counts = scatter(
            some, documents, lambda position: progress("reading", position, source.total), number
        )
        if not counts[0]:
            of = f" {source.mixture.inputs[number]}" if source.mixture else ""
            raise DataError(f"the input{of} of corpus {name}{source.bad.why_nothing()}")
        found.append(counts)
    progress("reading", source.total, source.total)
    read: dict[str, Any] = {
        "documents": sum(n for n, _ in found),
        "dropped": {"empty": sum(n for _, n in found), **source.bad.summary()},
    }
    if length := _length_of_pieces(sorted(documents.iterdir()), source.settings):
        read["cut"] = {"documents": read["documents"], "bytes": length}
        read["documents"] = cut_buckets(documents, folder / "pieces", length)
    return read


def _length_of_pieces(paths: Sequence[Path], settings: dict[str, Any]) -> int | None:
    """Bytes of the pieces that are taken for documents, where documents are too few to hold some out.

    None where there are enough, where the user says how to cut, or where nothing is held out.
    """
    holds_out = any(settings[f"{split}_fraction"] != 0 for split in ("valid", "test"))
    if not holds_out or settings.get("cut_documents") or not _are_few(paths):
        return None
    n_bytes = sum(path.stat().st_size for path in paths)
    return min(MAX_BYTES, max(SHORTEST_PIECE, n_bytes // WANTED_PIECES))


def _are_few(paths: Sequence[Path]) -> bool:
    """Whether there are fewer than `FEW_TO_HOLD_OUT` different documents in some buckets."""
    n = 0
    for path in paths:
        n += count_unique([path])
        if n >= FEW_TO_HOLD_OUT:
            return False
    return True


def _hold_out(name: str, folder: Path, source: Source, progress: Progress) -> dict[str, Any]:
    """Writes the texts of all splits to buckets.

    Returns:
      {"documents": of each split, "trained": training documents of each source, "unique": different documents,
      "held_out": as in the manifest, "buckets": name -> bytes}
    """
    settings, texts = source.settings, folder / "texts"
    shutil.rmtree(texts, ignore_errors=True)
    paths = sorted((folder / "documents").iterdir())
    size = sum(path.stat().st_size for path in paths)
    held_out = choose_held_out(
        paths,
        settings["valid_fraction"],
        settings["test_fraction"],
        other_text=functools.partial(_training_text, source.apart_from),
        progress=lambda done: progress("looking for copies", done, size),
        only_samples=source.only_samples,
    )
    divided = _divide(paths, held_out, settings.get("cut_documents"), texts, len(source.documents))
    _check_splits(name, divided["documents"], held_out)
    return {
        "documents": divided["documents"],
        "trained": divided["trained"],
        "unique": divided["unique"],
        "held_out": {**_how_held_out(held_out), "dropped_bytes": divided["dropped_bytes"]},
        "buckets": {path.name: path.stat().st_size for path in sorted(texts.iterdir())},
    }


def _tokenizer(
    folder: Path, source: Source, stages: Stages, paths: Sequence[Path], progress: Progress
) -> Tokenizer:
    """The tokeniser of the corpus, whose file is written to its folder."""
    settings, tokenizer = source.settings, source.tokenizer
    if (described := stages.result("tokenizer")) is not None:
        file = folder / tokenizer_file(described)
        return tokenizer or stored_tokenizer(described, file.read_bytes())
    if tokenizer is None:
        progress("learning the tokeniser", 0, 1)
        if settings.get("tokenizer") == CHARACTERS:
            tokenizer = count_characters(_trained(paths), settings["vocab_size"])
        else:
            weights = source.mixture.weights if source.mixture else (1.0,)
            sizes = [round(settings["sample_bytes"] * weight) for weight in weights]
            tokenizer = train_tokenizer(_sample(paths, sizes), settings["vocab_size"])
        progress("learning the tokeniser", 1, 1)
    (folder / tokenizer.file).write_bytes(tokenizer.content)
    stages.finish("tokenizer", describe_tokenizer(tokenizer))
    return tokenizer


def _join(
    folder: Path,
    source: Source,
    tokenizer: Tokenizer,
    paths: Sequence[Path],
    counts: Sequence[dict[str, Any]],
    divided: dict[str, Any],
) -> dict[str, Any]:
    """Writes the token file of every split; returns "splits", and "mixture" where it is one."""
    mixture, n_documents = source.mixture, divided["documents"]
    splits: dict[str, Any] = {}
    shares: dict[str, Any] = {}
    for split in SPLITS:
        file = folder / f"{split}.bin"
        if mixture is None:
            digest = join_buckets(file, part_of(paths, counts, split, 0))
            splits[split] = {
                **sum_of(counts, f"{split}.0"),
                "documents": n_documents[split],
                "sha256": digest,
            }
            continue
        numbers = range(len(mixture.inputs))
        trained = divided["trained"] if split == "train" else [None for _ in numbers]
        parts = [part_of(paths, counts, split, number, trained[number]) for number in numbers]
        sums = [sum_of(counts, f"{split}.{number}") for number in numbers]
        lacking = [
            name for name, part in zip(mixture.inputs, parts, strict=True) if not part.tokens
        ]
        if lacking and n_documents[split]:
            raise DataError(
                f"no document of {lacking[0]} fell to {split}, so a mixture cannot hold its weight: give more "
                "of it, or change valid_fraction and test_fraction"
            )
        length = mixture.tokens if split == "train" else None
        written, shares[split] = write_mixed(file, parts, mixture, tokenizer, length)
        kinds = {kind: sum(s[kind] for s in sums) for kind in ("changed", "unknown")}
        splits[split] = {**written, **kinds}
    if mixture is None:
        return {"splits": splits}
    described = [
        {
            "input": as_text(name),
            "weight": weight,
            **{split: shares[split][number] for split in SPLITS},
        }
        for number, (name, weight) in enumerate(zip(mixture.inputs, mixture.weights, strict=True))
    ]
    return {"splits": splits, "mixture": described}


def _described(name: str, source: Source, tokenizer: Tokenizer) -> dict[str, Any]:
    """The part of the manifest that does not depend on the text."""
    return {
        "format": FORMAT,
        "name": name,
        "settings": source.settings,
        "sources": source.record,
        "tokenizer": describe_tokenizer(tokenizer),
        "dtype": tokenizer.dtype.str,
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "sentencepiece": metadata.version("sentencepiece"),
        "numpy": np.__version__,
    }


def _how_held_out(held_out: HeldOut) -> dict[str, Any]:
    """The rule of the held-out splits, and how many candidates had to stay in the training text."""
    return {
        "valid_fraction": held_out.rule.valid,
        "test_fraction": held_out.rule.test,
        "max_bytes": held_out.max_bytes,
        **{why: sum(w == why for w in held_out.left.values()) for why in LEFT},
    }


def _check_splits(name: str, n_documents: dict[str, int], held_out: HeldOut) -> None:
    total = sum(n_documents.values())
    for split, fraction in held_out.rule.fractions.items():
        if fraction and not n_documents[split]:
            short = sum(why == "too_short" for why in held_out.left.values())
            reasons = [
                f"{n} that are {why}"
                for n, why in (
                    (len(held_out.left) - short, "copied in others"),
                    (short, f"shorter than {LEAST_COMPARED} bytes"),
                )
                if n
            ]
            copies = f" ({' and '.join(reasons)} cannot be held out)" if reasons else ""
            raise DataError(
                f"too little text: of {total} documents none fell to {split}, a share of "
                f"{fraction:.3g}{copies}; name the line that separates the documents of a text file "
                "(separator), take pieces of them for documents (cut_documents with split_pieces), "
                "or change valid_fraction and test_fraction (0 for none)"
            )


def _divide(
    paths: Sequence[Path],
    held_out: HeldOut,
    cut_documents: int | None,
    folder: Path,
    n_sources: int,
) -> dict[str, Any]:
    """Writes the text of all splits to the buckets of a folder.

    Of a held-out document only its contribution is written. A training document is written whole, or in
    pieces where `cut_documents` asks for them; each piece has the key of its own text.

    Returns:
      {"documents": of each split, "trained": training documents of each source, "unique": different documents,
      "dropped_bytes": not kept}
    """
    n_documents = dict.fromkeys(SPLITS, 0)
    trained = [0] * n_sources
    dropped = unique = 0
    keeps_rest = held_out.rule.fractions["train"] > 0
    with BucketWriter(folder) as writer:
        for path in paths:
            for key, _, text, source in read_bucket(path):
                unique += 1
                if key in held_out.texts:
                    split, kept = held_out.texts[key]
                    writer.write(Record(key, split, kept, source))
                    dropped += len(text) - len(kept)
                    n_documents[split] += 1
                elif not keeps_rest:
                    dropped += len(text)
                elif cut_documents and len(text) > cut_documents:
                    for piece in cut(text, cut_documents):
                        digest = hashlib.sha256(piece).digest()
                        writer.write(Record(digest, "train", piece, source))
                    trained[source] += 1
                else:
                    writer.write(Record(key, "train", text, source))
                    trained[source] += 1
    n_documents["train"] = sum(trained)
    return {
        "documents": n_documents,
        "trained": trained,
        "unique": unique,
        "dropped_bytes": dropped,
    }


def _trained(paths: Sequence[Path]) -> Iterator[str]:
    """All training text."""
    for path in paths:
        for _, split, text, _ in read_bucket(path):
            if split == "train":
                yield text.decode()


def _sample(paths: Sequence[Path], n_bytes: Sequence[int]) -> list[str]:
    """Random training documents, of each source about as many bytes as are asked for.

    They are taken from the end of the order. Small subsets train on its beginning, and a tokeniser
    fits the text that it was learnt from a little better than other text.
    """
    sample: list[str] = []
    wanted = [*n_bytes]
    for path in reversed(paths):
        for _, split, text, source in reversed(read_bucket(path)):
            if split == "train" and wanted[source] > 0:
                sample.append(text[: wanted[source]].decode(errors="ignore"))
                wanted[source] -= len(text)
        if max(wanted) <= 0:
            break
    return sample


def _training_text(corpus: Corpus | None) -> Iterator[np.ndarray]:
    """The training documents of a corpus, as `choose_held_out` takes other text."""
    if corpus is None:
        return
    tokens = corpus.tokens("train")
    start = 0
    while start < len(tokens):
        # Decode whole documents: up to the last end-of-document in a chunk, or the first one after it.
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
    """How much of the held-out splits is still a copy of training text; see `copies_of_training`."""
    dtype = np.dtype(manifest["dtype"])
    tokens = {
        split: np.memmap(folder / f"{split}.bin", dtype, mode="r")
        for split in SPLITS
        if manifest["splits"][split]["tokens"]
    }
    training: list[np.ndarray] = [tokens["train"]] if "train" in tokens else []
    if apart_from is not None:
        training.append(apart_from.tokens("train"))
    eod_id = manifest["tokenizer"]["eod_id"]
    of_characters = manifest["tokenizer"].get("kind") == CharacterTokenizer.kind
    least = COPY_CHARACTERS if of_characters else COPY_TOKENS

    def measured(split: str) -> dict[str, Any]:
        found = copies_of_training(np.array(tokens[split]), training, eod_id, least)
        return {**found, **({"least_tokens": least} if of_characters else {})}

    splits = [split for split in ("valid", "test") if split in tokens]
    return dict(zip(splits, in_order(measured, splits), strict=True))
