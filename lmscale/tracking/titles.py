"""Names under which trackers show runs: what a run is, and what tells it from its sweep's other runs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from lmscale.spec import RunSpec

__all__ = ["titles"]

#: Letters of the longest title; the runs of a wider comparison are told apart by their hash.
_LONGEST = 120
#: Short words for fields that are often shown.
_WORDS = {"peak_lr": "lr"}


def titles(specs: Iterable[RunSpec]) -> dict[str, str]:
    """A title for every run of a sweep, by its run id: "transformer-2x48-b16-s900-seed0-lr0.003".

    It is the run id without its hash, the peak learning rate where the runs have several, and every
    other field in which runs of the same id differ. Titles need not be distinct: lists, such as the
    steps of evaluations, are left out.
    """
    runs = list(specs)
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    fields = {run.run_id: dict(_fields(run.to_dict())) for run in runs}
    for run in runs:
        groups[_base(run)].append(fields[run.run_id])
    rates = len({run.optimizer.peak_lr for run in runs}) > 1
    told = {base: _differing(group) for base, group in groups.items()}
    found = {}
    for run in runs:
        base, own = _base(run), fields[run.run_id]
        names = dict.fromkeys((["peak_lr"] if rates else []) + told[base])
        words = [_WORDS.get(name, name) + _shown(own[name]) for name in names if name in own]
        found[run.run_id] = "-".join([base, *words])[:_LONGEST].rstrip("-.")
    return found


def _base(run: RunSpec) -> str:
    return run.run_id.removesuffix(f"-{run.hash}")


def _fields(values: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """The fields of a spec and of its parts that are a number, a word or none."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _fields(value)
        elif value is None or isinstance(value, (str, int, float)):
            yield name, value


def _differing(group: list[dict[str, Any]]) -> list[str]:
    names = dict.fromkeys(name for fields in group for name in fields)
    return [name for name in names if len({fields.get(name) for fields in group}) > 1]


def _shown(value: Any) -> str:
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^\w.+-]+", "_", text)
