"""The recipe that all studies share at scale gpu: vocabulary, batch, learning rate, initial weights.

Published rules for learning rates are fitted to larger models: StepLaw gives 0.14 at 2e5 parameters
and changes 48-fold along one profile of `isoflop`. A fixed batch leaves the short runs of a grid
with less than a hundred updates. So at this scale

- the learning rate depends on the width alone (`lmscale.sweep.grids.width_rule`, BASE_LR), and `isoflop` and
  `reconcile` also try half and twice that rate at one size of each budget;
- the batch grows as the square root of the training tokens (`batch_for`), and a run has at least
  MIN_STEPS updates;
- initial weights follow the width (`lmscale.architectures.init_by_width`);
- grids with budgets take sizes that train for TOKENS_PER_PARAM tokens a parameter;
- the vocabulary is small, so that the head does not outweigh the smallest models, and there is enough text
  that no run takes more than `lmscale.sweep.epochs.MOST_EPOCHS` epochs.

What is measured: the rule at its smallest widths, on a CPU in float32 (Python text, vocabulary 2048, context
128, 2 layers, initial weights by width, AdamW, a cosine to a tenth, one seed). Final losses at each
peak rate, and the minimum of the parabola through the best three beside what the rule gives:

    width  batch tokens  updates  rate: loss                                             best    rule
    64     1024          977      .0021: 4.612  .0042: 4.480  .0085: 4.494  .017: 4.952  .0056   .0042
    64     4096          244      .0021: 4.931  .0042: 4.753  .0085: 4.826  .017: 5.126  .0049   .0042
    128    4096          146      .0015: 5.005  .0030: 4.822  .0060: 5.043               .0029   .0030

So over a factor of two in width the rule is within a third of the best rate, and the best rate does not rise
from batches of 1024 tokens to 4096. We assume that both hold up to widths of 700, batches of 65,536 tokens, tens
of thousands of updates, and in bfloat16. No GPU has run this scale yet; its searches for the rate will test it.
"""

from __future__ import annotations

import math
from typing import Any

from lmscale.spec import SpecError

#: Peak learning rate that `width_rule` has at width 32.
BASE_LR = 0.006
#: Tokens of a batch for which the rates hold. A study that varies the batch derives its rates from this.
GPU_BATCH_TOKENS = 16_384
#: Fewest updates of a run.
MIN_STEPS = 1000
#: Training tokens over parameters (with the head) of the runs of a budget: from, to.
TOKENS_PER_PARAM = (1.0, 100.0)
#: The middle of that range in the logarithm, and how far sizes lie from it: at one budget D/N goes as 1/N^2.
CENTRE: dict[str, float] = {"tokens_per_param": 10.0, "spread": 2.6}
#: Fields that all studies share at scale gpu.
GPU_RECIPE: dict[str, Any] = {
    "vocab_size": 4096,
    "init_std": None,
    "base_lr": BASE_LR,
    "compute_dtype": "bfloat16",
}


def head_multiple(compute_dtype: str) -> int:
    """Heads of a ladder have a width that is a multiple of this: 8 in bfloat16, else 1.

    In bfloat16 attention uses the flash kernel of NVIDIA GPUs, which would pad other widths with zeros.
    """
    return 8 if compute_dtype == "bfloat16" else 1


def batch_for(n_tokens: float, n_ctx: int) -> int:
    """Sequences of a batch for a run of `n_tokens`: near 2 sqrt(D) tokens, a power of two.

    From 1e7 to 1e9 tokens that is within 30% of 0.58 D^0.571 (Li et al. 2025) before it is rounded;
    the square root lies between that rule and a fixed batch. It is rounded down
    where the nearest power would leave fewer than `MIN_STEPS` updates.

    Args:
      n_tokens: training tokens D.
      n_ctx: tokens of a sequence.

    Raises:
      SpecError: when batches of one sequence leave fewer updates.
    """
    most = n_tokens / (MIN_STEPS * n_ctx)
    if most < 1:
        raise SpecError(
            f"{n_tokens:g} training tokens are fewer than {MIN_STEPS} sequences of {n_ctx} tokens"
        )
    nearest = round(math.log2(2 * math.sqrt(n_tokens) / n_ctx))
    return 2 ** max(0, min(nearest, math.floor(math.log2(most))))
