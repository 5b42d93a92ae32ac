"""Groups and rows of a table with definite types, which pandas does not give."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["by_name", "by_number", "first_row", "rows_of"]


def by_number(table: pd.DataFrame, column: str) -> Iterator[tuple[float, pd.DataFrame]]:
    """(value, its rows) for every number in a column, ascending; rows without one are left out."""
    values = table[column].to_numpy(float) if len(table) else np.empty(0)
    for value in np.unique(values[~np.isnan(values)]):
        yield float(value), table[values == value]


def by_name(table: pd.DataFrame, column: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """(value, its rows) for every text in a column, in alphabetical order."""
    for name in sorted(set(table[column].dropna())) if len(table) else ():
        yield str(name), table[table[column] == name]


def rows_of(table: pd.DataFrame) -> list[dict[str, Any]]:
    """column -> value, of every row."""
    return [
        {str(column): value for column, value in row.items()} for row in table.to_dict("records")
    ]


def first_row(table: pd.DataFrame) -> dict[str, Any]:
    """column -> value, of the first row."""
    return rows_of(table.iloc[:1])[0]
