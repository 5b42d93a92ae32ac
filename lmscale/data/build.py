"""Builds corpora from files of the user and from text that is installed with Python.

A corpus is built once, beside its final place, by the first process that asks for it; what it then
consists of is written by `lmscale.data.assemble`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from lmscale.data.assemble import CHARACTERS, Progress, Source, write_corpus
from lmscale.data.bad_documents import BadDocuments
from lmscale.data.building import building_folder, lock_of, remove_leftovers
from lmscale.data.character_tokenizer import CharacterTokenizer
from lmscale.data.corpus import (
    MANIFEST,
    Corpus,
    check_name,
    data_root,
)
from lmscale.data.errors import BuildError, DataError
from lmscale.data.inputs import checksum, find_inputs
from lmscale.data.installed import MAX_BYTES, OTHER_KINDS, find_installed, read_installed
from lmscale.data.learned_tokenizer import check_vocab_size
from lmscale.data.mixture import Mixture, check_room
from lmscale.data.sources import MAX_DOCUMENT_BYTES, cut, read_documents
from lmscale.data.tokenizer import Tokenizer, token_dtype
from lmscale.data.tokenizers_of_files import read_tokenizer
from lmscale.data.where import RowFilter
from lmscale.progress import progress as show_progress
from lmscale.remote import is_remote

INSTALLED = "installed-python"
#: Prefix of the names of built-in corpora.
_RESERVED = "installed-"
DEFAULT_VOCAB = 4096
#: The tokeniser whose ids are the bytes of the text.
BYTES = "bytes"
_LONGEST_CHARACTER = 4


def build_corpus(
    name: str,
    inputs: Path | str | Sequence[Path | str] | Mapping[str, float],
    *,
    vocab_size: int | None = None,
    valid_fraction: float | None = None,
    test_fraction: float | None = None,
    tokenizer: str | None = None,
    end_token: str | None = None,
    tokenizer_from: str | None = None,
    text_field: str = "text",
    separator: str | None = None,
    skip_bad: bool | float = False,
    where: str | Sequence[str] = (),
    sample_bytes: int = 8_000_000,
    tokens: int | None = None,
    cut_documents: int | None = None,
    split_pieces: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """Builds a corpus from files, or returns the one already built from them in the same way.

    Processes that ask for one corpus at once wait for the first; what is found under a name is whole.

    Args:
      name: of the folder under `data_root`.
      inputs: files, folders and patterns (see `sources`), one or several; or, for a mixture, {one of these:
        its weight}. The weights are shares of the tokens in every beginning of a split (see `mixture`).
      vocab_size: ids of the tokeniser that is learnt, 4,096 by default; of "characters" the most, by default
        as many as the training text holds.
      valid_fraction, test_fraction: the share of documents that each is chosen from (copies stay in the
        training text), 0 for none; by default the smallest of 1% to 10% that gives each 200 documents.
      tokenizer: the file of a tokeniser (SentencePiece `.model`, Hugging Face `tokenizer.json`, or a folder
        that holds one), "bytes", or "characters"; by default one is learnt from the text.
      end_token: the token of that file that ends a document, where it does not say.
      tokenizer_from: a corpus (name or path) whose tokeniser to use, so that its models can be
        evaluated on this one. What is held out is then no copy of that corpus's training text either.
      text_field: the field of JSON lines, or column of Parquet, that holds the text.
      separator: the line that separates the documents of a text file, "" for an empty one; by default
        a line that holds a form feed or <|endoftext|> alone.
      skip_bad: leave out rows and documents that are no text, instead of refusing them: any number
        (True), at most so many (an int), or at most this share of all (a float below 1).
      where: conditions on the fields of JSON lines and Parquet, all of which a row must meet (see `where`):
        "language_score >= 0.9".
      sample_bytes: training text from which the tokeniser is learnt (characters: all of it).
      tokens: least length of a mixture's text, sources repeated; by default it ends where the first does.
      cut_documents: store documents longer than this many bytes in pieces, cut at line ends, so that
        the pieces of few long documents are shuffled. All pieces of one stay on one side.
      split_pieces: take every piece for a document, for text that is one long document: pieces of it
        then lie on both sides.
      progress: called as work proceeds; by default a bar or lines on standard error.

    Raises:
      DataError: one line, when the inputs, the settings or the name cannot be.
    """
    _check_new_name(name)
    names, where = _plain(inputs), [where] if isinstance(where, str) else [*where]
    _check_text(text_field=text_field, separator=separator, end_token=end_token, where=where)
    mixture = _mixture_of(names, tokens)
    _check_settings(valid_fraction, test_fraction, sample_bytes, cut_documents, split_pieces)
    _check_skipped(skip_bad)
    chosen, parent, vocab_size = _choose_tokenizer(tokenizer, tokenizer_from, end_token, vocab_size)
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
        **_tokenizer_settings(tokenizer, chosen, parent),
        **(mixture.settings() if mixture else {}),
        **({"where": where} if where else {}),
    }
    groups, record = _inputs([[name] for name in names] if mixture else [[*names]])
    bad = BadDocuments(skip_bad, where=RowFilter(where) if where else None)
    documents = _documents(groups, settings, bad)
    source = Source(documents, record["bytes"], record, settings, chosen, parent, bad, mixture)
    check_same = functools.partial(_check_same, name, settings, record)
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
    # So that the built-in corpora stay as they were: one document in fifty there is short.
    source = Source([read_installed(files)], len(files), record, settings, only_samples=True)
    return _build_once(f"{INSTALLED}-v{vocab_size}", source, lambda corpus: None, progress)


def build_installed_kind(kind: str, training: Corpus, progress: Progress | None = None) -> Corpus:
    """Built-in text of another kind for models of `training`: its tokeniser, all of it validation.

    Nothing of it is copied from the training text. It is named after the training corpus, built on
    the first call, and then stays as it is.
    """
    tokenizer = training.tokenizer
    name = _name_of_kind(kind, training)
    if is_installed_kind_built(kind, training):
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
    source = Source(
        [documents], len(files), record, settings, tokenizer, training, only_samples=True
    )
    return _build_once(name, source, lambda corpus: None, progress)


def is_installed_kind_built(kind: str, training: Corpus) -> bool:
    """Whether `build_installed_kind` finds its corpus built."""
    return (data_root() / _name_of_kind(kind, training) / MANIFEST).exists()


def _name_of_kind(kind: str, training: Corpus) -> str:
    return f"{_RESERVED}{kind}-{training.fingerprint[:8]}"


def _check_new_name(name: str) -> None:
    check_name(name)
    if name.startswith(_RESERVED):
        raise DataError(f"the name {name} is reserved for a built-in corpus: choose another one")


def _plain(
    inputs: Path | str | Sequence[Path | str] | Mapping[str, float],
) -> list[str] | dict[str, float]:
    """Inputs as a list or dictionary of texts; a path alone is one input, not one a letter."""
    if isinstance(inputs, str | os.PathLike):
        return [os.fspath(inputs)]
    if isinstance(inputs, Mapping):
        return {os.fspath(name): weight for name, weight in inputs.items()}
    return [os.fspath(name) for name in inputs]


def _check_text(**settings: str | Sequence[str] | None) -> None:
    """Raises `DataError` where a setting is no text: a shell hands on bytes that are not UTF-8 too."""
    for name, value in settings.items():
        try:
            "".join(value or "").encode()
        except UnicodeEncodeError:
            raise DataError(f"{name} is not UTF-8: {value!r}") from None


def _mixture_of(inputs: Sequence[str] | Mapping[str, float], tokens: int | None) -> Mixture | None:
    if isinstance(inputs, Mapping):
        return Mixture.of(inputs, tokens)
    if tokens is not None:
        raise DataError("tokens is the length of a mixture: give every input a weight (INPUT=0.7)")
    return None


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
    if sample_bytes < 1:
        raise DataError(f"sample_bytes must be at least 1, not {sample_bytes}")
    if cut_documents is not None and cut_documents < _LONGEST_CHARACTER:
        raise DataError(
            f"cut_documents must be at least {_LONGEST_CHARACTER}, the bytes of the longest character, not "
            f"{cut_documents}"
        )
    if split_pieces and cut_documents is None:
        raise DataError("split_pieces needs cut_documents: the bytes of a piece")


def _check_skipped(skip_bad: bool | float) -> None:
    if isinstance(skip_bad, float) and not 0 < skip_bad < 1:
        raise DataError(f"skip_bad must be True, a whole number or a share below 1, not {skip_bad}")


def _choose_tokenizer(
    tokenizer: str | None, tokenizer_from: str | None, end_token: str | None, vocab_size: int | None
) -> tuple[Tokenizer | None, Corpus | None, int | None]:
    """Which tokeniser a corpus will have.

    Returns:
      The tokeniser, None where it is made from the text; the corpus that it is taken from, if any; and its
      number of ids, None for as many characters as the text holds.
    """
    if tokenizer and tokenizer_from:
        raise DataError("tokenizer and tokenizer_from exclude each other: give one of them")
    parent = _corpus_of_tokenizer(tokenizer_from, vocab_size) if tokenizer_from else None
    chosen = parent.tokenizer if parent else _chosen_tokenizer(tokenizer, end_token, vocab_size)
    if chosen is not None:
        return chosen, parent, chosen.vocab_size
    if tokenizer == CHARACTERS:
        return None, None, vocab_size
    vocab_size = vocab_size or DEFAULT_VOCAB
    check_vocab_size(vocab_size)
    return None, None, vocab_size


def _corpus_of_tokenizer(name: str, vocab_size: int | None) -> Corpus:
    if not is_remote(name) and Path(name).is_file():
        raise DataError(
            f"{name} is a file, and tokenizer_from names a corpus of lmscale (see lmscale data list): give "
            "the file of a tokeniser as tokenizer (--tokenizer)"
        )
    corpus = Corpus(name if "/" in name else data_root() / name)
    if vocab_size not in (None, corpus.vocab_size):
        raise DataError(
            f"the tokeniser of {name} has {corpus.vocab_size} ids, not {vocab_size}: leave "
            "vocab_size out"
        )
    return corpus


def _chosen_tokenizer(
    name: str | None, end_token: str | None, vocab_size: int | None
) -> Tokenizer | None:
    """The tokeniser that a user names by file or as "bytes"; None where it is made from the text."""
    if end_token is not None and name in (None, BYTES, CHARACTERS):
        raise DataError("end_token is a token of the file that tokenizer names: give both")
    if name is None or name == CHARACTERS:
        return None
    chosen = CharacterTokenizer.of("") if name == BYTES else read_tokenizer(name, end_token)
    if vocab_size not in (None, chosen.vocab_size):
        raise DataError(
            f"the tokeniser {name} has {chosen.vocab_size:,} ids, not {vocab_size:,}: leave vocab_size out"
        )
    return chosen


def _tokenizer_settings(
    name: str | None, chosen: Tokenizer | None, parent: Corpus | None
) -> dict[str, Any]:
    """What the manifest says of a tokeniser that was asked for, and of the corpus that it is taken from."""
    settings = {
        "tokenizer_from": parent.tokenizer.hash if parent else None,
        "apart_from": parent.fingerprint if parent else None,
    }
    if name is None:
        return settings
    if name in (BYTES, CHARACTERS):
        return {**settings, "tokenizer": name}
    return {
        **settings,
        "tokenizer": f"{chosen.file} {chosen.hash[:16]}",
        "end_token": chosen.eod_id,
    }


def _inputs(groups: Sequence[Sequence[str]]) -> tuple[list[list[epath.Path]], dict[str, Any]]:
    """The files that will be read for each group of inputs, and what the manifest says of all.

    Raises:
      DataError: when a group holds a file of an earlier one.
    """
    skipped: Counter[str] = Counter()
    files: list[list[epath.Path]] = []
    taken: dict[str, str] = {}
    for names in groups:
        found = find_inputs(names, lambda kind: skipped.update([kind]))
        for file in map(str, found):
            if file in taken:
                raise DataError(
                    f"{file} belongs to {taken[file]} and to {names[0]}: to one source only"
                )
        taken |= dict.fromkeys(map(str, found), names[0])
        files.append(found)
    sources = [sorted(map(checksum, found), key=lambda one: one["sha256"]) for found in files]
    digests = [_summarize(found)["sha256"] for found in sources] if len(groups) > 1 else None
    together = sorted((one for found in sources for one in found), key=lambda one: one["sha256"])
    record = {**_summarize(together), "skipped": dict(sorted(skipped.items()))}
    return files, {**record, "sha256_by_input": digests} if digests else record


def _documents(
    groups: Sequence[Sequence[epath.Path]], settings: dict[str, Any], bad: BadDocuments
) -> list[Iterator[tuple[bytes, int]]]:
    """The documents of each group of files, each with how many bytes of all were read until it."""
    before = [0]
    last = len(groups) - 1
    return [
        _documents_of(files, settings, bad, before, number == last)
        for number, files in enumerate(groups)
    ]


def _documents_of(
    files: Sequence[epath.Path],
    settings: dict[str, Any],
    bad: BadDocuments,
    before: list[int],
    is_last: bool,
) -> Iterator[tuple[bytes, int]]:
    """The documents of some files; `before` holds the bytes of the files that were read."""
    pieces, size = settings["split_pieces"], settings["cut_documents"]
    # A text that will be cut into documents may be longer than one document.
    max_bytes = 4 * MAX_DOCUMENT_BYTES if pieces else MAX_DOCUMENT_BYTES
    field, separator = settings["text_field"], settings["separator"]
    for file in files:
        for text, position in read_documents(
            file, field, separator, bad.note, max_bytes, bad.where
        ):
            bad.n_documents += 1
            for piece in cut(text, size) if pieces else (text,):
                yield piece, before[0] + position
        before[0] += file.stat().length
    if is_last:
        bad.check_share()


def _check_same(
    name: str, settings: dict[str, Any], record: dict[str, Any], corpus: Corpus
) -> None:
    """Raises a `DataError` where a corpus was built from other inputs or in another way."""
    there = corpus.manifest
    changes = [
        f"{key} {_shown(there['settings'].get(key))} instead of {_shown(settings.get(key))}"
        for key in {**settings, **there["settings"]}
        if not _is_same(there["settings"].get(key), settings.get(key))
    ]
    if any(there["sources"].get(key) != record.get(key) for key in ("sha256", "sha256_by_input")):
        changes.insert(0, "other inputs")
    if changes:
        raise DataError(
            f"corpus {name} exists with {', '.join(changes)}: choose another name, or remove "
            f"{corpus.path} first"
        )


def _is_same(one: Any, other: Any) -> bool:
    """Whether two settings are equal; True, for any number, is not 1."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)


