"""What surrounds the flash kernel of NVIDIA GPUs: padding, its conditions, the mesh. The kernel itself
is replaced by scores that are written out, and by the conditions of the real one."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmscale.models import attention
from lmscale.models.attention import causal_attention, cudnn_refuses
from lmscale.parallel.mesh import make_mesh
from lmscale.parallel.partition import on_mesh
from tests.quick_compile import quick_jit as quick


@pytest.fixture
def seen(monkeypatch):
    """Shapes of the queries that the kernel is given."""
    shapes = []

    def kernel(query, key, value, *, scale, is_causal, implementation):
        assert (is_causal, implementation) == (True, "cudnn")
        assert query.shape[-1] % 8 == 0
        shapes.append(query.shape)
        scores = scale * jnp.einsum("bqhd,bkhd->bhqk", query, key)
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf), axis=-1)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, value).astype(query.dtype)

    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    return shapes


def arrays(shape, dtype="float32"):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), dtype) for _ in range(4)]


def value_and_gradients(implementation, query, key, value, weight):
    def total(query, key, value):
        mixed = causal_attention(query, key, value, implementation)
        return (mixed * weight).sum(), mixed

    return quick(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(query, key, value)


@pytest.mark.parametrize("d_head", [32, 36, 44, 52, 91, 7])
@pytest.mark.parametrize("n_time", [pytest.param(16, marks=pytest.mark.slow), 17])
def test_padded_heads_give_what_unpadded_ones_do(seen, monkeypatch, d_head, n_time):
    # The kernel itself would refuse float32, in which the two can be compared closely.
    monkeypatch.setattr(attention, "cudnn_refuses", lambda *args: None)
    given = arrays((2, n_time, 3, d_head))
    (_, expected), wanted = value_and_gradients("xla", *given)
    (_, found), got = value_and_gradients("cudnn", *given)
    assert {shape[-1] for shape in seen} == {8 * math.ceil(d_head / 8)}
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == given[0].shape
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-6)


@pytest.mark.parametrize("mesh", [(2, 4, 1), (2, 2, 2)])
def test_batches_and_heads_are_split_also_where_runs_are_packed(seen, mesh):
    query, key, value, _ = arrays((2, 4, 16, 2, 12), "bfloat16")

    def packed(implementation):
        def one(query, key, value):
            with on_mesh(make_mesh(*mesh)):
                return causal_attention(query, key, value, implementation)

        return quick(jax.vmap(one, spmd_axis_name="run"))(query, key, value)

    expected = packed("xla").astype(jnp.float32)
    found = packed("cudnn").astype(jnp.float32)
    _, data, model = mesh
    # A device's share of the batch and of the heads, of the padded width.
    assert set(seen) == {(4 // data, 16, 2 // model, 16)}
    np.testing.assert_allclose(found, expected, atol=0.03)


def test_what_the_kernel_refuses_is_refused_with_the_reason(seen):
    query = jnp.zeros((1, 16, 1, 64))
    with pytest.raises(ValueError, match="bfloat16 and float16, not float32"):
        causal_attention(query, query, query, "cudnn")
    wide = jnp.zeros((1, 16, 1, 257), jnp.bfloat16)
    with pytest.raises(ValueError, match="at most 256 here, not of 257"):
        causal_attention(wide, wide, wide, "cudnn")
    assert not seen


def test_the_conditions_are_those_of_the_installed_jax(monkeypatch):
    """jax's own check of shapes, for an older and for a newer GPU."""
    checks = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")
    for widest, newer in ((128, False), (256, True)):
        monkeypatch.setattr(checks, "check_compute_capability", lambda _, newer=newer: newer)
        for d_head in (1, 8, 44, 120, 128, 129, 136, 250, 256, 257, 320):
            query = jax.ShapeDtypeStruct((2, 17, 3, attention.padded_width(d_head)), jnp.bfloat16)
            layout = checks.AttentionLayout.BTNH.value
            try:
                checks.check_is_flash_attention(query, query, query, layout, 91000, False, True)
            except NotImplementedError:
                taken = False
            else:
                taken = True
            assert taken == (cudnn_refuses(d_head, "bfloat16", widest) is None), (d_head, widest)
