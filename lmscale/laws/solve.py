"""One solver for every curved law: damped Newton on a robust sum, all problems at once.

A problem is a start and a set of weights; hundreds of them run in one vmapped, jitted program, in
float64, and blocks of problems share the cores. The objective is a sum over runs, never a mean, of
Huber's function of a law's residuals (usually in log loss), as in Hoffmann et al. 2022, eq. 3:

    f(theta) = sum_i w_i huber_delta(r_i(theta)),   huber(r) = r^2/2 for |r| < delta, else
                                                    delta (|r| - delta/2)

With Hoffmann's delta = 1e-3 this is close to least absolute deviations, on which first-order
methods stop early. Here delta shrinks in stages, and each step solves

    (H + lambda diag M) p = -grad f

with the exact Hessian H or, where that is not convex, with M in its place: the iteratively
reweighted Gauss-Newton matrix, which bounds Huber's function from above. lambda follows the ratio
of actual to predicted decrease.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = ["MultiStart", "Solutions", "draw_weights", "multi_start", "solve"]

#: Problems in one call of the compiled program.
_BLOCK = 64
#: Runs are padded (with weight 0) to a multiple of this, so that tables share compiled programs.
_PAD = 32

#: r(theta, data) -> residuals [n]; the Jacobian and Hessian come from it.
Residual = Callable[[Any, Any], Any]


class Solutions(NamedTuple):
    """One row a problem. `evaluations` counts residuals: problems x steps x runs."""

    theta: np.ndarray
    objective: np.ndarray
    converged: np.ndarray
    evaluations: int


class MultiStart(NamedTuple):
    """The best of many starts, the local minima beside it, and every draw's own best."""

    theta: np.ndarray
    objective: float
    converged: bool
    #: Of all starts: their minima's objectives.
    objectives: np.ndarray
    #: Index of the start that led to the best minimum.
    best_start: int
    #: How many starts ended in the best minimum (objective within 1e-6 of it).
    n_best: int
    #: Distinct local minima [m, P], best first, and their objectives.
    minima: np.ndarray
    minima_objectives: np.ndarray
    #: [draw, P], and how many of the draws did not meet the tolerance.
    draws: np.ndarray
    draws_unconverged: int
    evaluations: int


