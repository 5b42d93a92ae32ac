"""The layout in which a CPU trains a run holds the same numbers as the one that is saved."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmscale.training import layout

PARAMS = {
    "blocks": {"kernel": np.arange(24.0).reshape(3, 2, 4), "bias": -np.arange(6.0).reshape(3, 2)},
    "embed": {"embedding": np.arange(100.0, 110.0).reshape(5, 2)},
    "scale": np.array([7.0, 8.0]),
}
PARAMS32 = jax.tree.map(np.float32, PARAMS)
STACKS = ("blocks",)


def test_layers_are_taken_apart_and_stacked_again():
    unstacked = layout.unstack_layers(PARAMS, STACKS)
    np.testing.assert_array_equal(unstacked["blocks"][2]["kernel"], PARAMS["blocks"]["kernel"][2])
    jax.tree.map(np.testing.assert_array_equal, layout.stack_layers(unstacked), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, layout.stack_layers(PARAMS), PARAMS)


def test_each_layer_is_a_vector_and_all_else_one():
    unstacked = layout.unstack_layers(PARAMS, STACKS)
    vectors = layout.vectors(unstacked)
    assert [x.shape for x in vectors] == [(10,), (10,), (10,), (12,)]
    np.testing.assert_array_equal(vectors[1][:2], PARAMS["blocks"]["bias"][1])
    jax.tree.map(np.testing.assert_array_equal, layout.from_vectors(vectors, unstacked), unstacked)
    assert [x.shape for x in layout.vectors(PARAMS)] == [(42,)]


@pytest.mark.parametrize("unstacked", [False, True])
def test_updates_and_moments_are_those_of_the_parameters_one_by_one(unstacked):
    params = PARAMS32
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
    flat = layout.on_vectors(plain)
    update_plain, update_flat = jax.jit(plain.update), jax.jit(flat.update)
    start = {"params": params, "opt": jax.jit(plain.init)(params), "step": jnp.int32(0)}
    pack = layout.unstack_layers(params, STACKS) if unstacked else params
    state = layout.to_train_layout(start, flat.init, STACKS if unstacked else ())
    jax.tree.map(np.testing.assert_array_equal, state["params"], pack)
    opt, expected_opt = state["opt"], start["opt"]
    for i in range(3):
        grads = jax.tree.map(lambda x, i=i: np.cos(x * (i + 1)), PARAMS32)
        expected, expected_opt = update_plain(grads, expected_opt, params)
        updates, opt = update_flat(
            layout.unstack_layers(grads, STACKS) if unstacked else grads, opt, pack
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            layout.stack_layers(updates),
            expected,
        )
    saved = layout.to_checkpoint_layout({**state, "opt": opt}, start["opt"])
    jax.tree.map(np.testing.assert_array_equal, saved["params"], params)
    assert jax.tree.structure(saved["opt"]) == jax.tree.structure(start["opt"])
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        saved["opt"],
        expected_opt,
    )
