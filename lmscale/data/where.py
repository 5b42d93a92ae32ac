"""Filters of rows by their fields: `language_score >= 0.9`, `meta.lang = en`."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmscale.data.errors import DataError

__all__ = ["RowFilter"]

_CONDITION = re.compile(r"\s*([^\s<>=!]+)\s*(>=|<=|!=|==|=|>|<)\s*(.+?)\s*")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}


@dataclass(frozen=True)
class _Condition:
    path: tuple[str, ...]
    sign: str
    value: float | str

    def holds(self, row: Mapping[str, Any]) -> bool:
        found: Any = row
        for name in self.path:
            found = found.get(name) if isinstance(found, Mapping) else None
        if isinstance(found, bool):
            found = str(found).lower()
        if isinstance(self.value, str):
            return isinstance(found, str) and _OPERATORS[self.sign](found, self.value)
        return isinstance(found, int | float) and _OPERATORS[self.sign](found, self.value)


class RowFilter:
    """Rows of JSON lines or Parquet that meet all of some conditions.

    Args:
      conditions: FIELD SIGN VALUE each, with one of >= <= != = > <. A field of an object within the row is
        written with dots. A value that is a number is compared as one; other values know = and != alone.
        A row without the field, or with a value of another kind, is left out.

    Attributes:
      left_out: rows that did not meet them, so far.

    Raises:
      DataError: when a condition is none.
    """

    def __init__(self, conditions: Sequence[str]):
        self._conditions = [_parsed(text) for text in conditions]
        self.left_out = 0

    @property
    def fields(self) -> list[str]:
        """The fields of a row that the conditions read."""
        return list(dict.fromkeys(condition.path[0] for condition in self._conditions))

    def keeps(self, row: Mapping[str, Any]) -> bool:
        """Whether a row meets all conditions; counts those that do not."""
        kept = all(condition.holds(row) for condition in self._conditions)
        self.left_out += not kept
        return kept


def _parsed(text: str) -> _Condition:
    found = _CONDITION.fullmatch(text)
    if not found:
        raise DataError(
            f"{text!r} is no condition on rows: write FIELD>=VALUE, with one of >= <= != = > <"
        )
    name, sign, written = found.groups()
    value: float | str
    try:
        value = float(written)
    except ValueError:
        value = re.sub(r"""^(["'])(.*)\1$""", r"\2", written)
    if isinstance(value, float) and not math.isfinite(value):
        value = written
    if isinstance(value, str) and sign not in ("=", "==", "!="):
        raise DataError(f"{text!r} compares with {value!r}, which is not a number: use = or !=")
    return _Condition(tuple(name.split(".")), sign, value)
