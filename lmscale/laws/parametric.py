"""The parametric loss surface and its efficient frontier.

    L(N, D) = E + A / N^alpha + B / D^beta          Hoffmann et al. 2022, eq. 2 and Approach 3

fitted, with a = ln A, b = ln B, e = ln E, by the sum over runs of

    huber_delta( LSE(a - alpha ln N, b - beta ln D, e) - ln L ),     delta = 1e-3     (eq. 3)

from a grid of 4500 starts. Besiroglu et al. 2024 (2404.10102) showed what an averaged objective
and an early stop do to the answer. At C = 6 N D the optimum is closed form (eq. 4):

    N_opt = G (C/6)^a',  D_opt = G^-1 (C/6)^b',  G = (alpha A / (beta B))^(1/(alpha+beta)),
    a' = beta/(alpha+beta),  b' = alpha/(alpha+beta)

The second method, variable projection, minimises squared relative errors over alpha and beta
alone, with E, A and B the non-negative least squares solution at each (Czech 2026, 2603.22339): a
well-conditioned problem in two variables.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmscale.laws.result import FitError, FitResult, expanded, interval, intervals_of
from lmscale.laws.solve import draw_weights, multi_start, product_grid, seed_weights
from lmscale.laws.table import Runs, Table

__all__ = [
    "Allocation",
    "chinchilla_loss",
    "fit_parametric",
    "hoffmann_starts",
    "iso_loss",
    "optimal_allocation",
]

NAMES = ("E", "A", "B", "alpha", "beta")
HUBER_DELTA = 1e-3


class Allocation(NamedTuple):
    """Compute-optimal size, tokens, loss and tokens per parameter at a budget."""

    n_params: Any
    n_tokens: Any
    loss: Any
    tokens_per_param: Any


def chinchilla_loss(parameters: Any, *, params: Any, tokens: Any, **_: Any) -> Any:
    """E + A/N^alpha + B/D^beta."""
    e, a, b, alpha, beta = (parameters[name] for name in NAMES)
    return e + a * params**-alpha + b * tokens**-beta


def optimal_allocation(parameters: Any, flops: Any) -> Allocation:
    """The minimum of the surface at C = 6 N D (Hoffmann et al. 2022, eq. 4)."""
    _, a, b, alpha, beta = (np.asarray(parameters[name], float) for name in NAMES)
    total = alpha + beta
    log_g = np.log(alpha * a / (beta * b)) / total
    log_c = np.log(np.asarray(flops, float) / 6.0)
    n = np.exp(log_g + beta / total * log_c)
    d = np.exp(-log_g + alpha / total * log_c)
    return Allocation(n, d, chinchilla_loss(parameters, params=n, tokens=d), d / n)


def iso_loss(
    parameters: Any, loss: float, points: int = 128, reach: float = 30.0
) -> dict[str, Any]:
    """One contour of equal loss as curves of params, tokens and flops (Hoffmann et al., Fig. 4).

    It runs over sizes within a factor `reach` of the one that meets the loss with least compute,
    and never below the size that would need infinite data.
    """
    e, a, b, alpha, beta = (parameters[name] for name in NAMES)
    if loss <= e:
        raise FitError(f"no run reaches a loss of {loss:.4g}: the irreducible loss is {e:.4g}")
    # At the optimum the two terms share L - E as beta : alpha.
    best = (a * (alpha + beta) / (beta * (loss - e))) ** (1 / alpha)
    least = (a / (loss - e)) ** (1 / alpha)
    n = np.geomspace(max(best / reach, least * 1.02), best * reach, points)
    d = (b / (loss - e - a * n**-alpha)) ** (1 / beta)
    return {"loss": loss, "params": n, "tokens": d, "flops": 6 * n * d}


def hoffmann_starts() -> np.ndarray:
    """The 4500 starts (a, b, e, alpha, beta) of Hoffmann et al. 2022, in raw parameters and tokens."""
    exponents, constants = (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
    return product_grid(constants, constants, (-1.0, -0.5, 0.0, 0.5, 1.0), exponents, exponents)


def fit_parametric(
    table: Any,
    *,
    method: Literal["huber", "varpro"] = "huber",
    starts: Literal["relative", "hoffmann", "coarse"] | np.ndarray = "relative",
    delta: float = HUBER_DELTA,
    bootstrap: int = 1000,
    resample: Literal["auto", "runs", "seeds"] = "auto",
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
      delta: Huber's delta on log loss.
      bootstrap: number of draws.
      resample: "runs", or "seeds" within each (params, tokens); "auto" takes seeds where every
        configuration was run more than once. Seeds tell of noise alone; runs also of misfit.

    Returns:
      parameters E, A, B, alpha, beta; exponents; `details` with the frontier, its band, contours
      of equal loss, the local minima, and how many starts reached the best.
    """
    table = Table.read(table, columns)
    runs = table.runs("params", "tokens", "loss", least=6, vary=("params", "tokens"))
    if delta <= 0:
        raise FitError(f"delta must be positive, not {delta!r}")
    warnings = list(runs.warnings)
    _warn_of_a_line(runs, warnings)
    counts, how = _draws(runs, resample, bootstrap, seed)
    if method == "huber":
        found = _by_huber(runs, starts, delta, counts, warnings)
        objective_name = f"sum of Huber's function of the residuals of log loss, delta {delta:g}"
    elif method == "varpro":
        found = _by_projection(runs, counts)
        objective_name = "half the sum of squared relative residuals of the loss"
    else:
        raise FitError(f"method must be huber or varpro, not {method!r}")
    parameters, draws, objective, converged, details = found
    _warn_of_degeneracy(parameters, runs, warnings)
    share_of_draws = expanded(level, len(runs), len(NAMES))
    alpha, beta = parameters["alpha"], parameters["beta"]
    exponents, exponent_intervals = {}, {}
    if alpha > 0 and beta > 0:
        exponents = {runs.convention: {"N": beta / (alpha + beta), "D": alpha / (alpha + beta)}}
        if bootstrap:
            share = draws["beta"] / (draws["alpha"] + draws["beta"])
            exponent_intervals = {
                runs.convention: {
                    "N": interval(share, share_of_draws),
                    "D": interval(1 - share, share_of_draws),
                }
            }
    predicted = chinchilla_loss(parameters, params=runs["params"], tokens=runs["tokens"])
    result = FitResult(
        law="parametric",
        parameters=parameters,
        intervals=intervals_of(draws, share_of_draws),
        draw_level=share_of_draws,
        interval_method=how if bootstrap else "none",
        level=level,
        objective=objective,
        objective_name=objective_name,
        converged=converged,
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
        details={"method": method, **details},
        model=chinchilla_loss,
    )
    return result.with_details(**_pictures(result)) if exponents else result


