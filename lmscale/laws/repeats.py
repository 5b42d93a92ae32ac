"""Rows of equal params and tokens: repeats with other seeds, searched settings, or unknown.

Runs that differ in their seed are repeats, and their scatter is the noise. Runs that differ in a
setting (learning rate, batch, ..) are a search, and the law is about the best of them. If they counted
as repeats, they would bend the law and give wrong intervals.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmscale.laws.cell_numbers import parse_number
from lmscale.laws.errors import TableError

__all__ = ["CELLS", "SETTINGS", "Resolved", "check_cells", "resolve_cells"]

#: What can be done with the rows of one cell.
CELLS = ("best", "mean", "all")

#: Columns that a search varies, each with other names under which it is recognised.
SETTINGS: dict[str, tuple[str, ...]] = {
    "learning_rate": ("lr", "peak_lr", "max_lr", "peak_learning_rate", "lr_factor"),
    "batch_size": ("global_batch_size", "batch_tokens", "bs", "batch", "B"),
    "warmup": ("warmup_steps", "warmup_tokens"),
    "weight_decay": ("wd",),
}
#: A column with more values than this is not suggested for splitting the table.
_MOST_VALUES = 20


@dataclass(frozen=True)
class Resolved:
    """The remaining rows, their losses where `mean` changed them, and warnings."""

    rows: list[int]
    loss: dict[int, float]
    warnings: tuple[str, ...] = ()


def check_cells(cells: str | None) -> None:
    if cells is not None and cells not in CELLS:
        raise TableError(f"cells must be {', '.join(CELLS)}, not {cells!r}")


def resolve_cells(
    rows: Sequence[int],
    numbers: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    settings: Mapping[str, Sequence[Any]],
    others: Mapping[str, Sequence[Any]],
    cells: str | None,
) -> Resolved:
    """Selects one run, or its repeats, from each cell (params, tokens, group).

    Args:
      rows: numbers (from 1) of the sound rows.
      numbers, labels: the table's columns.
      settings: source column -> its cells, of columns that a search varies.
      others: the columns that the law does not read; any of them may explain why rows differ.
      cells: "best" takes the setting with the lowest mean loss over its seeds, and the lowest of rows
        that do not differ in seed or setting; "mean" takes their mean; "all" keeps every row as a
        repeat. None takes the best setting, and keeps rows that do not differ, with a warning.
    """
    place = [name for name in ("params", "tokens") if name in numbers] or ["flops"]
    place += [name for name in ("unique_tokens", "position") if name in numbers]
    grouped: dict[tuple, list[int]] = defaultdict(list)
    for row in rows:
        key = tuple(float(f"{numbers[name][row - 1]:.9g}") for name in place)
        grouped[(*key, *_label(labels, "group", row))].append(row)
    names = " and ".join(name for name in place if name in ("params", "tokens", "flops"))
    if cells == "all" or len(grouped) == len(rows):
        return Resolved(list(rows), {}, _groups_apart(grouped, labels, names, cells))
    loss = {row: float(numbers["loss"][row - 1]) for row in rows}
    kept, means, searched, alike = [], {}, [], []
    for members in grouped.values():
        trials = defaultdict(list)
        for row in members:
            trials[tuple(str(values[row - 1]) for values in settings.values())].append(row)
        chosen = members
        if len(trials) > 1:
            searched.append(trials)
            if cells != "mean":
                chosen = min(trials.values(), key=lambda of: np.mean([loss[row] for row in of]))
        by_seed = defaultdict(list)
        for row in chosen:
            by_seed[_label(labels, "seed", row)].append(row)
        for same in by_seed.values():
            if len(same) > 1 and cells == "mean":
                means[same[0]] = float(np.mean([loss[row] for row in same]))
                kept.append(same[0])
            elif len(same) > 1 and cells == "best":
                kept.append(min(same, key=loss.__getitem__))
            else:
                kept += same
                if len(same) > 1:
                    alike.append(same)
    warnings = []
    if searched:
        left_out = len(rows) - len(kept)
        warnings.append(_searched(searched, loss, settings, names, cells, len(rows), left_out))
    elif len(kept) < len(rows):
        how = "the best" if cells == "best" else "the mean"
        warnings.append(f"of {len(rows)} rows {how} of each {names} is fitted, {len(kept)} in all")
    if alike:
        warnings.append(_alike(alike, others, names))
    apart = _groups_apart(grouped, labels, names, cells)
    return Resolved(sorted(kept), means, (*warnings, *apart))


def _label(labels: Mapping[str, np.ndarray], name: str, row: int) -> tuple[Any, ...]:
    return (labels[name][row - 1],) if name in labels else ()


def _searched(
    searched: Sequence[Mapping[tuple, list[int]]],
    loss: Mapping[int, float],
    settings: Mapping[str, Sequence[Any]],
    names: str,
    cells: str | None,
    n_rows: int,
    left_out: int,
) -> str:
    columns = list(settings)
    differ = [
        column
        for i, column in enumerate(columns)
        if any(len({trial[i] for trial in trials}) > 1 for trials in searched)
    ]
    text = (
        f"{len(searched)} cells of equal {names} hold runs that differ in {' and '.join(differ)}: "
    )
    text += (
        f"{'their mean' if cells == 'mean' else 'the best of each'} is fitted, and {left_out} of "
    )
    text += f"{n_rows} rows are left out (cells all takes them for repeats)"
    edge = sum(_at_edge(trials, loss, columns.index(differ[0])) for trials in searched)
    if edge and cells != "mean" and len(differ) == 1:
        text += (
            f"; in {edge} of these cells the best {differ[0]} is the lowest or highest tried, so a "
            f"better one may lie beyond"
        )
    return text


def _at_edge(trials: Mapping[tuple, list[int]], loss: Mapping[int, float], at: int) -> bool:
    """Whether the best of three or more values of a setting is the lowest or the highest one."""
    parsed = {key: parse_number(key[at]) for key in trials}
    values = {key: value for key, value in parsed.items() if value is not None}
    if len(values) < 3 or len(values) < len(trials):
        return False
    best = min(trials, key=lambda key: np.mean([loss[row] for row in trials[key]]))
    return values[best] in (min(values.values()), max(values.values()))


def _alike(alike: Sequence[Sequence[int]], others: Mapping[str, Sequence[Any]], names: str) -> str:
    n = sum(len(same) for same in alike)
    text = (
        f"{n} rows share their {names} with another row and no seed or setting tells them apart: "
        f"they are taken for repeats; choose cells best or mean"
    )
    telling = []
    for name, values in others.items():
        found = Counter(str(values[row - 1]) for same in alike for row in same)
        if not 2 <= len(found) <= min(_MOST_VALUES, n // 2):
            continue
        if all(parse_number(value) is not None for value in found) and len(found) > 8:
            continue
        apart = sum(len({str(values[row - 1]) for row in same}) == len(same) for same in alike)
        if apart >= 0.8 * len(alike):
            telling.append(f"{name} ({len(found)} values)")
    if telling:
        text += f", or split by {' or '.join(telling[:3])}"
    return text


def _groups_apart(
    grouped: Mapping[tuple, Collection[int]],
    labels: Mapping[str, np.ndarray],
    names: str,
    cells: str | None,
) -> tuple[str, ...]:
    """A warning where rows of equal params and tokens belong to several groups."""
    if "group" not in labels or cells is not None:
        return ()
    at: dict[tuple, set] = defaultdict(set)
    for key in grouped:
        at[key[:-1]].add(key[-1])
    shared = [groups for groups in at.values() if len(groups) > 1]
    if not shared:
        return ()
    some = ", ".join(sorted(map(str, set().union(*shared)))[:4])
    warning = (
        f"{len(shared)} cells of equal {names} hold runs of several groups ({some}), which are fitted "
        f"as one law: split by group, or filter rows, to part them"
    )
    return (warning,)
