"""Remote paths of text and corpora: errors in one line."""

from __future__ import annotations

from lmscale.data.errors import DataError
from lmscale.remote import PACKAGES, unreachable


def check_scheme(name: str, *, text: bool = False) -> None:
    """Raises `DataError` when a path cannot be opened; see `lmscale.remote.unreachable`."""
    if why := unreachable(name, text=text):
        raise DataError(why)


def remote_error(name: object, error: Exception) -> DataError:
    """Our error for any error of a remote path. Every store's package raises errors of its own types."""
    scheme = str(name).partition("://")[0]
    if isinstance(error, ImportError):
        package = PACKAGES.get(scheme, ("for it",))[0]
        return DataError(
            f"{name} needs the package {package} to be read: pip install {package}, or download it "
            "and give the local path"
        )
    return DataError(f"{name} cannot be read: {type(error).__name__}: {str(error)[:300]}")
