"""Paths that are not local: which stores are read in place, and what is missing for them."""

from __future__ import annotations

import re

from lmscale.data.errors import DataError

#: Stores that are read in place, with the package that each needs.
PACKAGES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs"}
_RIGHT = {
    "hf": "download it (pip install huggingface_hub; hf download ...) and give the local folder",
    **dict.fromkeys(("http", "https", "ftp"), "download it (curl -LO ...) and give the local file"),
}


def check_scheme(name: str) -> None:
    """Raises `DataError` when a path names a store that is not read in place."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", name)
    if found and found[1] not in PACKAGES:
        right = _RIGHT.get(found[1], "give a local path")
        known = ", ".join(f"{scheme}://" for scheme in PACKAGES)
        raise DataError(f"{name} is not read in place ({known} are): {right}")


def remote_error(name: object, error: Exception) -> DataError:
    """The error for a remote path that gave an error of any kind: each store's package has its own."""
    scheme = str(name).partition("://")[0]
    if isinstance(error, ImportError):
        package = PACKAGES.get(scheme, "for it")
        return DataError(
            f"{name} needs the package {package} to be read: pip install {package}, or download it "
            "and give the local path"
        )
    return DataError(f"{name} cannot be read: {type(error).__name__}: {str(error)[:300]}")
