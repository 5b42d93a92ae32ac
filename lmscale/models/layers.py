"""Layers that several models use: linear maps, layer normalisation, the embedding, dropout.

Parameters are float32; `dtype` is the type of the arithmetic. Kernels keep one axis per meaning
([d_model, 3, n_head, d_head], [d_in, 4, d_hidden]), so that a partition rule can name an axis.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lmscale.architectures import ModelSpec
from lmscale.models.lookup import lookup
from lmscale.parallel.partition import constrain_activations, on_gpu, unshard_data_axis


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
        y = dense_matmul(
            x.astype(self.dtype), self.kernel[...].astype(self.dtype), self.n_contracted
        )
        return y if self.bias is None else y + self.bias[...].astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def dense_matmul(x: jax.Array, kernel: jax.Array, n: int, batch_first: bool = True) -> jax.Array:
    """x [..., *d_in], kernel [*d_in, *d_out] -> [..., *d_out], where d_in has `n` axes.

    The derivative is that of automatic differentiation, but the kernel's gradient is computed with
    its axes in the kernel's order. Otherwise XLA transposes the activations of the whole batch on a
    CPU.

    Args:
      batch_first: whether the first axis of x is the batch. If it is not, the rows stay separate axes:
        merging them would gather the batch on every device that holds a part of it.
    """
    return jnp.tensordot(x, kernel, n)


def _dense_matmul_backward(n, batch_first, saved, dy):
    x, kernel = saved
    rows = tuple(range(x.ndim - n))
    left, right = x, dy
    if batch_first:
        # On a CPU one axis of rows is faster than several.
        left, right = (a.reshape(-1, *a.shape[len(rows) :]) for a in (x, dy))
        rows = (0,)
    # With the wider operand on the right a CPU is up to twice as fast.
    swap = math.prod(kernel.shape[:n]) > math.prod(kernel.shape[n:])
    if swap:
        left, right = right, left
    # The barrier keeps XLA from replacing a transpose of the result by one of the operands.
    d_kernel = jax.lax.optimization_barrier(
        jax.lax.dot_general(left, right, ((rows, rows), ((), ())))
    )
    if swap:
        first = left.ndim - len(rows)
        d_kernel = jnp.moveaxis(d_kernel, range(first), range(-first, 0))
    d_out = (tuple(range(x.ndim - n, dy.ndim)), tuple(range(n, kernel.ndim)))
    dx = jax.lax.dot_general(dy, kernel, (d_out, ((), ())))
    return dx, d_kernel


def _dense_matmul_forward(x, kernel, n, batch_first):
    return dense_matmul(x, kernel, n, batch_first), (x, kernel)


dense_matmul.defvjp(_dense_matmul_forward, _dense_matmul_backward)


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, computed in float32 (epsilon 1e-5 as in GPT-2)."""

    def __init__(self, d_model: int, *, bias: bool, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones(d_model))
        self.bias = nnx.Param(jnp.zeros(d_model)) if bias else None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        y = normalise(x, self.scale[...])
        if self.bias is not None:
            y = y + self.bias[...]
        return y.astype(self.dtype)


class Embedding(nnx.Module):
    """Token ids to vectors; as a tied head, vectors back to logits."""

    def __init__(
        self, vocab_size: int, d_embed: int, rngs: nnx.Rngs, *, std: float, dtype: jnp.dtype
    ):
        self.embedding = nnx.Param(std * jax.random.normal(rngs.params(), (vocab_size, d_embed)))
        self.dtype = dtype

    def __call__(self, tokens: jax.Array) -> jax.Array:
        # Otherwise XLA may split the features over the devices of the batch, and gather the batch in
        # the backward pass.
        embedding = unshard_data_axis("embed/embedding", self.embedding[...])
        return constrain_activations(lookup(embedding, tokens, self.dtype))

    def attend(self, x: jax.Array) -> jax.Array:
        """x [..., d_embed] -> float32 logits [..., vocab]."""
        logits = dense_matmul(x, self.embedding[...].astype(self.dtype).T, 1)
        return constrain_activations(logits.astype(jnp.float32), -1)


@jax.custom_vjp
def normalise(x: jax.Array, scale: jax.Array) -> jax.Array:
    """(x - mean) / sqrt(variance + 1e-5) * scale over the last axis, in float32.

    The derivative is written by hand, so that x is the only activation that the backward pass needs.
    Automatic differentiation would save several arrays of its size.

    Args:
      x: [..., d].
      scale: [d].
    """
    return _normalise_forward(x, scale)[0]


def _normalise_forward(x, scale):
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    centred = wide - mean
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5)
    return centred * inverse * scale, (x, mean, inverse, scale)


def _normalise_backward(saved, dy):
    x, mean, inverse, scale = saved
    normal = (x.astype(jnp.float32) - mean) * inverse
    d_normal = dy * scale
    along = (d_normal * normal).mean(-1, keepdims=True)
    dx = inverse * (d_normal - d_normal.mean(-1, keepdims=True) - normal * along)
    return dx.astype(x.dtype), (dy * normal).sum(tuple(range(x.ndim - 1)))


