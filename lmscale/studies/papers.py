"""Published points that figures show beside the user's own (see the README.md in `reference`)."""

from __future__ import annotations

import functools
from importlib import resources

import pandas as pd

__all__ = ["points"]

#: Packages with a folder `reference` of such tables.
_PACKAGES = ("lmscale.studies", "lmscale.laws")


@functools.cache
def points(name: str) -> pd.DataFrame:
    """The table of a figure, e.g. "kaplan2020_fig7". Callers must not write to it."""
    for package in _PACKAGES:
        file = resources.files(package) / "reference" / f"{name}.csv"
        if file.is_file():
            with file.open() as lines:
                return pd.read_csv(lines)
    raise FileNotFoundError(f"there is no table of published points {name!r}")
