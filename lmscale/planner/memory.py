"""Bytes that a run takes on each of its devices: state, activations, logits, gathered parameters."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import jax
from jax.sharding import AbstractMesh

from lmscale import flops, optimizers
from lmscale.architectures import ModelSpec
from lmscale.parallel.mesh import AXES
from lmscale.parallel.partition import path_name, run_spec
from lmscale.planner.step_config import (
    StepConfig,
    choose_head,
    choose_recurrence,
    choose_unroll,
    default_attention,
    layer_costs,
)
from lmscale.spec import RunSpec
from lmscale.training.state import ProgramKey, initial_state


def device_memory(spec: RunSpec, platform: str, config: StepConfig, kind: str = "") -> float:
    """Predicted bytes that one run takes on each of its devices.

    The sum of

    - its share of parameters, gradients and moments;
    - what the forward pass saves for the backward pass: everything, or with `remat` the layers'
      inputs and what one layer needs while it is computed again;
    - the logits, where the head is not fused, or what the backward pass adds after they are freed (on a
      GPU the derivatives of a layer), whichever is larger;
    - over a data axis, the vocabulary's matrix and one layer, which are gathered where they are used.

    Args:
      spec: the run.
      platform: "cpu", "gpu" or "tpu".
      config: how its step is executed.
      kind: of device; see `lmscale.planner.step_config.choose_attention`.
    """
    devices = config.data * config.model
    recurrence = choose_recurrence(platform, spec.model, spec.compute_dtype, devices).form
    sizes = activation_sizes(spec.model, spec.compute_dtype, platform, kind, recurrence)
    params, moments = _state_bytes(ProgramKey.of(spec), config.data, config.model)
    # Parameters and gradients; with micro-batches also the gradient of one; on a CPU also a copy
    # while the update is formed.
    copies = 2 + (config.micro_batch < spec.batch_size) + (platform == "cpu")
    tokens = config.micro_batch // config.data * spec.model.n_ctx
    split = config.head_split(spec.model)
    head = sizes.head / split / config.logit_pieces
    if choose_head(platform, spec.model, spec.compute_dtype, devices) == "fused":
        head = 0.0
    derivatives, unrolled = 0.0, False
    if platform == "gpu":
        unrolled = choose_unroll(platform, spec.model, config)
        numbers = layer_costs(spec.model, spec.compute_dtype, config).derivatives * spec.model.width
        derivatives = sizes.width * numbers / config.model
    layer, backward = sizes.whole + sizes.split / config.model, sizes.backward / config.model
    if config.remat:
        saved = sizes.depth * sizes.input + max(layer + backward + sizes.ends, head)
    else:
        after = sizes.depth * backward + sizes.ends
        # Without a loop the compiler begins a layer's derivatives while the logits are there.
        most = head + derivatives if unrolled else max(head, derivatives)
        saved = sizes.depth * layer + max(after, most)
    gathered = 0.0
    if config.data > 1:
        # The matrix and its gradient in float32. With logit pieces both are float32, each twice.
        vocabulary = 4 * 4 if config.logit_pieces > 1 else sizes.width + 4
        gathered = vocabulary * sizes.vocabulary / split + sizes.width * sizes.layer / config.model
    return moments + params * copies + tokens * saved + gathered


@dataclass(frozen=True)
class ActivationSizes:
    """Sizes of a model's activations and of its two largest matrices.

    Attributes:
      head: bytes of a token's logits and their gradient.
      input: bytes of a token where it enters a layer.
      whole, split: bytes of a token that a layer saves: those that a model axis does not divide, and
        those that it does.
      backward: bytes of a token that the backward pass adds in a layer; a model axis divides them.
      ends: bytes of a token outside of the layers during the backward pass.
      depth: layers.
      width: bytes of a number that is computed with.
      vocabulary: numbers in the embedding.
      layer: numbers in the kernels of the largest layer.
    """

    head: float
    input: float
    whole: float
    split: float
    backward: float
    ends: float
    depth: int
    width: int
    vocabulary: int
    layer: int


@functools.lru_cache(maxsize=1024)
def activation_sizes(
    model: ModelSpec,
    compute_dtype: str,
    platform: str,
    kind: str = "",
    recurrence: str = "scan",
) -> ActivationSizes:
    """The sizes of a model's activations on a platform, or on a kind of its devices.

    Args:
      recurrence: see `lmscale.planner.step_config.choose_recurrence`.
    """
    width = 2 if compute_dtype == "bfloat16" else 4
    # Exponentials (float32) and the gradient. XLA for GPUs recomputes the exponentials instead.
    gpu = platform == "gpu"
    head = (width if gpu else 4 + width) * model.vocab_size
    attention = default_attention(platform, model, compute_dtype, kind)
    if recurrence == "kernel":
        kept = model.recurrent_kernel_costs(width)[0]
    else:
        kept = model.activations(width, platform, attention)
    return ActivationSizes(
        head=head,
        input=kept.input,
        whole=kept.whole,
        split=kept.split,
        backward=kept.backward,
        ends=kept.ends,
        depth=model.depth,
        width=width,
        vocabulary=model.vocab_size * model.embed_width,
        layer=kept.layer_params,
    )


@functools.lru_cache(maxsize=1024)
def _state_bytes(key: ProgramKey, data: int, model: int) -> tuple[float, float]:
    """Bytes of one run's parameters and of its optimizer's moments on each of its devices."""
    optimizer = optimizers.optimizer(key.optimizer)
    if data * model == 1 and optimizer.elementwise:
        params = 4 * flops.n_params(key.model, "exact")
        return params, optimizer.moments * params
    state = _abstract_state(key)
    mesh, rules = AbstractMesh((1, data, model), AXES), key.model.partition_rules()

    def bytes_of(tree: Any) -> float:
        total = 0.0
        for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
            split = itertools.chain.from_iterable(
                (axis,) if isinstance(axis, str) else axis or ()
                for axis in run_spec(path_name(path), x.shape, mesh, rules)
            )
            total += x.size * x.dtype.itemsize / math.prod(mesh.shape[axis] for axis in split)
        return total

    return bytes_of(state["params"]), bytes_of(state["opt"])


@functools.lru_cache(maxsize=256)
def _abstract_state(key: ProgramKey) -> Any:
    return jax.eval_shape(lambda seed: initial_state(key, seed), jax.ShapeDtypeStruct((), "int32"))
