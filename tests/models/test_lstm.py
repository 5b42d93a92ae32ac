"""The LSTM computes the textbook's function, its hand-written derivative is the derivative."""

from __future__ import annotations

import dataclasses
import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmscale.models import lstm
from lmscale.models.layers import dropout
from lmscale.models.lstm import recurrence
from lmscale.parallel import partition
from lmscale.spec import LSTMSpec
from lmscale.sweep import LSTM_INIT
from tests.models import reference
from tests.models.reference import BATCH, TIME, deviation, distance, evaluated, quick

#: Every switch at least once; n_ctx is longer than the input throughout.
SWITCHES = {
    "one-layer": {"n_layer": 1},
    "three-layers": {"n_layer": 3},
    "no-projection": {"projection": False, "d_hidden": 6},
    "untied": {"tied_head": False, "n_layer": 1},
}


def spec_of(**switches) -> LSTMSpec:
    shape = {"n_layer": 2, "d_hidden": 9, "d_embed": 6, "n_ctx": 8, "vocab_size": 13}
    return LSTMSpec(**{**shape, **switches})


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


@pytest.mark.parametrize("n_layer", [1, 3])
def test_a_token_never_changes_earlier_logits(n_layer):
    spec = spec_of(n_layer=n_layer)
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
        # It does change its own logits and all later ones: the state carries it on.
        assert (np.abs(before - after)[:, t:].max(-1) > 1e-5).all(), t


def test_scanned_layers_equal_unrolled_layers():
    spec = spec_of(n_layer=3)
    _, _, scanned, scanned_gradients = evaluated(spec)
    _, _, unrolled, unrolled_gradients = evaluated(spec, unroll=True)
    assert deviation(unrolled, scanned) < 2e-6
    for name, gradient in scanned_gradients.items():
        assert deviation(unrolled_gradients[name], gradient) < 5e-6, name


# The recurrence.


def plain_recurrence(gates, kernel, begins):
    """The equations in the docstring of `recurrence`, with nothing saved or derived by hand.

    `begins` [time, batch]: whether the state is zero before a time step.
    """

    def step(carry, xs):
        gates_t, begins_t = xs
        h, c = (jnp.where(begins_t[:, None], 0.0, x) for x in carry)
        z = gates_t + jnp.einsum("bh,hgk->bgk", h, kernel)
        i, f, g, o = z[:, 0], z[:, 1], z[:, 2], z[:, 3]
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    zeros = jnp.zeros((gates.shape[1], gates.shape[3]), gates.dtype)
    return jax.lax.scan(step, (zeros, zeros), (gates, begins))[1]


def draw_recurrence(n_time: int, *runs: int):
    """Gates [*runs, time, 3, 4, 5], kernel [*runs, 5, 4, 5], weights of the states in a loss."""
    rng = np.random.default_rng(n_time)
    shapes = ((n_time, 3, 4, 5), (5, 4, 5), (n_time, 3, 5))
    return tuple(rng.standard_normal((*runs, *shape)).astype(np.float32) for shape in shapes)


def weighted(cell):
    """Value and gradients, with respect to gates and kernel, of a weighted sum of the states."""

    def total(gates, kernel, weights):
        return (cell(gates, kernel) * weights).sum()

    return jax.value_and_grad(total, argnums=(0, 1))


@pytest.mark.parametrize("rebuild", [False, True], ids=["gates-saved", "gates-rebuilt"])
@pytest.mark.parametrize("documents", [False, True], ids=["one-document", "documents"])
def test_derivative_equals_autodiff_of_the_plain_recurrence_in_float64(rebuild, documents):
    """Of three runs, alone and under vmap, each with a kernel of its own."""
    begins = np.zeros((7, 3), bool)
    if documents:
        # Rows differ, and one has two documents that are next to each other.
        begins[[0, 2, 3, 5, 6], [0, 0, 0, 1, 1]] = True
    keep = 1.0 - begins[:, :, None].astype(np.float32) if documents else None

    def cell(gates, kernel):
        return recurrence(gates, kernel, rebuild, keep)

    def plain(gates, kernel):
        return plain_recurrence(gates, kernel, begins)

    arguments = draw_recurrence(7, 3)
    with jax.enable_x64(True):
        wide = [jnp.asarray(x, jnp.float64) for x in arguments]
        true_values, truths = jax.device_get(quick(jax.vmap(weighted(plain)))(*wide))
        assert truths[0].dtype == truths[1].dtype == np.float64
    packed_values, packed = jax.device_get(quick(jax.vmap(weighted(cell)))(*arguments))
    alone = quick(weighted(cell))
    for run in range(3):
        value, gradients = alone(*(x[run] for x in arguments))
        assert float(value) == pytest.approx(true_values[run], rel=2e-6)
        assert packed_values[run] == pytest.approx(true_values[run], rel=2e-6)
        for ours, together, truth in zip(gradients, packed, truths, strict=True):
            assert deviation(ours, truth[run]) < 2e-6
            assert deviation(together[run], truth[run]) < 2e-6


