"""Optimizers against the papers' equations in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lmscale.architectures import TransformerSpec
from lmscale.training.optimizer import make_optimizer, optimizer_hyperparameters
from tests.training.specs import run_spec

PARAMS = {"up": {"kernel": np.array([[1.0, -2.0], [0.5, 3.0]]), "bias": np.array([0.3, -0.4])}}


def updates(name: str, gradients: list, lr: float = 0.1, *, flat: bool = False, **optimizer):
    """Parameters after each gradient."""
    hyper = optimizer_hyperparameters(run_spec(optimizer={"name": name, **optimizer}))
    hyper = {k: jnp.float32(v) for k, v in hyper.items()}
    params = jax.tree.map(jnp.float32, PARAMS)
    tx = make_optimizer(name, TransformerSpec, jnp.float32(lr), hyper, flat=flat)
    state, seen = tx.init(params), []
    for gradient in gradients:
        change, state = tx.update(jax.tree.map(jnp.float32, gradient), state, params)
        params = optax.apply_updates(params, change)
        seen.append(jax.tree.map(np.asarray, params))
    return seen


def random_gradients(n: int, size: float = 1.0) -> list:
    rng = np.random.default_rng(0)
    return [jax.tree.map(lambda x: size * rng.normal(size=x.shape), PARAMS) for _ in range(n)]


def adamw_reference(gradients, lr, beta1, beta2, eps, decay):
    """Loshchilov & Hutter 2019, algorithm 2, decay on matrices only."""
    params = jax.tree.map(np.array, PARAMS)
    m = jax.tree.map(np.zeros_like, PARAMS)
    v = jax.tree.map(np.zeros_like, PARAMS)
    for t, gradient in enumerate(gradients, 1):
        m = jax.tree.map(lambda m, g: beta1 * m + (1 - beta1) * g, m, gradient)
        v = jax.tree.map(lambda v, g: beta2 * v + (1 - beta2) * g**2, v, gradient)

        def step(path, p, m, v, t=t):
            rate = decay if path[-1].key == "kernel" else 0.0
            direction = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
            return p - lr * (direction + rate * p)

        params = jax.tree_util.tree_map_with_path(step, params, m, v)
    return params


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("name", "decay"), [("adam", 0.0), ("adamw", 0.0), ("adamw", 0.3)])
def test_adam_and_adamw(name, decay, flat):
    gradients = random_gradients(5)
    numbers = {"beta1": 0.8, "beta2": 0.9, "eps": 1e-3, "weight_decay": decay, "grad_clip": None}
    got = updates(name, gradients, flat=flat, **numbers)[-1]
    want = adamw_reference(gradients, 0.1, 0.8, 0.9, 1e-3, decay)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), got, want)


def test_clipping_scales_the_whole_gradient():
    gradient = random_gradients(1, size=10.0)[0]
    norm = np.sqrt(sum((g**2).sum() for g in jax.tree.leaves(gradient)))
    # A large epsilon makes Adam's first step nearly proportional to the gradient.
    clipped = updates("adam", [gradient], eps=1e6, grad_clip=1.0)[0]
    free = updates("adam", [jax.tree.map(lambda g: g / norm, gradient)], eps=1e6, grad_clip=None)[0]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), clipped, free)


def test_adafactor_keeps_rank_one_second_moments_and_clips_the_update():
    """Shazeer & Stern 2018: an update of root mean square at most 1 in each matrix."""
    for after, before in zip(
        updates("adafactor", random_gradients(3)),
        [PARAMS, *updates("adafactor", random_gradients(3))],
        strict=False,
    ):
        change = (after["up"]["kernel"] - before["up"]["kernel"]) / 0.1
        assert 0 < np.sqrt((change**2).mean()) <= 1.0 + 1e-4


def test_hyperparameters_may_be_traced():
    """One compiled program serves different constants."""
    traces = []

    @jax.jit
    def step(lr, hyper):
        traces.append(1)
        params = jax.tree.map(jnp.float32, PARAMS)
        tx = make_optimizer("adamw", TransformerSpec, lr, hyper)
        return tx.update(params, tx.init(params), params)[0]["up"]["kernel"]

    hyper = optimizer_hyperparameters(run_spec())
    a = step(0.1, {k: jnp.float32(v) for k, v in hyper.items()})
    b = step(0.2, {k: jnp.float32(v) for k, v in {**hyper, "beta1": 0.5}.items()})
    assert len(traces) == 1
    np.testing.assert_allclose(2 * a, b, rtol=1e-4)
