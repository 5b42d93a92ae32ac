"""Layers that both architectures use: linear maps, layer normalisation, the embedding, dropout.

Parameters are float32; `dtype` is that of the arithmetic. Kernels keep the shape that gives their
axes a meaning ([d_model, 3, n_head, d_head], [d_in, 4, d_hidden]), so that the table of partition
rules can name an axis.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from lmscale.parallel.partition import gathered, keep_batch


class Linear(nnx.Module):
    """x [..., *d_in] -> [..., *d_out]: contracts the trailing axes of x with the kernel's leading."""

    def __init__(
        self,
        d_in: tuple[int, ...],
        d_out: tuple[int, ...],
        rngs: nnx.Rngs,
        *,
        std: float,
        bias: bool,
        dtype: jnp.dtype,
    ):
        self.kernel = nnx.Param(std * jax.random.normal(rngs.params(), (*d_in, *d_out)))
        self.bias = nnx.Param(jnp.zeros(d_out)) if bias else None
        self.n_contracted = len(d_in)
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.tensordot(
            x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.n_contracted
        )
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, computed in float32 (epsilon 1e-5 as in GPT-2)."""

    def __init__(self, d_model: int, *, bias: bool, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones(d_model))
        self.bias = nnx.Param(jnp.zeros(d_model)) if bias else None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.astype(jnp.float32)
        mean = x.mean(-1, keepdims=True)
        centred = x - mean
        variance = jnp.square(centred).mean(-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + 1e-5) * self.scale[...]
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(self.dtype)


class Embedding(nnx.Module):
    """Token ids to vectors; as a tied head, vectors back to logits."""

    def __init__(self, vocab_size: int, d_embed: int, rngs: nnx.Rngs, *, std: float, dtype):
        self.embedding = nnx.Param(std * jax.random.normal(rngs.params(), (vocab_size, d_embed)))
        self.dtype = dtype

    def __call__(self, tokens: jax.Array) -> jax.Array:
        # Else XLA may split features over the batch's devices, and gather the batch for the derivative.
        embedding = gathered("embed/embedding", self.embedding[...])
        return keep_batch(embedding[tokens].astype(self.dtype))

    def attend(self, x: jax.Array) -> jax.Array:
        """x [..., d_embed] -> float32 logits [..., vocab]."""
        logits = jnp.tensordot(x, self.embedding[...].astype(self.dtype), ((-1,), (-1,)))
        return keep_batch(logits.astype(jnp.float32), -1)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a fraction `rate` of x and rescales the rest; the identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def fold(key: jax.Array | None, index) -> jax.Array | None:
    """A key of its own for place `index`, or None where there is no dropout."""
    return None if key is None else jax.random.fold_in(key, index)
