"""Over-training: loss as a function of compute and of tokens per parameter M = D/N.

    L(C, M) = E + (a M^eta + b M^-eta) C^-eta          Gadre et al. 2024 (2403.08540), eq. 4

This is the parametric law with one exponent for both terms, alpha = beta = 2 eta. A change of M at
fixed compute changes the level of the reducible loss, but not its slope in C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from lmscale.laws.finish import finish, solver_notes
from lmscale.laws.resample import draw
from lmscale.laws.result import DRAWS, FitResult
from lmscale.laws.solve import multi_start
from lmscale.laws.table import Table

__all__ = ["fit_over_training", "over_training_loss"]


def over_training_loss(parameters: Mapping[str, Any], *, params: Any, tokens: Any, **_: Any) -> Any:
    """E + (a M^eta + b M^-eta) C^-eta with M = D/N and C = 6 N D."""
    e, a, b, eta = (parameters[name] for name in ("E", "a", "b", "eta"))
    ratio, flops = tokens / params, 6.0 * params * tokens
    return e + (a * ratio**eta + b * ratio**-eta) * flops**-eta


def as_parametric(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The same law as E + A/N^alpha + B/D^beta: C^-eta M^eta = 6^-eta N^(-2 eta)."""
    eta = parameters["eta"]
    scale = 6.0**-eta
    return {
        "E": parameters["E"],
        "A": parameters["a"] * scale,
        "B": parameters["b"] * scale,
        "alpha": 2 * eta,
        "beta": 2 * eta,
    }


def _residual(theta: Any, data: Any) -> Any:
    """theta = (ln E, p, q, eta) at the runs' geometric mean; residuals of the loss itself."""
    e, p, q, eta = theta
    return (
        jnp.exp(e) + jnp.exp(p - 2 * eta * data["u"]) + jnp.exp(q - 2 * eta * data["v"]) - data["y"]
    )


def _starts(loss: np.ndarray) -> np.ndarray:
    """36 starts of theta, relative to the lowest and to the median loss."""
    middle = float(np.median(loss))
    return np.array(
        [
            [math.log(loss.min() * e), math.log(middle * p), math.log(middle * q), eta]
            for e in (0.3, 0.7, 0.95)
            for p in (0.05, 0.3)
            for q in (0.05, 0.3)
            for eta in (0.05, 0.15, 0.3)
        ]
    )


def fit_over_training(
    table: Any,
    *,
    bootstrap: int = DRAWS,
    resample: Literal["auto", "runs", "groups"] = "auto",
    level: float = 0.95,
    seed: int = 0,
    columns: Any = None,
) -> FitResult:
    """Least squares on the loss, as the authors fit it (they use five runs).

    Args:
      bootstrap: number of draws.
      resample: what a draw keeps together, see `lmscale.laws.resample`.

    Returns:
      parameters E, a, b, eta. Below ten runs a bootstrap over runs says nothing (four parameters),
      so there are then no intervals.
    """
    table = Table.read(table, columns)
    runs = table.runs("params", "tokens", "loss", least=4, vary=("params", "tokens"))
    x, y, loss = np.log(runs["params"]), np.log(runs["tokens"]), runs["loss"]
    data = {"u": x - x.mean(), "v": y - y.mean(), "y": loss}
    starts = _starts(loss)
    warnings = []
    if len(runs) < 10 and bootstrap:
        warnings.append(f"{len(runs)} runs for four parameters: too few to bootstrap")
        bootstrap = 0
    weights = runs.get("weight")
    found = multi_start(_residual, starts, data, len(runs), weights=weights)
    drawn = None
    if bootstrap:
        drawn = draw(
            _residual,
            found,
            data,
            "y",
            runs,
            inputs=("params", "tokens"),
            n_draws=bootstrap,
            level=level,
            seed=seed,
            weights=weights,
            resample=resample,
            relative=True,
        )

    def named(theta: np.ndarray) -> dict[str, Any]:
        e, p, q, eta = np.moveaxis(theta, -1, 0)
        with np.errstate(over="ignore"):
            return {
                "E": np.exp(e),
                "a": np.exp(p + 2 * eta * x.mean()) * 6.0**eta,
                "b": np.exp(q + 2 * eta * y.mean()) * 6.0**eta,
                "eta": eta,
            }

    parameters = {name: float(value) for name, value in named(found.theta).items()}
    return finish(
        "over-training",
        runs,
        over_training_loss,
        parameters,
        named(drawn.theta) if drawn else {},
        reads=("params", "tokens"),
        level=level,
        drawn=drawn,
        warnings=[*warnings, *solver_notes(found)],
        objective=found.objective,
        objective_name="half the sum of squared residuals of the loss",
        converged=found.converged,
        exponents={runs.convention: {"N": 0.5, "D": 0.5}},
        details={"n_starts": len(starts), "evaluations": found.evaluations},
    )
