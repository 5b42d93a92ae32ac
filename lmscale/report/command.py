"""The command that a store records, as one repeats it or adds runs to it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["repeat_command"]

#: Options that say where and how a store was trained, not what -> how many values follow.
_OF_EXECUTION = {
    "--out": 1,
    "--shard": 1,
    "--slots": 1,
    "--mesh": 1,
    "--distributed": 1,
    "--track": 1,
    "--checkpoint-seconds": 1,
    "--keep-every": 1,
    "--extend": 0,
}


def repeat_command(
    experiment: Mapping[str, Any], fields: Mapping[str, Sequence[str]] | None = None
) -> str:
    """The recorded `lmscale run`, for this experiment alone and any machine and folder.

    Args:
      experiment: experiment.json.
      fields: option -> its values, which replace those that were given.
    """
    name, scale = experiment.get("name", "EXPERIMENT"), experiment.get("scale")
    recorded = experiment.get("command") or f"lmscale run {name} --scale {scale}"
    words = shlex.split(recorded) if isinstance(recorded, str) else list(map(str, recorded))
    # Fields take as many values as there are before the next option.
    replaced = dict.fromkeys(fields or {}, len(words))
    kept = _without({**_OF_EXECUTION, **replaced}, words)
    start = kept.index("run") + 1 if "run" in kept else len(kept)
    end = start
    while end < len(kept) and not kept[end].startswith("-"):
        end += 1
    if end - start > 1 or kept[start:end] == ["all"]:
        # One command trained several experiments.
        kept[start:end] = [name]
    for option, values in (fields or {}).items():
        kept += [option, *values]
    return shlex.join(kept)


def _without(options: Mapping[str, int], words: Sequence[str]) -> list[str]:
    """The words of a command without these options and their values."""
    kept, values = [], 0
    for word in words:
        option = word.split("=", 1)[0]
        if option in options:
            values = 0 if "=" in word else options[option]
        elif values and not word.startswith("--"):
            values -= 1
        else:
            values = 0
            kept.append(word)
    return kept