def test_rebuilt_gates_round_as_saved_ones_do():
    """The derivative of the gates in bfloat16 is off from float32 by the same, within its own rounding."""
    gates, kernel, weights = draw_recurrence(32)
    given = jnp.asarray(gates, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16), weights

    def derivative(rebuild, *arguments):
        cell = weighted(lambda gates, kernel: recurrence(gates, kernel, rebuild))
        return np.asarray(quick(cell)(*arguments)[1][0], np.float32)

    exact = derivative(False, *(x.astype(jnp.float32) for x in given))
    saved, rebuilt = (distance(derivative(rebuild, *given), exact) for rebuild in (False, True))
    assert rebuilt < 1.1 * saved < 0.03


@pytest.mark.parametrize("platform", ["cpu", "gpu", "cuda", "tpu"])
def test_only_a_gpu_rebuilds_the_gates(monkeypatch, platform):
    devices = np.array([types.SimpleNamespace(platform=platform)]).reshape(1, 1, 1)
    mesh = types.SimpleNamespace(devices=devices, shape={"run": 1, "data": 1, "model": 1}, size=1)
    asked = []

    def seen(gates, kernel, rebuild, keep):
        assert keep is None
        asked.append(rebuild)
        return gates[..., : kernel.shape[0]]

    monkeypatch.setattr(lstm, "recurrence", seen)
    graphdef, state = reference.random_model(spec_of())
    with partition.on_mesh(mesh):
        jax.eval_shape(lambda: nnx.merge(graphdef, state)(jnp.zeros((2, 8), jnp.int32)))
    assert set(asked) == {platform in ("gpu", "cuda")}


def test_packed_models_equal_each_alone():
    """The whole model under the run axis, as training has it: one program, a state for each run."""
    spec = spec_of(n_layer=3)
    graphdef, first = reference.random_model(spec)
    states = [first, reference.random_model(spec, seed=1)[1]]
    packed = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
    tokens, targets = reference.batch(spec)

    def gradient(state):
        return jax.grad(lambda s: reference.loss_and_logits(graphdef, s, tokens, targets)[0])(state)

    together = reference.numpy(quick(jax.vmap(gradient))(packed))
    for run, state in enumerate(states):
        gradients = reference.model_gradients(graphdef, state, tokens, targets)[1]
        for name, truth in reference.numpy(gradients).items():
            assert deviation(together[name][run], truth) < 5e-6, name


# Precision.


def test_bfloat16_stays_near_float32():
    """Logits and gradients within 3% (root mean square) of float32."""
    _, _, full, full_gradients = evaluated(spec_of(n_layer=3))
    _, _, half, half_gradients = evaluated(spec_of(n_layer=3), dtype="bfloat16")
    assert half.dtype == np.float32
    assert 1e-4 < distance(half, full) < 0.03
    for name, gradient in full_gradients.items():
        assert half_gradients[name].dtype == np.float32, name
        assert distance(half_gradients[name], gradient) < 0.03, name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_are_float32(dtype):
    state = reference.random_model(spec_of(tied_head=False), dtype=dtype)[1]
    assert {leaf.dtype for leaf in reference.named(state).values()} == {np.dtype("float32")}


def test_cell_state_is_float32_under_bfloat16():
    """512 increments of 2^-9 add up to 1; a bfloat16 sum would stall at 1/2."""
    gates = np.zeros((512, 1, 4, 1))
    gates[:, :, [0, 1, 3]] = 30.0  # input, forget and output gate open
    gates[:, :, 2] = math.atanh(2**-9)
    hidden = quick(recurrence)(jnp.asarray(gates, jnp.bfloat16), jnp.zeros((1, 4, 1), jnp.bfloat16))
    assert hidden.dtype == jnp.bfloat16
    assert float(np.asarray(hidden)[-1, 0, 0]) == pytest.approx(math.tanh(1.0), rel=0.01)


# The initialisation.

START = LSTMSpec(n_layer=3, d_hidden=48, d_embed=96, n_ctx=32, vocab_size=256, tied_head=False)


def initial(seed):
    return nnx.state(START.module(nnx.Rngs(params=jax.random.key(seed))))


