"""The paths that are timed: train step, evaluation, data loading, checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from lmscale import flops
from lmscale.bench.peak import matmul_peak
from lmscale.bench.timing import Timing, interleave
from lmscale.data.loader import batch_indices, gather, sequence_order
from lmscale.parallel.processes import process_context
from lmscale.planner.devices import Devices
from lmscale.planner.packs import Pack, make_plan
from lmscale.planner.programs import mesh_of, program_of
from lmscale.spec import ComputeDtype, DataSpec, OptimizerSpec, RunSpec, ScheduleSpec
from lmscale.sweep.experiment import Run
from lmscale.sweep.workers import become_worker, settings
from lmscale.training.checkpoint import Checkpoints
from lmscale.training.program import Program, device_bytes
from lmscale.training.state import packed_hyperparameters

#: What can be timed.
PATHS = ("train", "evaluate", "data", "checkpoint")
#: Tokens of the corpus that the programs read from: more than fits a cache.
CORPUS_TOKENS = 2**24
#: Of a `Row` whose path knows no packs.
_ONE_RUN = {"pack": 1, "workers": 1, "planned": False, "memory": {}}


@dataclass(frozen=True)
class Row:
    """One measurement.

    Attributes:
      path: of `PATHS`.
      framework: "lmscale", or "torch" in one of its forms.
      model: the spec's label.
      params: of one run, by convention.
      pack: runs trained at once, all together.
      workers: programs that hold them, each on a core of its own.
      planned: whether the planner chose both.
      n_tokens: that one call handles, all runs together.
      n_flops: that one call needs by the exact convention; None where the path has none.
      seconds: of one call.
      peak: measured matrix FLOP/s of the devices in use.
      memory: bytes of a device, {"plan", "compiled"} where they are known.
    """

    path: str
    framework: str
    model: str
    params: dict[str, int]
    pack: int
    workers: int
    planned: bool
    n_tokens: int
    n_flops: float | None
    seconds: Timing
    peak: float
    memory: dict[str, float]

    @property
    def tokens_per_second(self) -> float:
        return self.n_tokens / self.seconds.median

    @property
    def flops_per_second(self) -> float | None:
        return None if self.n_flops is None else self.n_flops / self.seconds.median

    @property
    def fraction_of_peak(self) -> float | None:
        return None if self.n_flops is None else self.n_flops / self.seconds.median / self.peak


@dataclass
class _Case:
    """What is timed, and the part of its `Row` that is known beforehand."""

    call: Callable[[], None]
    known: dict[str, Any]


def bench_spec(
    model: Any, *, batch_size: int, compute_dtype: ComputeDtype, steps: int = 10**6
) -> RunSpec:
    """A run of the model on no corpus in particular."""
    return RunSpec(
        model=model,
        data=DataSpec(corpus="bench", fingerprint="0"),
        batch_size=batch_size,
        steps=steps,
        seed=0,
        optimizer=OptimizerSpec(peak_lr=1e-3),
        schedule=ScheduleSpec(name="cosine", warmup_steps=10, final_fraction=0.1),
        compute_dtype=compute_dtype,
    )


def measure(
    specs: Sequence[RunSpec],
    devices: Devices,
    *,
    packs: Sequence[int | Literal["plan"]] = ("plan",),
    paths: Sequence[str] = ("train",),
    against: Sequence[str] = (),
    repeat: int = 5,
    attention: str | None = None,
    tick: Callable[[str], None] = lambda name: None,
) -> list[Row]:
    """Times paths of models, interleaved, each model's cases among themselves.

    Args:
      specs: see `bench_spec`.
      devices: those of this process.
      packs: numbers of runs side by side; "plan" is what the planner takes for 16 equal runs.
      paths: of `PATHS`.
      against: forms of torch to time beside ours: "torch", "torch.compile".
      attention: see `lmscale.architectures.ModelSpec.module`; by platform when None.
      tick: told what goes on.
    """
    tick("matmul peak")
    peaks = {dtype: matmul_peak(dtype) for dtype in {spec.compute_dtype for spec in specs}}
    rows = []
    for spec in specs:
        cases: dict[str, _Case] = {}
        with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as sides:
            for runs in packs:
                side = _Ours(spec, devices, runs, attention)
                sides.callback(side.close)
                for path in paths:
                    cases[f"{path} lmscale {runs}"] = side.case(path, Path(scratch))
            for form in against:
                cases[f"train {form}"] = _torch_case(spec, form)
            timings = interleave(
                {name: case.call for name, case in cases.items()},
                repeat=repeat,
                tick=functools.partial(_tick_of, tick, spec.model.label),
            )
        params = {c: flops.n_params(spec.model, c) for c in flops.CONVENTIONS}
        rows += [
            Row(
                model=spec.model.label,
                params=params,
                seconds=timings[name],
                peak=peaks[spec.compute_dtype] * devices.count,
                **case.known,
            )
            for name, case in cases.items()
        ]
    return rows


def _tick_of(tick: Callable[[str], None], model: str, name: str) -> None:
    tick(f"{model}: {name}")


class _Ours:
    """Our programs for one model and pack size: one a worker."""

    def __init__(
        self, spec: RunSpec, devices: Devices, runs: int | Literal["plan"], attention: str | None
    ):
        n_runs = 16 if runs == "plan" else runs
        seeds = [Run(dataclasses.replace(spec, seed=seed), {}) for seed in range(n_runs)]
        plan = make_plan(seeds, devices, n_slots=None if runs == "plan" else runs)
        self.spec, self.pack = spec, plan.packs[0]
        self.workers, self._planned = plan.workers, runs == "plan"
        self.n_runs = self.pack.n_slots * self.workers
        self._devices, self._attention = devices, attention
        self._processes: list[ProcessPoolExecutor] = []

    @functools.cached_property
    def program(self) -> Program:
        """Of this process; workers build their own."""
        mesh = mesh_of(self.pack, jax.devices())
        platform, kind = self._devices.platform, self._devices.kind
        return program_of(self.pack, mesh, platform, self._attention, kind)

    def close(self) -> None:
        for process in self._processes:
            process.shutdown()

    def case(self, path: str, scratch: Path) -> _Case:
        known = {
            "path": path,
            "framework": "lmscale",
            "pack": self.n_runs,
            "workers": self.workers,
            "planned": self._planned,
        }
        return {
            "train": self._train,
            "evaluate": self._evaluate,
            "data": self._data,
            "checkpoint": lambda known: self._checkpoint(known, scratch),
        }[path](known)

    def _train(self, known: dict[str, Any]) -> _Case:
        steps = self.pack.chunk_steps
        call: Callable[[], None]
        if self.workers == 1:
            call = loop = _TrainLoop(self.program, self.spec, steps)
            compiled = loop.memory
        else:
            # As a sweep's workers train.
            arguments = (settings(), self.pack, self.spec, steps, self._attention)
            self._processes = [
                ProcessPoolExecutor(1, process_context(), _begin_worker, arguments)
                for _ in range(self.workers)
            ]
            compiled = self._processes[0].submit(_worker_memory).result()

            call = self._train_in_workers

        memory = {"plan": self.pack.memory, "compiled": compiled}
        n = self.n_runs * steps
        return _Case(
            call,
            known
            | {
                "n_tokens": n * self.spec.batch_tokens,
                "n_flops": n * flops.step_flops(self.spec),
                "memory": memory,
            },
        )

    def _train_in_workers(self) -> None:
        for future in [process.submit(_train_in_worker) for process in self._processes]:
            future.result()

    def _evaluate(self, known: dict[str, Any]) -> _Case:
        program = self.program
        state = _fresh(program, self.spec)
        shape = (4, program.eval_batch)
        windows = _tokens(self.spec)[: np.prod(shape) * (self.spec.model.n_ctx + 1)]
        windows = windows.astype(np.int32).reshape(*shape, -1)
        weights = np.ones(shape, np.float32)

        def call() -> None:
            jax.block_until_ready(program.evaluate(state, windows, weights))

        n_tokens = program.n_slots * shape[0] * shape[1] * self.spec.model.n_ctx
        forward = flops.training_flops_per_token(self.spec.model, "exact") / 3
        known |= {"pack": program.n_slots, "workers": 1, "memory": {}}
        return _Case(call, known | {"n_tokens": n_tokens, "n_flops": n_tokens * forward})

    def _data(self, known: dict[str, Any]) -> _Case:
        """Batches on the host: order, then windows, as where the corpus does not fit the device."""
        tokens, n_ctx = _tokens(self.spec), self.spec.model.n_ctx
        order = sequence_order(len(tokens) // n_ctx - 1, self.spec.batch_size, 0, None)
        step = iter(range(0, 10**9, 16))

        def call() -> None:
            gather(tokens, batch_indices(order, next(step), 16)[:, None], n_ctx)

        known |= _ONE_RUN
        return _Case(call, known | {"n_tokens": 16 * self.spec.batch_tokens, "n_flops": None})

    def _checkpoint(self, known: dict[str, Any], scratch: Path) -> _Case:
        """One run's state, from the device to a file, waited for."""
        program = self.program
        state = _fresh(program, self.spec)
        folders = iter(range(10**9))

        def call() -> None:
            folder = scratch / f"checkpoint-{next(folders)}"
            checkpoints = Checkpoints(folder, self.spec.run_id)
            checkpoints.save(1, program.take(state, np.int32(0)), {"window": []})
            checkpoints.wait()
            checkpoints.close()
            shutil.rmtree(folder)

        known |= _ONE_RUN
        return _Case(call, known | {"n_tokens": 0, "n_flops": None})


