"""The fused head against the plain one. Its kernels are interpreted here; a compiler for GPUs, where it is
installed, says that they fit one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lmscale.compat import known_compiler_options
from lmscale.parallel.mesh import make_mesh
from lmscale.parallel.partition import on_mesh
from lmscale.planner.devices import parse_devices
from lmscale.planner.memory import device_memory
from lmscale.planner.step_config import StepConfig, choose_head
from lmscale.planner.topology import absent_devices, compiler
from lmscale.serialize import SpecError
from lmscale.spec import LSTMSpec, TransformerSpec
from lmscale.training import step
from lmscale.training.fused_loss import WIDEST, fused_mean_loss
from lmscale.training.loss import mean_loss_in_pieces
from lmscale.training.program import build_program, device_bytes, train_arguments
from lmscale.training.state import ProgramKey, initial_state
from lmscale.training.step import RunStep
from tests.training.specs import run_spec


def mesh_of(run):
    return make_mesh(run, 1, 1, devices=jax.devices()[:run])


def problem(n_tokens, width, n_vocab, *, runs=()):
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(*runs, n_tokens, width))
    head = rng.normal(size=(*runs, n_vocab, width)) / np.sqrt(width)
    targets = rng.integers(0, n_vocab, (*runs, n_tokens))
    return jnp.float32(hidden), jnp.float32(head), jnp.int32(targets)


def plain(hidden, head, targets):
    logits = lambda head, x: (x @ head.T).astype(jnp.float32)  # noqa: E731
    return mean_loss_in_pieces(logits, head, hidden[None], targets[None], 1)


def fused(hidden, head, targets):
    return fused_mean_loss(hidden, head, targets, True)


def gradients(loss):
    """A loss's value and gradients, with a scale as micro-batches have one."""
    return jax.value_and_grad(lambda x, w, t: 0.7 * loss(x, w, t), (0, 1))


def both(loss, *arguments):
    return jax.jit(gradients(loss))(*arguments)


