"""A table of runs from a file, a DataFrame or columns; bad rows are named, bad tables refused.

A law reads a few columns of positive numbers (`COLUMNS`) and maybe some labels (`LABELS`). A table
keeps every row that it was given, and what is wrong with each cell. A law asks for the columns that
it needs. It gets the rows that are sound in those columns, and a list of the dropped rows. So a
blank in a column that the law does not read drops no row.

Where a table has two of params, tokens and flops, the third follows from C = 6 N D (Kaplan et al.
2020, sec. 2.1). A table that counts them by several conventions is read by one of them.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmscale.laws.columns import (
    COLUMNS,
    CONVENTIONS,
    LABELS,
    find_columns,
    find_settings,
    is_results,
    mixed_conventions,
    parse_mapping,
    results_mapping,
    suggested_mapping,
)
from lmscale.laws.errors import TableError
from lmscale.laws.formats import cells_of_mapping, read_cells
from lmscale.laws.plausibility import check_units
from lmscale.laws.repeats import check_cells, resolve_cells
from lmscale.laws.rows import agreeing_labels, derive_third, to_numbers, without_duplicates
from lmscale.laws.where import select_rows

__all__ = ["COLUMNS", "CONVENTIONS", "LABELS", "DroppedRow", "Runs", "Table", "TableError"]


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

    Attributes:
      columns: name -> float64 [run].
      labels: name -> labels [run]; a label that the table lacks is missing.
      row: [run] row number in the source.
      dropped: the rows that were left out.
      warnings: what to say of the table.
      convention: how params and flops were counted.
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
    #: Columns that the caller named; the others were found under a common name.
    mapped: frozenset[str] = frozenset()
    #: The source's columns, as they were written.
    cells: Mapping[str, Sequence[Any]] = field(default_factory=dict, repr=False)
    #: Our name -> the source's column.
    sources: dict[str, str] = field(default_factory=dict)
    #: Source columns that a search varies (`repeats.SETTINGS`).
    settings: tuple[str, ...] = ()
    #: What is done with rows of equal params and tokens; see `cells` of `read`.
    repeats: str | None = None
    #: Warnings about the table as a whole.
    notes: tuple[str, ...] = ()

    @classmethod
    def read(
        cls,
        source: Any,
        columns: Mapping[str, str] | Sequence[str] | str | None = None,
        *,
        convention: str = "given",
        cells: str | None = None,
    ) -> Table:
        """A table from a file, a DataFrame, a dict of columns, or a table (returned as it is).

        Files are CSV with any usual separator, JSON or JSON lines, plain or in gz, xz or bz2
        (`lmscale.laws.formats`); numbers may read 1.3B or 110,678,115 (`cell_numbers`).

        The table of results of a store counts params and flops by several conventions
        (`params_standard`, `flops_standard`, ..). One of them is read, and only the rows that
        `best_lr` marks.

        Args:
          source: where the rows come from.
          columns: our name -> the source's name, as a mapping or as "params=COL,loss=COL" (or some
            of those). Names not mentioned are found under their own name or a common one
            (`COLUMNS`), whatever their case. A name with commas or = stands in quotes
            (params="N, total"), and COL*1e6 scales a column in millions.
          convention: how params and flops were counted, for the report; of a table of results,
            which columns to read (standard, if not given).
          cells: what to do with runs of equal params and tokens that differ in a setting (learning
            rate, batch, ..): fit the "best", their "mean", or "all" as repeats; see
            `repeats.resolve_cells`.

        Raises:
          TableError: an unreadable source, or a column that is not there.
        """
        if isinstance(source, Table):
            return source
        check_cells(cells)
        found = (
            read_cells(source)
            if isinstance(source, (str, os.PathLike))
            else cells_of_mapping(source)
        )
        if found.n_rows == 0:
            raise TableError("the table has no rows below its header; give one row a run")
        mapping = parse_mapping(columns)
        if is_results(found.header):
            mapping, convention = results_mapping(mapping, convention, found.header)
        sources, factors = find_columns(mapping, found.header)
        bad_rows = dict(found.bad_rows)
        numbers: dict[str, np.ndarray] = {}
        problems: dict[tuple[str, int], str] = {}
        for name in COLUMNS:
            if name in sources:
                numbers[name] = factors.get(name, 1.0) * to_numbers(
                    name, sources[name], found, problems
                )
        labels = {
            name: np.asarray([str(item) for item in found.columns[sources[name]]], dtype=object)
            for name in LABELS
            if name in sources
        }
        table = cls(
            numbers=numbers,
            labels=labels,
            n_rows=found.n_rows,
            header=found.header,
            problems=problems,
            bad_rows=bad_rows,
            convention=convention,
            mapped=frozenset(mapping),
            cells=found.columns,
            sources=sources,
            settings=find_settings(mapping, found.header),
            repeats=cells,
            notes=mixed_conventions(sources),
        )
        return table._of_results() if is_results(found.header) else table

    def _of_results(self) -> Table:
        """The rows of a table of results that are to be fitted."""
        if self.repeats in ("mean", "all"):
            keep = np.array([str(item) == "done" for item in self.cells["status"]])
        else:
            keep = np.array([str(item).lower() in ("true", "1") for item in self.cells["best_lr"]])
        if not keep.any():
            raise TableError("no run of these results has ended well yet")
        return self._filtered(keep)

    def filter(self, expression: str) -> Table:
        """The rows for which `expression` holds (`lmscale.laws.where`); they keep their row numbers.

        Columns have the source's names or ours. flops may be computed from params and tokens.

        Raises:
          TableError: the expression cannot be read, or no row is left.
        """
        numbers = dict(self.numbers)
        derive_third(numbers, {})

        def column(name: str) -> Sequence[Any] | np.ndarray | None:
            return self.cells[name] if name in self.cells else numbers.get(name)

        keep = select_rows(expression, column, self.header, self.n_rows)
        table = self._filtered(keep)
        if all(table.bad_rows.get(row) is _FILTERED for row in range(1, self.n_rows + 1)):
            raise TableError(f"no row is left by the filter {expression!r}")
        return table

    def split(self, name: str) -> dict[str, Table]:
        """One table for each value of a column, in order of appearance.

        Raises:
          TableError: there is no such column.
        """
        values = self.cells.get(name, self.labels.get(name))
        if values is None:
            raise TableError(f"the table has no column {name}; its columns are {_names(self)}")
        texts = np.array([str(value).strip() for value in values], dtype=object)
        rows = [row for row in range(1, self.n_rows + 1) if row not in self.bad_rows]
        parts = dict.fromkeys(texts[row - 1] for row in rows)
        return {value: self._filtered(texts == value) for value in parts}

    def where(self, label: str, value: Any) -> Table:
        """The rows whose `label` is `value`; they keep their row numbers."""
        if label not in self.labels:
            raise TableError(f"the table has no column {label}; its columns are {_names(self)}")
        keep = self.labels[label] == str(value)
        if not keep.any():
            known = ", ".join(sorted(set(self.labels[label]))[:8])
            raise TableError(f"no row has {label} {value!r}; there are {known}")
        return self._filtered(keep)

    def only(self, rows: Sequence[int]) -> Table:
        """The rows with these numbers (from 1); they keep their numbers.

        Repeats and searches are still resolved among all rows, so that a mean does not change.
        """
        others = set(range(1, self.n_rows + 1)).difference(int(row) for row in rows)
        hidden = {row: _HIDDEN for row in others if row not in self.bad_rows}
        return dataclasses.replace(self, bad_rows={**self.bad_rows, **hidden})

    def _filtered(self, keep: np.ndarray) -> Table:
        gone = {int(row): _FILTERED for row in np.flatnonzero(~keep) + 1}
        return dataclasses.replace(self, bad_rows={**self.bad_rows, **gone})

    def require(self, *names: str) -> None:
        """Raises a `TableError` unless each column is there or can be computed."""
        numbers = dict(self.numbers)
        derive_third(numbers, {})
        for name in names:
            if name not in numbers:
                raise TableError(_missing(name, self))

    def runs(self, *needs: str, least: int = 3, vary: Sequence[str] = ()) -> Runs:
        """The rows that are sound in `needs`, with any other numeric column that is sound there.

        Args:
          needs: columns without which a row is dropped.
          least: fewest sound rows.
          vary: columns that must not be the same in every row.

        Raises:
          TableError: a column is missing, too few rows are left, or one does not vary.
        """
        numbers, problems = dict(self.numbers), dict(self.problems)
        derived = derive_third(numbers, problems)
        self.require(*needs)
        sound, dropped = self._sound(needs, numbers, problems)
        cell_warnings: tuple[str, ...] = ()
        if _reads_cells(needs):
            resolved = resolve_cells(
                sound,
                numbers,
                self.labels,
                {name: self.cells[name] for name in self.settings},
                self._others(),
                self.repeats,
            )
            sound, cell_warnings = resolved.rows, resolved.warnings
            if resolved.loss:
                numbers["loss"] = numbers["loss"].copy()
                for number, loss in resolved.loss.items():
                    numbers["loss"][number - 1] = loss
        sound = [number for number in sound if self.bad_rows.get(number) is not _HIDDEN]
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
        row = np.asarray(sound)
        labels, budget_warnings = agreeing_labels(
            {name: values[index] for name, values in self.labels.items()}, columns, self.convention
        )
        warnings = [
            *([_dropped_warning(dropped, self.n_rows)] if dropped else []),
            *cell_warnings,
            *self.notes,
            *self._families(row),
            *budget_warnings,
            *check_units(columns, row, derived, needs, self.sources),
        ]
        return Runs(
            columns=columns,
            labels=labels,
            row=row,
            dropped=dropped,
            warnings=tuple(warnings),
            convention=self.convention,
        )

    def _sound(
        self,
        needs: Sequence[str],
        numbers: dict[str, np.ndarray],
        problems: dict[tuple[str, int], str],
    ) -> tuple[list[int], tuple[DroppedRow, ...]]:
        """The rows without a problem, including those that `only` hides, and the dropped rows."""
        dropped, sound = [], []
        for row in range(1, self.n_rows + 1):
            reason = self.bad_rows.get(row)
            hidden = reason is _HIDDEN
            if reason is None or hidden:
                reason = next(
                    (problems[name, row] for name in needs if (name, row) in problems), None
                )
            if reason is None:
                sound.append(row)
            elif reason is not _FILTERED and not hidden:
                dropped.append(DroppedRow(row, reason))
        counted = {self.sources[name] for name in self.numbers}
        others = [values for name, values in self.cells.items() if name not in counted]
        sound, duplicates = without_duplicates(sound, numbers, others)
        dropped += [
            DroppedRow(row, reason)
            for row, reason in duplicates.items()
            if self.bad_rows.get(row) is not _HIDDEN
        ]
        return sound, tuple(sorted(dropped, key=lambda item: item.row))

    def _families(self, row: np.ndarray) -> list[str]:
        """A warning where results of several architectures are fitted as one law."""
        if not is_results(self.header) or self.sources.get("group") != "family":
            return []
        families = sorted({self.labels["group"][item - 1] for item in row})
        if len(families) < 2:
            return []
        warning = (
            f"runs of {len(families)} families ({', '.join(families[:4])}) are fitted as one law; "
            f"split by family, or filter rows, for one each"
        )
        return [warning]

    def _others(self) -> dict[str, Sequence[Any]]:
        """The source's columns that no law reads."""
        used = {*self.settings, *(self.sources[name] for name in self.sources if name != "group")}
        return {name: values for name, values in self.cells.items() if name not in used}


#: Reasons of rows that `Table.only` and `Table.filter` leave out. They are not reported as dropped.
_HIDDEN = "hidden"
_FILTERED = "filtered"


def _reads_cells(needs: Sequence[str]) -> bool:
    """Whether the rows of a law are runs by size and data, and not curves, steps or batches."""
    other = {"steps", "batch_tokens", "position"}
    return (
        "loss" in needs
        and not other.intersection(needs)
        and bool({"params", "tokens", "flops"}.intersection(needs))
    )


def _missing(name: str, table: Table) -> str:
    also = ""
    if name in ("params", "tokens", "flops"):
        also = " (or two of params, tokens and flops, from which the third follows)"
    return (
        f"the table has no column {name}{also}; its columns are {_names(table)}: "
        f"name the right one by --columns {suggested_mapping(name, table.header)}"
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
