"""Which runs start from the saved states of which others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from lmscale.spec import RunSpec


class HasSpec(Protocol):
    """A run to plan: anything with a specification, such as `lmscale.sweep.experiment.Run`."""

    @property
    def spec(self) -> RunSpec: ...


R = TypeVar("R", bound=HasSpec)


def branch_steps(runs: Sequence[HasSpec], every: int | None = None) -> dict[str, set[int]]:
    """Run id -> the steps whose states are kept for good.

    These are the steps at which others of the runs start from it, and the multiples of `every`, if it
    is given.
    """
    kept: dict[str, set[int]] = {}
    for run in runs:
        if every is not None:
            begin = run.spec.start.step if run.spec.start else 0
            steps = range(every, run.spec.steps, every)
            kept.setdefault(run.spec.run_id, set()).update(step for step in steps if step > begin)
        if run.spec.start:
            kept.setdefault(run.spec.start.run, set()).add(run.spec.start.step)
    return kept


def ancestors(run: R, by_id: Mapping[str, R]) -> list[R]:
    """The run that a run starts from, then the one that this one starts from, and so on."""
    found: list[R] = []
    while run.spec.start and run.spec.start.run in by_id:
        run = by_id[run.spec.start.run]
        found.append(run)
    return found
