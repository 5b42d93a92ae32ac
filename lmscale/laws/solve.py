"""One solver for every curved law: damped Newton on a robust sum, all problems at once.

A problem is a start and a set of weights; hundreds of them run in one vmapped, jitted program, in
float64, and blocks of problems share the cores. The objective is a sum over runs, never a mean, of
Huber's function of a law's residuals (usually in log loss), as in Hoffmann et al. 2022, eq. 3:

    f(theta) = sum_i w_i huber_delta(r_i(theta)),   huber(r) = r^2/2 for |r| < delta, else
                                                    delta (|r| - delta/2)

With Hoffmann's delta = 1e-3 this is close to least absolute deviations, on which first-order
methods stop early. Here delta shrinks in stages (many starts on a large table take the first on 64
of its runs), and each step solves

    (H + lambda diag M) p = -grad f

with the exact Hessian H (in the first stage, far from any minimum, with M, which is always
positive) and the diagonal of the iteratively reweighted Gauss-Newton matrix M, which
bounds Huber's function from above. lambda follows the ratio of actual to predicted decrease, and
rises where the matrix is not positive.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "MultiStart",
    "Solutions",
    "draw_weights",
    "multi_start",
    "product_grid",
    "seed_weights",
    "solve",
]

#: Problems in one vmapped group, and runs whose sums a step takes at a time: the arrays of a group
#: then stay in the cache of one core.
_LANES, _CHUNK = 32, 64
_CORES = os.cpu_count() or 1

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
    own: Mapping[str, np.ndarray] | None = None,
    delta: float = math.inf,
    stages: int | None = None,
    max_steps: int = 200,
) -> Solutions:
    """Minimises f from every row of `theta` [K, P], with the weights [n] or [K, n].

    `own` maps entries of `data` to arrays [K, n], one row a problem, that replace them.

    `residual` must be a module-level function (programs are cached by it); an attribute
    `residual.derivatives(theta, data, delta, weight, rough) -> (f, grad, H, diag M)` replaces
    autodiff.
    `stages` is how many tenfold shrinkings of delta come before the last; a start that is near
    its minimum needs none.
    """
    theta = np.atleast_2d(np.asarray(theta, np.float64))
    robust = math.isfinite(delta)
    stages = (_STAGES if stages is None else stages) if robust else 0
    own = {name: np.asarray(values, np.float64) for name, values in (own or {}).items()}
    shared = np.ndim(weights) == 1 and not own
    weights = np.atleast_2d(np.asarray(weights, np.float64))
    data = jax.tree.map(lambda x: np.asarray(x, np.float64), data)
    program = _program(residual, robust, max_steps)
    states = _first_states(theta, stages)
    leader = np.arange(len(theta))
    pending, evaluations = leader, 0
    rows = _spread(data, weights[0]) if shared and stages == _STAGES else None
    if rows is not None and len(theta) >= _LANES:
        # The first stage only leads the starts to their basins, which these runs tell as well; few
        # problems are then left for all runs.
        few = jax.tree.map(lambda x: x[rows], data)
        run, size = _runner(program, states, few, {}, weights[:, rows], delta)
        _finish(run, size, states, pending, leader, stages)
        evaluations += int(states.steps.sum()) * len(rows)
        states.stage[:], states.fresh[:], states.steps[:] = stages - 1, True, 0
        states.done[:] = ~np.isfinite(states.value)
        pending = _merge(states, np.unique(_followed(leader)), leader)
        pending = pending[~states.done[pending]]
    run, size = _runner(program, states, data, own, weights, delta if robust else 1.0)
    _finish(run, size, states, pending, leader if shared else None, 0)
    leader = _followed(leader)
    evaluations += int(states.steps.sum()) * weights.shape[1]
    return Solutions(
        states.theta[leader], states.value[leader], states.converged[leader], evaluations
    )


def _finish(
    run: Callable[..., Any],
    size: int,
    states: _State,
    pending: np.ndarray,
    leader: np.ndarray | None,
    last: int,
) -> None:
    """Runs the pending problems to the end of stage `last`, at most `size` of them in a call.

    Those that meet are merged where `leader` is given.

    Problems differ in how long they take, and a block takes as long as its slowest: so all run a
    few steps, those that are done leave, and the others close ranks.
    """
    horizon = 0
    while len(pending):
        horizon += _PHASE if len(pending) > _LANES else 4 * _PHASE
        share = -(-len(pending) // (_CORES * _LANES)) * _LANES
        block = min(share, size)
        blocks = [pending[i : i + block] for i in range(0, len(pending), block)]
        done = _map(functools.partial(run, last=last, horizon=horizon), blocks)
        for index, out in zip(blocks, done, strict=True):
            for column, values in zip(states, out, strict=True):
                column[index] = values
        pending = pending[~states.done[pending]]
        if leader is not None and len(pending):
            pending = _merge(states, pending, leader)


def _runner(
    program: Callable[..., Any],
    states: _State,
    data: Any,
    own: Mapping[str, np.ndarray],
    weights: np.ndarray,
    delta: float,
) -> tuple[Callable[[np.ndarray, int, int], list[np.ndarray]], int]:
    """A call of the program, and how many problems it takes at most.

    (problems, last stage, horizon) -> their states after `horizon` steps, or at that stage's end.
    """
    n = weights.shape[1]
    chunks = -(-n // _CHUNK)
    # Tables share compiled programs: the rest of the room has weight 0 and takes no time.
    room = max(4, 2 ** math.ceil(math.log2(chunks)))
    shape = (max(1, min(16, 512 // room)), _LANES)
    total = math.prod(shape)
    weights = np.pad(weights, ((0, 0), (0, room * _CHUNK - n))).reshape(-1, room, _CHUNK)
    own = {
        name: np.pad(values, ((0, 0), (0, room * _CHUNK - n)), mode="edge").reshape(
            -1, room, _CHUNK
        )
        for name, values in own.items()
    }
    with jax.enable_x64(True):
        data = jax.tree.map(
            lambda x: jnp.asarray(_pad(x, room * _CHUNK).reshape(room, _CHUNK, *x.shape[1:])), data
        )
        same = None
        if len(weights) == 1:
            same = jnp.asarray(np.broadcast_to(weights, (*shape, room, _CHUNK)))

    def run(index: np.ndarray, last: int, horizon: int) -> list[np.ndarray]:
        full = np.concatenate([index, np.repeat(index[:1], total - len(index))])
        here = np.concatenate([x[full].reshape(total, -1) for x in states], axis=1)
        here[len(index) :, -2] = True  # those that only fill the call are done
        weight = weights[full].reshape(*shape, room, _CHUNK) if same is None else same
        mine = {k: v[full].reshape(*shape, room, _CHUNK) for k, v in own.items()}
        # The switch to float64 holds for this thread and this block only: training code in the
        # same process stays in float32.
        with jax.enable_x64(True):
            numbers = here.reshape(*shape, -1)
            out = program(numbers, weight, mine, data, chunks, delta, last, horizon)
            out = np.asarray(out).reshape(total, -1)[: len(index)]
        parts = np.split(out, np.cumsum([x[0].size for x in states])[:-1], axis=1)
        return [part.reshape(-1, *x.shape[1:]) for part, x in zip(parts, states, strict=True)]

    return run, total


def _spread(data: Any, weight: np.ndarray) -> np.ndarray | None:
    """Some `_CHUNK` runs that cover every column's range evenly; None where they are half or more."""
    columns = [x.reshape(len(weight), -1).T for x in jax.tree.leaves(data)]
    columns = np.concatenate(columns)[:, weight > 0]
    n = columns.shape[1]
    if n < 2 * _CHUNK:
        return None
    places = np.linspace(0, n - 1, max(2, _CHUNK // len(columns))).round().astype(int)
    rows = np.unique(np.argsort(columns, axis=1, kind="stable")[:, places])
    return np.flatnonzero(weight > 0)[rows]


def _followed(leader: np.ndarray) -> np.ndarray:
    """Whom each problem follows in the end."""
    while np.any(leader[leader] != leader):
        leader = leader[leader]
    return leader


def _map(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """`function` of every item, on as many threads as there are cores (XLA lets go of the GIL)."""
    if len(items) == 1:
        return [function(items[0])]
    with ThreadPoolExecutor(max_workers=_CORES) as pool:
        return list(pool.map(function, items))


def _merge(states: _State, pending: np.ndarray, leader: np.ndarray) -> np.ndarray:
    """Lets problems that have come to the same point in the same stage go on as one.

    Of the thousands of starts of one fit most have met within a few steps; `leader` notes whom
    each one follows. Returns those that go on.
    """
    # The stages before the last only lead on; in the last, minima that are close stay apart.
    stage = states.stage[pending, None]
    cells = np.round(states.theta[pending] * np.where(stage > 0, 1e3, 1e5))
    keys = np.concatenate([cells, stage], axis=1)
    _, first, where = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    leader[pending] = pending[first][where.ravel()]
    return pending[np.sort(first)]


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
    direct: bool = False,
    max_steps: int = 200,
) -> MultiStart:
    """The best minimum over `starts` [S, P], and of each draw's weights [B, n].

    Every start is solved to the end on the runs themselves. What the starts ended in is then
    scored for every draw at once (one matrix product of the draws' weights with the runs' losses),
    and each draw is solved from its `candidates` best distinct endpoints.

    Shrinking delta in stages leads past shallow minima; `direct` solves every start a second time
    at the last delta alone, so that these are found and reported too.
    """
    base = np.ones(n) if weights is None else np.asarray(weights, float)
    solved = solve(residual, starts, data, base, delta=delta, max_steps=max_steps)
    if direct:
        again = solve(residual, starts, data, base, delta=delta, stages=0, max_steps=max_steps)
        solved = Solutions(
            *(np.concatenate(pair) for pair in zip(solved[:3], again[:3], strict=True)),
            solved.evaluations + again.evaluations,
        )
    objectives = np.where(np.isfinite(solved.objective), solved.objective, np.inf)
    best = int(np.argmin(objectives))
    minima = _distinct(np.where(solved.converged, objectives, np.inf))
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
        score = np.take_along_axis(scores, top, axis=1)
        # An endpoint that fits a draw a quarter worse than another is not in its best basin.
        draw, place = np.nonzero(score <= 1.25 * score[:, :1])
        drawn = solve(
            residual,
            endpoints[top[draw, place]],
            data,
            (draw_weights * base)[draw],
            delta=delta,
            stages=1,
            max_steps=max_steps,
        )
        evaluations += drawn.evaluations
        value = np.full(score.shape, np.inf)
        value[draw, place] = np.where(np.isfinite(drawn.objective), drawn.objective, np.inf)
        number = np.zeros(score.shape, int)
        number[draw, place] = np.arange(len(draw))
        chosen = number[np.arange(len(score)), np.argmin(value, axis=1)]
        draws = drawn.theta[chosen]
        unconverged = int(np.sum(~drawn.converged[chosen]))
    return MultiStart(
        theta=solved.theta[best],
        objective=float(objectives[best]),
        converged=bool(solved.converged[best]),
        objectives=objectives,
        n_best=int(np.sum(objectives <= objectives[best] + 1e-6 * scale + 1e-14)),
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


def seed_weights(cells: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Weights [B, n] that resample seeds within each cell (one configuration, k > 1 seeds).

    k - 1 of the k seeds are drawn, each with weight k/(k - 1): the variance of a cell's mean is
    then unbiased, where drawing k would understate it by (k - 1)/k.
    """
    weights = np.zeros((n_draws, len(cells)))
    for cell in np.unique(cells):
        index = np.flatnonzero(cells == cell)
        k = len(index)
        weights[:, index] = rng.multinomial(k - 1, np.full(k, 1 / k), size=n_draws) * k / (k - 1)
    return weights


def huber(r: Any, delta: Any) -> Any:
    """Huber's function; r^2 / 2 where delta is infinite."""
    size = jnp.abs(r)
    return jnp.where(size <= delta, 0.5 * r * r, delta * (size - 0.5 * delta))


def _finite(delta: float) -> float:
    return delta if math.isfinite(delta) else 1e150


def _pad(x: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([x, np.repeat(x[:1], n - len(x), axis=0)]) if len(x) < n else x


def _distinct(objectives: np.ndarray) -> np.ndarray:
    """Positions of the distinct minima, best first, at most 32; the best is always among them."""
    order = np.argsort(objectives)
    kept = [int(order[0])]
    while len(kept) < 32:
        # The next that is higher by more than rounding.
        above = objectives[kept[-1]]
        above += 1e-6 * abs(above) + 1e-14
        place = np.searchsorted(objectives[order], above, side="right")
        if place == len(order) or not np.isfinite(objectives[order[place]]):
            break
        kept.append(int(order[place]))
    return np.asarray(kept)


@functools.cache
def _losses(residual: Residual) -> Callable[..., Any]:
    def one(theta: Any, data: Any, delta: Any) -> Any:
        return huber(residual(theta, data), delta)

    return jax.jit(jax.vmap(one, in_axes=(0, None, None)))


def derivatives(residual: Residual) -> Callable[..., Any]:
    """(theta, data, delta, weight) -> f, its gradient, its Hessian and the diagonal of the majorant."""
    closed = getattr(residual, "derivatives", None)
    if closed is not None:
        return closed

    def by_autodiff(theta: Any, data: Any, delta: Any, weight: Any, rough: Any) -> tuple[Any, ...]:
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
    #: Steps in a row whose predicted decrease was below the tolerance; two end a stage.
    small: Any
    done: Any
    converged: Any


#: Steps that all problems take before those that are done leave.
_PHASE = 3
#: Stages of a robust fit before the last, and the most steps of each.
_STAGES = 2
_STAGE_STEPS = 100
_STAGE_TOLERANCE = 1e-4
_TOLERANCE = 1e-16
#: Threads of ours share the cores; XLA's own would wait on each other in arrays this small.
_OPTIONS = {"xla_cpu_multi_thread_eigen": False, "xla_cpu_prefer_vector_width": 512}


@functools.cache
def _program(residual: Residual, robust: bool, max_steps: int) -> Callable[..., Any]:
    evaluate = derivatives(residual)

    def advance(s: _State, sums: Callable[..., Any], delta: Any, end: Any) -> _State:
        n = s.theta.shape[0]
        scale = s.bound + 1e-14 * jnp.sum(s.bound) + 1e-200
        damped = s.hessian + jnp.diag((s.damping + 1e-15) * scale)
        move, positive = _cholesky_solve(damped, -s.gradient, n)
        move = jnp.where(s.fresh | ~positive, 0.0, move)
        predicted = -(s.gradient @ move + 0.5 * move @ (s.hessian @ move))

        trial = s.theta + move
        here = delta * 10.0**s.stage if robust else jnp.asarray(1e150)
        value, gradient, hessian, bound = sums(trial, here, s.stage == _STAGES)
        usable = positive & jnp.isfinite(value) & jnp.all(jnp.isfinite(hessian))
        gain = s.value - value
        # Below this promise rounding decides the gain, so a step need only do no harm.
        sure = (predicted <= 1e-12 * jnp.abs(s.value)) & (gain >= -1e-14 * jnp.abs(s.value))
        accept = s.fresh | (usable & ((gain > 0) | sure))
        ratio = jnp.where(usable & (predicted > 0), jnp.where(sure, 1.0, gain / predicted), -1.0)
        factor = jnp.where(ratio > 0.7, 0.1, jnp.where(ratio > 0.2, 1.0, 4.0))
        damping = s.damping * jnp.where(usable, factor, 10.0)
        damping = jnp.where(s.fresh, s.damping, jnp.clip(damping, 1e-14, 1e14))

        # The end is two steps in a row that promise almost nothing, or one where that suffices: in
        # a stage that only leads on, and where damping does not make the promise small.
        last = s.stage == end
        final = s.stage == 0
        tolerance = jnp.where(final, _TOLERANCE, _STAGE_TOLERANCE)
        tiny = predicted <= tolerance * jnp.abs(s.value) + 1e-30
        tiny_move = jnp.all(jnp.abs(move) <= 1e-13 * (1 + jnp.abs(s.theta)))
        enough = jnp.where(~final | (tiny & (s.damping <= 1e-4)), 2, 1)
        small = jnp.where(~s.fresh & positive & (tiny | tiny_move), s.small + enough, 0)
        limit = jnp.where(final, max_steps, _STAGE_STEPS)
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

    def one(
        state: _State,
        weight: Any,
        own: Any,
        data: Any,
        chunks: Any,
        delta: Any,
        end: Any,
        horizon: Any,
    ) -> _State:
        def sums(theta: Any, delta: Any, rough: Any) -> tuple[Any, ...]:
            def add(i: Any, total: tuple[Any, ...]) -> tuple[Any, ...]:
                part = jax.tree.map(lambda x: x[i], {**data, **own})
                return jax.tree.map(jnp.add, total, evaluate(theta, part, delta, weight[i], rough))

            zero = jnp.zeros(())
            none = (zero, *(jnp.zeros_like(x) for x in (theta, jnp.outer(theta, theta), theta)))
            return jax.lax.fori_loop(0, chunks, add, none)

        return jax.lax.while_loop(
            lambda s: ~s.done & (s.steps < horizon), lambda s: advance(s, sums, delta, end), state
        )

    def packed(numbers: Any, *rest: Any) -> Any:
        out = one(_unpacked(numbers), *rest)
        return jnp.concatenate([jnp.ravel(x).astype(jnp.float64) for x in out])

    def groups(numbers: Any, weight: Any, own: Any, *shared: Any) -> Any:
        group = jax.vmap(packed, in_axes=(0, 0, 0, *[None] * len(shared)))
        return jax.lax.map(lambda each: group(*each, *shared), (numbers, weight, own))

    return jax.jit(groups, compiler_options=_OPTIONS)


def _unpacked(numbers: Any) -> _State:
    """A state from its numbers, which travel in one array: a call takes less time that way."""
    n = (math.isqrt(4 * len(numbers) - 27) - 3) // 2  # as n^2 + 3 n + 9 numbers are a state
    like = jax.tree.map(lambda x: x[0], _first_states(np.zeros((1, n)), 0))
    ends = np.cumsum([x.size for x in like])[:-1]
    parts = jnp.split(numbers, ends)
    return _State(*(p.reshape(x.shape).astype(x.dtype) for p, x in zip(parts, like, strict=True)))


def _first_states(theta: np.ndarray, stage: int) -> _State:
    """The state of every problem before its first evaluation."""
    k, n = theta.shape
    return _State(
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
