"""Which cells of a declared grid are not trained, and why. It is reported before training begins.

`Experiment.runs` calls `drop` for each cell that it leaves out; `declared_runs` collects them.
"""

from __future__ import annotations

import contextvars
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lmscale.data import Corpus
from lmscale.sweep.changed_recipe import with_recipe
from lmscale.sweep.documents import with_masked_documents
from lmscale.sweep.fields import ExperimentError, most_runs
from lmscale.sweep.own_runs import checked_runs
from lmscale.wording import first_few

if TYPE_CHECKING:
    from lmscale.sweep.experiment import Experiment, Run

__all__ = ["declared_runs", "drop"]

_recorded: contextvars.ContextVar[list[_Dropped] | None] = contextvars.ContextVar(
    "dropped", default=None
)
#: How many cells a message names.
_NAMED = 4


@dataclass(frozen=True)
class _Dropped:
    group: str
    cell: str
    why: str
    kept: int


def drop(group: str, cell: str, why: str, kept: int = 0) -> None:
    """Records that a cell of the grid is left out.

    Args:
      group: the part of the declaration that the cell belongs to, such as "budget 1e9".
      cell: its name, such as "transformer-2x8".
      why: the reason, a noun: "fewer than 50 updates".
      kept: how many cells of the group are trained, if the caller knows.
    """
    found = _recorded.get()
    if found is not None:
        found.append(_Dropped(group, cell, why, kept))


def declared_runs(name: str, experiment: Experiment, corpus: Corpus) -> tuple[list[Run], list[str]]:
    """An experiment's runs, and a line for each part of its grid that was dropped.

    Raises:
      ExperimentError: when nothing is left to train, there are too many runs, or a user's experiment
        fails, or its recipe cannot be changed so.
      SpecError: when an architecture cannot do what the fields ask of it.
    """
    token = _recorded.set([])
    try:
        runs, twice = checked_runs(name, experiment.runs, corpus)
        if experiment.recipe:
            runs = with_recipe(runs, experiment.recipe)
        if experiment.mask_documents:
            runs = with_masked_documents(runs, corpus.eod_id)
        dropped = _recorded.get() or []
    finally:
        _recorded.reset(token)
    lines = _lines(dropped) + _lost_budgets(experiment, runs, dropped) + twice
    if not runs:
        why = f": {'; '.join(lines)}" if lines else ""
        raise ExperimentError(f"{name} declares no runs: give it other fields{why}")
    most_runs(len(runs))
    return runs, lines


def _lines(dropped: list[_Dropped]) -> list[str]:
    groups: dict[str, list[_Dropped]] = {}
    for one in dropped:
        groups.setdefault(one.group, []).append(one)
    lines = []
    for group, members in groups.items():
        names = list(dict.fromkeys(one.cell for one in members))
        kept = max(one.kept for one in members)
        whys = "; ".join(dict.fromkeys(one.why for one in members))
        if not kept:
            lines.append(f"{group} is dropped: {whys}")
            continue
        which = first_few(names, _NAMED)
        lines.append(
            f"{group}: {len(names)} of {len(names) + kept} cells dropped ({which}): {whys}"
        )
    return lines


def _lost_budgets(experiment: Experiment, runs: list[Run], dropped: list[_Dropped]) -> list[str]:
    """Declared budgets without a run for which `drop` was not called."""
    known = {one.group for one in dropped}
    trained = {run.labels.get("budget") for run in runs}
    return [
        f"{group} is dropped: no size of the ladder suits it"
        for budget in getattr(experiment, "budgets", ())
        if budget not in trained and (group := budget_name(budget)) not in known
    ]


def budget_name(budget: float) -> str:
    """The name of a budget, as `group` of `drop`."""
    return f"budget {budget:.6g}"
