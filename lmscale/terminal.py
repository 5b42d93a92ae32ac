"""What commands print: tables and JSON on standard output, all else on standard error."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from lmscale.foreign_text import readable

__all__ = ["one_line", "plural", "print_json", "print_table", "say", "say_if_slow"]

#: Longest message in characters: what a user typed may be of any length.
_LONGEST = 1500
#: Beginning of a cell that is right-aligned on a terminal.
_NUMBER = re.compile(r"[-+]?\d|[-+]?\.\d|-?$")


def print_table(rows: Sequence[Sequence[str]], widths: Sequence[int] | None = None) -> None:
    """A table whose first row is the header: drawn by rich on a terminal, plain text elsewhere.

    Args:
      rows: cells of text.
      widths: of the columns in plain text, which then has no rule, aligns all columns but the first
        to the right, and takes the columns beyond `widths` as free text. Without it each column is
        as wide as its longest cell.
    """
    rows = [[readable(cell) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _draw_table(rows)
    elif widths is not None:
        for first, *others in rows:
            cells = (f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=False))
            free = "".join(f"  {cell}" for cell in others[len(widths) - 1 :])
            print(f"{first:<{widths[0]}}{''.join(cells)}{free}".rstrip())
    else:
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        for number, row in enumerate(rows):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print("  ".join(cells).rstrip())
            if number == 0:
                print("  ".join("-" * width for width in widths))


def _draw_table(rows: Sequence[Sequence[str]]) -> None:
    # Here, because it takes a tenth of a second to load and pipes do not need it.
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    columns = [column for column in zip(*rows, strict=True) if any(column)]
    for header, *cells in columns:
        # A number that is broken into two lines cannot be read; rich shortens text columns first.
        numeric = bool(cells) and all(_NUMBER.match(cell) for cell in cells)
        align: Literal["left", "right"] = "right" if numeric else "left"
        table.add_column(Text(header), justify=align, no_wrap=numeric, overflow="fold")
    for row in zip(*(cells for _, *cells in columns), strict=True):
        table.add_row(*map(Text, row))
    Console(highlight=False).print(table)


def print_json(values: dict[str, Any]) -> None:
    """One JSON object; what is not finite becomes null, as JSON has no NaN."""
    # Here, because the laws take a second to load and most commands print no JSON.
    from lmscale.laws.result import plain

    json.dump(plain(values), sys.stdout, allow_nan=False)
    print()


def say(message: str) -> None:
    """A message on standard error."""
    print("\n".join(map(readable, message.split("\n"))), file=sys.stderr, flush=True)


@contextlib.contextmanager
def say_if_slow(message: str, seconds: float = 10.0) -> Iterator[None]:
    """Says something when what is done inside takes long, once."""
    timer = threading.Timer(seconds, say, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def one_line(message: str) -> str:
    """A message of bounded length, its line breaks and other control characters written out."""
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message[:_LONGEST])
    return text if len(message) <= _LONGEST else f"{text} ..."


def plural(n: int, noun: str) -> str:
    """'1 run', '3 runs', '1,200 runs'."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"
