"""Loss by position in the context: L(T) = a + b T^-c (Kaplan et al. 2020, App. D.5, Fig. 20)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from lmscale.laws.power import fit_power
from lmscale.laws.result import FitResult, intervals_of
from lmscale.laws.table import Table

__all__ = ["fit_position", "position_law"]


def position_law(position: Any, a: Any, b: Any, c: Any) -> Any:
    """a + b T^-c, with T counted from 1."""
    return a + b * position**-c


def fit_position(
    table: Any,
    *,
    bootstrap: int = 1000,
    delta: float | None = None,
    level: float = 0.95,
    seed: int = 0,
    columns: Any = None,
) -> FitResult:
    """Fits L(T) = a + b T^-c to columns position (from 1) and loss, in log loss.

    Neighbouring positions share their text, so their losses are not independent; the bootstrap
    over positions tells how well the curve is drawn, not how another model would fare.
    """
    table = Table.read(table, columns)
    fit = fit_power(
        table,
        x="position",
        offset=True,
        bootstrap=bootstrap,
        delta=delta,
        level=level,
        seed=seed,
    )

    def renamed(values: dict[str, Any]) -> dict[str, Any]:
        return {
            "a": values["L_inf"],
            "b": values["T_c"] ** values["alpha_T"],
            "c": values["alpha_T"],
        }

    draws = renamed(fit.draws) if fit.draws else {}
    return _replace(fit, renamed(fit.parameters), draws)


def _replace(
    fit: FitResult, parameters: dict[str, float], draws: dict[str, np.ndarray]
) -> FitResult:
    return dataclasses.replace(
        fit,
        law="position",
        parameters=parameters,
        draws=draws,
        intervals=intervals_of(draws, fit.draw_level or fit.level),
        interval_method="bootstrap over positions" if draws else "none",
        model=_predict,
    )


def _predict(parameters: Any, *, position: Any) -> Any:
    return position_law(position, parameters["a"], parameters["b"], parameters["c"])
