"""The mean loss and its gradients without logits in memory: two kernels for NVIDIA GPUs.

XLA writes the logits of a batch to memory and reads or writes an array of their size seven times
more, which is two thirds of the traffic of a step of a pack of small models. These kernels compute
them tile by tile and keep no tile, as flash attention does with its scores:

- `_loss_kernel`: a block of tokens meets all tiles of the vocabulary. It sums exponentials and rows of
  the head that they weigh, both rescaled whenever a larger logit comes, so that losses and the
  gradient of the hidden states are there after one pass.
- `_head_kernel`: a block of the vocabulary meets all tiles of tokens. It computes their logits once more
  and sums the gradient of the head. No two programs add to one number, so sums have a fixed order.

That is four products of tokens x width x vocabulary instead of three. Tiles are powers of two: what
does not fill them is padded with zeros, whose gradients are zero or are cut off.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lmscale.compat import pallas, triton_params
from lmscale.parallel.partition import on_each_run_device

#: Widest input of the output head that the kernels take. A block's sums fill the registers: the compiler
#: for an H100 says that those of wider ones spill.
WIDEST = 256
#: Tokens and the vocabulary are padded to a multiple of this, which all block sizes divide.
_BLOCK = 128
#: Smaller than any logit.
_LOWEST = -1e30


class Tiles(NamedTuple):
    """Block sizes: tokens of a program of `_loss_kernel` and its tile of the vocabulary; the vocabulary
    of a program of `_head_kernel` and its tile of tokens."""

    tokens: int
    vocabulary_tile: int
    vocabulary: int
    tokens_tile: int


def tiles(width: int) -> Tiles:
    """The block sizes for a padded width, with which no kernel spills registers on an H100."""
    return Tiles(128, 64, 128, 64) if width <= 128 else Tiles(64, 64, 64, 64)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def fused_mean_loss(
    hidden: jax.Array, head: jax.Array, targets: jax.Array, interpret: bool = False
) -> jax.Array:
    """The mean of -log softmax(hidden head^T)[target] over tokens, in nats.

    Args:
      hidden: final hidden states [tokens, d], d at most `WIDEST`.
      head: matrix of the output head [vocab, d], of the same dtype. Products are summed in float32.
      targets: int32 [tokens].
      interpret: run the kernels by XLA, on any platform, slowly.
    """
    return _forward(hidden, head, targets, interpret)[0]


def refuses(width: int, dtype: str, split: int) -> str | None:
    """Why the kernels do not take an output head, or None where they do.

    Args:
      width: of the head's input.
      dtype: of its products.
      split: devices that share a run.
    """
    if dtype != "bfloat16":
        return f"the fused head takes bfloat16, not {dtype}"
    if width > WIDEST:
        return f"the fused head takes widths of at most {WIDEST}, not {width}"
    return None if split == 1 else f"the fused head takes runs of one device, not of {split}"


def _forward(hidden, head, targets, interpret):
    # Here and not around the whole, so that nothing is differentiated through the split.
    run = on_each_run_device(functools.partial(_loss_and_gradients, interpret=interpret))
    loss, *gradients = run(hidden, head, targets)
    return loss, gradients


def _loss_and_gradients(hidden, head, targets, *, interpret):
    (n_tokens, width), n_vocab = hidden.shape, head.shape[0]
    # The matrix unit's smallest tile is 16 wide.
    padded = max(16, 1 << (width - 1).bit_length())
    x = _padded(hidden, _multiple(n_tokens), padded)
    w = _padded(head, _multiple(n_vocab), padded)
    t = jnp.pad(targets, (0, len(x) - n_tokens))
    call = functools.partial(_call, block=tiles(padded), scale=1 / n_tokens, interpret=interpret)
    losses, normaliser, d_x = call(_loss_kernel, (x, w, w[t]), n_vocab=n_vocab)
    (d_w,) = call(_head_kernel, (x, w, t, normaliser))
    return losses[:n_tokens].mean(), d_x[:n_tokens, :width], d_w[:n_vocab, :width]


def _backward(interpret, saved, d_loss):
    d_hidden, d_head = (x * d_loss.astype(x.dtype) for x in saved)
    return d_hidden, d_head, None


fused_mean_loss.defvjp(_forward, _backward)


def _call(kernel: Any, arrays: tuple, *, block: Tiles, interpret: bool, **static: Any) -> Any:
    """A kernel over its blocks: of tokens for `_loss_kernel`, of the vocabulary for `_head_kernel`."""
    pl = pallas()
    x, w, *_ = arrays
    tokens, vocabulary = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (x, w))
    of_tokens = jax.ShapeDtypeStruct(x.shape[:1], jnp.float32)
    by_tokens = kernel is _loss_kernel
    size = block.tokens if by_tokens else block.vocabulary

    def in_blocks(array):
        shape = (size, *array.shape[1:])
        return pl.BlockSpec(shape, lambda i: (i, *(0 for _ in shape[1:])))

    def whole(array):
        return pl.BlockSpec(array.shape, lambda i: (0,) * array.ndim)

    if by_tokens:
        outputs = [of_tokens, of_tokens, tokens]
        in_specs = [in_blocks(x), whole(w), in_blocks(x)]
        tile = block.vocabulary_tile
    else:
        outputs = [vocabulary]
        in_specs = [whole(x), in_blocks(w), *map(whole, arrays[2:])]
        tile = block.tokens_tile
    return pl.pallas_call(
        functools.partial(kernel, tile=tile, **static),
        out_shape=outputs,
        grid=((x if by_tokens else w).shape[0] // size,),
        in_specs=in_specs,
        out_specs=[in_blocks(array) for array in outputs],
        compiler_params=triton_params(warps=8, stages=2),
        interpret=interpret,
        name=kernel.__name__.strip("_"),
    )(*arrays)


def _loss_kernel(
    x_ref, w_ref, chosen_ref, loss_ref, normaliser_ref, dx_ref, *, tile, n_vocab, scale
):
    """Losses, log-sums of exponentials and the gradient of the hidden states of a block of tokens."""
    pl = pallas()
    x = x_ref[...]

    def meet(i, carry):
        highest, total, mixed = carry
        w = w_ref[pl.ds(i * tile, tile), :]
        logits = _dot(x, w, 1, 1)
        if n_vocab < w_ref.shape[0]:
            logits = jnp.where((i * tile + jnp.arange(tile))[None, :] < n_vocab, logits, _LOWEST)
        higher = jnp.maximum(highest, logits.max(1))
        shrink = jnp.exp(highest - higher)
        exps = jnp.exp(logits - higher[:, None])
        mixed = mixed * shrink[:, None] + _dot(exps.astype(w.dtype), w, 1, 0)
        return higher, total * shrink + exps.sum(1), mixed

    zeros = jnp.zeros(x.shape[:1], jnp.float32)
    start = zeros + _LOWEST, zeros, jnp.zeros(x.shape, jnp.float32)
    highest, total, mixed = jax.lax.fori_loop(0, w_ref.shape[0] // tile, meet, start)
    normaliser = highest + jnp.log(total)
    chosen = chosen_ref[...].astype(jnp.float32)
    loss_ref[...] = normaliser - (x.astype(jnp.float32) * chosen).sum(1)
    normaliser_ref[...] = normaliser
    dx_ref[...] = (scale * (mixed / total[:, None] - chosen)).astype(dx_ref.dtype)


def _head_kernel(x_ref, w_ref, target_ref, normaliser_ref, dw_ref, *, tile, scale):
    """The gradient of a block of the head's rows."""
    pl = pallas()
    w = w_ref[...]
    row = pl.program_id(0) * w.shape[0] + jnp.arange(w.shape[0])

    def meet(i, total):
        part = pl.ds(i * tile, tile)
        x = x_ref[part, :]
        d_logits = jnp.exp(_dot(x, w, 1, 1) - normaliser_ref[part][:, None])
        d_logits -= jnp.where(target_ref[part][:, None] == row[None, :], 1.0, 0.0)
        return total + _dot(d_logits.astype(x.dtype), x, 0, 0)

    zeros = jnp.zeros(w.shape, jnp.float32)
    total = jax.lax.fori_loop(0, x_ref.shape[0] // tile, meet, zeros)
    dw_ref[...] = (scale * total).astype(dw_ref.dtype)


def _dot(a: jax.Array, b: jax.Array, a_axis: int, b_axis: int) -> jax.Array:
    axes = (((a_axis,), (b_axis,)), ((), ()))
    return jax.lax.dot_general(a, b, axes, preferred_element_type=jnp.float32)


def _multiple(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _padded(x: jax.Array, rows: int, columns: int) -> jax.Array:
    return jnp.pad(x, ((0, rows - x.shape[0]), (0, columns - x.shape[1])))
