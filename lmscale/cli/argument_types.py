"""Parsers of argument values that several commands share; each says what would be right."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import Any

__all__ = [
    "NONE",
    "digits",
    "distributed",
    "field_value",
    "flops",
    "folder",
    "mesh",
    "nonnegative_tokens",
    "positive_int",
    "positive_loss",
    "positive_tokens",
    "positive_whole",
    "seconds",
    "shard",
    "switch",
    "whole",
]

#: No number that an option takes has more digits; Python refuses to read those of thousands.
_MOST_DIGITS = 300


def digits(text: str) -> int | None:
    """The number that decimal digits stand for; None for any other text."""
    return int(text) if text.isdecimal() and len(text) <= _MOST_DIGITS else None


def whole(text: str) -> int:
    """An int, also in the notation 1e6."""
    value = float(text)
    if not value.is_integer():
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}")
    return int(value)


# argparse shows this name when `float` fails.
whole.__name__ = "whole number"


def positive_whole(text: str) -> int:
    """An int of at least 1, also in the notation 1e6."""
    value = whole(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return value


positive_whole.__name__ = "whole number"


def positive_int(text: str) -> int:
    """An int of at least 1, in digits."""
    value = digits(text)
    if not value:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return value


def seed(text: str) -> int:
    """The seed of a run or of a sampling: an int below 2^31, in digits."""
    value = digits(text)
    if value is None or value >= 2**31:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^31 - 1, not {text!r}")
    return value


def temperature(text: str) -> float:
    """From 0 to 1e9."""
    return _up_to_a_billion(text, "")


temperature.__name__ = "number"


def seconds(text: str) -> float:
    """Seconds from 0 to 1e9."""
    return _up_to_a_billion(text, " seconds")


seconds.__name__ = "number"


def folder(text: str) -> str:
    """The path of a folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("must name a folder")
    return text


def switch(text: str) -> bool:
    """true or false; of any other text `bool` would make true."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")
    return text.lower() == "true"


class _NoValue:
    """What "none" on the command line stands for: None says that an option was not given."""

    def __repr__(self) -> str:
        return "none"


NONE = _NoValue()


def field_value(kind: type, optional: bool) -> Callable[[str], Any]:
    """The parser of an experiment's field; an optional one may be "none", which gives `NONE`.

    argparse says that a text is no number, in its own words and with this function's name; `sweep.fields`
    says which numbers a field takes.
    """
    parse: Callable[[str], Any] = {int: whole, bool: switch}.get(kind, kind)
    if not optional:
        return parse

    def value(text: str) -> Any:
        return NONE if text.lower() == "none" else parse(text)

    value.__name__ = parse.__name__
    return value


# --- Where and how to train ---------------------------------------------------------------------


#: The largest number of a TCP port.
_LAST_PORT = 65535
#: Shards of one experiment: as many as it may have runs, as more would train nothing.
MOST_SHARDS = 10_000


def shard(text: str) -> tuple[int, int]:
    """I/N: part I of N."""
    index, count = (digits(part) for part in (text.partition("/")[0], text.partition("/")[2]))
    if index is None or count is None or not index < count <= MOST_SHARDS:
        raise argparse.ArgumentTypeError(
            f"must be I/N with I from 0 to N - 1 and N at most {MOST_SHARDS:,}, not {text!r}"
        )
    return index, count


def mesh(text: str) -> tuple[int, int, int]:
    """RUN,DATA,MODEL: the devices along each axis of the mesh."""
    sizes = [digits(part) or 0 for part in text.split(",")]
    if len(sizes) != 3 or min(sizes) < 1:
        raise argparse.ArgumentTypeError(
            f"must be RUN,DATA,MODEL, three whole numbers of at least 1, not {text!r}"
        )
    run, data, model = sizes
    return run, data, model


def distributed(text: str) -> str | tuple[str, int, int]:
    """auto, or the address of the first process, the count of all, and the index of this one."""
    if text == "auto":
        return text
    address, *numbers = text.split(",")
    port, *found = (digits(number) for number in (address.rpartition(":")[2], *numbers))
    sound = [number for number in found if number is not None]
    if ":" not in address or port is None or len(found) != 2 or len(sound) != 2:
        raise argparse.ArgumentTypeError(f"must be auto or HOST:PORT,COUNT,INDEX, not {text!r}")
    if not 1 <= port <= _LAST_PORT:
        raise argparse.ArgumentTypeError(f"PORT must be from 1 to {_LAST_PORT}, not {text!r}")
    count, index = sound
    if index >= count:
        raise argparse.ArgumentTypeError(f"INDEX runs from 0 to COUNT - 1, but this is {text!r}")
    return address, count, index


# --- Quantities with units ----------------------------------------------------------------------


def flops(text: str) -> float:
    """A positive number of FLOPs, with a unit or without: 1e21, 5 PF-days."""
    return _quantity(text, "a positive number of FLOPs, as 1e21, 3 EFLOPs or 5 PF-days", flops=True)


def positive_tokens(text: str) -> float:
    """A positive number of tokens, with a suffix or without: 3e11, 300B."""
    return _quantity(text, "a positive number of tokens, as 3e11 or 300B")


def nonnegative_tokens(text: str) -> float:
    """A number of tokens from 0 on, with a suffix or without: 1e12, 1T."""
    return _quantity(text, "a number of tokens, not negative, as 1e12 or 1T", zero=True)


def positive_loss(text: str) -> float:
    """A loss in nats per token."""
    return _quantity(text, "a positive number of nats per token", counts=False)


def _up_to_a_billion(text: str, unit: str) -> float:
    value = float(text)
    if not 0 <= value <= 1e9:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1e9{unit}, not {text!r}")
    return value


def _quantity(text: str, what: str, *, zero: bool = False, **style: Any) -> float:
    from lmscale.laws.cell_numbers import NumberStyle, read_number

    try:
        value = read_number(text.strip(), NumberStyle(**style))
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        raise argparse.ArgumentTypeError(f"must be {what}, not {text!r}")
    return value
