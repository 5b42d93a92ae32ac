"""Reads a table from bytes: CSV with any usual separator, JSON, or JSON lines, also compressed.

Every cell is kept as it was written, so that errors can name its row and column.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from etils import epath

from lmscale.laws.cell_numbers import parse_number
from lmscale.laws.errors import TableError

__all__ = ["Cells", "cells_of_mapping", "read_cells"]

#: Bytes of the largest table that is read, several times the largest public one. Devices and archives can
#: hold more than the memory does.
_LARGEST = 1 << 30
_COMPRESSED: tuple[tuple[bytes, Callable[..., Any]], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"\xfd7zXZ\x00", lzma.open),
    (b"BZh", bz2.open),
)
_FOREIGN = (
    (b"PAR1", "a Parquet file"),
    (b"PK\x03\x04", "a spreadsheet or zip archive"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
)
_DELIMITERS = ("\t", ";", "|", ",")


@dataclass(frozen=True)
class Cells:
    """The cells of a table as they were written.

    Attributes:
      columns: each name of `header` -> its `n_rows` cells.
      bad_rows: row number (from 1) -> why the whole row is bad.
      delimiter: what separated the cells of a text table; None for blanks and for other formats.
    """

    header: tuple[str, ...]
    columns: Mapping[str, Sequence[Any]]
    n_rows: int
    bad_rows: dict[int, str] = field(default_factory=dict)
    delimiter: str | None = None


def read_cells(path: str | os.PathLike) -> Cells:
    """The table in a file.

    Raises:
      TableError: the file has no table, in one line.
    """
    name = os.fspath(path)
    text = _text(path)
    if not text.strip():
        raise TableError(f"{name!r} is empty; its first line must name the columns")
    if text.lstrip()[0] in "[{":
        return _read_json(text, name)
    return _read_separated(text, name)


def cells_of_mapping(source: Any) -> Cells:
    """The table in a DataFrame or a dict of columns."""
    if not hasattr(source, "keys") or not hasattr(source, "__getitem__"):
        raise TableError(
            f"a table must be a path, a DataFrame or a dict of columns, not {type(source).__name__}"
        )
    columns = {str(name): list(source[name]) for name in source}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        sizes = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise TableError(f"the columns have different lengths ({sizes}); give one value a run")
    return Cells(tuple(columns), columns, next(iter(lengths.values()), 0))


def _text(path: str | os.PathLike) -> str:
    name = os.fspath(path)
    try:
        with epath.Path(path).open("rb") as file:
            data = _bounded(file, name)
    except FileNotFoundError:
        raise TableError(f"there is no file {name!r}; give the path of a CSV or JSON") from None
    except IsADirectoryError:
        raise TableError(f"{name!r} is a folder; give the path of a CSV or JSON") from None
    except OSError as error:
        raise TableError(f"{name!r} cannot be read: {error.strerror}") from None
    for magic, open_archive in _COMPRESSED:
        if data.startswith(magic):
            try:
                with open_archive(io.BytesIO(data)) as file:
                    data = _bounded(file, name)
            except (OSError, EOFError, ValueError, lzma.LZMAError, zlib.error) as error:
                raise TableError(f"{name!r} is a damaged archive: {error}") from None
    for magic, what in _FOREIGN:
        if data.startswith(magic):
            raise TableError(f"{name!r} is {what}; save it as CSV or JSON, plain or in gz")
    # Spreadsheets save "Unicode text" in UTF-16.
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise TableError(f"{name!r} is not text in UTF-8; save it as CSV or JSON") from None
    # The csv module refuses lines that end in a lone carriage return, as old spreadsheets write.
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _bounded(file: BinaryIO, name: str) -> bytes:
    """All that an open file holds, unless it is too much."""
    data = file.read(_LARGEST + 1)
    if len(data) > _LARGEST:
        raise TableError(f"{name!r} holds more than {_LARGEST >> 30} GB: give a table of runs")
    return data


# --- Separated values -----------------------------------------------------------------------------


def _read_separated(text: str, name: str) -> Cells:
    delimiter = _delimiter(text)
    try:
        lines = [line for line in _split(text, delimiter) if any(cell.strip() for cell in line)]
    except csv.Error as error:
        raise TableError(f"{name!r} is not a CSV: {error}") from None
    lines = _without_comments(lines)
    if not lines:
        raise TableError(f"{name!r} is empty; its first line must name the columns")
    header = [cell.strip() for cell in lines[0]]
    if all(parse_number(cell) is not None for cell in header):
        raise TableError(
            f"the first line of {name!r} holds numbers ({', '.join(header[:3])}, ..); it must name "
            f"the columns"
        )
    twice = sorted({item for item in header if item and header.count(item) > 1})
    if twice:
        raise TableError(f"the header names {', '.join(twice)} twice; every column needs one name")
    bad_rows = {}
    rows = lines[1:]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            bad_rows[number] = f"has {len(row)} fields where the header has {len(header)}"
            row.extend([""] * (len(header) - len(row)))
    columns = {item: [row[i] for row in rows] for i, item in enumerate(header)}
    return Cells(tuple(header), columns, len(rows), bad_rows, delimiter)


def _delimiter(text: str) -> str | None:
    """The separator with which most of the first rows have as many cells as the header.

    None stands for blanks of any length.
    """
    head = [line for line in text.splitlines() if line.strip()][:200]
    head = [line for line in head if not line.lstrip().startswith("#")][:50] or head
    choice: str | None = ","
    best = (0.0, 1)
    for delimiter in (*_DELIMITERS, None):
        try:
            rows = _split("\n".join(head), delimiter)
        except csv.Error:
            continue
        width = len(rows[0]) if rows else 0
        if width < 2:
            continue
        even = sum(len(row) == width for row in rows[1:]) / max(1, len(rows) - 1)
        # Names may contain blanks, so blanks as separators must fit every row.
        if (even, width) > best and (delimiter is not None or (even == 1 and best[0] == 0)):
            best, choice = (even, width), delimiter
    return choice


def _split(text: str, delimiter: str | None) -> list[list[str]]:
    if delimiter is None:
        return [line.split() for line in text.splitlines()]
    return list(csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True))


def _without_comments(lines: list[list[str]]) -> list[list[str]]:
    """The lines that do not begin with #; a header may begin with it."""
    comments = [line[0].lstrip().startswith("#") for line in lines]
    first = next((i for i, comment in enumerate(comments) if not comment), len(lines))
    rest = [line for line, comment in zip(lines, comments, strict=True) if not comment]
    numeric = bool(rest) and all(parse_number(cell) is not None for cell in rest[0])
    if numeric and first and len(lines[first - 1]) == len(rest[0]) > 1:
        header = list(lines[first - 1])
        header[0] = header[0].lstrip().lstrip("#")
        return [header, *rest]
    return rest


