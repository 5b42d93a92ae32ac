"""Fits the parametric loss surface: Approach 3.

    L(N, D) = E + A / N^alpha + B / D^beta          Hoffmann et al. 2022, eq. 2 and Approach 3

fitted, with a = ln A, b = ln B, e = ln E, by the sum over runs of

    huber_delta( LSE(a - alpha ln N, b - beta ln D, e) - ln L ),     delta = 1e-3     (eq. 3)

from a grid of 4500 starts. Besiroglu et al. 2024 (2404.10102) showed that an averaged objective and an
early stop change the answer. `lmscale.laws.chinchilla` has the surface and its optimum at a budget.

The second method, variable projection, minimises squared relative errors over alpha and beta only
(Czech 2026, 2603.22339; `lmscale.laws.projection`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from lmscale.laws.chinchilla import chinchilla_loss, frontier_and_contours
from lmscale.laws.finish import ranges_of
from lmscale.laws.paired import Redrawn
from lmscale.laws.projection import fit_by_projection
from lmscale.laws.resample import (
    Draws,
    draw_shared,
    draw_with,
    fit_noise,
    jacobian,
    log_inputs,
    refit,
    seed_noise,
)
from lmscale.laws.result import DRAWS, FitError, FitResult, intervals_of
from lmscale.laws.robust import Influence, Tukey, influence, refit_tukey, residuals
from lmscale.laws.solve import MultiStart, multi_start, product_grid
from lmscale.laws.surface import NAMES, named_parameters, surface_data, surface_residual
from lmscale.laws.table import Runs, Table
from lmscale.laws.units import choose_units

__all__ = ["HUBER_DELTA", "LEAST_RUNS", "fit_parametric", "hoffmann_starts", "relative_axes"]

HUBER_DELTA = 1e-3
#: Fewest runs that the law is fitted to.
LEAST_RUNS = 6


def hoffmann_starts() -> np.ndarray:
    """The 4500 starts (a, b, e, alpha, beta) of Hoffmann et al. 2022, in raw parameters and tokens."""
    exponents, constants = (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
    return product_grid(constants, constants, (-1.0, -0.5, 0.0, 0.5, 1.0), exponents, exponents)


def fit_parametric(
    table: Any,
    *,
    method: Literal["huber", "varpro"] = "huber",
    starts: Literal["relative", "hoffmann", "coarse"] | np.ndarray = "relative",
    robust: Literal["huber", "tukey", "none"] = "huber",
    delta: float = HUBER_DELTA,
    bootstrap: int = DRAWS,
    resample: Literal["auto", "runs", "groups", "seeds"] = "auto",
    redrawn: Redrawn | None = None,
    level: float = 0.95,
    seed: int = 0,
    columns: Any = None,
) -> FitResult:
    """Fits L(N, D) = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, Approach 3).

    Args:
      method: "huber" is the published objective; "varpro" squared relative errors by variable
        projection.
      starts: "relative" is a grid of 4500 starts whose terms are set at the runs' geometric mean,
        so that the answer cannot depend on the units of N and D; "hoffmann" the published grid;
        "coarse" 288 relative ones; or an array of (a, b, e, alpha, beta).
      robust: the loss of method huber. "huber" is the published one; "tukey" the biweight, in
        which outliers have no weight at all (`lmscale.laws.robust`); "none" least squares.
      delta: Huber's delta on log loss.
      bootstrap: number of draws.
      resample: what a draw keeps together. "auto" decides by the residuals whether rows or groups
        share noise (`lmscale.laws.resample`), and takes seeds where every (params, tokens) was run
        more than once; "runs" takes rows, "groups" the groups of a label. Seeds tell of noise
        alone; runs and groups also of misfit.
      redrawn: noise that another fit of the same rows has as well; then there are as many draws.

    Returns:
      parameters E, A, B, alpha, beta; exponents; `details` with the frontier, its band, contours
      of equal loss, the local minima, how many starts reached the best, and `influence`.
    """
    table = Table.read(table, columns)
    runs = table.runs("params", "tokens", "loss", least=LEAST_RUNS, vary=("params", "tokens"))
    _check(method, robust, delta, resample)
    delta = math.inf if robust == "none" else delta
    warnings = list(runs.warnings)
    _warn_of_a_line(runs, warnings)
    data = surface_data(runs)
    fitted = (
        _by_huber(runs, data, starts, delta, warnings)
        if method == "huber"
        else _by_projection(runs, data)
    )
    moved, biweight = _influence(
        runs, data, fitted.theta, delta if method == "huber" else math.inf, seed
    )
    if robust == "tukey":
        fitted = _by_tukey(runs, data, biweight, fitted.details)
    elif moved.warning:
        warnings.append(moved.warning)
    drawn = None
    if bootstrap or redrawn is not None:
        drawn = _draw(
            runs,
            fitted,
            data,
            n_draws=bootstrap,
            level=level,
            seed=seed,
            resample=resample,
            redrawn=redrawn,
        )
        warnings.extend(drawn.notes)
    details = {"method": method, **fitted.details, "influence": moved}
    return _result(
        runs, fitted, drawn, level, warnings, _objective_name(method, robust, delta), details
    )


class _Fitted(NamedTuple):
    """A fit by one of the methods.

    `refits` maps log losses [B, n] of the draws to their fits [B, 5], and how many of these did not
    converge.
    """

    theta: np.ndarray
    objective: float
    converged: bool
    refits: Callable[[np.ndarray], tuple[np.ndarray, int]]
    details: dict[str, Any]


def _result(
    runs: Runs,
    fitted: _Fitted,
    drawn: Draws | None,
    level: float,
    warnings: list[str],
    objective_name: str,
    details: dict[str, Any],
) -> FitResult:
    parameters = {
        name: float(value) for name, value in named_parameters(fitted.theta, runs).items()
    }
    draws = named_parameters(drawn.theta, runs) if drawn else {}
    _warn_of_degeneracy(parameters, runs, warnings)
    share_of_draws = drawn.level if drawn else level
    exponents, exponent_intervals = _exponents(parameters, draws, share_of_draws, runs.convention)
    predicted = chinchilla_loss(parameters, params=runs["params"], tokens=runs["tokens"])
    result = FitResult(
        law="parametric",
        parameters=parameters,
        intervals=intervals_of(draws, share_of_draws),
        draw_level=share_of_draws,
        interval_method=drawn.how if drawn else "none",
        level=level,
        objective=float(fitted.objective),
        objective_name=objective_name,
        converged=bool(fitted.converged),
        n_used=len(runs),
        dropped=runs.dropped,
        exponents=exponents,
        exponent_intervals=exponent_intervals,
        warnings=tuple(warnings),
        residuals={
            "row": runs.row,
            "params": runs["params"],
            "tokens": runs["tokens"],
            "observed": runs["loss"],
            "predicted": predicted,
            "residual": np.log(runs["loss"] / predicted),
        },
        ranges=ranges_of(runs),
        draws=draws,
        details={**details, **({"resampling": drawn.report()} if drawn else {})},
        model=chinchilla_loss,
    )
    return result.with_details(**frontier_and_contours(result)) if exponents else result


def _influence(
    runs: Runs, data: dict[str, np.ndarray], theta: np.ndarray, delta: float, seed: int
) -> tuple[Influence, Tukey]:
    return influence(
        surface_residual,
        theta,
        data,
        runs.row,
        "the exponent a",
        lambda t: t[:, 4] / (t[:, 3] + t[:, 4]),
        delta=delta,
        weights=runs.get("weight"),
        seed=seed,
    )


def _check(method: str, robust: str, delta: float, resample: str) -> None:
    if method not in ("huber", "varpro"):
        raise FitError(f"method must be huber or varpro, not {method!r}")
    if robust not in ("huber", "tukey", "none"):
        raise FitError(f"robust must be huber, tukey or none, not {robust!r}")
    if method == "varpro" and robust == "tukey":
        raise FitError("method varpro is least squares; robust tukey needs method huber")
    if not delta > 0:
        raise FitError(f"delta must be positive, not {delta!r}")
    if resample not in ("auto", "runs", "groups", "seeds"):
        raise FitError(f"resample must be auto, runs, groups or seeds, not {resample!r}")


def _objective_name(method: str, robust: str, delta: float) -> str:
    if method == "varpro":
        return "half the sum of squared relative residuals of the loss"
    if robust == "tukey":
        return "half the sum of squared residuals of log loss, with Tukey's weights"
    if robust == "none":
        return "half the sum of squared residuals of log loss"
    return f"sum of Huber's function of the residuals of log loss, delta {delta:g}"


def _exponents(
    parameters: dict[str, float], draws: dict[str, np.ndarray], share: float, convention: str
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, tuple[float, float]]]]:
    """a = beta/(alpha+beta) and b = alpha/(alpha+beta), with intervals where there are draws."""
    alpha, beta = parameters["alpha"], parameters["beta"]
    if not (alpha > 0 and beta > 0):
        return {}, {}
    exponents = {convention: {"N": beta / (alpha + beta), "D": alpha / (alpha + beta)}}
    if not draws:
        return exponents, {}
    a = draws["beta"] / (draws["alpha"] + draws["beta"])
    return exponents, {convention: intervals_of({"N": a, "D": 1 - a}, share)}


def _draw(
    runs: Runs,
    fitted: _Fitted,
    data: dict[str, np.ndarray],
    *,
    n_draws: int,
    level: float,
    seed: int,
    resample: str,
    redrawn: Redrawn | None,
) -> Draws:
    cells = np.array(
        [f"{n:.9g} {d:.9g}" for n, d in zip(runs["params"], runs["tokens"], strict=True)]
    )
    repeated = np.unique(cells, return_counts=True)[1].min() > 1
    if resample == "seeds" and not repeated:
        raise FitError(
            "resample seeds needs every configuration (params, tokens) run at least twice"
        )
    inputs = log_inputs(runs, ("params", "tokens"))
    if resample == "seeds" or (resample == "auto" and repeated):
        centre, noise = seed_noise(data["log_y"], cells, inputs)
    else:
        left = residuals(surface_residual, fitted.theta[None], data)[0]
        slopes = jacobian(surface_residual, fitted.theta, data)
        units = choose_units(runs, left, slopes, resample=resample, weights=runs.get("weight"))
        noise = fit_noise(left, slopes, units, inputs, weights=runs.get("weight"))
        centre = data["log_y"] + left
    if redrawn is not None:
        shared = redrawn.deviation[:, runs.row - 1] / runs["loss"]
        return draw_shared(fitted.refits, centre, noise, shared, level=level, seed=seed)
    return draw_with(fitted.refits, centre, noise, n_draws=n_draws, level=level, seed=seed)


def _warn_of_a_line(runs: Runs, warnings: list[str]) -> None:
    """A constant ratio of tokens to parameters cannot separate the two terms."""
    x, y = np.log(runs["params"]), np.log(runs["tokens"])
    ratio = np.ptp(y - x)
    if ratio < 0.5:
        warnings.append(
            f"tokens per parameter span only a factor of {math.exp(ratio):.2g}: the size and the "
            f"data terms can hardly be told apart"
        )


def _warn_of_degeneracy(parameters: dict[str, float], runs: Runs, warnings: list[str]) -> None:
    e, a, b, alpha, beta = (parameters[name] for name in NAMES)
    if e < 1e-3 * runs["loss"].min():
        warnings.append("E went to zero: these runs show no irreducible loss")
    for name, exponent in (("alpha", alpha), ("beta", beta)):
        if exponent <= 0:
            warnings.append(f"{name} is {exponent:.3g}, not positive: no optimum follows")
    for name, share in (
        ("A/N^alpha", a * runs["params"] ** -alpha),
        ("B/D^beta", b * runs["tokens"] ** -beta),
    ):
        if np.max(share / runs["loss"]) < 1e-3:
            warnings.append(f"the term {name} is below 0.1% of every loss: it is not determined")


# --- The methods ------------------------------------------------------------------------------


def relative_axes(level: float, coarse: bool) -> list[tuple[float, ...]]:
    """Values of (a, b, e, alpha, beta) at the runs' geometric mean, from the median log loss."""
    if coarse:
        terms = tuple(level + x for x in (-3.0, -1.5, -0.5))
        exponents = (0.1, 0.3, 0.8, 1.6)
        return [terms, terms, (level - 1.5, level - 0.3), exponents, exponents]
    terms = tuple(level + x for x in (-6.0, -4.0, -2.5, -1.5, -0.7, -0.1))
    offsets = tuple(level + x for x in (-3.0, -1.5, -0.7, -0.3, -0.05))
    return [terms, terms, offsets, *[(0.0, 0.5, 1.0, 1.5, 2.0)] * 2]


