"""The form in which a CPU trains a run holds the same numbers as the one that is saved."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmscale.training import form

PARAMS = {
    "blocks": {"kernel": np.arange(24.0).reshape(3, 2, 4), "bias": -np.arange(6.0).reshape(3, 2)},
    "embed": {"embedding": np.arange(100.0, 110.0).reshape(5, 2)},
    "scale": np.array([7.0, 8.0]),
}
STACKS = ("blocks",)


def test_layers_are_taken_apart_and_stacked_again():
    apart = form.apart(PARAMS, STACKS)
    np.testing.assert_array_equal(apart["blocks"][2]["kernel"], PARAMS["blocks"]["kernel"][2])
    jax.tree.map(np.testing.assert_array_equal, form.stacked(apart), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, form.stacked(PARAMS), PARAMS)


def test_each_layer_is_a_vector_and_all_else_one():
    apart = form.apart(PARAMS, STACKS)
    vectors = form.vectors(apart)
    assert [x.shape for x in vectors] == [(10,), (10,), (10,), (12,)]
    np.testing.assert_array_equal(vectors[1][:2], PARAMS["blocks"]["bias"][1])
    jax.tree.map(np.testing.assert_array_equal, form.from_vectors(vectors, apart), apart)
    assert [x.shape for x in form.vectors(PARAMS)] == [(42,)]


@pytest.mark.parametrize("layers_apart", [False, True])
def test_updates_and_moments_are_those_of_the_parameters_one_by_one(layers_apart):
    params = jax.tree.map(jnp.float32, PARAMS)
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    flat = form.on_vectors(plain)
    start = {"params": params, "opt": plain.init(params), "step": jnp.int32(0)}
    pack = form.apart(params, STACKS) if layers_apart else params
    state = form.trained(start, flat.init, STACKS if layers_apart else ())
    jax.tree.map(np.testing.assert_array_equal, state["params"], pack)
    opt, expected_opt = state["opt"], start["opt"]
    for i in range(3):
        grads = jax.tree.map(lambda x, i=i: jnp.cos(x * (i + 1)), params)
        expected, expected_opt = plain.update(grads, expected_opt, params)
        updates, opt = flat.update(form.apart(grads, STACKS) if layers_apart else grads, opt, pack)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            form.stacked(updates),
            expected,
        )
    saved = form.saved({**state, "opt": opt}, start["opt"])
    jax.tree.map(np.testing.assert_array_equal, saved["params"], params)
    assert jax.tree.structure(saved["opt"]) == jax.tree.structure(start["opt"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        saved["opt"],
        expected_opt,
    )
