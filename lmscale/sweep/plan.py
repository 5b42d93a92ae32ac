"""The plan: which runs train in one program, on which mesh, in which pieces, at what cost.

A plan is execution: it never changes what a run computes, but for rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lmscale import flops
from lmscale.spec import LSTMSpec, RunSpec
from lmscale.sweep.devices import Devices
from lmscale.sweep.experiment import Run
from lmscale.training.step import ProgramKey

#: Tokens of a gradient accumulation step on a CPU: pieces whose activations stay in the cache.
CPU_PIECE_TOKENS = 256
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
    """All packs, in the order in which they are begun.

    `teams` packs train at a time, each on devices of its own: on a CPU one a core, as a core trains
    one run faster than several packed; elsewhere one pack takes what devices it needs.
    """

    devices: Devices
    packs: tuple[Pack, ...]
    teams: int = 1

    @property
    def flops(self) -> float:
        return math.fsum(pack.flops for pack in self.packs)

    @property
    def seconds(self) -> float:
        """Predicted time: no less than an even share of all packs."""
        return math.fsum(pack.seconds for pack in self.packs) / self.teams

    @property
    def n_runs(self) -> int:
        return sum(len(pack.runs) for pack in self.packs)


def make_plan(runs: Sequence[Run], devices: Devices, *, n_slots: int | None = None) -> Plan:
    """Groups the runs into packs, the cheapest pack first.

    Args:
      runs: of one experiment; equal specs are trained once.
      devices: what to train on.
      n_slots: runs side by side in one program, instead of the planner's choice.
    """
    teams = 1
    if devices.kind == "cpu" and n_slots is None:
        teams, devices = devices.count, replace(devices, count=1)
    unique = {run.spec.hash: run for run in runs}.values()

    def group(run: Run):
        return ProgramKey.of(run.spec), run.spec.data.corpus, run.spec.data.fingerprint

    ordered = sorted(unique, key=lambda run: (repr(group(run)), -run.spec.steps, run.spec.hash))
    packs = [
        _make_pack(tuple(members), devices, n_slots)
        for _, members in itertools.groupby(ordered, key=group)
    ]
    by_id = {run.spec.run_id: run for run in unique}

    def order(pack: Pack) -> tuple:
        # Runs come after those that they start from; within a pack the loop sees to it. The largest
        # come first: small ones fill the end evenly, and what does not fit in memory shows at once.
        generation = max(len(_ancestors(run, by_id)) for run in pack.runs)
        return generation, -pack.flops, repr(pack.key)

    return Plan(
        replace(devices, count=devices.count * teams), tuple(sorted(packs, key=order)), teams
    )


def shard_runs(runs: Sequence[Run], index: int, count: int) -> list[Run]:
    """Shard number `index` of `count`: equal shares of the cost, each run in exactly one shard.

    A run goes where the run is that it starts from.
    """
    loads = [0.0] * count
    shards: list[list[Run]] = [[] for _ in range(count)]
    by_id = {run.spec.run_id: run for run in runs}
    trees: dict[str, list[Run]] = {}
    for run in by_id.values():
        root = (_ancestors(run, by_id) or [run])[-1]
        trees.setdefault(root.spec.hash, []).append(run)
    costs = {root: sum(flops.own_flops(run.spec) for run in tree) for root, tree in trees.items()}
    for root in sorted(trees, key=lambda root: (-costs[root], root)):
        least = min(range(count), key=lambda i: (loads[i], i))
        loads[least] += costs[root]
        shards[least] += trees[root]
    return shards[index]


def branch_steps(runs: Sequence[Run]) -> dict[str, set[int]]:
    """Run -> the steps at which others of the runs start from it."""
    kept: dict[str, set[int]] = {}
    for run in runs:
        if run.spec.start:
            kept.setdefault(run.spec.start.run, set()).add(run.spec.start.step)
    return kept


def _ancestors(run: Run, by_id: Mapping[str, Run]) -> list[Run]:
    """The run that a run starts from, the one that that one starts from, and so on."""
    found = []
    while run.spec.start and run.spec.start.run in by_id:
        run = by_id[run.spec.start.run]
        found.append(run)
    return found


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
    run_axis, data = _mesh(spec, len(runs), n_slots, devices, capacity)
    per_device = 1 if n_slots is None else n_slots // run_axis
    micro_batch = _micro_batch(spec, devices, data, capacity / per_device)
    memory = device_memory(spec, data, micro_batch)
    if n_slots is None:
        # A CPU's packs hold one run each and train side by side; an accelerator wants to be filled.
        if devices.kind != "cpu" and data == 1:
            by_memory = int(capacity // memory)
            by_work = FILLING_TOKENS // spec.batch_tokens
            per_device = max(1, min(by_memory, by_work, math.ceil(len(runs) / run_axis)))
        n_slots = run_axis * per_device
    total = math.fsum(flops.own_flops(run.spec) for run in runs)
    speed = devices.peak_flops * devices.utilisation * run_axis * data
    chunk = DISPATCH_SECONDS * speed / (flops.step_flops(spec) * n_slots)
    longest = max(run.spec.steps for run in runs)
    return Pack(
        key=ProgramKey.of(spec),
        fingerprint=spec.data.fingerprint,
        runs=runs,
        n_slots=n_slots,
        mesh=(run_axis, data, 1),
        micro_batch=micro_batch,
        chunk_steps=max(1, min(256, longest, 2 ** round(math.log2(max(1.0, chunk))))),
        memory=memory * per_device,
        flops=total,
        seconds=total / speed,
    )


def device_memory(spec: RunSpec, data: int, micro_batch: int) -> float:
    """Predicted bytes that one run takes on each of the `data` devices it is split over."""
    state, activations = run_memory(spec, micro_batch)
    return (state + activations) / data


def _mesh(
    spec: RunSpec, n_runs: int, n_slots: int | None, devices: Devices, capacity: float
) -> tuple[int, int]:
    """The run and data axes: as many whole runs side by side as there are, each on as few devices.

    Data parallelism costs an all-reduce a step and runs side by side cost nothing, so the run axis
    comes first. What devices are left over split each run's batch, and its state (FSDP) where one
    device could not hold it. The cores of a CPU only ever hold whole runs.
    """
    n_runs = n_runs if n_slots is None else n_slots
    options = [
        (run_axis, data)
        for run_axis in range(1, min(n_runs, devices.count) + 1)
        for data in range(1, 2 if devices.kind == "cpu" else devices.count // run_axis + 1)
        if (n_slots is None or n_slots % run_axis == 0) and spec.batch_size % data == 0
    ]
    fitting = [o for o in options if device_memory(spec, o[1], o[1]) <= capacity]
    # Where nothing fits, most devices a run is the best that can be tried.
    return max(fitting, key=lambda o: (o[0] * o[1], o[0]), default=max(options, key=lambda o: o[1]))


def _micro_batch(spec: RunSpec, devices: Devices, data: int, capacity: float) -> int:
    """The largest piece of the batch whose activations fit the cache (CPU) or the memory."""
    if spec.noise_pieces:
        return spec.batch_size // spec.noise_pieces
    pieces = [d for d in range(data, spec.batch_size + 1, data) if spec.batch_size % d == 0]
    if devices.kind == "cpu":
        # An LSTM's time scan costs by its steps, not by its rows, so it takes the batch whole.
        limit = math.inf if isinstance(spec.model, LSTMSpec) else CPU_PIECE_TOKENS
        fitting = [d for d in pieces if d * spec.model.n_ctx <= limit]
    else:
        fitting = [d for d in pieces if device_memory(spec, data, d) <= capacity]
    return max(fitting, default=pieces[0])
