"""The plan of an experiment: which runs train in one program, on which mesh, at what cost.

A plan is execution: it changes a result by rounding at most.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lmscale import flops
from lmscale.planner.devices import Devices
from lmscale.planner.lineage import HasSpec, ancestors
from lmscale.planner.memory import device_memory
from lmscale.planner.mesh_search import Constraints, fastest_step_config, search_mesh
from lmscale.planner.roofline import filling_runs, step_roofline, step_seconds
from lmscale.planner.step_config import (
    RecurrenceChoice,
    StepConfig,
    choose_recurrence,
    choose_unroll,
)
from lmscale.training.state import ProgramKey

#: Seconds that one dispatch should take: long against its overhead, short against the time that a
#: process is given to save its runs.
DISPATCH_SECONDS = 0.5
#: Predicted seconds of one core from which every core gets a worker process. In a shorter sweep
#: starting the workers would take longer than training.
WORKER_SECONDS = 20.0
#: Seconds that a CPU's core compiles for a pack.
CPU_COMPILE_SECONDS = 9.0
#: Share of a device's memory that a plan fills.
MEMORY_SHARE = 0.8
#: Tokens in flight (slots x batch) above which a TPU, whose programs launch nothing, has enough to do.
FILLING_TOKENS = 65_536
#: Most steps of a dispatch.
MAX_CHUNK_STEPS = 256


@dataclass(frozen=True)
class Pack:
    """Runs that train in one program.

    Attributes:
      key: what the runs have in common.
      fingerprint: of their corpus.
      runs: longest first, so that the slots empty at about the same time.
      n_slots: runs trained side by side.
      mesh: sizes of the axes run, data, model.
      micro_batch, remat, logit_pieces: see `StepConfig`.
      unroll: whether the layers are unrolled instead of looped over.
      chunk_steps: most steps of a dispatch.
      memory: predicted bytes on each device, without the training tokens.
      flops: training FLOPs of all runs as the program executes them.
      seconds: predicted time without compilation.
      bound: the resource that a step is predicted to wait for, see `roofline.Roofline`.
    """

    key: ProgramKey
    fingerprint: str
    runs: tuple[HasSpec, ...]
    n_slots: int
    mesh: tuple[int, int, int]
    micro_batch: int
    remat: bool
    logit_pieces: int
    unroll: bool
    chunk_steps: int
    memory: float
    flops: float
    seconds: float
    bound: str = "compute"

    @property
    def step_config(self) -> StepConfig:
        _, data, model = self.mesh
        return StepConfig(data, model, self.micro_batch, self.remat, self.logit_pieces)

    def recurrence(self, platform: str) -> RecurrenceChoice:
        """How the time steps of its model are computed on a platform."""
        split = self.mesh[1] * self.mesh[2]
        return choose_recurrence(platform, self.key.model, self.key.compute_dtype, split)


@dataclass(frozen=True)
class Plan:
    """All packs, in the order in which they are begun.

    Attributes:
      devices: all of them.
      packs: the first is begun first.
      workers: packs that train at a time. On a CPU each core has a worker process that trains one run,
        which is faster than packing several runs; elsewhere one pack takes the devices it needs.
    """

    devices: Devices
    packs: tuple[Pack, ...]
    workers: int = 1

    @property
    def flops(self) -> float:
        return math.fsum(pack.flops for pack in self.packs)

    @property
    def seconds(self) -> float:
        """Predicted time: an even share of all packs for each worker; on a CPU with compilation."""
        compiling = CPU_COMPILE_SECONDS if self.devices.platform == "cpu" else 0.0
        return math.fsum(pack.seconds + compiling for pack in self.packs) / self.workers

    @property
    def n_runs(self) -> int:
        return sum(len(pack.runs) for pack in self.packs)


def make_plan(
    runs: Sequence[HasSpec],
    devices: Devices,
    *,
    n_slots: int | None = None,
    mesh: tuple[int, int, int] | None = None,
    whole: bool = False,
    memory_share: float = MEMORY_SHARE,
) -> Plan:
    """Groups the runs into packs, the largest first.

    Args:
      runs: of one experiment; equal specs are trained once.
      devices: what to train on.
      n_slots: runs side by side in one program, instead of the planner's choice.
      mesh: sizes of the axes run, data, model, instead of the planner's choice.
      whole: every mesh takes all devices, as where several processes train together. So it is on a TPU slice
        that lies in several hosts.
      memory_share: share of a device's memory that the prediction may fill.

    Raises:
      MeshError: when `mesh` asks for other devices than there are, or does not divide a batch.
    """
    unique = {run.spec.hash: run for run in runs}.values()
    workers = 1
    if devices.platform == "cpu" and n_slots is None and mesh is None and not whole:
        total = math.fsum(flops.flops_without_start(run.spec) for run in unique)
        workers = devices.count if total > WORKER_SECONDS * devices.peak_flops else 1
        devices = replace(devices, count=1)
    asked = Constraints(n_slots, mesh, whole or devices.train_together, memory_share)

    def group(run: HasSpec) -> tuple[ProgramKey, str, str]:
        return ProgramKey.of(run.spec), run.spec.data.corpus, run.spec.data.fingerprint

    ordered = sorted(unique, key=lambda run: (repr(group(run)), -run.spec.steps, run.spec.hash))
    packs = [
        _make_pack(tuple(members), devices, asked)
        for _, members in itertools.groupby(ordered, key=group)
    ]
    by_id = {run.spec.run_id: run for run in unique}

    def order(pack: Pack) -> tuple[int, float, str]:
        # Runs come after those that they start from; within a pack the loop arranges it. The largest
        # packs come first: small ones fill the end evenly, and what does not fit in memory shows at
        # once.
        generation = max(len(ancestors(run, by_id)) for run in pack.runs)
        return generation, -pack.flops, repr(pack.key)

    return Plan(
        replace(devices, count=devices.count * workers), tuple(sorted(packs, key=order)), workers
    )


def replan_with_less_memory(
    pack: Pack,
    devices: Devices,
    memory: float,
    *,
    n_slots: int | None = None,
    mesh: tuple[int, int, int] | None = None,
) -> Pack | None:
    """Plans a pack's runs again with less memory a device; None where nothing takes less.

    Args:
      pack: the pack that did not fit.
      devices: what it was planned for.
      memory: bytes that the prediction may come to.
      n_slots, mesh: see `make_plan`.
    """
    share = memory / devices.memory
    (other,) = make_plan(pack.runs, devices, n_slots=n_slots, mesh=mesh, memory_share=share).packs
    return other if other.memory < pack.memory else None


def fits(pack: Pack, devices: Devices) -> bool:
    """Whether a pack is predicted to leave enough of the memory free."""
    return pack.memory <= MEMORY_SHARE * devices.memory


def enough_devices(pack: Pack, devices: Devices, memory: float | None = None) -> int | None:
    """The fewest devices of this kind, in doublings, on which a pack is predicted to fit.

    Args:
      pack: the pack that does not fit.
      devices: what it was planned for.
      memory: bytes that the prediction may come to, instead of a plan's share.

    Returns:
      None where 2^8 times as many do not suffice.
    """
    share = MEMORY_SHARE if memory is None else memory / devices.memory
    for doublings in range(1, 9):
        more = replace(devices, count=devices.count * 2**doublings)
        (other,) = make_plan(pack.runs, more, memory_share=share).packs
        if other.memory <= share * devices.memory:
            return more.count
    return None


def with_slots(pack: Pack, n_slots: int, devices: Devices) -> Pack:
    """The pack with this many runs side by side, and the predictions that follow from it."""
    spec, config = pack.runs[0].spec, pack.step_config
    per_device = n_slots // pack.mesh[0]
    step = step_seconds(spec, devices, config, per_device)
    longest = max(run.spec.steps for run in pack.runs)
    chunk = 2 ** round(math.log2(max(1.0, DISPATCH_SECONDS / step)))
    return replace(
        pack,
        n_slots=n_slots,
        chunk_steps=max(1, min(MAX_CHUNK_STEPS, longest, chunk)),
        memory=device_memory(spec, devices.platform, config, devices.kind) * per_device,
        seconds=(pack.flops / flops.step_flops(spec) + _evaluations(pack)) * step / n_slots,
        bound=step_roofline(spec, devices, config, per_device).bound,
    )


def _evaluations(pack: Pack) -> float:
    """What the evaluations of all its runs cost, in training steps: a forward pass is a third of one."""
    tokens = math.fsum(
        run.spec.n_evaluations * sum(evaluation.tokens for evaluation in run.spec.evals)
        for run in pack.runs
    )
    return tokens / pack.runs[0].spec.batch_tokens / 3


def most_slots(pack: Pack, devices: Devices) -> int:
    """The most runs side by side that are of use and are predicted to fit in memory."""
    run_axis = pack.mesh[0]
    one = device_memory(pack.runs[0].spec, devices.platform, pack.step_config, devices.kind)
    by_memory = int(MEMORY_SHARE * devices.memory // one)
    return run_axis * max(1, min(by_memory, math.ceil(len(pack.runs) / run_axis)))


def _make_pack(runs: tuple[HasSpec, ...], devices: Devices, asked: Constraints) -> Pack:
    spec = runs[0].spec
    capacity = asked.memory_share * devices.memory
    run_axis, data, model_axis = search_mesh(spec, len(runs), asked, devices, capacity)
    per_device = 1 if asked.n_slots is None else asked.n_slots // run_axis
    config = fastest_step_config(spec, devices, data, model_axis, capacity / per_device)
    # On a CPU a device holds one run; an accelerator needs enough work in every launch.
    if asked.n_slots is None and devices.platform != "cpu" and data == model_axis == 1:
        by_memory = int(capacity // device_memory(spec, devices.platform, config, devices.kind))
        by_work = FILLING_TOKENS // spec.batch_tokens
        if devices.launch:
            by_work = filling_runs(spec, devices, config)
        per_device = max(1, min(by_memory, by_work, math.ceil(len(runs) / run_axis)))
    pack = Pack(
        key=ProgramKey.of(spec),
        fingerprint=spec.data.fingerprint,
        runs=runs,
        n_slots=1,
        mesh=(run_axis, data, model_axis),
        micro_batch=config.micro_batch,
        remat=config.remat,
        logit_pieces=config.logit_pieces,
        unroll=choose_unroll(devices.platform, spec.model, config),
        chunk_steps=1,
        memory=0.0,
        flops=math.fsum(flops.flops_without_start(run.spec) for run in runs),
        seconds=0.0,
    )
    return with_slots(pack, run_axis * per_device, devices)
