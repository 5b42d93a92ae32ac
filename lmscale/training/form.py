"""The form that a run's state has while a CPU trains it; it is saved in another.

A model's layers are stacked in its parameters, so that one loop runs through them. A CPU whose loop
is unrolled is better off with each layer's arrays by themselves: nothing is sliced or joined at
every step, and what the layers have in common XLA compiles once. Moments are one vector a layer and
one for all else, so that an update is a few long operations instead of many short ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree


def apart(params: dict[str, Any], stacks: tuple[str, ...]) -> dict[str, Any]:
    """Parameters with a list of layers in the place of every stack.

    Args:
      stacks: names of the entries that hold stacked layers (`ModelSpec.STACKS`).
    """

    def layers(stack):
        n_layer = len(jax.tree.leaves(stack)[0])
        return [jax.tree.map(lambda x, i=i: x[i], stack) for i in range(n_layer)]

    return {name: layers(x) if name in stacks else x for name, x in params.items()}


def stacked(params: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `apart`; the identity where nothing is apart."""

    def stack(layers):
        return jax.tree.map(lambda *xs: jnp.stack(xs), *layers)

    return {name: stack(x) if isinstance(x, list) else x for name, x in params.items()}


def vectors(params: dict[str, Any]) -> list[jax.Array]:
    """One vector for each layer that is apart, and one for all else."""
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
        # Once for all of a vector, not again for each of the arrays that are cut from it.
        return from_vectors(jax.lax.optimization_barrier(updates), grads), state

    return optax.GradientTransformation(lambda params: transform.init(vectors(params)), update)


def trained(
    state: dict[str, Any], initial_moments: Callable[[Any], Any], stacks: tuple[str, ...]
) -> dict[str, Any]:
    """A run's saved state in the form in which it is trained.

    Args:
      state: {"params", "opt", "step"}.
      initial_moments: of parameters, with moments that are vectors; asked for its structure only.
      stacks: names of the entries whose layers are to be apart; none leaves all stacked.
    """
    params, moments = apart(state["params"], stacks), jax.tree.structure(state["params"])

    def one(x):
        return vectors(apart(x, stacks)) if isinstance(x, dict) else [x]

    like = jax.eval_shape(initial_moments, params)
    opt = _in_place_of(like, state["opt"], one, lambda x: jax.tree.structure(x) == moments)
    return {**state, "params": params, "opt": opt}


def saved(state: dict[str, Any], like: Any) -> dict[str, Any]:
    """The inverse of `trained`; `like` is the optimizer's state as it is saved."""

    def one(x):
        return jax.tree.leaves(stacked(from_vectors(x, state["params"]))) if _is_list(x) else [x]

    opt = _in_place_of(like, state["opt"], one, _is_list)
    return {**state, "params": stacked(state["params"]), "opt": opt}


def _is_list(x: Any) -> bool:
    return isinstance(x, list)


def _in_place_of(like: Any, tree: Any, leaves_of: Callable, is_leaf: Callable) -> Any:
    leaves = [leaf for x in jax.tree.leaves(tree, is_leaf=is_leaf) for leaf in leaves_of(x)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
