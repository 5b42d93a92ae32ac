"""What a reader must know before believing a section: the warnings that several sections share."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from lmscale.laws import FitResult
from lmscale.studies.cells import Cell, equally_long
from lmscale.studies.rate_search import searched_cells
from lmscale.studies.results import Results
from lmscale.sweep.epochs import epochs_of
from lmscale.wording import family_name, listed, plural, sentence, si

__all__ = [
    "BATCH_NOTE",
    "about",
    "damaged_files",
    "lost_runs",
    "of_fit",
    "one_family",
    "repeated_text",
    "search_edges",
    "single_seeds",
    "spikes",
    "unequal_tokens",
]


#: Warning for what was adjusted by the paper's critical batch.
BATCH_NOTE = (
    "S_min, E_min and C_min are read with B_crit(L) of Kaplan et al. 2020, measured on another text "
    "and vocabulary. `lmscale run batch_size` measures it on yours; give it as --critical-batch."
)


def about(family: str, warnings: Iterable[str]) -> list[str]:
    """The same warnings of one family."""
    return [f"{family_name(family)}: {text}" for text in warnings]


def one_family(families: Sequence[str]) -> list[str]:
    """Where a study reads the first of several families."""
    others = listed([family_name(family) for family in families[1:]])
    return [f"Only {family_name(families[0])} is analysed here, not {others}."] if others else []


def of_fit(fit: FitResult) -> list[str]:
    """The warnings of a fit; none where it was refused, which its finding says."""
    return [] if fit.failure else [sentence(text) for text in fit.warnings]


def lost_runs(results: Results, family: str | None = None) -> list[str]:
    """Where runs are missing from every section for not ending well."""
    lost = results.lost
    if family is not None and len(lost):
        lost = lost[lost["family"] == family]
    return [f"{plural(len(lost), 'run')} left out for not ending well."] if len(lost) else []


def search_edges(results: Results, family: str | None = None) -> list[str]:
    """Where the best learning rate of a searched cell is the edge of its search."""
    cells, factors = searched_cells(results, family), results.tried_lr_factors()
    edges = [cell.edge for cell in cells if cell.edge]
    if not edges:
        return []
    return [
        f"The best learning rate is at the edge of the search in {len(edges)} of {len(cells)} cells "
        f"({edges.count('lowest')} at the lowest factor {factors[0]:g}, {edges.count('highest')} at "
        f"the highest {factors[-1]:g}): a wider search might lower those losses."
    ]


def unequal_tokens(cells: Sequence[Cell]) -> list[str]:
    """Where models that are compared were not trained for equally long."""
    if equally_long(cells):
        return []
    tokens = [cell.tokens for cell in cells]
    return [
        f"The models were trained for {si(min(tokens))} to {si(max(tokens))} tokens, so part of the "
        f"trend is that of the data."
    ]


def single_seeds(cells: Sequence[Cell]) -> list[str]:
    """Where a model's spread over seeds is unknown."""
    n = sum(len(cell.losses) < 2 for cell in cells)
    return [f"{plural(n, 'model')} with a single seed, whose spread is unknown."] if n else []


def damaged_files(results: Results) -> list[str]:
    """Files that aren't what was written, and those made again."""
    found = [
        f"{line}: it is left out until “lmscale run” makes it again." for line in results.damage
    ]
    return found + [f"Found damaged, and made again: {line}." for line in results.mended]


def spikes(results: Results) -> str:
    """How many loss spikes the runs had; empty where there are none."""
    if "loss_spikes" not in results.table:
        return ""
    counts = results.table["loss_spikes"].dropna()
    if not (counts > 0).any():
        return ""
    return (
        f"{plural(int((counts > 0).sum()), 'run')} of {len(counts)} had loss spikes, "
        f"{int(counts.sum())} in all: steps whose training loss lies more than 6 robust standard "
        "deviations above the median of the 100 steps before."
    )


def repeated_text(results: Results) -> str | None:
    """One sentence where runs pass over their text more often than it is worth."""
    corpus, table = results.experiment.get("corpus", {}), results.table
    total = corpus.get("train_tokens")
    if not total or not len(table):
        return None
    subsets = table["unique_tokens"] if "unique_tokens" in table else [math.nan] * len(table)
    runs = (
        (int(trained), None if math.isnan(float(subset)) else int(subset))
        for trained, subset in zip(table["tokens"], subsets, strict=True)
        if math.isfinite(float(trained))
    )
    line = epochs_of(runs, int(total)).line(
        corpus.get("name", "the corpus"), results.experiment.get("repeats_text", False)
    )
    return line and f"{line}."
