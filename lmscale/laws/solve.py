"""One solver for every curved law: damped Newton on a robust sum, for all problems at once.

A problem is a start and a set of weights. Hundreds of problems run in one vmapped, jitted program
in float64, and blocks of problems are spread over the cores. The objective is a sum over runs,
never a mean, of Huber's function of a law's residuals (usually in log loss), as in Hoffmann et al.
2022, eq. 3:

    f(theta) = sum_i w_i huber_delta(r_i(theta)),   huber(r) = r^2/2 for |r| < delta, else
                                                    delta (|r| - delta/2)

Hoffmann's delta = 1e-3 makes this close to least absolute deviations, on which first-order methods
stop early. Here delta shrinks in stages. Each step solves

    (H + lambda diag M) p = -grad f

where M is the matrix of iteratively reweighted Gauss-Newton, which bounds Huber's function from
above and is never indefinite. H is the exact Hessian; the first stage, far from any minimum, takes
M in its place. lambda follows the ratio of actual to predicted decrease, and grows where the
matrix is not positive definite. `lmscale.laws.newton` has the steps, this module the bookkeeping.

With many starts on a large table, the first stage uses only 64 of the runs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lmscale.cores import n_cores
from lmscale.laws.cpu import float64_on_cpu
from lmscale.laws.newton import LEAST_SQUARES, STAGES, Residual, State, first_states, program

__all__ = [
    "MultiStart",
    "Solutions",
    "multi_start",
    "product_grid",
    "seed_weights",
    "solve",
]

#: Problems in one vmapped group, and runs that a step sums over at a time: the arrays of a group
#: then fit into the cache of one core.
_LANES, _CHUNK = 32, 64
_CORES = n_cores()
#: Steps that all pending problems take before the finished ones leave.
_PHASE = 3
#: Most local minima that are reported.
_MOST_MINIMA = 32


class Solutions(NamedTuple):
    """Theta [K, P], objective [K] and converged [K] of K problems.

    `evaluations` counts residuals: problems x steps x runs.
    """

    theta: np.ndarray
    objective: np.ndarray
    converged: np.ndarray
    evaluations: int


class MultiStart(NamedTuple):
    """The best of many starts, and the other local minima."""

    theta: np.ndarray
    objective: float
    converged: bool
    #: Objective at the end of every start (infinite where it is not a number).
    objectives: np.ndarray
    #: How many starts ended in the best minimum (objective within 1e-6 of it).
    n_best: int
    #: Distinct local minima [m, P], best first, and their objectives.
    minima: np.ndarray
    minima_objectives: np.ndarray
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
    """Minimises f from every row of `theta` [K, P].

    Args:
      residual: a module-level function, since programs are cached by it; a `newton.ClosedForm`
        brings its own derivatives.
      theta: starts [K, P].
      data: columns [n] that `residual` reads, by name.
      weights: [n] for all problems, or [K, n].
      own: arrays [K, n], one row per problem, that replace entries of `data`.
      delta: Huber's delta; infinite is least squares.
      stages: how many tenfold shrinkings of delta come before the last stage. A start near its
        minimum needs none.
      max_steps: most steps of the last stage.
    """
    theta = np.atleast_2d(np.asarray(theta, np.float64))
    robust = math.isfinite(delta)
    stages = (STAGES if stages is None else stages) if robust else 0
    own = {name: np.asarray(values, np.float64) for name, values in (own or {}).items()}
    shared = np.ndim(weights) == 1 and not own
    weights = np.atleast_2d(np.asarray(weights, np.float64))
    data = jax.tree.map(lambda x: np.asarray(x, np.float64), data)
    compiled = program(residual)
    delta = delta if robust else LEAST_SQUARES
    states = first_states(theta, stages)
    leader = np.arange(len(theta))
    pending, evaluations = leader, 0
    rows = _spread(data, weights[0]) if shared and stages == STAGES else None
    if rows is not None and len(theta) >= _LANES:
        # The first stage only leads each start to its basin, and some of the runs are enough for
        # that. Most starts have met by then, so few problems are left for all runs.
        few = jax.tree.map(lambda x: x[rows], data)
        run, size = _runner(compiled, states, few, {}, weights[:, rows], delta, max_steps)
        _finish(run, size, states, pending, leader, stages)
        evaluations += int(states.steps.sum()) * len(rows)
        states.stage[:], states.fresh[:], states.steps[:] = stages - 1, True, 0
        states.done[:] = ~np.isfinite(states.value)
        pending = _merge(states, np.unique(_resolve_leaders(leader)), leader)
        pending = pending[~states.done[pending]]
    run, size = _runner(compiled, states, data, own, weights, delta, max_steps)
    _finish(run, size, states, pending, leader if shared else None, 0)
    leader = _resolve_leaders(leader)
    evaluations += int(states.steps.sum()) * weights.shape[1]
    return Solutions(
        states.theta[leader], states.value[leader], states.converged[leader], evaluations
    )


def multi_start(
    residual: Residual,
    starts: np.ndarray,
    data: Any,
    n: int,
    *,
    delta: float = math.inf,
    weights: np.ndarray | None = None,
    direct: bool = False,
    max_steps: int = 200,
) -> MultiStart:
    """The best minimum over `starts` [S, P], and the other minima found.

    Args:
      residual, data, delta, max_steps: see `solve`.
      starts: [S, P].
      n: number of runs.
      weights: [n] of the runs.
      direct: solve every start a second time with the last delta alone. Shrinking delta in stages
        leads past shallow minima; this finds and reports them too.
    """
    base = np.ones(n) if weights is None else np.asarray(weights, float)
    solved = solve(residual, starts, data, base, delta=delta, max_steps=max_steps)
    if direct:
        again = solve(residual, starts, data, base, delta=delta, stages=0, max_steps=max_steps)
        solved = Solutions(
            theta=np.concatenate([solved.theta, again.theta]),
            objective=np.concatenate([solved.objective, again.objective]),
            converged=np.concatenate([solved.converged, again.converged]),
            evaluations=solved.evaluations + again.evaluations,
        )
    objectives = np.where(np.isfinite(solved.objective), solved.objective, np.inf)
    best = int(np.argmin(objectives))
    minima = _distinct(np.where(solved.converged, objectives, np.inf))
    scale = max(abs(objectives[best]), 1e-300)
    return MultiStart(
        theta=solved.theta[best],
        objective=float(objectives[best]),
        converged=bool(solved.converged[best]),
        objectives=objectives,
        n_best=int(np.sum(objectives <= objectives[best] + 1e-6 * scale + 1e-14)),
        minima=solved.theta[minima],
        minima_objectives=objectives[minima],
        evaluations=solved.evaluations,
    )


def seed_weights(cells: np.ndarray, n_draws: int, rng: np.random.Generator) -> np.ndarray:
    """Weights [B, n] that resample seeds within each cell (one configuration with k > 1 seeds).

    k - 1 of the k seeds are drawn, each with weight k/(k - 1). The variance of a cell's mean is
    then unbiased; drawing k seeds would understate it by (k - 1)/k.
    """
    weights = np.zeros((n_draws, len(cells)))
    for cell in np.unique(cells):
        index = np.flatnonzero(cells == cell)
        k = len(index)
        weights[:, index] = rng.multinomial(k - 1, np.full(k, 1 / k), size=n_draws) * k / (k - 1)
    return weights


def product_grid(*axes: Sequence[float] | np.ndarray) -> np.ndarray:
    """Every combination of the axes' values, one per row."""
    return np.stack([g.ravel() for g in np.meshgrid(*axes, indexing="ij")], axis=1).astype(float)


