"""The fitting library: every published law as a pure function from a table to a `FitResult`.

    from lmscale import laws

    result = laws.fit("runs.csv", "isoflop")
    result.parameters, result.intervals, result.exponents, result.warnings

A table is a CSV path, a DataFrame or a dict of columns (`lmscale.laws.table`). Nothing here trains,
and nothing here imports the rest of lmscale.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lmscale.laws.isoflop import Profile, fit_isoflop, vertex_bias, window_spread
from lmscale.laws.position import fit_position
from lmscale.laws.power import fit_power
from lmscale.laws.result import FitError, FitResult
from lmscale.laws.table import DroppedRow, Runs, Table, TableError

__all__ = [
    "LAWS",
    "DroppedRow",
    "FitError",
    "FitResult",
    "Law",
    "Profile",
    "Runs",
    "Table",
    "TableError",
    "fit",
    "vertex_bias",
    "window_spread",
]


@dataclass(frozen=True)
class Law:
    """A law that can be fitted: its name, the columns it reads, its equation and its source."""

    name: str
    needs: tuple[str, ...]
    equation: str
    source: str
    fit: Callable[..., FitResult]


LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        Law(
            "isoflop",
            ("params", "flops", "loss"),
            "loss = c0 + c1 ln N + c2 (ln N)^2 at each C; N_opt = k_N C^a, D_opt = k_D C^b",
            "Hoffmann et al. 2022, Approach 2; Porian et al. 2024",
            fit_isoflop,
        ),
        Law(
            "power",
            ("loss",),
            "L = (x_c / x)^alpha (+ L_inf) for x one of params, tokens, flops",
            "Kaplan et al. 2020, eqs. 1.1-1.3",
            fit_power,
        ),
        Law(
            "position",
            ("position", "loss"),
            "L(T) = a + b T^-c",
            "Kaplan et al. 2020, App. D.5",
            fit_position,
        ),
    )
}


def fit(table: Any, law: str, *, columns: Any = None, **options: Any) -> FitResult:
    """Fits one law to a table.

    Args:
      table: a CSV path, a DataFrame, a dict of columns or a `Table`.
      law: a name in `LAWS`.
      columns: our column name -> the table's, as a mapping or as "params=COL,loss=COL".
      **options: the law's own, e.g. bootstrap, level, seed.

    Raises:
      TableError: the table cannot be used, in one line.
      FitError: no such law, or an option that cannot be.
    """
    if law not in LAWS:
        raise FitError(f"there is no law {law!r}; choose from {', '.join(sorted(LAWS))}")
    return LAWS[law].fit(Table.read(table, columns), **options)
