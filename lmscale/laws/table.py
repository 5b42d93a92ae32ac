"""A table of runs: read from anywhere, each bad row named, each unusable table refused in one line.

A law reads a few columns of positive numbers (`COLUMNS`) and maybe some labels (`LABELS`). A table
keeps every row that it was given, together with what is wrong with each cell; a law asks for the
columns that it needs and gets the rows that are sound in those, plus the list of what was dropped.
A blank in a column that a law does not read therefore costs nothing.

Where a table has two of params, tokens and flops, the third follows from C = 6 N D (Kaplan et al.
2020, sec. 2.1).
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from etils import epath

__all__ = ["COLUMNS", "LABELS", "DroppedRow", "Runs", "Table", "TableError"]

#: Columns of positive numbers, each with the other names under which it is recognised.
COLUMNS: dict[str, tuple[str, ...]] = {
    "params": ("n_params", "N", "parameters", "model_size"),
    "tokens": ("n_tokens", "D", "training_tokens"),
    "flops": ("C", "compute", "training_flop", "training_flops"),
    "loss": ("L", "final_loss", "test_loss", "val_loss"),
    "unique_tokens": ("U", "unique"),
    "steps": ("S", "n_steps", "step"),
    "batch_tokens": ("B", "batch"),
    "position": ("T", "token_index"),
    "weight": (),
}

#: Columns of labels, kept as they are.
LABELS: dict[str, tuple[str, ...]] = {
    "group": ("family", "model"),
    "seed": (),
    "budget": ("flops_budget",),
}


class TableError(ValueError):
    """A table that cannot be fitted; one line that says what was wrong and what would be right."""


@dataclass(frozen=True)
class DroppedRow:
    """A row that was left out. `row` counts the rows below the header, from 1."""

    row: int
    reason: str

    def to_dict(self) -> dict[str, Any]:
        return {"row": self.row, "reason": self.reason}


@dataclass(frozen=True)
class Runs:
    """The sound rows of a table in the columns that a law asked for.

    `columns` maps a name to a float64 array, `labels` to an array of labels (or lacks the name),
    and `row` holds each run's row number in the source.
    """

    columns: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    row: np.ndarray
    dropped: tuple[DroppedRow, ...] = ()
    warnings: tuple[str, ...] = ()
    convention: str = "given"

    def __len__(self) -> int:
        return len(self.row)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.columns[name]

    def __contains__(self, name: str) -> bool:
        return name in self.columns

    def get(self, name: str, default: Any = None) -> Any:
        """The column `name`, or `default` where there is none."""
        return self.columns.get(name, default)

    def take(self, index: Any) -> Runs:
        """The runs at `index` (a mask or positions); what was dropped stays as it was."""
        return Runs(
            columns={name: values[index] for name, values in self.columns.items()},
            labels={name: values[index] for name, values in self.labels.items()},
            row=self.row[index],
            dropped=self.dropped,
            warnings=self.warnings,
            convention=self.convention,
        )


@dataclass(frozen=True)
class Table:
    """Every row as given: numbers (NaN where a cell is bad), labels, and what is wrong where."""

    numbers: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    n_rows: int
    header: tuple[str, ...]
    #: (column, row number) -> what is wrong with that cell.
    problems: dict[tuple[str, int], str] = field(default_factory=dict)
    #: Row number -> why the whole row is bad.
    bad_rows: dict[int, str] = field(default_factory=dict)
    #: How params and flops were counted: the key under which exponents are reported.
    convention: str = "given"
    #: Columns that the caller named, as against those found under a common name.
    mapped: frozenset[str] = frozenset()

    @classmethod
    def read(
        cls,
        source: Any,
        columns: Mapping[str, str] | str | None = None,
        *,
        convention: str = "given",
    ) -> Table:
        """A table from a CSV path, a DataFrame, a dict of columns, or a table (returned as it is).

        Args:
          source: where the rows come from.
          columns: our name -> the source's name, as a mapping or as "params=COL,loss=COL". Names
            not mentioned are found under their own name or a common one (`COLUMNS`), whatever
            their case.
          convention: how params and flops were counted, for the report.

        Raises:
          TableError: an unreadable source, or a column that is not there.
        """
        if isinstance(source, Table):
            return source
        bad_rows: dict[int, str] = {}
        if isinstance(source, (str, os.PathLike)):
            header, raw, n_rows, bad_rows = _read_csv(source)
        else:
            header, raw, n_rows = _read_mapping(source)
        if n_rows == 0:
            raise TableError("the table has no rows below its header; give one row a run")
        mapping = _parse_mapping(columns)
        numbers, problems = {}, {}
        for name, aliases in COLUMNS.items():
            found = _find(name, aliases, mapping, header)
            if found is not None:
                numbers[name] = _to_numbers(name, raw[found], problems, bad_rows)
        labels = {}
        for name, aliases in LABELS.items():
            found = _find(name, aliases, mapping, header)
            if found is not None:
                labels[name] = np.asarray([str(item) for item in raw[found]], dtype=object)
        return cls(
            numbers,
            labels,
            n_rows,
            tuple(header),
            problems,
            bad_rows,
            convention,
            frozenset(mapping),
        )

    def where(self, label: str, value: Any) -> Table:
        """The rows whose `label` is `value`; row numbers stay those of the source."""
        if label not in self.labels:
            raise TableError(f"the table has no column {label}; its columns are {_names(self)}")
        rows = np.flatnonzero(self.labels[label] == str(value)) + 1
        if not len(rows):
            known = ", ".join(sorted(set(self.labels[label]))[:8])
            raise TableError(f"no row has {label} {value!r}; there are {known}")
        return self.only(rows)

    def only(self, rows: Sequence[int]) -> Table:
        """The rows with these numbers (from 1), which they keep."""
        others = set(range(1, self.n_rows + 1)).difference(int(row) for row in rows)
        hidden = {**self.bad_rows, **dict.fromkeys(others, _HIDDEN)}
        return dataclasses.replace(self, bad_rows=hidden)

    def require(self, *names: str) -> None:
        """Raises a `TableError` unless the table has each column, or what it follows from."""
        numbers = dict(self.numbers)
        _derive(numbers, {})
        for name in names:
            if name not in numbers:
                raise TableError(_missing(name, self))

    def runs(self, *needs: str, least: int = 3, vary: Sequence[str] = ()) -> Runs:
        """The rows that are sound in `needs`, with any other numeric column that is sound there.

        Args:
          needs: columns without which a row is dropped.
          least: fewest sound rows that will do.
          vary: columns that must not be the same in every row.

        Raises:
          TableError: a column is missing, too few rows are left, or one does not vary.
        """
        numbers, problems = dict(self.numbers), dict(self.problems)
        derived = _derive(numbers, problems)
        self.require(*needs)
        dropped, sound = [], []
        for row in range(1, self.n_rows + 1):
            reason = self.bad_rows.get(row)
            if reason is None:
                reason = next(
                    (problems[name, row] for name in needs if (name, row) in problems), None
                )
            if reason is None:
                sound.append(row)
            elif reason is not _HIDDEN:
                dropped.append(DroppedRow(row, reason))
        sound, duplicates = _without_duplicates(sound, numbers, self.labels)
        dropped = tuple(sorted([*dropped, *duplicates], key=lambda item: item.row))
        if len(sound) < least:
            raise TableError(_too_few(len(sound), least, dropped))
        index = np.asarray(sound) - 1
        columns = {}
        for name, values in numbers.items():
            if name in needs or np.all(np.isfinite(values[index])):
                columns[name] = values[index]
        for name in vary:
            if np.ptp(columns[name]) <= 1e-9 * np.max(columns[name]):
                raise TableError(
                    f"all {len(sound)} rows have {name} {columns[name][0]:.6g}, so nothing can be "
                    f"learned about it; give runs with different {name}"
                )
        warnings = _unit_warnings(columns, derived)
        if dropped:
            warnings.insert(0, _dropped_warning(dropped, self.n_rows))
        return Runs(
            columns=columns,
            labels={name: values[index] for name, values in self.labels.items()},
            row=np.asarray(sound),
            dropped=dropped,
            warnings=tuple(warnings),
            convention=self.convention,
        )


#: Marks rows that `Table.where` left out; they are not reported as dropped.
_HIDDEN = "hidden"


def _read_csv(path: str | os.PathLike) -> tuple[list[str], dict[str, list], int, dict[int, str]]:
    try:
        text = epath.Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise TableError(f"there is no file {os.fspath(path)!r}; give the path of a CSV") from None
    except IsADirectoryError:
        raise TableError(f"{os.fspath(path)!r} is a folder; give the path of a CSV") from None
    except UnicodeDecodeError:
        raise TableError(f"{os.fspath(path)!r} is not text in UTF-8; save it as a CSV") from None
    except OSError as error:
        raise TableError(f"{os.fspath(path)!r} cannot be read: {error.strerror}") from None
    try:
        lines = [line for line in csv.reader(io.StringIO(text)) if line]
    except csv.Error as error:
        raise TableError(f"{os.fspath(path)!r} is not a CSV: {error}") from None
    if not lines:
        raise TableError(f"{os.fspath(path)!r} is empty; its first line must name the columns")
    header = [name.strip() for name in lines[0]]
    twice = sorted({name for name in header if name and header.count(name) > 1})
    if twice:
        raise TableError(f"the header names {', '.join(twice)} twice; every column needs one name")
    bad_rows = {}
    rows = lines[1:]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            bad_rows[number] = f"has {len(row)} fields where the header has {len(header)}"
            row.extend([""] * (len(header) - len(row)))
    raw = {name: [row[i] for row in rows] for i, name in enumerate(header)}
    return header, raw, len(rows), bad_rows


def _read_mapping(source: Any) -> tuple[list[str], dict[str, list], int]:
    if not hasattr(source, "keys") or not hasattr(source, "__getitem__"):
        raise TableError(
            f"a table must be a CSV path, a DataFrame or a dict of columns, not "
            f"{type(source).__name__}"
        )
    raw = {str(name): list(source[name]) for name in source}
    lengths = {name: len(values) for name, values in raw.items()}
    if len(set(lengths.values())) > 1:
        sizes = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise TableError(f"the columns have different lengths ({sizes}); give one value a run")
    return list(raw), raw, next(iter(lengths.values()), 0)


def _parse_mapping(columns: Mapping[str, str] | str | None) -> dict[str, str]:
    if columns is None:
        return {}
    if isinstance(columns, str):
        pairs = [item.split("=", 1) for item in columns.split(",") if item.strip()]
        if any(len(pair) != 2 or not pair[1].strip() for pair in pairs):
            raise TableError(f"columns must read params=COL,tokens=COL,..., not {columns!r}")
        columns = {ours.strip(): theirs.strip() for ours, theirs in pairs}
    known = [*COLUMNS, *LABELS]
    for ours in columns:
        if ours not in known:
            raise TableError(f"there is no column {ours!r} to map; choose from {', '.join(known)}")
    return dict(columns)


def _find(
    name: str, aliases: Sequence[str], mapping: Mapping[str, str], header: Sequence[str]
) -> str | None:
    """The source's column for `name`: mapped, else by its own name, else by a common one."""
    if name in mapping:
        if mapping[name] not in header:
            raise TableError(
                f"{name} was mapped to {mapping[name]!r}, which is not a column; "
                f"the columns are {', '.join(header)}"
            )
        return mapping[name]
    taken = set(mapping.values())
    folded = {}
    for column in header:
        folded.setdefault(column.strip().lower().replace(" ", "_"), column)
    for candidate in (name, *aliases):
        # A one-letter alias must match exactly: "n" or "c" in a header can mean anything.
        column = candidate if candidate in header else folded.get(candidate.lower())
        if column is None or (len(candidate) == 1 and column != candidate) or column in taken:
            continue
        return column
    return None


