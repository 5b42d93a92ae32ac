"""Parameter and FLOP counts against the papers' tables, the models themselves and XLA."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from lmscale.architectures import LlamaSpec
from lmscale.flops import (
    CONVENTIONS,
    Operation,
    chinchilla_flops_per_token,
    chinchilla_table_a9_params,
    n_params,
    operations,
    training_flops,
    training_flops_per_token,
)
from lmscale.spec import (
    DataSpec,
    LSTMSpec,
    OptimizerSpec,
    RunSpec,
    ScheduleSpec,
    TransformerSpec,
)
from lmscale.training.loss import token_losses

# Kaplan et al. 2020: (n_layer, d_model), N, attention over the context / 2N, embedding parameters,
# all parameters, for n_ctx 1024 and a vocabulary of 50257.
KAPLAN_SHAPES = [
    (1, 8, 768, 10.7, 410_248, 411_016),
    (2, 128, 393_216, 0.667, 6_563_968, 6_957_184),
    (4, 256, 3_145_728, 0.333, 13_127_936, 16_273_664),
    (8, 512, 25_165_824, 0.167, 26_255_872, 51_421_696),
    (12, 768, 84_934_656, 0.111, 39_383_808, 124_318_464),
    (24, 1024, 301_989_888, 0.083, 52_511_744, 354_501_632),
    (36, 1280, 707_788_800, 0.067, 65_639_680, 773_428_480),
    (48, 1600, 1_474_560_000, 0.053, 82_049_600, 1_556_609_600),
    (6, 4288, 1_323_859_968, 0.020, 219_892_928, 1_543_752_896),
    (207, 768, 1_465_122_816, 0.111, 39_383_808, 1_504_506_624),
]

# Kaplan et al. 2020, Fig. 7: n_layer, d_hidden, N.
KAPLAN_LSTMS = [
    (1, 32, 86_784),
    (1, 64, 181_248),
    (1, 128, 394_752),
    (1, 256, 920_064),
    (1, 512, 2_363_904),
    (1, 1024, 6_824_448),
    (1, 2048, 22_036_992),
    (1, 4096, 77_627_904),
    (2, 32, 95_232),
    (2, 64, 214_528),
    (2, 128, 526_848),
    (2, 256, 1_446_400),
    (2, 512, 4_465_152),
    (2, 1024, 15_221_248),
    (2, 2048, 55_607_808),
    (2, 4096, 211_878_400),
    (4, 256, 2_499_072),
    (4, 512, 8_667_648),
    (4, 1024, 32_014_848),
    (4, 2048, 122_749_440),
]

# Hoffmann et al. 2022, Table A9: parameters in millions, d_model, d_ff, key size, heads, layers.
CHINCHILLA_SHAPES = [
    (44, 512, 2048, 64, 8, 8),
    (57, 576, 2304, 64, 9, 9),
    (74, 640, 2560, 64, 10, 10),
    (90, 640, 2560, 64, 10, 13),
    (106, 640, 2560, 64, 10, 16),
    (117, 768, 3072, 64, 12, 12),
    (140, 768, 3072, 64, 12, 15),
    (163, 768, 3072, 64, 12, 18),
    (175, 896, 3584, 64, 14, 14),
    (196, 896, 3584, 64, 14, 16),
    (217, 896, 3584, 64, 14, 18),
    (251, 1024, 4096, 64, 16, 16),
    (278, 1024, 4096, 64, 16, 18),
    (306, 1024, 4096, 64, 16, 20),
    (425, 1280, 5120, 128, 10, 18),
    (489, 1280, 5120, 128, 10, 21),
    (509, 1408, 5632, 128, 11, 18),
    (552, 1280, 5120, 128, 10, 24),
    (587, 1408, 5632, 128, 11, 21),
    (632, 1536, 6144, 128, 12, 19),
    (664, 1408, 5632, 128, 11, 24),
    (724, 1536, 6144, 128, 12, 22),
    (816, 1536, 6144, 128, 12, 25),
    (893, 1792, 7168, 128, 14, 20),
    (1018, 1792, 7168, 128, 14, 23),
    (1143, 1792, 7168, 128, 14, 26),
    (1266, 2048, 8192, 128, 16, 22),
    (1424, 2176, 8704, 128, 17, 22),
    (1429, 2048, 8192, 128, 16, 25),
    (1593, 2048, 8192, 128, 16, 28),
    (1609, 2176, 8704, 128, 17, 25),
    (1731, 2304, 9216, 128, 18, 24),
    (1794, 2176, 8704, 128, 17, 28),
    (2007, 2304, 9216, 128, 18, 28),
    (2283, 2304, 9216, 128, 18, 32),
    (2298, 2560, 10240, 128, 20, 26),
    (2639, 2560, 10240, 128, 20, 30),
    (2980, 2560, 10240, 128, 20, 34),
    (3530, 2688, 10752, 128, 22, 36),
    (3802, 2816, 11264, 128, 22, 36),
    (4084, 2944, 11776, 128, 22, 36),
    (4516, 3072, 12288, 128, 24, 36),
    (6796, 3584, 14336, 128, 28, 40),
    (9293, 4096, 16384, 128, 32, 42),
    (11452, 4352, 17408, 128, 32, 47),
    (12295, 4608, 18432, 128, 36, 44),
    (12569, 4608, 18432, 128, 32, 47),
    (13735, 4864, 19456, 128, 32, 47),
    (14940, 4992, 19968, 128, 32, 49),
    (16183, 5120, 20480, 128, 40, 47),
]

# Hoffmann et al. 2022, Table A4: layers, d_model, d_ff, heads, key size, FLOPs / 6ND.
CHINCHILLA_RATIOS = [
    (10, 640, 2560, 10, 64, 1.03),
    (20, 1024, 4096, 16, 64, 1.10),
    (24, 1280, 5120, 10, 128, 1.08),
    (26, 1792, 7168, 14, 128, 1.04),
    (28, 2048, 8192, 16, 128, 1.03),
    (40, 3584, 14336, 28, 128, 0.99),
]


def transformer(**changes):
    fields = {"n_layer": 2, "d_model": 64, "n_ctx": 64, "vocab_size": 256}
    return TransformerSpec(**{**fields, **changes})


def lstm(**changes):
    fields = {"n_layer": 2, "d_hidden": 48, "d_embed": 64, "n_ctx": 16, "vocab_size": 256}
    return LSTMSpec(**{**fields, **changes})


def llama(**changes):
    fields = {"n_layer": 2, "d_model": 64, "n_head": 4, "n_ctx": 64, "vocab_size": 256}
    return LlamaSpec(**{**fields, **changes})


# One of each switch that changes what a model stores or computes.
MODELS = {
    "standard": transformer(),
    "free widths": transformer(d_model=48, d_attn=32, d_ff=80, n_head=4),
    "no bias": transformer(bias=False, n_layer=3),
    "untied head": transformer(tied_head=False),
    "relu": transformer(activation="relu"),
    "post-norm": transformer(norm="post", n_ctx=32),
    "recurrent": transformer(reuse=3),
    "recurrent by layer": transformer(reuse=2, reuse_order="layer", bias=False),
    "universal": transformer(reuse=3, n_layer=1, norm="post", step_signal="sinusoidal"),
    "signal by layer": transformer(reuse=2, reuse_order="layer", step_signal="sinusoidal"),
    "lstm": lstm(),
    "one layer": lstm(n_layer=1),
    "four layers": lstm(n_layer=4, d_hidden=32),
    "lstm, untied head": lstm(tied_head=False),
    "no projection": lstm(projection=False, tied_head=False),
    "no projection, tied": lstm(projection=False, d_hidden=64),
    "llama": llama(),
    "grouped queries": llama(n_kv_head=1, tied_head=True, n_layer=3),
    "qk-norm": llama(qk_norm=True, d_head=8),
}

each_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS.keys())
each_model_slowly = pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            model, marks=[] if name in ("standard", "lstm", "llama") else pytest.mark.slow, id=name
        )
        for name, model in MODELS.items()
    ],
)


@pytest.mark.parametrize(
    ("n_layer", "d_model", "N", "context", "embedding", "total"), KAPLAN_SHAPES
)
def test_kaplan_table_1(n_layer, d_model, N, context, embedding, total):
    model = TransformerSpec(n_layer=n_layer, d_model=d_model, n_ctx=1024, vocab_size=50_257)
    counts = operations(model)
    assert n_params(model, "kaplan") == N
    assert counts["embedding"].params + counts["position"].params == embedding
    assert N + counts["embedding"].params + counts["position"].params == total
    # Table 1 counts the causal half of the scores.
    half = counts["attention_scores"].forward_flops / 2
    assert half == 2 * n_layer * 1024 * d_model
    assert half / (2 * N) == pytest.approx(context, rel=0.02)
    assert training_flops_per_token(model, "kaplan") == 6 * N


def test_kaplan_counts_free_widths():
    model = TransformerSpec(
        n_layer=3, d_model=10, d_attn=6, d_ff=14, n_head=2, n_ctx=8, vocab_size=5
    )
    assert n_params(model, "kaplan") == 2 * 10 * 3 * (2 * 6 + 14)


@pytest.mark.parametrize(("n_layer", "d_hidden", "N"), KAPLAN_LSTMS)
def test_kaplan_lstm_parameters(n_layer, d_hidden, N):
    model = LSTMSpec(n_layer=n_layer, d_hidden=d_hidden, n_ctx=1024, vocab_size=50_257)
    assert n_params(model, "kaplan") == N
    assert training_flops_per_token(model, "kaplan") == 6 * N


def test_there_are_20_lstms_and_50_chinchilla_shapes():
    assert len(set(KAPLAN_LSTMS)) == 20
    assert len(set(CHINCHILLA_SHAPES)) == 50


@pytest.mark.parametrize(
    ("millions", "d_model", "d_ff", "d_key", "n_head", "n_layer"), CHINCHILLA_SHAPES
)
def test_chinchilla_table_a9(millions, d_model, d_ff, d_key, n_head, n_layer):
    counted = chinchilla_table_a9_params(d_model, d_ff, d_key * n_head, n_layer)
    assert round(abs(counted / (1e6 * millions) - 1), 3) <= 0.008


@pytest.mark.parametrize(
    ("n_layer", "d_model", "d_ff", "n_head", "d_key", "ratio"), CHINCHILLA_RATIOS
)
def test_chinchilla_table_a4(n_layer, d_model, d_ff, n_head, d_key, ratio):
    """The printed ratios need the V d terms left out of the FLOPs (though not out of N)."""
    d_attn = n_head * d_key
    model = TransformerSpec(
        n_layer=n_layer,
        d_model=d_model,
        d_ff=d_ff,
        d_attn=d_attn,
        n_head=n_head,
        n_ctx=2048,
        vocab_size=32_000,
    )
    N = chinchilla_table_a9_params(d_model, d_ff, d_attn, n_layer)
    counted = chinchilla_flops_per_token(model, vocabulary=False) / (6 * N)
    assert round(counted, 2) == ratio
    with_vocabulary = training_flops_per_token(model, "chinchilla") / (6 * N)
    assert with_vocabulary > ratio + 0.03


def test_chinchilla_follows_the_list_of_appendix_f():
    """The appendix counts a sequence; here every line of it, for two layers applied three times."""
    model = TransformerSpec(
        n_layer=2, d_model=40, d_ff=56, d_attn=24, n_head=3, n_ctx=16, vocab_size=11, reuse=3
    )
    s, V, d, kh, h, ffw = 16, 11, 40, 24, 3, 56
    embeddings = 2 * s * V * d
    attention = (
        2 * 3 * s * d * kh + 2 * s * s * kh + 3 * h * s * s + 2 * s * s * kh + 2 * s * kh * d
    )
    dense = 2 * s * (d * ffw + d * ffw)
    logits = 2 * s * d * V
    layers = 2 * 3 * (attention + dense)
    assert training_flops_per_token(model, "chinchilla") * s == 3 * (embeddings + layers + logits)
    assert chinchilla_flops_per_token(model, vocabulary=False) * s == 3 * layers


def test_chinchilla_counts_an_lstm_by_its_matmuls():
    h, e, V = 48, 64, 256
    matrices = 4 * h * (e + h) + 4 * h * (h + h) + h * e
    model = lstm(d_hidden=h, d_embed=e, vocab_size=V)
    assert training_flops_per_token(model, "chinchilla") == 6 * (matrices + 2 * e * V)
    assert n_params(model, "chinchilla") == n_params(model, "kaplan") + e * V


def test_vocabulary_in_each_convention():
    """A tied matrix is stored once and does the work of two."""
    d, V = 64, 256
    tied, untied = transformer(), transformer(tied_head=False)
    N = n_params(tied, "kaplan")
    assert N == n_params(untied, "kaplan") == 12 * 2 * d**2
    assert n_params(tied, "standard") == n_params(untied, "standard") == N + d * V
    assert n_params(tied, "chinchilla") == N + d * V
    assert n_params(untied, "chinchilla") == N + 2 * d * V
    assert n_params(untied, "exact") == n_params(tied, "exact") + d * V
    for convention in CONVENTIONS:
        counted = training_flops_per_token(tied, convention)
        assert counted == training_flops_per_token(untied, convention)
    assert training_flops_per_token(tied, "standard") == 6 * (N + d * V)


def test_standard_counts_the_head_at_the_width_that_it_reads():
    model = lstm(projection=False, tied_head=False, d_hidden=48, vocab_size=256)
    assert n_params(model, "standard") == n_params(model, "kaplan") + 48 * 256


def test_reuse_multiplies_flops_and_not_parameters():
    """Three uses of two layers compute what six layers do, and store what two do."""
    shared = transformer(n_layer=2, reuse=3)
    stored, computed = transformer(n_layer=2), transformer(n_layer=6)
    for convention in CONVENTIONS:
        assert n_params(shared, convention) == n_params(stored, convention)
        counted = training_flops_per_token(shared, convention)
        assert counted == training_flops_per_token(computed, convention)
        assert counted > training_flops_per_token(stored, convention)


@pytest.mark.parametrize(("order", "n_signals"), [("stack", 3), ("layer", 6)])
def test_step_signal_is_added_before_each_pass_or_each_layer(order, n_signals):
    """Too little for XLA's count to tell: n_signals d for the signal, d for learned positions."""
    model = transformer(n_layer=2, reuse=3, reuse_order=order)
    signalled = dataclasses.replace(model, step_signal="sinusoidal")
    assert operations(model)["position"].forward_flops == 64
    assert operations(signalled)["position"].forward_flops == (1 + n_signals) * 64
    assert n_params(signalled, "exact") == n_params(model, "exact")