def ranges_of(runs: Runs) -> dict[str, tuple[float, float]]:
    """Extent of each column, FLOPs as 6 N D where they were not given."""
    columns = dict(runs.columns)
    if "flops" not in columns and "params" in columns and "tokens" in columns:
        columns["flops"] = 6.0 * columns["params"] * columns["tokens"]
    return {name: (float(v.min()), float(v.max())) for name, v in columns.items()}


def _draws(runs: Runs, resample: str, n_draws: int, seed: int) -> tuple[np.ndarray, str]:
    """Weights of every draw, and the way of drawing in words."""
    rng = np.random.default_rng(seed)
    if resample not in ("auto", "runs", "seeds"):
        raise FitError(f"resample must be auto, runs or seeds, not {resample!r}")
    cells = np.array(
        [f"{n:.9g} {d:.9g}" for n, d in zip(runs["params"], runs["tokens"], strict=True)]
    )
    repeated = np.unique(cells, return_counts=True)[1].min() > 1
    if resample == "seeds" and not repeated:
        raise FitError(
            "resample seeds needs every configuration (params, tokens) run at least twice"
        )
    if resample == "seeds" or (resample == "auto" and repeated):
        return seed_weights(cells, n_draws, rng), "bootstrap over seeds within each configuration"
    return draw_weights(len(runs), n_draws, rng), "bootstrap over runs"


