"""The plan: which runs train in one program, on which mesh, in which pieces, at what cost.

A plan is execution: it never changes what a run computes, but for rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from lmscale import flops
from lmscale.spec import LSTMSpec, RunSpec
from lmscale.sweep.devices import Devices
from lmscale.sweep.experiment import Run
from lmscale.training.step import ProgramKey

#: Tokens of a gradient accumulation step on a CPU: pieces whose activations stay in the cache.
CPU_PIECE_TOKENS = 512
#: Seconds that one dispatch should take: long against its overhead, short against a kill.
DISPATCH_SECONDS = 0.5
#: Share of a device's memory that a plan fills.
MEMORY_SHARE = 0.8
#: Tokens in flight (slots x batch) above which an accelerator has enough to do in every launch.
FILLING_TOKENS = 65_536


@dataclass(frozen=True)
class Pack:
    """Runs that pass through one program.

    Attributes:
      runs: longest first, so that the slots empty at about the same time.
      n_slots: runs trained side by side.
      mesh: sizes of the axes run, data, model.
      micro_batch: sequences of a gradient accumulation step.
      chunk_steps: most steps of a dispatch.
      memory: predicted bytes on each device.
      flops: training FLOPs of all runs as the program executes them.
      seconds: predicted time, compilation left out.
    """

    key: ProgramKey
    fingerprint: str
    runs: tuple[Run, ...]
    n_slots: int
    mesh: tuple[int, int, int]
    micro_batch: int
    chunk_steps: int
    memory: float
    flops: float
    seconds: float


@dataclass(frozen=True)
class Plan:
    devices: Devices
    packs: tuple[Pack, ...]

    @property
    def flops(self) -> float:
        return math.fsum(pack.flops for pack in self.packs)

    @property
    def seconds(self) -> float:
        return math.fsum(pack.seconds for pack in self.packs)

    @property
    def n_runs(self) -> int:
        return sum(len(pack.runs) for pack in self.packs)


def make_plan(runs: Sequence[Run], devices: Devices, *, n_slots: int | None = None) -> Plan:
    """Groups the runs into packs, the cheapest pack first.

    Args:
      runs: of one experiment; equal specs are trained once.
      devices: what to train on.
      n_slots: runs side by side, instead of the planner's choice.
    """
    unique = {run.spec.hash: run for run in runs}.values()

    def group(run: Run):
        return ProgramKey.of(run.spec), run.spec.data.corpus, run.spec.data.fingerprint

    ordered = sorted(unique, key=lambda run: (repr(group(run)), -run.spec.steps, run.spec.hash))
    packs = [
        _make_pack(tuple(members), devices, n_slots)
        for _, members in itertools.groupby(ordered, key=group)
    ]
    return Plan(devices, tuple(sorted(packs, key=lambda pack: (pack.flops, repr(pack.key)))))


def shard_runs(runs: Sequence[Run], index: int, count: int) -> list[Run]:
    """Shard number `index` of `count`: equal shares of the cost, each run in exactly one shard."""
    loads = [0.0] * count
    shards: list[list[Run]] = [[] for _ in range(count)]
    costs = {run.spec.hash: (flops.training_flops(run.spec, "exact"), run) for run in runs}
    for key in sorted(costs, key=lambda key: (-costs[key][0], key)):
        cost, run = costs[key]
        least = min(range(count), key=lambda i: (loads[i], i))
        loads[least] += cost
        shards[least].append(run)
    return shards[index]


def run_memory(spec: RunSpec, micro_batch: int) -> tuple[float, float]:
    """Predicted bytes of one run: (parameters, gradients and moments; activations)."""
    n = flops.n_params(spec.model, "exact")
    moments = 0.1 if spec.optimizer.name == "adafactor" else 2
    # Parameters, gradients, moments, and one copy while the update is formed.
    state = 4 * n * (3 + moments)
    model, width = spec.model, 2 if spec.compute_dtype == "bfloat16" else 4
    tokens = micro_batch * model.n_ctx
    # Logits, their exponentials and their gradient, in float32.
    head = 3 * 4 * model.vocab_size
    if isinstance(model, LSTMSpec):
        layers = model.n_layer * (10 * width + 8) * model.d_hidden
        return state, tokens * (head + layers)
    scores = 3 * 4 * model.n_head * model.n_ctx
    layer = (8 * model.d_model + 4 * model.d_attn + 3 * model.d_ff) * width + scores
    return state, tokens * (head + model.depth * layer)


def _make_pack(runs: tuple[Run, ...], devices: Devices, n_slots: int | None) -> Pack:
    spec = runs[0].spec
    capacity = MEMORY_SHARE * devices.memory
    one = sum(run_memory(spec, 1))
    if one > capacity and devices.count > 1:
        # Too large for a device: FSDP over as many as it takes.
        data = min(devices.count, 2 ** math.ceil(math.log2(one / capacity)))
        run_axis = 1
        used = data
    else:
        run_axis, data = min(devices.count, len(runs)), 1
        used = run_axis
    micro_batch = _micro_batch(spec, devices, capacity / max(1, n_slots or 1) * data)
    state, activations = run_memory(spec, micro_batch)
    if n_slots is None:
        if devices.kind == "cpu" or data > 1:
            # A core trains one run faster than several packed (measured), see the README.
            n_slots = run_axis
        else:
            by_memory = max(1, int(capacity // (state + activations)))
            by_work = max(1, FILLING_TOKENS // spec.batch_tokens)
            per_device = min(by_memory, by_work, math.ceil(len(runs) / run_axis))
            n_slots = run_axis * per_device
    else:
        run_axis = math.gcd(n_slots, run_axis) if data == 1 else 1
        used = run_axis * data
    total = math.fsum(flops.training_flops(run.spec, "exact") for run in runs)
    step_flops = flops.training_flops(spec, "exact") / spec.steps
    speed = devices.peak_flops * devices.utilisation
    chunk = DISPATCH_SECONDS * speed * used / (step_flops * n_slots)
    longest = max(run.spec.steps for run in runs)
    return Pack(
        key=ProgramKey.of(spec),
        fingerprint=spec.data.fingerprint,
        runs=runs,
        n_slots=n_slots,
        mesh=(run_axis, data, 1),
        micro_batch=micro_batch,
        chunk_steps=max(1, min(256, longest, 2 ** round(math.log2(max(1.0, chunk))))),
        memory=(state + activations) * n_slots / used,
        flops=total,
        seconds=total / (speed * used),
    )


def _micro_batch(spec: RunSpec, devices: Devices, capacity: float) -> int:
    """The largest divisor of the batch whose activations fit the cache (CPU) or the memory."""
    divisors = [d for d in range(1, spec.batch_size + 1) if spec.batch_size % d == 0]
    if devices.kind == "cpu":
        fitting = [d for d in divisors if d * spec.model.n_ctx <= CPU_PIECE_TOKENS]
    else:
        fitting = [d for d in divisors if sum(run_memory(spec, d)) <= capacity]
    return max(fitting, default=1)
