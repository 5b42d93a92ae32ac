"""Whether corpora hold the text that declared runs read, told before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from lmscale.data import Corpus, DataError
from lmscale.data.unbuilt import UnbuiltCorpus

if TYPE_CHECKING:
    from lmscale.spec import RunSpec

__all__ = ["check_enough_text"]


def check_enough_text(
    specs: Iterable[RunSpec], corpus: Corpus, open_corpus: Callable[[str], Corpus]
) -> None:
    """Raises `DataError` where a split holds less than one sequence of n_ctx + 1 tokens.

    Every run would fail at its start. A corpus that is not built yet is not looked at.

    Args:
      specs: of the runs.
      corpus: that they are trained on.
      open_corpus: opens another corpus, of an evaluation set, by its name.
    """
    opened = {corpus.fingerprint: corpus}
    # Of all runs that read a split, the one with the longest context needs the most.
    longest: dict[tuple[str, str, str], int] = {}
    for spec in specs:
        training = (spec.data.corpus, spec.data.fingerprint, "train")
        evaluations = ((one.corpus, one.fingerprint, one.split) for one in spec.evals)
        for key in (training, *evaluations):
            longest[key] = max(spec.model.n_ctx, longest.get(key, 0))
    for (name, fingerprint, split), n_ctx in longest.items():
        if fingerprint == UnbuiltCorpus.fingerprint:
            continue
        if fingerprint not in opened:
            opened[fingerprint] = open_corpus(name)
        found = opened[fingerprint].n_tokens(split)
        if found <= n_ctx:
            remedy = "text" if split == "train" else f"text or a larger --{split}-fraction"
            raise DataError(
                f"the {split} split of {name} has {found:,} tokens, and a context of {n_ctx:,} needs "
                f"{n_ctx + 1:,}: build the corpus with more {remedy}"
            )
