"""The laws of Kaplan et al. 2020 (2001.08361) in two variables, and what follows from them.

    L(N, D)     = [ (N_c/N)^(alpha_N/alpha_D) + D_c/D ]^alpha_D          eq. 1.5
    L(N, S_min) = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S                  eq. 1.6
    B_crit(L)   = B_star / L^(1/alpha_B)                                 eq. 1.4

Compute here is in FLOPs; the paper's C_c are in PF-days (`PF_DAY` FLOPs).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from scipy.optimize import brentq

from lmscale.laws.batch import adjusted_compute, adjusted_steps, critical_batch
from lmscale.laws.finish import LEAST_SQUARES, finish, solver_notes
from lmscale.laws.newton import Residual
from lmscale.laws.power import SYMBOLS
from lmscale.laws.resample import draw
from lmscale.laws.result import DRAWS, FitError, FitResult, intervals_of
from lmscale.laws.solve import multi_start, product_grid
from lmscale.laws.table import Runs, Table

__all__ = [
    "PF_DAY",
    "Contradiction",
    "Frontier",
    "adjusted_compute",
    "adjusted_steps",
    "allocation_exponents",
    "contradiction_point",
    "critical_batch",
    "data_requirement",
    "early_stopping_bound",
    "efficient_frontier",
    "fit_kaplan_nd",
    "fit_kaplan_ns",
    "frontier_constant",
    "frontier_exponent",
    "kaplan_nd_loss",
    "kaplan_ns_loss",
    "off_optimum_cost",
    "overfitting",
    "stopping_ratio",
]

PF_DAY = 8.64e19


# --- The laws ---------------------------------------------------------------------------------


def kaplan_nd_loss(parameters: Mapping[str, Any], *, params: Any, tokens: Any, **_: Any) -> Any:
    """L(N, D), eq. 1.5, in nats a token.

    Args:
      parameters: alpha_N, alpha_D, N_c, D_c; numbers, or draws [draw].
      params: N without embeddings.
      tokens: D, which may be infinite.
    """
    alpha_n, alpha_d = parameters["alpha_N"], parameters["alpha_D"]
    size = (parameters["N_c"] / params) ** (alpha_n / alpha_d)
    return (size + parameters["D_c"] / tokens) ** alpha_d


def kaplan_ns_loss(parameters: Mapping[str, Any], *, params: Any, steps: Any, **_: Any) -> Any:
    """L(N, S_min), eq. 1.6."""
    return (parameters["N_c"] / params) ** parameters["alpha_N"] + (
        parameters["S_c"] / steps
    ) ** parameters["alpha_S"]


def overfitting(parameters: Mapping[str, Any], params: Any, tokens: Any) -> Any:
    """delta L = L(N, D) / L(N, infinity) - 1, a function of N^(alpha_N/alpha_D) / D (eq. 4.3)."""
    infinite = kaplan_nd_loss(parameters, params=params, tokens=np.inf)
    return kaplan_nd_loss(parameters, params=params, tokens=tokens) / infinite - 1


def data_requirement(parameters: Mapping[str, Any], params: Any, excess: float = 0.02) -> Any:
    """Tokens that keep `overfitting` below `excess`: D ~ N^(alpha_N/alpha_D) (eq. 4.4)."""
    alpha_n, alpha_d = parameters["alpha_N"], parameters["alpha_D"]
    size = (np.asarray(params, float) / parameters["N_c"]) ** (alpha_n / alpha_d)
    return parameters["D_c"] * size / ((1 + excess) ** (1 / alpha_d) - 1)


def early_stopping_bound(
    parameters: Mapping[str, Any],
    params: Any,
    tokens: Any,
    S_c: float = 2.1e3,
    alpha_S: float = 0.76,
) -> Any:
    """Lower bound on the update at which test loss stops falling (eq. 5.7), as S_min.

    S_stop >= S_c / [L(N, D) - L(N, infinity)]^(1/alpha_S), with `parameters` of L(N, D).
    """
    gap = kaplan_nd_loss(parameters, params=params, tokens=tokens) - kaplan_nd_loss(
        parameters, params=params, tokens=np.inf
    )
    return S_c / gap ** (1 / alpha_S)


# --- Appendix B -------------------------------------------------------------------------------


def _constants(given: Mapping[str, float] | None) -> dict[str, float]:
    table = {
        "alpha_N": 0.077,
        "N_c": 6.5e13,
        "alpha_S": 0.76,
        "S_c": 2.1e3,
        "B_star": 2.1e8,
        "alpha_B": 0.21,
    }
    return {**table, **{k: v for k, v in (given or {}).items() if k in table}}


@dataclass(frozen=True)
class Frontier:
    """The efficient frontier of Appendix B at some compute, for training at B = B_crit."""

    n_params: Any
    steps: Any
    loss: Any
    batch_tokens: Any

    @property
    def n_tokens(self) -> Any:
        return self.steps * self.batch_tokens


def frontier_exponent(constants: Mapping[str, float] | None = None) -> float:
    """alpha_C = 1 / (1/alpha_S + 1/alpha_B + 1/alpha_N) (eq. B.7).

    Args:
      constants: alpha_N, alpha_S, alpha_B, N_c, S_c, B_star; those that are left out, or all where it is
        None, are the paper's own of L(N, S) (Table 3) and of B_crit (eq. 1.4).
    """
    k = _constants(constants)
    return 1 / (1 / k["alpha_S"] + 1 / k["alpha_B"] + 1 / k["alpha_N"])


def allocation_exponents(constants: Mapping[str, float] | None = None) -> dict[str, float]:
    """N ~ C^(alpha_C/alpha_N), and so for B and S; D = B S (eq. 1.8).

    Args:
      constants: as in `frontier_exponent`; None takes the paper's.
    """
    k, alpha_c = _constants(constants), frontier_exponent(constants)
    batch, steps = alpha_c / k["alpha_B"], alpha_c / k["alpha_S"]
    return {"N": alpha_c / k["alpha_N"], "B": batch, "S": steps, "D": batch + steps}


def frontier_constant(constants: Mapping[str, float] | None = None) -> float:
    """C_c of L(C) = (C_c/C)^alpha_C, in FLOPs (eq. B.8).

    Args:
      constants: as in `frontier_exponent`; None takes the paper's.
    """
    k = _constants(constants)
    a_n, a_s = k["alpha_N"], k["alpha_S"]
    return (
        6
        * k["N_c"]
        * k["B_star"]
        * k["S_c"]
        * (1 + a_n / a_s) ** (1 / a_s + 1 / a_n)
        * (a_s / a_n) ** (1 / a_s)
    )


def efficient_frontier(flops: Any, constants: Mapping[str, float] | None = None) -> Frontier:
    """Best size, updates and loss at a budget (eqs. B.6, B.9, B.10), training at B_crit.

    Args:
      flops: training FLOPs; a number or an array.
      constants: as in `frontier_exponent`; None takes the paper's.
    """
    k = _constants(constants)
    ratio = k["alpha_N"] / k["alpha_S"]
    c_c, alpha_c = frontier_constant(k), frontier_exponent(k)
    share = np.asarray(flops, float) / c_c
    n = k["N_c"] * share ** (alpha_c / k["alpha_N"]) * (1 + ratio) ** (1 / k["alpha_N"])
    steps = (
        c_c
        / (6 * k["N_c"] * k["B_star"])
        * (1 + ratio) ** (-1 / k["alpha_N"])
        * share ** (alpha_c / k["alpha_S"])
    )
    loss = share**-alpha_c
    return Frontier(n, steps, loss, critical_batch(loss, k["B_star"], k["alpha_B"]))


def off_optimum_cost(
    size_ratio: Any, constants: Mapping[str, float] | None = None
) -> tuple[Any, Any]:
    """Compute and updates, relative to the optimum, to reach its loss with N = ratio N_eff.

    Eqs. B.16 and B.17 (Fig. 12); infinite where the size is too small ever to reach the loss.
    """
    k = _constants(constants)
    x = np.asarray(size_ratio, float)
    bracket = 1 + k["alpha_S"] / k["alpha_N"] * (1 - x ** -k["alpha_N"])
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.where(bracket > 0, bracket ** (-1 / k["alpha_S"]), np.inf)
    return (x * steps)[()], steps[()]


def stopping_ratio(
    excess: float, other: float, constants: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Ratios of size, updates and compute between two ways to reach one loss (App. B.4).

    One run stops a fraction f above its converged loss, the other a fraction f'. The ratios are
    N_f/N_f', S_f/S_f' and their product.
    """
    k = _constants(constants)
    n = ((1 + excess) / (1 + other)) ** (1 / k["alpha_N"])
    s = ((1 + 1 / excess) / (1 + 1 / other)) ** (1 / k["alpha_S"])
    return {"N": n, "S": s, "C": n * s}


