"""Rows of text: the text of a field as UTF-8, and Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

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
      DataError: when the file is no Parquet, is damaged or has no such column.
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
        names = file.schema_arrow.names
    except damaged as error:
        raise fault(error, "is not a Parquet file") from None
    if text_field not in names:
        raise DataError(
            f"{path} has no column {text_field!r}; its columns are {names_in_words(names)} (--text-field, or "
            "text_field, names the one that holds the text)"
        )
    conditions = where.fields if where else []
    if lacking := [name for name in conditions if name not in names]:
        raise DataError(
            f"{path} has no column {lacking[0]!r}, which a condition (--where) reads; its columns are "
            f"{names_in_words(names)}"
        )
    rows = _rows(file, text_field, conditions, pyarrow)
    row = 0
    while True:
        try:
            value, others = next(rows)
        except StopIteration:
            return
        except damaged as error:
            raise fault(error, f"cannot be read after row {row:,}") from None
        row += 1
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
