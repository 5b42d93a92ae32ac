"""Which remote paths can be read and written: told before a backend fails with a traceback."""

from __future__ import annotations

import importlib.util
import re

#: Kinds of remote paths, and the packages of which each needs one.
PACKAGES = {"gs": ("gcsfs", "tensorflow"), "s3": ("s3fs", "tensorflow_io"), "az": ("adlfs",)}
_RIGHT = {
    "hf": "download it (pip install huggingface_hub; hf download ...) and give the local folder",
    **dict.fromkeys(("http", "https", "ftp"), "download it (curl -LO ...) and give the local file"),
}


def unreachable(path: object) -> str | None:
    """Why a path cannot be opened, in a line: an unknown kind, or a package that is missing.

    None for a path of this machine, and for a remote one that can be tried.
    """
    found = re.match(r"([A-Za-z0-9+.-]*)://(.*)", str(path), flags=re.DOTALL)
    if not found:
        return None
    scheme, rest = found.groups()
    if scheme not in PACKAGES:
        right = _RIGHT.get(scheme, "give a path of this machine")
        known = ", ".join(f"{name}://" for name in PACKAGES)
        return f"{path} is not read in place ({known} are): {right}"
    if not rest.strip("/"):
        return f"{path} names no folder: give {scheme}://BUCKET/NAME"
    packages = PACKAGES[scheme]
    if not any(importlib.util.find_spec(package) for package in packages):
        return f"{path} needs a package that is not installed: pip install {packages[0]}"
    return None
