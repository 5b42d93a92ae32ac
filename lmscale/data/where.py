"""Filters of rows by their fields: `language_score >= 0.9`, `meta.lang = en`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import numpy as np

from lmscale.data.errors import DataError
from lmscale.data.inputs import names_in_words

__all__ = ["RowFilter"]

_CONDITION = re.compile(r"\s*([^\s<>=!]+)\s*(>=|<=|!=|==|=|>|<)\s*(.+?)\s*")
#: Names of fields that are kept for an error; rows may have a name each.
_MOST_NAMES = 100
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


class _Number:
    """A number as it was written, to be compared with fields of every type without rounding them.

    A field that is a float is compared with the float that the number is read as, in the field's own
    precision: a float32 of 0.9 meets =0.9, although the float64 of 0.9 is another number.

    Raises:
      ValueError: the text is no finite number, or holds an underscore, which Python would read over.
    """

    def __init__(self, written: str):
        self._float = float(written)
        if "_" in written or not math.isfinite(self._float):
            raise ValueError(written)
        self._exact = Decimal(written)
        with np.errstate(over="ignore"):  # infinity compares as the number would
            self._narrow = {kind: kind(self._float) for kind in (np.float16, np.float32)}

    def like(self, found: Any) -> Any:
        """The number in the type of a field; None where that is no number."""
        if isinstance(found, float):
            return self._float
        if isinstance(found, np.floating):
            return self._narrow[type(found)]
        return self._exact if isinstance(found, int | Decimal) else None


@dataclass(frozen=True)
class _Condition:
    path: tuple[str, ...]
    sign: str
    value: _Number | str

    def holds(self, row: Mapping[str, Any]) -> bool:
        found: Any = row
        for name in _path_in(self.path, row):
            found = found.get(name) if isinstance(found, Mapping) else None
        if isinstance(found, bool):
            found = str(found).lower()
        if isinstance(self.value, str):
            return isinstance(found, str) and _OPERATORS[self.sign](found, self.value)
        value = self.value.like(found)
        return value is not None and bool(_OPERATORS[self.sign](found, value))


def _path_in(path: tuple[str, ...], names: Container[str]) -> tuple[str, ...]:
    """A path in a row of these fields, one of which may have dots in its own name."""
    whole = ".".join(path)
    return (whole,) if whole in names else path


class RowFilter:
    """Rows of JSON lines or Parquet that meet all of some conditions.

    Args:
      conditions: FIELD SIGN VALUE each, with one of >= <= != = > < (== is =). A field of an object within the row is
        written with dots, and so is a field with dots in its name, which comes first. A value that is a number
        is compared as one, exactly or in the precision of the field; other values know = and != alone.
        A row without the field, or with a value of another kind, is left out: with != too, and null is of
        no kind. Booleans are the words true and false.

    Attributes:
      left_out: rows that did not meet them, so far.

    Raises:
      DataError: when a condition is none.
    """

    def __init__(self, conditions: Sequence[str]):
        self._conditions = [_parsed(text) for text in conditions]
        self._texts = [*conditions]
        self.left_out = 0
        self.begin()

    def begin(self) -> None:
        """Starts the counts anew for the next source; `why_nothing` is about that source."""
        self._n_rows = 0
        self._any_kept = False
        self._fields = [_Fields(condition.path) for condition in self._conditions]

    def paths(self, names: Container[str]) -> list[tuple[str, ...]]:
        """The paths that the conditions read in a row of these fields."""
        return [_path_in(condition.path, names) for condition in self._conditions]

    def keeps(self, row: Mapping[str, Any]) -> bool:
        """Whether a row meets all conditions; counts those that do not."""
        kept = all(condition.holds(row) for condition in self._conditions)
        self.left_out += not kept
        self._n_rows += 1
        self._any_kept |= kept
        if not self._any_kept:
            for fields in self._fields:
                fields.note(row)
        return kept

    def why_nothing(self) -> str | None:
        """In words why none of the rows of a source was kept; None where one was, or where there was no row."""
        if self._any_kept or not self._n_rows:
            return None
        for text, fields in zip(self._texts, self._fields, strict=True):
            if not fields.is_there:
                return (
                    f"no row has a field {'.'.join(fields.path)!r} (--where {text}); there are "
                    f"{names_in_words(fields.names)}"
                )
        rows = "1 row" if self._n_rows == 1 else f"{self._n_rows:,} rows"
        return f"{rows}, and none meets --where {' '.join(self._texts)}"


class _Fields:
    """Whether some row has a field, and which fields lie beside the place where it is looked for."""

    def __init__(self, path: tuple[str, ...]):
        self.path = path
        self.is_there = False
        self.names: dict[str, None] = {}
        self._depth = 0

    def note(self, row: Mapping[str, Any]) -> None:
        found: Any = row
        for depth, name in enumerate(_path_in(self.path, row)):
            if not isinstance(found, Mapping):
                return
            if depth > self._depth:
                self._depth = depth
                self.names.clear()
            if depth == self._depth and len(self.names) < _MOST_NAMES:
                before = self.path[:depth]
                self.names |= {".".join((*before, str(key))): None for key in found}
            if name not in found:
                return
            found = found[name]
        self.is_there = True


def _parsed(text: str) -> _Condition:
    found = _CONDITION.fullmatch(text)
    if not found:
        raise DataError(
            f"{text!r} is no condition on rows: write FIELD>=VALUE, with one of >= <= != = > <"
        )
    name, sign, written = found.groups()
    value: _Number | str
    try:
        value = _Number(written)
    except ValueError:
        value = re.sub(r"""^(["'])(.*)\1$""", r"\2", written)
    if isinstance(value, str) and sign not in ("=", "==", "!="):
        raise DataError(f"{text!r} compares with {value!r}, which is not a number: use = or !=")
    return _Condition(tuple(name.split(".")), sign, value)
