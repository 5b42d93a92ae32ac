"""The plan: which runs train in one program, on which mesh, in which pieces, at what cost.

A plan is execution: it never changes what a run computes, but for rounding.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
from jax.sharding import AbstractMesh

from lmscale import flops, optimizers
from lmscale.architectures import ModelSpec
from lmscale.models.attention import splash_takes
from lmscale.parallel.mesh import AXES, MeshError
from lmscale.parallel.partition import path_name, run_spec
from lmscale.spec import RunSpec
from lmscale.sweep.devices import Devices
from lmscale.sweep.experiment import Run
from lmscale.sweep.shards import ancestors
from lmscale.training.step import ProgramKey, initial_state

#: Tokens of a gradient accumulation step on a CPU, and of the logits at a time: pieces that stay in
#: the cache.
CPU_PIECE_TOKENS = 512
#: Deepest models whose layers are unrolled on a CPU. A loop over layers copies what every layer
#: keeps for the backward pass (a tenth of a step); without it compilation grows with the depth.
CPU_UNROLLED_LAYERS = 4
#: Seconds that one dispatch should take: long against its overhead, short against a kill.
DISPATCH_SECONDS = 0.5
#: Predicted seconds of one core from which every core gets a team.
TEAM_SECONDS = 20.0
#: Seconds that a CPU's core compiles for a pack.
CPU_COMPILE_SECONDS = 9.0
#: Share of a device's memory that a plan fills.
MEMORY_SHARE = 0.8
#: Tokens in flight (slots x batch) above which an accelerator has enough to do in every launch.
FILLING_TOKENS = 65_536
#: Seconds that a collective takes however little it sends.
COLLECTIVE_SECONDS = 10e-6
#: Parts that the logits are computed in where they do not fit whole, as far as the context divides.
LOGIT_PIECES = 8


@dataclass(frozen=True)
class Execution:
    """How a run is trained on its devices. It changes a result by rounding at most.

    Attributes:
      data, model: devices that share each batch and the state, and each layer.
      micro_batch: sequences of a gradient accumulation step, over all devices.
      remat: layers keep only their inputs, and are computed again for the backward pass.
      logit_pieces: parts of the context whose logits exist at a time.
    """

    data: int = 1
    model: int = 1
    micro_batch: int = 1
    remat: bool = False
    logit_pieces: int = 1


@dataclass(frozen=True)
class Pack:
    """Runs that pass through one program.

    Attributes:
      runs: longest first, so that the slots empty at about the same time.
      n_slots: runs trained side by side.
      mesh: sizes of the axes run, data, model.
      micro_batch, remat, logit_pieces: see `Execution`.
      unroll: whether the layers are unrolled instead of looped over.
      chunk_steps: most steps of a dispatch.
      memory: predicted bytes on each device, without the training tokens.
      flops: training FLOPs of all runs as the program executes them.
      seconds: predicted time, compilation left out.
    """

    key: ProgramKey
    fingerprint: str
    runs: tuple[Run, ...]
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

    @property
    def execution(self) -> Execution:
        _, data, model = self.mesh
        return Execution(data, model, self.micro_batch, self.remat, self.logit_pieces)


@dataclass(frozen=True)
class Plan:
    """All packs, in the order in which they are begun.

    `teams` packs train at a time: on a CPU one a core, as a core trains one run faster than several
    packed; elsewhere one pack takes what devices it needs.
    """

    devices: Devices
    packs: tuple[Pack, ...]
    teams: int = 1

    @property
    def flops(self) -> float:
        return math.fsum(pack.flops for pack in self.packs)

    @property
    def seconds(self) -> float:
        """Predicted time: no less than an even share of all packs; a CPU's compilation counts."""
        compiling = CPU_COMPILE_SECONDS if self.devices.platform == "cpu" else 0.0
        return math.fsum(pack.seconds + compiling for pack in self.packs) / self.teams

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
    memory_share: float = MEMORY_SHARE,
) -> Plan:
    """Groups the runs into packs, the largest first.

    Args:
      runs: of one experiment; equal specs are trained once.
      devices: what to train on.
      n_slots: runs side by side in one program, instead of the planner's choice.
      mesh: sizes of the axes run, data, model, instead of the planner's choice.
      whole: every mesh takes all devices, as where several processes train together.
      memory_share: of the devices' memory that the prediction may fill.

    Raises:
      MeshError: when `mesh` asks for other devices than there are, or does not divide a batch.
    """
    unique = {run.spec.hash: run for run in runs}.values()
    teams = 1
    if devices.platform == "cpu" and n_slots is None and mesh is None and not whole:
        # Runs that are over at once are not worth starting a process a core for.
        total = math.fsum(flops.flops_without_start(run.spec) for run in unique)
        teams = devices.count if total > TEAM_SECONDS * devices.peak_flops else 1
        devices = replace(devices, count=1)
    layout = _Layout(n_slots, mesh, whole, memory_share)

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
        generation = max(len(ancestors(run, by_id)) for run in pack.runs)
        return generation, -pack.flops, repr(pack.key)

    return Plan(
        replace(devices, count=devices.count * teams), tuple(sorted(packs, key=order)), teams
    )


