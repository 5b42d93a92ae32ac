"""From a solved fit to a `FitResult`: what the laws of the loss have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmscale.laws.parametric import ranges_of
from lmscale.laws.result import FitResult, expanded, intervals_of
from lmscale.laws.solve import MultiStart
from lmscale.laws.table import Runs

__all__ = ["LEAST_SQUARES", "finish", "solver_notes"]

LEAST_SQUARES = "half the sum of squared residuals of log loss"


def finish(
    law: str,
    runs: Runs,
    model: Callable[..., Any],
    parameters: dict[str, float],
    draws: Mapping[str, np.ndarray],
    *,
    reads: Sequence[str],
    level: float,
    fixed: Mapping[str, float] | None = None,
    drawn: int | None = None,
    free: int | None = None,
    how: str = "bootstrap over runs",
    warnings: Sequence[str] = (),
    **fields: Any,
) -> FitResult:
    """The result of a law whose `model(parameters, **columns)` is the loss.

    Args:
      reads: the columns that the model takes.
      draws: of the fitted parameters.
      fixed: parameters that were not fitted; they enter the draws, and have no interval.
      drawn: how many things were drawn from (runs, unless groups of them were).
      free: how many parameters were fitted (by default all that are not fixed).
      how: the way of drawing, in words.
      **fields: of `FitResult`.
    """
    inputs = {name: runs[name] for name in reads}
    predicted = model(parameters, **inputs)
    fixed = fixed or {}
    free = len(parameters) - len(fixed) if free is None else free
    share = expanded(level, max(drawn or len(runs), free + 2), free)
    n_draws = len(next(iter(draws.values()), ()))
    constant = {name: np.full(n_draws, value) for name, value in fixed.items() if n_draws}
    return FitResult(
        law=law,
        parameters=parameters,
        intervals=intervals_of(draws, share),
        interval_method=how if n_draws else "none",
        level=level,
        draw_level=share,
        n_used=len(runs),
        dropped=runs.dropped,
        warnings=(*runs.warnings, *warnings),
        residuals={
            "row": runs.row,
            **inputs,
            "observed": runs["loss"],
            "predicted": predicted,
            "residual": np.log(runs["loss"] / predicted),
        },
        ranges=ranges_of(runs),
        draws={**constant, **draws},
        model=model,
        **fields,
    )


def solver_notes(found: MultiStart, n_draws: int) -> list[str]:
    """What to tell the user about a solve."""
    notes = []
    if not found.converged:
        notes.append("the solver did not meet its tolerance at the best minimum")
    if found.draws_unconverged > 0.01 * max(1, n_draws):
        notes.append(f"{found.draws_unconverged} of {n_draws} draws did not converge")
    return notes
