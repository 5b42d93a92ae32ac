"""The packed train step: written for one run, lifted over the run axis, several steps a dispatch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from lmscale import optimizers
from lmscale.data.loader import gather_on_device
from lmscale.parallel.distributed import place
from lmscale.parallel.partition import head_params, on_mesh, run_shardings
from lmscale.spec import ModelSpec, RunSpec
from lmscale.training import form
from lmscale.training.compiler import cpu_options, quick_options
from lmscale.training.loss import losses_in_pieces, mean_loss_in_pieces
from lmscale.training.optimizer import (
    make_optimizer,
    optimizer_hyperparameters,
    placeholder_hyperparameters,
)
from lmscale.training.schedule import learning_rate, schedule_hyperparameters

#: A pytree of one run's {"params", "opt", "step"}; a pack's has a leading run axis everywhere.
State = Any
#: What a step measures, in this order; the last only with `RunSpec.noise_pieces`.
METRICS = ("loss", "grad_norm", "lr", "piece_grad_squared")


@dataclass(frozen=True)
class ProgramKey:
    """What must agree for runs to train in one program; all else about a run is a traced number."""

    model: ModelSpec
    optimizer: str
    compute_dtype: str
    batch_size: int
    noise_pieces: int | None = None

    @classmethod
    def of(cls, spec: RunSpec) -> ProgramKey:
        return cls(
            spec.model,
            spec.optimizer.name,
            spec.compute_dtype,
            spec.batch_size,
            spec.noise_pieces,
        )


def hyperparameters(spec: RunSpec) -> dict[str, float | int]:
    """Everything numeric that may differ between the runs of a pack."""
    return {
        "seed": spec.seed,
        **schedule_hyperparameters(spec),
        **optimizer_hyperparameters(spec),
    }


def packed_hyperparameters(specs: Sequence[RunSpec]) -> dict[str, np.ndarray]:
    """Those of the runs of a pack, [R] each."""
    rows = [hyperparameters(spec) for spec in specs]
    return {
        name: np.array(
            [row[name] for row in rows], np.int32 if isinstance(rows[0][name], int) else np.float32
        )
        for name in rows[0]
    }


def initial_state(key: ProgramKey, seed: jax.Array) -> State:
    """One run's state before its first step."""
    model = key.model.module(nnx.Rngs(params=jax.random.key(seed)), dtype=key.compute_dtype)
    params = nnx.to_pure_dict(nnx.split(model)[1])
    return {"params": params, "opt": initial_moments(key, params), "step": jnp.int32(0)}


def initial_moments(key: ProgramKey, params: Any, *, flat: bool = False) -> Any:
    """The optimizer's state before the first step, which does not depend on its hyperparameters."""
    hyper = placeholder_hyperparameters(key.optimizer)
    return make_optimizer(key.optimizer, type(key.model), jnp.float32(0), hyper, flat=flat).init(
        params
    )


def single_device_like(spec: RunSpec) -> State:
    """The shapes of a run's state, placed whole on the first device: what a restore is given."""
    device = SingleDeviceSharding(jax.devices()[0])
    abstract = jax.eval_shape(
        lambda seed: initial_state(ProgramKey.of(spec), seed), jax.ShapeDtypeStruct((), jnp.int32)
    )
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), abstract)


@jax.jit
def _finite(tree: Any) -> jax.Array:
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree)]))


def all_finite(tree: Any) -> bool:
    """Whether no array holds NaN or infinity."""
    return bool(_finite(tree))


