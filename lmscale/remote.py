"""Which remote folders can be read and written: told before a backend fails with a traceback."""

from __future__ import annotations

import importlib.util

#: Kinds of remote paths, and the packages of which each needs one.
_PACKAGES = {"gs": ("gcsfs", "tensorflow"), "s3": ("s3fs", "tensorflow_io")}


def unreachable(path: object) -> str | None:
    """Why a path cannot be opened, in a line: an unknown kind, or a package that is missing.

    None for a path of this machine, and for a remote one that can be tried.
    """
    scheme, remote, rest = str(path).partition("://")
    if not remote:
        return None
    kinds = " and ".join(f"{name}://" for name in _PACKAGES)
    if scheme not in _PACKAGES:
        return f"{path} cannot be opened: give a path of this machine, or one of {kinds}"
    if not rest.strip("/"):
        return f"{path} names no folder: give {scheme}://BUCKET/NAME"
    packages = _PACKAGES[scheme]
    if not any(importlib.util.find_spec(package) for package in packages):
        return f"{path} needs a package that is not installed: pip install {packages[0]}"
    return None
