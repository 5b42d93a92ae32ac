"""Optimizers from optax whose constants are traced arrays, so that one program serves a grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import optax

from lmscale import optimizers
from lmscale.architectures import ModelSpec
from lmscale.parallel.partition import path_name
from lmscale.spec import RunSpec
from lmscale.training.layout import on_vectors


def optimizer_hyperparameters(spec: RunSpec) -> dict[str, float]:
    """The numbers that `make_optimizer` needs of a run."""
    values = vars(spec.optimizer)
    constants = {name: values[name] for name in _constants(spec.optimizer.name)}
    clip = values["grad_clip"]
    return {**constants, "grad_clip": float("inf") if clip is None else clip}


def placeholder_hyperparameters(name: str) -> dict[str, float]:
    """Such numbers of no run, for the shape of an optimizer's state."""
    return {**dict.fromkeys(_constants(name), 0.5), "grad_clip": 1.0}


def _constants(name: str) -> tuple[str, ...]:
    common = ("beta1", "beta2", "eps", "weight_decay")
    return (*common, *(c for c in optimizers.optimizer(name).constants if c not in common))


def make_optimizer(
    name: str,
    model: type[ModelSpec],
    learning_rate: jax.Array,
    hyper: Mapping[str, jax.Array],
    *,
    flat: bool = False,
) -> optax.GradientTransformation:
    """Clipping, then `name`, then decoupled weight decay, then the learning rate.

    The transformation's state does not depend on the hyperparameters, so it may be rebuilt with
    other values at every step.

    Args:
      name: of `lmscale.optimizers`.
      model: architecture, which says what decays and what holds stacked layers.
      learning_rate: of this step.
      hyper: see `optimizer_hyperparameters`.
      flat: the moments are a few vectors, see `lmscale.training.layout`; of elementwise optimizers.
    """
    scaled = [
        optax.clip_by_global_norm(hyper["grad_clip"]),
        optimizers.optimizer(name).direction(model, hyper),
    ]
    if flat:
        scaled = [on_vectors(optax.chain(*scaled))]
    # Checkpoints hold the state of this chain: with other parts those of before cannot be read.
    return optax.chain(
        *scaled,
        optax.add_decayed_weights(
            hyper["weight_decay"], mask=lambda params: _decay_mask(params, model)
        ),
        optax.scale(-learning_rate),
    )


def _decay_mask(params: Any, model: type[ModelSpec]) -> Any:
    return jax.tree_util.tree_map_with_path(lambda path, _: model.decays(path_name(path)), params)