def _finish(
    run: Callable[..., Any],
    size: int,
    states: State,
    pending: np.ndarray,
    leader: np.ndarray | None,
    last: int,
) -> None:
    """Runs the pending problems to the end of stage `last`, at most `size` of them per call.

    Problems differ in how many steps they need, and a block takes as long as its slowest one. So
    all take a few steps, the finished ones leave, and the rest are packed again. Where `leader` is
    given, problems that have met are merged.
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
    compiled: Callable[..., Any],
    states: State,
    data: Any,
    own: Mapping[str, np.ndarray],
    weights: np.ndarray,
    delta: float,
    max_steps: int,
) -> tuple[Callable[[np.ndarray, int, int], list[np.ndarray]], int]:
    """A function that calls the program, and the most problems that it takes.

    The function maps (problems, last stage, horizon) to their states after `horizon` steps, or at
    the end of that stage.
    """
    n = weights.shape[1]
    chunks = -(-n // _CHUNK)
    # Rounded up, so that tables of similar size share a compiled program. Chunks beyond the table
    # are not computed.
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
    with float64_on_cpu():
        data = jax.tree.map(
            lambda x: jnp.asarray(_pad(x, room * _CHUNK).reshape(room, _CHUNK, *x.shape[1:])), data
        )
        same = None
        if len(weights) == 1:
            same = jnp.asarray(np.broadcast_to(weights, (*shape, room, _CHUNK)))

    def run(index: np.ndarray, last: int, horizon: int) -> list[np.ndarray]:
        full = np.concatenate([index, np.repeat(index[:1], total - len(index))])
        here = np.concatenate([x[full].reshape(total, -1) for x in states], axis=1)
        here[len(index) :, -2] = True  # copies that only fill up the call are marked as done
        weight = weights[full].reshape(*shape, room, _CHUNK) if same is None else same
        mine = {k: v[full].reshape(*shape, room, _CHUNK) for k, v in own.items()}
        with float64_on_cpu():
            numbers = here.reshape(*shape, -1)
            out = compiled(numbers, weight, mine, data, chunks, delta, last, horizon, max_steps)
            out = np.asarray(out).reshape(total, -1)[: len(index)]
        parts = np.split(out, np.cumsum([x[0].size for x in states])[:-1], axis=1)
        return [part.reshape(-1, *x.shape[1:]) for part, x in zip(parts, states, strict=True)]

    return run, total


def _spread(data: Any, weight: np.ndarray) -> np.ndarray | None:
    """About `_CHUNK` runs that cover the range of every column evenly.

    None for a table so small that these would be half of the runs or more.
    """
    every = [x.reshape(len(weight), -1).T for x in jax.tree.leaves(data)]
    columns = np.concatenate(every)[:, weight > 0]
    n = columns.shape[1]
    if n < 2 * _CHUNK:
        return None
    places = np.linspace(0, n - 1, max(2, _CHUNK // len(columns))).round().astype(int)
    rows = np.unique(np.argsort(columns, axis=1, kind="stable")[:, places])
    return np.flatnonzero(weight > 0)[rows]


def _resolve_leaders(leader: np.ndarray) -> np.ndarray:
    """The last problem in each chain of leaders."""
    while np.any(leader[leader] != leader):
        leader = leader[leader]
    return leader


def _map(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """`function` of every item, on one thread per core (XLA releases the GIL)."""
    if len(items) == 1:
        return [function(items[0])]
    with ThreadPoolExecutor(max_workers=_CORES) as pool:
        return list(pool.map(function, items))


def _merge(states: State, pending: np.ndarray, leader: np.ndarray) -> np.ndarray:
    """Continues problems that are at the same point in the same stage as one problem.

    A fit has thousands of starts, and most of them meet within a few steps. `leader` records which
    problem stands for each one from now on.

    Returns:
      the problems that continue.
    """
    # In the earlier stages points are compared coarsely. In the last one they are compared finely,
    # so that minima close to each other stay apart.
    stage = states.stage[pending, None]
    cells = np.round(states.theta[pending] * np.where(stage > 0, 1e3, 1e5))
    keys = np.concatenate([cells, stage], axis=1)
    _, first, where = np.unique(keys, axis=0, return_index=True, return_inverse=True)
    leader[pending] = pending[first][where.ravel()]
    return pending[np.sort(first)]


def _pad(x: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([x, np.repeat(x[:1], n - len(x), axis=0)]) if len(x) < n else x


def _distinct(objectives: np.ndarray) -> np.ndarray:
    """Positions of the distinct minima, best first, at most 32; the best is always among them."""
    order = np.argsort(objectives)
    kept = [int(order[0])]
    while len(kept) < _MOST_MINIMA:
        # The next objective that is higher by more than rounding.
        above = objectives[kept[-1]]
        above += 1e-6 * abs(above) + 1e-14
        place = np.searchsorted(objectives[order], above, side="right")
        if place == len(order) or not np.isfinite(objectives[order[place]]):
            break
        kept.append(int(order[place]))
    return np.asarray(kept)
