"""Repeated data: what an epoch is worth (Muennighoff et al. 2023, 2305.16264).

With U_D unique tokens, each seen R_D = D/U_D - 1 more times, the data are worth

    D' = U_D + U_D R_D* (1 - exp(-R_D / R_D*))

fresh tokens. Parameters beyond U_N, the size whose optimal data are U_D, lose their worth in the same
way with R_N*. The loss is the parametric one, E + A/N'^alpha + B/D'^beta (eqs. 5-7).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from lmscale.laws.chinchilla import chinchilla_loss
from lmscale.laws.finish import finish, solver_notes
from lmscale.laws.parametric import HUBER_DELTA, fit_parametric
from lmscale.laws.resample import (
    Noise,
    draw_with,
    fit_noise,
    jacobian,
    log_inputs,
    refit,
)
from lmscale.laws.result import DRAWS, FitError, FitResult
from lmscale.laws.robust import residuals
from lmscale.laws.solve import MultiStart, multi_start, product_grid
from lmscale.laws.table import Runs, Table
from lmscale.laws.units import choose_units

__all__ = [
    "DETERMINED",
    "MUENNIGHOFF",
    "data_constrained_loss",
    "effective",
    "fed_params",
    "fit_data_constrained",
]

#: Published constants; the base law was fitted to runs of one epoch and then held fixed.
MUENNIGHOFF = {
    "E": math.exp(0.6254804),
    "A": math.exp(6.255414),
    "B": math.exp(7.3049974),
    "alpha": 0.3526596,
    "beta": 0.3526596,
    "R_D_star": 15.387756,
    "R_N_star": 5.309743,
}
#: Values of R_D* and R_N* outside of this are not determined: their search runs on to its bounds.
DETERMINED = (1e-3, 1e4)
_BASE = ("E", "A", "B", "alpha", "beta")


def effective(unique: Any, repeats: Any, decay: Any) -> Any:
    """U + U R* (1 - exp(-R/R*)): the fresh tokens that U tokens, repeated R more times, are worth."""
    return unique + unique * decay * -np.expm1(-repeats / decay)


def fed_params(parameters: Mapping[str, Any], unique_tokens: Any) -> Any:
    """U_N: the size whose compute-optimal data are `unique_tokens`."""
    _, a, b, alpha, beta = (parameters[name] for name in _BASE)
    g = (alpha * a / (beta * b)) ** (1 / (alpha + beta))
    # D_opt = G^-1 (C/6)^(alpha/(alpha+beta)) and N_opt = G (C/6)^(beta/(alpha+beta)).
    return g * (g * np.asarray(unique_tokens, float)) ** (beta / alpha)


def data_constrained_loss(
    parameters: Mapping[str, Any], *, params: Any, tokens: Any, unique_tokens: Any = None, **_: Any
) -> Any:
    """The loss after `tokens` tokens, of which `unique_tokens` are unique (by default all)."""
    unique = tokens if unique_tokens is None else np.minimum(unique_tokens, tokens)
    fed = np.minimum(params, fed_params(parameters, unique))
    n = effective(fed, params / fed - 1, parameters["R_N_star"])
    d = effective(unique, tokens / unique - 1, parameters["R_D_star"])
    return chinchilla_loss(parameters, params=n, tokens=d)


def _residual(theta: Any, data: Any) -> Any:
    """theta = (ln R_D*, ln R_N*); the base law is in the data."""
    r_d, r_n = jnp.exp(jnp.clip(theta, -20.0, 20.0))
    log_n = data["log_fed"] + jnp.log1p(-r_n * jnp.expm1(-data["r_n"] / r_n))
    log_d = data["log_unique"] + jnp.log1p(-r_d * jnp.expm1(-data["r_d"] / r_d))
    terms = jnp.stack(
        [data["a"] - data["alpha"] * log_n, data["b"] - data["beta"] * log_d, data["e"]]
    )
    top = jnp.max(terms, axis=0)
    return top + jnp.log(jnp.sum(jnp.exp(terms - top), axis=0)) - data["log_y"]


def _repeats(base: Mapping[str, Any], params: np.ndarray, unique: np.ndarray) -> dict[str, Any]:
    """What the residual reads from a base law: arrays [n], or [B, n] for draws [B, 1] of the law."""
    fed = np.minimum(params, fed_params(base, unique))
    ones = np.ones(np.shape(fed))
    return {
        "log_fed": np.log(fed),
        "r_n": params / fed - 1,
        "log_unique": np.log(unique) * ones,
        "a": np.log(base["A"]) * ones,
        "b": np.log(base["B"]) * ones,
        "e": np.log(base["E"]) * ones,
        "alpha": base["alpha"] * ones,
        "beta": base["beta"] * ones,
    }


def _base_law(
    base: Mapping[str, float] | str, once: Runs, bootstrap: int, level: float, seed: int
) -> tuple[Mapping[str, float], dict[str, np.ndarray], list[str]]:
    """The base law; its draws and warnings where it was fitted here to the runs of one epoch.

    With these draws, its error is part of the intervals of R_D* and R_N*.

    Raises:
      FitError: there is no base law whose loss falls with both N and D.
    """
    draws: dict[str, np.ndarray] = {}
    warnings: list[str] = []
    if isinstance(base, str):
        if base == "muennighoff":
            base = MUENNIGHOFF
        elif base == "fit":
            if len(once) < 6:
                raise FitError(
                    f"{len(once)} runs have one epoch, and the base law needs 6; give one by "
                    f"--base E=..,A=..,B=..,alpha=..,beta=.. or --base muennighoff"
                )
            first = fit_parametric(
                {name: once[name] for name in ("params", "tokens", "loss")},
                bootstrap=bootstrap,
                level=level,
                seed=seed,
            )
            base, draws = first.parameters, first.draws
            warnings = [f"base law: {text}" for text in first.warnings]
        else:
            raise FitError(f"base must be fit, muennighoff or a mapping, not {base!r}")
    missing = [name for name in _BASE if name not in base]
    if missing:
        raise FitError(f"base lacks {', '.join(missing)}; it needs {', '.join(_BASE)}")
    # U_N holds (alpha A / (beta B))^(1 / (alpha + beta)), and is no size for any other sign.
    wrong = [f"{name} = {base[name]:.3g}" for name in _BASE[1:] if not base[name] > 0]
    if wrong:
        raise FitError(
            f"the base law has {', '.join(wrong)}; its A, B, alpha and beta must be positive, so that "
            f"its loss falls with N and D"
        )
    return base, draws, warnings


def _noise_of(found: MultiStart, data: Mapping[str, Any], runs: Runs, resample: str) -> Noise:
    left = residuals(_residual, found.theta[None], data)[0]
    slopes, weights = jacobian(_residual, found.theta, data), runs.get("weight")
    units = choose_units(runs, left, slopes, resample=resample, weights=weights)
    inputs = log_inputs(runs, ("params", "tokens"))
    return fit_noise(left, slopes, units, inputs, weights=weights)


def _named(theta: np.ndarray) -> dict[str, Any]:
    values = np.exp(np.clip(theta, -20, 20))
    return {"R_D_star": values[..., 0], "R_N_star": values[..., 1]}


def _minima(found: MultiStart) -> list[dict[str, float]]:
    return [
        {**{k: float(v) for k, v in _named(t).items()}, "objective": float(value)}
        for t, value in zip(found.minima, found.minima_objectives, strict=True)
    ]


def _warn(
    parameters: dict[str, float], minima: list[dict[str, float]], warnings: list[str]
) -> None:
    for other in minima[1:]:
        if other["objective"] < 1.02 * minima[0]["objective"]:
            excess = other["objective"] / minima[0]["objective"] - 1
            warnings.append(
                f"another minimum, R_D* {other['R_D_star']:.3g} and R_N* {other['R_N_star']:.3g}, "
                f"is only {excess:.2%} worse: these runs do not tell them apart"
            )
    warnings.extend(
        f"{name} ran off to {parameters[name]:.3g}: it is not determined"
        for name in ("R_D_star", "R_N_star")
        if not DETERMINED[0] < parameters[name] < DETERMINED[1]
    )


def fit_data_constrained(
    table: Any,
    *,
    base: Mapping[str, float] | str = "fit",
    delta: float = HUBER_DELTA,
    starts: int = 12,
    bootstrap: int = DRAWS,
    resample: Literal["auto", "runs", "groups"] = "auto",
    level: float = 0.95,
    seed: int = 0,
    columns: Any = None,
) -> FitResult:
    """Fits R_D* and R_N* with the base law held fixed, as the paper does.

    Each draw has its own base law where that was fitted too.

    Args:
      table: columns params, tokens, unique_tokens, loss.
      base: E, A, B, alpha and beta; "fit" fits them first to the runs of at most one epoch,
        "muennighoff" takes the paper's.
      starts: values of each of R_D* and R_N*, from 0.5 to 500, from whose pairs the search starts.
      delta: Huber's delta on log loss.
      bootstrap: number of draws.
      resample: what a draw keeps together, see `lmscale.laws.resample`.

    Returns:
      the seven parameters; `details["minima"]` lists every local minimum found, since this
      objective has several (the paper's own point is not the lowest on its own runs).
    """
    table = Table.read(table, columns)
    runs = table.runs("params", "tokens", "unique_tokens", "loss", least=5, vary=("tokens",))
    unique = np.minimum(runs["unique_tokens"], runs["tokens"])
    epochs = runs["tokens"] / unique
    if epochs.max() < 1.5:
        raise FitError("no run repeats its data (tokens above 1.5 unique_tokens), so R_D* is free")
    base, base_draws, warnings = _base_law(base, runs.take(epochs < 1.01), bootstrap, level, seed)
    fixed = {name: float(base[name]) for name in _BASE}
    data = {**_repeats(fixed, runs["params"], unique), "r_d": epochs - 1}
    data["log_y"] = np.log(runs["loss"])
    axis = np.geomspace(0.5, 500, starts)
    grid = np.log(product_grid(axis, axis))
    weights = runs.get("weight")
    found = multi_start(_residual, grid, data, len(runs), delta=delta, weights=weights, direct=True)

    def refits(log_loss: np.ndarray) -> tuple[np.ndarray, int]:
        own = {"log_y": log_loss}
        if base_draws:
            drawn_base = {k: v[: len(log_loss), None] for k, v in base_draws.items()}
            with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
                own.update(_repeats(drawn_base, runs["params"], unique))
        again = refit(_residual, found, data, own, delta=delta, weights=weights)
        # A drawn base law that does not fall with N and D has no U_N, so no R* either. It counts as unconverged.
        known = np.all([np.isfinite(values).all(axis=1) for values in own.values()], axis=0)
        return np.where(known[:, None], again.theta, np.nan), again.unconverged

    drawn = None
    if bootstrap:
        noise = _noise_of(found, data, runs, resample)
        centre = data["log_y"] + residuals(_residual, found.theta[None], data)[0]
        drawn = draw_with(refits, centre, noise, n_draws=bootstrap, level=level, seed=seed)
    warnings.extend(solver_notes(found))
    parameters = {**fixed, **{k: float(v) for k, v in _named(found.theta).items()}}
    minima = _minima(found)
    _warn(parameters, minima, warnings)
    runs.columns["unique_tokens"] = unique
    return finish(
        "data-constrained",
        runs,
        data_constrained_loss,
        parameters,
        {**base_draws, **_named(drawn.theta)} if drawn else {},
        reads=("params", "tokens", "unique_tokens"),
        level=level,
        fixed={} if base_draws else fixed,
        drawn=drawn,
        warnings=warnings,
        objective=found.objective,
        objective_name=f"sum of Huber's function of the residuals of log loss, delta {delta:g}",
        converged=found.converged,
        details={"minima": minima, "n_starts": len(grid), "evaluations": found.evaluations},
    )
