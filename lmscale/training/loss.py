"""The loss: cross-entropy of the next token, in nats per token."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


@jax.custom_vjp
def token_losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log p(target) for every token.

    The derivative, p less one at the target, is written by hand: it keeps one array of the logits'
    size, computes no exponential again, and needs no scatter to put the target's share in its place.

    Args:
      logits: float32 [..., vocab].
      targets: int32 [...].

    Returns:
      float32 [...], in nats.
    """
    return _token_losses_forward(logits, targets)[0]


def _token_losses_forward(logits, targets):
    highest = logits.max(-1, keepdims=True)
    exps = jnp.exp(logits - highest)
    total = exps.sum(-1, keepdims=True)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)
    return (highest + jnp.log(total) - chosen)[..., 0], (exps, total, targets)


def _token_losses_backward(saved, d_losses):
    exps, total, targets = saved
    d_losses = d_losses[..., None]
    at_target = jnp.arange(exps.shape[-1]) == targets[..., None]
    return exps * (d_losses / total) - jnp.where(at_target, d_losses, 0), None


token_losses.defvjp(_token_losses_forward, _token_losses_backward)


#: (params, hidden [..., d]) -> float32 logits [..., vocab].
Logits = Callable[[Any, jax.Array], jax.Array]


def losses_in_pieces(
    logits: Logits, params: Any, hidden: jax.Array, targets: jax.Array, n_pieces: int
) -> jax.Array:
    """`token_losses` of the logits of `hidden`, of which only a share exists at any time.

    The context is cut, not the batch, so that a batch that is split over devices stays where it is.
    For what is not differentiated; see `mean_loss_in_pieces`.

    Args:
      params: of the head.
      hidden: [batch, time, d].
      targets: int32 [batch, time].
      n_pieces: divides the time; 1 takes all at once.

    Returns:
      float32 [batch, time], in nats.
    """
    if n_pieces == 1:
        return token_losses(logits(params, hidden), targets)
    pieces = _cut(hidden, n_pieces), _cut(targets, n_pieces)
    return _joined(jax.lax.map(lambda xs: token_losses(logits(params, xs[0]), xs[1]), pieces))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 4))
def mean_loss_in_pieces(
    logits: Logits, params: Any, hidden: jax.Array, targets: jax.Array, n_pieces: int
) -> jax.Array:
    """The mean of `losses_in_pieces`, a scalar that can be differentiated.

    As every token has the same share of the mean, a piece's gradient is formed as soon as its
    logits are there, and no logits are kept or computed again.
    """
    return _mean_loss_forward(logits, params, hidden, targets, n_pieces)[0]


def _mean_loss_forward(logits, params, hidden, targets, n_pieces):
    def share(params, x, y):
        return token_losses(logits(params, x), y).mean() / n_pieces

    loss_and_gradients = jax.value_and_grad(share, (0, 1))
    if n_pieces == 1:
        return loss_and_gradients(params, hidden, targets)

    def piece(total, xs):
        loss, (d_params, d_x) = loss_and_gradients(params, *xs)
        return jax.tree.map(jnp.add, total, (loss, d_params)), d_x

    zero = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
    pieces = _cut(hidden, n_pieces), _cut(targets, n_pieces)
    (loss, d_params), d_hidden = jax.lax.scan(piece, zero, pieces)
    return loss, (d_params, _joined(d_hidden))


def _mean_loss_backward(logits, n_pieces, saved, d_loss):
    d_params, d_hidden = jax.tree.map(lambda x: x * d_loss.astype(x.dtype), saved)
    return d_params, d_hidden, None


mean_loss_in_pieces.defvjp(_mean_loss_forward, _mean_loss_backward)


def _cut(x: jax.Array, n_pieces: int) -> jax.Array:
    """[batch, time, ...] -> [n_pieces, batch, time / n_pieces, ...]."""
    return jnp.moveaxis(x.reshape(x.shape[0], n_pieces, -1, *x.shape[2:]), 1, 0)


def _joined(x: jax.Array) -> jax.Array:
    """The inverse of `_cut`."""
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])
