"""Which fits a grid can support, by what the analyses need. It is reported before training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lmscale import flops
from lmscale.laws.envelope import LEAST_SIZES
from lmscale.laws.isoflop import LEAST_BUDGETS, MIN_POINTS
from lmscale.laws.parametric import LEAST_RUNS

if TYPE_CHECKING:
    from lmscale.sweep.experiment import Run

__all__ = ["unsupported"]

#: Analyses that need a minimum over the sizes of each budget, and an exponent through the minima.
_PROFILES = ("isoflop", "cooldown", "reconcile")


def unsupported(analyses: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """A line for each fit of an experiment that its grid is too small for.

    Args:
      analyses: that the experiment names.
      runs: that it would train.
    """
    lines = []
    if any(name in analyses for name in _PROFILES):
        lines += _profiles(runs)
    if "envelope" in analyses:
        sizes = {run.spec.model for run in runs}
        if len(sizes) < LEAST_SIZES:
            lines.append(
                f"{_count(len(sizes), 'size')} in all: no envelope of the training curves, which needs "
                f"{LEAST_SIZES}"
            )
    if "parametric" in analyses and len({run.spec for run in runs}) < LEAST_RUNS:
        lines.append(f"{_count(len(runs), 'run')}: no parametric fit, which needs {LEAST_RUNS}")
    return lines


def _profiles(runs: Sequence[Run]) -> list[str]:
    families: dict[str, dict[float, set[int]]] = {}
    for run in runs:
        if "budget" in run.labels:
            budgets = families.setdefault(str(run.labels.get("family", "")), {})
            size = flops.n_params(run.spec.model, "exact")
            budgets.setdefault(run.labels["budget"], set()).add(size)
    lines = []
    for family, budgets in families.items():
        of = f"{family}: " if len(families) > 1 else ""
        few = {budget: len(sizes) for budget, sizes in budgets.items() if len(sizes) < MIN_POINTS}
        by_size: dict[int, list[str]] = {}
        for budget, count in few.items():
            by_size.setdefault(count, []).append(f"{budget:.3g}")
        lines += [
            f"{of}{_count(count, 'size')} at {', '.join(names)} FLOPs: no IsoFLOP minimum there, which "
            f"needs {MIN_POINTS}"
            for count, names in by_size.items()
        ]
        usable = len(budgets) - len(few)
        if usable < LEAST_BUDGETS:
            enough = f" of {MIN_POINTS} sizes" if few else ""
            lines.append(
                f"{of}{_count(usable, 'budget')}{enough}: no exponent, which needs {LEAST_BUDGETS}"
            )
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'s' * (number != 1)}"
