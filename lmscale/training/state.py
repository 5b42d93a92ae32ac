"""The state of a run, what runs of one program have in common, and what may differ between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import SingleDeviceSharding

from lmscale.spec import ModelSpec, RunSpec
from lmscale.training.optimizer import (
    make_optimizer,
    optimizer_hyperparameters,
    placeholder_hyperparameters,
)
from lmscale.training.schedule import schedule_hyperparameters

#: A pytree of one run's {"params", "opt", "step"}; a pack's has a leading run axis everywhere.
State = Any


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
    """The hyperparameters of the runs of a pack, [R] each."""
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
    """The optimizer's state before the first step, which does not depend on its hyperparameters.

    Args:
      key: of the run.
      params: its parameters.
      flat: see `make_optimizer`.
    """
    placeholders = placeholder_hyperparameters(key.optimizer)
    hyper = {name: jnp.float32(value) for name, value in placeholders.items()}
    return make_optimizer(key.optimizer, type(key.model), jnp.float32(0), hyper, flat=flat).init(
        params
    )


def single_device_like(spec: RunSpec) -> State:
    """The shapes of a run's state, all on the first device: the argument `like` of a restore."""
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
