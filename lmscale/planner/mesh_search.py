"""The search for the mesh, and for the step configuration on it, that finish first and fit."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass

from lmscale.parallel.mesh import MeshError
from lmscale.planner.devices import Devices
from lmscale.planner.memory import device_memory
from lmscale.planner.roofline import filling_runs, step_seconds
from lmscale.planner.step_config import StepConfig
from lmscale.spec import RunSpec

#: Tokens of a micro-batch on a CPU, and of the logits at a time: activations that stay in the cache.
CPU_MICRO_BATCH_TOKENS = 512
#: Parts that the logits are computed in where they do not fit whole, as far as the context divides.
LOGIT_PIECES = 8

Mesh = tuple[int, int, int]


@dataclass(frozen=True)
class Constraints:
    """What is asked of every pack's mesh; see `lmscale.planner.packs.make_plan`."""

    n_slots: int | None
    mesh: Mesh | None
    whole: bool
    memory_share: float


def search_mesh(
    spec: RunSpec, n_runs: int, asked: Constraints, devices: Devices, capacity: float
) -> Mesh:
    """The mesh (run, data, model) on which the runs end first, among those whose memory suffices.

    Runs that train side by side exchange nothing, so the run axis comes first. Devices that are left
    over split each run's batch and state (FSDP over `data`) as far as that saves time or memory. They
    split its layers (over `model`, inside a host or slice) where the batch is too small to be split
    further, or where gathering the parameters would take longer than computing. The cores of a CPU
    hold whole runs, unless all of them must serve one.

    Args:
      spec: any of the runs, which share a program.
      n_runs: how many there are.
      asked: what the user or the caller wants.
      devices: what to train on.
      capacity: bytes of a device that the prediction may fill.

    Raises:
      MeshError: when no mesh meets the constraints.
    """
    if asked.mesh is not None:
        return _checked(asked.mesh, asked, spec, devices)
    options = _options(spec, n_runs, asked, devices)
    if not options:
        raise MeshError(
            f"no mesh takes all {devices.count} devices with --slots {asked.n_slots} and batches of "
            f"{spec.batch_size}: choose other --slots"
        )
    n_runs = n_runs if asked.n_slots is None else asked.n_slots

    @functools.cache
    def predicted(data: int, model_axis: int) -> tuple[float, StepConfig]:
        """Bytes of a run, and how its step is executed."""
        config = fastest_step_config(spec, devices, data, model_axis, capacity)
        return device_memory(spec, devices.platform, config, devices.kind), config

    def seconds(option: Mesh) -> tuple[float, int]:
        run_axis, data, model_axis = option
        config, on_each = predicted(data, model_axis)[1], math.ceil(n_runs / run_axis)
        # Runs that a device holds whole share its launches.
        alone = data * model_axis == 1
        together = min(on_each, filling_runs(spec, devices, config)) if alone else 1
        steps = math.ceil(on_each / together)
        return steps * step_seconds(spec, devices, config, together), -run_axis

    fitting = [o for o in options if predicted(*o[1:])[0] <= capacity]
    # Where nothing fits, the most devices a run are the best that can be tried.
    return min(fitting, key=seconds, default=max(options, key=lambda o: (o[1] * o[2], o[1])))


def _options(spec: RunSpec, n_runs: int, asked: Constraints, devices: Devices) -> list[Mesh]:
    """Every mesh that meets the constraints."""
    n_slots, count = asked.n_slots, devices.count
    n_runs = n_runs if n_slots is None else n_slots
    whole_runs = devices.platform == "cpu" and not asked.whole

    def splits(limit: int) -> range:
        return range(1, 2 if whole_runs else limit + 1)

    return [
        (run_axis, data, model_axis)
        for run_axis in range(1, (count if asked.whole else min(n_runs, count)) + 1)
        for data in splits(count // run_axis)
        for model_axis in splits(min(count // (run_axis * data), devices.linked))
        if (n_slots is None or n_slots % run_axis == 0)
        and spec.batch_size % data == 0
        and (model_axis == 1 or spec.model.splits_over(model_axis))
        and (not asked.whole or run_axis * data * model_axis == count)
    ]


def _checked(mesh: Mesh, asked: Constraints, spec: RunSpec, devices: Devices) -> Mesh:
    """The user's mesh, or an error that says why it cannot be."""
    run_axis, data, _ = mesh
    shown, size = "x".join(map(str, mesh)), math.prod(mesh)
    if size > devices.count or (asked.whole and size < devices.count):
        verb = "needs" if size > devices.count else "uses"
        raise MeshError(f"the mesh {shown} {verb} {size} devices, but there are {devices.count}")
    if spec.batch_size % data:
        raise MeshError(
            f"the mesh {shown} splits batches over {data} devices, but {spec.model.label} has "
            f"batches of {spec.batch_size} sequences"
        )
    if asked.n_slots is not None and asked.n_slots % run_axis:
        raise MeshError(
            f"the mesh {shown} splits slots over {run_axis} devices, but there are {asked.n_slots}"
        )
    return mesh


def fastest_step_config(
    spec: RunSpec, devices: Devices, data: int, model_axis: int, capacity: float
) -> StepConfig:
    """The fastest configuration that fits, or the one of least memory where none does.

    On a CPU the micro-batches are those whose activations stay in the cache.

    Args:
      spec: the run.
      devices: what to train on.
      data, model_axis: sizes of the mesh's axes.
      capacity: bytes of a device that the run may take.
    """
    sizes = _micro_batches(spec, devices, data)
    n_ctx = spec.model.n_ctx
    if devices.platform == "cpu":
        wanted = sizes[0] // data * n_ctx / CPU_MICRO_BATCH_TOKENS
        pieces = next(p for p in divisors(n_ctx) if p >= min(wanted, n_ctx))
        return StepConfig(data, model_axis, sizes[0], logit_pieces=pieces)
    pieces = next(p for p in (LOGIT_PIECES, 4, 2, 1) if n_ctx % p == 0)
    remats = (False, True) if spec.model.REMAT else (False,)
    forms = [(remat, logits) for remat in remats for logits in (1, pieces)]
    fitting: list[StepConfig] = []
    for form in forms:
        # The largest micro-batch that fits is the fastest of its form.
        configs = (StepConfig(data, model_axis, size, *form) for size in reversed(sizes))
        fits = (
            c for c in configs if device_memory(spec, devices.platform, c, devices.kind) <= capacity
        )
        fitting += itertools.islice(fits, 1)
    least = StepConfig(data, model_axis, sizes[0], *forms[-1])
    return min(fitting, key=lambda config: step_seconds(spec, devices, config), default=least)


def divisors(number: int) -> list[int]:
    """All divisors of a number, in ascending order. Batches may be so large that trying each is slow."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return small + [number // d for d in reversed(small) if d * d != number]


def _micro_batches(spec: RunSpec, devices: Devices, data: int) -> list[int]:
    """Sequences that a micro-batch may have, in ascending order; the only choice on a CPU."""
    if spec.noise_pieces:
        return [spec.batch_size // spec.noise_pieces]
    sizes = [size for size in divisors(spec.batch_size) if size % data == 0]
    if devices.platform != "cpu":
        return sizes
    limit = CPU_MICRO_BATCH_TOKENS if spec.model.CPU_MICRO_BATCHES else math.inf
    fitting = [size for size in sizes if size * spec.model.n_ctx <= limit * data]
    return [max(fitting, default=sizes[0])]