def _warn_of_a_line(runs: Runs, warnings: list[str]) -> None:
    """At a constant ratio of tokens to parameters the two terms cannot be told apart."""
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


# --- Approach 3 -------------------------------------------------------------------------------


def _surface_residual(theta: Any, data: Any) -> Any:
    """theta = (a, b, e, alpha, beta) at the runs' geometric mean; ln L predicted less observed."""
    a, b, e, alpha, beta = theta
    terms = jnp.stack([a - alpha * data["u"], b - beta * data["v"], jnp.full_like(data["u"], e)])
    top = jnp.max(terms, axis=0)
    return top + jnp.log(jnp.sum(jnp.exp(terms - top), axis=0)) - data["log_y"]


def _surface_derivatives(
    theta: Any, data: Any, delta: Any, weight: Any, rough: Any
) -> tuple[Any, ...]:
    """f, gradient, Hessian and majorant in closed form.

    With p the softmax of the three terms, d r/d term = p and d^2 r/d term^2 = diag(p) - p p^T;
    the terms are linear in theta, with features 1, u and v. Every sum is a product of p's with a
    monomial in u and v, which all problems share: matrix times vector, once they are vmapped.
    Comparisons, like the logarithm of the C library, keep XLA's loops from vectorising on a CPU.
    """
    a, b, e, alpha, beta = theta
    u, v = data["u"], data["v"]
    # Relative to the third term, so that two exponentials do; past e^300 a term is all there is.
    x1 = jnp.exp(jnp.clip(a - e - alpha * u, -300.0, 300.0))
    x2 = jnp.exp(jnp.clip(b - e - beta * v, -300.0, 300.0))
    total = 1.0 + x1 + x2
    r = e + _log(total) - data["log_y"]
    p3 = 1.0 / total
    p1, p2 = x1 * p3, x2 * p3
    size = jnp.abs(r)
    # Huber's slope over r; its floor is 1 where r is within delta, else 0.
    ratio = delta / jnp.maximum(size, delta)
    bound = weight * ratio
    slope = bound * r
    coarse = jnp.asarray(rough, r.dtype)
    outer = coarse * bound + (1.0 - coarse) * (weight * jnp.floor(ratio) - slope)

    one, uu, vv = jnp.ones_like(u), u * u, v * v
    pairs = (outer * p1 * p1, outer * p1 * p2, outer * p2 * p2)
    h11, h14, h44 = (pairs[0] @ m for m in (one, u, uu))
    h12, h24, h15, h45 = (pairs[1] @ m for m in (one, u, v, u * v))
    h22, h25, h55 = (pairs[2] @ m for m in (one, v, vv))
    h13, h34 = (outer * p1 * p3 @ m for m in (one, u))
    h23, h35 = (outer * p2 * p3 @ m for m in (one, v))
    h33 = outer * p3 * p3 @ one
    # slope . p is the gradient, and with more of u and v what slope d^2 term adds to the Hessian.
    g1, g4, g44 = (slope * p1 @ m for m in (one, u, uu))
    g2, g5, g55 = (slope * p2 @ m for m in (one, v, vv))
    g3 = slope * p3 @ one
    fine = 1.0 - coarse
    h11, h22, h33 = h11 + fine * g1, h22 + fine * g2, h33 + fine * g3
    h14, h25, h44, h55 = h14 + fine * g4, h25 + fine * g5, h44 + fine * g44, h55 + fine * g55
    hessian = jnp.stack(
        [
            jnp.stack([h11, h12, h13, -h14, -h15]),
            jnp.stack([h12, h22, h23, -h24, -h25]),
            jnp.stack([h13, h23, h33, -h34, -h35]),
            jnp.stack([-h14, -h24, -h34, h44, h45]),
            jnp.stack([-h15, -h25, -h35, h45, h55]),
        ]
    )
    gradient = jnp.stack([g1, g2, g3, -g4, -g5])
    b1, b4 = (bound * p1 * p1 @ m for m in (one, uu))
    b2, b5 = (bound * p2 * p2 @ m for m in (one, vv))
    majorant = jnp.stack([b1, b2, bound * p3 * p3 @ one, b4, b5])
    value = bound * size * (size - 0.5 * ratio * size) @ one
    return value, gradient, hessian, majorant


