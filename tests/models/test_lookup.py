"""The gradient of an embedding on GPUs: sums by token id without a scatter of floats."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmscale.models import layers, lookup
from lmscale.models.lookup import BLOCK, sum_by_token
from lmscale.parallel.mesh import make_mesh
from lmscale.parallel.partition import on_mesh
from lmscale.spec import LSTMSpec, TransformerSpec
from lmscale.training.program import build_program, train_arguments
from lmscale.training.state import ProgramKey
from tests.training.specs import run_spec


def zipf_tokens(vocab_size, shape, seed=0):
    weights = 1 / np.arange(1, vocab_size + 1)
    rng = np.random.default_rng(seed)
    return rng.choice(vocab_size, shape, p=weights / weights.sum()).astype(np.int32)


def sums(tokens, rows, vocab_size):
    """In float64, in order."""
    total = np.zeros((vocab_size, rows.shape[-1]))
    np.add.at(total, tokens.ravel(), np.asarray(rows, np.float64).reshape(-1, rows.shape[-1]))
    return total


ONE_DEVICE = make_mesh(1, 1, 1, devices=jax.devices()[:1])
CASES = {
    "less than a block": zipf_tokens(50, (3, 7)),
    "no whole number of blocks": zipf_tokens(300, (4, 333)),
    "most ids absent": zipf_tokens(5000, (2, BLOCK)),
    "one id in all blocks": np.full((5, 2 * BLOCK), 3, np.int32),
    "ids that go on over several blocks": zipf_tokens(4, (16, BLOCK)),
    "ids that end with a block": np.repeat(np.arange(6, dtype=np.int32), BLOCK)[None],
    "one place": np.array([[2]], np.int32),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_rows_are_summed_by_their_token(name, dtype):
    tokens = CASES[name]
    vocab_size = int(tokens.max()) + 3
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(*tokens.shape, 5)), dtype)
    found = sum_by_token(tokens, rows, vocab_size)
    assert found.dtype == jnp.float32
    expected = sums(tokens, rows, vocab_size)
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6 * tokens.size**0.5)


def test_each_run_of_a_pack_sums_its_own():
    tokens = np.stack([zipf_tokens(40, (4, 50), seed) for seed in range(3)])
    rows = np.random.default_rng(1).normal(size=(*tokens.shape, 6)).astype(np.float32)
    found = jax.vmap(lambda t, r: sum_by_token(t, r, 40))(tokens, rows)
    for run in range(3):
        np.testing.assert_allclose(found[run], sums(tokens[run], rows[run], 40), atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_on_a_gpu_is_that_of_automatic_differentiation(monkeypatch, dtype):
    tokens = zipf_tokens(60, (6, 40))
    rng = np.random.default_rng(1)
    embedding = jnp.asarray(rng.normal(size=(60, 8)), jnp.float32)
    weights = jnp.asarray(rng.normal(size=(6, 40, 8)), jnp.float32)

    def gradient(rows_of):
        def loss(embedding):
            return (weights * rows_of(embedding).astype(jnp.float32)).sum()

        return jax.grad(loss)(embedding)

    plain = gradient(lambda e: e[tokens].astype(dtype))
    np.testing.assert_array_equal(
        gradient(lambda e: lookup.lookup(e, tokens, jnp.dtype(dtype))), plain
    )
    monkeypatch.setattr(lookup, "on_gpu", lambda: True)
    with on_mesh(ONE_DEVICE):
        found = gradient(lambda e: lookup.lookup(e, tokens, jnp.dtype(dtype)))
    np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-5)


MODELS = {
    "transformer": TransformerSpec(n_layer=1, d_model=16, n_head=2, n_ctx=8, vocab_size=64),
    "lstm": LSTMSpec(n_layer=1, d_hidden=16, d_embed=16, n_ctx=8, vocab_size=64),
}


@pytest.mark.parametrize(("run", "data"), [(1, 1), pytest.param(2, 4, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", MODELS)
def test_a_step_on_a_gpu_adds_no_floats_by_scattering(monkeypatch, kind, run, data):
    """XLA would sort every one of them, or add them in any order."""
    mesh = make_mesh(run, data, 1, devices=jax.devices()[: run * data])

    def added():
        spec = run_spec(model=MODELS[kind], batch_size=4, evals=())
        program = build_program(ProgramKey.of(spec), n_slots=2, mesh=mesh, chunk_steps=2)
        text = program.lower_train(*train_arguments(program, spec, None)).as_text()
        bodies = re.findall(r'"stablehlo\.scatter".*?\^bb0(.*?)stablehlo\.return', text, re.DOTALL)
        return [body for body in bodies if re.search(r"stablehlo\.add .*tensor<b?f\d+>", body)]

    # Where it does, the pattern finds it.
    assert added()
    monkeypatch.setattr(lookup, "on_gpu", lambda: True)
    assert not added()


@pytest.mark.parametrize(("run", "data"), [(2, 4), (1, 3)])
def test_devices_sum_their_parts_of_the_batch(monkeypatch, run, data):
    mesh = make_mesh(run, data, 1, devices=jax.devices()[: run * data])
    tokens = np.stack([zipf_tokens(60, (4, 40), seed) for seed in range(2)])
    weights = np.random.default_rng(1).normal(size=(2, 4, 40, 8)).astype(np.float32)

    def gradient(tokens, weights):
        def loss(embedding):
            with on_mesh(mesh):
                return (weights * lookup.lookup(embedding, tokens, jnp.float32)).sum()

        return jax.grad(loss)(jnp.zeros((60, 8)))

    monkeypatch.setattr(lookup, "on_gpu", lambda: True)
    found = jax.jit(jax.vmap(gradient, spmd_axis_name="run"))(tokens, weights)
    for i in range(2):
        np.testing.assert_allclose(found[i], sums(tokens[i], weights[i], 60), atol=2e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_slope_of_gelu_on_a_gpu_is_the_same(monkeypatch, dtype):
    x = jnp.linspace(-9.0, 9.0, 1001).astype(dtype)
    slope = jax.vmap(jax.grad(lambda x: jax.nn.gelu(x, approximate=True)))
    expected = slope(x.astype(jnp.float32))
    monkeypatch.setattr(layers, "on_gpu", lambda: True)
    found = jax.vmap(jax.grad(layers.gelu))(x)
    tolerance = {"float32": 1e-5, "bfloat16": 0.008}[dtype]
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=tolerance)