def leaner(
    pack: Pack,
    devices: Devices,
    memory: float,
    *,
    n_slots: int | None = None,
    mesh: tuple[int, int, int] | None = None,
) -> Pack | None:
    """What the planner makes of a pack's runs with less memory a device, or None if there is nothing.

    Args:
      pack: that did not fit.
      devices: that it was planned for.
      memory: bytes that the prediction may come to.
      n_slots, mesh: see `make_plan`.
    """
    share = memory / devices.memory
    (other,) = make_plan(pack.runs, devices, n_slots=n_slots, mesh=mesh, memory_share=share).packs
    return other if other.memory < pack.memory else None


def fits(pack: Pack, devices: Devices) -> bool:
    """Whether a pack is predicted to leave some of the memory free."""
    return pack.memory <= MEMORY_SHARE * devices.memory


def enough_devices(pack: Pack, devices: Devices, memory: float | None = None) -> int | None:
    """The fewest devices of this kind, in doublings, on which a pack is predicted to fit.

    Args:
      pack: that does not fit.
      devices: that it was planned for.
      memory: bytes that the prediction may come to, instead of a plan's share.
    """
    share = MEMORY_SHARE if memory is None else memory / devices.memory
    for doublings in range(1, 9):
        more = replace(devices, count=devices.count * 2**doublings)
        (other,) = make_plan(pack.runs, more, memory_share=share).packs
        if other.memory <= share * devices.memory:
            return more.count
    return None


def default_attention(platform: str, model: ModelSpec, compute_dtype: str) -> str:
    """The flash kernel of a GPU in bfloat16, of a TPU where it takes the context, else XLA's."""
    if platform == "gpu" and compute_dtype == "bfloat16":
        return "cudnn"
    if platform == "tpu" and splash_takes(model.n_ctx):
        return "splash"
    return "xla"


def device_memory(spec: RunSpec, platform: str, how: Execution) -> float:
    """Predicted bytes that one run takes on each of its devices.

    Its share of parameters, gradients and moments; what the forward pass keeps for the backward
    pass, or with `remat` the layers' inputs and what one of them needs while it is computed again;
    the logits, or what the backward pass adds once they are gone; and one matrix of the vocabulary and
    one layer, which are gathered where they are used.
    """
    sizes = _sizes(spec.model, spec.compute_dtype, platform)
    params, moments = _state(ProgramKey.of(spec), how.data, how.model)
    # With gradients, where pieces are added up those of a piece, and on a CPU a copy while the update
    # is formed.
    copies = 2 + (how.micro_batch < spec.batch_size) + (platform == "cpu")
    tokens = how.micro_batch // how.data * spec.model.n_ctx
    split = _vocabulary_split(spec.model, how)
    head = sizes.head / split / how.logit_pieces
    layer, backward = sizes.whole + sizes.split / how.model, sizes.backward / how.model
    if how.remat:
        kept = sizes.depth * sizes.input + max(layer + backward + sizes.ends, head)
    else:
        kept = sizes.depth * layer + max(sizes.depth * backward + sizes.ends, head)
    gathered = 0.0
    if how.data > 1:
        # With its gradient in float32; in pieces both are, each twice.
        vocabulary = 4 * 4 if how.logit_pieces > 1 else sizes.width + 4
        gathered = vocabulary * sizes.vocabulary / split + sizes.width * sizes.layer / how.model
    return moments + params * copies + tokens * kept + gathered