def test_training_flops_of_a_run():
    run = RunSpec(
        model=transformer(),
        data=DataSpec(corpus="text", fingerprint="0"),
        optimizer=OptimizerSpec(peak_lr=1e-3),
        schedule=ScheduleSpec(),
        batch_size=8,
        steps=100,
    )
    D = 8 * 64 * 100
    assert training_flops(run, "kaplan") == 6 * n_params(run.model, "kaplan") * D
    for convention in CONVENTIONS:
        assert training_flops(run, convention) == D * training_flops_per_token(
            run.model, convention
        )


@pytest.mark.parametrize("count", [n_params, training_flops_per_token])
def test_unknown_conventions_are_refused(count):
    with pytest.raises(ValueError, match="kaplan, chinchilla, standard, exact, not '6nd'"):
        count(transformer(), "6nd")


@each_model
def test_raw_counts_are_plain_numbers(model):
    """They are stored in a run's result as JSON."""
    for name, operation in operations(model).items():
        assert isinstance(operation, Operation), name
        assert type(operation.params) is int, name
        assert type(operation.forward_flops) is float, name
        assert type(operation.backward_flops) is float, name


@each_model
def test_exact_parameters_are_those_of_the_model(model):
    built = nnx.eval_shape(lambda: model.module(nnx.Rngs(0)))
    stored = sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(built, nnx.Param)))
    assert n_params(model, "exact") == stored