def solve(
    residual: Residual,
    theta: np.ndarray,
    data: Any,
    weights: np.ndarray,
    *,
    delta: float = math.inf,
    max_steps: int = 200,
) -> Solutions:
    """Minimises f from every row of `theta` [K, P], with the weights [n] or [K, n].

    `residual` must be a module-level function (programs are cached by it); an attribute
    `residual.derivatives(theta, data, delta, weight) -> (f, grad, H, M)` replaces autodiff.
    """
    theta = np.atleast_2d(np.asarray(theta, np.float64))
    n = len(np.atleast_2d(weights)[0])
    n_padded = -(-n // _PAD) * _PAD
    data = jax.tree.map(lambda x: _pad(np.asarray(x, np.float64), n_padded), data)
    weights = np.asarray(weights, np.float64)
    k = len(theta)
    block = _BLOCK

    def run(start: int) -> tuple[np.ndarray, ...]:
        part = theta[start : start + block]
        w = weights[start : start + block] if weights.ndim == 2 else weights[None]
        w = np.concatenate([w, np.zeros((len(w), n_padded - n))], axis=1)
        w = np.broadcast_to(w, (len(part), n_padded)) if weights.ndim == 1 else w
        missing = block - len(part)
        if missing:
            part = np.concatenate([part, np.repeat(part[:1], missing, axis=0)])
            w = np.concatenate([w, np.repeat(w[:1], missing, axis=0)])
        # The switch to float64 holds for this thread and this block only: training code in the
        # same process stays in float32.
        with jax.enable_x64(True):
            out = _program(residual, math.isfinite(delta), max_steps)(
                jnp.asarray(part), jnp.asarray(w), data, delta if math.isfinite(delta) else 1.0
            )
            return tuple(np.asarray(item)[: block - missing] for item in out)

    starts = range(0, k, block)
    if len(starts) == 1:
        parts = [run(0)]
    else:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            parts = list(pool.map(run, starts))
    found, objective, converged, steps = (np.concatenate(x) for x in zip(*parts, strict=True))
    return Solutions(found, objective, converged, int(steps.sum()) * n)


def multi_start(
    residual: Residual,
    starts: np.ndarray,
    data: Any,
    n: int,
    *,
    delta: float = math.inf,
    weights: np.ndarray | None = None,
    draw_weights: np.ndarray | None = None,
    candidates: int = 4,
    max_steps: int = 200,
) -> MultiStart:
    """The best minimum over `starts` [S, P], and of each draw's weights [B, n].

    Every start is solved to the end on the runs themselves. What the starts ended in is then
    scored for every draw at once (one matrix product of the draws' weights with the runs' losses),
    and each draw is solved from its `candidates` best distinct endpoints.
    """
    base = np.ones(n) if weights is None else np.asarray(weights, float)
    solved = solve(residual, starts, data, base, delta=delta, max_steps=max_steps)
    objectives = np.where(np.isfinite(solved.objective), solved.objective, np.inf)
    best = int(np.argmin(objectives))
    minima = _distinct(solved.theta, objectives, residual, data, delta)
    # Neighbours of the best stand in for basins that only a draw has.
    scale = max(abs(objectives[best]), 1e-300)
    draws = np.empty((0, starts.shape[1]))
    unconverged, evaluations = 0, solved.evaluations
    if draw_weights is not None and len(draw_weights):
        endpoints = solved.theta[minima]
        with jax.enable_x64(True):
            losses = np.asarray(_losses(residual)(jnp.asarray(endpoints), data, _finite(delta)))
        scores = (draw_weights * base) @ np.nan_to_num(losses, nan=1e300, posinf=1e300).T
        evaluations += len(endpoints) * n
        top = np.argsort(scores, axis=1)[:, :candidates]
        b, m = top.shape
        drawn = solve(
            residual,
            endpoints[top.ravel()],
            data,
            np.repeat(draw_weights * base, m, axis=0),
            delta=delta,
            max_steps=max_steps,
        )
        evaluations += drawn.evaluations
        value = np.where(np.isfinite(drawn.objective), drawn.objective, np.inf).reshape(b, m)
        chosen = np.argmin(value, axis=1) + m * np.arange(b)
        draws = drawn.theta[chosen]
        unconverged = int(np.sum(~drawn.converged[chosen]))
    return MultiStart(
        theta=solved.theta[best],
        objective=float(objectives[best]),
        converged=bool(solved.converged[best]),
        objectives=objectives,
        best_start=best,
        n_best=int(np.sum(objectives <= objectives[best] + 1e-6 * scale)),
        minima=solved.theta[minima],
        minima_objectives=objectives[minima],
        draws=draws,
        draws_unconverged=unconverged,
        evaluations=evaluations,
    )


def draw_weights(
    n: int, n_draws: int, rng: np.random.Generator, groups: np.ndarray | None = None
) -> np.ndarray:
    """How often each run is drawn [B, n]: with replacement, whole groups together if given."""
    if groups is None:
        return rng.multinomial(n, np.full(n, 1 / n), size=n_draws).astype(float)
    names, where = np.unique(groups, return_inverse=True)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=n_draws)
    return counts[:, where].astype(float)


def huber(r: Any, delta: Any) -> Any:
    """Huber's function; r^2 / 2 where delta is infinite."""
    size = jnp.abs(r)
    return jnp.where(size <= delta, 0.5 * r * r, delta * (size - 0.5 * delta))


def _finite(delta: float) -> float:
    return delta if math.isfinite(delta) else 1e150


