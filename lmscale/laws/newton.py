"""The compiled program of `lmscale.laws.solve`: damped Newton steps on a robust sum of residuals.

A problem is a start and a set of weights. Its state (`State`) holds the point, the derivatives
there, the damping and the stage. One call of a program takes many problems some steps further: a
vmapped group at a time, one group after the other (`program`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "LEAST_SQUARES",
    "STAGES",
    "ClosedForm",
    "Residual",
    "State",
    "derivatives",
    "first_states",
    "huber",
    "program",
]

#: r(theta, data) -> residuals [n]. Autodiff gives their Jacobian and Hessian.
Residual = Callable[[Any, Any], Any]
#: (theta, data, delta, weight, rough) -> f, its gradient [P], its Hessian [P, P] and the diagonal
#: of the majorant [P].
Derivatives = Callable[[Any, Any, Any, Any, Any], tuple[Any, Any, Any, Any]]

#: Stages of a robust fit before the last one, and the most steps in each of them.
STAGES = 2
_STAGE_STEPS = 100
_STAGE_TOLERANCE = 1e-4
_TOLERANCE = 1e-16
#: A delta that no residual reaches, and whose square is still a number.
LEAST_SQUARES = 1e150
#: The blocks of problems are spread over our own threads. XLA's threads would only wait for each
#: other on arrays this small.
_OPTIONS: dict[str, bool | int] = {
    "xla_cpu_multi_thread_eigen": False,
    "xla_cpu_prefer_vector_width": 512,
}


@dataclass(frozen=True)
class ClosedForm:
    """A residual whose derivatives are written out, in place of autodiff."""

    residual: Residual
    derivatives: Derivatives

    def __call__(self, theta: Any, data: Any) -> Any:
        return self.residual(theta, data)


def huber(r: Any, delta: Any) -> Any:
    """Huber's function; r^2 / 2 where delta is infinite."""
    size = jnp.abs(r)
    return jnp.where(size <= delta, 0.5 * r * r, delta * (size - 0.5 * delta))


def derivatives(residual: Residual) -> Derivatives:
    """The derivatives of the objective: those of a `ClosedForm`, or else by autodiff.

    With `rough` the Hessian is that of the majorant: the weighted Gauss-Newton matrix, which is
    never indefinite.
    """
    if isinstance(residual, ClosedForm):
        return residual.derivatives

    def by_autodiff(
        theta: Any, data: Any, delta: Any, weight: Any, rough: Any
    ) -> tuple[Any, Any, Any, Any]:
        r = residual(theta, data)
        jacobian = jax.jacfwd(residual)(theta, data)
        size = jnp.abs(r)
        slope = weight * jnp.clip(r, -delta, delta)
        inside = weight * (size <= delta)
        majorant = weight * jnp.where(size <= delta, 1.0, delta / jnp.maximum(size, 1e-300))
        curved = jax.hessian(lambda t: jnp.sum(slope * residual(t, data)))(theta)
        value = jnp.sum(weight * huber(r, delta))
        diagonal = jnp.where(rough, majorant, inside)
        hessian = jnp.einsum("n,ni,nj->ij", diagonal, jacobian, jacobian)
        hessian = hessian + jnp.where(rough, 0.0, curved)
        bound = majorant @ jacobian**2
        return value, slope @ jacobian, hessian, bound

    return by_autodiff


class State(NamedTuple):
    """Where a problem stands; on the host every entry has one row per problem."""

    theta: Any
    value: Any
    gradient: Any
    hessian: Any
    #: Diagonal of the majorant.
    bound: Any
    damping: Any
    #: Delta is its target times 10^stage. A new stage starts with an evaluation at its point.
    stage: Any
    fresh: Any
    steps: Any
    steps_in_stage: Any
    #: Steps in a row whose predicted decrease was below the tolerance; two end a stage.
    small: Any
    done: Any
    converged: Any


def first_states(theta: np.ndarray, stage: int) -> State:
    """The state of every problem before its first evaluation."""
    k, n = theta.shape
    return State(
        theta=theta.copy(),
        value=np.full(k, np.inf),
        gradient=np.zeros((k, n)),
        hessian=np.zeros((k, n, n)) + np.eye(n),
        bound=np.ones((k, n)),
        damping=np.full(k, 1e-2),
        stage=np.full(k, stage),
        fresh=np.ones(k, bool),
        steps=np.zeros(k, int),
        steps_in_stage=np.zeros(k, int),
        small=np.zeros(k, int),
        done=np.zeros(k, bool),
        converged=np.zeros(k, bool),
    )