def _log(x: Any) -> Any:
    """ln x of normal float64 to 2 units in the last place, in operations that vectorise.

    x = 2^k m with m within sqrt 2 of 1, and ln m = 2 artanh((m - 1)/(m + 1)) as a series.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int64)
    k = (bits - 0x3FE6A09E667F3BCD) >> 52
    m = jax.lax.bitcast_convert_type(bits - (k << 52), jnp.float64)
    s = (m - 1.0) / (m + 1.0)
    square, series = s * s, 1.0 / 23.0
    for odd in range(21, 0, -2):
        series = 1.0 / odd + square * series
    return k.astype(jnp.float64) * math.log(2.0) + 2.0 * s * series


_surface_residual.derivatives = _surface_derivatives


def _relative_axes(level: float, coarse: bool) -> list[tuple[float, ...]]:
    """Values of (a, b, e, alpha, beta) at the runs' geometric mean, from the median log loss."""
    if coarse:
        terms = tuple(level + x for x in (-3.0, -1.5, -0.5))
        exponents = (0.1, 0.3, 0.8, 1.6)
        return [terms, terms, (level - 1.5, level - 0.3), exponents, exponents]
    terms = tuple(level + x for x in (-6.0, -4.0, -2.5, -1.5, -0.7, -0.1))
    offsets = tuple(level + x for x in (-3.0, -1.5, -0.7, -0.3, -0.05))
    return [terms, terms, offsets, *[(0.0, 0.5, 1.0, 1.5, 2.0)] * 2]


def _by_huber(
    runs: Runs, starts: Any, delta: float, counts: np.ndarray, warnings: list[str]
) -> tuple[dict, dict, float, bool, dict]:
    x, y, log_loss = np.log(runs["params"]), np.log(runs["tokens"]), np.log(runs["loss"])
    data = {"u": x - x.mean(), "v": y - y.mean(), "log_y": log_loss}
    axes = None
    if isinstance(starts, str) and starts in ("relative", "coarse"):
        axes = _relative_axes(float(np.median(log_loss)), starts == "coarse")
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
    found = multi_start(
        _surface_residual,
        grid,
        data,
        len(runs),
        delta=delta,
        weights=runs.get("weight"),
        draw_weights=counts if len(counts) else None,
    )

    def named(theta: np.ndarray) -> dict[str, Any]:
        a, b, e, alpha, beta = np.moveaxis(theta, -1, 0)
        with np.errstate(over="ignore"):
            values = (np.exp(e), np.exp(a + alpha * x.mean()), np.exp(b + beta * y.mean()))
        return dict(zip(NAMES, (*values, alpha, beta), strict=True))

    if not found.converged:
        warnings.append("the solver did not meet its tolerance at the best minimum")
    if found.draws_unconverged > 0.01 * max(1, len(counts)):
        warnings.append(f"{found.draws_unconverged} of {len(counts)} draws did not converge")
    if axes is not None:
        _warn_of_edge(grid, found, warnings)
    minima = [
        {**{k: float(v) for k, v in named(theta).items()}, "objective": float(value)}
        for theta, value in zip(found.minima[:8], found.minima_objectives[:8], strict=True)
    ]
    _warn_of_rivals(minima, warnings)
    details = {
        "minima": minima,
        "n_starts": len(grid),
        "n_starts_at_best": found.n_best,
        "evaluations": found.evaluations,
    }
    parameters = {name: float(value) for name, value in named(found.theta).items()}
    draws = named(found.draws) if len(counts) else {}
    return parameters, draws, found.objective, found.converged, details