def _vocabulary_split(model: ModelSpec, how: Execution) -> int:
    """Devices that share the head: those of the model axis where it divides the vocabulary."""
    return how.model if model.vocab_size % how.model == 0 else 1


@dataclass(frozen=True)
class _Sizes:
    """Bytes that a model's activations take.

    Attributes:
      head: of a token's logits and their gradient.
      input: of a token where it enters a layer.
      whole, split: of what a layer keeps for a token, which a model axis does not divide, and which
        it does.
      backward: of what the backward pass adds to it, and a model axis divides.
      ends: of what lies around the layers during the backward pass.
      depth: layers.
      width: of a number that is computed with.
      vocabulary: numbers in the embedding.
      layer: numbers in the largest layer's kernels.
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
def _sizes(model: ModelSpec, compute_dtype: str, platform: str) -> _Sizes:
    width = 2 if compute_dtype == "bfloat16" else 4
    # Exponentials and the gradient. XLA for GPUs keeps less: it computes again what is quick to.
    gpu = platform == "gpu"
    head = (width if gpu else 4 + width) * model.vocab_size
    attention = default_attention(platform, model, compute_dtype)
    kept = model.activations(width, platform, attention)
    return _Sizes(
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
def _state(key: ProgramKey, data: int, model: int) -> tuple[float, float]:
    """Bytes of one run's parameters and of the optimizer's moments on each of its devices."""
    kept = optimizers.optimizer(key.optimizer)
    if data * model == 1 and kept.elementwise:
        params = 4 * flops.n_params(key.model, "exact")
        return params, kept.moments * params
    state = _abstract_state(key)
    mesh, rules = AbstractMesh((1, data, model), AXES), key.model.partition_rules()

    def part(tree: Any) -> float:
        found = 0.0
        for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
            split = itertools.chain.from_iterable(
                (axis,) if isinstance(axis, str) else axis or ()
                for axis in run_spec(path_name(path), x.shape, mesh, rules)
            )
            found += x.size * x.dtype.itemsize / math.prod(mesh.shape[axis] for axis in split)
        return found

    return part(state["params"]), part(state["opt"])


@functools.lru_cache(maxsize=256)
def _abstract_state(key: ProgramKey) -> Any:
    return jax.eval_shape(lambda seed: initial_state(key, seed), jax.ShapeDtypeStruct((), "int32"))


def executed_flops(spec: RunSpec, how: Execution) -> float:
    """FLOPs of a step of one run with what is computed twice to save memory."""
    again = 0.0
    if how.remat:
        operations = flops.operations(spec.model).items()
        again = sum(x.forward_flops for name, x in operations if name not in ("head", "loss"))
    return flops.step_flops(spec) + again * spec.batch_tokens


def step_seconds(spec: RunSpec, devices: Devices, how: Execution) -> float:
    """Predicted time of a step of one run on its devices: a roofline.

    Every piece of a batch reads the parameters and adds to the gradients, at least as long as the
    memory takes for that; every part of its logits adds to the head's gradient. Over `data` the
    parameters are gathered for the forward and the backward pass of every piece and their gradients
    reduced, while the devices compute. Over `model` every layer's partial sums are reduced twice in
    either pass (a Transformer's; an LSTM's hidden state at every time step), while the devices wait.
    """
    model, n_pieces = spec.model, spec.batch_size // how.micro_batch
    n_params = flops.n_params(model, "exact") / how.model
    width = 2 if spec.compute_dtype == "bfloat16" else 4
    compute = executed_flops(spec, how) / (how.data * how.model)
    compute /= devices.peak_flops * devices.utilisation
    if devices.bandwidth is not None:
        touched = n_params * (3 * width + 12 / how.data)
        compute = max(compute, n_pieces * touched / devices.bandwidth)
        if how.logit_pieces > 1:
            head = _sizes(model, spec.compute_dtype, devices.platform).vocabulary
            head /= _vocabulary_split(model, how)
            compute += 12 * n_pieces * how.logit_pieces * head / devices.bandwidth
    gather = reduce = 0.0
    if how.data > 1:
        link = devices.link if how.data * how.model <= devices.linked else devices.network
        size = width * n_params * (how.data - 1) / how.data
        gather = n_pieces * 3 * (size / link + model.depth * COLLECTIVE_SECONDS)
    if how.model > 1:
        link = devices.link if how.model <= devices.linked else devices.network
        size = spec.batch_tokens / how.data * width * model.width
        # An all-reduce is a reduce-scatter and a gather.
        size *= 2 * (how.model - 1) / how.model
        times = model.n_ctx if model.REDUCED_EVERY_TOKEN else 1
        reduce = (
            model.REDUCTIONS * model.depth * (size / link + n_pieces * times * COLLECTIVE_SECONDS)
        )
    return max(compute, gather) + reduce


@dataclass(frozen=True)
class _Layout:
    """What is asked of every pack's mesh; see `make_plan`."""

    n_slots: int | None
    mesh: tuple[int, int, int] | None
    whole: bool
    memory_share: float