@dataclass(frozen=True)
class Contradiction:
    """The point at which the laws contradict each other; C in PF-days."""

    pf_days: float
    n_params: float
    n_tokens: float
    loss: float


def contradiction_point(
    *,
    alpha_C: float = 0.050,
    C_c: float = 3.1e8,
    D_0: float = 2e10,
    D_exponent: float = 0.27,
    alpha_D: float = 0.095,
    D_c: float = 5.4e13,
    N_0: float = 1.3e9,
    N_exponent: float = 0.73,
) -> Contradiction:
    """Where L(C_min) falls below L(D(C_min)), the loss that the frontier's data allow (sec. 6.3).

    C is in PF-days; the constants are those of Tables 5 and 6. Each number is only an order of
    magnitude: with D = 4e10 C^0.26 of eq. 6.7, C changes by a factor of ten.
    """

    def gap(log_c: float) -> float:
        data = D_0 * math.exp(D_exponent * log_c)
        return alpha_C * (math.log(C_c) - log_c) - alpha_D * (math.log(D_c) - math.log(data))

    try:
        log_c = brentq(gap, math.log(1e-12), math.log(1e20))
    except ValueError:
        raise FitError("these laws contradict each other nowhere below 1e20 PF-days") from None
    c = math.exp(log_c)
    return Contradiction(
        c, N_0 * c**N_exponent, D_0 * c**D_exponent, math.exp(alpha_C * (math.log(C_c) - log_c))
    )