class _TrainLoop:
    """Dispatches of one program, each waited for."""

    def __init__(self, program: Program, spec: RunSpec, n_steps: int):
        n_ctx = spec.model.n_ctx
        corpus = jax.device_put(
            _tokens(spec), jax.sharding.NamedSharding(program.mesh, jax.sharding.PartitionSpec())
        )
        starts = np.random.default_rng(0).integers(
            0, CORPUS_TOKENS - n_ctx - 1, (program.chunk_steps, program.n_slots, spec.batch_size)
        )
        self._state = _fresh(program, spec)
        self._rest = (
            packed_hyperparameters([spec] * program.n_slots),
            {"corpus": corpus, "indices": starts.astype(np.int32)},
            np.int32(n_steps),
            np.ones(program.n_slots, bool),
        )
        self._program = program
        # The corpus is not the step's.
        compiled = program.lower_train(self._state, *self._rest).compile()
        self.memory = device_bytes(compiled) - corpus.nbytes

    def __call__(self) -> None:
        self._state, metrics = self._program.train(self._state, *self._rest)
        jax.block_until_ready(metrics)


#: Of a worker's process.
_loop: _TrainLoop


def _begin_worker(
    values: dict[str, Any], pack: Pack, spec: RunSpec, steps: int, attention: str | None
) -> None:
    global _loop
    become_worker(values)
    program = program_of(pack, mesh_of(pack, jax.devices()), "cpu", attention)
    _loop = _TrainLoop(program, spec, steps)


