"""Rows of an embedding, and their gradient: for every token id the sum over the places where it stands.

That sum is a scatter that adds floats. A CPU adds in order. A GPU adds in whatever order the threads
come, so that two runs of one program differ; told not to, XLA sorts every single number by its index in
passes over all of them. Here token ids are sorted in place of numbers, and rows are added by products
with matrices of zeros and ones, in a fixed order.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lmscale.parallel.partition import on_gpu, splits_layers, summed_over_data, traced_mesh

#: Sorted rows that one product adds up. With larger blocks each row takes more work, and fewer sums go on from
#: one block to the next.
BLOCK = 64


def lookup(embedding: jax.Array, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """embedding float32 [vocab, d], tokens int [batch, ...] -> rows [batch, ..., d] in `dtype`."""
    mesh = traced_mesh()
    # Where the vocabulary is split over devices, each would sum the rows of all ids.
    by_sorting = on_gpu() and mesh is not None and not splits_layers()
    return _lookup(embedding, tokens, dtype, mesh if by_sorting else None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _lookup(
    embedding: jax.Array, tokens: jax.Array, dtype: jnp.dtype, mesh: Mesh | None
) -> jax.Array:
    """See `lookup`. With a mesh the gradient is that of `sum_by_token`."""
    return embedding[tokens].astype(dtype)


def _lookup_forward(embedding, tokens, dtype, mesh):
    return _lookup(embedding, tokens, dtype, mesh), (embedding, tokens)


def _lookup_backward(dtype, mesh, saved, d_rows):
    embedding, tokens = saved
    if mesh is None:
        return jnp.zeros_like(embedding).at[tokens].add(d_rows.astype(embedding.dtype)), None
    add = functools.partial(sum_by_token, vocab_size=embedding.shape[0])
    return summed_over_data(add, mesh)(tokens, d_rows).astype(embedding.dtype), None


_lookup.defvjp(_lookup_forward, _lookup_backward)


def sum_by_token(tokens: jax.Array, rows: jax.Array, vocab_size: int) -> jax.Array:
    """For every token id the sum of the rows where it stands, without a scatter of floats.

    Args:
      tokens: int [...], below `vocab_size`.
      rows: [..., d], float32 or bfloat16.

    Returns:
      float32 [vocab, d].
    """
    d = rows.shape[-1]
    tokens, rows = tokens.reshape(-1), rows.reshape(-1, d)
    # Places that fill the last block have an id of their own, after all others.
    fill = -len(tokens) % BLOCK
    tokens = jnp.pad(tokens, (0, fill), constant_values=vocab_size)
    # Places as the second key, so that rows of one id are always added in the same order.
    ids, order = jax.lax.sort((tokens, jnp.arange(len(tokens))), num_keys=2)
    sorted_rows = jnp.pad(rows, ((0, fill), (0, 0)))[order].reshape(-1, BLOCK, d)
    blocks = ids.reshape(-1, BLOCK)

    # At every place the sum over its block of the rows of its id.
    same = blocks[:, :, None] == blocks[:, None, :]
    sums = _add(same, sorted_rows)
    # An id that a block ends with may go on: at the beginning of later blocks.
    number = jnp.arange(len(blocks))
    goes_on = (blocks[:, -1:] == blocks[:, 0]) & (number[:, None] < number)
    later = _add(goes_on, sums[:, 0])
    is_last = blocks == blocks[:, -1:]
    sums = (sums + jnp.where(is_last[:, :, None], later[:, None], 0.0)).reshape(-1, d)

    # The first place of every id. The smallest of integers is the same in any order.
    first = jnp.full(vocab_size, len(ids)).at[ids].min(jnp.arange(len(ids)), mode="drop")
    found = first < len(ids)
    return jnp.where(found[:, None], sums[jnp.where(found, first, 0)], 0.0)


def _add(chosen: jax.Array, rows: jax.Array) -> jax.Array:
    """chosen bool [..., n, m], rows [..., m, d] -> the sums of the chosen rows, float32 [..., n, d]."""
    return jnp.einsum(
        "...nm,...md->...nd",
        chosen.astype(rows.dtype),
        rows,
        # float32 is not to be rounded to TF32.
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
