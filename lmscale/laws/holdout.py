"""Validation: hold out the largest runs, predict them, and compare laws side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmscale.laws.result import FitError, FitResult
from lmscale.laws.table import Table, TableError

__all__ = ["Comparison", "HoldOut", "compare", "hold_out"]

#: Laws that predict a run's loss from its columns, each with what it needs.
PREDICTING = ("parametric", "over-training", "kaplan-nd", "power")


@dataclass(frozen=True)
class HoldOut:
    """How a law fitted to the smaller runs predicts the largest.

    `relative_error` is predicted over observed loss, less one; `extrapolation` is the largest
    held-out compute over the largest that was fitted.
    """

    law: str
    fit: FitResult
    row: np.ndarray
    flops: np.ndarray
    observed: np.ndarray
    predicted: np.ndarray
    relative_error: np.ndarray
    extrapolation: float

    @property
    def mean_error(self) -> float:
        """Mean absolute relative error."""
        return float(np.mean(np.abs(self.relative_error)))


@dataclass(frozen=True)
class Comparison:
    """One law's line in a side-by-side comparison; `problem` says why there are no numbers."""

    law: str
    fit: FitResult | None
    rms_log_residual: float | None
    held_out_error: float | None
    problem: str = ""


def hold_out(
    table: Any,
    law: str = "parametric",
    *,
    share: float = 0.2,
    columns: Any = None,
    **options: Any,
) -> HoldOut:
    """Fits `law` without the runs of most compute, then predicts those.

    Args:
      share: fraction of the runs to hold out; a budget is never split, so runs with the same
        compute (to 10%) stay together.
      **options: the law's own.
    """
    from lmscale.laws import fit

    if law not in PREDICTING:
        raise FitError(f"the law {law} predicts no single run; use {', '.join(PREDICTING)}")
    if not 0 < share < 1:
        raise FitError(f"share must be between 0 and 1, not {share!r}")
    table = Table.read(table, columns)
    needs = ("params", "tokens", "loss", "flops")
    runs = table.runs(*needs, least=6)
    order = np.argsort(runs["flops"], kind="stable")
    flops = runs["flops"][order]
    jumps = np.flatnonzero(np.diff(np.log(flops)) > np.log(1.1)) + 1
    if not len(jumps):
        raise TableError("all runs have one compute, so there is no larger budget to hold out")
    # The cut between budgets that comes nearest to the share asked for.
    cut = jumps[np.argmin(np.abs(jumps - (1 - share) * len(flops)))]
    small, large = runs.take(np.sort(order[:cut])), runs.take(order[cut:])
    kept = {name: small[name] for name in needs}
    fitted = fit(kept, law, **options)
    inputs = {name: large[name] for name in ("params", "tokens", "flops")}
    predicted = fitted.predict(**inputs)
    return HoldOut(
        law=law,
        fit=fitted,
        row=large.row,
        flops=large["flops"],
        observed=large["loss"],
        predicted=predicted,
        relative_error=predicted / large["loss"] - 1,
        extrapolation=float(flops[-1] / flops[cut - 1]),
    )


def compare(
    table: Any,
    laws: Sequence[str] | None = None,
    *,
    share: float = 0.2,
    columns: Any = None,
    bootstrap: int = 200,
) -> list[Comparison]:
    """Several laws on the same table: residuals, and error on the largest runs held out.

    A law that cannot be fitted to the table keeps its line, with the reason.
    """
    from lmscale.laws import fit

    table = Table.read(table, columns)
    lines = []
    for law in laws or ("parametric", "over-training", "kaplan-nd", "isoflop"):
        options = {"x": "flops", "offset": True} if law == "power" else {}
        try:
            fitted = fit(table, law, bootstrap=bootstrap, **options)
        except (TableError, FitError) as error:
            lines.append(Comparison(law, None, None, None, str(error)))
            continue
        rms, error, problem = None, None, ""
        if law in PREDICTING:
            rms = float(np.sqrt(np.mean(fitted.residuals["residual"] ** 2)))
            try:
                error = hold_out(table, law, share=share, bootstrap=0, **options).mean_error
            except (TableError, FitError) as reason:
                problem = str(reason)
        lines.append(Comparison(law, fitted, rms, error, problem))
    return lines
