"""What an architecture says of itself is made of these: arrays, operations, memory, sizes.

`lmscale.architectures.base` has the protocol that asks for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Required, TypedDict

if TYPE_CHECKING:
    from lmscale.architectures.base import ModelSpec


class GpuCosts(NamedTuple):
    """What a GPU does for the forward and the backward pass of a layer, beside its FLOPs.

    Fitted to programs that XLA compiled for an H100; PERFORMANCE.md says how well.

    Attributes:
      kernels: that it launches for a micro-batch.
      passes: bytes that it reads and writes for each byte that the layer saves for the backward pass.
      weights: numbers of weights that it reads for a micro-batch, beyond reading each once in either pass.
      derivatives: numbers that the backward pass of one layer holds at a time, beside those that were
        saved, for a token and a unit of the model's width.
      serial: seconds for a micro-batch that its kernels take at least, for one run or for many, where they
        go through time steps that wait for each other.
    """

    kernels: float
    passes: float
    derivatives: float
    weights: float = 0.0
    serial: float = 0.0


@dataclass(frozen=True)
class Operation:
    """The parameters and FLOPs of one kind of operation, summed over all layers of a model.

    Attributes:
      params: stored scalars; shared ones count once.
      forward_flops: FLOPs per token of the forward pass.
      backward_flops: FLOPs per token of the gradients of inputs and parameters. Twice the forward
        pass for a matmul; elementwise work has no such rule.
    """

    params: int
    forward_flops: float
    backward_flops: float


class Array(NamedTuple):
    """A rule for the parameter arrays whose path ends with `pattern` (a regular expression).

    Attributes:
      axes: for each dimension, the mesh axis that splits it ("data", "model" or None). Stacked layers
        have their layer dimension first. Several rules may have the same pattern and different
        numbers of dimensions. None means that the array is small and replicated.
      decays: whether weight decay applies: to matrices, not to biases, norms or positions.
    """

    pattern: str
    axes: tuple[str | None, ...] | None
    decays: bool


@dataclass(frozen=True)
class Activations:
    """Bytes per token that training keeps in memory, without the logits.

    Attributes:
      input: the input of a layer.
      whole: saved by a layer for the backward pass, and not divided by tensor parallelism.
      split: the same, divided by tensor parallelism (the mesh axis `model`).
      backward: additional bytes during the backward pass of a layer, divided as `split`.
      ends: outside of the layers, during the backward pass.
      layer_params: numbers in the kernels of the largest layer.
    """

    input: float
    whole: float
    split: float
    layer_params: int
    backward: float = 0.0
    ends: float = 0.0


class SizeOptions(TypedDict, total=False):
    """Keyword arguments of `ModelSpec.of_size`.

    Attributes:
      n_ctx, vocab_size: of the model.
      n_layer: the depth; by default it follows from the size.
      init_std: standard deviation of the initial weights; by default the architecture's own choice.
        Architectures that scale each array by its inputs ignore it.
    """

    n_ctx: Required[int]
    vocab_size: Required[int]
    n_layer: int | None
    init_std: float | None


class Ladder(NamedTuple):
    """A rule that gives a shape for a size, and the name of the rule."""

    of_size: Callable[[float], ModelSpec]
    name: str


#: Arrays of every architecture with `lmscale.models.layers.Embedding` and a linear head.
SHARED_ARRAYS = (
    Array(r"embed/embedding$", ("model", "data"), decays=True),
    Array(r"head/kernel$", ("data", "model"), decays=True),
)


# --- For counts -----------------------------------------------------------------------------------

# Elementwise arithmetic as (forward, backward) FLOPs per element, from the formulas in lmscale.models.
# exp, tanh, log and rsqrt count as zero: they have no agreed cost, and XLA counts them separately too.
ADD = (1, 1)
SCALE = (1, 1)
LAYER_NORM = (6, 12)
#: Of rotary positions: two products and a sum.
ROTATION = (3, 3)
SOFTMAX = (5, 4)
ACTIVATION = {"gelu": (7, 14), "relu": (1, 2)}
CROSS_ENTROPY = (3, 4)


def matmul(params: int, uses: int = 1) -> Operation:
    """A matmul with `params` weights, applied `uses` times; each of its two gradients costs as much."""
    forward = 2.0 * params * uses
    return Operation(params, forward, 2.0 * forward)


def elementwise(*work: tuple[tuple[int, int], int], params: int = 0) -> Operation:
    """Elementwise work: pairs of ((forward, backward) FLOPs per element, elements per token)."""
    forward = sum(cost[0] * elements for cost, elements in work)
    backward = sum(cost[1] * elements for cost, elements in work)
    return Operation(params, float(forward), float(backward))


def output_head(model: ModelSpec) -> Operation:
    """The matmul of the logits; a tied head stores no parameters of its own."""
    found = matmul(model.head_width * model.vocab_size)
    return dataclasses.replace(found, params=0) if model.tied_head else found