def _to_numbers(
    name: str, cells: Sequence[Any], problems: dict[tuple[str, int], str], bad: dict[int, str]
) -> np.ndarray:
    values = np.full(len(cells), np.nan)
    for row, cell in enumerate(cells, start=1):
        if row in bad:
            continue
        shown = cell.strip() if isinstance(cell, str) else cell
        try:
            value = math.nan if shown is None or shown == "" else float(shown)
        except (TypeError, ValueError):
            problems[name, row] = f"{name} is {shown!r}, not a number"
            continue
        except OverflowError:
            value = math.inf
        if shown is None or shown == "":
            problems[name, row] = f"{name} is blank"
        elif math.isnan(value):
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


def _derive(numbers: dict[str, np.ndarray], problems: dict[tuple[str, int], str]) -> set[str]:
    """Fills in the third of params, tokens, flops by C = 6 N D, in place."""
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


def _missing(name: str, table: Table) -> str:
    also = ""
    if name in ("params", "tokens", "flops"):
        also = " (or two of params, tokens and flops, from which the third follows)"
    return (
        f"the table has no column {name}{also}; its columns are {_names(table)}: "
        f"name the right one with columns {name}=COL"
    )


def _names(table: Table) -> str:
    return ", ".join(name or "(unnamed)" for name in table.header)