#: From a seed to a state.
start = quick(initial)


@functools.cache
def start_together():
    """Three seeds in one program, as a pack of runs is initialised."""
    return reference.numpy(quick(jax.vmap(initial))(np.arange(3)))


def test_initial_statistics():
    """Kernels N(0, 1/fan-in), embedding N(0, 0.02), bias of the forget gate 1, all others 0."""
    std = {
        "embed.embedding": 0.02,
        "head.kernel": 0.02,
        "first.input_kernel": 1 / math.sqrt(START.d_embed),
        "first.recurrent_kernel": 1 / math.sqrt(START.d_hidden),
        "rest.input_kernel": 1 / math.sqrt(START.d_hidden),
        "rest.recurrent_kernel": 1 / math.sqrt(START.d_hidden),
        "projection.kernel": 1 / math.sqrt(START.d_hidden),
    }
    leaves = reference.float64(start(0))
    biases = {name for name in leaves if name.endswith("bias")}
    assert set(leaves) == set(std) | biases
    for name, expected in std.items():
        # Moments of a normal distribution, each within five standard errors.
        z = leaves[name] / expected
        assert abs(z.mean()) < 5 / math.sqrt(z.size), name
        assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / z.size), name
        assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / z.size), name
    for layer in ("first", "rest"):
        total = leaves[f"{layer}.input_bias"] + leaves[f"{layer}.recurrent_bias"]
        expected = np.broadcast_to(np.array([0.0, 1.0, 0.0, 0.0])[:, None], total.shape)
        np.testing.assert_array_equal(total, expected)
    np.testing.assert_array_equal(leaves["projection.bias"], 0.0)


def test_the_default_initialisation_is_that_of_older_runs():
    """A default once released is never changed."""
    spec = LSTMSpec(n_layer=1, d_hidden=8, n_ctx=8, vocab_size=32)
    assert (spec.embed_std, spec.projection_gain) == (0.02, 1.0)


@pytest.mark.parametrize(
    ("tied_head", "projection"),
    [
        (True, True),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in ((True, False), (False, True), (False, False))
        ),
    ],
)
def test_the_spec_scales_embedding_head_and_projection_and_nothing_else(projection, tied_head):
    shape = {"d_hidden": 24, "d_embed": 16 if projection or not tied_head else 24}
    spec = LSTMSpec(
        n_layer=2, n_ctx=8, vocab_size=64, projection=projection, tied_head=tied_head, **shape
    )
    gain = {"projection_gain": 2.0} if projection else {}

    def leaves(spec):
        return reference.float64(quick(lambda: nnx.state(spec.module(nnx.Rngs(params=0))))())

    before = leaves(spec)
    after = leaves(dataclasses.replace(spec, embed_std=None, **gain))
    scales = {
        "embed.embedding": spec.d_embed**-0.5 / 0.02,
        "head.kernel": (spec.d_embed if projection else spec.d_hidden) ** -0.5 / 0.02,
        "projection.kernel": 2.0,
    }
    for name, leaf in before.items():
        expected = scales.get(name, 1.0) * leaf
        np.testing.assert_allclose(after[name], expected, rtol=1e-6, err_msg=name)
    chosen = leaves(dataclasses.replace(spec, embed_std=0.3))
    np.testing.assert_allclose(chosen["embed.embedding"], 15 * before["embed.embedding"], rtol=1e-6)


@pytest.mark.parametrize(("d_hidden", "d_embed"), [(16, 32), (64, 64), (128, 96)])
def test_the_sound_initialisation_keeps_inputs_at_one_and_the_first_loss_near_log_vocabulary(
    d_hidden, d_embed
):
    spec = LSTMSpec(
        n_layer=1, d_hidden=d_hidden, d_embed=d_embed, n_ctx=32, vocab_size=256, **LSTM_INIT
    )
    state = quick(lambda: nnx.state(spec.module(nnx.Rngs(params=1))))()
    inputs = reference.float64(state)["embed.embedding"] * math.sqrt(d_embed)
    assert np.sqrt(np.mean(inputs**2)) == pytest.approx(1.0, abs=0.05)
    graphdef = reference.random_model(spec)[0]
    tokens, targets = np.random.default_rng(5).integers(0, 256, (2, 16, 32))
    logits = reference.model_logits(graphdef, state, tokens, targets)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    loss = -np.take_along_axis(log_p, targets[..., None], -1).mean()
    assert loss == pytest.approx(math.log(256), abs=0.15)