def errors(found, expected):
    """Largest error of the loss and of each gradient, relative to the largest number of each."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return [float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs]


@pytest.mark.parametrize(
    ("n_tokens", "width", "n_vocab"),
    [(256, 64, 256), (1, 130, 300), (129, 24, 1)],
)
def test_losses_and_gradients_are_those_of_the_plain_head(n_tokens, width, n_vocab):
    arguments = problem(n_tokens, width, n_vocab)
    found, expected = both(fused, *arguments), both(plain, *arguments)
    if n_vocab == 1:
        # One word is certain: the loss and its gradients are rounding.
        assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(found)) < 1e-6
    else:
        assert max(errors(found, expected)) < 1e-6


def test_large_logits_do_not_overflow():
    hidden, head, targets = problem(64, 16, 300)
    arguments = hidden, 1000 * head, targets
    found, expected = both(fused, *arguments), both(plain, *arguments)
    # Logits of thousands have four digits behind the point.
    assert max(errors(found, expected)) < 1e-4


def test_bfloat16_is_no_worse_than_the_plain_head_in_it():
    hidden, head, targets = problem(256, 64, 700)
    rounded = hidden.astype(jnp.bfloat16), head.astype(jnp.bfloat16), targets
    exact = both(plain, *(x.astype(jnp.float32) for x in rounded[:2]), targets)
    ours, theirs = (errors(both(loss, *rounded), exact) for loss in (fused, plain))
    assert ours[0] < 1e-6
    assert all(a < max(0.01, 1.5 * b) for a, b in zip(ours, theirs, strict=True))


def test_runs_of_a_pack_stay_on_their_own_devices():
    """XLA cannot split a kernel: each device would compute the head of all runs."""
    mesh = mesh_of(4)
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("run"))
    arguments = problem(128, 32, 300, runs=(8,))

    def one(*arguments):
        with on_mesh(mesh):
            return gradients(fused)(*arguments)

    packed = jax.jit(jax.vmap(one, spmd_axis_name="run"), in_shardings=sharding)
    compiled = packed.lower(*arguments).compile()
    assert not any(
        name in compiled.as_text() for name in ("all-gather", "all-reduce", "all-to-all")
    )
    expected = jax.jit(jax.vmap(gradients(plain)))(*arguments)
    assert max(errors(compiled(*arguments), expected)) < 1e-6


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(step, "fused_mean_loss", fused)


MODELS = {
    "tied": TransformerSpec(n_layer=1, d_model=24, n_head=2, n_ctx=16, vocab_size=300),
    "untied": TransformerSpec(
        n_layer=1, d_model=24, n_head=2, n_ctx=16, vocab_size=300, tied_head=False
    ),
    "lstm": LSTMSpec(n_layer=1, d_hidden=16, d_embed=24, n_ctx=16, vocab_size=300),
}


@pytest.mark.parametrize("name", ["tied", "untied", "lstm"])
@pytest.mark.slow
def test_a_step_has_the_same_gradients_with_either_head(interpreted, name):
    key = ProgramKey.of(run_spec(model=MODELS[name]))
    params = jax.jit(lambda: initial_state(key, 0)["params"])()
    windows = jnp.int32(np.random.default_rng(0).integers(0, 300, (4, 17)))

    def gradient(head):
        run = RunStep(key, mesh_of(1), 2, "xla", 1, False, False, False, head)
        return jax.jit(run._gradient)(params, windows, None)[:2]

    assert max(errors(gradient("fused"), gradient("xla"))) < 2e-6


@pytest.mark.parametrize(("width", "vocab", "n_ctx", "pieces"), [
    (64, 8192, 512, 8), (256, 4096, 512, 1), (16, 4096, 512, 16), (64, 50_304, 1000, 50), (8, 9999, 4, 4),
])  # fmt: skip
def test_evaluation_takes_logits_in_parts_where_training_has_none(width, vocab, n_ctx, pieces):
    model = TransformerSpec(n_layer=1, d_model=width, n_head=1, n_ctx=n_ctx, vocab_size=vocab)
    key = ProgramKey.of(run_spec(model=model))

    def step_of(head):
        return RunStep(key, mesh_of(1), 1, "xla", 2, False, False, False, head)

    assert step_of("fused")._eval_pieces == pieces
    assert step_of("xla")._eval_pieces == 2


def test_the_head_is_fused_where_a_kernel_takes_it(monkeypatch):
    def chosen(platform="gpu", dtype="bfloat16", split=1, width=64):
        model = TransformerSpec(n_layer=1, d_model=width, n_head=1, n_ctx=16, vocab_size=300)
        return choose_head(platform, model, dtype, split)

    assert chosen() == chosen(width=WIDEST) == "fused"
    others = chosen("cpu"), chosen("tpu"), chosen(dtype="float32"), chosen(split=8)
    assert {*others, chosen(width=WIDEST + 1)} == {"xla"}
    monkeypatch.setenv("LMSCALE_HEAD", "xla")
    assert chosen() == "xla"
    monkeypatch.setenv("LMSCALE_HEAD", "plain")
    with pytest.raises(SpecError, match="LMSCALE_HEAD must be fused or xla, not 'plain'"):
        chosen()


def test_a_program_refuses_a_head_that_its_kernels_do_not_take():
    key = ProgramKey.of(run_spec(model=MODELS["tied"]))
    with pytest.raises(ValueError, match="takes bfloat16, not float32"):
        build_program(key, n_slots=1, mesh=mesh_of(1), chunk_steps=1, head="fused")


def test_the_plan_counts_no_logits_where_there_are_none():
    model = TransformerSpec(n_layer=1, d_model=64, n_head=1, n_ctx=512, vocab_size=8192)
    spec = run_spec(model=model, compute_dtype="bfloat16", batch_size=8)
    config = StepConfig(micro_batch=8)
    # Over two devices the head is not fused, and half of the tokens' logits are on each.
    split = device_memory(spec, "gpu", StepConfig(data=2, micro_batch=8), "h100")
    logits = 8 * 512 * 8192 * 2
    assert device_memory(spec, "gpu", config, "h100") < logits / 2 < split


needs_gpu_compiler = pytest.mark.skipif(
    compiler("gpu") is None, reason="needs XLA for GPUs: pip install 'lmscale[cuda13-aot]'"
)


@needs_gpu_compiler
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h100", "a100", "b200"])
@pytest.mark.parametrize("width", [16, 64, 96, 128, 256])
def test_the_kernels_fit_a_gpu_and_keep_no_logits(kind, width):
    """The compiler says so: no register spilled, shared memory as there is, nothing of the logits' size."""
    options = known_compiler_options({"xla_gpu_fail_ptx_compilation_on_register_spilling": True})
    devices = parse_devices(kind)
    (device,) = absent_devices(kind, "gpu", 1, devices.linked)
    n_tokens, n_vocab = 4096, 4096
    sharding = jax.sharding.SingleDeviceSharding(device)

    def array(*shape, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((2, *shape), dtype, sharding=sharding)

    function = jax.jit(
        jax.vmap(jax.value_and_grad(fused_mean_loss, (0, 1))), compiler_options=options
    )
    arguments = array(n_tokens, width), array(n_vocab, width), array(n_tokens, dtype=jnp.int32)
    lowered = function.trace(*arguments).lower(lowering_platforms=("cuda",))
    program = lowered.compile()
    assert program.as_text().count("custom-call") >= 2
    assert program.memory_analysis().temp_size_in_bytes < 2 * n_tokens * n_vocab * 2 / 4


@needs_gpu_compiler
@pytest.mark.slow
def test_evaluation_needs_no_more_memory_than_training():
    devices = parse_devices("h100")
    (device,) = absent_devices("h100", "gpu", 1, devices.linked)
    model = TransformerSpec(n_layer=2, d_model=64, n_head=1, n_ctx=512, vocab_size=8192)
    spec = run_spec(model=model, compute_dtype="bfloat16", batch_size=8)
    program = build_program(
        ProgramKey.of(spec),
        n_slots=4,
        mesh=make_mesh(1, 1, 1, devices=[device]),
        chunk_steps=4,
        attention="cudnn",
        head="fused",
    )
    state, *others = train_arguments(program, spec, None)
    training = program.lower_train(state, *others, platform="cuda").compile()
    windows = jax.ShapeDtypeStruct((2, program.eval_batch, 513), jnp.int32)
    weights = jax.ShapeDtypeStruct((2, program.eval_batch), jnp.float32)
    traced = program._evaluate.trace(state, windows, weights)
    evaluation = traced.lower(lowering_platforms=("cuda",)).compile()
    logits = 4 * program.eval_batch * 512 * 8192 * 2
    assert device_bytes(evaluation) < device_bytes(training) < logits