def with_slots(pack: Pack, n_slots: int, devices: Devices) -> Pack:
    """The pack with so many runs side by side, and what follows from it."""
    spec, how = pack.runs[0].spec, pack.execution
    per_device = n_slots // pack.mesh[0]
    step = step_seconds(spec, devices, how) * per_device
    longest = max(run.spec.steps for run in pack.runs)
    chunk = 2 ** round(math.log2(max(1.0, DISPATCH_SECONDS / step)))
    return replace(
        pack,
        n_slots=n_slots,
        chunk_steps=max(1, min(256, longest, chunk)),
        memory=device_memory(spec, devices.platform, how) * per_device,
        seconds=pack.flops / flops.step_flops(spec) * step / n_slots,
    )


def most_slots(pack: Pack, devices: Devices) -> int:
    """The most runs side by side that are of use and are predicted to fit in memory."""
    run_axis = pack.mesh[0]
    one = device_memory(pack.runs[0].spec, devices.platform, pack.execution)
    by_memory = int(MEMORY_SHARE * devices.memory // one)
    return run_axis * max(1, min(by_memory, math.ceil(len(pack.runs) / run_axis)))


def _make_pack(runs: tuple[Run, ...], devices: Devices, layout: _Layout) -> Pack:
    spec = runs[0].spec
    capacity = layout.memory_share * devices.memory
    run_axis, data, model_axis = _mesh(spec, len(runs), layout, devices, capacity)
    per_device = 1 if layout.n_slots is None else layout.n_slots // run_axis
    how = _execution(spec, devices, data, model_axis, capacity / per_device)
    # A CPU's packs hold one run each and train side by side; an accelerator wants to be filled.
    if layout.n_slots is None and devices.platform != "cpu" and data == model_axis == 1:
        by_memory = int(capacity // device_memory(spec, devices.platform, how))
        by_work = FILLING_TOKENS // spec.batch_tokens
        per_device = max(1, min(by_memory, by_work, math.ceil(len(runs) / run_axis)))
    pack = Pack(
        key=ProgramKey.of(spec),
        fingerprint=spec.data.fingerprint,
        runs=runs,
        n_slots=1,
        mesh=(run_axis, data, model_axis),
        micro_batch=how.micro_batch,
        remat=how.remat,
        logit_pieces=how.logit_pieces,
        unroll=devices.platform == "cpu" and spec.model.depth <= CPU_UNROLLED_LAYERS,
        chunk_steps=1,
        memory=0.0,
        flops=math.fsum(flops.flops_without_start(run.spec) for run in runs),
        seconds=0.0,
    )
    return with_slots(pack, run_axis * per_device, devices)


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
    fixed = devices.platform == "cpu" and not layout.whole

    def splits(limit: int) -> range:
        return range(1, 2 if fixed else limit + 1)

    options = [
        (run_axis, data, model_axis)
        for run_axis in range(1, (count if layout.whole else min(n_runs, count)) + 1)
        for data in splits(count // run_axis)
        for model_axis in splits(min(count // (run_axis * data), devices.linked))
        if (n_slots is None or n_slots % run_axis == 0)
        and spec.batch_size % data == 0
        and (model_axis == 1 or spec.model.splits_over(model_axis))
        and (not layout.whole or run_axis * data * model_axis == count)
    ]
    if not options:
        raise MeshError(
            f"no mesh takes all {count} devices with --slots {n_slots} and batches of "
            f"{spec.batch_size}: choose other --slots"
        )

    @functools.cache
    def fastest(data: int, model_axis: int) -> tuple[Execution, float, float]:
        how = _execution(spec, devices, data, model_axis, capacity)
        memory = device_memory(spec, devices.platform, how)
        return how, memory, step_seconds(spec, devices, how)

    def seconds(option: tuple[int, int, int]) -> tuple:
        run_axis, data, model_axis = option
        return math.ceil(n_runs / run_axis) * fastest(data, model_axis)[2], -run_axis

    fitting = [o for o in options if fastest(*o[1:])[1] <= capacity]
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


def _execution(
    spec: RunSpec, devices: Devices, data: int, model_axis: int, capacity: float
) -> Execution:
    """The quickest execution on so many devices that fits the memory, or the leanest where none does.

    On a CPU the pieces of a batch are those whose activations stay in the cache.
    """
    pieces = [d for d in range(data, spec.batch_size + 1, data) if spec.batch_size % d == 0]
    if spec.noise_pieces:
        pieces = [spec.batch_size // spec.noise_pieces]
    elif devices.platform == "cpu":
        limit = CPU_PIECE_TOKENS if spec.model.CPU_MICRO_BATCHES else math.inf
        fitting = [d for d in pieces if d * spec.model.n_ctx <= limit * data]
        pieces = [max(fitting, default=pieces[0])]
    if devices.platform == "cpu":
        n_ctx = spec.model.n_ctx
        least = pieces[0] // data * n_ctx / CPU_PIECE_TOKENS
        split = next(p for p in range(1, n_ctx + 1) if n_ctx % p == 0 and p >= min(least, n_ctx))
        return Execution(data, model_axis, pieces[0], logit_pieces=split)
    split = next(p for p in (LOGIT_PIECES, 4, 2, 1) if spec.model.n_ctx % p == 0)
    again = (False, True) if spec.model.REMAT else (False,)
    forms = [(remat, logits) for remat in again for logits in (1, split)]
    quickest = []
    for remat, logits in forms:
        fitting = (
            how
            for piece in reversed(pieces)
            if device_memory(
                spec,
                devices.platform,
                how := Execution(data, model_axis, piece, remat, logits),
            )
            <= capacity
        )
        quickest += itertools.islice(fitting, 1)
    leanest = Execution(data, model_axis, pieces[0], *forms[-1])
    return min(quickest, key=lambda how: step_seconds(spec, devices, how), default=leanest)
