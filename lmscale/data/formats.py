"""Tells the format of a file from its content, because names are often wrong or say nothing.

Compression and Parquet have marks at their beginning. JSON lines begin with an object that has the text
field; where the name says JSON lines, they are, so that a bad first line is an error and not text.
"""

from __future__ import annotations

import re

__all__ = [
    "UTF8_MARK",
    "compression",
    "is_json_array",
    "is_json_lines",
    "is_parquet",
    "other_encoding",
]

#: The byte order mark, which some programs put before UTF-8. It is no part of the text.
UTF8_MARK = b"\xef\xbb\xbf"
_COMPRESSIONS = {
    b"\x1f\x8b": ".gz",
    b"\xfd7zXZ\0": ".xz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"BZh": ".bz2",
}
_ENCODINGS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


def compression(head: bytes) -> str:
    """The suffix of the compression of a file that begins so: ".gz", ".xz", ".zst", ".bz2" or ""."""
    return next((name for mark, name in _COMPRESSIONS.items() if head.startswith(mark)), "")


def is_parquet(head: bytes) -> bool:
    """Whether a file that begins so is Parquet."""
    return head.startswith(b"PAR1")


def is_json_lines(head: bytes, text_field: str) -> bool:
    """Whether a text that begins so is JSON lines: objects with the field, one a line."""
    line = head.removeprefix(UTF8_MARK).lstrip().partition(b"\n")[0]
    field = re.escape(text_field.encode())
    return line.startswith(b"{") and re.search(rb'"%s"\s*:' % field, line) is not None


def is_json_array(head: bytes) -> bool:
    """Whether a text that begins so is one JSON array of objects."""
    return re.match(rb"\s*\[\s*\{", head.removeprefix(UTF8_MARK)) is not None


def other_encoding(head: bytes) -> str | None:
    """The encoding that the mark at the beginning names, if it is not UTF-8."""
    return next((name for mark, name in _ENCODINGS.items() if head.startswith(mark)), None)
