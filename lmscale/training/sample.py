"""Text from a trained run: the shortest way to see what it has learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lmscale.training.run_folder import RunFolder
from lmscale.training.trained import trained_state


def sample_tokens(
    folder: RunFolder,
    prompt: Sequence[int] | np.ndarray,
    *,
    n_tokens: int,
    temperature: float,
    seed: int,
    step: int | None = None,
) -> Iterator[int]:
    """Continues a prompt, one token at a time.

    Args:
      folder: a run with a checkpoint.
      prompt: token ids, at least one.
      n_tokens: how many to add.
      temperature: 1 samples from the model, 0 takes the likeliest token.
      seed: of the sampling.
      step: of the checkpoint; the newest if it is not given.

    Raises:
      SpecError: when the run has no checkpoint.
      DamagedError: when its newest one is damaged.
    """
    state = trained_state(folder, step)[1]
    spec = folder.spec.model
    graphdef = nnx.split(nnx.eval_shape(lambda: spec.module(nnx.Rngs(params=0))))[0]

    @jax.jit
    def next_token(params, window, length, key):
        logits = nnx.merge(graphdef, params)(window[None])[0, length - 1]
        drawn = jax.random.categorical(key, logits / jnp.maximum(temperature, 1e-6))
        return jnp.where(temperature > 0, drawn, logits.argmax())

    tokens, key = list(prompt), jax.random.key(seed)
    for i in range(n_tokens):
        # The model sees at most n_ctx tokens; what follows the last one does not reach it.
        seen = tokens[-spec.n_ctx :]
        window = np.zeros(spec.n_ctx, np.int32)
        window[: len(seen)] = seen
        tokens.append(
            int(next_token(state["params"], window, len(seen), jax.random.fold_in(key, i)))
        )
        yield tokens[-1]
