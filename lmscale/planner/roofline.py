"""Seconds that a training step takes, from its operations, its memory traffic and its collectives."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from lmscale import flops
from lmscale.planner.devices import Devices
from lmscale.planner.memory import activation_sizes
from lmscale.planner.step_config import (
    StepConfig,
    choose_head,
    choose_recurrence,
    layer_costs,
)
from lmscale.spec import RunSpec

#: Seconds that a collective takes however little it sends.
COLLECTIVE_SECONDS = 10e-6
#: Share of a GPU's bandwidth that the time estimate assumes.
BANDWIDTH_SHARE = 0.7
#: Work of the runs side by side, in units of the time to launch their kernels, from which more of them
#: are no faster: a kernel takes its launch and its work in turn where it is short.
FILL = 4.0
#: Bytes of all parameters' updates, a parameter: gradients, moments and weights read and written, and copies
#: in the type that is computed with.
UPDATE_BYTES = 40.0
#: Seconds of a CPU's core for each byte that a layer saves for the backward pass: what is not a matrix product,
#: which adds to the FLOPs. Fitted with `CPU_CORE_FLOPS` to 18 models of both kinds on an AMD EPYC, of 10 thousand
#: to a million parameters with contexts of 8 to 512, whose errors have a standard deviation of 15%.
CPU_SAVED_BYTE_SECONDS = 0.48e-9
#: How often a byte of the head's input passes through a GPU's memory, and of the logits where they are there.
HIDDEN_PASSES, LOGIT_PASSES = 12.0, 8.0
#: Kernels of a step beside its layers: of the update, of a micro-batch, and of a part of the logits.
STEP_KERNELS, MICRO_BATCH_KERNELS, HEAD_KERNELS = 60.0, 50.0, 8.0


def executed_flops(spec: RunSpec, config: StepConfig, platform: str) -> float:
    """FLOPs of a step of one run, including what `remat` or a fused head computes a second time."""
    again = 0.0
    split = config.data * config.model
    if choose_head(platform, spec.model, spec.compute_dtype, split) == "fused":
        again += flops.operations(spec.model)["head"].forward_flops
    if config.remat:
        operations = flops.operations(spec.model).items()
        again += sum(x.forward_flops for name, x in operations if name not in ("head", "loss"))
    return flops.step_flops(spec) + again * spec.batch_tokens


@dataclass(frozen=True)
class Roofline:
    """Seconds of a step by each resource of a device, of which the one that takes longest decides.

    Attributes:
      compute: of its matrix units.
      memory: of its memory's bandwidth.
      links: of what it sends and waits for.
      launch: of the host that tells it what to run, kernel by kernel; and of kernels' time steps that wait for
        each other.
    """

    compute: float
    memory: float
    links: float
    launch: float = 0.0

    @property
    def step(self) -> float:
        """The seconds of the resource that takes longest."""
        return max(dataclasses.astuple(self))

    @property
    def bound(self) -> str:
        """That resource."""
        return max(dataclasses.asdict(self), key=lambda name: getattr(self, name))


def step_seconds(spec: RunSpec, devices: Devices, config: StepConfig, n_runs: int = 1) -> float:
    """Predicted seconds of a step of `n_runs` runs side by side; see `step_roofline`."""
    parts, waiting = _parts(spec, devices, config, n_runs)
    return parts.step + waiting


def step_roofline(spec: RunSpec, devices: Devices, config: StepConfig, n_runs: int = 1) -> Roofline:
    """Predicted seconds of a step by resource.

    - Computation takes as long as the FLOPs at the assumed share of the peak; on a CPU's core also what is not
      a matrix product, by the bytes that layers save.
    - Memory: every micro-batch reads the parameters and adds to the gradients, and every part of its
      logits adds to the head's gradient. On a GPU, where these were counted in compiled programs, also
      activations and logits (`gpu_bytes`), at the assumed share of the bandwidth.
    - A GPU launches as many kernels for many runs as for one (`gpu_kernels`), and time steps within a kernel
      wait for each other as long.
    - Over `data` each micro-batch gathers the parameters for the forward and for the backward pass and
      reduces their gradients. This overlaps with the computation.
    - Over `model` each layer's partial sums are reduced twice in either pass (in a Transformer; an
      LSTM's hidden state at every time step). The devices wait for it, so it adds to the others.

    Args:
      spec: of the runs, which are alike.
      devices: what they train on.
      config: how a step is executed.
      n_runs: side by side on a device.
    """
    parts, waiting = _parts(spec, devices, config, n_runs)
    return dataclasses.replace(parts, links=parts.links + waiting)


def _parts(
    spec: RunSpec, devices: Devices, config: StepConfig, n_runs: int
) -> tuple[Roofline, float]:
    """The seconds of resources that work at the same time, and those that all of them wait."""
    model, n_micro_batches = spec.model, spec.batch_size // config.micro_batch
    n_params = flops.n_params(model, "exact") / config.model
    width = 2 if spec.compute_dtype == "bfloat16" else 4
    compute = executed_flops(spec, config, devices.platform) / (config.data * config.model)
    compute /= devices.peak_flops * devices.utilisation
    memory = launch = 0.0
    if devices.platform == "gpu" and devices.bandwidth is not None:
        memory = gpu_bytes(spec, config, devices.kind) / (devices.bandwidth * BANDWIDTH_SHARE)
        launch = gpu_kernels(spec, config) * devices.launch
        serial = layer_costs(model, spec.compute_dtype, config).serial
        launch += n_micro_batches * model.depth * serial
    elif devices.platform == "cpu":
        compute += spec.batch_tokens * _saved_bytes(spec, config) * CPU_SAVED_BYTE_SECONDS
    elif devices.bandwidth is not None:
        hbm_bytes = n_params * (3 * width + 12 / config.data)
        memory = n_micro_batches * hbm_bytes / devices.bandwidth
        if config.logit_pieces > 1:
            # Added to the computation, which it does not overlap with.
            compute = (
                max(compute, memory) + _pieces_bytes(spec, devices, config) / devices.bandwidth
            )
    gather = waiting = 0.0
    if config.data > 1:
        link = devices.link if config.data * config.model <= devices.linked else devices.network
        size = width * n_params * (config.data - 1) / config.data
        gather = n_micro_batches * 3 * (size / link + model.depth * COLLECTIVE_SECONDS)
    if config.model > 1:
        link = devices.link if config.model <= devices.linked else devices.network
        size = spec.batch_tokens / config.data * width * model.width
        # An all-reduce is a reduce-scatter and an all-gather.
        size *= 2 * (config.model - 1) / config.model
        times = model.n_ctx if model.REDUCED_EVERY_TOKEN else 1
        waiting = (
            model.REDUCTIONS
            * model.depth
            * (size / link + n_micro_batches * times * COLLECTIVE_SECONDS)
        )
    parts = Roofline(n_runs * compute, n_runs * memory, n_runs * gather, launch)
    return parts, n_runs * waiting


def _saved_bytes(spec: RunSpec, config: StepConfig) -> float:
    """Bytes of a token that the layers save on a CPU, a device."""
    sizes = activation_sizes(spec.model, spec.compute_dtype, "cpu")
    split = (sizes.split + sizes.backward) / config.model
    return sizes.depth * (sizes.whole + split) / config.data


def _pieces_bytes(spec: RunSpec, devices: Devices, config: StepConfig) -> float:
    """Bytes by which parts of the logits add to the head's gradient, of a step of one run."""
    sizes = activation_sizes(spec.model, spec.compute_dtype, devices.platform)
    head = sizes.vocabulary / config.head_split(spec.model)
    return 12 * (spec.batch_size // config.micro_batch) * config.logit_pieces * head


def gpu_bytes(spec: RunSpec, config: StepConfig, kind: str = "") -> float:
    """Bytes that a step of one run reads and writes in a GPU's memory, fitted to compiled programs.

    Each byte that a layer saves for the backward pass stands for several that are moved (`GpuCosts`); with
    `remat` the forward pass happens again. Beside these there are the head, and parameters: read by
    every micro-batch, updated with their moments once.
    """
    model, tokens = spec.model, spec.batch_tokens / config.data
    devices = config.data * config.model
    recurrence = choose_recurrence("gpu", model, spec.compute_dtype, devices).form
    sizes = activation_sizes(model, spec.compute_dtype, "gpu", kind, recurrence)
    saved = sizes.depth * (sizes.whole + (sizes.split + sizes.backward) / config.model)
    costs = layer_costs(model, spec.compute_dtype, config)
    passes = costs.passes * (4 / 3 if config.remat else 1)
    fused = choose_head("gpu", model, spec.compute_dtype, devices) == "fused"
    head = HIDDEN_PASSES * sizes.width * model.head_width
    if not fused:
        head += LOGIT_PASSES * sizes.width * model.vocab_size / config.head_split(model)
    params = flops.n_params(model, "exact") / config.model
    n_micro_batches = spec.batch_size // config.micro_batch
    moved = n_micro_batches * (3 * sizes.width + 12 / config.data) + UPDATE_BYTES / config.data
    again = n_micro_batches * sizes.depth * sizes.width * costs.weights / config.model
    if config.logit_pieces > 1:
        vocabulary = sizes.vocabulary / config.head_split(model)
        again += 12 * n_micro_batches * config.logit_pieces * vocabulary
    return tokens * (passes * saved + head) + params * moved + again


def gpu_kernels(spec: RunSpec, config: StepConfig) -> float:
    """Kernels that a step launches on a GPU, for one run or for many; fitted to compiled programs."""
    n_micro_batches = spec.batch_size // config.micro_batch
    costs = layer_costs(spec.model, spec.compute_dtype, config)
    layers = spec.model.depth * costs.kernels * (4 / 3 if config.remat else 1)
    pieces = HEAD_KERNELS * config.logit_pieces
    return n_micro_batches * (layers + pieces + MICRO_BATCH_KERNELS) + STEP_KERNELS


def filling_runs(spec: RunSpec, devices: Devices, config: StepConfig) -> int:
    """How many runs side by side hide the launches of a step: one where a device has none."""
    parts, waiting = _parts(spec, devices, config, 1)
    work = max(parts.compute, parts.memory) + waiting
    return max(1, math.ceil(FILL * parts.launch / work))
