"""Decoder-only Transformer in the parameters of Kaplan et al. 2020, and its recurrent form.

GPT-2's block and initialisation: pre-normalisation, learned absolute positions, GELU, weights from
N(0, 0.02) with the two residual projections of each block scaled down by sqrt(2 * depth), positions
half as wide, biases zero. With `reuse` the same blocks are applied several times (the Universal
Transformer of Dehghani et al. 2018, without halting).

Dropout applies to the embedding and to both residual branches.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lmscale.architectures import TransformerSpec
from lmscale.architectures.transformer import ROPE_THETA
from lmscale.models.attention import causal_attention, document_numbers, rotate
from lmscale.models.layers import (
    Embedding,
    LanguageModel,
    LayerNorm,
    Linear,
    dropout,
    fold_key,
    gelu,
    output_head,
    stack_layers,
)
from lmscale.parallel.partition import constrain_activations


@jax.custom_vjp
def split_qkv(qkv: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries, keys and values of [batch, time, 3, n_head, d_head].

    Their gradients are stacked once. XLA would stack them for every use.
    """
    query, key, value = jnp.moveaxis(qkv, 2, 0)
    return query, key, value


def _split_qkv_backward(_, derivatives):
    return (jax.lax.optimization_barrier(jnp.stack(derivatives, 2)),)


split_qkv.defvjp(lambda qkv: (split_qkv(qkv), None), _split_qkv_backward)


