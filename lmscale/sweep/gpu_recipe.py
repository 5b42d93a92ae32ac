"""The recipe of the scale gpu, one for all studies: vocabulary, batch, learning rate, initial weights.

Published rules for learning rates are fitted to larger models: StepLaw gives 0.14 at 2e5 parameters
and changes 48-fold along one profile of `isoflop`. A fixed batch leaves the short runs of a grid
with less than a hundred updates. So at this scale

- the learning rate goes with the width alone (`lmscale.sweep.grids.width_rule`, BASE_LR), and grids search
  half and twice of it where they have budgets;
- the batch grows as the square root of the training tokens (`batch_for`), and a run has at least
  MIN_STEPS updates;
- initial weights follow the width (`lmscale.sweep.shapes.init_by_width`);
- grids with budgets take sizes that train for TOKENS_PER_PARAM tokens a parameter;
- the vocabulary is small, so that the head does not outweigh the smallest models, and the text is so much
  that no run passes over it more than `lmscale.sweep.epochs.MOST_EPOCHS` times.
"""

from __future__ import annotations

import math
from typing import Any

#: Peak learning rate that `width_rule` has at width 32.
BASE_LR = 0.006
#: Tokens of a batch at which the rates are right; where a study varies the batch, rates follow from it.
GPU_BATCH_TOKENS = 16_384
#: Updates that every run has at least.
MIN_STEPS = 1000
#: Training tokens over parameters (with the head) of the runs of a budget: from, to.
TOKENS_PER_PARAM = (1.0, 100.0)
#: The middle of that range, in its logarithm, and how far sizes lie from it: a budget buys D/N as 1/N^2.
CENTRE: dict[str, float] = {"tokens_per_param": 10.0, "spread": 2.6}
#: Fields that the scale gpu of every study has in common.
GPU_RECIPE: dict[str, Any] = {
    "vocab_size": 4096,
    "init_std": None,
    "base_lr": BASE_LR,
    "compute_dtype": "bfloat16",
}


def batch_for(n_tokens: float, n_ctx: int) -> int:
    """Sequences of a batch for a run of `n_tokens`: near 2 sqrt(D) tokens, a power of two.

    From 1e7 to 1e9 tokens that is within 30% of 0.58 D^0.571 (Li et al. 2025) before it is rounded;
    the square root keeps to the middle between batches that grow with D and none that grow. Rounded down
    where the nearest power would leave fewer than `MIN_STEPS` updates.

    Args:
      n_tokens: training tokens D.
      n_ctx: tokens of a sequence.

    Raises:
      ValueError: when batches of one sequence leave fewer updates.
    """
    most = n_tokens / (MIN_STEPS * n_ctx)
    if most < 1:
        raise ValueError(
            f"{n_tokens:g} training tokens are fewer than {MIN_STEPS} sequences of {n_ctx} tokens"
        )
    nearest = round(math.log2(2 * math.sqrt(n_tokens) / n_ctx))
    return 2 ** max(0, min(nearest, math.floor(math.log2(most))))
