"""The TPU's flash kernel, interpreted on a CPU, against attention that computes all scores."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel

from lmscale.models.attention import causal_attention
from lmscale.parallel.mesh import make_mesh
from lmscale.parallel.partition import on_mesh
from tests.quick_compile import quick_jit as quick

SHAPE = (1, 256, 2, 64)


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    name = "make_splash_mha_single_device"
    make = functools.partial(getattr(splash_attention_kernel, name), interpret=True)
    monkeypatch.setattr(splash_attention_kernel, name, make)


def arrays(shape=SHAPE):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(4)]


def documents_of(n_batch, n_time):
    """int32 [batch, time]: documents of about 40 tokens, which begin elsewhere in every row."""
    starts = np.random.default_rng(0).random((n_batch, n_time)) < 1 / 40
    return np.cumsum(starts, axis=1, dtype=np.int32)


def value_and_gradients(implementation, query, key, value, weight, documents=None):
    def total(query, key, value):
        mixed = causal_attention(query, key, value, implementation, documents)
        return (mixed * weight).sum()

    return quick(jax.value_and_grad(total, argnums=(0, 1, 2)))(query, key, value)


@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_computes_what_xla_does(masked):
    given = [*arrays(), documents_of(*SHAPE[:2]) if masked else None]
    expected = value_and_gradients("xla", *given)
    found = value_and_gradients("splash", *given)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    for one, other in zip(found[1], expected[1], strict=True):
        np.testing.assert_allclose(one, other, atol=2e-4)


@pytest.mark.parametrize("masked", [False, True])
def test_runs_batches_and_heads_are_each_on_their_own_device(masked):
    """Two runs side by side on a mesh with every axis."""
    mesh = make_mesh(2, 2, 2)
    query, key, value, _ = arrays((2, 2, 128, 2, 64))
    documents = documents_of(4, 128).reshape(2, 2, 128) if masked else None

    def packed(implementation):
        def one(query, key, value, documents):
            with on_mesh(mesh):
                return causal_attention(query, key, value, implementation, documents)

        return quick(jax.vmap(one, spmd_axis_name="run"))(query, key, value, documents)

    expected = packed("xla")
    found = packed("splash")
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_a_context_that_the_kernel_does_not_take_is_refused():
    query = jnp.zeros((1, 100, 1, 64))
    with pytest.raises(ValueError, match="in 128s, not one of 100"):
        causal_attention(query, query, query, "splash")
