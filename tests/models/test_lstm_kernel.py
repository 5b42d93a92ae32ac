"""The LSTM's kernels against its scan and its equations. They are interpreted here; a compiler for GPUs, where it
is installed, says that they fit one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmscale.compat import known_compiler_options
from lmscale.models import lstm
from lmscale.models.lstm import recurrence
from lmscale.models.lstm_kernel import SWITCH, WIDEST, kernel_recurrence, padded, refuses
from lmscale.parallel.mesh import make_mesh
from lmscale.parallel.partition import on_mesh
from lmscale.planner import hlo, topology
from lmscale.planner.devices import parse_devices
from lmscale.serialize import SpecError
from lmscale.spec import LSTMSpec
from lmscale.training.program import build_program, train_arguments
from lmscale.training.state import ProgramKey
from tests.models import reference
from tests.models.reference import deviation, distance, quick
from tests.models.test_lstm import draw_recurrence, plain_recurrence, weighted
from tests.training.specs import run_spec


def by_kernel(gates, kernel, keep=None, mesh=None):
    return kernel_recurrence(gates, kernel, keep, mesh, True)


def by_scan(gates, kernel, keep=None):
    return recurrence(gates, kernel, False, keep)


def problem(d_hidden, n_batch, n_time, runs=()):
    """Gates, kernel, weights of the hidden states in a loss; and where documents begin."""
    rng = np.random.default_rng(d_hidden)
    shape = (*runs, n_time, n_batch)
    gates = rng.normal(size=(*shape, 4 * d_hidden))
    kernel = rng.normal(size=(*runs, d_hidden, 4 * d_hidden)) / np.sqrt(d_hidden)
    weights = rng.normal(size=(*shape, d_hidden))
    keep = rng.random((*shape, 1)) > 0.3
    return tuple(x.astype(np.float32) for x in (gates, kernel, weights)), np.float32(keep)


def gradients(cell, keep):
    """Hidden states, and the gradients with respect to gates, kernel, of a weighted sum of them."""

    def total(gates, kernel, weights, keep):
        hidden = cell(gates, kernel, keep)
        return (hidden * weights).sum(), hidden

    function = jax.value_and_grad(total, (0, 1), has_aux=True)
    return lambda *arguments: function(*arguments, keep)


# Numbers.


@pytest.mark.parametrize(
    ("d_hidden", "n_batch", "n_time", "documents"),
    [
        (16, 16, 5, False),
        (5, 3, 7, True),
        pytest.param(1, 1, 1, False, marks=pytest.mark.slow),
        pytest.param(20, 33, 4, True, marks=pytest.mark.slow),
        pytest.param(100, 17, 9, False, marks=pytest.mark.slow),
        pytest.param(128, 8, 6, True, marks=pytest.mark.slow),
    ],
)
def test_states_and_gradients_are_those_of_the_scan(d_hidden, n_batch, n_time, documents):
    arguments, keep = problem(d_hidden, n_batch, n_time)
    keep = keep if documents else None
    found, expected = (quick(gradients(cell, keep))(*arguments) for cell in (by_kernel, by_scan))
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        if n_time > 1 or np.any(theirs):
            assert deviation(ours, theirs) < 5e-6
        else:
            # Of one time step nothing comes through the recurrent kernel.
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("documents", [False, True], ids=["one-document", "documents"])
def test_a_pack_has_the_derivative_of_the_equations_in_float64(documents):
    """Two runs under vmap, each with a kernel and documents of its own."""
    arguments = draw_recurrence(7, 2)
    begins = np.random.default_rng(0).random((2, 7, 3)) < 0.3 * documents
    keep = jnp.float32(~begins)[..., None]

    def cell(gates, kernel, keep):
        flat = gates.reshape(*gates.shape[:2], -1), kernel.reshape(kernel.shape[0], -1)
        return by_kernel(*flat, keep if documents else None)

    def packed(cell, last):
        def one(gates, kernel, weights, last):
            return weighted(lambda gates, kernel: cell(gates, kernel, last))(gates, kernel, weights)

        return lambda *arguments: jax.vmap(one)(*arguments, last)

    found = jax.device_get(quick(packed(cell, keep))(*arguments))
    with jax.enable_x64(True):
        wide = [jnp.asarray(x, jnp.float64) for x in arguments]
        truth = jax.device_get(quick(packed(plain_recurrence, begins))(*wide))
    for ours, true in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        assert true.dtype == np.float64
        assert deviation(ours, true) < 2e-6


@pytest.mark.slow
def test_padding_to_a_power_of_two_changes_nothing():
    """Not a bit, against arrays that hold the zeros; and what is beside them stays zero."""
    (gates, kernel, weights), keep = problem(5, 3, 4)
    wide = padded(5) - 5
    assert wide == 11

    def with_zeros(x, *axes):
        return np.pad(x, [(0, wide if axis in axes else 0) for axis in range(x.ndim)])

    filled = (
        with_zeros(gates.reshape(4, 3, 4, 5), 3).reshape(4, 3, -1),
        with_zeros(kernel.reshape(5, 4, 5), 0, 2).reshape(16, -1),
        with_zeros(weights, 2),
    )
    (_, hidden), (d_gates, d_kernel) = quick(gradients(by_kernel, keep))(gates, kernel, weights)
    (_, whole), (d_filled, d_square) = quick(gradients(by_kernel, keep))(*filled)
    np.testing.assert_array_equal(whole, with_zeros(np.asarray(hidden), 2))
    d_gates = with_zeros(np.asarray(d_gates).reshape(4, 3, 4, 5), 3)
    np.testing.assert_array_equal(np.asarray(d_filled).reshape(4, 3, 4, 16), d_gates)
    # The matmul outside may sum in another order.
    d_square = np.asarray(d_square).reshape(16, 4, 16)
    np.testing.assert_allclose(d_square[:5, :, :5].reshape(5, -1), d_kernel, atol=1e-6)
    assert not d_square[5:].any() and not d_square[..., 5:].any()


def test_bfloat16_is_no_worse_than_the_scan_in_it():
    arguments, keep = problem(16, 8, 32)
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in arguments]
    exact = quick(gradients(by_scan, keep))(*(x.astype(jnp.float32) for x in rounded))

    def errors(cell):
        found = quick(gradients(cell, keep))(*rounded)
        leaves = jax.tree.leaves(found)[1:]
        assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16")}
        wide = (np.asarray(leaf, np.float32) for leaf in leaves)
        return [distance(a, b) for a, b in zip(wide, jax.tree.leaves(exact)[1:], strict=True)]

    ours, theirs = errors(by_kernel), errors(by_scan)
    assert all(a < 1.1 * b < 0.03 for a, b in zip(ours, theirs, strict=True)), (ours, theirs)


def test_runs_of_a_pack_stay_on_their_own_devices():
    """XLA cannot split a kernel: each device would compute all runs. A backward pass is traced outside of the
    mesh's context, as in training."""
    mesh = make_mesh(4, 1, 1, devices=jax.devices()[:4])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("run"))
    arguments, keep = problem(5, 3, 4, runs=(4,))

    def cell(gates, kernel, keep):
        with on_mesh(mesh):
            return by_kernel(gates, kernel, keep, mesh)

    def one(cell):
        return lambda *arguments: gradients(cell, arguments[3])(*arguments[:3])

    packed = quick(jax.vmap(one(cell), spmd_axis_name="run"), in_shardings=sharding)
    compiled = packed.lower(*arguments, keep).compile()
    text = compiled.as_text()
    assert not any(name in text for name in ("all-gather", "all-reduce", "all-to-all"))
    placed = jax.device_put((*arguments, keep), sharding)
    expected = quick(jax.vmap(one(by_scan)))(*arguments, keep)
    pairs = zip(jax.tree.leaves(compiled(*placed)), jax.tree.leaves(expected), strict=True)
    assert max(deviation(a, b) for a, b in pairs) < 2e-6


