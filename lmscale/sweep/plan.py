"""The plan: which runs train in one program, on which mesh, in which pieces, at what cost.

A plan is execution: it never changes what a run computes, but for rounding.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lmscale import flops
from lmscale.parallel import MeshError
from lmscale.spec import LSTMSpec, RunSpec
from lmscale.sweep.devices import Devices
from lmscale.sweep.experiment import Run
from lmscale.training.step import ProgramKey

#: Tokens of a gradient accumulation step on a CPU: pieces whose activations stay in the cache.
CPU_PIECE_TOKENS = 256
#: Deepest models whose layers are unrolled on a CPU. A loop over layers copies what every layer
#: keeps for the backward pass (a tenth of a step); without it compilation grows with the depth.
CPU_UNROLLED_LAYERS = 4
#: Seconds that one dispatch should take: long against its overhead, short against a kill.
DISPATCH_SECONDS = 0.5
#: Share of a device's memory that a plan fills.
MEMORY_SHARE = 0.8
#: Tokens in flight (slots x batch) above which an accelerator has enough to do in every launch.
FILLING_TOKENS = 65_536
#: Seconds that a collective takes however little it sends.
COLLECTIVE_SECONDS = 10e-6


@dataclass(frozen=True)
class Pack:
    """Runs that pass through one program.

    Attributes:
      runs: longest first, so that the slots empty at about the same time.
      n_slots: runs trained side by side.
      mesh: sizes of the axes run, data, model.
      micro_batch: sequences of a gradient accumulation step.
      unroll: whether the layers are unrolled instead of looped over.
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
    unroll: bool
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


