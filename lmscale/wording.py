"""Numbers and names as the page says them: plain text, no markup.

A value with an interval shows as many digits as its interval warrants: one of the half-width, two if
that begins with 1 or 2, and never fewer than two decimals where it is below 1.
"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from lmscale.terminal import plural

__all__ = [
    "apart",
    "between",
    "count",
    "duration",
    "family_name",
    "first_few",
    "flipped",
    "listed",
    "number",
    "plural",
    "power_of_ten",
    "sentence",
    "si",
    "statuses",
    "suggestion",
    "with_interval",
]

_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
_MINUS = "−"


def number(value: float, digits: int = 3) -> str:
    """`value` to that many significant digits, in full between 0.001 and a million."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(float(f"{value:.{digits - 1}e}"))))
    if -4 < size < 6:
        text = f"{value:,.{max(0, digits - 1 - size)}f}"
    else:
        return power_of_ten(value, digits)
    return text.replace("-", _MINUS)


def power_of_ten(value: float, digits: int = 2) -> str:
    """1.2e15 as 1.2×10¹⁵, and 1e15 as 10¹⁵."""
    if value is None or not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    mantissa = mantissa.replace("-", _MINUS)
    return power if mantissa == "1" else f"{mantissa}×{power}"


def si(value: float, digits: int = 3, trim: bool = True) -> str:
    """A count of parameters or tokens: 768, 12.3k, 1.2M, 70B; `trim` drops zeros as of 1.20M."""
    if value is None or not math.isfinite(value):
        return "–"
    value = float(f"{value:.{digits - 1}e}")
    for scale, letter in _PREFIXES:
        if abs(value) >= scale:
            text = number(value / scale, digits)
            if trim and "." in text:
                text = text.rstrip("0").rstrip(".")
            return text + letter
    return number(value, digits) if value != int(value) else f"{int(value):,}"


def count(value: float) -> str:
    """A whole number in full, with separators."""
    return f"{round(value):,}"


def with_interval(value: float, interval: Sequence[float] | None, note: str = "") -> str:
    """'0.52 (0.47 to 0.57)'; `note` goes before the interval. Without one, three digits.

    An interval with one infinite edge has no bound there: '32.0 (11.1 or more)'.
    """
    if interval is None or not has_an_edge(interval):
        return f"{number(value)} (no interval)"
    if all(map(math.isfinite, interval)):
        places = _places(value, interval)
        text, edges = _fixed(value, places), between(interval, places)
    else:
        text, edges = number(value), between(interval)
    return f"{text} ({note + ' ' if note else ''}{edges})"


def has_an_edge(interval: Sequence[float]) -> bool:
    """Whether an interval excludes anything: neither edge is NaN, and not both are infinite."""
    return not any(map(math.isnan, interval)) and any(map(math.isfinite, interval))


def between(interval: Sequence[float], places: int | None = None) -> str:
    """'0.47 to 0.57', or '0.47 or more' where nothing bounds it above."""
    low, high = interval
    if math.isinf(high):
        return f"{number(low)} or more"
    if math.isinf(low):
        return f"{number(high)} or less"
    if places is None:
        places = _places(0.5 * (low + high), interval)
    return f"{_fixed(low, places)} to {_fixed(high, places)}"


def apart(value: float, interval: tuple[float, float] | None) -> tuple[str, str, str]:
    """A difference whose sign is put in words: ("0.19", "above", "95% interval 0.1 to 0.3").

    The last is "no interval" where there is none.
    """
    shown = with_interval(*flipped(value, interval), "95% interval")
    amount, bounds = shown.removesuffix(")").split(" (", 1)
    return amount, "above" if value > 0 else "below", bounds


def flipped(
    value: float, interval: tuple[float, float] | None
) -> tuple[float, tuple[float, float] | None]:
    """Value and interval of the size of a difference whose sign is put in words: "0.3 below"."""
    if value >= 0:
        return value, interval
    return -value, (-interval[1], -interval[0]) if interval else None


def _places(value: float, interval: Sequence[float]) -> int:
    half = 0.5 * abs(interval[1] - interval[0])
    scale = half if half > 1e-12 * max(abs(value), 1e-12) else abs(value) * 1e-2
    if scale <= 0:
        return 3
    size = math.floor(math.log10(scale))
    places = 2 if size == -1 else min(6, max(0, (1 if scale < 3 * 10.0**size else 0) - size))
    # An edge near zero shows on which side of it the interval ends: -0.005 is not 0.00.
    for more in (places + 1, places + 2):
        if any(edge and not round(edge, places) and round(edge, more) for edge in interval):
            return more
    return places


def _fixed(value: float, places: int) -> str:
    if abs(value) >= 1e6:
        return power_of_ten(value, 3)
    text = f"{value:,.{places}f}"
    if not float(text.replace(",", "")):
        text = text.lstrip("-")
    return text.replace("-", _MINUS)


def duration(seconds: float) -> str:
    """'48 s', '12 min', '3.4 h', '5.2 days'."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} days"


def sentence(text: str) -> str:
    """A clause with a capital and a full stop."""
    return f"{text[0].upper()}{text[1:].rstrip('.')}." if text else ""


def listed(items: Sequence[Any]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    words = [str(item) for item in items]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def first_few(items: Iterable[Any], most: int = 3) -> str:
    """'a, b, c and 4 more'."""
    words = [str(item) for item in items]
    more = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + more


def suggestion(name: str, known: Iterable[str]) -> str:
    """For a name that is not known: 'did you mean isoflop?', or 'there are ...' where none is near."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"


def statuses(column: Iterable[str]) -> str:
    """'24 done, 2 diverged and 1 out of memory', the commonest first."""
    counts = Counter(str(status).replace("_", " ") for status in column)
    return listed([f"{n} {status}" for status, n in counts.most_common()])


def family_name(family: str) -> str:
    """A label of the table as a reader writes it: 'lstm, 2 layers' is '2-layer LSTM'."""
    text = re.sub(r"^(\w+),? (\d+) layers?$", r"\2-layer \1", str(family))
    for label, name in (("transformer", "Transformer"), ("lstm", "LSTM"), ("llama", "Llama")):
        text = text.replace(label, name)
    return text