# --- JSON -----------------------------------------------------------------------------------------


def _read_json(text: str, name: str) -> Cells:
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) == 1 or not _is_json(lines[0]):
            raise TableError(f"{name!r} is not JSON: {error}") from None
        numbered = [item for item in enumerate(text.split("\n"), start=1) if item[1].strip()]
        return _records([_json_line(line) for _, line in numbered], [k for k, _ in numbered])
    if isinstance(found, list):
        return _records(found)
    # {"data": [..]}, also beside other keys; pandas writes `columns` beside rows of values.
    names = found.get("columns")
    if isinstance(found.get("data"), list) and isinstance(names, list):
        return _records([_named(names, row) for row in found["data"]])
    lists = [
        value
        for value in found.values()
        if isinstance(value, list) and any(isinstance(item, dict) for item in value)
    ]
    if len(lists) == 1:
        return _records(lists[0])
    if found and all(isinstance(value, dict) for value in found.values()):
        # Columns by row label, as pandas writes them.
        return cells_of_mapping({key: list(value.values()) for key, value in found.items()})
    if found and all(isinstance(value, list) for value in found.values()):
        return cells_of_mapping(found)
    if found and not any(isinstance(value, (list, dict)) for value in found.values()):
        return _records([found])
    raise TableError(
        f"{name!r} holds no table; give a list of objects, an object of equally long lists, or "
        f'{{"data": [..]}}'
    )


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


def _json_line(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return error


def _named(names: Sequence[Any], row: Any) -> Any:
    if not isinstance(row, list) or len(row) != len(names):
        return row
    return dict(zip(map(str, names), row, strict=True))


def _records(items: Sequence[Any], lines: Sequence[int] = ()) -> Cells:
    """The table of a list of objects; `lines` are their numbers in a file of JSON lines."""
    rows = [_flat(item) if isinstance(item, dict) else {} for item in items]
    header = list(dict.fromkeys(key for row in rows for key in row))
    if not header:
        raise TableError("the table has no columns: its rows must be objects {name: value, ..}")
    bad_rows = {}
    for number, item in enumerate(items, start=1):
        if isinstance(item, json.JSONDecodeError):
            bad_rows[number] = f"line {lines[number - 1]} is not JSON: {item.msg}"
        elif not isinstance(item, dict):
            bad_rows[number] = "is not an object {name: value, ..}"
    columns = {key: [row.get(key) for row in rows] for key in header}
    return Cells(tuple(header), columns, len(rows), bad_rows)


def _flat(item: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as columns: {"config": {"lr": 1}} gives the column config.lr."""
    flat = {}
    for key, value in item.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
