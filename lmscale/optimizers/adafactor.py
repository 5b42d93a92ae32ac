"""Adafactor (Shazeer & Stern 2018) with every weight matrix of every layer factored by itself.

Adafactor is defined on matrices; `lmscale.optimizers.matrices` says which axes of our arrays these have.
optax goes by the lengths of axes: it factors the two longest if both have 128 entries. That leaves
kernels with heads unfactored, factors deep narrow models across their layers, and is another
algorithm for narrow models than for wide ones.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmscale.optimizers.matrices import matrix_axes

#: Added to squared gradients (the paper's epsilon_1).
EPSILON = 1e-30
#: c of the decay 1 - t^-c (the paper's section 7.2).
DECAY = 0.8
#: Largest root mean square of a matrix's update before the learning rate (the paper's d).
CLIP = 1.0


class Factors(NamedTuple):
    """The second moment of a matrix of each layer as an outer product.

    Attributes:
      row: means over d_out, [layer, *d_in]; without the layer axis where nothing is stacked.
      column: means over d_in, [layer, *d_out].
    """

    row: jax.Array
    column: jax.Array


class AdafactorState(NamedTuple):
    """Updates made, and for each parameter its `Factors`, or its whole second moment if a vector."""

    # Named as in optax's states, and so in checkpoints; it hides a method of tuples that nobody needs.
    count: jax.Array  # type: ignore[assignment]
    moments: Any


def scale_by_adafactor(stacks: tuple[str, ...]) -> optax.GradientTransformation:
    """Adafactor's update before the learning rate: no momentum, no scaling by the parameter's size.

    Algorithms 4 and 5 of Shazeer & Stern 2018, https://arxiv.org/abs/1804.04235:
    R_t = b R + (1 - b) mean_out(G^2 + eps), C_t likewise over d_in, b = 1 - t^-0.8;
    U = G / sqrt(R C / mean(R)), divided by its root mean square where that exceeds 1. Vectors keep
    their whole second moment. Of stacked layers each is updated as if it were alone.

    Args:
      stacks: names of the entries that hold stacked layers (`ModelSpec.STACKS`).
    """

    def init(params):
        def zeros(path, x):
            own, d_in, d_out = matrix_axes(path, x, stacks)
            if not d_in:
                return jnp.zeros_like(x)
            row, column = (tuple(x.shape[i] for i in own + axes) for axes in (d_in, d_out))
            return Factors(jnp.zeros(row, x.dtype), jnp.zeros(column, x.dtype))

        moments = jax.tree_util.tree_map_with_path(zeros, params)
        return AdafactorState(jnp.zeros((), jnp.int32), moments)

    def update(grads, state, params=None):
        del params
        count = optax.safe_increment(state.count)
        decay = 1.0 - jnp.float32(count) ** -DECAY

        def average(path, grad, moment):
            _, d_in, d_out = matrix_axes(path, grad, stacks)
            squared = jnp.square(grad) + EPSILON
            if not d_in:
                return decay * moment + (1 - decay) * squared
            return Factors(
                decay * moment.row + (1 - decay) * squared.mean(d_out),
                decay * moment.column + (1 - decay) * squared.mean(d_in),
            )

        def direction(path, grad, moment):
            own, d_in, d_out = matrix_axes(path, grad, stacks)
            if d_in:
                row = jnp.expand_dims(moment.row, d_out)
                # Two factors, because their product may leave the range of a float32.
                row = jax.lax.rsqrt(row / row.mean(d_in, keepdims=True))
                scaled = grad * row * jax.lax.rsqrt(jnp.expand_dims(moment.column, d_in))
            else:
                scaled = grad * jax.lax.rsqrt(moment)
            rms = jnp.sqrt(jnp.square(scaled).mean(range(len(own), grad.ndim), keepdims=True))
            return scaled / jnp.maximum(1.0, rms / CLIP)

        moments = jax.tree_util.tree_map_with_path(average, grads, state.moments)
        updates = jax.tree_util.tree_map_with_path(direction, grads, moments)
        return updates, AdafactorState(count, moments)

    return optax.GradientTransformation(init, update)
