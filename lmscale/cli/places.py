"""The stores and corpora that a command's arguments name."""

from __future__ import annotations

from typing import Any

__all__ = ["open_corpus", "stores_in", "training_corpus"]


def stores_in(folder: str) -> tuple[list[Any], bool]:
    """The store in a folder, or those in its subfolders; and whether it is the latter."""
    from lmscale.sweep.store import Store

    place = Store(folder)
    inside = [] if place.holds_experiment() else place.inside()
    many = bool(inside)
    return (inside if many else [Store.open(folder)]), many


def open_corpus(name: str, vocab_size: int) -> Any:
    """A corpus by name. `vocab_size` is for the built-in one alone; others bring their own."""
    from lmscale import data

    return data.open_corpus(name, vocab_size=vocab_size if name == "installed-python" else None)


def training_corpus(store: Any) -> Any:
    """The text that a store's runs were trained on.

    Raises:
      StoreError: when the corpus of that name holds other text here.
    """
    from lmscale.sweep.store import StoreError

    declared = store.experiment()["corpus"]
    corpus = open_corpus(declared["name"], declared["vocab_size"])
    if corpus.fingerprint != declared["fingerprint"]:
        raise StoreError(
            f"the runs were trained on {declared['name']} with fingerprint "
            f"{declared['fingerprint']}, but the corpus here has {corpus.fingerprint}: give the "
            "machine that trained them, or build the corpus from the same text"
        )
    return corpus