# --- Fits -------------------------------------------------------------------------------------


def _nd_residual(theta: Any, data: Any) -> Any:
    """theta = (p, q, kappa, alpha_D): ln L = alpha_D LSE(p - kappa u, q - v), kappa = alpha_N/alpha_D."""
    p, q, kappa, alpha_d = theta
    return alpha_d * jnp.logaddexp(p - kappa * data["u"], q - data["v"]) - data["log_y"]


def _ns_residual(theta: Any, data: Any) -> Any:
    """theta = (a, s, alpha_N, alpha_S): ln L = LSE(a - alpha_N u, s - alpha_S v)."""
    a, s, alpha_n, alpha_s = theta
    return jnp.logaddexp(a - alpha_n * data["u"], s - alpha_s * data["v"]) - data["log_y"]


def fit_kaplan_nd(
    table: Any,
    *,
    delta: float | None = None,
    bootstrap: int = DRAWS,
    resample: Literal["auto", "runs", "groups"] = "auto",
    level: float = 0.95,
    seed: int = 0,
    columns: Any = None,
) -> FitResult:
    """Fits L(N, D), eq. 1.5, to log loss: parameters alpha_N, N_c, alpha_D, D_c.

    The paper leaves out the runs on the smallest subset, where an epoch is a few dozen updates. Here
    the caller chooses the rows.

    Args:
      delta: Huber's delta on log loss; None is least squares.
      bootstrap: number of draws.
      resample: what a draw keeps together, see `lmscale.laws.resample`.
    """
    table = Table.read(table, columns)
    runs = table.runs("params", "tokens", "loss", least=5, vary=("params", "tokens"))
    log_loss = np.log(runs["loss"])
    level_mid = float(np.median(log_loss))
    starts = np.array(
        [
            [level_mid / alpha_d + p, level_mid / alpha_d + q, kappa, alpha_d]
            for alpha_d in (0.05, 0.15, 0.5)
            for kappa in (0.4, 0.8, 1.6)
            for p in (-2.0, 0.0)
            for q in (-4.0, -2.0, 0.0)
        ]
    )

    def named(theta: np.ndarray, x: float, y: float) -> dict[str, Any]:
        p, q, kappa, alpha_d = np.moveaxis(theta, -1, 0)
        with np.errstate(over="ignore"):
            return {
                "alpha_N": kappa * alpha_d,
                "N_c": np.exp(p / kappa + x),
                "alpha_D": alpha_d,
                "D_c": np.exp(q + y),
            }

    result = _fit_two(
        "kaplan-nd", runs, "tokens", _nd_residual, starts, named, kaplan_nd_loss, delta, bootstrap,
        resample, level, seed,
    )  # fmt: skip
    ratio = result.parameters["alpha_N"] / result.parameters["alpha_D"]
    if ratio <= 0:
        return result
    # At C = 6 N D the bracket is least where N^(ratio + 1) ~ C.
    share = 1 / (1 + ratio)
    curve = {
        "x": runs["params"] ** ratio / runs["tokens"],
        "overfitting": runs["loss"] / kaplan_nd_loss(result.parameters, params=runs["params"], tokens=np.inf) - 1,
    }  # fmt: skip
    return dataclasses.replace(
        result,
        exponents={runs.convention: {"N": share, "D": 1 - share}},
        exponent_intervals=_exponent_intervals(result, runs.convention),
        details={**result.details, "overfitting": curve, "data_exponent": ratio},
    )