normalise.defvjp(_normalise_forward, _normalise_backward)


_GELU_1 = math.sqrt(2 / math.pi)
_GELU_3 = 0.044715 * _GELU_1


def gelu(x: jax.Array) -> jax.Array:
    """GELU in its tanh form, as in GPT-2; only x is saved for the backward pass (see `normalise`)."""
    return _gelu(x, on_gpu())


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gelu(x: jax.Array, again: bool) -> jax.Array:
    """See `gelu`. With `again` the backward pass computes all again.

    Otherwise XLA saves the tanh. A GPU takes longer to write and to read it than to compute it.
    """
    return 0.5 * x * (1 + jnp.tanh(x * (_GELU_1 + _GELU_3 * (x * x))))


def _gelu_backward(again, x, dy):
    if again:
        # sigmoid(2 u) = (1 + tanh u) / 2, in which XLA does not recognise the tanh of the forward pass.
        wide = x.astype(jnp.float32)
        square = wide * wide
        half = jax.nn.sigmoid(wide * (2 * _GELU_1 + 2 * _GELU_3 * square))
        slope = wide * (1 - half) * (2 * _GELU_1 + 6 * _GELU_3 * square)
        return ((dy * half * (1 + slope)).astype(x.dtype),)
    square = x * x
    tanh = jnp.tanh(x * (_GELU_1 + _GELU_3 * square))
    slope = x * (1 - tanh * tanh) * (_GELU_1 + 3 * _GELU_3 * square)
    return (0.5 * dy * (1 + tanh + slope),)


_gelu.defvjp(lambda x, again: (_gelu(x, again), x), _gelu_backward)


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a fraction `rate` of x and rescales the rest; the identity without a key."""
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, x.shape)
    return jnp.where(keep, x / (1.0 - rate), 0.0).astype(x.dtype)


def fold_key(key: jax.Array | None, index: jax.Array | int) -> jax.Array | None:
    """The dropout key of place `index`; None where there is no dropout."""
    return None if key is None else jax.random.fold_in(key, index)


class LanguageModel(nnx.Module):
    """Base of the models: from token ids to logits, by way of `hidden`, which each model has.

    Attributes:
      embed: the embedding; it is also the output head where `head` is None.
      head: see `output_head`.
    """

    embed: Embedding
    head: Linear | None

    def __call__(self, tokens: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """tokens int32 [batch, time <= n_ctx] -> float32 logits [batch, time, vocab]."""
        return self.logits(self.hidden(tokens, dropout_key=dropout_key))

    def hidden(self, tokens: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """tokens int32 [batch, time <= n_ctx] -> input of the output head [batch, time, head_width]."""
        raise NotImplementedError(f"{type(self).__name__} has no hidden")

    def logits(self, hidden: jax.Array) -> jax.Array:
        """[..., head_width] -> float32 [..., vocab]."""
        if self.head is None:
            return self.embed.attend(hidden)
        return constrain_activations(self.head(hidden).astype(jnp.float32), -1)

    def head_matrix(self) -> jax.Array:
        """The matrix [vocab, head_width] whose products with `hidden` are the logits."""
        if self.head is None:
            return self.embed.embedding[...].astype(self.embed.dtype)
        return self.head.kernel[...].astype(self.head.dtype).T


def output_head(
    spec: ModelSpec, width: int, rngs: nnx.Rngs, *, std: float, dtype: jnp.dtype
) -> Linear | None:
    """The output head for final hidden states of `width`; None where the embedding is the head."""
    if spec.tied_head:
        return None
    return Linear((width,), (spec.vocab_size,), rngs, std=std, bias=False, dtype=dtype)


def stack_layers(
    n_layer: int, rngs: nnx.Rngs, make: Callable[[nnx.Rngs], nnx.Module]
) -> nnx.Module:
    """`n_layer` layers as one module; its parameters have a leading layer dimension."""

    @nnx.split_rngs(splits=n_layer)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def stack(rngs: nnx.Rngs) -> nnx.Module:
        return make(rngs)

    return stack(rngs)


def apply_layers(
    stack: nnx.Module,
    x: jax.Array,
    dropout_key: jax.Array | None,
    *shared: jax.Array | None,
    n_layer: int,
    unroll: bool,
    remat: bool,
) -> jax.Array:
    """Applies all layers of `stack_layers` to x, each as layer(x, its dropout key, *shared) -> x.

    Args:
      shared: what every layer gets alike, such as the documents of the tokens.
      unroll, remat: see `lmscale.architectures.ModelSpec.module`.
    """
    graphdef, state = nnx.split(stack)

    def apply(x, layer_state, layer):
        return nnx.merge(graphdef, layer_state)(x, fold_key(dropout_key, layer), *shared)

    if remat:
        # In a scan, the loop already keeps the compiler from merging both passes.
        apply = jax.checkpoint(apply, prevent_cse=unroll)

    def body(x, xs):
        return apply(x, *xs), None

    layers = (state, jnp.arange(n_layer))
    return jax.lax.scan(body, x, layers, unroll=n_layer if unroll else 1)[0]