def _warn_of_edge(grid: np.ndarray, found: Any, warnings: list[str]) -> None:
    """Hoffmann et al. check that the best start is not on the edge of the grid."""
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


# --- Variable projection ----------------------------------------------------------------------


def _by_projection(runs: Runs, counts: np.ndarray) -> tuple[dict, dict, float, bool, dict]:
    x, y = np.log(runs["params"]), np.log(runs["tokens"])
    u, v, loss = x - x.mean(), y - y.mean(), runs["loss"]
    base = runs["weight"] if "weight" in runs else np.ones(len(runs))
    weights = np.concatenate([np.ones((1, len(runs))), counts]) * base
    # A grid finds the basin of the runs themselves; every draw starts from their minimum.
    axis = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.1, 1.6])
    grid = product_grid(axis, axis)
    scores = _project(grid, u, v, loss, np.tile(weights[:1], (len(grid), 1)))[0]
    first = np.log(grid[np.argmin(scores)])[None]
    first, *_ = _newton(first, u, v, loss, weights[:1])
    theta = np.tile(first, (len(weights), 1))
    theta, objective, gradient = _newton(theta, u, v, loss, weights)
    exponents = np.exp(theta)
    linear = _project(exponents, u, v, loss, weights)[1]
    columns = {
        "E": linear[:, 0],
        "A": linear[:, 1] * np.exp(exponents[:, 0] * x.mean()),
        "B": linear[:, 2] * np.exp(exponents[:, 1] * y.mean()),
        "alpha": exponents[:, 0],
        "beta": exponents[:, 1],
    }
    parameters = {name: float(column[0]) for name, column in columns.items()}
    draws = {name: column[1:] for name, column in columns.items()} if len(counts) else {}
    scale = float(np.sum(weights[0]))
    converged = bool(np.max(np.abs(gradient[0])) <= 1e-8 * (objective[0] + 1e-12 * scale) + 1e-13)
    return parameters, draws, float(objective[0]), converged, {}


#: Which of E, A and B may be positive; the best feasible subset is the non-negative solution.
_SUBSETS = [s for k in (3, 2, 1) for s in itertools.combinations(range(3), k)]


