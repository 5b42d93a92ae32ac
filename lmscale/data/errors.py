"""The errors that this package raises on purpose, each of one line."""

from __future__ import annotations


class DataError(ValueError):
    """Text or a corpus that cannot be used; one line that says what is wrong and what is right."""

    def __init__(self, message: str):
        # Names of files and fields come from the user, and may hold line ends or bytes that are no text.
        super().__init__("".join(c if c.isprintable() else ascii(c)[1:-1] for c in message))


class BadDocument(DataError):
    """A row or document that is no text. `reason` names the kind of fault, for counting."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


class BuildError(RuntimeError):
    """A build that failed although its input is right: a full disk, a process that was killed."""