def _by_huber(
    runs: Runs, data: dict[str, np.ndarray], starts: Any, delta: float, warnings: list[str]
) -> _Fitted:
    x, y, log_loss = np.log(runs["params"]), np.log(runs["tokens"]), data["log_y"]
    weights = runs.get("weight")
    #: The axes of a grid whose edge is to be checked.
    axes: Sequence[Sequence[float] | np.ndarray] | None = None
    if isinstance(starts, str) and starts in ("relative", "coarse"):
        axes = relative_axes(float(np.median(log_loss)), starts == "coarse")
        grid = product_grid(*axes)
        axes = None if starts == "coarse" else axes
    else:
        if isinstance(starts, str) and starts != "hoffmann":
            raise FitError(f"starts must be relative, hoffmann, coarse or an array, not {starts!r}")
        grid = hoffmann_starts() if isinstance(starts, str) else np.array(starts, float)
        if isinstance(starts, str):
            axes = [np.unique(column) for column in grid.T]
        grid = grid.copy()
        grid[:, 0] -= grid[:, 3] * x.mean()
        grid[:, 1] -= grid[:, 4] * y.mean()
    found = multi_start(surface_residual, grid, data, len(runs), delta=delta, weights=weights)
    if not found.converged:
        warnings.append("the solver did not meet its tolerance at the best minimum")
    if axes is not None:
        _warn_of_edge(grid, found, warnings)
    minima = [
        {
            **{k: float(v) for k, v in named_parameters(theta, runs).items()},
            "objective": float(value),
        }
        for theta, value in zip(found.minima[:8], found.minima_objectives[:8], strict=True)
    ]
    _warn_of_rivals(minima, warnings)
    details = {
        "minima": minima,
        "n_starts": len(grid),
        "n_starts_at_best": found.n_best,
        "evaluations": found.evaluations,
    }

    def refits(log_loss: np.ndarray) -> tuple[np.ndarray, int]:
        own = {"log_y": log_loss}
        again = refit(surface_residual, found, data, own, delta=delta, weights=weights)
        return again.theta, again.unconverged

    return _Fitted(found.theta, found.objective, found.converged, refits, details)


