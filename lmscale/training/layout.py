"""The layout of a run's state while a CPU trains it, and the one in which it is saved.

A saved state holds the layers of a model stacked, so that one loop runs through them. A CPU whose
loop is unrolled is faster with separate arrays for each layer: nothing is sliced or joined in a step,
and XLA compiles the code that equal layers share once. The moments are one vector for each layer and
one for all other parameters, so that an update is a few long operations instead of many short ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree


def unstack_layers(params: dict[str, Any], stacks: tuple[str, ...]) -> dict[str, Any]:
    """Parameters with a list of layers instead of every stack.

    Args:
      stacks: names of the entries that hold stacked layers (`ModelSpec.STACKS`).
    """

    def layers(stack):
        n_layer = len(jax.tree.leaves(stack)[0])
        return [jax.tree.map(lambda x, i=i: x[i], stack) for i in range(n_layer)]

    return {name: layers(x) if name in stacks else x for name, x in params.items()}


def stack_layers(params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `unstack_layers`; parameters without lists of layers are returned as they are."""

    def stack(layers):
        return jax.tree.map(lambda *xs: jnp.stack(xs), *layers)

    return {name: stack(x) if isinstance(x, list) else x for name, x in params.items()}


def vectors(params: dict[str, Any]) -> list[jax.Array]:
    """One vector for each unstacked layer, and one for all other parameters."""
    return [ravel_pytree(part)[0] for part in _parts(params)]


def from_vectors(parts: list[jax.Array], like: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `vectors`, in the shapes of `like`."""
    whole = [ravel_pytree(part)[1](x) for part, x in zip(_parts(like), parts, strict=True)]
    layers, rest = iter(whole), whole[-1]
    return {
        name: [next(layers) for _ in x] if isinstance(x, list) else rest[name]
        for name, x in like.items()
    }


def _parts(params: dict[str, Any]) -> list[Any]:
    layers = [layer for x in params.values() if isinstance(x, list) for layer in x]
    return [*layers, {name: x for name, x in params.items() if not isinstance(x, list)}]


def on_vectors(transform: optax.GradientTransformation) -> optax.GradientTransformation:
    """The transformation, applied to `vectors` of the parameters instead of to every array."""

    def update(grads, state, params=None):
        params = None if params is None else vectors(params)
        updates, state = transform.update(vectors(grads), state, params)
        # Without the barrier XLA computes the vector again for each array that is cut from it.
        return from_vectors(jax.lax.optimization_barrier(updates), grads), state

    return optax.GradientTransformation(lambda params: transform.init(vectors(params)), update)


def to_train_layout(
    state: dict[str, Any], initial_moments: Callable[[Any], Any], stacks: tuple[str, ...]
) -> dict[str, Any]:
    """A run's saved state in the layout in which it is trained.

    Args:
      state: {"params", "opt", "step"}.
      initial_moments: parameters -> moments that are vectors; only their structure is used.
      stacks: names of the entries whose layers are unstacked.
    """
    params = unstack_layers(state["params"], stacks)
    moments: Any = jax.tree.structure(state["params"])

    def one(x):
        return vectors(unstack_layers(x, stacks)) if isinstance(x, dict) else [x]

    like = jax.eval_shape(initial_moments, params)
    opt = _in_place_of(like, state["opt"], one, lambda x: jax.tree.structure(x) == moments)
    return {**state, "params": params, "opt": opt}


def to_checkpoint_layout(state: dict[str, Any], like: Any) -> dict[str, Any]:
    """The inverse of `to_train_layout`; `like` is the optimizer's state as it is saved."""

    def one(x):
        return (
            jax.tree.leaves(stack_layers(from_vectors(x, state["params"]))) if _is_list(x) else [x]
        )

    opt = _in_place_of(like, state["opt"], one, _is_list)
    return {**state, "params": stack_layers(state["params"]), "opt": opt}


def _is_list(x: Any) -> bool:
    return isinstance(x, list)


def _in_place_of(like: Any, tree: Any, leaves_of: Callable, is_leaf: Callable) -> Any:
    leaves = [leaf for x in jax.tree.leaves(tree, is_leaf=is_leaf) for leaf in leaves_of(x)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
