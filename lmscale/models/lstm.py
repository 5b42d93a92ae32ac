"""The LSTM of Kaplan et al. 2020, Fig. 7: embedding, LSTM layers, projection, tied head.

A layer has two bias vectors, as in cuDNN, which gives the parameter counts of the paper. The paper
gives no initialisation. Here each kernel is N(0, 1/fan-in) and the bias of the forget gate is 1
(Jozefowicz et al. 2015); embedding and projection follow the spec. The state is zero at the start of
every sequence, and with a `document_separator` at the start of every document.

Dropout applies to the inputs of every layer and of the head, never to the recurrence.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lmscale.architectures import LSTMSpec
from lmscale.models.layers import (
    Embedding,
    LanguageModel,
    Linear,
    dense_matmul,
    dropout,
    fold_key,
    output_head,
    stack_layers,
)
from lmscale.models.lstm_kernel import is_asked, kernel_recurrence, refuses
from lmscale.parallel.partition import (
    constrain_activations,
    on_gpu,
    run_devices,
    splits_layers,
    traced_mesh,
    unshard_data_axis,
)

#: Gates in the order of cuDNN and torch.
GATES = ("input", "forget", "cell", "output")


class LSTMLayer(nnx.Module):
    """One layer: inputs [time, batch, d_in] -> hidden states [time, batch, d_hidden]."""

    def __init__(self, d_in: int, d_hidden: int, rngs: nnx.Rngs, *, dtype: jnp.dtype):
        def kernel(fan_in: int) -> nnx.Param:
            normal = jax.random.normal(rngs.params(), (fan_in, 4, d_hidden))
            return nnx.Param(normal / math.sqrt(fan_in))

        self.input_kernel = kernel(d_in)
        self.recurrent_kernel = kernel(d_hidden)
        forget = jnp.zeros((4, d_hidden)).at[GATES.index("forget")].set(1.0)
        self.input_bias = nnx.Param(forget)
        self.recurrent_bias = nnx.Param(jnp.zeros((4, d_hidden)))
        self.dtype = dtype

    def __call__(self, x: jax.Array, keep: jax.Array | None) -> jax.Array:
        # The input projection of all time steps is one matmul outside the recurrence.
        kernel = self.input_kernel[...].astype(self.dtype)
        gates = dense_matmul(x.astype(self.dtype), kernel, 1, batch_first=False)
        gates = gates + (self.input_bias[...] + self.recurrent_bias[...]).astype(self.dtype)
        # Gathered once, and not at every time step.
        kernel = unshard_data_axis(
            "first/recurrent_kernel", self.recurrent_kernel[...].astype(self.dtype)
        )
        if not splits_layers():
            # One axis for all gates: a CPU is faster with one axis than with two.
            gates = gates.reshape(*gates.shape[:2], -1)
            kernel = kernel.reshape(kernel.shape[0], -1)
        gates = constrain_activations(gates, -1, batch_axis=1)
        if on_gpu() and is_asked() and not refuses(kernel.shape[0], self.dtype.name, run_devices()):
            return kernel_recurrence(gates, kernel, keep, traced_mesh())
        hidden = recurrence(gates, kernel, on_gpu(), keep)
        return constrain_activations(hidden, -1, batch_axis=1)


class LSTM(LanguageModel):
    """See `lmscale.architectures.LSTMSpec`. The first layer reads the embedding; the others are stacked."""

    def __init__(
        self, spec: LSTMSpec, rngs: nnx.Rngs, *, dtype: str = "float32", unroll: bool = False
    ):
        number = jnp.dtype(dtype)
        self.spec = spec
        self.unroll = unroll
        self.embed = Embedding(
            spec.vocab_size, spec.d_embed, rngs, std=_embed_std(spec, spec.d_embed), dtype=number
        )
        self.first = LSTMLayer(spec.d_embed, spec.d_hidden, rngs, dtype=number)

        def layer(rngs: nnx.Rngs) -> LSTMLayer:
            return LSTMLayer(spec.d_hidden, spec.d_hidden, rngs, dtype=number)

        self.rest = stack_layers(spec.n_layer - 1, rngs, layer) if spec.n_layer > 1 else None
        d_out = spec.d_embed if spec.projection else spec.d_hidden
        self.projection = (
            Linear(
                (spec.d_hidden,),
                (spec.d_embed,),
                rngs,
                std=spec.projection_gain / math.sqrt(spec.d_hidden),
                bias=True,
                dtype=number,
            )
            if spec.projection
            else None
        )
        self.head = output_head(spec, d_out, rngs, std=_embed_std(spec, d_out), dtype=number)

    def hidden(self, tokens: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """tokens int32 [batch, time] -> input of the head [batch, time, d_embed or d_hidden]."""
        spec = self.spec
        # A tied embedding must be small, for the head. The first layer needs inputs of unit variance.
        x = self.embed(tokens) * math.sqrt(spec.d_embed)
        # Time first, so that a time step is contiguous in memory.
        x = jnp.swapaxes(x, 0, 1)
        keep = None
        if spec.document_separator is not None:
            keep = (tokens != spec.document_separator).T[:, :, None].astype(jnp.float32)
        x = self.first(dropout(x, spec.dropout, fold_key(dropout_key, 0)), keep)
        if self.rest is not None:
            graphdef, state = nnx.split(self.rest)

            def one_layer(x, xs):
                layer_state, layer = xs
                x = dropout(x, spec.dropout, fold_key(dropout_key, layer))
                return nnx.merge(graphdef, layer_state)(x, keep), None

            n_rest = spec.n_layer - 1
            layers = jnp.arange(1, spec.n_layer)
            unroll = n_rest if self.unroll else 1
            x = jax.lax.scan(one_layer, x, (state, layers), unroll=unroll)[0]
        x = dropout(x, spec.dropout, fold_key(dropout_key, spec.n_layer))
        x = constrain_activations(jnp.swapaxes(x, 0, 1), -1)
        return x if self.projection is None else self.projection(x)


def _embed_std(spec: LSTMSpec, width: int) -> float:
    """Standard deviation of the initial embedding or head for vectors of `width`."""
    return 1 / math.sqrt(width) if spec.embed_std is None else spec.embed_std


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def recurrence(
    gates: jax.Array, kernel: jax.Array, rebuild: bool = False, keep: jax.Array | None = None
) -> jax.Array:
    """The LSTM recurrence (Hochreiter & Schmidhuber 1997, with a forget gate).

    i, f, o = sigmoid, g = tanh of gates_t + h_{t-1} kernel;  c_t = f c_{t-1} + i g;  h_t = o tanh c_t

    Args:
      gates: input projections with biases, [time, batch, 4, d_hidden], gates in the order `GATES`,
        or [time, batch, 4 d_hidden] where hidden units are not split over devices.
      kernel: recurrent weights, [d_hidden, 4, d_hidden] or [d_hidden, 4 d_hidden] likewise.
      rebuild: save only hidden and cell states in the time scan, and compute the gates of all time
        steps again by one matmul in the backward pass. A GPU launches a kernel for every array that a
        time step saves; elsewhere this only adds a matmul.
      keep: float32 [time, batch, 1], 0 where h_{t-1} and c_{t-1} are replaced by zeros, else 1.

    Returns:
      Hidden states [time, batch, d_hidden]. The cell state is kept in float32.

    The derivative is written by hand, and the gradient of the kernel is one matmul after the backward
    scan. Without `rebuild` it recomputes no exponential.
    """
    return _recurrence_forward(gates, kernel, rebuild, keep)[0]


def _recurrence_forward(gates, kernel, rebuild, keep):
    n_batch, d_hidden = gates.shape[1], kernel.shape[0]
    activate = _activation(kernel)

    def step(carry, xs):
        h, c = carry
        gates_t, keep_t = xs
        h, c = _kept(h, keep_t), _kept(c, keep_t)
        z = (gates_t + jnp.tensordot(h, kernel, 1)).astype(jnp.float32)
        i, f, g, o = activate(z)
        c = f * c + i * g
        tanh_c = jnp.tanh(c)
        h = (o * tanh_c).astype(gates.dtype)
        if rebuild:
            return (h, c), (h, c)
        # Saved one by one: XLA does not vectorise a loop that reads several parts of one time step.
        return (h, c), (h, c, *(x.astype(gates.dtype) for x in (tanh_c, i, f, g, o)))

    zeros = jnp.zeros((n_batch, d_hidden), jnp.float32)
    _, kept = jax.lax.scan(step, (zeros.astype(gates.dtype), zeros), (gates, keep))
    return kept[0], (gates if rebuild else None, *kept, kernel, keep)


def _recurrence_backward(rebuild, saved, d_hidden_states):
    gates, *kept, kernel, keep = saved
    hidden = kept[0]
    (_, n_batch, d_hidden), dtype = hidden.shape, kernel.dtype
    # Transposed once; XLA would do it at every time step.
    transposed = jax.lax.optimization_barrier(kernel.reshape(d_hidden, -1).T)
    earlier = _kept(jnp.concatenate([jnp.zeros_like(hidden[:1]), hidden[:-1]]), keep)
    if rebuild:
        kept = [kept[1], gates + jnp.tensordot(earlier, kernel, 1)]
    activate = _activation(kernel)

    def step(carry, xs):
        dh, dc = carry
        keep_t, *xs = xs
        d_out, *values = (x.astype(jnp.float32) for x in xs)
        if rebuild:
            c, z = values
            i, f, g, o = activate(z)
            tanh_c = jnp.tanh(c)
            h = o * tanh_c
        else:
            h, c, tanh_c, i, f, g, o = values
        added = i * g
        dh = dh + d_out
        # o (1 - tanh^2 c), and c - added is f times the cell before, or zero where that was not kept.
        dc = dc + dh * (o - h * tanh_c)
        d_gates = (
            dc * added * (1 - i),
            dc * (c - added) * (1 - f),
            dc * (i - added * g),
            dh * h * (1 - o),
        )
        dz = _join_gates(*d_gates, like=kernel).astype(dtype)
        dh = (dz.reshape(n_batch, -1) @ transposed).astype(jnp.float32)
        return (_kept(dh, keep_t), _kept(dc * f, keep_t)), dz

    zeros = jnp.zeros((n_batch, d_hidden), jnp.float32)
    _, dz = jax.lax.scan(step, (zeros, zeros), (keep, d_hidden_states, *kept), reverse=True)
    return dz, jnp.tensordot(earlier, dz, ((0, 1), (0, 1))).astype(dtype), None


def _kept(x: jax.Array, keep: jax.Array | None) -> jax.Array:
    """x [..., batch, d_hidden], with zeros where `keep` [..., batch, 1] is 0."""
    return x if keep is None else x * keep.astype(x.dtype)


def _activation(kernel: jax.Array) -> Callable[[jax.Array], list[jax.Array]]:
    """The gates i, f, g, o of what enters them, for the recurrent weights `kernel`."""
    # sigmoid(z) = (1 + tanh(z / 2)) / 2, so that one tanh serves all gates.
    place = jnp.repeat(jnp.arange(4) == GATES.index("cell"), kernel.shape[0])
    is_tanh = place.reshape(kernel.shape[1:])
    half = jnp.where(is_tanh, 1.0, 0.5)
    offset = jnp.where(is_tanh, 0.0, 0.5)
    return lambda z: _split_gates(offset + half * jnp.tanh(half * z))


def _split_gates(x: jax.Array) -> list[jax.Array]:
    """[batch, 4, d_hidden] or [batch, 4 d_hidden] -> four of [batch, d_hidden]."""
    return jnp.split(x, 4, axis=-1) if x.ndim == 2 else [x[:, k] for k in range(4)]


def _join_gates(*gates: jax.Array, like: jax.Array) -> jax.Array:
    """The inverse of `_split_gates`, with as many axes as the kernel `like`."""
    return jnp.concatenate(gates, axis=-1) if like.ndim == 2 else jnp.stack(gates, axis=1)


recurrence.defvjp(_recurrence_forward, _recurrence_backward)