def _by_tukey(
    runs: Runs, data: dict[str, np.ndarray], biweight: Tukey, details: dict[str, Any]
) -> _Fitted:
    weights = runs.get("weight")

    def refits(log_loss: np.ndarray) -> tuple[np.ndarray, int]:
        own = {"log_y": log_loss}
        return refit_tukey(surface_residual, biweight, data, own, weights=weights), 0

    return _Fitted(biweight.theta, biweight.objective, biweight.converged, refits, details)


def _by_projection(runs: Runs, data: dict[str, np.ndarray]) -> _Fitted:
    base = runs["weight"] if "weight" in runs else np.ones(len(runs))
    found = fit_by_projection(data["u"], data["v"], runs["loss"][None], base)

    def refits(log_loss: np.ndarray) -> tuple[np.ndarray, int]:
        # The first table sets the starting point of the others.
        losses = np.exp(np.concatenate([data["log_y"][None], log_loss]))
        drawn = fit_by_projection(data["u"], data["v"], losses, base)
        return drawn.theta[1:], 0

    return _Fitted(found.theta[0], found.objective[0], found.converged[0], refits, {})


def _warn_of_edge(grid: np.ndarray, found: MultiStart, warnings: list[str]) -> None:
    """Warns if only starts on the edge of the grid reach the best minimum, as Hoffmann et al. check."""
    scale = max(abs(found.objective), 1e-300)
    reached = grid[found.objectives <= found.objective + 1e-6 * scale + 1e-14]
    low, high = grid.min(axis=0), grid.max(axis=0)
    inside = np.all((reached > low) & (reached < high), axis=1)
    if not inside.any():
        warnings.append(
            f"only starts on the edge of the grid ({len(reached)} of {len(grid)}) reach the best "
            f"minimum; a wider grid might find a lower one"
        )


def _warn_of_rivals(minima: list[dict[str, float]], warnings: list[str]) -> None:
    best = minima[0]
    for other in minima[1:]:
        near = other["objective"] <= 1.02 * best["objective"]
        shares = [m["beta"] / (m["alpha"] + m["beta"]) for m in (best, other)]
        if near and abs(shares[0] - shares[1]) > 0.01:
            warnings.append(
                f"another minimum is only {other['objective'] / best['objective'] - 1:.2%} worse "
                f"and has the exponent {shares[1]:.3f} in place of {shares[0]:.3f}"
            )
            return
