"""The code of a user's files that a store's runs were declared with, by digest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lmscale.user_files import code_digests
from lmscale.wording import listed

__all__ = ["changed_code", "code_history", "code_in_words"]


def code_history(recorded: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """File name -> digests of its content at each declaration that changed it, oldest first.

    Args:
      recorded: the experiment.json that is there; those of earlier versions have no digests.
    """
    history = {name: list(digests) for name, digests in _code(recorded).items()}
    for name, digest in code_digests().items():
        mine = history.setdefault(name, [])
        if digest not in mine[-1:]:
            mine.append(digest)
    return history


def changed_code(recorded: Mapping[str, Any] | None) -> str | None:
    """A line where the user's files are others than those the store was declared with; None elsewhere."""
    known = _code(recorded)
    changed = [
        name for name, digest in code_digests().items() if known.get(name, [digest])[-1] != digest
    ]
    if not changed:
        return None
    has = "has" if len(changed) == 1 else "have"
    return (
        f"{listed(changed)} {has} changed since these runs were declared: what is done stays as the earlier "
        "code trained it, and the rest is trained by the new one; give another --out to keep them apart"
    )


def code_in_words(recorded: Mapping[str, Any]) -> str:
    """The files of an experiment.json with their digests; empty where it has none."""
    return "; ".join(f"{name} {', then '.join(found)}" for name, found in _code(recorded).items())


def _code(recorded: Mapping[str, Any] | None) -> dict[str, list[str]]:
    """The digests in an experiment.json, without what a foreign one may hold in their place."""
    found = (recorded or {}).get("code", {})
    if not isinstance(found, Mapping):
        return {}
    return {
        name: digests
        for name, digests in found.items()
        if isinstance(digests, list) and digests and all(isinstance(one, str) for one in digests)
    }
