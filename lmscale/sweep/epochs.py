"""How many epochs runs take over their training text, and how much text they would need."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from lmscale.spec import RunSpec

#: Epochs up to which repeated text is nearly as good as new text (Muennighoff et al. 2023,
#: 2305.16264, abstract).
MOST_EPOCHS = 4.0


@dataclass(frozen=True)
class Epochs:
    """Epochs of an experiment's runs over their text.

    Attributes:
      most: of the run that repeats its text most.
      over: runs above `MOST_EPOCHS`.
      n_runs: runs in all.
      tokens: training tokens of the corpus.
      needed: training tokens of a corpus with which only runs on subsets are above `MOST_EPOCHS`.
    """

    most: float
    over: int
    n_runs: int
    tokens: int
    needed: int

    def line(self, corpus: str, repeats: bool = False) -> str | None:
        """A warning about runs that repeat their text too often or need more text than there is.

        Args:
          corpus: its name.
          repeats: whether the study is about repeated or little text.
        """
        said = []
        if self.over:
            why = "repeated text is worth less than fresh text (Muennighoff et al. 2023)"
            said.append(
                f"{self.over} of {self.n_runs} runs pass over their text more than {MOST_EPOCHS:g} "
                f"times, up to {self.most:.3g}: {'what this study is about' if repeats else why}"
            )
        if self.needed > self.tokens:
            said.append(
                f"the runs need {self.needed:,} training tokens and {corpus} has {self.tokens:,}: give "
                "a larger corpus with --data"
            )
        return "; ".join(said) or None


def epochs_of(runs: Iterable[tuple[int, int | None]], tokens: int) -> Epochs:
    """The epochs of runs over their text.

    Args:
      runs: of each, the tokens that it trains on and the tokens of its subset (None for the whole text).
      tokens: training tokens of the corpus.
    """
    runs = list(runs)
    passes = [trained / min(subset or tokens, tokens) for trained, subset in runs]
    enough = [subset or math.ceil(trained / MOST_EPOCHS) for trained, subset in runs]
    return Epochs(
        most=max(passes, default=0.0),
        over=sum(x > MOST_EPOCHS for x in passes),
        n_runs=len(passes),
        tokens=tokens,
        needed=max(enough, default=0),
    )


def epochs_of_specs(specs: Iterable[RunSpec], tokens: int) -> Epochs:
    """`epochs_of` for declared runs."""
    return epochs_of(((spec.n_tokens, spec.data.subset_tokens) for spec in specs), tokens)