def lower_gradient(model, batch, n_time):
    """The gradient of the training loss at unrolled layers, lowered by XLA for CPU."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: model.module(nnx.Rngs(0), unroll=True)))
    tokens = jax.ShapeDtypeStruct((batch, n_time), jnp.int32)

    def loss(params, inputs, targets):
        logits = nnx.merge(graphdef, params)(inputs)
        return token_losses(logits, targets).mean()

    return jax.jit(jax.grad(loss)).lower(params, tokens, tokens)


def xla_flops_per_token(model, *, compiled):
    """XLA's own count of the gradient's FLOPs per token of a full context.

    XLA counts the body of a loop once, however often it runs. A Transformer's layers are unrolled,
    so nothing is lost. An LSTM's time steps cannot be: unrolled, the copies of its stacked outputs
    are counted as work that grows with the square of their number. But in the counts at two context
    lengths the slope is the work outside the loops per time step, and what remains at length zero
    is one pass through the bodies of all loops; a time step costs their sum.

    The batch is large enough for the work done once a step (adding up the gradients of a shared
    matrix, cutting layers out of their stack), which `operations` leaves out, to vanish.
    """
    batch = 64

    def count(n_time):
        lowered = lower_gradient(model, batch, n_time)
        analysis = (lowered.compile() if compiled else lowered).cost_analysis()
        return analysis["flops"] / batch

    if not isinstance(model, LSTMSpec):
        return count(model.n_ctx) / model.n_ctx
    short, long = model.n_ctx // 2, model.n_ctx
    outside = (count(long) - count(short)) / (long - short)
    inside = count(short) - short * outside
    return outside + inside


@each_model_slowly
def test_exact_flops_agree_with_xla_before_compilation(model):
    """To 0.2%, where elementwise work is 1.5 to 5.5% of all: the program as it is written."""
    counted = training_flops_per_token(model, "exact")
    assert counted == pytest.approx(xla_flops_per_token(model, compiled=False), rel=0.002)


@pytest.mark.parametrize(
    "model",
    [
        transformer(),
        *(
            pytest.param(model, marks=pytest.mark.slow)
            for model in (
                lstm(),
                transformer(d_model=32, n_ctx=128, n_head=2, vocab_size=512),
                transformer(
                    d_model=48, d_attn=32, d_ff=96, reuse=2, activation="relu", tied_head=False
                ),
                llama(n_kv_head=2),
            )
        ),
    ],
    ids=["transformer", "lstm", "long context", "recurrent", "llama"],
)
def test_exact_flops_agree_with_the_compiled_gradient(model):
    """Within 2%; fusion computes some elementwise work twice, so the compiled count is above.

    No step signal here: the CPU compiler writes sines out as polynomials and counts those.
    """
    counted = training_flops_per_token(model, "exact")
    assert counted == pytest.approx(xla_flops_per_token(model, compiled=True), rel=0.02)
