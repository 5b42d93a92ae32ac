"""results.csv: one row a run, and a mark for the runs at the best learning rate of their cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lmscale import flops
from lmscale.training.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["cell_columns", "is_column", "mark_best_lr", "result_row"]

#: Columns that are equal within a cell: its runs differ only in learning rate and seed.
_CELL = (
    "family",
    "budget",
    "cell",
    "architecture",
    "n_layer",
    "width",
    "steps",
    "batch_size",
)
#: The columns that every run has, which no label may be called.
_OWN = {
    *(
        "run",
        "status",
        "reason",
        "best_lr",
        "architecture",
        "n_layer",
        "width",
        "n_ctx",
        "vocab_size",
    ),
    *("batch_size", "steps", "seed", "peak_lr", "batch_tokens", "unique_tokens", "evaluated_step"),
    *(
        "tokens",
        "n_params",
        "loss",
        "bits_per_byte",
        "train_loss",
        "loss_spikes",
        "seconds",
        "device",
    ),
    *(f"{what}_{convention}" for what in ("params", "flops") for convention in flops.CONVENTIONS),
}


def is_column(name: str, evals: Sequence[str] = ()) -> bool:
    """Whether the table has a column of that name which is no label.

    Args:
      evals: evaluation sets, each of which has a column `loss_NAME`.
    """
    return name in _OWN or name in {f"loss_{one}" for one in evals}


def cell_columns(table: pd.DataFrame) -> list[str]:
    """The columns of a store's table that name a cell of its learning-rate search."""
    return [name for name in _CELL if name in table]


def mark_best_lr(table: pd.DataFrame) -> pd.DataFrame:
    """Adds the column `best_lr`; see `Store.table`.

    Within a budget only factors that all its cells have tried count. Otherwise a size whose rate was
    searched would look better than neighbours whose rates were not.
    """
    cell = cell_columns(table)
    losses = table["loss"].where(table["status"] == "done")
    if "lr_factor" not in table:
        return table.assign(best_lr=losses.notna())
    cells = [table[name] for name in cell]
    of_factor = losses.groupby([*cells, table["lr_factor"]], dropna=False)
    # A rate at which some seeds diverge must not win by its remaining seeds.
    seeds = of_factor.transform("count")
    most = seeds.groupby(cells, dropna=False).transform("max")
    shared = _tried_by_all(table, cell)
    mean = of_factor.transform("mean").where((seeds == most) & shared)
    lowest = mean.groupby(cells, dropna=False).transform("min")
    return table.assign(best_lr=losses.notna() & (mean == lowest))


def _tried_by_all(table: pd.DataFrame, cell: list[str]) -> pd.Series:
    """Whether each run's factor was tried at every cell of its family and budget."""
    if "budget" not in table:
        return table["status"].notna()
    factor = table["lr_factor"].fillna(1.0)
    profiles = [name for name in ("family", "budget") if name in table]
    place = table.groupby(cell, dropna=False).ngroup()
    profile = table.groupby(profiles, dropna=False).ngroup()
    cells = place.groupby(profile).transform("nunique")
    tried = place.groupby([profile, factor]).transform("nunique")
    alone = (tried == cells).groupby(profile).transform("any")
    return (tried == cells) | ~alone


def result_row(folder: RunFolder, labels: dict[str, Any]) -> dict[str, Any]:
    """The columns of a run: its configuration, its cost and its results."""
    spec = folder.spec
    status, result = folder.state()
    result = result or {}
    model = spec.model
    losses = result.get("losses", {})
    bits = result.get("bits_per_byte", {})
    first = next(iter(losses), None)
    return {
        "run": folder.path.name,
        "status": result.get("status", status["status"]),
        "reason": status["reason"],
        **labels,
        "architecture": model.kind,
        "n_layer": model.n_layer,
        "width": model.width,
        "n_ctx": model.n_ctx,
        "vocab_size": model.vocab_size,
        "batch_size": spec.batch_size,
        "steps": spec.steps,
        "seed": spec.seed,
        "peak_lr": spec.optimizer.peak_lr,
        "batch_tokens": spec.batch_tokens,
        "unique_tokens": spec.data.subset_tokens or math.nan,
        "evaluated_step": result.get("evaluated_step") or math.nan,
        "tokens": result.get("tokens", spec.n_tokens),
        "n_params": flops.n_params(model, "kaplan"),
        **{f"params_{c}": flops.n_params(model, c) for c in flops.CONVENTIONS},
        **{
            f"flops_{c}": result.get("flops", {}).get(c, flops.training_flops(spec, c))
            for c in flops.CONVENTIONS
        },
        "loss": losses.get(first, math.nan),
        "bits_per_byte": bits.get(first, math.nan),
        "train_loss": result.get("train_loss") or math.nan,
        "loss_spikes": result.get("loss_spikes", math.nan),
        **{f"loss_{name}": loss for name, loss in losses.items()},
        **{f"loss_{name}": found["scores"]["loss"] for name, found in folder.evals().items()},
        "seconds": status["seconds"],
        "device": result.get("device"),
    }
