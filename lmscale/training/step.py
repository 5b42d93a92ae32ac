"""The training step, written for one run (`RunStep`) and lifted over the runs of a pack (`PackStep`).

Everything here is traced: pure functions of arrays. `lmscale.training.program` compiles them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from lmscale.data.loader import gather_on_device
from lmscale.parallel.partition import Rules, head_params, on_mesh
from lmscale.training import layout
from lmscale.training.fused_loss import fused_mean_loss
from lmscale.training.loss import losses_in_pieces, mean_loss_in_pieces
from lmscale.training.optimizer import make_optimizer
from lmscale.training.schedule import learning_rate
from lmscale.training.state import ProgramKey, State, initial_moments, initial_state

#: What a step measures, in this order; the last only with `RunSpec.noise_pieces`.
METRICS = ("loss", "grad_norm", "lr", "piece_grad_squared")


@dataclass(frozen=True)
class RunStep:
    """Initialisation, training step and evaluation of one run: no array has a run axis.

    Attributes:
      key: what the runs of the program have in common.
      mesh: axes run, data, model.
      n_micro_batches: parts of a batch whose gradients are added up.
      attention, remat, unroll: see `lmscale.architectures.ModelSpec.module`.
      logit_pieces: see `lmscale.training.loss.losses_in_pieces`.
      head: "xla", or "fused" to train without logits in memory, see `lmscale.training.fused_loss`.
      flat: whether the state has the layout of `lmscale.training.layout` while it is trained.
    """

    key: ProgramKey
    mesh: Mesh
    n_micro_batches: int
    attention: str
    logit_pieces: int
    remat: bool
    unroll: bool
    flat: bool
    head: str = "xla"

    @functools.cached_property
    def rules(self) -> Rules:
        return self.key.model.partition_rules()

    @functools.cached_property
    def metrics(self) -> tuple[str, ...]:
        """The names of what a step measures."""
        return METRICS if self.key.noise_pieces else METRICS[:-1]

    @functools.cached_property
    def checkpoint_state(self) -> State:
        """Shapes of the state as it is saved."""
        seed = jax.ShapeDtypeStruct((), jnp.int32)
        return jax.eval_shape(lambda seed: initial_state(self.key, seed), seed)

    # --- State ------------------------------------------------------------------------------

    def init(self, seed: jax.Array) -> State:
        """The state before the first step."""
        return self.to_train_layout(initial_state(self.key, seed))

    def to_train_layout(self, state: State) -> State:
        """A saved state in the layout in which it is trained."""
        if not self.flat:
            return state
        moments = functools.partial(initial_moments, self.key, flat=True)
        stacks = self.key.model.STACKS if self.unroll else ()
        return layout.to_train_layout(state, moments, stacks)

    def to_checkpoint_layout(self, state: State) -> State:
        """The inverse of `to_train_layout`."""
        if not self.flat:
            return state
        return layout.to_checkpoint_layout(state, self.checkpoint_state["opt"])

    # --- Training ---------------------------------------------------------------------------

    def train(
        self, state: State, hyper: Any, windows: jax.Array, active: jax.Array
    ) -> tuple[State, dict[str, jax.Array]]:
        """One optimizer update.

        Args:
          state: of the run.
          hyper: see `lmscale.training.state.hyperparameters`.
          windows: int32 [batch, n_ctx + 1].
          active: scalar; where it is False the state stays as it is.

        Returns:
          The new state, and a scalar for each of `metrics`.
        """
        loss, grads, squared = self._gradient(state["params"], windows, self._dropout(state, hyper))
        lr = learning_rate(state["step"], hyper)
        key = self.key
        optimizer = make_optimizer(key.optimizer, type(key.model), lr, hyper, flat=self.flat)
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        new = {
            "params": optax.apply_updates(state["params"], updates),
            "opt": opt,
            "step": state["step"] + 1,
        }
        new = jax.tree.map(lambda a, b: jnp.where(active, a, b), new, state)
        measured = (loss, optax.tree.norm(grads), lr, squared)
        return new, dict(zip(self.metrics, measured, strict=False))

    def _dropout(self, state: State, hyper: Any) -> jax.Array | None:
        """The random key of a step's dropout."""
        if self.key.model.dropout == 0:
            return None
        # Another stream than the one that initialises the parameters.
        stream = jax.random.fold_in(jax.random.key(hyper["seed"]), 1)
        return jax.random.fold_in(stream, state["step"])

    def _gradient(
        self, params: Any, windows: jax.Array, dropout_key: jax.Array | None
    ) -> tuple[jax.Array, Any, jax.Array | None]:
        """Mean loss, its gradient, and the mean over micro-batches of their squared gradient norms."""
        n, noise = self.n_micro_batches, self.key.noise_pieces
        loss_and_gradient = jax.value_and_grad(self._mean_loss)
        if n == 1:
            return *loss_and_gradient(params, windows, dropout_key), None
        # Strided micro-batches, so that a batch that is split over devices stays where it is.
        micro_batches = windows.reshape(windows.shape[0] // n, n, -1).swapaxes(0, 1)

        def add(total, xs):
            windows, index = xs
            key = None if dropout_key is None else jax.random.fold_in(dropout_key, index)
            found = loss_and_gradient(params, windows, key)
            squared = optax.tree.norm(found[1], squared=True) if noise else None
            return jax.tree.map(jnp.add, total, found), squared

        zero = jax.tree.map(jnp.zeros_like, (jnp.float32(0), params))
        (loss, grads), squared = jax.lax.scan(add, zero, (micro_batches, jnp.arange(n)))
        # `_mean_loss` is divided by n; the norms are those of the micro-batches' own means.
        return loss, grads, squared.mean() * n**2 if noise else None

    def _mean_loss(
        self, params: Any, windows: jax.Array, dropout_key: jax.Array | None
    ) -> jax.Array:
        """A micro-batch's share of the mean loss of the batch, so that the shares add up to it."""
        graph = self._graph(self.unroll)
        if self.head == "fused":
            loss = self._fused_loss(graph, params, windows, dropout_key)
        else:
            pieces = self.logit_pieces
            loss = self._loss(mean_loss_in_pieces, pieces, graph, params, windows, dropout_key)
        return loss / self.n_micro_batches

    # --- Evaluation -------------------------------------------------------------------------

    def evaluate(
        self, params: Any, windows: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Mean losses by position [n_ctx] and by window [n, eval_batch], in nats.

        Args:
          params: of the run.
          windows: int32 [n, eval_batch, n_ctx + 1].
          weights: float32 [n, eval_batch]; 0 marks padding.
        """
        # Unrolling helps the backward pass only, and a loop compiles twice as quickly.
        graph = self._graph(False)

        def add(total, xs):
            windows, weights = xs
            losses = self._loss(losses_in_pieces, self._eval_pieces, graph, params, windows)
            return total + jnp.einsum("bt,b->t", losses, weights), losses.mean(axis=1)

        zero = jnp.zeros(self.key.model.n_ctx)
        total, by_window = jax.lax.scan(add, zero, (windows, weights))
        return total / weights.sum(), by_window

    # --- The model --------------------------------------------------------------------------

    @functools.cached_property
    def _eval_pieces(self) -> int:
        """Parts of the context whose logits exist at a time in evaluation.

        Training with a fused head leaves no room for logits. As many parts are taken as make a token's
        share of them no larger than what its backward pass holds: some 16 numbers a unit of the width.
        """
        if self.head != "fused":
            return self.logit_pieces
        model = self.key.model
        least = min(model.n_ctx, model.vocab_size / (16 * model.head_width))
        return next(n for n in range(1, model.n_ctx + 1) if n >= least and model.n_ctx % n == 0)

    def _loss(
        self,
        function: Callable[..., jax.Array],
        n_pieces: int,
        graph: nnx.GraphDef,
        params: Any,
        windows: jax.Array,
        dropout_key: jax.Array | None = None,
    ) -> jax.Array:
        """`losses_in_pieces` or `mean_loss_in_pieces` of the model's predictions."""
        with on_mesh(self.mesh, self.rules):
            # An unrolled model takes the layers apart again. XLA removes both.
            params = layout.stack_layers(params)
            hidden = nnx.merge(graph, params).hidden(windows[:, :-1], dropout_key=dropout_key)
            # The head is gathered once, not for each part of the logits.
            head = head_params(params, whole=n_pieces > 1)
            shapes = jax.eval_shape(lambda: params)

            def logits(head, hidden):
                # The head reads no other parameters, so their shapes suffice.
                return nnx.merge(graph, {**shapes, **head}).logits(hidden)

            return function(logits, head, hidden, windows[:, 1:], n_pieces)

    def _fused_loss(
        self, graph: nnx.GraphDef, params: Any, windows: jax.Array, dropout_key: jax.Array | None
    ) -> jax.Array:
        """The mean loss of the model's predictions, without logits in memory."""
        with on_mesh(self.mesh, self.rules):
            model = nnx.merge(graph, layout.stack_layers(params))
            hidden = model.hidden(windows[:, :-1], dropout_key=dropout_key)
            head = model.head_matrix()
            hidden = hidden.reshape(-1, hidden.shape[-1]).astype(head.dtype)
            return fused_mean_loss(hidden, head, windows[:, 1:].reshape(-1))

    def _graph(self, unroll: bool) -> nnx.GraphDef:
        """The model without its parameters."""

        def build():
            return self.key.model.module(
                nnx.Rngs(params=0),
                dtype=self.key.compute_dtype,
                unroll=unroll,
                attention=self.attention,
                remat=self.remat,
            )

        return nnx.split(nnx.eval_shape(build))[0]


@dataclass(frozen=True)
class PackStep:
    """The functions of `RunStep` for all slots of a pack: every array of a state has a run axis.

    Attributes:
      run: the step of one run.
      n_slots: R.
      chunk_steps: most steps of a dispatch.
    """

    run: RunStep
    n_slots: int
    chunk_steps: int

    def over_runs(self, function: Callable) -> Callable:
        """Lifts a function of one run to all slots."""
        if self.n_slots > 1:
            return jax.vmap(function, spmd_axis_name="run")

        # With R = 1 the run axis is dropped: XLA's CPU reductions are slower with an extra axis.
        def alone(*args):
            result = function(*jax.tree.map(lambda x: x[0], args))
            return jax.tree.map(lambda x: x[None], result)

        return alone

    def train(
        self, state: State, hyper: Any, data: dict[str, jax.Array], n_steps: jax.Array, active: Any
    ) -> tuple[State, dict[str, jax.Array]]:
        """`n_steps` updates; see `lmscale.training.program.Program.train`."""
        shape = (self.chunk_steps, self.n_slots)
        buffers = {name: jnp.zeros(shape, jnp.float32) for name in self.run.metrics}
        step, n_ctx = self.over_runs(self.run.train), self.run.key.model.n_ctx

        def body(i, carry):
            state, buffers = carry
            if "windows" in data:
                windows = data["windows"][i]
            else:
                windows = gather_on_device(data["corpus"], data["indices"][i], n_ctx)
            state, measured = step(state, hyper, windows, active)
            return state, {name: buffers[name].at[i].set(measured[name]) for name in buffers}

        return jax.lax.fori_loop(0, n_steps, body, (state, buffers))

    def evaluate(
        self, state: State, windows: jax.Array, weights: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """`RunStep.evaluate` of every slot on the same windows."""

        def one(params):
            return self.run.evaluate(params, windows, weights)

        return self.over_runs(one)(state["params"])

    def reset(self, state: State, seeds: jax.Array, mask: jax.Array) -> State:
        """The state with the masked slots freshly initialised."""
        fresh = self.over_runs(self.run.init)(seeds)

        def choose(new, old):
            return jnp.where(mask.reshape(-1, *[1] * (new.ndim - 1)), new, old)

        return jax.tree.map(choose, fresh, state)

    def put(self, state: State, slot: jax.Array, one: State) -> State:
        """The state with a saved run in a slot."""
        one = self.run.to_train_layout(one)
        return jax.tree.map(lambda x, y: x.at[slot].set(y), state, one)

    def take(self, state: State, slot: jax.Array) -> State:
        """A slot's run, in the layout in which it is saved."""
        return self.run.to_checkpoint_layout(jax.tree.map(lambda x: x[slot], state))