def test_no_two_gates_or_layers_start_alike():
    leaves = reference.float64(start(0))
    for name in ("input_kernel", "recurrent_kernel"):
        kernels = [*leaves[f"rest.{name}"]]
        if name == "recurrent_kernel":
            kernels.append(leaves[f"first.{name}"])
        gates = np.stack([kernel[:, gate].ravel() for kernel in kernels for gate in range(4)])
        assert np.abs(np.corrcoef(gates) - np.eye(len(gates))).max() < 0.1, name


def test_initial_loss_is_near_log_vocabulary():
    graphdef = reference.random_model(START)[0]
    tokens, targets = np.random.default_rng(5).integers(0, START.vocab_size, (2, 16, 32))
    logits = reference.model_logits(graphdef, start(0), tokens, targets)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    loss = -np.take_along_axis(log_p, targets[..., None], -1).mean()
    assert loss == pytest.approx(math.log(256), abs=0.03)


def test_seeds_initialised_together_equal_each_alone():
    for seed in range(3):
        for name, leaf in reference.numpy(start(seed)).items():
            np.testing.assert_array_equal(start_together()[name][seed], leaf, err_msg=name)


def test_seeds_differ():
    for name, leaf in start_together().items():
        if not name.endswith("bias"):
            assert (leaf[0] != leaf[1]).mean() > 0.9 and (leaf[1] != leaf[2]).mean() > 0.9, name


# Parameters.


def test_later_layers_lead_with_the_layer_axis():
    state = reference.random_model(spec_of(n_layer=4))[1]
    assert {name: leaf.shape for name, leaf in reference.named(state).items()} == {
        "embed.embedding": (13, 6),
        "first.input_kernel": (6, 4, 9),
        "first.recurrent_kernel": (9, 4, 9),
        "first.input_bias": (4, 9),
        "first.recurrent_bias": (4, 9),
        "rest.input_kernel": (3, 9, 4, 9),
        "rest.recurrent_kernel": (3, 9, 4, 9),
        "rest.input_bias": (3, 4, 9),
        "rest.recurrent_bias": (3, 4, 9),
        "projection.kernel": (9, 6),
        "projection.bias": (6,),
    }


@pytest.mark.parametrize(
    ("n_layer", "d_hidden", "n_params"),
    [(1, 32, 86_784), (2, 256, 1_446_400), (4, 2048, 122_749_440), (2, 4096, 211_878_400)],
)
def test_parameters_are_counted_as_by_kaplan(n_layer, d_hidden, n_params):
    """Points of Kaplan's Fig. 7; the tied embedding is not counted."""
    spec = LSTMSpec(n_layer=n_layer, d_hidden=d_hidden, n_ctx=1024, vocab_size=50_257)
    shapes = nnx.state(nnx.eval_shape(lambda: spec.module(nnx.Rngs(params=0))))
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert total - 50_257 * 512 == n_params


# Dropout.


def dropping(spec: LSTMSpec):
    """A compiled function from a dropout key to logits."""
    graphdef, state = reference.random_model(spec)
    tokens, _ = reference.batch(spec)
    return quick(lambda key: nnx.merge(graphdef, state)(tokens, dropout_key=key))


def test_no_dropout_without_a_key():
    """Not even a trace of it: the program is the one without dropout."""
    without, unused = (dropping(spec_of(dropout=rate)).lower(None) for rate in (0.0, 0.3))
    assert unused.as_text() == without.as_text()


def test_dropout_depends_on_the_key_alone():
    _, _, without, _ = evaluated(spec_of(n_layer=3))
    compute = dropping(spec_of(n_layer=3, dropout=0.3))
    first, second = (np.asarray(compute(jax.random.key(seed))) for seed in range(2))
    np.testing.assert_array_equal(first, compute(jax.random.key(0)))
    assert deviation(first, without) > 0.01
    assert deviation(second, first) > 0.01


@pytest.mark.parametrize("switches", [{"n_layer": 3}, {"n_layer": 1, "projection": False}])
def test_every_place_of_dropout_has_its_own_key(switches, monkeypatch):
    """The inputs of every layer and of what follows the last; nothing inside the recurrence."""
    spec = spec_of(**switches, tied_head=False, dropout=0.3)
    seen = []

    def spy(x, rate, key):
        assert rate == 0.3 and x.shape[:2] == (TIME, BATCH)
        jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))
        return dropout(x, rate, key)

    monkeypatch.setattr(lstm, "dropout", spy)
    dropping(spec)(jax.random.key(0)).block_until_ready()
    jax.effects_barrier()
    assert len(seen) == len(set(seen)) == spec.n_layer + 1