def _exponent_intervals(result: FitResult, convention: str) -> dict[str, Any]:
    if not result.draws:
        return {}
    share = 1 / (1 + result.draws["alpha_N"] / result.draws["alpha_D"])
    level = result.draw_level or result.level
    return {convention: intervals_of({"N": share, "D": 1 - share}, level)}


def fit_kaplan_ns(
    table: Any,
    *,
    adjust: bool | Mapping[str, float] = False,
    delta: float | None = None,
    bootstrap: int = DRAWS,
    resample: Literal["auto", "runs", "groups"] = "auto",
    level: float = 0.95,
    seed: int = 0,
    columns: Any = None,
) -> FitResult:
    """Fits L(N, S_min), eq. 1.6, to log loss: parameters alpha_N, N_c, alpha_S, S_c.

    Rows are points of learning curves after the warmup, with columns params, steps and loss; the
    column `group` (a run) is resampled whole, since points of one curve are not independent.

    Args:
      adjust: turn steps into S_min with the column batch_tokens and B_crit(L): True for the
        paper's constants, or a mapping with B_star and alpha_B. Otherwise steps are S_min.
      delta: Huber's delta on log loss; None is least squares.
      bootstrap: number of draws.
      resample: what a draw keeps together; "auto" takes whole learning curves where there are
        three, see `lmscale.laws.resample`.
    """
    table = Table.read(table, columns)
    needs = ("params", "steps", "loss", *(("batch_tokens",) if adjust else ()))
    runs = table.runs(*needs, least=5, vary=("params", "steps"))
    if adjust:
        constants = adjust if isinstance(adjust, Mapping) else {}
        steps = adjusted_steps(runs["steps"], runs["batch_tokens"], runs["loss"], **constants)
        runs.columns["steps"] = steps
    middle = float(np.median(np.log(runs["loss"])))
    starts = product_grid(
        (middle - 1.0, middle - 0.1), (middle - 3.0, middle - 1.0), (0.05, 0.15, 0.4),
        (0.3, 0.7, 1.2),
    )  # fmt: skip

    def named(theta: np.ndarray, x: float, y: float) -> dict[str, Any]:
        a, s, alpha_n, alpha_s = np.moveaxis(theta, -1, 0)
        with np.errstate(over="ignore"):
            return {
                "alpha_N": alpha_n,
                "N_c": np.exp(a / alpha_n + x),
                "alpha_S": alpha_s,
                "S_c": np.exp(s / alpha_s + y),
            }

    return _fit_two(
        "kaplan-ns", runs, "steps", _ns_residual, starts, named, kaplan_ns_loss, delta, bootstrap,
        resample, level, seed,
    )  # fmt: skip


def _fit_two(
    law: str,
    runs: Runs,
    second: str,
    residual: Residual,
    starts: np.ndarray,
    named: Any,
    model: Any,
    delta: float | None,
    bootstrap: int,
    resample: str,
    level: float,
    seed: int,
) -> FitResult:
    """A law in params and one other column, fitted to log loss."""
    x, y = np.log(runs["params"]), np.log(runs[second])
    data = {"u": x - x.mean(), "v": y - y.mean(), "log_y": np.log(runs["loss"])}
    delta_of_fit, weights = math.inf if delta is None else delta, runs.get("weight")
    found = multi_start(residual, starts, data, len(runs), delta=delta_of_fit, weights=weights)
    drawn = None
    if bootstrap:
        drawn = draw(
            residual,
            found,
            data,
            "log_y",
            runs,
            inputs=("params", second),
            n_draws=bootstrap,
            level=level,
            seed=seed,
            delta=delta_of_fit,
            weights=weights,
            resample=resample,
            curves=law == "kaplan-ns",
        )
    parameters = {k: float(v) for k, v in named(found.theta, x.mean(), y.mean()).items()}
    warnings = solver_notes(found)
    for name, value in parameters.items():
        if name.startswith("alpha") and value <= 0:
            warnings.append(f"{name} is {value:.3g}, not positive")
    return finish(
        law,
        runs,
        model,
        parameters,
        named(drawn.theta, x.mean(), y.mean()) if drawn else {},
        reads=("params", second),
        level=level,
        drawn=drawn,
        warnings=warnings,
        objective=found.objective,
        objective_name=LEAST_SQUARES if delta is None else "sum of Huber's function of log loss",
        converged=found.converged,
        details={
            "symbol": SYMBOLS[second],
            "n_starts": len(starts),
            "evaluations": found.evaluations,
        },
    )
