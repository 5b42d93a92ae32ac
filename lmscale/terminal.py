"""What commands print: aligned tables and JSON on standard output, all else on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from lmscale.foreign_text import readable

__all__ = ["one_line", "print_json", "print_table", "say"]

#: Characters of a message: what a user typed may be of any length.
_LONGEST = 1500


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Aligned columns under a rule; the first row is the header."""
    rows = [[readable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        )
        if number == 0:
            print("  ".join("-" * width for width in widths))


def print_json(values: dict[str, Any]) -> None:
    """One JSON object; what is not finite becomes null, as JSON has no NaN."""
    # Here, because the laws take a second to load and most commands print no JSON.
    from lmscale.laws.result import plain

    json.dump(plain(values), sys.stdout, allow_nan=False)
    print()


def say(message: str) -> None:
    print("\n".join(map(readable, message.split("\n"))), file=sys.stderr, flush=True)


def one_line(message: str) -> str:
    """A message of bounded length, its line breaks and other control characters written out."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message[:_LONGEST])
    return text if len(message) <= _LONGEST else f"{text} ..."
