"""The rows of a table: cells as numbers, the third of params, tokens and flops, duplicates, budgets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmscale.laws.cell_numbers import read_number, style_of
from lmscale.laws.formats import Cells

__all__ = ["agreeing_labels", "derive_third", "to_numbers", "without_duplicates"]

#: Runs whose FLOPs are within this fraction of their budget label belong to it.
_BUDGET_TOLERANCE = 0.1


def to_numbers(
    name: str, source: str, found: Cells, problems: dict[tuple[str, int], str]
) -> np.ndarray:
    """The column `source` as positive numbers [row]; NaN where a cell is none.

    Args:
      name: our name of the column.
      problems: receives (name, row number) -> what is wrong with that cell.
    """
    cells = found.columns[source]
    style = style_of(cells, name=name, delimiter=found.delimiter)
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells, start=1):
        if row in found.bad_rows:
            continue
        shown = cell.strip() if isinstance(cell, str) else cell
        if shown is None or shown == "":
            problems[name, row] = f"{name} is blank"
            continue
        if isinstance(shown, (bool, np.bool_)):
            problems[name, row] = f"{name} is {shown}, not a number"
            continue
        try:
            value = read_number(shown, style) if isinstance(shown, str) else float(shown)
        except OverflowError:
            value = math.inf
        except TypeError:
            problems[name, row] = f"{name} is {_short(shown)!r}, not a number"
            continue
        except ValueError as error:
            problems[name, row] = f"{name} is {shown!r}{error}"
            continue
        if math.isnan(value):
            problems[name, row] = f"{name} is NaN"
        elif math.isinf(value):
            problems[name, row] = f"{name} is {_short(shown)}, which is not finite"
        elif value <= 0:
            problems[name, row] = f"{name} is {_short(shown)}; it must be positive"
        elif value > 1e100 or value < 1e-100:
            problems[name, row] = f"{name} is {_short(shown)}, which no run can have"
        else:
            values[row - 1] = value
    return values


def _short(shown: Any) -> str:
    text = str(shown)
    return text if len(text) <= 24 else text[:21] + "..."


def derive_third(numbers: dict[str, np.ndarray], problems: dict[tuple[str, int], str]) -> set[str]:
    """Adds the third of params, tokens and flops by C = 6 N D, where two are there.

    Both arguments are changed: a row with a problem in one of the two has it in the third as well.

    Returns:
      the name of the column that was added, if any.
    """
    have = [name for name in ("params", "tokens", "flops") if name in numbers]
    if len(have) != 2:
        return set()
    if "flops" not in have:
        third, value = "flops", 6.0 * numbers["params"] * numbers["tokens"]
    else:
        other = "params" if "params" in have else "tokens"
        third = "tokens" if other == "params" else "params"
        value = numbers["flops"] / (6.0 * numbers[other])
    numbers[third] = value
    for name in have:
        for (column, row), reason in list(problems.items()):
            if column == name:
                problems.setdefault((third, row), reason)
    return {third}


def without_duplicates(
    rows: list[int], numbers: dict[str, np.ndarray], others: Sequence[Sequence[Any]]
) -> tuple[list[int], dict[int, str]]:
    """The rows that differ from every earlier one, and why each of the others is dropped.

    Args:
      rows: row numbers, from 1.
      others: the columns that are no numbers. Losses are often rounded, so equal numbers are a
        duplicate only where nothing else differs.
    """
    first: dict[tuple[object, ...], int] = {}
    kept, dropped = [], {}
    for row in rows:
        key = (
            *(None if np.isnan(v[row - 1]) else float(v[row - 1]) for v in numbers.values()),
            *(str(values[row - 1]) for values in others),
        )
        if key in first:
            dropped[row] = f"is a duplicate of row {first[key]}"
        else:
            first[key] = row
            kept.append(row)
    return kept, dropped


def agreeing_labels(
    labels: dict[str, np.ndarray], columns: Mapping[str, np.ndarray], convention: str
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The labels, without the budget where it does not agree with the column flops; and warnings.

    Runs are grouped by their budget. A budget in another count of FLOPs would put runs of unequal
    FLOPs into one profile.
    """
    if "budget" not in labels or "flops" not in columns:
        return labels, []
    try:
        budget = np.array([float(label) for label in labels["budget"]])
    except ValueError:
        return labels, []
    flops = columns["flops"]
    if not np.all(np.isfinite(budget) & (budget > 0)):
        return labels, []
    off = np.abs(np.log(flops / budget)) > math.log1p(_BUDGET_TOLERANCE)
    if off.mean() <= 0.1:
        return labels, []
    worst = int(np.argmax(np.abs(np.log(flops / budget))))
    said = "" if convention == "given" else f" counted as {convention}"
    warning = (
        f"the column budget is not used: {off.sum()} of {len(off)} runs have other flops{said} (a "
        f"budget of {budget[worst]:.3g} beside {flops[worst]:.3g}), so runs are grouped by their "
        f"flops"
    )
    return {name: values for name, values in labels.items() if name != "budget"}, [warning]