class Attention(nnx.Module):
    def __init__(
        self, spec: TransformerSpec, rngs: nnx.Rngs, *, dtype: jnp.dtype, implementation: str
    ):
        heads = (spec.n_head, spec.d_attn // spec.n_head)
        self.qkv = Linear(
            (spec.d_model,), (3, *heads), rngs, std=spec.init_std, bias=spec.bias, dtype=dtype
        )
        self.out = Linear(
            heads,
            (spec.d_model,),
            rngs,
            std=spec.init_std / math.sqrt(2 * spec.depth),
            bias=spec.bias,
            dtype=dtype,
        )
        self.implementation = implementation
        self.rotary = spec.positions == "rotary"

    def __call__(self, x: jax.Array, documents: jax.Array | None) -> jax.Array:
        query, key, value = split_qkv(constrain_activations(self.qkv(x), 3))
        if self.rotary:
            query, key = rotate(query, ROPE_THETA), rotate(key, ROPE_THETA)
        mixed = causal_attention(query, key, value, self.implementation, documents)
        return self.out(constrain_activations(mixed, 2))


class FeedForward(nnx.Module):
    def __init__(self, spec: TransformerSpec, rngs: nnx.Rngs, *, dtype: jnp.dtype):
        self.up = Linear(
            (spec.d_model,), (spec.d_ff,), rngs, std=spec.init_std, bias=spec.bias, dtype=dtype
        )
        self.down = Linear(
            (spec.d_ff,),
            (spec.d_model,),
            rngs,
            std=spec.init_std / math.sqrt(2 * spec.depth),
            bias=spec.bias,
            dtype=dtype,
        )
        self.activation = spec.activation

    def __call__(self, x: jax.Array) -> jax.Array:
        x = constrain_activations(self.up(x), -1)
        return self.down(gelu(x) if self.activation == "gelu" else jax.nn.relu(x))


class Block(nnx.Module):
    """Attention, then feed-forward, each with its residual and layer normalisation."""

    def __init__(self, spec: TransformerSpec, rngs: nnx.Rngs, *, dtype: jnp.dtype, attention: str):
        self.norm_attention = LayerNorm(spec.d_model, bias=spec.bias, dtype=dtype)
        self.attention = Attention(spec, rngs, dtype=dtype, implementation=attention)
        self.norm_feed_forward = LayerNorm(spec.d_model, bias=spec.bias, dtype=dtype)
        self.feed_forward = FeedForward(spec, rngs, dtype=dtype)
        self.pre_norm = spec.norm == "pre"
        self.rate = spec.dropout

    def __call__(
        self, x: jax.Array, dropout_key: jax.Array | None, documents: jax.Array | None
    ) -> jax.Array:
        def attention(x: jax.Array) -> jax.Array:
            return self.attention(x, documents)

        branches: tuple[tuple[LayerNorm, Callable[[jax.Array], jax.Array]], ...] = (
            (self.norm_attention, attention),
            (self.norm_feed_forward, self.feed_forward),
        )
        for i, (norm, layer) in enumerate(branches):
            key = fold_key(dropout_key, i)
            if self.pre_norm:
                x = x + dropout(layer(norm(x)), self.rate, key)
            else:
                x = norm(x + dropout(layer(x), self.rate, key))
            x = constrain_activations(x)
        return x


class Transformer(LanguageModel):
    """See `lmscale.architectures.TransformerSpec` for the switches."""

    def __init__(
        self,
        spec: TransformerSpec,
        rngs: nnx.Rngs,
        *,
        dtype: str = "float32",
        unroll: bool = False,
        attention: str = "xla",
        remat: bool = False,
    ):
        self.spec = spec
        self.unroll = unroll
        self.remat = remat
        self.dtype = jnp.dtype(dtype)
        self.embed = Embedding(
            spec.vocab_size, spec.d_model, rngs, std=spec.init_std, dtype=self.dtype
        )
        self.position = (
            nnx.Param(
                0.5 * spec.init_std * jax.random.normal(rngs.params(), (spec.n_ctx, spec.d_model))
            )
            if spec.positions == "learned"
            else None
        )

        def block(rngs: nnx.Rngs) -> Block:
            return Block(spec, rngs, dtype=self.dtype, attention=attention)

        self.blocks = stack_layers(spec.n_layer, rngs, block)
        self.norm_final = (
            LayerNorm(spec.d_model, bias=spec.bias, dtype=self.dtype)
            if spec.norm == "pre"
            else None
        )
        self.head = output_head(spec, spec.d_model, rngs, std=spec.init_std, dtype=self.dtype)

    def hidden(self, tokens: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """tokens int32 [batch, time <= n_ctx] -> input of the output head [batch, time, d_model]."""
        spec = self.spec
        n_time = tokens.shape[1]
        x = self.embed(tokens)
        if self.position is not None:
            # Positions count from the start of the window, also where documents are masked. If they began
            # again with every document, late positions would be trained by long documents alone.
            x = x + self.position[...][:n_time].astype(self.dtype)
        x = dropout(x, spec.dropout, fold_key(dropout_key, 0))
        documents = document_numbers(tokens, spec.document_separator)
        x = self._apply_blocks(x, fold_key(dropout_key, 1), documents)
        return x if self.norm_final is None else self.norm_final(x)

    def _apply_blocks(
        self, x: jax.Array, dropout_key: jax.Array | None, documents: jax.Array | None
    ) -> jax.Array:
        """All `spec.depth` applications of the blocks, in the order of the spec."""
        spec = self.spec
        graphdef, state = nnx.split(self.blocks)
        layers = jnp.arange(spec.n_layer)

        def forward(x, layer_state, layer, step):
            block = nnx.merge(graphdef, layer_state)
            return block(x, fold_key(dropout_key, step * spec.n_layer + layer), documents)

        apply: Callable[..., jax.Array] = forward
        if self.remat:
            # In a scan, the loop already keeps the compiler from merging both passes.
            apply = jax.checkpoint(forward, prevent_cse=self.unroll)

        def signal(x, step):
            if spec.step_signal == "none":
                return x
            return x + step_signal(x.shape[1], spec.d_model, step).astype(x.dtype)

        def scan(body, x, xs, length):
            return jax.lax.scan(body, x, xs, length=length, unroll=length if self.unroll else 1)[0]

        steps = jnp.arange(spec.reuse)
        if spec.reuse_order == "stack":

            def one_pass(x, step):
                def one_layer(x, xs):
                    return apply(x, *xs, step), None

                return scan(one_layer, signal(x, step), (state, layers), spec.n_layer), None

            # A single pass needs no loop.
            return one_pass(x, 0)[0] if spec.reuse == 1 else scan(one_pass, x, steps, spec.reuse)

        def one_layer(x, xs):
            def again(x, step):
                return apply(signal(x, step), *xs, step), None

            return scan(again, x, steps, spec.reuse), None

        return scan(one_layer, x, (state, layers), spec.n_layer)


def step_signal(n_time: int, d_model: int, step: jax.Array | int) -> jax.Array:
    """The Universal Transformer's coordinate signal, float32 [time, d_model].

    P[i, 2j] = sin(i / 10000^(2j/d)) + sin(step / 10000^(2j/d)), cosines at 2j + 1
    (Dehghani et al. 2018, section 2.1).
    """
    channel = jnp.arange(d_model)
    rate = 10000.0 ** (-(2 * (channel // 2)) / d_model)
    phase = jnp.where(channel % 2 == 0, 0.0, jnp.pi / 2)
    place = jnp.arange(n_time)[:, None] * rate + phase
    time = jnp.asarray(step) * rate + phase
    return jnp.sin(place) + jnp.sin(time)
