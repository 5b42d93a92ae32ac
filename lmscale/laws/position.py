"""Loss by position in the context: L(T) = a + b T^-c (Kaplan et al. 2020, App. D.5, Fig. 20)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from lmscale.laws.power import fit_power
from lmscale.laws.result import DRAWS, FitError, FitResult, intervals_of
from lmscale.laws.table import Table

__all__ = ["fit_position", "position_law"]


def position_law(position: Any, a: Any, b: Any, c: Any) -> Any:
    """a + b T^-c, with T counted from 1."""
    return a + b * position**-c


def fit_position(
    table: Any,
    *,
    resample: Literal["auto", "runs", "positions"] = "auto",
    bootstrap: int = DRAWS,
    delta: float | None = None,
    level: float = 0.95,
    seed: int = 0,
    columns: Any = None,
) -> FitResult:
    """Fits L(T) = a + b T^-c to columns position (from 1) and loss, in log loss.

    The losses at the positions of one model come from the same weights and the same text, so they are
    not independent. An interval over positions says how well these points determine the curve through
    them. For another seed or another text it is too narrow: that takes several runs, which the columns
    seed or group identify.

    Args:
      resample: "runs" resamples whole runs (five or more), "positions" single points; "auto" takes
        runs where there are five.
    """
    table = Table.read(table, columns)
    if resample not in ("auto", "runs", "positions"):
        raise FitError(f"resample must be auto, runs or positions, not {resample!r}")
    fit = fit_power(
        table,
        x="position",
        offset=True,
        by=() if resample == "positions" else ("group", "seed"),
        resample="runs" if resample == "positions" else "auto",
        bootstrap=bootstrap,
        delta=delta,
        level=level,
        seed=seed,
    )
    drawn = fit.details.get("resampling", {}).get("unit")
    over_runs = resample != "positions" and drawn == "runs"
    if resample == "runs" and bootstrap and not over_runs:
        raise FitError(
            "resample runs needs five runs, told apart by a column seed or group; use positions"
        )

    def renamed(values: dict[str, Any]) -> dict[str, Any]:
        return {
            "a": values["L_inf"],
            "b": values["T_c"] ** values["alpha_T"],
            "c": values["alpha_T"],
        }

    draws = renamed(fit.draws) if fit.draws else {}
    what = "runs" if over_runs else "positions (not over seeds or texts)"
    how = f"bootstrap of residuals over {what}"
    return dataclasses.replace(
        fit,
        law="position",
        parameters=renamed(fit.parameters),
        draws=draws,
        intervals=intervals_of(draws, fit.draw_level or fit.level),
        interval_method=how if draws else "none",
        model=_predict,
    )


def _predict(parameters: Any, *, position: Any, **_: Any) -> Any:
    return position_law(position, parameters["a"], parameters["b"], parameters["c"])