def _too_few(n: int, least: int, dropped: tuple[DroppedRow, ...]) -> str:
    text = f"only {n} usable row{'s' * (n != 1)}; this law needs at least {least}"
    if dropped:
        text += f" ({len(dropped)} dropped, the first because row {dropped[0].row}: "
        text += f"{dropped[0].reason})"
    return text


def _dropped_warning(dropped: tuple[DroppedRow, ...], n_rows: int) -> str:
    shown = "; ".join(f"row {item.row}: {item.reason}" for item in dropped[:3])
    more = f"; and {len(dropped) - 3} more" if len(dropped) > 3 else ""
    return f"{len(dropped)} of {n_rows} rows dropped ({shown}{more})"


def _without_duplicates(
    rows: list[int], numbers: dict[str, np.ndarray], labels: dict[str, np.ndarray]
) -> tuple[list[int], list[DroppedRow]]:
    first: dict[tuple, int] = {}
    kept, dropped = [], []
    for row in rows:
        key = (
            *(None if np.isnan(v[row - 1]) else float(v[row - 1]) for v in numbers.values()),
            *(values[row - 1] for values in labels.values()),
        )
        if key in first:
            dropped.append(DroppedRow(row, f"is a duplicate of row {first[key]}"))
        else:
            first[key] = row
            kept.append(row)
    return kept, dropped


def _unit_warnings(columns: dict[str, np.ndarray], derived: set[str]) -> list[str]:
    """All three given: a count of FLOPs may differ from 6 N D, but hardly a hundredfold."""
    if derived or not all(name in columns for name in ("params", "tokens", "flops")):
        return []
    ratio = columns["flops"] / (6.0 * columns["params"] * columns["tokens"])
    middle = float(np.median(ratio))
    if 1 / 30 < middle < 100:
        return []
    return [f"flops are {middle:.2g} times 6 params tokens at the median row; check the units"]
