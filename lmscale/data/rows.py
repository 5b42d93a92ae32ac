"""Rows of text: the text of a field as UTF-8, and Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
from etils import epath

from lmscale.data.errors import BadDocument, DataError
from lmscale.data.inputs import names_in_words
from lmscale.data.where import RowFilter

#: Rows that are decoded at once. They are few, because each may be large.
_ROWS_AT_ONCE = 64


def utf8(value: Any, where: str) -> bytes:
    """The text of a field as bytes.

    Raises:
      BadDocument: when it is no text; the message names `where`.
    """
    if value is None:
        raise BadDocument(f"{where} is null, not text", "no text")
    if isinstance(value, bytes):
        try:
            value.decode()
        except UnicodeDecodeError as error:
            byte = value[error.start]
            raise BadDocument(
                f"{where} is not UTF-8: byte 0x{byte:02x} at position {error.start}", "not UTF-8"
            ) from None
        return value
    if not isinstance(value, str):
        raise BadDocument(f"{where} is not text but {type(value).__name__}", "no text")
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise BadDocument(
            f"{where} holds the lone surrogate U+{ord(value[error.start]):04X}, which is no "
            "character",
            "lone surrogate",
        ) from None


def read_parquet(
    path: epath.Path,
    raw: BinaryIO,
    text_field: str,
    max_bytes: int,
    on_bad: Callable[[BadDocument], None],
    where: RowFilter | None = None,
) -> Iterator[bytes]:
    """The text of a column, row by row.

    Args:
      max_bytes: of a row.
      on_bad: called for every row that is no text; it is then left out.
      where: which rows are read; all by default.

    Raises:
      DataError: when the file is no Parquet, is damaged, has no such column, or has it twice.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise DataError(f"{path} needs pyarrow to be read: pip install 'lmscale[data]'") from None

    # Arrow raises errors of many types for a damaged file.
    damaged = (pyarrow.ArrowException, OSError, ValueError, MemoryError)

    def fault(error: Exception, message: str) -> DataError:
        said = (str(error).splitlines() or [type(error).__name__])[0][:200]
        return DataError(f"{path} {message}: {said}")

    try:
        file = parquet.ParquetFile(raw)
        schema = file.schema_arrow
    except damaged as error:
        raise fault(error, "is not a Parquet file") from None
    names, paths = schema.names, where.paths(schema.names) if where else []
    if text_field not in names:
        raise DataError(
            f"{path} has no column {text_field!r}; its columns are {names_in_words(names)} (--text-field, or "
            "text_field, names the one that holds the text)"
        )
    conditions = list(dict.fromkeys(path[0] for path in paths))
    if lacking := [name for name in conditions if name not in names]:
        raise DataError(
            f"{path} has no column {lacking[0]!r}, which a condition (--where) reads; its columns are "
            f"{names_in_words(names)}"
        )
    if twice := [name for name in (text_field, *conditions) if names.count(name) > 1]:
        raise DataError(f"{path} has {names.count(twice[0])} columns {twice[0]!r}: name them apart")
    rows = _rows(file, text_field, conditions, pyarrow)
    kinds = {path: _precision(schema, path, pyarrow) for path in paths}
    narrow = {path: kind for path, kind in kinds.items() if kind is not None}
    row = 0
    while True:
        try:
            value, others = next(rows)
        except StopIteration:
            return
        except damaged as error:
            raise fault(error, f"cannot be read after row {row:,}") from None
        row += 1
        for read, kind in narrow.items():
            _narrow(others, read, kind)
        if where is not None and not where.keeps(others):
            continue
        place = f"{path}, row {row}, column {text_field!r}"
        try:
            if isinstance(value, bytes | str) and len(value) > max_bytes:
                raise BadDocument(f"{place} is longer than {max_bytes:,} bytes", "too long")
            text = utf8(value, place)
        except BadDocument as error:
            on_bad(error)
            continue
        yield text


def _precision(schema: Any, path: Sequence[str], pyarrow: Any) -> type[np.floating] | None:
    """The type of a column of narrow floats, which would be read as Python's own; None for other columns."""
    found = schema.field(path[0]).type
    for name in path[1:]:
        at = found.get_field_index(name) if pyarrow.types.is_struct(found) else -1
        if at < 0:
            return None
        found = found.field(at).type
    if pyarrow.types.is_float16(found):
        return np.float16
    return np.float32 if pyarrow.types.is_float32(found) else None


def _narrow(row: Any, path: Sequence[str], kind: type[np.floating]) -> None:
    """Gives a value of a row the precision of its column, so that it is compared in it."""
    for name in path[:-1]:
        row = row[name] or {}
    if isinstance(row.get(path[-1]), float):
        row[path[-1]] = kind(row[path[-1]])


def _rows(
    file: Any, name: str, conditions: Sequence[str], pyarrow: Any
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yields (text of a row, the columns that conditions read)."""
    columns = list(dict.fromkeys([name, *conditions]))
    for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=columns):
        column = batch.column(batch.schema.get_field_index(name))
        if pyarrow.types.is_string(column.type):
            # Read as bytes: as text, one row that is not UTF-8 would make the whole batch unreadable.
            column = column.cast(pyarrow.binary())
        elif pyarrow.types.is_large_string(column.type):
            column = column.cast(pyarrow.large_binary())
        elif pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type):
            raise ValueError("the column holds bytes, not text")
        others = batch.select(list(conditions)).to_pylist() if conditions else [{}] * len(column)
        yield from zip(column.to_pylist(), others, strict=True)