def _train_in_worker() -> None:
    _loop()


def _worker_memory() -> float:
    return _loop.memory


def _torch_case(spec: RunSpec, form: str) -> _Case:
    import torch

    from lmscale.bench.torch_models import Trainer

    device = "cuda" if jax.devices()[0].platform == "gpu" else "cpu"
    trainer = Trainer(
        spec.model,
        spec.optimizer,
        compiled=form == "torch.compile",
        device=device,
        bfloat16=spec.compute_dtype == "bfloat16",
    )
    windows = torch.randint(
        spec.model.vocab_size, (spec.batch_size, spec.model.n_ctx + 1), device=device
    )

    def call() -> None:
        loss = trainer.step(windows)
        if device == "cuda":
            torch.cuda.synchronize()
        else:
            loss.item()

    return _Case(
        call,
        {
            "path": "train",
            "framework": form,
            "n_tokens": spec.batch_tokens,
            "n_flops": flops.step_flops(spec),
            **_ONE_RUN,
        },
    )


def _fresh(program: Program, spec: RunSpec) -> Any:
    seeds = np.arange(program.n_slots, dtype=np.int32) + spec.seed
    return program.reset(program.empty(), seeds, np.ones(program.n_slots, bool))


def _tokens(spec: RunSpec) -> np.ndarray:
    """A corpus of random tokens: speed does not depend on what they say."""
    dtype = np.uint16 if spec.model.vocab_size <= 2**16 else np.uint32
    return np.random.default_rng(0).integers(0, spec.model.vocab_size, CORPUS_TOKENS, dtype)
