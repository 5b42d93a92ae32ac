"""Remote paths: which can be read and written, told before a backend fails with a traceback.

Other processes write to the same stores, so nothing here may remember what a folder held: the packages
that reach object stores keep every listing by default, and would neither show a claim of another process
nor that one has been released.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from typing import Any

from etils import epath
from etils.epath.backend import fsspec_backend

#: Kinds of remote paths, and the packages of which each needs one.
PACKAGES = {
    "gs": ("gcsfs", "tensorflow"),
    "s3": ("s3fs", "tensorflow_io"),
    "az": ("adlfs",),
    "hf": ("huggingface_hub",),
}
#: The kinds that hold text to be read and nothing else of ours.
_TEXT_ALONE = ("hf",)
#: The kinds that runs can be trained on: to the others Orbax writes no checkpoints.
TRAINED_ON = ("gs", "s3")
#: The names under which fsspec knows the packages of its kind.
_NAMES = {"gcsfs": ("gs", "gcs"), "s3fs": ("s3", "s3a"), "adlfs": ("az", "abfs", "abfss")}
#: Under which names the packages give the checksum of an object: Google's, Amazon's.
_CHECKSUMS = ("crc32c", "ETag")
#: Packages through which stores are reached; an error of theirs is of the store, or of the right to use it.
_CLIENTS = ("adlfs", "aiobotocore", "aiohttp", "azure", "botocore", "gcsfs", "s3fs")
_CLIENTS_OF_GOOGLE = ("google.api_core", "google.auth", "google.cloud")
_RIGHT = {
    "hf": "download it (pip install huggingface_hub; hf download ...) and give the local folder",
    **dict.fromkeys(("http", "https", "ftp"), "download it (curl -LO ...) and give the local file"),
}


def is_remote(path: object) -> bool:
    """Whether a path is one of an object store."""
    return "://" in str(path)


def unreachable(path: object, *, text: bool = False) -> str | None:
    """Why a path cannot be opened, in a line: an unknown kind, or a package that is missing.

    None for a path of this machine, and for a remote one that can be tried.

    Args:
      path: of a store, a corpus or a table.
      text: it is of text to be read, which more kinds hold.
    """
    found = re.match(r"([A-Za-z0-9+.-]*)://(.*)", str(path), flags=re.DOTALL)
    if not found:
        return None
    scheme, rest = found.groups()
    kinds = [name for name in PACKAGES if text or name not in _TEXT_ALONE]
    if scheme not in kinds:
        right = _RIGHT.get(scheme, "give a path of this machine")
        known = ", ".join(f"{name}://" for name in kinds)
        return f"{path} is not read in place ({known} are): {right}"
    if not rest.strip("/"):
        return f"{path} names no folder: give {scheme}://BUCKET/NAME"
    packages = PACKAGES[scheme]
    if not any(importlib.util.find_spec(package) for package in packages):
        return f"{path} needs a package that is not installed: pip install {packages[0]}"
    return None


def entries(folder: epath.Path) -> list[epath.Path]:
    """What a folder holds, by name.

    Object stores have no folders: their consoles make an empty object in place of one, which is listed with
    what the folder holds: as the folder itself, through which a search has no end, or, by gcsfs, as something
    of the folder's name inside of it.
    """
    return sorted(
        path
        for path in folder.iterdir()
        if path != folder
        and not (is_remote(path) and path.name == folder.name and not path.exists())
    )


def no_place_to_train(path: object) -> str | None:
    """Why no run can be trained into a path, in a line; None where one can."""
    scheme = str(path).partition("://")[0]
    if not is_remote(path) or scheme in TRAINED_ON:
        return None
    known = " or ".join(f"{name}://" for name in TRAINED_ON)
    return f"checkpoints cannot be written to {scheme}://: give a folder of this machine, {known}"


def store_error(error: BaseException) -> str | None:
    """What an error of an object store says, in a line; None for any other error.

    Their packages raise errors of their own types, which are no OSError: a bucket that may not be read,
    credentials that are missing, an endpoint that does not answer.
    """
    module = type(error).__module__
    if module.partition(".")[0] not in _CLIENTS and not module.startswith(_CLIENTS_OF_GOOGLE):
        return None
    return f"the object store cannot be used: {type(error).__name__}: {str(error)[:300]}"


def checksum(path: object) -> str | None:
    """What an object store says of the content of an object, as "crc32c:..."; None where it says nothing."""
    if (files := _filesystem(path)) is None:
        return None
    known = files.info(str(path))
    found = ((kind, known.get(kind)) for kind in _CHECKSUMS)
    return next((f"{kind}:{value}" for kind, value in found if value), None)


def read_object(path: epath.PathLike) -> bytes:
    """The content of an object, in one request; another process may replace the object meanwhile.

    What is opened is asked for its size first and read later: by then it can be another object, of which
    gcsfs would give the first bytes, and s3fs an error.

    Raises:
      FileNotFoundError: there is none.
    """
    if (files := _filesystem(path)) is None:
        return epath.Path(path).read_bytes()
    return files.cat_file(str(path))


def _filesystem(path: object) -> Any:
    """The file system of fsspec through which a path is written; None without the package that it needs."""
    scheme = str(path).partition("://")[0]
    if not any(scheme in _NAMES[name] and importlib.util.find_spec(name) for name in _NAMES):
        return None
    return fsspec_backend.fs(str(path))


def _prepare_clients() -> None:
    """Makes fsspec ask the store for every listing, and lets us tell of errors, which gcsfs also logs."""
    installed = [name for name in _NAMES if importlib.util.find_spec(name)]
    if not installed:
        return
    from fsspec.config import conf

    for name in (name for package in installed for name in _NAMES[package]):
        conf.setdefault(name, {})["use_listings_cache"] = False
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


_prepare_clients()
