"""Progress of a store that trains, as the first section of its page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from lmscale.report.section import Grid, Section
from lmscale.report.tables import table
from lmscale.studies.results import LOST, WAITING, Results
from lmscale.sweep.overview import Overview, RunState
from lmscale.wording import duration, family_name, power_of_ten, si, statuses

__all__ = ["WAITING", "is_finished", "live_line", "live_section"]

NAME = "live"
#: Most groups of runs that are listed.
_MOST_ROWS = 40


def is_finished(found: Overview) -> bool:
    """Whether no run of the store waits for training."""
    return not any(run.status in WAITING for run in found.runs)


def live_line(found: Overview) -> str:
    """How far a store is: '12 done, 2 running and 16 pending; 41% of the FLOPs, about 9 min left'.

    It says so where no process is known to train.
    """
    whole = found.whole
    left = f", about {duration(whole.left)} left" if whole.left is not None else ""
    states = statuses(run.status for run in found.runs)
    at_work = any(run.status == "running" and run.silent is None for run in found.runs)
    still = "" if at_work or is_finished(found) else "; nothing trains at the moment"
    return f"{states}; {math.floor(100 * whole.share)}% of the FLOPs{left}{still}"


def live_section(found: Overview, results: Results) -> Section:
    """What is done, what is under way with its latest loss, and what is to come."""
    under_way = [run for run in found.runs if run.status == "running"]
    silent = [run for run in under_way if run.silent is not None]
    goes_on = len(silent) < len(under_way)
    finding = f"{'Training goes on' if goes_on else 'Not finished'}: {live_line(found)}."
    warnings = [f"{run.run}: {run.doubt}." for run in silent]
    return Section(
        name=NAME,
        title="Progress",
        finding=finding,
        grids=[*_under_way(under_way, results), *_to_come(results)],
        warnings=warnings,
    )


def _under_way(runs: Sequence[RunState], results: Results) -> list[Grid]:
    sizes = results.table.set_index("run")["params_kaplan"] if len(results.table) else {}

    def latest(run: RunState) -> str:
        losses = [r["loss"] for r in results.metrics.get(run.run, ()) if r.get("loss") is not None]
        return f"{losses[-1]:.3f}" if losses else "–"

    return table(
        "Under way.",
        runs,
        {
            "run": lambda run: run.run,
            "N": lambda run: si(sizes[run.run]) if run.run in sizes else "–",
            "step": lambda run: f"{run.step:,} of {run.steps:,}",
            "training loss": latest,
            "left": lambda run: duration(run.left) if run.left is not None else "–",
        },
        text=("run",),
    )


def _to_come(results: Results) -> list[Grid]:
    """How many runs of each group are done and to come, for the groups that are not done."""
    rows = results.table
    if not len(rows):
        return []
    by = ["family", "budget" if "budget" in rows else "params_kaplan"]
    groups = [group for _, group in rows.groupby(by, dropna=False, sort=True)]
    groups = [group for group in groups if group["status"].isin(WAITING).any()]
    what = "budget" if "budget" in rows else "N"
    more = len(groups) - _MOST_ROWS
    caption = f"Not finished yet, by family and {what}" + (f"; {more} more." if more > 0 else ".")
    return table(
        caption,
        groups[:_MOST_ROWS],
        {
            "family": lambda group: family_name(group["family"].iloc[0]),
            what: lambda group: _value(group, by[1]),
            "runs": lambda group: str(len(group)),
            "done": lambda group: str((group["status"] == "done").sum()),
            "under way": lambda group: str((group["status"] == "running").sum()),
            "to come": lambda group: str(group["status"].isin(["pending", "preempted"]).sum()),
            "lost": lambda group: str(group["status"].isin(LOST).sum()),
        },
        text=("family",),
    )


def _value(group: pd.DataFrame, column: str) -> str:
    value: Any = group[column].iloc[0]
    return power_of_ten(value) if column == "budget" else si(value)
