"""Power laws in one variable, with or without an offset.

    L = (x_c / x)^alpha                  Kaplan et al. 2020, eqs. 1.1-1.3
    L = L_inf + (x_c / x)^alpha          Henighan et al. 2020; Hoffmann et al. 2022 at one variable

x is params, tokens or flops (or any other column), and the parameters have its symbol: alpha_N, N_c;
alpha_D, D_c; alpha_C, C_c. With the constants of the critical batch, compute is replaced by C_min =
C / (1 + B/B_crit(L)), the compute of training far below the critical batch (eq. 5.5). The law is then
L(C_min): alpha_C_min, C_c_min.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from lmscale.laws.batch import adjusted_compute
from lmscale.laws.finish import LEAST_SQUARES, finish
from lmscale.laws.resample import (
    Draws,
    draw_with,
    fit_noise,
    jacobian,
    log_inputs,
    refit,
)
from lmscale.laws.result import DRAWS, FitError, FitResult
from lmscale.laws.robust import residuals
from lmscale.laws.solve import multi_start
from lmscale.laws.table import Runs, Table
from lmscale.laws.units import Units, choose_units

#: An offset below this share of the lowest loss counts as zero.
_NO_OFFSET = 1e-6

__all__ = ["SYMBOLS", "fit_power", "power_law", "power_variable"]

#: The symbol of a column in the papers.
SYMBOLS = {
    "params": "N",
    "tokens": "D",
    "flops": "C",
    "unique_tokens": "U",
    "steps": "S",
    "batch_tokens": "B",
    "position": "T",
}


def power_law(x: Any, alpha: Any, x_c: Any, offset: Any = 0.0) -> Any:
    """offset + (x_c / x)^alpha."""
    return offset + (x_c / x) ** alpha


def fit_power(
    table: Any,
    *,
    x: str | None = None,
    offset: bool = False,
    critical_batch: tuple[float, float] | None = None,
    by: Sequence[str] = (),
    bootstrap: int = DRAWS,
    resample: Literal["auto", "runs", "groups"] = "auto",
    delta: float | None = None,
    level: float = 0.95,
    seed: int = 0,
    columns: Any = None,
) -> FitResult:
    """Loss as a power law of one column, fitted to the logarithm of the loss.

    Args:
      x: the column; by default the only one of params, tokens and flops that the table has, or
        that `columns` names.
      offset: add an irreducible loss L_inf >= 0.
      critical_batch: (B_star, alpha_B) of B_crit(L) = B_star / L^(1/alpha_B), in tokens; turns
        flops into C_min with the column batch_tokens. Kaplan et al. have (2.1e8, 0.21).
      by: labels (group, seed) of which each combination is one run whose rows are drawn together
        whatever their residuals; it takes five runs or more.
      bootstrap: number of draws.
      resample: what a draw keeps together, see `lmscale.laws.resample`.
      delta: Huber's delta on log loss; None is least squares.

    Returns:
      parameters alpha_X and X_c (and L_inf); `details["curve"]` holds x, the fitted loss and its
      band for a plot.
    """
    table = Table.read(table, columns)
    x = power_variable(table, x, critical_batch)
    needs = (x, "loss", *(("batch_tokens",) if critical_batch else ()))
    runs = table.runs(*needs, least=3 + offset, vary=(x, "loss"))
    adjust: dict[str, float] | None = None
    if critical_batch is not None:
        adjust = dict(zip(("B_star", "alpha_B"), critical_batch, strict=True))
        runs.columns[x] = adjusted_compute(runs[x], runs["batch_tokens"], runs["loss"], **adjust)
    names = _parameter_names(x, offset=offset, adjusted=adjust is not None)
    log_x, log_y = np.log(runs[x]), np.log(runs["loss"])
    weights = runs["weight"] if "weight" in runs else np.ones(len(runs))
    curved = offset or delta is not None
    fit = (_curved if curved else _straight)(log_x, log_y, weights, offset, delta)
    warnings = fit.notes
    parameters = dict(zip(names, fit.values, strict=True))
    if not _representable(parameters[names[1]]):
        raise FitError(
            f"the loss hardly depends on {x} (alpha is {fit.values[0]:.3g}), so {names[1]} is beyond "
            f"any number: these runs show no power law in {x}"
        )
    drawn: Draws | None = None
    draws: dict[str, np.ndarray] = {}
    if bootstrap:
        units = _units(runs, fit, by, resample)
        inputs, centre = log_inputs(runs, (x,)), log_y + fit.left
        noise = fit_noise(fit.left, fit.slopes, units, inputs, weights=runs.get("weight"))
        drawn = draw_with(fit.refits, centre, noise, n_draws=bootstrap, level=level, seed=seed)
        draws = _drawn_parameters(drawn, names, x, warnings)
    warnings += _weak(parameters[names[0]], x, runs[x])
    result = finish(
        "power",
        runs,
        functools.partial(_predict, column=x, names=names, adjust=adjust),
        parameters,
        draws,
        reads=(x,),
        level=level,
        drawn=drawn,
        warnings=warnings,
        objective=fit.objective,
        objective_name=_objective_name(delta),
        converged=fit.converged,
        details={"x": x, "offset": offset},
    )
    if offset and result.intervals.get("L_inf") == (0.0, 0.0):
        # All draws lie at the bound, which does not show how well it is known.
        del result.intervals["L_inf"]
    return result.with_details(curve=_curve(result, runs, x))


def _parameter_names(x: str, *, offset: bool, adjusted: bool) -> tuple[str, ...]:
    symbol, suffix = SYMBOLS[x], "_min" if adjusted else ""
    return (f"alpha_{symbol}{suffix}", f"{symbol}_c{suffix}", *(("L_inf",) if offset else ()))


def _drawn_parameters(
    drawn: Draws, names: Sequence[str], x: str, warnings: list[str]
) -> dict[str, np.ndarray]:
    """The draws by name; x_c is NaN where a draw is so flat that it overflows."""
    draws = dict(zip(names, drawn.theta.T, strict=True))
    flat = ~_representable(draws[names[1]])
    draws[names[1]] = np.where(flat, np.nan, draws[names[1]])
    if flat.any():
        warnings.append(
            f"{flat.sum()} of {len(flat)} draws are flat in {x}, with {names[1]} beyond any "
            f"number: they count in the interval of {names[0]} and not in that of {names[1]} "
            f"or the band"
        )
    return draws


def _weak(alpha: float, x: str, values: np.ndarray) -> list[str]:
    """Warnings about an exponent that these runs hold badly."""
    warnings = []
    if alpha <= 0:
        warnings.append(f"the loss does not fall with {x}: alpha is {alpha:.3g}")
    if math.log10(values.max() / values.min()) < 1:
        warnings.append(
            f"{x} spans a factor of {values.max() / values.min():.3g}, less than ten: "
            f"the exponent is loosely held"
        )
    return warnings


def power_variable(table: Table, x: str | None, critical_batch: Any = None) -> str:
    """The variable of the law: `x`, or the only one of params, tokens and flops in the table.

    If the table has several, it is the one that the caller mapped with `columns`.

    Raises:
      FitError: the variable is not clear, or the law cannot be in it.
    """
    if critical_batch is not None and x not in (None, "flops"):
        raise FitError(f"critical_batch turns flops into C_min, so x must be flops, not {x}")
    if critical_batch is not None:
        return "flops"
    if x is None:
        table.require("loss")
        have = [name for name in ("params", "tokens", "flops") if name in table.numbers]
        named = [name for name in have if name in table.mapped]
        have = named if len(named) == 1 else have
        if len(have) != 1:
            # With two of the three, all three are possible.
            choice = "params|tokens|flops" if have else "params"
            raise FitError(f"a power law is in one variable; say which with --x {choice}")
        (x,) = have
    if x not in SYMBOLS:
        raise FitError(f"x must be one of {', '.join(SYMBOLS)}, not {x!r}")
    return x


def _units(runs: Runs, fit: _Fit, by: Sequence[str], resample: str) -> Units:
    """Rows, or groups that share noise; with `by`, the runs that these labels name if there are five."""
    if not by:
        return choose_units(
            runs,
            fit.left,
            fit.slopes,
            resample=resample,
            weights=runs.get("weight"),
        )
    labels = [runs.labels[name].astype(str) for name in by if name in runs.labels]
    names = [" ".join(row) for row in zip(*labels, strict=True)]
    if len(set(names)) < 5:
        return Units.rows(len(runs), "rows")
    return Units(np.unique(names, return_inverse=True)[1], "runs")


def _representable(x_c: Any) -> np.ndarray:
    """Whether x_c is a usable number. On a flat line it overflows to infinity or to zero."""
    return (np.asarray(x_c) > 1e-200) & (np.asarray(x_c) < 1e200)


def _objective_name(delta: float | None) -> str:
    if delta is None:
        return LEAST_SQUARES
    return f"sum of Huber's function of the residuals of log loss, delta {delta:g}"


def _predict(
    parameters: Any,
    *,
    column: str,
    names: tuple[str, ...],
    adjust: dict[str, float] | None,
    **columns: Any,
) -> Any:
    """The loss. Of a law in C_min, flops are C where batch_tokens is given, and C_min otherwise."""
    if column not in columns:
        raise FitError(f"this power law is in {column}; give {column}=...")
    alpha, x_c, *rest = (parameters[name] for name in names)
    offset, x = rest[0] if rest else 0.0, columns[column]
    loss = power_law(x, alpha, x_c, offset)
    if adjust is not None and "batch_tokens" in columns:
        # C_min depends on the loss, and the loss on C_min. The iteration converges for alpha < alpha_B.
        for _ in range(60):
            smaller = adjusted_compute(x, columns["batch_tokens"], loss, **adjust)
            loss = power_law(smaller, alpha, x_c, offset)
    return loss


class _Fit(NamedTuple):
    """A fitted curve.

    Attributes:
      values: alpha, x_c and, with an offset, L_inf.
      left, slopes: residuals [n], and their Jacobian [n, P].
      refits: log losses [B, n] -> the values of each [B, P], and how many did not converge.
    """

    values: list[float]
    objective: float
    converged: bool
    notes: list[str]
    left: np.ndarray
    slopes: np.ndarray
    refits: Callable[[np.ndarray], tuple[np.ndarray, int]]


def _straight(
    log_x: np.ndarray, log_y: np.ndarray, weights: np.ndarray, offset: bool, delta: float | None
) -> _Fit:
    """Straight line in log-log, in closed form."""
    total = weights.sum()
    x_mean = float(weights @ log_x / total)
    dx = log_x - x_mean

    def lines(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y_mean = y @ weights / total
        return y_mean, ((y - y_mean[:, None]) * dx) @ weights / (weights @ dx**2)

    def refits(y: np.ndarray) -> tuple[np.ndarray, int]:
        y_mean, slope = lines(y)
        # ln L = alpha (ln x_c - ln x)
        with np.errstate(divide="ignore", over="ignore"):
            x_c = np.exp(-y_mean / slope + x_mean)
        return np.column_stack([-slope, x_c]), 0

    y_mean, slope = (float(v[0]) for v in lines(log_y[None]))
    left = y_mean + slope * dx - log_y
    values = [float(v) for v in refits(log_y[None])[0][0]]
    objective = 0.5 * float(np.sum(weights * left**2))
    return _Fit(values, objective, True, [], left, np.column_stack([np.ones(len(dx)), dx]), refits)


def _offset_residual(theta: Any, data: Any) -> Any:
    """theta = (e, a, alpha): ln(exp(e) + exp(a - alpha u)) - ln L, u = ln x less its mean."""
    e, a, alpha = theta
    return jnp.logaddexp(e, a - alpha * data["u"]) - data["log_y"]


def _plain_residual(theta: Any, data: Any) -> Any:
    a, alpha = theta
    return a - alpha * data["u"] - data["log_y"]


def _curved(
    log_x: np.ndarray, log_y: np.ndarray, weights: np.ndarray, offset: bool, delta: float | None
) -> _Fit:
    u = log_x - log_x.mean()
    data = {"u": u, "log_y": log_y}
    low, middle = float(log_y.min()), float(np.median(log_y))
    slope = -np.polyfit(u, log_y, 1)[0]
    alphas = np.abs(slope) * np.array([0.5, 1.0, 2.0, 4.0, 8.0]) + 1e-3
    if offset:
        offsets = low + np.log(np.array([1e-3, 0.3, 0.6, 0.8, 0.9, 0.97]))
        starts = np.array(
            [
                [e, math.log(max(math.exp(middle) - math.exp(e), 1e-6)), alpha]
                for e in offsets
                for alpha in alphas
            ]
        )
    else:
        starts = np.array([[middle, alpha] for alpha in alphas])
    residual = _offset_residual if offset else _plain_residual
    delta = math.inf if delta is None else delta
    best = multi_start(residual, starts, data, len(u), delta=delta, weights=weights)
    shift = float(log_x.mean())

    def named(theta: np.ndarray) -> np.ndarray:
        a, alpha = theta[..., -2], theta[..., -1]
        with np.errstate(over="ignore", divide="ignore"):
            x_c = np.exp(a / alpha + shift)
        if not offset:
            return np.stack([alpha, x_c], axis=-1)
        # exp(e) never reaches the bound L_inf >= 0.
        l_inf = np.exp(theta[..., 0])
        l_inf = np.where(l_inf < _NO_OFFSET * math.exp(low), 0.0, l_inf)
        return np.stack([alpha, x_c, l_inf], axis=-1)

    def refits(y: np.ndarray) -> tuple[np.ndarray, int]:
        again = refit(residual, best, data, {"log_y": y}, delta=delta, weights=weights)
        return named(again.theta), again.unconverged

    notes = []
    if offset and math.exp(best.theta[0]) < 1e-3 * math.exp(low):
        notes.append(
            "the offset went to zero: these runs ask for none, and show no irreducible loss"
        )
    left = residuals(residual, best.theta[None], data)[0]
    values = [float(v) for v in named(best.theta)]
    slopes = jacobian(residual, best.theta, data)
    return _Fit(values, best.objective, best.converged, notes, left, slopes, refits)


def _curve(result: FitResult, runs: Runs, x: str) -> dict[str, np.ndarray]:
    low, high = runs[x].min(), runs[x].max()
    grid = np.geomspace(low / 2, high * 2, 64)
    curve = {"x": grid, "loss": result.predict(**{x: grid})}
    if result.draws:
        curve["low"], curve["high"] = result.band(**{x: grid})
    return curve


def loss_along_frontier(
    flops: np.ndarray, loss: np.ndarray, *, offset: bool | None = None
) -> FitResult:
    """Loss of the compute-optimal runs against compute.

    Args:
      offset: an irreducible loss, by default where five points or more hold it.
    """
    offset = len(flops) >= 5 if offset is None else offset
    return fit_power({"flops": flops, "loss": loss}, x="flops", offset=offset, bootstrap=0)
