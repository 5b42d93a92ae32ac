"""The compiled program of a pack: the steps of its runs, placed on a mesh."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lmscale import optimizers
from lmscale.parallel.distributed import place
from lmscale.parallel.partition import run_shardings
from lmscale.spec import RunSpec
from lmscale.training.compiler import compiler_options
from lmscale.training.fused_loss import refuses
from lmscale.training.state import ProgramKey, State, packed_hyperparameters
from lmscale.training.step import PackStep, RunStep

#: Most windows, and most tokens, of an evaluation batch.
_EVAL_WINDOWS, _EVAL_TOKENS = 64, 16_384


class Program:
    """The compiled functions that train a pack of runs on a mesh. Compiled at first use.

    Attributes:
      key: what the runs have in common.
      n_slots: R, runs trained side by side.
      chunk_steps: most optimizer steps of a dispatch.
      eval_batch: windows of an evaluation batch.
      mesh: axes run, data, model.
      abstract_run: shapes and places of one run's state as it is saved.
      abstract_pack: shapes and places of the state of the pack.
    """

    def __init__(self, pack: PackStep, eval_batch: int):
        run = pack.run
        self.key, self.mesh = run.key, run.mesh
        self.n_slots, self.chunk_steps, self.eval_batch = pack.n_slots, pack.chunk_steps, eval_batch
        # From the shapes as they are saved, so that the initialisation isn't traced once more.
        self._one = jax.eval_shape(run.to_train_layout, run.checkpoint_state)
        self._packed = run_shardings(self._one, self.mesh, run.rules, packed=True)
        single = run_shardings(run.checkpoint_state, self.mesh, run.rules, packed=False)
        self.abstract_run = jax.tree.map(_placed, run.checkpoint_state, single)
        self.abstract_pack = jax.tree.map(
            lambda x, sharding: _placed(x, sharding, self.n_slots), self._one, self._packed
        )
        whole = self._sharding()
        # Every process reads the metrics. They are gathered by a program of their own, so that
        # training steps hold no collective.
        several = jax.process_count() > 1
        self._everywhere = jax.jit(lambda x: x, out_shardings=whole) if several else lambda x: x
        self._jit(pack, single)

    def _jit(self, pack: PackStep, single: Any) -> None:
        """Prepares the functions for compilation.

        Args:
          pack: the functions.
          single: shardings of one run's state.
        """
        packed, whole = self._packed, self._sharding()
        batches = self._sharding(None, "run", "data")
        fast, once = compiler_options(self.mesh.devices.flat[0].platform)

        def train(data_sharding):
            return jax.jit(
                pack.train,
                in_shardings=(packed, whole, data_sharding, whole, whole),
                out_shardings=(packed, self._sharding(None, "run")),
                donate_argnums=0,
                compiler_options=fast,
            )

        self._train_windows = train({"windows": batches})
        self._train_corpus = train({"corpus": whole, "indices": batches})
        self._by_batch = self._sharding(None, "data")
        self._evaluate = jax.jit(
            pack.evaluate,
            in_shardings=(packed, self._by_batch, self._by_batch),
            out_shardings=self._sharding("run"),
            compiler_options=fast,
        )
        jit_once = functools.partial(jax.jit, compiler_options=once)
        self._reset = jit_once(
            pack.reset,
            in_shardings=(packed, whole, whole),
            out_shardings=packed,
            donate_argnums=0,
        )
        self._take = jit_once(pack.take, in_shardings=(packed, whole), out_shardings=single)
        self._put = jit_once(
            pack.put,
            in_shardings=(packed, whole, single),
            out_shardings=packed,
            donate_argnums=0,
        )

    def _sharding(self, *axes: str | None) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    def _trainer(self, data: dict[str, Any]) -> Any:
        return self._train_windows if "windows" in data else self._train_corpus

    def empty(self) -> State:
        """A state of zeros."""

        # From the host, because a program that makes zeros is one more to compile.
        def zeros(x, sharding):
            shape = (self.n_slots, *x.shape)
            part = np.zeros(sharding.shard_shape(shape), x.dtype)
            return jax.make_array_from_callback(shape, sharding, lambda _: part)

        return jax.tree.map(zeros, self._one, self._packed)

    def reset(self, state: State, seeds: Any, mask: Any) -> State:
        """The state with some slots freshly initialised.

        Args:
          state: is donated.
          seeds: int32 [R].
          mask: bool [R], the slots to initialise.
        """
        return self._reset(state, seeds, mask)

    def train(
        self, state: State, hyper: dict[str, Any], data: dict[str, Any], n_steps: Any, active: Any
    ) -> tuple[State, dict[str, jax.Array]]:
        """Steps of every active slot.

        Args:
          state: is donated.
          hyper: see `packed_hyperparameters`.
          data: {"corpus" [T], "indices" [chunk_steps, R, batch]} or
            {"windows" [chunk_steps, R, batch, n_ctx + 1]}.
          n_steps: int32, at most `chunk_steps`.
          active: bool [R]; the other slots keep their state.

        Returns:
          The new state, and {name of `METRICS`: float32 [chunk_steps, R]}, of which the first `n_steps`
          rows are filled.
        """
        state, metrics = self._trainer(data)(state, hyper, data, n_steps, active)
        return state, self._everywhere(metrics)

    def lower_train(self, *arguments: Any, platform: str | None = None) -> jax.stages.Lowered:
        """The lowered program of `train`; see `train_arguments` and `device_bytes`.

        Args:
          arguments: of `train`, or their shapes.
          platform: what to lower for, instead of the mesh's own platform.
        """
        traced = self._trainer(arguments[2]).trace(*arguments)
        return traced.lower(lowering_platforms=None if platform is None else (platform,))

    def evaluate(self, state: State, windows: Any, weights: Any) -> tuple[jax.Array, jax.Array]:
        """Mean losses of every slot in nats.

        Args:
          state: of the pack.
          windows: int32 [n, eval_batch, n_ctx + 1].
          weights: float32 [n, eval_batch]; 0 marks padding.

        Returns:
          By position [R, n_ctx], and by window [R, n, eval_batch].
        """
        placed = (place(x, self._by_batch) for x in (windows, weights))
        return self._everywhere(self._evaluate(state, *placed))

    def take(self, state: State, slot: Any) -> State:
        """A slot's run, as it is saved: without a run axis."""
        return self._take(state, slot)

    def put(self, state: State, slot: Any, one: State) -> State:
        """The state, which is donated, with a saved run in a slot."""
        return self._put(state, slot, one)


