"""The one error that this package raises on purpose."""

from __future__ import annotations


class DataError(ValueError):
    """Text or a corpus that cannot be used; one line that says what is wrong and what is right."""
