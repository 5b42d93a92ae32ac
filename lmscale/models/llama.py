"""Llama (Touvron et al. 2023): RMSNorm before each part, rotary positions, SwiGLU, no biases.

Keys and values may have fewer heads than queries (grouped-query attention, Ainslie et al. 2023), and
queries and keys may be normalised head by head before the rotation, as in Qwen3. Names and numbers
agree with `LlamaForCausalLM` (and `Qwen3ForCausalLM` with `qk_norm`) of the transformers library.
Dropout applies to the embedding and to both residual branches.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from lmscale.architectures.llama import LlamaSpec
from lmscale.models.attention import causal_attention, document_numbers, rotate
from lmscale.models.layers import (
    Embedding,
    LanguageModel,
    Linear,
    apply_layers,
    dropout,
    fold_key,
    output_head,
    stack_layers,
)
from lmscale.parallel.partition import constrain_activations


class RMSNorm(nnx.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis, in float32 (Zhang & Sennrich 2019)."""

    def __init__(self, width: int, *, epsilon: float, dtype: jnp.dtype):
        self.scale = nnx.Param(jnp.ones(width))
        self.epsilon = epsilon
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.square(wide).mean(-1, keepdims=True) + self.epsilon)
        return (wide * inverse * self.scale[...]).astype(self.dtype)


class Attention(nnx.Module):
    def __init__(self, spec: LlamaSpec, rngs: nnx.Rngs, *, dtype: jnp.dtype, implementation: str):
        def project(n_head: int) -> Linear:
            heads = (n_head, spec.d_head)
            return Linear((spec.d_model,), heads, rngs, std=spec.init_std, bias=False, dtype=dtype)

        self.query = project(spec.n_head)
        self.key = project(spec.n_kv_head)
        self.value = project(spec.n_kv_head)
        self.out = Linear(
            (spec.n_head, spec.d_head),
            (spec.d_model,),
            rngs,
            std=spec.init_std / math.sqrt(2 * spec.n_layer),
            bias=False,
            dtype=dtype,
        )

        def head_norm() -> RMSNorm | None:
            return RMSNorm(spec.d_head, epsilon=spec.epsilon, dtype=dtype) if spec.qk_norm else None

        self.norm_query, self.norm_key = head_norm(), head_norm()
        self.theta = spec.rope_theta
        self.group = spec.n_head // spec.n_kv_head
        self.implementation = implementation

    def __call__(self, x: jax.Array, documents: jax.Array | None) -> jax.Array:
        query, key = constrain_activations(self.query(x), 2), constrain_activations(self.key(x), 2)
        value = constrain_activations(self.value(x), 2)
        if self.norm_query is not None and self.norm_key is not None:
            query, key = self.norm_query(query), self.norm_key(key)
        query, key = rotate(query, self.theta), rotate(key, self.theta)
        if self.group > 1:
            # The attention kernels need as many key heads as query heads.
            key, value = (jnp.repeat(part, self.group, axis=2) for part in (key, value))
        mixed = causal_attention(query, key, value, self.implementation, documents)
        return self.out(constrain_activations(mixed, 2))


class FeedForward(nnx.Module):
    """down(silu(gate(x)) * up(x)) (SwiGLU, Shazeer 2020)."""

    def __init__(self, spec: LlamaSpec, rngs: nnx.Rngs, *, dtype: jnp.dtype):
        def linear(d_in: int, d_out: int, std: float) -> Linear:
            return Linear((d_in,), (d_out,), rngs, std=std, bias=False, dtype=dtype)

        self.gate = linear(spec.d_model, spec.d_ff, spec.init_std)
        self.up = linear(spec.d_model, spec.d_ff, spec.init_std)
        self.down = linear(spec.d_ff, spec.d_model, spec.init_std / math.sqrt(2 * spec.n_layer))

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, up = constrain_activations(self.gate(x), -1), constrain_activations(self.up(x), -1)
        return self.down(jax.nn.silu(gate) * up)


class Block(nnx.Module):
    """Attention, then feed-forward, each behind a norm and with a residual."""

    def __init__(self, spec: LlamaSpec, rngs: nnx.Rngs, *, dtype: jnp.dtype, attention: str):
        def norm() -> RMSNorm:
            return RMSNorm(spec.d_model, epsilon=spec.epsilon, dtype=dtype)

        self.norm_attention = norm()
        self.attention = Attention(spec, rngs, dtype=dtype, implementation=attention)
        self.norm_feed_forward = norm()
        self.feed_forward = FeedForward(spec, rngs, dtype=dtype)
        self.rate = spec.dropout

    def __call__(
        self, x: jax.Array, dropout_key: jax.Array | None, documents: jax.Array | None
    ) -> jax.Array:
        def attention(x: jax.Array) -> jax.Array:
            return self.attention(x, documents)

        branches: tuple[tuple[RMSNorm, Callable[[jax.Array], jax.Array]], ...] = (
            (self.norm_attention, attention),
            (self.norm_feed_forward, self.feed_forward),
        )
        for i, (norm, layer) in enumerate(branches):
            x = constrain_activations(
                x + dropout(layer(norm(x)), self.rate, fold_key(dropout_key, i))
            )
        return x


class Llama(LanguageModel):
    """See `lmscale.architectures.llama.LlamaSpec` for the switches."""

    def __init__(
        self,
        spec: LlamaSpec,
        rngs: nnx.Rngs,
        *,
        dtype: str = "float32",
        unroll: bool = False,
        attention: str = "xla",
        remat: bool = False,
    ):
        number = jnp.dtype(dtype)
        self.spec, self.unroll, self.remat = spec, unroll, remat
        self.embed = Embedding(spec.vocab_size, spec.d_model, rngs, std=spec.init_std, dtype=number)

        def block(rngs: nnx.Rngs) -> Block:
            return Block(spec, rngs, dtype=number, attention=attention)

        self.blocks = stack_layers(spec.n_layer, rngs, block)
        self.norm_final = RMSNorm(spec.d_model, epsilon=spec.epsilon, dtype=number)
        self.head = output_head(spec, spec.d_model, rngs, std=spec.init_std, dtype=number)

    def hidden(self, tokens: jax.Array, *, dropout_key: jax.Array | None = None) -> jax.Array:
        """tokens int32 [batch, time] -> input of the output head [batch, time, d_model]."""
        x = dropout(self.embed(tokens), self.spec.dropout, fold_key(dropout_key, 0))
        x = apply_layers(
            self.blocks,
            x,
            fold_key(dropout_key, 1),
            document_numbers(tokens, self.spec.document_separator),
            n_layer=self.spec.n_layer,
            unroll=self.unroll,
            remat=self.remat,
        )
        return self.norm_final(x)
