"""The Transformer computes the papers' function, in every switch, and starts as GPT-2 does."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmscale.models import transformer
from lmscale.models.attention import causal_attention
from lmscale.models.layers import LayerNorm, dropout
from lmscale.spec import ModelSpec, SpecError, TransformerSpec
from tests.models import reference
from tests.models.reference import BATCH, TIME, deviation, distance, evaluated, quick

#: Every switch at least once; n_ctx is longer than the input throughout.
SWITCHES = {
    "gpt2": {},
    "narrow-attention-relu-no-bias-untied": {
        "d_attn": 6,
        "n_head": 2,
        "activation": "relu",
        "bias": False,
        "tied_head": False,
    },
    "wide-attention-reuse-stack": {"d_attn": 24, "n_head": 4, "reuse": 2},
    "wide-attention-reuse-layer": {
        "d_attn": 24,
        "n_head": 4,
        "reuse": 2,
        "reuse_order": "layer",
    },
    # Dehghani et al. 2018, with a width that has one more sine than cosines.
    "universal": {
        "n_layer": 1,
        "reuse": 3,
        "norm": "post",
        "activation": "relu",
        "step_signal": "sinusoidal",
        "d_model": 9,
    },
}

#: Checked forward only. The first two are nests of loops in which the order matters.
FORWARD = {
    "signal-stack": {"reuse": 2, "step_signal": "sinusoidal"},
    "signal-layer": {"reuse": 2, "reuse_order": "layer", "step_signal": "sinusoidal"},
    "post-norm-no-bias": {"norm": "post", "bias": False},
}


def spec_of(**switches) -> TransformerSpec:
    shape = {"n_layer": 2, "d_model": 12, "d_attn": 12, "n_head": 3, "d_ff": 20, "n_ctx": 8}
    return TransformerSpec(**{**shape, "vocab_size": 13, **switches})


def logits_of(spec: TransformerSpec, tokens: np.ndarray, **options) -> np.ndarray:
    graphdef, state = reference.random_model(spec, **options)
    return np.asarray(reference.model_logits(graphdef, state, tokens, tokens))


# The function and its gradient.


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_logits_and_loss_equal_the_float64_reference(switches):
    spec = spec_of(**switches)
    p, loss, logits, _ = evaluated(spec)
    tokens, targets = reference.batch(spec)
    assert logits.dtype == np.float32 and logits.shape == (BATCH, TIME, spec.vocab_size)
    assert deviation(logits, reference.forward(spec, p, tokens)) < 2e-6
    assert loss == pytest.approx(reference.loss(spec, p, tokens, targets), rel=2e-6)


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_gradients_equal_finite_differences_of_the_reference(switches):
    spec = spec_of(**switches)
    p, _, _, gradients = evaluated(spec)
    rng = np.random.default_rng(2)
    for name, gradient in gradients.items():
        direction = rng.standard_normal(gradient.shape)
        truth = reference.slope(spec, p, *reference.batch(spec), name, direction)
        scale = np.linalg.norm(gradient)
        assert scale > 0, name
        assert abs((gradient * direction).sum() - truth) < 1e-5 * scale, name


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("switches", FORWARD.values(), ids=FORWARD)
def test_scanned_and_unrolled_layers_equal_the_float64_reference(switches, unroll):
    spec = spec_of(**switches)
    graphdef, state = reference.random_model(spec, unroll=unroll)
    tokens, targets = reference.batch(spec)
    program = reference.model_logits.lower(graphdef, state, tokens, targets)
    assert ("stablehlo.while" in program.as_text()) is not unroll
    truth = reference.forward(spec, reference.float64(state), tokens)
    assert deviation(program.compile()(state, tokens, targets), truth) < 2e-6


@pytest.mark.parametrize("name", SWITCHES)
def test_a_token_never_changes_earlier_logits(name):
    spec = spec_of(**SWITCHES[name])
    graphdef, state = reference.random_model(spec)
    tokens, targets = reference.batch(spec)

    def compute(tokens):
        return np.asarray(reference.model_gradients(graphdef, state, tokens, targets)[0][1])

    before = compute(tokens)
    for t in range(TIME):
        changed = tokens.copy()
        changed[:, t] = (changed[:, t] + 1) % spec.vocab_size
        after = compute(changed)
        np.testing.assert_array_equal(before[:, :t], after[:, :t])
        # It does change its own logits and all later ones: attention reaches back to the start.
        assert (np.abs(before - after)[:, t:].max(-1) > 1e-4).all(), t


# Weight reuse.


def test_reuse_of_one_is_the_plain_transformer():
    """In both orders, whose loops are nested differently."""
    tokens, _ = reference.batch(spec_of())
    _, _, plain, _ = evaluated(spec_of())
    assert deviation(logits_of(spec_of(reuse=1, reuse_order="layer"), tokens), plain) < 2e-6


@pytest.mark.parametrize(("order", "copies"), [("stack", [0, 1, 0, 1]), ("layer", [0, 0, 1, 1])])
def test_reuse_equals_a_deep_stack_of_copied_weights(order, copies):
    switches = SWITCHES[f"wide-attention-reuse-{order}"]
    p, _, logits, _ = evaluated(spec_of(**switches))
    deep = spec_of(**{**switches, "n_layer": 4, "reuse": 1, "reuse_order": "stack"})
    graphdef, state = reference.random_model(deep)
    copied = {
        name: leaf[np.array(copies)] if name.startswith("blocks.") else leaf
        for name, leaf in p.items()
    }
    state = reference.with_values(state, copied)
    truth = reference.model_logits(graphdef, state, *reference.batch(deep))
    assert deviation(logits, truth) < 2e-6


def test_the_two_orders_of_reuse_differ():
    _, _, stack, _ = evaluated(spec_of(**SWITCHES["wide-attention-reuse-stack"]))
    _, _, layer, _ = evaluated(spec_of(**SWITCHES["wide-attention-reuse-layer"]))
    assert deviation(layer, stack) > 0.01


# Precision.


def test_bfloat16_stays_near_float32():
    """Logits within 2% and gradients within 5% (root mean square) of float32.

    Rounding to bfloat16 is 0.2% an operation, and a few dozen follow one another here.
    """
    _, _, full, full_gradients = evaluated(spec_of())
    _, _, half, half_gradients = evaluated(spec_of(), dtype="bfloat16")
    assert half.dtype == np.float32
    assert 1e-4 < distance(half, full) < 0.02
    for name, gradient in full_gradients.items():
        assert half_gradients[name].dtype == np.float32, name
        assert distance(half_gradients[name], gradient) < 0.05, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_are_float32(dtype):
    state = reference.random_model(spec_of(tied_head=False), dtype=dtype)[1]
    assert {leaf.dtype for leaf in reference.named(state).values()} == {np.dtype("float32")}


def test_softmax_of_bfloat16_scores_is_computed_in_float32():
    """A score near 30 would lose up to 0.06, so 6% of a weight, if it were rounded to bfloat16."""
    rng = np.random.default_rng(3)
    n_time, n_head, d_head = 64, 2, 16
    q, k, v = (
        jnp.asarray(rng.standard_normal((1, n_time, n_head, d_head)), jnp.bfloat16)
        for _ in range(3)
    )
    q = q * 16
    ours = quick(causal_attention)(q, k, v)
    assert ours.dtype == jnp.bfloat16
    q, k, v, ours = (np.asarray(x, np.float64)[0] for x in (q, k, v, ours))
    for head in range(n_head):
        for t in range(n_time):
            score = k[: t + 1, head] @ q[t, head] / math.sqrt(d_head)
            weight = np.exp(score - score.max())
            truth = weight / weight.sum() @ v[: t + 1, head]
            # What remains is the rounding of the weights and of their sum, 2^-9 each.
            np.testing.assert_allclose(ours[t, head], truth, rtol=0, atol=2**-8 * np.abs(v).max())


def test_layer_norm_of_bfloat16_is_computed_in_float32():
    """A mean of 64 would lose up to 1/8 of the standard deviation if it were rounded to bfloat16."""
    x = jnp.asarray(64 + np.random.default_rng(3).standard_normal((32, 48)), jnp.bfloat16)
    ours = quick(LayerNorm(48, bias=True, dtype=jnp.bfloat16))(x)
    assert ours.dtype == jnp.bfloat16
    x = np.asarray(x, np.float64)
    truth = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(np.asarray(ours, np.float64), truth, rtol=2**-8, atol=1e-4)


def test_unknown_attention_is_refused():
    x = jnp.zeros((1, 2, 1, 4))
    with pytest.raises(ValueError, match="xla, cudnn or splash, not 'flash'"):
        causal_attention(x, x, x, "flash")


# The initialisation.

START = TransformerSpec(
    n_layer=3,
    reuse=2,
    d_model=96,
    n_head=4,
    d_ff=160,
    d_attn=64,
    n_ctx=64,
    vocab_size=512,
    tied_head=False,
)


def initial(seed):
    return nnx.state(START.module(nnx.Rngs(params=jax.random.key(seed))))


#: From a seed to a state.
start = quick(initial)


@functools.cache
def start_together():
    """Three seeds in one program, as a pack of runs is initialised."""
    return reference.numpy(quick(jax.vmap(initial))(np.arange(3)))


def test_initial_statistics_are_those_of_gpt2():
    """N(0, 0.02), residual projections over sqrt(2 depth), positions N(0, 0.01), biases 0."""
    residual = 0.02 / math.sqrt(2 * START.n_layer * START.reuse)
    std = {
        "embed.embedding": 0.02,
        "position": 0.01,
        "head.kernel": 0.02,
        "blocks.attention.qkv.kernel": 0.02,
        "blocks.attention.out.kernel": residual,
        "blocks.feed_forward.up.kernel": 0.02,
        "blocks.feed_forward.down.kernel": residual,
    }
    for name, leaf in reference.float64(start(0)).items():
        if name.endswith("scale"):
            np.testing.assert_array_equal(leaf, 1.0)
        elif name.endswith("bias"):
            np.testing.assert_array_equal(leaf, 0.0)
        else:
            # Moments of a normal distribution, each within five standard errors.
            z = leaf / std[name]
            assert abs(z.mean()) < 5 / math.sqrt(z.size), name
            assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / z.size), name
            assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / z.size), name


def test_no_two_layers_start_alike():
    for name, leaf in reference.float64(start(0)).items():
        if name.startswith("blocks.") and name.endswith("kernel"):
            correlation = np.corrcoef(leaf.reshape(START.n_layer, -1))
            assert np.abs(correlation - np.eye(START.n_layer)).max() < 0.05, name


def test_initial_loss_is_near_log_vocabulary():
    """Logits start with a variance of 0.02^2 d_model, and half of it is added to log V."""
    graphdef = reference.random_model(START)[0]
    tokens, targets = np.random.default_rng(5).integers(0, START.vocab_size, (2, 16, 64))
    logits = reference.model_logits(graphdef, start(0), tokens, targets)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    loss = -np.take_along_axis(log_p, targets[..., None], -1).mean()
    assert loss == pytest.approx(math.log(512) + 0.02**2 * 96 / 2, abs=0.03)


def test_seeds_initialised_together_equal_each_alone():
    for seed in range(3):
        for name, leaf in reference.numpy(start(seed)).items():
            np.testing.assert_array_equal(start_together()[name][seed], leaf, err_msg=name)


def test_seeds_differ():
    for name, leaf in start_together().items():
        if not name.endswith(("bias", "scale")):
            assert (leaf[0] != leaf[1]).mean() > 0.9 and (leaf[1] != leaf[2]).mean() > 0.9, name


# Parameters.


def test_block_parameters_lead_with_the_layer_axis():
    spec = TransformerSpec(
        n_layer=5, d_model=12, n_head=2, d_ff=7, d_attn=6, n_ctx=9, vocab_size=11, tied_head=False
    )
    state = reference.random_model(spec)[1]
    assert {name: leaf.shape for name, leaf in reference.named(state).items()} == {
        "embed.embedding": (11, 12),
        "position": (9, 12),
        "head.kernel": (12, 11),
        "norm_final.scale": (12,),
        "norm_final.bias": (12,),
        "blocks.norm_attention.scale": (5, 12),
        "blocks.norm_attention.bias": (5, 12),
        "blocks.attention.qkv.kernel": (5, 12, 3, 2, 3),
        "blocks.attention.qkv.bias": (5, 3, 2, 3),
        "blocks.attention.out.kernel": (5, 2, 3, 12),
        "blocks.attention.out.bias": (5, 12),
        "blocks.norm_feed_forward.scale": (5, 12),
        "blocks.norm_feed_forward.bias": (5, 12),
        "blocks.feed_forward.up.kernel": (5, 12, 7),
        "blocks.feed_forward.up.bias": (5, 7),
        "blocks.feed_forward.down.kernel": (5, 7, 12),
        "blocks.feed_forward.down.bias": (5, 12),
    }


def test_switches_remove_parameters():
    def names(**switches):
        return set(reference.named(reference.random_model(spec_of(**switches))[1]))

    assert "head.kernel" not in names()
    assert not [name for name in names(bias=False, tied_head=False) if name.endswith("bias")]
    assert not [name for name in names(norm="post") if name.startswith("norm_final")]
    assert names(reuse=4) == names()


def test_weights_are_counted_as_by_kaplan():
    """Kaplan Table 1: N = 2 d_model n_layer (2 d_attn + d_ff), biases and norms left out."""
    spec = TransformerSpec(n_layer=6, d_model=384, n_ctx=1024, vocab_size=50_257)
    shapes = nnx.state(nnx.eval_shape(lambda: spec.module(nnx.Rngs(params=0))))
    kernels = [x.size for name, x in reference.named(shapes).items() if name.endswith("kernel")]
    assert sum(kernels) == 10_616_832


def test_what_is_not_a_model_is_refused():
    with pytest.raises(SpecError, match=r"kind must be one of .*lstm, transformer, not None"):
        ModelSpec.from_dict({"n_layer": 2})


# Dropout.


def dropping(spec: TransformerSpec):
    """A compiled function from a dropout key to logits."""
    graphdef, state = reference.random_model(spec)
    tokens, _ = reference.batch(spec)
    return quick(lambda key: nnx.merge(graphdef, state)(tokens, dropout_key=key))


def test_no_dropout_without_a_key():
    """Not even a trace of it: the program is the one without dropout."""
    without, unused = (dropping(spec_of(dropout=rate)).lower(None) for rate in (0.0, 0.3))
    assert unused.as_text() == without.as_text()
    no_rate = dropping(spec_of()).lower(jax.random.key(0))
    assert "xor" not in no_rate.as_text()  # nothing random where the rate is 0


def test_dropout_depends_on_the_key_alone():
    _, _, without, _ = evaluated(spec_of())
    compute = dropping(spec_of(dropout=0.3))
    first, second = (np.asarray(compute(jax.random.key(seed))) for seed in range(2))
    np.testing.assert_array_equal(first, compute(jax.random.key(0)))
    assert deviation(first, without) > 0.01
    assert deviation(second, first) > 0.01


def test_dropout_keeps_the_mean_and_draws_for_every_element():
    x = jnp.ones((16, 64, 64))
    drop = quick(dropout, static_argnums=1)
    y = np.asarray(drop(x, 0.25, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(y), [0.0, 4 / 3], rtol=1e-6)
    # An element has variance p / (1 - p); five standard errors.
    assert abs(y.mean() - 1) < 5 * math.sqrt(0.25 / 0.75 / y.size)
    for axis in range(3):
        agreement = (np.take(y, 0, axis) == np.take(y, 1, axis)).mean()
        assert abs(agreement - (0.75**2 + 0.25**2)) < 0.1, axis
    assert dropout(x, 0.0, jax.random.key(0)) is x
    assert dropout(x, 0.25, None) is x
    keys = jax.random.split(jax.random.key(1), 2)
    packed = quick(jax.vmap(lambda key: dropout(x.astype(jnp.bfloat16), 0.25, key)))(keys)
    assert packed.dtype == jnp.bfloat16
    for key, together in zip(keys, packed, strict=True):
        np.testing.assert_array_equal(together != 0, drop(x, 0.25, key) != 0)


@pytest.mark.parametrize("name", ["wide-attention-reuse-stack", "wide-attention-reuse-layer"])
def test_every_place_of_dropout_has_its_own_key(name, monkeypatch):
    """The embedding, and both branches of every application of every block."""
    spec = spec_of(**SWITCHES[name], dropout=0.3)
    seen = []

    def spy(x, rate, key):
        assert rate == 0.3 and x.shape == (BATCH, TIME, spec.d_model)
        jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))
        return dropout(x, rate, key)

    monkeypatch.setattr(transformer, "dropout", spy)
    dropping(spec)(jax.random.key(0)).block_until_ready()
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == 1 + 2 * spec.depth
