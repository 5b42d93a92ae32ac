"""The loss: cross-entropy of the next token, in nats per token."""

from __future__ import annotations

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
