"""The error for a table that cannot be used."""

from __future__ import annotations

__all__ = ["TableError"]


class TableError(ValueError):
    """A table that cannot be fitted; one line that says what was wrong and what would be right."""
