"""Variable projection for the parametric surface (Czech 2026, 2603.22339).

The sum of squared relative errors of E + A/N^alpha + B/D^beta is minimised over alpha and beta only;
E, A and B are the non-negative least squares solution for each pair. The problem in two variables is
well conditioned.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from lmscale.laws.solve import product_grid

__all__ = ["Projection", "fit_by_projection"]


class Projection(NamedTuple):
    """Solutions, one row per table.

    theta [K, 5] is (ln A', ln B', ln E, alpha, beta), where A' and B' are the terms at the runs'
    geometric mean; a logarithm is minus infinity where its term is zero.
    """

    theta: np.ndarray
    objective: np.ndarray
    converged: np.ndarray


def fit_by_projection(
    u: np.ndarray, v: np.ndarray, loss: np.ndarray, base: np.ndarray
) -> Projection:
    """The best surface for each table of losses.

    Args:
      u, v: [n] ln N and ln D less their means.
      loss: [K, n]. A grid of exponents finds the basin of the first table, and the others start from
        its minimum.
      base: [n] weights.
    """
    axis = np.array([0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1.1, 1.6])
    grid = product_grid(axis, axis)
    scores = _project(grid, u, v, loss[:1], np.tile(base, (len(grid), 1)))[0]
    first = np.log(grid[np.argmin(scores)])[None]
    first, *_ = _newton(first, u, v, loss[:1], base[None])
    weights = np.tile(base, (len(loss), 1))
    theta = np.tile(first, (len(loss), 1))
    theta, objective, gradient = _newton(theta, u, v, loss, weights)
    exponents = np.exp(theta)
    linear = _project(exponents, u, v, loss, weights)[1]
    with np.errstate(divide="ignore"):
        logs = np.log(linear)
    bound = 1e-8 * (objective + 1e-12 * float(np.sum(base))) + 1e-13
    converged = np.max(np.abs(gradient), axis=1) <= bound
    return Projection(
        np.column_stack([logs[:, 1], logs[:, 2], logs[:, 0], exponents]), objective, converged
    )


#: Which of E, A and B may be positive; the best feasible subset is the non-negative solution.
_SUBSETS = [s for k in (3, 2, 1) for s in itertools.combinations(range(3), k)]


def _project(
    exponents: np.ndarray, u: np.ndarray, v: np.ndarray, loss: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The reduced objective, (E, A, B), and the gradient in ln alpha and ln beta.

    E, A and B are at their minimum, so only the direct derivatives contribute to the gradient.

    Args:
      exponents: [B, 2].
      weights: [B, n].
    """
    columns = np.stack(
        [
            np.broadcast_to(1 / loss, (len(exponents), loss.shape[1])),
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
    """Damped Newton in (ln alpha, ln beta) for all draws, with the Hessian by finite differences."""

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
