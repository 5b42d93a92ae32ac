"""The table of runs in a store, its results.csv, or any other table."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lmscale import laws
from lmscale.laws.columns import is_results
from lmscale.remote import unreachable
from lmscale.sweep.store import Store

__all__ = ["left_out", "table_of_runs"]


def table_of_runs(
    source: Any,
    *,
    columns: Mapping[str, str] | Sequence[str] | str | None = None,
    where: str | None = None,
    convention: str | None = None,
    cells: str | None = None,
) -> laws.Table:
    """The runs to fit a law to.

    A store and its results.csv are read in the same way: the runs that `best_lr` marks, with params and
    flops by one convention, which is also that of the fit's exponents.

    Args:
      source: a store, its folder, or what `laws.Table.read` takes: a file, a DataFrame, a dict of
        columns.
      columns: which column is which: our name -> theirs, "params=COL,loss=COL" or several such texts.
      where: a row filter, "mode == train" (`lmscale.laws.where`).
      convention: kaplan, chinchilla, standard or exact, of results only (standard).
      cells: best, mean or all: what to take of rows with one params and tokens.

    Raises:
      TableError, StoreError: it cannot be read, in one line.
    """
    if isinstance(source, (str, os.PathLike)) and (why := unreachable(source)):
        raise laws.TableError(why)
    if isinstance(source, (str, os.PathLike)) and epath.Path(source).is_dir():
        source = Store.open(source)
    read: dict[str, Any] = {"columns": columns, "convention": convention or "given", "cells": cells}
    if isinstance(source, Store):
        rows = source.table()
        if not rows["best_lr"].any():
            raise laws.TableError(
                f"{source.path} has no finished run yet: see `lmscale status {source.path}`"
            )
        table = laws.Table.read(rows, **read)
        table = dataclasses.replace(table, notes=(*table.notes, *left_out(source)))
    else:
        table = laws.Table.read(source, **read)
        if convention is not None and not is_results(table.header):
            is_file = isinstance(source, (str, os.PathLike))
            what = repr(os.fspath(source)) if is_file else "this table"
            raise laws.TableError(
                f"a convention chooses between columns that only a store's results have "
                f"(params_{convention}, flops_{convention}, ..); of {what} name the "
                f"columns by --columns params=COL,flops=COL"
            )
    return table if where is None else table.filter(where)


def left_out(store: Store) -> list[str]:
    """A line about the runs that are damaged, where there are such."""
    damage = store.damage()
    if not damage:
        return []
    more = f"; and {len(damage) - 3} more" if len(damage) > 3 else ""
    return [
        f"left out as damaged, until `lmscale run` makes it again: {'; '.join(damage[:3])}{more}"
    ]