def make_plan(
    runs: Sequence[Run],
    devices: Devices,
    *,
    n_slots: int | None = None,
    mesh: tuple[int, int, int] | None = None,
    whole: bool = False,
) -> Plan:
    """Groups the runs into packs, the largest first.

    Args:
      runs: of one experiment; equal specs are trained once.
      devices: what to train on.
      n_slots: runs side by side in one program, instead of the planner's choice.
      mesh: sizes of the axes run, data, model, instead of the planner's choice.
      whole: every mesh takes all devices, as where several processes train together.

    Raises:
      MeshError: when `mesh` asks for other devices than there are, or does not divide a batch.
    """
    teams = 1
    if devices.kind == "cpu" and n_slots is None and mesh is None and not whole:
        teams, devices = devices.count, replace(devices, count=1)
    layout = _Layout(n_slots, mesh, whole)
    unique = {run.spec.hash: run for run in runs}.values()

    def group(run: Run):
        return ProgramKey.of(run.spec), run.spec.data.corpus, run.spec.data.fingerprint

    ordered = sorted(unique, key=lambda run: (repr(group(run)), -run.spec.steps, run.spec.hash))
    packs = [
        _make_pack(tuple(members), devices, layout)
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


def run_memory(spec: RunSpec, micro_batch: int, model_axis: int = 1) -> tuple[float, float]:
    """Predicted bytes of one run: (parameters, gradients and moments; activations).

    With a `model_axis` the activations are those of all its devices together, each of which holds
    the residual stream whole.
    """
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
    residual = 8 * model.d_model * model_axis
    layer = (residual + 4 * model.d_attn + 3 * model.d_ff) * width + scores
    return state, tokens * (head + model.depth * layer)


def device_memory(spec: RunSpec, data: int, micro_batch: int, model_axis: int = 1) -> float:
    """Predicted bytes that one run takes on each of the devices it is split over."""
    state, activations = run_memory(spec, micro_batch, model_axis)
    return (state + activations) / (data * model_axis)


def step_seconds(
    spec: RunSpec, devices: Devices, data: int, model_axis: int, micro_batch: int
) -> float:
    """Predicted time of a step of one run on data x model devices: a roofline.

    Over `data` the parameters are gathered for the forward and the backward pass of every piece of
    the batch and their gradients reduced, while the devices compute. Over `model` every layer's
    partial sums are reduced twice in either pass (a Transformer's; an LSTM's hidden state at every
    time step), while the devices wait.
    """
    model, n_pieces = spec.model, spec.batch_size // micro_batch
    compute = flops.step_flops(spec) / (data * model_axis)
    compute /= devices.peak_flops * devices.utilisation
    lstm = isinstance(model, LSTMSpec)
    depth = model.n_layer if lstm else model.depth
    gather = reduce = 0.0
    if data > 1:
        link = devices.link if data * model_axis <= devices.linked else devices.network
        size = 4 * flops.n_params(model, "exact") / model_axis * (data - 1) / data
        gather = n_pieces * 3 * (size / link + depth * COLLECTIVE_SECONDS)
    if model_axis > 1:
        link = devices.link if model_axis <= devices.linked else devices.network
        width = 2 if spec.compute_dtype == "bfloat16" else 4
        size = spec.batch_tokens / data * width * (model.d_hidden if lstm else model.d_model)
        # An all-reduce is a reduce-scatter and a gather.
        size *= 2 * (model_axis - 1) / model_axis
        each, times = (2, model.n_ctx) if lstm else (4, 1)
        reduce = each * depth * (size / link + n_pieces * times * COLLECTIVE_SECONDS)
    return max(compute, gather) + reduce


@dataclass(frozen=True)
class _Layout:
    """What is asked of every pack's mesh; see `make_plan`."""

    n_slots: int | None
    mesh: tuple[int, int, int] | None
    whole: bool


def _make_pack(runs: tuple[Run, ...], devices: Devices, layout: _Layout) -> Pack:
    spec, n_slots = runs[0].spec, layout.n_slots
    capacity = MEMORY_SHARE * devices.memory
    run_axis, data, model_axis = _mesh(spec, len(runs), layout, devices, capacity)
    per_device = 1 if n_slots is None else n_slots // run_axis
    micro_batch = _micro_batch(spec, devices, data, model_axis, capacity / per_device)
    memory = device_memory(spec, data, micro_batch, model_axis)
    if n_slots is None:
        # A CPU's packs hold one run each and train side by side; an accelerator wants to be filled.
        if devices.kind != "cpu" and data == model_axis == 1:
            by_memory = int(capacity // memory)
            by_work = FILLING_TOKENS // spec.batch_tokens
            per_device = max(1, min(by_memory, by_work, math.ceil(len(runs) / run_axis)))
        n_slots = run_axis * per_device
    total = math.fsum(flops.own_flops(run.spec) for run in runs)
    step = step_seconds(spec, devices, data, model_axis, micro_batch) * per_device
    longest = max(run.spec.steps for run in runs)
    depth = spec.model.n_layer if isinstance(spec.model, LSTMSpec) else spec.model.depth
    return Pack(
        key=ProgramKey.of(spec),
        fingerprint=spec.data.fingerprint,
        runs=runs,
        n_slots=n_slots,
        mesh=(run_axis, data, model_axis),
        micro_batch=micro_batch,
        unroll=devices.kind == "cpu" and depth <= CPU_UNROLLED_LAYERS,
        chunk_steps=max(
            1, min(256, longest, 2 ** round(math.log2(max(1.0, DISPATCH_SECONDS / step))))
        ),
        memory=memory * per_device,
        flops=total,
        seconds=total / flops.step_flops(spec) * step / n_slots,
    )


def _mesh(
    spec: RunSpec, n_runs: int, layout: _Layout, devices: Devices, capacity: float
) -> tuple[int, int, int]:
    """The mesh on which the runs end first, among those whose memory suffices.

    Runs side by side cost nothing, so the run axis comes first. Devices that are left over split
    each run's batch and state (FSDP over `data`) as far as that saves time or memory, and its
    layers (over `model`, inside a host or slice) where the batch is too small to be split further or
    gathering the parameters would take longer than computing. The cores of a CPU hold whole runs,
    unless all must serve one.
    """
    if layout.mesh is not None:
        return _checked(layout, spec, devices)
    n_slots, count = layout.n_slots, devices.count
    n_runs = n_runs if n_slots is None else n_slots
    fixed = devices.kind == "cpu" and not layout.whole

    def splits(limit: int) -> range:
        return range(1, 2 if fixed else limit + 1)

    options = [
        (run_axis, data, model_axis)
        for run_axis in range(1, (count if layout.whole else min(n_runs, count)) + 1)
        for data in splits(count // run_axis)
        for model_axis in splits(min(count // (run_axis * data), devices.linked))
        if (n_slots is None or n_slots % run_axis == 0)
        and spec.batch_size % data == 0
        and (model_axis == 1 or _splits_over(spec, model_axis))
        and (not layout.whole or run_axis * data * model_axis == count)
    ]
    if not options:
        raise MeshError(
            f"no mesh takes all {count} devices with --slots {n_slots} and batches of "
            f"{spec.batch_size}: choose other --slots"
        )
    fitting = [o for o in options if device_memory(spec, o[1], o[1], o[2]) <= capacity]

    def seconds(option: tuple[int, int, int]) -> tuple:
        run_axis, data, model_axis = option
        micro_batch = _micro_batch(spec, devices, data, model_axis, capacity)
        rounds = math.ceil(n_runs / run_axis)
        return rounds * step_seconds(spec, devices, data, model_axis, micro_batch), -run_axis

    # Where nothing fits, most devices a run is the best that can be tried.
    return min(fitting, key=seconds, default=max(options, key=lambda o: (o[1] * o[2], o[1])))


def _checked(layout: _Layout, spec: RunSpec, devices: Devices) -> tuple[int, int, int]:
    """The user's mesh, or an error that says why it cannot be."""
    run_axis, data, _ = mesh = layout.mesh
    shown, size = "x".join(map(str, mesh)), math.prod(mesh)
    if size > devices.count or (layout.whole and size < devices.count):
        verb = "needs" if size > devices.count else "uses"
        raise MeshError(f"the mesh {shown} {verb} {size} devices, but there are {devices.count}")
    if spec.batch_size % data:
        raise MeshError(
            f"the mesh {shown} splits batches over {data} devices, but {spec.model.label} has "
            f"batches of {spec.batch_size} sequences"
        )
    if layout.n_slots is not None and layout.n_slots % run_axis:
        raise MeshError(
            f"the mesh {shown} splits slots over {run_axis} devices, but there are {layout.n_slots}"
        )
    return mesh


def _splits_over(spec: RunSpec, model_axis: int) -> bool:
    """Whether a model's layers can be cut into so many equal parts."""
    model = spec.model
    if isinstance(model, LSTMSpec):
        return model.d_hidden % model_axis == 0
    return model.n_head % model_axis == 0 and model.d_ff % model_axis == 0


def _micro_batch(
    spec: RunSpec, devices: Devices, data: int, model_axis: int, capacity: float
) -> int:
    """The largest piece of the batch whose activations fit the cache (CPU) or the memory."""
    if spec.noise_pieces:
        return spec.batch_size // spec.noise_pieces
    pieces = [d for d in range(data, spec.batch_size + 1, data) if spec.batch_size % d == 0]
    if devices.kind == "cpu":
        # An LSTM's time scan costs by its steps, not by its rows, so it takes the batch whole.
        limit = math.inf if isinstance(spec.model, LSTMSpec) else CPU_PIECE_TOKENS
        fitting = [d for d in pieces if d * spec.model.n_ctx <= limit * data]
    else:
        fitting = [d for d in pieces if device_memory(spec, data, d, model_axis) <= capacity]
    return max(fitting, default=pieces[0])
