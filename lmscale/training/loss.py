"""The loss: cross-entropy of the next token, in nats per token."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp


def token_losses(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """-log p(target) for every token.

    Args:
      logits: float32 [..., vocab].
      targets: int32 [...].

    Returns:
      float32 [...], in nats.
    """
    shifted = logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True))
    log_sum = jnp.log(jnp.exp(shifted).sum(-1))
    return log_sum - jnp.take_along_axis(shifted, targets[..., None], axis=-1)[..., 0]


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
