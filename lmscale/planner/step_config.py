"""How one run's training step is executed on its devices."""

from __future__ import annotations

from dataclasses import dataclass

from lmscale.architectures import ModelSpec
from lmscale.models.attention import splash_takes


@dataclass(frozen=True)
class StepConfig:
    """How a run's step is executed. It changes a result by rounding at most.

    Attributes:
      data: devices that share each batch, and the state (FSDP).
      model: devices that share each layer (tensor parallelism).
      micro_batch: sequences of a gradient accumulation step, over all devices.
      remat: layers save only their inputs and are computed again for the backward pass.
      logit_pieces: parts of the context whose logits exist at a time.
    """

    data: int = 1
    model: int = 1
    micro_batch: int = 1
    remat: bool = False
    logit_pieces: int = 1

    def head_split(self, model: ModelSpec) -> int:
        """Devices that share the output head: the model axis, where it divides the vocabulary."""
        return self.model if model.vocab_size % self.model == 0 else 1


def default_attention(platform: str, model: ModelSpec, compute_dtype: str) -> str:
    """The attention kernel of a platform; see `lmscale.models.attention.causal_attention`.

    The flash kernel of a GPU in bfloat16, that of a TPU where it takes the context, else XLA's.
    """
    if platform == "gpu" and compute_dtype == "bfloat16":
        return "cudnn"
    if platform == "tpu" and splash_takes(model.n_ctx):
        return "splash"
    return "xla"