def _pad(x: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([x, np.repeat(x[:1], n - len(x), axis=0)]) if len(x) < n else x


def _distinct(
    theta: np.ndarray, objectives: np.ndarray, residual: Residual, data: Any, delta: float
) -> np.ndarray:
    """Positions of distinct minima, best first: at most 32, none 1000 times worse than the best."""
    order = np.argsort(objectives)
    kept: list[int] = []
    for i in order:
        if not np.isfinite(objectives[i]) or len(kept) == 32:
            break
        if kept:
            last = objectives[kept[-1]]
            same_value = abs(objectives[i] - last) <= 1e-6 * abs(last) + 1e-14
            if same_value:
                continue
        kept.append(int(i))
    return np.asarray(kept or [int(order[0])])


@functools.cache
def _losses(residual: Residual) -> Callable[..., Any]:
    def one(theta: Any, data: Any, delta: Any) -> Any:
        return huber(residual(theta, data), delta)

    return jax.jit(jax.vmap(one, in_axes=(0, None, None)))


def derivatives(residual: Residual) -> Callable[..., Any]:
    """(theta, data, delta, weight) -> f, its gradient, its Hessian and the majorising matrix."""
    closed = getattr(residual, "derivatives", None)
    if closed is not None:
        return closed

    def by_autodiff(theta: Any, data: Any, delta: Any, weight: Any) -> tuple[Any, ...]:
        r = residual(theta, data)
        jacobian = jax.jacfwd(residual)(theta, data)
        size = jnp.abs(r)
        slope = weight * jnp.clip(r, -delta, delta)
        inside = weight * (size <= delta)
        majorant = weight * jnp.where(size <= delta, 1.0, delta / jnp.maximum(size, 1e-300))
        curved = jax.hessian(lambda t: jnp.sum(slope * residual(t, data)))(theta)
        value = jnp.sum(weight * huber(r, delta))
        hessian = jnp.einsum("n,ni,nj->ij", inside, jacobian, jacobian) + curved
        bound = jnp.einsum("n,ni,nj->ij", majorant, jacobian, jacobian)
        return value, slope @ jacobian, hessian, bound

    return by_autodiff


class _State(NamedTuple):
    theta: Any
    value: Any
    gradient: Any
    hessian: Any
    bound: Any
    damping: Any
    #: Delta is its target times 10^stage; a new stage begins by evaluating where it stands.
    stage: Any
    fresh: Any
    steps: Any
    steps_in_stage: Any
    #: Steps in a row whose predicted decrease was below the tolerance.
    small: Any
    done: Any
    converged: Any


#: Stages of a robust fit before the last, and the most steps of each.
_STAGES = 2
_STAGE_STEPS = 12
_STAGE_TOLERANCE = 1e-6
_TOLERANCE = 1e-12


@functools.cache
def _program(residual: Residual, robust: bool, max_steps: int) -> Callable[..., Any]:
    evaluate = derivatives(residual)

    def proceed(s: _State) -> Any:
        return ~s.done

    def advance(s: _State, weight: Any, data: Any, delta: Any) -> _State:
        n = s.theta.shape[0]
        scale = jnp.diag(s.bound) + 1e-14 * jnp.trace(s.bound) + 1e-200
        ridge = jnp.diag((s.damping + 1e-15) * scale)
        newton, convex = _cholesky_solve(s.hessian + ridge, -s.gradient, n)
        bounded, positive = _cholesky_solve(s.bound + ridge, -s.gradient, n)
        move = jnp.where(s.fresh, 0.0, jnp.where(convex, newton, bounded))
        model = jnp.where(convex, s.hessian, s.bound)
        positive = convex | positive
        predicted = -(s.gradient @ move + 0.5 * move @ (model @ move))

        trial = s.theta + move
        here = delta * 10.0**s.stage if robust else jnp.asarray(1e150)
        value, gradient, hessian, bound = evaluate(trial, data, here, weight)
        usable = positive & jnp.isfinite(value) & jnp.all(jnp.isfinite(hessian))
        gain = s.value - value
        accept = s.fresh | (usable & (gain > 0))
        ratio = jnp.where(usable & (predicted > 0), gain / predicted, -1.0)
        damping = jnp.where(
            ratio > 0.7, s.damping * 0.1, jnp.where(ratio > 0.2, s.damping, s.damping * 4.0)
        )
        damping = jnp.where(usable, damping, s.damping * 10.0)
        damping = jnp.where(s.fresh, s.damping, jnp.clip(damping, 1e-14, 1e14))

        # Near a minimum rounding decides the gain, so a step that promises almost nothing is the
        # end, whether or not it was better.
        last = s.stage == 0
        tolerance = jnp.where(last, _TOLERANCE, _STAGE_TOLERANCE)
        tiny = predicted <= tolerance * jnp.abs(s.value) + 1e-30
        tiny_move = jnp.all(jnp.abs(move) <= 1e-13 * (1 + jnp.abs(s.theta)))
        small = jnp.where(~s.fresh & positive & (tiny | tiny_move), s.small + 1, 0)
        limit = jnp.where(last, max_steps, _STAGE_STEPS)
        # A start at which the law is not finite can go nowhere.
        lost = s.fresh & ~(jnp.isfinite(value) & jnp.all(jnp.isfinite(hessian)))
        over = (small >= 2) | (s.damping >= 1e13) | (s.steps_in_stage >= limit) | lost

        def pick(new: Any, old: Any) -> Any:
            return jnp.where(accept, new, old)

        return _State(
            theta=pick(trial, s.theta),
            value=pick(value, s.value),
            gradient=pick(gradient, s.gradient),
            hessian=pick(hessian, s.hessian),
            bound=pick(bound, s.bound),
            damping=jnp.where(over, 1e-2, damping),
            stage=jnp.where(over & ~last, s.stage - 1, s.stage),
            fresh=over & ~last,
            steps=s.steps + 1,
            steps_in_stage=jnp.where(over, 0, s.steps_in_stage + 1),
            small=jnp.where(over, 0, small),
            done=(over & last) | lost,
            converged=last & (small >= 2),
        )

    def one(theta: Any, weight: Any, data: Any, delta: Any) -> tuple[Any, ...]:
        n = theta.shape[0]
        first = _State(
            theta=theta,
            value=jnp.asarray(jnp.inf),
            gradient=jnp.zeros(n),
            hessian=jnp.eye(n),
            bound=jnp.eye(n),
            damping=jnp.asarray(1e-2),
            stage=jnp.asarray(_STAGES if robust else 0),
            fresh=jnp.asarray(True),
            steps=jnp.asarray(0),
            steps_in_stage=jnp.asarray(0),
            small=jnp.asarray(0),
            done=jnp.asarray(False),
            converged=jnp.asarray(False),
        )
        last = jax.lax.while_loop(proceed, lambda s: advance(s, weight, data, delta), first)
        return last.theta, last.value, last.converged, last.steps

    return jax.jit(jax.vmap(one, in_axes=(0, 0, None, None)))


def _cholesky_solve(matrix: Any, right: Any, n: int) -> tuple[Any, Any]:
    """Solution and whether the matrix is positive; written out so that it vectorises over problems."""
    lower = [[None] * n for _ in range(n)]
    positive = jnp.asarray(True)
    for j in range(n):
        pivot = matrix[j, j] - sum((lower[j][k] ** 2 for k in range(j)), 0.0)
        positive = positive & (pivot > 1e-16 * jnp.abs(matrix[j, j])) & jnp.isfinite(pivot)
        root = jnp.sqrt(jnp.where(pivot > 0, pivot, 1.0))
        lower[j][j] = root
        for i in range(j + 1, n):
            below = matrix[i, j] - sum((lower[i][k] * lower[j][k] for k in range(j)), 0.0)
            lower[i][j] = below / root
    half: list[Any] = []
    for i in range(n):
        half.append((right[i] - sum((lower[i][k] * half[k] for k in range(i)), 0.0)) / lower[i][i])
    full: list[Any] = [None] * n
    for i in reversed(range(n)):
        above = sum((lower[k][i] * full[k] for k in range(i + 1, n)), 0.0)
        full[i] = (half[i] - above) / lower[i][i]
    return jnp.stack(full), positive


def product_grid(*axes: Sequence[float]) -> np.ndarray:
    """Every combination of the axes' values, one a row."""
    return np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], axis=1).astype(float)