# The model.


def spec_of(**switches) -> LSTMSpec:
    shape = {"n_layer": 3, "d_hidden": 9, "d_embed": 6, "n_ctx": 8, "vocab_size": 13}
    return LSTMSpec(**{**shape, **switches})


def asking_for_the_kernel(monkeypatch):
    """Has models that are traced from here on believe that they are for a GPU. Returns what is asked."""
    asked = []

    def interpreted(gates, kernel, keep, mesh):
        asked.append(mesh)
        return kernel_recurrence(gates, kernel, keep, None, True)

    monkeypatch.setenv(SWITCH, "kernel")
    monkeypatch.setattr(lstm, "on_gpu", lambda: True)
    monkeypatch.setattr(lstm, "kernel_recurrence", interpreted)
    return asked


@pytest.mark.parametrize("separator", [None, 3], ids=["one-document", "documents"])
@pytest.mark.slow
def test_a_model_has_the_same_gradients_with_the_kernel(monkeypatch, separator):
    """In the loop over layers, whose first is beside it."""
    spec = spec_of(document_separator=separator)
    tokens, targets = reference.batch(spec)
    tokens = np.where(np.arange(tokens.size).reshape(tokens.shape) % 4 == 2, 3, tokens)

    def evaluated():
        graphdef, state = reference.random_model(spec)
        # Not the function that other tests have traced.
        function = quick(functools.partial(_loss_and_gradients, graphdef))
        return function(state, tokens, targets)

    (loss, logits), expected = evaluated()
    asked = asking_for_the_kernel(monkeypatch)
    (found, ours), gradients = evaluated()
    assert len(asked) == 2
    assert float(found) == pytest.approx(float(loss), rel=2e-6)
    assert deviation(ours, logits) < 2e-6
    truth = reference.numpy(expected)
    for name, gradient in reference.numpy(gradients).items():
        assert deviation(gradient, truth[name]) < 5e-6, name