def _shown(setting: Any) -> str:
    """A setting as a message shows it; shares of a mixture without the last digits of their division."""
    if isinstance(setting, dict):
        return ", ".join(f"{name}={_shown(value)}" for name, value in setting.items())
    if isinstance(setting, (list, tuple)):
        return ", ".join(map(_shown, setting))
    return f"{setting:.6g}" if isinstance(setting, float) else str(setting)


def _summarize(sources: list[dict[str, Any]]) -> dict[str, Any]:
    digest = hashlib.sha256("".join(source["sha256"] for source in sources).encode())
    # A list of a million files would make the manifest slow to open.
    return {
        "n_files": len(sources),
        "bytes": sum(source["bytes"] for source in sources),
        "sha256": digest.hexdigest(),
        "files": sources[:1000],
    }


def _itemsize(source: Source) -> int:
    """Bytes of a token: of characters, of which it is not known how many there are, the fewest."""
    if source.tokenizer is not None:
        return source.tokenizer.dtype.itemsize
    return token_dtype(source.settings["vocab_size"] or 0).itemsize


# Building in place ------------------------------------------------------------------------------


def _build_once(
    name: str, source: Source, check_same: Callable[[Corpus], None], progress: Progress | None
) -> Corpus:
    root = data_root()
    if is_remote(root):
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
        if source.mixture:
            check_room(source.mixture, _itemsize(source), final.parent)
        folder = stack.enter_context(building_folder(final, source.key))
        try:
            write_corpus(name, folder, source, progress)
            folder.rename(final)
        except (OSError, MemoryError) as error:
            # On a file system without shared locks another machine may have built it first.
            if not final.exists():
                said = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise BuildError(f"corpus {name} could not be built in {root}: {said}") from error
            check_same(Corpus(final))
    return Corpus(final)
