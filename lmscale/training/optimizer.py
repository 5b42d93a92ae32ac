"""Optimizers from optax whose constants are traced arrays, so that one program serves a grid."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import optax

from lmscale.architectures import ModelSpec
from lmscale.parallel.partition import path_name
from lmscale.spec import RunSpec
from lmscale.training.adafactor import scale_by_adafactor
from lmscale.training.form import on_vectors


def optimizer_hyperparameters(spec: RunSpec) -> dict[str, float]:
    """The numbers that `make_optimizer` needs of a run."""
    optimizer = spec.optimizer
    return {
        "beta1": optimizer.beta1,
        "beta2": optimizer.beta2,
        "eps": optimizer.eps,
        "weight_decay": optimizer.weight_decay,
        "grad_clip": float("inf") if optimizer.grad_clip is None else optimizer.grad_clip,
    }


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
      name: "adam", "adamw" or "adafactor" (see `lmscale.training.adafactor`; the step size is the
        learning rate alone, relative neither to the step nor to the parameters).
      model: architecture, which says what decays and what holds stacked layers.
      learning_rate: of this step.
      hyper: see `optimizer_hyperparameters`.
      flat: the moments are a few vectors, see `lmscale.training.form`. Not for adafactor, whose
        moments are of matrices.
    """
    if name == "adafactor":
        scale = scale_by_adafactor(model.STACKS)
    else:
        scale = optax.scale_by_adam(b1=hyper["beta1"], b2=hyper["beta2"], eps=hyper["eps"])
    scaled = (optax.clip_by_global_norm(hyper["grad_clip"]), scale)
    if flat:
        scaled = (on_vectors(optax.chain(*scaled)),)
    return optax.chain(
        *scaled,
        optax.add_decayed_weights(
            hyper["weight_decay"], mask=lambda params: _decay_mask(params, model)
        ),
        optax.scale(-learning_rate),
    )


def _decay_mask(params, model: type[ModelSpec]):
    return jax.tree_util.tree_map_with_path(lambda path, _: model.decays(path_name(path)), params)
