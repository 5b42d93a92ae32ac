"""Finding corpora by name."""

from __future__ import annotations

import contextlib
import contextvars
import re
from collections.abc import Callable, Iterator
from typing import Any, cast

from etils import epath

from lmscale.data.assemble import Progress
from lmscale.data.build import (
    INSTALLED,
    build_installed,
    build_installed_kind,
    is_installed_kind_built,
)
from lmscale.data.corpus import MANIFEST, SPLITS, Corpus, corpus_path, data_root, unreadable_corpus
from lmscale.data.errors import DataError
from lmscale.data.installed import OTHER_KINDS
from lmscale.data.remote import check_scheme
from lmscale.data.unbuilt import UnbuiltCorpus
from lmscale.files import DamagedError

#: Default vocabulary of the built-in corpus: it suits models that a laptop can train.
INSTALLED_VOCAB = 1024
_may_build = contextvars.ContextVar("may_build", default=True)


@contextlib.contextmanager
def without_building() -> Iterator[None]:
    """While this lasts, a built-in corpus that is not there is an `UnbuiltCorpus`, and nothing is built."""
    token = _may_build.set(False)
    try:
        yield
    finally:
        _may_build.reset(token)


def open_corpus(
    name_or_path: str,
    vocab_size: int | None = None,
    progress: Progress | None = None,
    fingerprint: str | None = None,
) -> Corpus:
    """Opens a corpus by its name under the data root, or by the path of its folder.

    `installed-python` (or `installed-python-v4096`: with its vocabulary) is always there: it is
    built on first use, in seconds.

    Args:
      vocab_size, fingerprint: what the corpus must have; anything when None.

    Raises:
      DataError: one line, when there is no such corpus or it is another one.
      DamagedError: when its manifest is not what was written.
    """
    name = str(name_or_path)
    check_scheme(name)
    installed = re.fullmatch(rf"{INSTALLED}(?:-v(\d{{1,9}}))?", name)
    if installed:
        asked = int(installed[1]) if installed[1] else vocab_size or INSTALLED_VOCAB
        path = data_root() / f"{INSTALLED}-v{asked}"
        if not path.exists() and not _may_build.get():
            return cast(Corpus, UnbuiltCorpus(path.name, asked))
        corpus = Corpus(path) if path.exists() else build_installed(asked, progress)
    else:
        in_root = "/" not in name and data_root() / name
        folder = in_root if in_root and _is_there(in_root) else corpus_path(name)
        if _is_there(folder):
            corpus = Corpus(folder)
        else:
            there = ", ".join(corpus.name for corpus in list_corpora()) or "none yet"
            raise DataError(
                f"no corpus {name} in {data_root()} (there: {there}); build it with: lmscale data "
                f"build {name} --input PATH, or use {INSTALLED}"
            )
    if vocab_size not in (None, corpus.vocab_size):
        raise DataError(
            f"corpus {name} has a vocabulary of {corpus.vocab_size}, not {vocab_size}: build one "
            "under another name for that"
        )
    if fingerprint is not None:
        check_fingerprint(corpus, fingerprint)
    return corpus


def check_fingerprint(corpus: Corpus, fingerprint: str) -> None:
    """Raises `DataError` unless a corpus is the one that a run was declared on."""
    if corpus.fingerprint != fingerprint:
        raise DataError(
            f"corpus {corpus.name} has the fingerprint {corpus.fingerprint} here, but the run was "
            f"declared on {fingerprint}: it was built anew from other text or with other settings; "
            "use the machine that trained, or build it from the same text under another name"
        )


def _is_there(folder: epath.Path) -> bool:
    """Whether a folder has a manifest, readable or not."""
    try:
        return (folder / MANIFEST).exists()
    except Exception:  # No permission, or an error of a remote store: opening it will say which.
        return True


def evaluation_corpus(name: str, training: Corpus, progress: Progress | None = None) -> Corpus:
    """Another corpus, as text to evaluate models of `training` on: both have one tokeniser.

    installed-prose, installed-c, installed-stubs and installed-tables are always there, whatever the
    training corpus: they are built with its tokeniser on first use, in seconds.

    Raises:
      DataError: one line, when there is no such corpus or it has another tokeniser.
    """
    kind = str(name).removeprefix("installed-")
    is_unbuilt = isinstance(training, UnbuiltCorpus)
    if name != kind and kind in OTHER_KINDS:
        if is_unbuilt or not (_may_build.get() or is_installed_kind_built(kind, training)):
            return cast(Corpus, UnbuiltCorpus(name, training.vocab_size, kind))
        return build_installed_kind(kind, training, progress)
    corpus = open_corpus(name)
    if is_unbuilt:
        return corpus
    if corpus.manifest["tokenizer"] != training.manifest["tokenizer"]:
        raise DataError(
            f"corpus {name} has another tokeniser than {training.name}: build it with: lmscale data "
            f"build NAME --input PATH --tokenizer-from {training.name}"
        )
    return corpus


def list_corpora(
    on_unreadable: Callable[[DataError | DamagedError], None] = lambda error: None,
) -> list[Corpus]:
    """Every corpus under the data root that can be read, by name.

    Args:
      on_unreadable: called with what is wrong with each corpus that cannot be read.
    """
    root = data_root()
    try:
        folders = sorted(root.iterdir()) if root.exists() else []
    except Exception as error:  # Each remote store has its own errors.
        raise unreadable_corpus(root, error) from None
    corpora = []
    for folder in folders:
        if not folder.name.startswith(".") and _is_there(folder):
            try:
                corpora.append(Corpus(folder))
            except (DataError, DamagedError) as error:
                on_unreadable(error)
    return corpora


def summary() -> list[dict[str, Any]]:
    """One row of plain numbers for every corpus under the data root, to print as a table."""
    return [
        {
            "name": corpus.name,
            "vocab_size": corpus.vocab_size,
            **{f"{split}_tokens": corpus.n_tokens(split) for split in SPLITS},
            "documents": sum(corpus.n_documents(split) for split in SPLITS),
            "bytes": sum(corpus.n_bytes(split) for split in SPLITS),
            "bytes_per_token": corpus.bytes_per_token("train"),
            "fingerprint": corpus.fingerprint,
            "path": str(corpus.path),
        }
        for corpus in list_corpora()
    ]
