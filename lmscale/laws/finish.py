"""From a solved fit to a `FitResult`, as all laws of the loss need it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmscale.laws.resample import Draws
from lmscale.laws.result import FitResult, intervals_of
from lmscale.laws.solve import MultiStart
from lmscale.laws.table import Runs

__all__ = ["LEAST_SQUARES", "finish", "ranges_of", "solver_notes"]

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
    drawn: Draws | None = None,
    details: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    **fields: Any,
) -> FitResult:
    """The result of a law whose `model(parameters, **columns)` is the loss.

    Args:
      reads: the columns that the model takes.
      draws: name -> draws of the fitted parameters.
      fixed: parameters that were not fitted. They are in the draws, but have no interval.
      drawn: how `draws` were made.
      **fields: other fields of `FitResult`.
    """
    inputs = {name: runs[name] for name in reads}
    predicted = model(parameters, **inputs)
    fixed = fixed or {}
    share = drawn.level if drawn else level
    n_draws = len(next(iter(draws.values()), ()))
    constant = {name: np.full(n_draws, value) for name, value in fixed.items() if n_draws}
    return FitResult(
        law=law,
        parameters=parameters,
        intervals=intervals_of(draws, share),
        interval_method=drawn.how if drawn else "none",
        level=level,
        draw_level=share,
        n_used=len(runs),
        dropped=runs.dropped,
        warnings=(*runs.warnings, *warnings, *(drawn.notes if drawn else ())),
        residuals={
            "row": runs.row,
            **inputs,
            "observed": runs["loss"],
            "predicted": predicted,
            "residual": np.log(runs["loss"] / predicted),
        },
        ranges=ranges_of(runs),
        draws={**constant, **draws},
        details={**(details or {}), **({"resampling": drawn.report()} if drawn else {})},
        model=model,
        **fields,
    )


def solver_notes(found: MultiStart) -> list[str]:
    """Warnings about a solve."""
    return [] if found.converged else ["the solver did not meet its tolerance at the best minimum"]


def ranges_of(runs: Runs) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each column; FLOPs are 6 N D where they were not given."""
    columns = dict(runs.columns)
    if "flops" not in columns and "params" in columns and "tokens" in columns:
        columns["flops"] = 6.0 * columns["params"] * columns["tokens"]
    return {name: (float(v.min()), float(v.max())) for name, v in columns.items()}