def _project(
    exponents: np.ndarray, u: np.ndarray, v: np.ndarray, loss: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For exponents [B, 2] and weights [B, n]: the reduced objective, (E, A, B), and its gradient
    in ln alpha and ln beta (the linear part is at its minimum, so only the direct part counts)."""
    columns = np.stack(
        [
            np.broadcast_to(1 / loss, (len(exponents), len(loss))),
            np.exp(-exponents[:, :1] * u) / loss,
            np.exp(-exponents[:, 1:] * v) / loss,
        ],
        axis=1,
    )
    weighted = columns * weights[:, None]
    normal = weighted @ columns.transpose(0, 2, 1)
    right = weighted.sum(axis=2)
    total = weights.sum(axis=1)
    best = np.full(len(exponents), np.inf)
    linear = np.zeros((len(exponents), 3))
    for subset in _SUBSETS:
        ix = np.array(subset)
        part = normal[:, ix[:, None], ix[None]]
        part = part + 1e-14 * np.trace(part, axis1=1, axis2=2)[:, None, None] * np.eye(len(ix))
        solution = np.linalg.solve(part, right[:, ix, None])[..., 0]
        full = np.zeros_like(linear)
        full[:, ix] = solution
        value = 0.5 * (
            total - 2 * np.sum(full * right, axis=1) + np.einsum("bi,bij,bj->b", full, normal, full)
        )
        better = np.all(solution >= 0, axis=1) & (value < best)
        best = np.where(better, value, best)
        linear = np.where(better[:, None], full, linear)
    residual = np.einsum("bi,bin->bn", linear, columns) - 1.0
    best = 0.5 * np.sum(weights * residual**2, axis=1)
    slope_a = -np.einsum("bn,bn,bn,n->b", weights, residual, columns[:, 1], u)
    slope_b = -np.einsum("bn,bn,bn,n->b", weights, residual, columns[:, 2], v)
    gradient = np.stack(
        [linear[:, 1] * slope_a * exponents[:, 0], linear[:, 2] * slope_b * exponents[:, 1]], axis=1
    )
    return best, linear, gradient


def _newton(
    theta: np.ndarray, u: np.ndarray, v: np.ndarray, loss: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Damped Newton in (ln alpha, ln beta) for all draws; the Hessian by differences."""

    def at(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        value, _, gradient = _project(np.exp(np.clip(point, -8, 2)), u, v, loss, weights)
        return value, gradient

    damping = np.full(len(theta), 1e-3)
    value, gradient = at(theta)
    step = 1e-5
    for _ in range(60):
        hessian = np.empty((len(theta), 2, 2))
        for i in range(2):
            move = np.zeros(2)
            move[i] = step
            hessian[:, i] = (at(theta + move)[1] - at(theta - move)[1]) / (2 * step)
        hessian = 0.5 * (hessian + hessian.transpose(0, 2, 1))
        eigenvalues, vectors = np.linalg.eigh(hessian)
        size = np.maximum(np.abs(eigenvalues), 1e-12 * np.abs(eigenvalues[:, -1:]) + 1e-300)
        size = size + damping[:, None] * size[:, -1:]
        along = np.einsum("bij,bi->bj", vectors, gradient) / size
        move = -np.einsum("bij,bj->bi", vectors, along)
        move *= np.minimum(1.0, 1.0 / np.maximum(np.abs(move).max(axis=1), 1e-300))[:, None]
        new_value, new_gradient = at(theta + move)
        better = new_value <= value
        theta = np.where(better[:, None], theta + move, theta)
        gradient = np.where(better[:, None], new_gradient, gradient)
        value = np.where(better, new_value, value)
        damping = np.clip(np.where(better, damping * 0.1, damping * 10), 1e-12, 1e6)
        if np.max(np.abs(move)) < 1e-8:
            break
    return theta, value, gradient


# --- What figures need ------------------------------------------------------------------------


def _pictures(result: FitResult) -> dict[str, Any]:
    low, high = result.ranges["flops"]
    flops = np.geomspace(low, high * 100, 64)
    best = optimal_allocation(result.parameters, flops)
    frontier = {
        "flops": flops,
        "n_opt": best.n_params,
        "d_opt": best.n_tokens,
        "loss": best.loss,
        "tokens_per_param": best.tokens_per_param,
    }
    if result.draws:
        sound = (result.draws["alpha"] > 0) & (result.draws["beta"] > 0)
        draws = {name: values[sound] for name, values in result.draws.items()}
        drawn = optimal_allocation(draws, flops[:, None])
        for name, values in (
            ("n_opt", drawn.n_params),
            ("d_opt", drawn.n_tokens),
            ("loss", drawn.loss),
        ):
            frontier[f"{name}_low"], frontier[f"{name}_high"] = interval(
                values, result.draw_level or result.level, axis=1
            )
    observed = result.residuals["observed"]
    floor = result.parameters["E"]
    bottom = max(observed.min(), floor + 1e-3 * (observed.max() - floor))
    levels = floor + np.geomspace(max(bottom - floor, 1e-6), observed.max() - floor, 10)
    return {"frontier": frontier, "contours": [iso_loss(result.parameters, x) for x in levels]}
