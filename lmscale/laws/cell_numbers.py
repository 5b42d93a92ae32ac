"""The number in a cell of a table: 1e9, 1_000, 1.3B, 110,678,115, 110 678 115, 2,85, 5 PF-days.

Commas and points mean different things in different countries. Where a cell can be read both ways,
the other cells of its column decide. Where they do not decide, the cell is a problem.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["FLOPS_UNITS", "NumberStyle", "parse_number", "read_number", "style_of"]

_WORDS = {
    "k": 1e3,
    "thousand": 1e3,
    "m": 1e6,
    "mn": 1e6,
    "million": 1e6,
    "b": 1e9,
    "bn": 1e9,
    "g": 1e9,
    "billion": 1e9,
    "t": 1e12,
    "tn": 1e12,
    "trillion": 1e12,
}
#: Units of compute in FLOPs; a PF-day is 1e15 x 86,400 (Kaplan et al. 2020).
FLOPS_UNITS = {
    "GFLOPs": 1e9,
    "TFLOPs": 1e12,
    "PFLOPs": 1e15,
    "EFLOPs": 1e18,
    "PF-days": 8.64e19,
    "ZFLOPs": 1e21,
}
_FLOPS = {
    **{unit.lower().removesuffix("s"): value for unit, value in FLOPS_UNITS.items()},
    "flop": 1.0,
    "mflop": 1e6,
    "pfday": 8.64e19,
    "petaflop-day": 8.64e19,
}
_SUFFIXED = re.compile(r"([+-]?[\d.,_]*\d[\d.,_]*(?:[eE][+-]?\d+)?)\s*([A-Za-z][A-Za-z/-]*)")

_GROUPS_BY_COMMA = re.compile(r"[+-]?\d{1,3}(,\d{3}){2,}(\.\d*)?|[+-]?\d{1,3}(,\d{3})+\.\d*")
_GROUPS_BY_POINT = re.compile(r"[+-]?\d{1,3}(\.\d{3}){2,}(,\d*)?|[+-]?\d{1,3}(\.\d{3})+,\d*")
_GROUPS_BY_SPACE = re.compile(r"[+-]?\d{1,3}([ '\u00a0\u2009\u202f]\d{3})+([.,]\d+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+([eE][+-]?\d+)?")
#: One group of three digits, not after a lone zero: thousands or decimals.
_EITHER_COMMA = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
_EITHER_POINT = re.compile(r"[+-]?[1-9]\d{0,2}\.\d{3}")


@dataclass(frozen=True)
class NumberStyle:
    """What a column's commas and points mean.

    Attributes:
      comma: "thousands", "decimal", or "" where no cell decides.
      point_groups: points may separate thousands, as cells with several such groups show.
      counts: the column holds counts (params, tokens, flops), so 1.3B is a number.
      flops: their unit may also be GFLOPs and the like.
    """

    comma: str = ""
    point_groups: bool = False
    counts: bool = True
    flops: bool = False


def parse_number(cell: Any) -> float | None:
    """The number in a cell, or None; for a cell without a column that would decide its style."""
    if isinstance(cell, bool):
        return None
    if not isinstance(cell, str):
        try:
            return float(cell)
        except (TypeError, ValueError, OverflowError):
            return None
    try:
        return read_number(cell.strip(), NumberStyle(comma="thousands", flops=True))
    except ValueError:
        return None


def style_of(cells: Sequence[Any], *, name: str, delimiter: str | None) -> NumberStyle:
    """The style of a column, from the cells that can be read in only one way."""
    texts = [cell.strip() for cell in cells if isinstance(cell, str)]
    # Without the suffix: 1,5B shows the same as 1,5.
    bare = [match[1] if (match := _SUFFIXED.fullmatch(text)) else text for text in texts]
    by_comma = any(_GROUPS_BY_COMMA.fullmatch(text) for text in bare)
    by_point = any(_GROUPS_BY_POINT.fullmatch(text) for text in bare)
    decimal = by_point or any(
        _DECIMAL_COMMA.fullmatch(text) and not _EITHER_COMMA.fullmatch(text) for text in bare
    )
    counts = name in ("params", "tokens", "flops", "unique_tokens", "steps", "batch_tokens")
    comma = ""
    if decimal != by_comma:
        comma = "decimal" if decimal else "thousands"
    elif not decimal and not counts:
        # A loss is never in the thousands.
        comma = "decimal"
    elif not decimal and delimiter == ",":
        # A file with commas between columns has no decimal commas.
        comma = "thousands"
    return NumberStyle(comma, by_point, counts, name == "flops")


def read_number(text: str, style: NumberStyle) -> float:
    """The number in a stripped cell that is not empty.

    Raises:
      ValueError: what is wrong with it, as the continuation of "NAME is 'CELL'".
    """
    try:
        if not (style.point_groups and style.counts and _EITHER_POINT.fullmatch(text)):
            return float(text)
    except ValueError:
        pass
    match = _SUFFIXED.fullmatch(text)
    if match and style.counts:
        unit = match[2].lower()
        factor = _WORDS.get(unit)
        if factor is None and style.flops:
            factor = _FLOPS.get(unit.removesuffix("s"))
        if factor is not None:
            return float(f"{_plain(match[1], style):.15g}") * factor
    return _plain(text, style)


def _plain(text: str, style: NumberStyle) -> float:
    if _GROUPS_BY_SPACE.fullmatch(text):
        return float(re.sub(r"[ '\u00a0\u2009\u202f]", "", text).replace(",", "."))
    if _GROUPS_BY_COMMA.fullmatch(text):
        return float(text.replace(",", ""))
    if _GROUPS_BY_POINT.fullmatch(text):
        return float(text.replace(".", "").replace(",", "."))
    if _EITHER_COMMA.fullmatch(text):
        if not style.comma:
            without = text.replace(",", "")
            raise ValueError(
                f", which may be {without} or {text.replace(',', '.')}; write it without the comma"
            )
        return float(text.replace(",", "" if style.comma == "thousands" else "."))
    if _EITHER_POINT.fullmatch(text) and style.point_groups and style.counts:
        return float(text.replace(".", ""))
    if _DECIMAL_COMMA.fullmatch(text):
        return float(text.replace(",", "."))
    try:
        return float(text)
    except ValueError:
        raise ValueError(", not a number") from None