@functools.cache
def program(residual: Residual) -> Callable[..., Any]:
    """The compiled program of a law: one for all its fits, since to compile takes longer than most fits.

    Its arguments: states [groups, lanes, numbers] (see `_unpacked`), weights and the problem's own
    columns [groups, lanes, chunks, runs], shared columns [chunks, runs], the number of chunks in
    use, delta, the last stage, the number of steps after which a problem pauses, and the most steps of
    the last stage.
    """
    evaluate = derivatives(residual)

    def one(
        state: State,
        weight: Any,
        own: Any,
        data: Any,
        chunks: Any,
        delta: Any,
        end: Any,
        horizon: Any,
        max_steps: Any,
    ) -> State:
        def sums(theta: Any, delta: Any, rough: Any) -> tuple[Any, ...]:
            def add(i: Any, total: tuple[Any, ...]) -> tuple[Any, ...]:
                part = jax.tree.map(lambda x: x[i], {**data, **own})
                return jax.tree.map(jnp.add, total, evaluate(theta, part, delta, weight[i], rough))

            zero = jnp.zeros(())
            none = (zero, *(jnp.zeros_like(x) for x in (theta, jnp.outer(theta, theta), theta)))
            return jax.lax.fori_loop(0, chunks, add, none)

        def step(s: State) -> State:
            return _advance(s, sums, delta, end, max_steps)

        return jax.lax.while_loop(lambda s: ~s.done & (s.steps < horizon), step, state)

    def packed(numbers: Any, *rest: Any) -> Any:
        out = one(_unpacked(numbers), *rest)
        return jnp.concatenate([jnp.ravel(x).astype(jnp.float64) for x in out])

    def groups(numbers: Any, weight: Any, own: Any, *shared: Any) -> Any:
        group = jax.vmap(packed, in_axes=(0, 0, 0, *[None] * len(shared)))
        return jax.lax.map(lambda each: group(*each, *shared), (numbers, weight, own))

    return jax.jit(groups, compiler_options=_OPTIONS)


def _advance(
    s: State,
    sums: Callable[..., tuple[Any, ...]],
    delta: Any,
    end: Any,
    max_steps: Any,
) -> State:
    """One Newton step of one problem.

    Args:
      sums: (theta, delta, rough) -> the derivatives of the objective, summed over all runs.
      delta: Huber's delta of stage 0, the last one; stage k has 10^k times that.
      end: the stage to stop after. Stages count down; only stage 0 solves to the full tolerance.
      max_steps: most steps of stage 0.
    """
    n = s.theta.shape[0]
    scale = s.bound + 1e-14 * jnp.sum(s.bound) + 1e-200
    damped = s.hessian + jnp.diag((s.damping + 1e-15) * scale)
    move, positive = _cholesky_solve(damped, -s.gradient, n)
    move = jnp.where(s.fresh | ~positive, 0.0, move)
    predicted = -(s.gradient @ move + 0.5 * move @ (s.hessian @ move))

    trial = s.theta + move
    here = delta * 10.0**s.stage
    value, gradient, hessian, bound = sums(trial, here, s.stage == STAGES)
    usable = positive & jnp.isfinite(value) & jnp.all(jnp.isfinite(hessian))
    gain = s.value - value
    # For a predicted decrease this small, rounding decides the gain: the step only must not harm.
    sure = (predicted <= 1e-12 * jnp.abs(s.value)) & (gain >= -1e-14 * jnp.abs(s.value))
    accept = s.fresh | (usable & ((gain > 0) | sure))
    ratio = jnp.where(usable & (predicted > 0), jnp.where(sure, 1.0, gain / predicted), -1.0)
    factor = jnp.where(ratio > 0.7, 0.1, jnp.where(ratio > 0.2, 1.0, 4.0))
    damping = s.damping * jnp.where(usable, factor, 10.0)
    damping = jnp.where(s.fresh, s.damping, jnp.clip(damping, 1e-14, 1e14))

    # A stage ends after two steps in a row with almost no predicted decrease. One such step is
    # enough before the last stage, and where heavy damping does not explain the small decrease.
    last = s.stage == end
    final = s.stage == 0
    tolerance = jnp.where(final, _TOLERANCE, _STAGE_TOLERANCE)
    tiny = predicted <= tolerance * jnp.abs(s.value) + 1e-30
    tiny_move = jnp.all(jnp.abs(move) <= 1e-13 * (1 + jnp.abs(s.theta)))
    enough = jnp.where(~final | (tiny & (s.damping <= 1e-4)), 2, 1)
    small = jnp.where(~s.fresh & positive & (tiny | tiny_move), s.small + enough, 0)
    limit = jnp.where(final, max_steps, _STAGE_STEPS)
    # A start at which the law is not finite cannot go anywhere.
    lost = s.fresh & ~(jnp.isfinite(value) & jnp.all(jnp.isfinite(hessian)))
    over = (small >= 2) | (s.damping >= 1e13) | (s.steps_in_stage >= limit) | lost

    def pick(new: Any, old: Any) -> Any:
        return jnp.where(accept, new, old)

    return State(
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


def _unpacked(numbers: Any) -> State:
    """A state from its numbers. They travel in one array, because that makes a call faster."""
    n = (math.isqrt(4 * len(numbers) - 27) - 3) // 2  # a state has n^2 + 3 n + 9 numbers
    like = jax.tree.map(lambda x: x[0], first_states(np.zeros((1, n)), 0))
    ends = np.cumsum([x.size for x in like])[:-1]
    parts = jnp.split(numbers, ends)
    return State(*(p.reshape(x.shape).astype(x.dtype) for p, x in zip(parts, like, strict=True)))


def _cholesky_solve(matrix: Any, right: Any, n: int) -> tuple[Any, Any]:
    """The solution, and whether the matrix is positive definite.

    It is written out entry by entry, so that XLA vectorises it over the problems.
    """
    lower: list[list[Any]] = [[None] * n for _ in range(n)]
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
