"""Muon (Jordan et al. 2024): momentum whose update of each matrix is made nearly orthogonal.

The matrices of the layers take Muon's update, everything else (embedding, head, norms, biases) Adam's,
as its authors do. optax does the arithmetic; named here is what is a matrix in our arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import optax
from jax.tree_util import KeyPath

from lmscale.architectures import ModelSpec
from lmscale.compat import matrix_dimensions, orthogonalized_momentum
from lmscale.optimizers.matrices import matrix_axes
from lmscale.parallel.partition import path_name

#: Root mean square of a matrix's update, that of AdamW's (Liu et al. 2025), so that learning rates
#: carry over from AdamW.
UPDATE_RMS = 0.2


def scale_by_muon(
    model: type[ModelSpec], constants: Mapping[str, jax.Array]
) -> optax.GradientTransformation:
    """Muon's update of the layers' matrices and Adam's of all else, before the learning rate.

    M_t = b M_{t-1} + (1 - b) G_t with Nesterov's look ahead; U = five Newton-Schulz steps from
    M / |M|, scaled by 0.2 sqrt(max(d_in, d_out)) (https://arxiv.org/abs/2502.16982).

    Args:
      model: architecture, which says what holds stacked layers and what is no matrix.
      constants: momentum (b); beta1, beta2, eps (of Adam).
    """

    def is_matrix(path: KeyPath, x: jax.Array) -> bool:
        name = path_name(path)
        if name.split("/", 1)[0] in ("embed", "head") or not model.decays(name):
            return False
        return bool(matrix_axes(path, x, model.STACKS).d_in)

    def labels(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(
            lambda path, x: "muon" if is_matrix(path, x) else "adam", params
        )

    def dimensions(params: Any) -> Any:
        def of(path, x):
            axes = matrix_axes(path, x, model.STACKS)
            return matrix_dimensions(axes.d_in, axes.d_out)

        return jax.tree_util.tree_map_with_path(of, params)

    def scaled(path, update):
        axes = matrix_axes(path, update, model.STACKS)
        d_in, d_out = (math.prod(update.shape[i] for i in part) for part in axes[1:])
        return UPDATE_RMS * math.sqrt(max(d_in, d_out)) * update

    muon = optax.chain(
        orthogonalized_momentum(constants["momentum"], dimensions),
        optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scaled, updates)),
    )
    adam = optax.scale_by_adam(b1=constants["beta1"], b2=constants["beta2"], eps=constants["eps"])
    return optax.partition({"muon": muon, "adam": adam}, labels)
