"""Causal softmax attention, by XLA or by the flash kernel of a GPU or a TPU."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from lmscale.compat import splash_attention
from lmscale.parallel.partition import on_each_device

#: Block sizes of a TPU's flash kernel; the context is a multiple of the smallest.
_BLOCKS = (512, 256, 128)
#: The flash kernel of NVIDIA GPUs takes heads whose width is a multiple of this.
CUDNN_MULTIPLE = 8
#: Why the same kernel is not used where documents are masked. With a mask jax 0.10.2 gives it a bias of all
#: scores and computes that bias's gradient, and runs that are packed need it once for every head: as much
#: memory as XLA's scores.
CUDNN_REFUSES_DOCUMENTS = "the flash kernel has no mask between documents (mask_documents)"


#: The mesh axes that split [batch, time, n_head, d_head].
_SPLIT = ("data", None, "model", None)


def rotate(x: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding (Su et al. 2021) of x [batch, time, n_head, d_head].

    Dimension i of the first half of a head and dimension i of its second half are a pair. At position
    t the pair is rotated by the angle t theta^(-2 i / d_head). The last dimension of a head of odd width
    has no partner and stays as it is.
    """
    n_time, half = x.shape[1], x.shape[-1] // 2
    rate = theta ** (-jnp.arange(half) / half)
    angle = (jnp.arange(n_time)[:, None] * rate)[:, None, :]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    wide = x.astype(jnp.float32)
    first, second = wide[..., :half], wide[..., half : 2 * half]
    turned = [first * cos - second * sin, second * cos + first * sin]
    if x.shape[-1] % 2:
        turned.append(wide[..., -1:])
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def document_numbers(tokens: jax.Array, separator: int | None) -> jax.Array | None:
    """The document of each token in its window, counted from 0; None where nothing is masked.

    A separator belongs to the document that it begins. So the first token of a document is predicted
    from the separator alone, as when text is sampled, and not from the end of another document.

    Args:
      tokens: int32 [batch, time].
      separator: see `lmscale.architectures.ModelSpec.document_separator`.

    Returns:
      int32 [batch, time].
    """
    if separator is None:
        return None
    return jnp.cumsum(tokens == separator, axis=1, dtype=jnp.int32)


def causal_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    implementation: str = "xla",
    documents: jax.Array | None = None,
) -> jax.Array:
    """Softmax attention in which position t sees positions up to t.

    Args:
      query, key, value: [batch, time, n_head, d_head].
      implementation: "xla" computes all scores; "cudnn" is the flash kernel of NVIDIA GPUs (see
        `cudnn_refuses`); "splash" is that of TPUs and needs a time that is a multiple of 128.
        An implementation is never replaced by another one silently.
      documents: `document_numbers`; a position then sees its own document only.

    Returns:
      [batch, time, n_head, d_head] in the dtype of the inputs; softmax in float32.

    Raises:
      ValueError: the implementation is unknown, or cannot take these inputs.
    """
    if implementation == "splash":
        return _splash(query, key, value, documents)
    if implementation == "cudnn":
        if documents is not None:
            raise ValueError(f"attention cudnn: {CUDNN_REFUSES_DOCUMENTS}")
        return _cudnn(query, key, value)
    if implementation != "xla":
        raise ValueError(f"attention must be xla, cudnn or splash, not {implementation!r}")
    return _plain(query, key, value, documents)


@jax.custom_vjp
def _plain(
    query: jax.Array, key: jax.Array, value: jax.Array, documents: jax.Array | None
) -> jax.Array:
    """All scores at once. The backward pass needs only the softmax weights, so only they are saved."""
    return _plain_forward(query, key, value, documents)[0]


def _plain_forward(query, key, value, documents):
    n_time, d_head = query.shape[-3], query.shape[-1]
    query = query * jnp.asarray(1 / math.sqrt(d_head), query.dtype)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
    # An additive mask: on a CPU it is fused, where a select is not (2x on short contexts, measured).
    position = jnp.arange(n_time)
    seen = position[:, None] >= position[None, :]
    if documents is not None:
        # [batch, 1, time, time]: the heads share it.
        seen = seen & (documents[:, None, :, None] == documents[:, None, None, :])
    mask = jnp.where(seen, 0.0, -1e30)
    weights = jax.nn.softmax(scores + mask, axis=-1).astype(query.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value), (query, key, value, weights)


