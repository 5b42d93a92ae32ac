"""Learning curves of a store's runs, as tables for the fit of the envelope."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lmscale import laws
from lmscale.laws.columns import CONVENTIONS, is_results
from lmscale.sweep.store import Store

__all__ = ["curves_of", "join_curves", "learning_curve"]

#: Fewest recorded losses that make a curve.
_FEWEST_POINTS = 10


def learning_curve(
    records: Sequence[Mapping[str, Any]], row: Mapping[str, Any], convention: str
) -> pd.DataFrame:
    """Recorded training loss of one run against its tokens, from the end of warmup on.

    The curve is not smoothed here; the law does that.

    Args:
      records: of metrics.jsonl.
      row: of `Store.table`, with run, tokens, and params and flops by `convention`.

    Returns:
      Columns params, tokens, flops, loss and group (the run); no rows for fewer than 10 losses.
    """
    records = [record for record in records if record.get("loss") is not None]
    rates = [record.get("lr", 0.0) for record in records]
    records = records[int(np.argmax(rates)) :] if rates else []
    loss = np.array([record["loss"] for record in records], float)
    tokens = np.array([record["tokens"] for record in records], float)
    sound = np.isfinite(loss) & (tokens > 0)
    loss, tokens = loss[sound], tokens[sound]
    if len(loss) < _FEWEST_POINTS:
        return pd.DataFrame()
    return pd.DataFrame(
        {
            "params": float(row[f"params_{convention}"]),
            "tokens": tokens,
            "flops": tokens * float(row[f"flops_{convention}"]) / float(row["tokens"]),
            "loss": loss,
            "group": row["run"],
        }
    )


def join_curves(curves: Sequence[pd.DataFrame], convention: str) -> laws.Table:
    """One table of several curves, without the last hundredth of the largest budget.

    The runs of the largest budget end within a percent of each other, not at one point.
    """
    rows = pd.concat(curves, ignore_index=True)
    rows = rows[rows["flops"] <= 0.99 * rows["flops"].max()]
    return laws.Table.read(rows.reset_index(drop=True), convention=convention, cells="all")


def curves_of(store: Store, table: laws.Table) -> laws.Table:
    """The learning curves of the runs that `table`, the store's results, still has.

    Raises:
      TableError: no run has a curve, or params and flops are not counted by one convention.
    """
    if not is_results(table.header) or table.convention not in CONVENTIONS:
        raise laws.TableError(
            "the curves of a store are read by one convention of params and flops: leave --columns "
            "out and choose it with --convention"
        )
    kept = {
        str(table.cells["run"][k]): {name: values[k] for name, values in table.cells.items()}
        for k in range(table.n_rows)
        if k + 1 not in table.bad_rows
    }
    curves = [
        learning_curve(folder.metrics(), kept[folder.path.name], table.convention)
        for folder, _ in store.declared()
        if folder.path.name in kept
    ]
    curves = [curve for curve in curves if len(curve)]
    if not curves:
        raise laws.TableError(
            f"no run of {store.path} has recorded {_FEWEST_POINTS} training losses, so there are "
            f"no learning curves"
        )
    families = sorted({str(row.get("family", row["architecture"])) for row in kept.values()})
    joined = join_curves(curves, table.convention)
    if len(families) < 2:
        return joined
    note = (
        f"curves of {len(families)} families ({', '.join(families[:4])}) make one envelope; split "
        f"by family, or filter rows, for one each"
    )
    return dataclasses.replace(joined, notes=(note,))