def _loss_and_gradients(graphdef, state, tokens, targets):
    function = jax.value_and_grad(reference.loss_and_logits, argnums=1, has_aux=True)
    return function(graphdef, state, tokens, targets)


@pytest.mark.parametrize(
    ("change", "kernel"),
    [
        ({}, True),
        ({"d_hidden": WIDEST["float32"]}, True),
        ({"d_hidden": WIDEST["float32"] + 1}, False),
        ({"d_hidden": WIDEST["bfloat16"], "dtype": "bfloat16"}, True),
        ({"d_hidden": WIDEST["bfloat16"] + 1, "dtype": "bfloat16"}, False),
        ({"platform": "cpu"}, False),
        ({"switch": "scan"}, False),
        ({"switch": None}, False),
        ({"split": 2}, False),
    ],
    ids=str,
)
def test_the_kernel_is_used_where_it_is_asked_for_and_fits(monkeypatch, change, kernel):
    asked = asking_for_the_kernel(monkeypatch)
    if "switch" in change:
        switch = change["switch"]
        monkeypatch.setenv(SWITCH, switch) if switch else monkeypatch.delenv(SWITCH)
    monkeypatch.setattr(lstm, "on_gpu", lambda: change.get("platform") != "cpu")
    monkeypatch.setattr(lstm, "run_devices", lambda: change.get("split", 1))
    spec = spec_of(d_hidden=change.get("d_hidden", 9))
    graphdef, state = reference.random_model(spec, dtype=change.get("dtype", "float32"))
    tokens = jnp.zeros((2, 8), jnp.int32)
    mesh = make_mesh(1, 1, 1, devices=jax.devices()[:1])
    with on_mesh(mesh):
        jax.eval_shape(lambda: reference.loss_and_logits(graphdef, state, tokens, tokens))
    # The first layer, and the others in their loop. The backward pass is traced without the context.
    assert asked == [mesh, mesh] * kernel


