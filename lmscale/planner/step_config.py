"""How one run's training step is executed on its devices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lmscale.architectures import ModelSpec
from lmscale.architectures.parts import GpuCosts
from lmscale.environment import choice
from lmscale.models import lstm_kernel
from lmscale.models.attention import CUDNN_REFUSES_DOCUMENTS, cudnn_refuses, splash_takes
from lmscale.training.fused_loss import refuses

#: Deepest models whose layers are unrolled, by platform. A loop over layers copies what every layer saves for
#: the backward pass: a tenth of a step on a CPU, and on a GPU a quarter of the bytes and half of the
#: kernels. Unrolled, compile time grows with the depth.
UNROLLED_LAYERS = {"cpu": 4, "gpu": 16}
#: The variable that switches the fused head off, and its values.
HEAD_SWITCH, HEAD_CHOICES = "LMSCALE_HEAD", ("fused", "xla")
#: Kinds of GPU of compute capability 9.0 (Hopper) or later.
NEWER_GPUS = ("h100", "h200", "b200")


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


class AttentionChoice(NamedTuple):
    """An attention kernel (see `lmscale.models.attention.causal_attention`), and why it is no other.

    Attributes:
      kernel: "xla", "cudnn" or "splash".
      reason: why it is not the platform's flash kernel; None where it is, or where there is none.
    """

    kernel: str
    reason: str | None = None


def choose_attention(
    platform: str, model: ModelSpec, compute_dtype: str, kind: str = ""
) -> AttentionChoice:
    """The attention kernel of a platform: its flash kernel where that takes the model, else XLA's.

    Args:
      platform: "cpu", "gpu" or "tpu".
      kind: of device, a key of `lmscale.planner.devices.KINDS`; a GPU of another kind is taken for one
        of the older ones, whose kernel takes narrower heads.
    """
    if platform == "gpu":
        widest = 256 if kind in NEWER_GPUS else 128
        refused = cudnn_refuses(model.attention_width, compute_dtype, widest)
        if model.document_separator is not None:
            refused = CUDNN_REFUSES_DOCUMENTS
        return AttentionChoice("cudnn") if refused is None else AttentionChoice("xla", refused)
    if platform == "tpu":
        if splash_takes(model.n_ctx):
            return AttentionChoice("splash")
        return AttentionChoice("xla", f"the flash kernel takes contexts in 128s, not {model.n_ctx}")
    return AttentionChoice("xla")


def default_attention(platform: str, model: ModelSpec, compute_dtype: str, kind: str = "") -> str:
    """The kernel of `choose_attention`."""
    return choose_attention(platform, model, compute_dtype, kind).kernel


def asked_head() -> str:
    """The head of a GPU's training step that the environment asks for: "fused" by default.

    Raises:
      SpecError: when LMSCALE_HEAD has another value than there are.
    """
    return choice(HEAD_SWITCH, HEAD_CHOICES)


def choose_head(platform: str, model: ModelSpec, compute_dtype: str, split: int = 1) -> str:
    """How the loss of a platform's training step meets the output head.

    Args:
      platform: "cpu", "gpu" or "tpu".
      split: devices that share a run.

    Returns:
      "fused" (`lmscale.training.fused_loss`) on a GPU that it takes the model on, else "xla". Always
      "xla" where the environment has LMSCALE_HEAD=xla (`asked_head`).
    """
    asked = asked_head()
    if platform == "gpu" and refuses(model.head_width, compute_dtype, split) is None:
        return asked
    return "xla"


class RecurrenceChoice(NamedTuple):
    """How the time steps of an LSTM are computed, and why not as the environment asks.

    Attributes:
      form: "scan" (`lmscale.models.lstm.recurrence`) or "kernel" (`lmscale.models.lstm_kernel`).
      reason: why it is the scan although the kernel is asked for; else None.
    """

    form: str
    reason: str | None = None


def choose_recurrence(
    platform: str, model: ModelSpec, compute_dtype: str, split: int = 1
) -> RecurrenceChoice:
    """How the time steps of a model are computed: by the kernel where LMSCALE_LSTM=kernel asks for it.

    Args:
      platform: "cpu", "gpu" or "tpu".
      split: devices that share a run.

    Raises:
      SpecError: when the model has time steps and LMSCALE_LSTM another value than there are.
    """
    width = model.recurrent_width
    if width is None or not lstm_kernel.is_asked() or platform != "gpu":
        return RecurrenceChoice("scan")
    reason = lstm_kernel.refuses(width, compute_dtype, split)
    return RecurrenceChoice("kernel" if reason is None else "scan", reason)


def layer_costs(model: ModelSpec, compute_dtype: str, config: StepConfig) -> GpuCosts:
    """The costs of a layer of a model on a GPU."""
    split = config.data * config.model
    if choose_recurrence("gpu", model, compute_dtype, split).form == "kernel":
        return model.recurrent_kernel_costs(2 if compute_dtype == "bfloat16" else 4)[1]
    return model.gpu_costs(choose_unroll("gpu", model, config))


def choose_unroll(platform: str, model: ModelSpec, config: StepConfig) -> bool:
    """Whether the layers are unrolled instead of looped over.

    On a GPU only for whole runs that save all activations: what is gathered or computed again for one
    layer must be freed before the next, which a loop makes sure of.
    """
    if platform == "gpu" and (config.data * config.model > 1 or config.remat):
        return False
    return model.depth <= UNROLLED_LAYERS.get(platform, 0)
