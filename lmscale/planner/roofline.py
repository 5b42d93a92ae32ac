"""Seconds that a training step takes, from its operations, its memory traffic and its collectives."""

from __future__ import annotations

from lmscale import flops
from lmscale.planner.devices import Devices
from lmscale.planner.memory import activation_sizes
from lmscale.planner.step_config import StepConfig
from lmscale.spec import RunSpec

#: Seconds that a collective takes however little it sends.
COLLECTIVE_SECONDS = 10e-6


def executed_flops(spec: RunSpec, config: StepConfig) -> float:
    """FLOPs of a step of one run, including what `remat` computes a second time."""
    again = 0.0
    if config.remat:
        operations = flops.operations(spec.model).items()
        again = sum(x.forward_flops for name, x in operations if name not in ("head", "loss"))
    return flops.step_flops(spec) + again * spec.batch_tokens


def step_seconds(spec: RunSpec, devices: Devices, config: StepConfig) -> float:
    """Predicted seconds of a step of one run on its devices: a roofline.

    - Computation takes as long as the FLOPs at the assumed share of the peak. Every micro-batch reads
      the parameters and adds to the gradients, so it takes at least as long as that memory traffic.
      Every part of its logits adds to the head's gradient.
    - Over `data` each micro-batch gathers the parameters for the forward and for the backward pass and
      reduces their gradients. This overlaps with the computation.
    - Over `model` each layer's partial sums are reduced twice in either pass (in a Transformer; an
      LSTM's hidden state at every time step). The devices wait for it.
    """
    model, n_micro_batches = spec.model, spec.batch_size // config.micro_batch
    n_params = flops.n_params(model, "exact") / config.model
    width = 2 if spec.compute_dtype == "bfloat16" else 4
    compute = executed_flops(spec, config) / (config.data * config.model)
    compute /= devices.peak_flops * devices.utilisation
    if devices.bandwidth is not None:
        hbm_bytes = n_params * (3 * width + 12 / config.data)
        compute = max(compute, n_micro_batches * hbm_bytes / devices.bandwidth)
        if config.logit_pieces > 1:
            sizes = activation_sizes(model, spec.compute_dtype, devices.platform)
            head = sizes.vocabulary / config.head_split(model)
            compute += 12 * n_micro_batches * config.logit_pieces * head / devices.bandwidth
    gather = reduce = 0.0
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
        reduce = (
            model.REDUCTIONS
            * model.depth
            * (size / link + n_micro_batches * times * COLLECTIVE_SECONDS)
        )
    return max(compute, gather) + reduce