def test_what_the_kernel_refuses_has_a_reason():
    assert refuses(128, "bfloat16", 1) is refuses(64, "float32", 1) is None
    assert refuses(129, "bfloat16", 1) == "the kernel takes at most 128 hidden units in bfloat16"
    assert refuses(65, "float32", 1) == "the kernel takes at most 64 hidden units in float32"
    assert refuses(64, "bfloat16", 4) == "the kernel takes runs of one device"


def test_another_value_of_the_switch_is_refused(monkeypatch):
    monkeypatch.setenv(SWITCH, "fast")
    monkeypatch.setattr(lstm, "on_gpu", lambda: True)
    graphdef, state = reference.random_model(spec_of())
    tokens = jnp.zeros((2, 8), jnp.int32)
    with pytest.raises(SpecError, match="LMSCALE_LSTM must be scan or kernel, not 'fast'"):
        jax.eval_shape(lambda: reference.loss_and_logits(graphdef, state, tokens, tokens))


# Compiled for GPUs.

needs_gpu_compiler = pytest.mark.skipif(
    topology.compiler("gpu") is None,
    reason="needs XLA for GPUs: pip install 'lmscale[cuda13-aot]'",
)


def gpu(kind):
    (device,) = topology.absent_devices(kind, "gpu", 1, parse_devices(kind).linked)
    return device


@needs_gpu_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h100", "a100", "b200"])
@pytest.mark.parametrize(
    ("d_hidden", "dtype"),
    [
        *((width, "bfloat16") for width in (16, 48, 64, 100, 128)),
        *((width, "float32") for width in (16, 24, 64)),
    ],
)
def test_the_kernels_fit_a_gpu(kind, d_hidden, dtype):
    """The compiler says so: no register spilled, shared memory as there is."""
    options = known_compiler_options({"xla_gpu_fail_ptx_compilation_on_register_spilling": True})
    sharding = jax.sharding.SingleDeviceSharding(gpu(kind))

    def array(*shape, dtype=dtype):
        return jax.ShapeDtypeStruct((2, *shape), dtype, sharding=sharding)

    def one(gates, kernel, weights, keep):
        return gradients(kernel_recurrence, keep)(gates, kernel, weights)

    function = jax.jit(jax.vmap(one), compiler_options=options)
    n_time, n_batch = 64, 24
    arguments = (
        array(n_time, n_batch, 4 * d_hidden),
        array(d_hidden, 4 * d_hidden),
        array(n_time, n_batch, d_hidden),
        array(n_time, n_batch, 1, dtype="float32"),
    )
    program = function.trace(*arguments).lower(lowering_platforms=("cuda",)).compile()
    assert program.as_text().count('custom_call_target="__gpu$xla.gpu.triton"') == 2


@needs_gpu_compiler
@pytest.mark.slow
def test_a_step_launches_no_kernel_for_each_time_step(monkeypatch):
    model = LSTMSpec(n_layer=2, d_hidden=80, d_embed=80, n_ctx=256, vocab_size=512)
    key = ProgramKey.of(run_spec(model=model, compute_dtype="bfloat16", batch_size=16))

    def kernels(form):
        monkeypatch.setenv(SWITCH, form)
        program = build_program(
            key,
            n_slots=4,
            mesh=make_mesh(1, 1, 1, devices=[gpu("h100")]),
            chunk_steps=1,
            unroll=True,
        )
        arguments = train_arguments(program, run_spec(model=model, batch_size=16), None)
        compiled = program.lower_train(*arguments, platform="cuda").compile()
        return hlo.Program(compiled.as_text()).kernels()

    assert kernels("kernel") < 180
    assert kernels("scan") > 2 * 256 * 10
