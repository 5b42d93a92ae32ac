"""The parametric surface in the coordinates of its fit: data, residual and closed-form derivatives.

    r = LSE(a - alpha u, b - beta v, e) - ln L        Hoffmann et al. 2022, eq. 3

with u = ln N and v = ln D less their means over the runs. The derivatives are written out, because
this fit solves thousands of problems: they share their exponentials, and vectorise on a CPU.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lmscale.laws.newton import ClosedForm
from lmscale.laws.table import Runs

__all__ = ["NAMES", "log_of_normal", "named_parameters", "surface_data", "surface_residual"]

NAMES = ("E", "A", "B", "alpha", "beta")


def surface_data(runs: Runs) -> dict[str, np.ndarray]:
    """What the residual reads: u, v and ln L, each [run]."""
    x, y = np.log(runs["params"]), np.log(runs["tokens"])
    return {"u": x - x.mean(), "v": y - y.mean(), "log_y": np.log(runs["loss"])}


def named_parameters(theta: np.ndarray, runs: Runs) -> dict[str, Any]:
    """E, A, B, alpha and beta of (a, b, e, alpha, beta) at the runs' geometric mean."""
    a, b, e, alpha, beta = np.moveaxis(theta, -1, 0)
    x, y = np.log(runs["params"]).mean(), np.log(runs["tokens"]).mean()
    with np.errstate(over="ignore"):
        values = (np.exp(e), np.exp(a + alpha * x), np.exp(b + beta * y))
    return dict(zip(NAMES, (*values, alpha, beta), strict=True))


def _residual(theta: Any, data: Any) -> Any:
    """theta = (a, b, e, alpha, beta) at the runs' geometric mean; ln L predicted less observed."""
    a, b, e, alpha, beta = theta
    terms = jnp.stack([a - alpha * data["u"], b - beta * data["v"], jnp.full_like(data["u"], e)])
    top = jnp.max(terms, axis=0)
    return top + jnp.log(jnp.sum(jnp.exp(terms - top), axis=0)) - data["log_y"]


def _derivatives(
    theta: Any, data: Any, delta: Any, weight: Any, rough: Any
) -> tuple[Any, Any, Any, Any]:
    """f, gradient, Hessian and the diagonal of the majorant.

    With p the softmax of the three terms, d r/d term = p and d^2 r/d term^2 = diag(p) - p p^T. The
    terms are linear in theta, with features 1, u and v. So every sum is a product of p's with a
    monomial in u and v. All problems share the monomials: under vmap each sum is a matrix times a
    vector. There are no comparisons and no logarithm of the C library, because either would keep
    XLA's loops from vectorising on a CPU.
    """
    a, b, e, alpha, beta = theta
    u, v = data["u"], data["v"]
    # Terms relative to the third one, which saves an exponential. The clip avoids overflow: beyond
    # e^300 one term is the whole sum.
    x1 = jnp.exp(jnp.clip(a - e - alpha * u, -300.0, 300.0))
    x2 = jnp.exp(jnp.clip(b - e - beta * v, -300.0, 300.0))
    total = 1.0 + x1 + x2
    r = e + log_of_normal(total) - data["log_y"]
    p3 = 1.0 / total
    p1, p2 = x1 * p3, x2 * p3
    size = jnp.abs(r)
    # Huber's slope over r. Its floor is 1 where |r| <= delta and 0 elsewhere.
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
    # The sums of slope p give the gradient. With one more factor of u or v they give the part of the
    # Hessian that comes from d^2 r.
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


def log_of_normal(x: Any) -> Any:
    """ln x of normal float64, to 2 units in the last place, by operations that vectorise.

    x = 2^k m with m between 1/sqrt 2 and sqrt 2, and ln m = 2 artanh((m - 1)/(m + 1)) as a series.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.int64)
    k = (bits - 0x3FE6A09E667F3BCD) >> 52
    m = jax.lax.bitcast_convert_type(bits - (k << 52), jnp.float64)
    s = (m - 1.0) / (m + 1.0)
    square = s * s
    series: Any = 1.0 / 23.0
    for odd in range(21, 0, -2):
        series = 1.0 / odd + square * series
    return k.astype(jnp.float64) * math.log(2.0) + 2.0 * s * series


#: See the module. A `ClosedForm`, so that the solver takes these derivatives.
surface_residual = ClosedForm(_residual, _derivatives)