@dataclass(frozen=True)
class Program:
    """The compiled functions that train a pack of `n_slots` runs on a mesh.

    reset(state, seeds [R], mask [R]) -> state with the masked slots freshly initialised
    train(state, hyper, data, n_steps, active [R]) -> state, {name of METRICS: [chunk_steps, R]}, of
      which the first n_steps rows are filled. `data` is {"corpus" [T],
      "indices" [chunk_steps, R, B]} or {"windows" [chunk_steps, R, B, n_ctx + 1]}. Slots that are
      not active keep their state.
    lower_train(the arguments of train or their shapes, platform) -> the lowered program, for that
      platform instead of the mesh's own when it is given; see `train_arguments`, `device_bytes`
    evaluate(state, windows [n, eval_batch, n_ctx + 1], weights [n, eval_batch]) -> mean losses in
      nats by position [R, n_ctx] and by window [R, n, eval_batch]; a weight of 0 marks padding
    take(state, slot) -> one run's state;  put(state, slot, one) -> state
    abstract_run, abstract_pack: shapes and places of one run's state, and of `state`
    """

    key: ProgramKey
    n_slots: int
    chunk_steps: int
    eval_batch: int
    mesh: Mesh
    abstract_run: State
    abstract_pack: State
    reset: Callable
    train: Callable
    lower_train: Callable
    evaluate: Callable
    take: Callable
    put: Callable
    empty: Callable[[], State]


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
) -> Program:
    """Builds (and compiles at first use) the program for one kind of run.

    Args:
      key: what the runs have in common.
      n_slots: R, runs trained side by side; a multiple of the mesh's run axis.
      mesh: axes run, data, model.
      chunk_steps: most optimizer steps a dispatch.
      micro_batch: sequences per gradient accumulation step (all of the batch when None); must
        divide the batch size. It changes a result only by rounding. Where the noise scale is
        measured the pieces are `key.noise_pieces`.
      attention, remat, unroll: see `lmscale.architectures.ModelSpec.module`.
      logit_pieces: see `lmscale.training.loss.losses_in_pieces`; must divide the context.
    """
    micro_batch = key.batch_size if micro_batch is None else micro_batch
    if key.batch_size % micro_batch:
        raise ValueError(f"micro_batch {micro_batch} must divide batch_size {key.batch_size}")
    n_accumulate = key.noise_pieces or key.batch_size // micro_batch
    micro_batch = key.batch_size // n_accumulate

    rules = key.model.partition_rules()

    @functools.cache
    def graph_of(unroll: bool) -> nnx.GraphDef:
        def build():
            return key.model.module(
                nnx.Rngs(params=0),
                dtype=key.compute_dtype,
                unroll=unroll,
                attention=attention,
                remat=remat,
            )

        return nnx.split(nnx.eval_shape(build))[0]

    def over_runs(function: Callable) -> Callable:
        """Lifts a function of one run to all slots."""
        if n_slots > 1:
            return jax.vmap(function, spmd_axis_name="run")

        # A run axis of one costs a CPU dear: its reductions miss the kernels for few axes.
        def alone(*args):
            result = function(*jax.tree.map(lambda x: x[0], args))
            return jax.tree.map(lambda x: x[None], result)

        return alone

    # What unrolled layers save is in the backward pass, and a loop compiles twice as quickly.
    training, evaluating = graph_of(unroll), graph_of(False)
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    # What is split over devices cannot be one vector, nor what an optimizer updates as a matrix.
    elementwise = optimizers.optimizer(key.optimizer).elementwise
    flat = on_cpu and elementwise and mesh.shape["data"] * mesh.shape["model"] == 1

    def trained(state: State) -> State:
        if not flat:
            return state
        moments = functools.partial(initial_moments, key, flat=True)
        return form.trained(state, moments, key.model.STACKS if unroll else ())

    def init(seed: jax.Array) -> State:
        return trained(initial_state(key, seed))

    def loss_of(function: Callable, graphdef, params, windows, dropout_key=None) -> jax.Array:
        """`losses_in_pieces` or `mean_loss_in_pieces` of the model's predictions."""
        with on_mesh(mesh, rules):
            # XLA sees that what is stacked here is taken apart again by an unrolled model.
            params = form.stacked(params)
            hidden = nnx.merge(graphdef, params).hidden(windows[:, :-1], dropout_key=dropout_key)
            # Gathered once, not for every piece.
            head = head_params(params, whole=logit_pieces > 1)
            shapes = jax.eval_shape(lambda: params)

            def logits(head, hidden):
                # Of the other parameters the head needs nothing.
                return nnx.merge(graphdef, {**shapes, **head}).logits(hidden)

            return function(logits, head, hidden, windows[:, 1:], logit_pieces)

    def mean_loss(params, windows: jax.Array, dropout_key) -> jax.Array:
        loss = loss_of(mean_loss_in_pieces, training, params, windows, dropout_key)
        # Of the whole batch: nothing is left to divide when all pieces are added.
        return loss / n_accumulate

    def gradient(params, windows: jax.Array, dropout_key):
        """Mean loss, its gradient, and the mean of the pieces' squared gradient norms."""
        if n_accumulate == 1:
            return *jax.value_and_grad(mean_loss)(params, windows, dropout_key), None
        # Strided pieces, so that a batch that is split over devices stays where it is.
        pieces = windows.reshape(micro_batch, n_accumulate, -1).swapaxes(0, 1)

        def piece(total, xs):
            windows, index = xs
            piece_key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            loss_and_grads = jax.value_and_grad(mean_loss)(params, windows, piece_key)
            squared = optax.tree.norm(loss_and_grads[1], squared=True) if key.noise_pieces else None
            return jax.tree.map(jnp.add, total, loss_and_grads), squared

        zero = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
        (loss, grads), squared = jax.lax.scan(piece, zero, (pieces, jnp.arange(n_accumulate)))
        # Of pieces' own means, not of their shares of the batch's.
        return loss, grads, squared.mean() * n_accumulate**2 if key.noise_pieces else None

    def train_one(state: State, hyper, windows: jax.Array, active: jax.Array):
        dropout_key = None
        if key.model.dropout > 0:
            # Another stream than the one that initialises the parameters.
            stream = jax.random.fold_in(jax.random.key(hyper["seed"]), 1)
            dropout_key = jax.random.fold_in(stream, state["step"])
        loss, grads, piece_squared = gradient(state["params"], windows, dropout_key)
        lr = learning_rate(state["step"], hyper)
        optimizer = make_optimizer(key.optimizer, type(key.model), lr, hyper, flat=flat)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        new = {
            "params": optax.apply_updates(state["params"], updates),
            "opt": opt,
            "step": state["step"] + 1,
        }
        new = jax.tree.map(lambda a, b: jnp.where(active, a, b), new, state)
        measured = (loss, optax.tree.norm(grads), lr, piece_squared)
        return new, dict(zip(metrics, measured, strict=False))

    metrics = METRICS if key.noise_pieces else METRICS[:-1]
    packed_step = over_runs(train_one)

    def train(state: State, hyper, data, n_steps: jax.Array, active: jax.Array):
        buffers = {name: jnp.zeros((chunk_steps, n_slots), jnp.float32) for name in metrics}

        def body(i, carry):
            state, buffers = carry
            if "windows" in data:
                windows = data["windows"][i]
            else:
                windows = gather_on_device(data["corpus"], data["indices"][i], key.model.n_ctx)
            state, measured = packed_step(state, hyper, windows, active)
            return state, {name: buffers[name].at[i].set(measured[name]) for name in buffers}

        return jax.lax.fori_loop(0, n_steps, body, (state, buffers))

    # No more than a piece of training, so that what fits there fits here.
    eval_batch = max(1, min(micro_batch, 64, 16_384 // key.model.n_ctx))
    eval_batch = -(-eval_batch // mesh.shape["data"]) * mesh.shape["data"]

    def evaluate(
        state: State, windows: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        def one(params):
            def piece(total, xs):
                windows, weights = xs
                losses = loss_of(losses_in_pieces, evaluating, params, windows)
                return total + jnp.einsum("bt,b->t", losses, weights), losses.mean(axis=1)

            zero = jnp.zeros(key.model.n_ctx)
            total, by_window = jax.lax.scan(piece, zero, (windows, weights))
            return total / weights.sum(), by_window

        return over_runs(one)(state["params"])

    def reset(state: State, seeds: jax.Array, mask: jax.Array) -> State:
        fresh = over_runs(init)(seeds)

        def choose(new, old):
            return jnp.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return jax.tree.map(choose, fresh, state)

    def put(state: State, slot: jax.Array, one: State) -> State:
        return jax.tree.map(lambda x, y: x.at[slot].set(y), state, trained(one))

    def take(state: State, slot: jax.Array) -> State:
        one = jax.tree.map(lambda x: x[slot], state)
        return form.saved(one, saved["opt"]) if flat else one

    seed = jax.ShapeDtypeStruct((), jnp.int32)
    abstract = jax.eval_shape(init, seed)
    saved = jax.eval_shape(lambda seed: initial_state(key, seed), seed)
    packed = run_shardings(abstract, mesh, rules, packed=True)
    single = run_shardings(saved, mesh, rules, packed=False)
    whole, by_run = NamedSharding(mesh, P()), NamedSharding(mesh, P("run"))
    by_step = NamedSharding(mesh, P(None, "run"))
    by_batch = NamedSharding(mesh, P(None, "data"))
    batches = NamedSharding(mesh, P(None, "run", "data"))

    def empty() -> State:
        # From the host, because a program that makes zeros is one more to compile.
        def zeros(x, sharding):
            shape = (n_slots, *x.shape)
            part = np.zeros(sharding.shard_shape(shape), x.dtype)
            return jax.make_array_from_callback(shape, sharding, lambda _: part)

        return jax.tree.map(zeros, abstract, packed)

    # Of programs that run for long, and of those that run once a run.
    fast, once = (cpu_options(), quick_options()) if on_cpu else (None, None)

    def train_jit(data_sharding):
        return jax.jit(
            train,
            in_shardings=(packed, whole, data_sharding, whole, whole),
            out_shardings=(packed, by_step),
            donate_argnums=0,
            compiler_options=fast,
        )

    trainers = {
        "windows": train_jit({"windows": batches}),
        "corpus": train_jit({"corpus": whole, "indices": batches}),
    }

    # What every process reads: a program of its own, so that training steps hold no collective.
    several = jax.process_count() > 1
    everywhere = jax.jit(lambda x: x, out_shardings=whole) if several else lambda x: x

    def trainer(data):
        return trainers["windows" if "windows" in data else "corpus"]

    def dispatch(state, hyper, data, n_steps, active):
        state, metrics = trainer(data)(state, hyper, data, n_steps, active)
        return state, everywhere(metrics)

    def lower_train(*arguments, platform: str | None = None) -> jax.stages.Lowered:
        traced = trainer(arguments[2]).trace(*arguments)
        return traced.lower(lowering_platforms=None if platform is None else (platform,))

    evaluate_jit = jax.jit(
        evaluate,
        in_shardings=(packed, by_batch, by_batch),
        out_shardings=by_run,
        compiler_options=fast,
    )

    def evaluate_placed(state, windows, weights):
        placed = (place(x, by_batch) for x in (windows, weights))
        return everywhere(evaluate_jit(state, *placed))

    def placed(x, sharding, *axes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((*axes, *x.shape), x.dtype, sharding=sharding)

    return Program(
        key=key,
        n_slots=n_slots,
        chunk_steps=chunk_steps,
        eval_batch=eval_batch,
        mesh=mesh,
        abstract_run=jax.tree.map(placed, saved, single),
        abstract_pack=jax.tree.map(lambda x, s: placed(x, s, n_slots), abstract, packed),
        reset=jax.jit(
            reset,
            in_shardings=(packed, whole, whole),
            out_shardings=packed,
            donate_argnums=0,
            compiler_options=once,
        ),
        train=dispatch,
        lower_train=lower_train,
        evaluate=evaluate_placed,
        take=jax.jit(
            take, in_shardings=(packed, whole), out_shardings=single, compiler_options=once
        ),
        put=jax.jit(
            put,
            in_shardings=(packed, whole, single),
            out_shardings=packed,
            donate_argnums=0,
            compiler_options=once,
        ),
        empty=empty,
    )


def train_arguments(program: Program, spec: RunSpec, corpus: jax.ShapeDtypeStruct | None) -> tuple:
    """The shapes of what `Program.train` is called with.

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
    """What a program takes on each device, arguments included, as the compiler lays it out."""
    sizes = compiled.memory_analysis()
    return (
        sizes.argument_size_in_bytes
        + sizes.output_size_in_bytes
        + sizes.temp_size_in_bytes
        - sizes.alias_size_in_bytes
    )