def _placed(x: Any, sharding: Any, *axes: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((*axes, *x.shape), x.dtype, sharding=sharding)


def build_program(
    key: ProgramKey,
    *,
    n_slots: int,
    mesh: Mesh,
    chunk_steps: int,
    micro_batch: int | None = None,
    attention: str = "xla",
    logit_pieces: int = 1,
    remat: bool = False,
    unroll: bool = False,
    head: str = "xla",
) -> Program:
    """Builds the program for one kind of run.

    Args:
      key: what the runs have in common.
      n_slots: R, runs trained side by side; a multiple of the mesh's run axis.
      mesh: axes run, data, model.
      chunk_steps: most optimizer steps of a dispatch.
      micro_batch: sequences of a gradient accumulation step (the whole batch when None); must
        divide the batch size. It changes a result only by rounding. Where the noise scale is
        measured there are `key.noise_pieces` micro-batches instead.
      attention, remat, unroll: see `lmscale.architectures.ModelSpec.module`.
      logit_pieces: see `lmscale.training.loss.losses_in_pieces`; must divide the context.
      head: "xla" or "fused", see `RunStep`.

    Raises:
      ValueError: when `micro_batch` does not divide the batch size, or the fused head does not take the
        model or the mesh.
    """
    split = mesh.shape["data"] * mesh.shape["model"]
    if head == "fused" and (reason := refuses(key.model.head_width, key.compute_dtype, split)):
        raise ValueError(reason)
    micro_batch = key.batch_size if micro_batch is None else micro_batch
    if key.batch_size % micro_batch:
        raise ValueError(f"micro_batch {micro_batch} must divide batch_size {key.batch_size}")
    n_micro_batches = key.noise_pieces or key.batch_size // micro_batch
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    # An array that is split over devices cannot be part of one vector, and an optimizer that updates
    # matrices needs them.
    elementwise = optimizers.optimizer(key.optimizer).elementwise
    flat = on_cpu and elementwise and split == 1
    run = RunStep(
        key=key,
        mesh=mesh,
        n_micro_batches=n_micro_batches,
        attention=attention,
        logit_pieces=logit_pieces,
        remat=remat,
        unroll=unroll,
        flat=flat,
        head=head,
    )
    # At most a micro-batch of training, so that evaluation fits wherever training does.
    micro_batch = key.batch_size // n_micro_batches
    eval_batch = max(1, min(micro_batch, _EVAL_WINDOWS, _EVAL_TOKENS // key.model.n_ctx))
    eval_batch = -(-eval_batch // mesh.shape["data"]) * mesh.shape["data"]
    return Program(PackStep(run, n_slots, chunk_steps), eval_batch)


def train_arguments(program: Program, spec: RunSpec, corpus: jax.ShapeDtypeStruct | None) -> tuple:
    """The shapes of the arguments of `Program.train`.

    Args:
      program: of the run's key.
      spec: any of its runs.
      corpus: the training tokens where they lie on the devices, else None.
    """
    n_slots = program.n_slots
    hyper = packed_hyperparameters([spec] * n_slots)
    shape = (program.chunk_steps, n_slots, spec.batch_size)
    if corpus is None:
        windows = (*shape, spec.model.n_ctx + 1)
        data = {"windows": jax.ShapeDtypeStruct(windows, jnp.int32)}
    else:
        data = {"corpus": corpus, "indices": jax.ShapeDtypeStruct(shape, jnp.int32)}
    return (
        program.abstract_pack,
        {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in hyper.items()},
        data,
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((n_slots,), bool),
    )


def device_bytes(compiled: jax.stages.Compiled) -> float:
    """Bytes of a program on each device with its arguments, as the compiler lays them out.

    Raises:
      ValueError: where the backend does not say.
    """
    sizes = compiled.memory_analysis()
    if sizes is None:
        raise ValueError("this backend does not say how much memory a program takes")
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes
    )
