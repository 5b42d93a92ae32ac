"""Text of a store that somebody else may have written, made safe for the place it goes to.

HTML is escaped where the page is written (`lmscale.report.page`), and shell, Slurm and YAML where a
launcher writes them. This module has what several rooms need.
"""

from __future__ import annotations

import re

#: Characters that a terminal obeys, that XML forbids, or that turn the order of what is shown.
_UNSHOWN = re.compile(
    "[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
#: What a spreadsheet takes for the beginning of a formula (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
#: Bytes of the longest name of a file on the usual file systems, with room for our suffixes.
_LONGEST_NAME = 200


def is_plain_name(name: object) -> bool:
    """Whether a name is that of a file or folder and cannot lead out of where it is looked for."""
    return (
        isinstance(name, str)
        and 0 < len(name.encode(errors="replace")) <= _LONGEST_NAME
        and name not in (".", "..")
        and not re.search(r"[/\\]", name)
        and not _UNSHOWN.search(name)
    )


def readable(text: str) -> str:
    """The text with a mark in place of each character that is not to be shown."""
    return _UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", text)


def plain_cell(value: object) -> object:
    """A cell of a table that a spreadsheet shows as it is: an apostrophe keeps text from being run."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value
