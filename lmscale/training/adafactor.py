"""Adafactor (Shazeer & Stern 2018) with every weight matrix of every layer factored by itself.

A model's layers are stacked in its parameters, and kernels keep axes for heads and gates. Adafactor
is defined on matrices: one [d_in, d_out] for each kernel of each layer, so the axes are named here.
optax goes by their lengths: it factors the two longest axes if both have 128 entries, which leaves
kernels with heads unfactored, factors deep narrow models across their layers, and is another algorithm
for narrow models than for wide ones.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from lmscale.parallel.partition import path_name

#: (pattern searched at the end of a parameter's path, leading axes that number arrays of their own,
#: following axes of d_in). The axes that remain are d_out. First match wins; what matches nothing
#: is one vector. Fused kernels are one matrix, as GPT-2's queries, keys and values in `transformers`
#: and an LSTM's gates in torch are: [d_model, 3 d_attn] and [d_in, 4 d_hidden].
SHAPES: tuple[tuple[str, int, int], ...] = (
    # [n_head, d_head, d_model].
    (r"attention/out/kernel$", 0, 2),
    # [3, n_head, d_head], three vectors: softmax does not see the bias of the keys, so its gradient is
    # rounding noise, which would decide how far the other two are clipped.
    (r"qkv/bias$", 1, 0),
    (r"(^|/)(kernel|input_kernel|recurrent_kernel|embedding|position)$", 0, 1),
)
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

    count: jax.Array
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
            own, d_in, d_out = _axes(path, x, stacks)
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
            _, d_in, d_out = _axes(path, grad, stacks)
            squared = jnp.square(grad) + EPSILON
            if not d_in:
                return decay * moment + (1 - decay) * squared
            return Factors(
                decay * moment.row + (1 - decay) * squared.mean(d_out),
                decay * moment.column + (1 - decay) * squared.mean(d_in),
            )

        def direction(path, grad, moment):
            own, d_in, d_out = _axes(path, grad, stacks)
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


def _axes(
    path: tuple[Any, ...], x: jax.Array, stacks: tuple[str, ...]
) -> tuple[tuple[int, ...], ...]:
    """A parameter's axes: those that number its arrays (layers first), d_in and d_out.

    A vector has neither d_in nor d_out.
    """
    name = path_name(path)
    n_own, n_in = next((ns for pattern, *ns in SHAPES if re.search(pattern, name)), (0, 0))
    n_own += name.split("/", 1)[0] in stacks
    own, inner = tuple(range(n_own)), tuple(range(n_own, x.ndim))
    return own, inner[:n_in], inner[n_in:] if n_in else ()
