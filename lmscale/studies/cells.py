"""Cells: the runs that differ in seed only, and what several studies read from them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lmscale.studies.estimate import interval_of_mean
from lmscale.studies.groups import first_row
from lmscale.wording import number

__all__ = [
    "Cell",
    "cell_rows",
    "equally_long",
    "measured_cells",
    "paired",
    "seed_noise",
    "unfinished",
]

#: Tokens a parameter: 1.3e11 tokens for the largest model of 1.5e9 parameters (Kaplan et al. 2020,
#: section 2.2).
KAPLAN_TOKENS_PER_PARAMETER = 88


@dataclass(frozen=True)
class Cell:
    """One model's final losses over seeds, in nats per token.

    `columns` holds the columns of the store's table for the cell's first run; `cell["width"]` reads one.
    `runs` holds the names of the runs, by which `Results` gives their curves and specs.
    """

    losses: tuple[float, ...]
    seeds: tuple[int, ...]
    columns: Mapping[str, Any] = field(repr=False)
    runs: tuple[str, ...] = field(default=(), repr=False)

    def __getitem__(self, column: str) -> Any:
        return self.columns[column]

    @property
    def n_params(self) -> float:
        """N without embeddings."""
        return float(self.columns["params_kaplan"])

    @property
    def tokens(self) -> float:
        return float(self.columns["tokens"])

    @property
    def mean(self) -> float:
        return float(np.mean(self.losses))

    @property
    def interval(self) -> tuple[float, float] | None:
        """Of the mean (`interval_of_mean`)."""
        return interval_of_mean(self.losses)


def measured_cells(runs: pd.DataFrame, by: Sequence[str]) -> list[Cell]:
    """One cell for each value of the columns `by`, in their order.

    Where a model was trained for several lengths, only the longest runs count: they are closest to convergence.
    """
    cells = []
    for _, group in runs.groupby(list(by), sort=True) if len(runs) else ():
        longest = group[group["tokens"] == group["tokens"].max()]
        losses = tuple(longest["loss"].astype(float))
        columns = first_row(longest)
        cells.append(Cell(losses, tuple(longest["seed"]), columns, tuple(longest["run"])))
    return cells


def paired(runs: pd.DataFrame, by: Sequence[str]) -> list[Cell]:
    """The cells of `measured_cells`, reduced to the seeds that every cell has, in ascending order.

    Runs of one seed share their first weights and the order of their data, so differences between
    cells are taken seed by seed. Empty where no seed is common to all cells.
    """
    if not len(runs):
        return []
    common = set.intersection(*(set(group["seed"]) for _, group in runs.groupby(list(by))))
    return measured_cells(runs[runs["seed"].isin(common)].sort_values("seed"), by)


def cell_rows(cells: Sequence[Cell]) -> pd.DataFrame:
    """One row a run for `lmscale.laws`: params, loss and seed."""
    return pd.DataFrame(
        [
            {"params": cell.n_params, "loss": loss, "seed": seed}
            for cell in cells
            for seed, loss in zip(cell.seeds, cell.losses, strict=True)
        ]
    )


def equally_long(cells: Sequence[Cell]) -> bool:
    """Whether all cells were trained on equally many tokens, within 5%."""
    tokens = [cell.tokens for cell in cells]
    return not tokens or max(tokens) <= 1.05 * min(tokens)


def seed_noise(cells: Sequence[Cell]) -> float | None:
    """Standard deviation over seeds as a share of the loss, pooled over cells.

    None where no cell has two seeds.
    """
    spreads = [np.var(c.losses, ddof=1) / c.mean**2 for c in cells if len(c.losses) > 1]
    return math.sqrt(float(np.mean(spreads))) if spreads else None


def unfinished(runs: pd.DataFrame) -> str:
    """Why these runs are too far from convergence to test what Kaplan et al. 2020 found close to it.

    Empty where the largest model of `runs` saw as many tokens per parameter as theirs did.
    """
    if not len(runs):
        return ""
    sizes, tokens = (runs[name].to_numpy(float) for name in ("params_kaplan", "tokens"))
    largest = int(np.argmax(sizes))
    ratio = float(tokens[largest] / sizes[largest])
    if ratio >= KAPLAN_TOKENS_PER_PARAMETER:
        return ""
    longer = math.ceil(KAPLAN_TOKENS_PER_PARAMETER / ratio)
    return (
        f"the largest model saw {number(ratio, 2)} tokens a parameter where the paper's saw "
        f"{KAPLAN_TOKENS_PER_PARAMETER}, and deeper models take longer to learn: it would take "
        f"{longer} times the --steps first"
    )