def _plain_backward(saved, d_out):
    query, key, value, weights = saved
    d_value = jnp.einsum("bhqk,bqhd->bkhd", weights, d_out)
    d_weights = jnp.einsum("bqhd,bkhd->bhqk", d_out, value, preferred_element_type=jnp.float32)
    d_weights = d_weights * weights
    d_scores = (d_weights - weights * d_weights.sum(-1, keepdims=True)).astype(query.dtype)
    d_query = jnp.einsum("bhqk,bkhd->bqhd", d_scores, key)
    d_query = d_query * jnp.asarray(1 / math.sqrt(query.shape[-1]), query.dtype)
    # The saved query is already scaled.
    d_key = jnp.einsum("bhqk,bqhd->bkhd", d_scores, query)
    return d_query, d_key, d_value, None


_plain.defvjp(_plain_forward, _plain_backward)


def padded_width(d_head: int) -> int:
    """The width that heads of `d_head` have in the flash kernel of NVIDIA GPUs."""
    return -(-d_head // CUDNN_MULTIPLE) * CUDNN_MULTIPLE


def cudnn_refuses(d_head: int | None, dtype: str, widest: int) -> str | None:
    """Why the flash kernel of NVIDIA GPUs does not take these inputs, or None where it does.

    These are the conditions of `jax.nn.dot_product_attention` with its implementation "cudnn" for a
    causal mask without bias, in jax 0.10.2: the type, and the width of a head. Odd widths are padded
    here. Any context and any number of heads will do.

    Args:
      d_head: width of a head; None where it is not known.
      dtype: of queries, keys and values.
      widest: widest head that the GPU takes: 256 from compute capability 9.0 (Hopper) on, 128 before.
    """
    if dtype not in ("bfloat16", "float16"):
        return f"the flash kernel takes bfloat16 and float16, not {dtype}"
    if d_head is not None and padded_width(d_head) > widest:
        return f"the flash kernel takes heads of at most {widest} here, not of {d_head}"
    return None


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    d_head = query.shape[-1]
    refused = cudnn_refuses(d_head, query.dtype.name, 256)
    if refused is not None:
        raise ValueError(f"attention cudnn: {refused}")
    missing = padded_width(d_head) - d_head

    def attend(query, key, value):
        if missing:
            # Zeros add nothing to a product of a query and a key, and their values are cut off below.
            widths = (*((0, 0),) * (query.ndim - 1), (0, missing))
            query, key, value = (jnp.pad(x, widths) for x in (query, key, value))
        mixed = jax.nn.dot_product_attention(
            query,
            key,
            value,
            # By default it would be that of the padded width.
            scale=1 / math.sqrt(d_head),
            is_causal=True,
            implementation="cudnn",
        )
        return mixed[..., :d_head]

    # Under the run axis's vmap the kernel's own rule of partition does not see that the batch is split,
    # and every device would compute all of it.
    return on_each_device(attend, (_SPLIT,) * 3)(query, key, value)


def splash_takes(n_time: int) -> bool:
    """Whether a TPU's flash kernel takes a context of `n_time` tokens."""
    return n_time % _BLOCKS[-1] == 0


def _splash(
    query: jax.Array, key: jax.Array, value: jax.Array, documents: jax.Array | None
) -> jax.Array:
    n_time, d_head = query.shape[-3], query.shape[-1]
    if not splash_takes(n_time):
        raise ValueError(f"splash attention needs a context in 128s, not one of {n_time} tokens")

    block = next(size for size in _BLOCKS if n_time % size == 0)

    def attend(query, key, value, *documents):
        # The kernel takes [n_head, time, d_head], without a batch.
        query, key, value = (jnp.swapaxes(x, 1, 2) for x in (query, key, value))
        kernel = splash_attention(query.shape[1], n_time, block)
        return jnp.swapaxes(jax.vmap(kernel)(query, key, value, *documents), 1, 2)

    # The kernel does not scale the scores. XLA cannot split a kernel, so each device runs it on its
    # own part.
    scaled = query * jnp.asarray(1 / math.sqrt(d_head), query.dtype)
    if documents is None:
        return on_each_device(attend, (_SPLIT,) * 3)(scaled, key, value)
    split = (_SPLIT, _SPLIT, _SPLIT, ("data", None))
    return on_each_device(attend, split)(scaled, key, value, documents)
