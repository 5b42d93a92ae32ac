"""The loss: cross-entropy of the next token, in nats per token."""

from __future__ import annotations

from collections.abc import Callable

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


def losses_in_pieces(
    logits: Callable[[jax.Array], jax.Array], hidden: jax.Array, targets: jax.Array, n_pieces: int
) -> jax.Array:
    """`token_losses` of the logits of `hidden`, of which only a share exists at any time.

    The context is cut, not the batch, so that a batch that is split over devices stays where it is.
    The backward pass computes each piece's logits again.

    Args:
      logits: [..., d] -> float32 [..., vocab].
      hidden: [batch, time, d].
      targets: int32 [batch, time].
      n_pieces: divides the time; 1 takes all at once and computes nothing again.

    Returns:
      float32 [batch, time], in nats.
    """
    if n_pieces == 1:
        return token_losses(logits(hidden), targets)

    def cut(x: jax.Array) -> jax.Array:
        return jnp.moveaxis(x.reshape(x.shape[0], n_pieces, -1, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def piece(x: jax.Array, y: jax.Array) -> jax.Array:
        return token_losses(logits(x), y)

    losses = jax.lax.scan(lambda _, xs: (None, piece(*xs)), None, (cut(hidden), cut(targets)))[1]
    return jnp.moveaxis(losses, 0, 1).reshape(targets.shape)
