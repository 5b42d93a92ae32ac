"""Predicted seconds of a step: what limits it, and how near the counts are to compiled programs."""

import dataclasses
import math

import pytest

from lmscale.planner import aot, step_config
from lmscale.planner.compiled import Compiled, roofline
from lmscale.planner.devices import parse_devices
from lmscale.planner.memory import device_memory
from lmscale.planner.packs import make_plan
from lmscale.planner.roofline import (
    FILL,
    filling_runs,
    gpu_bytes,
    gpu_kernels,
    step_roofline,
    step_seconds,
)
from lmscale.planner.step_config import StepConfig, choose_recurrence, choose_unroll
from lmscale.planner.topology import compiler
from lmscale.spec import EvalSpec, LSTMSpec, TransformerSpec
from lmscale.sweep.experiment import Run
from lmscale.training.metrics_log import expected_records
from tests.training.specs import run_spec

H100 = parse_devices("h100")


def spec_of(kind, n_layer, width, batch, vocab, n_ctx, dtype="bfloat16"):
    shape = {"n_layer": n_layer, "n_ctx": n_ctx, "vocab_size": vocab}
    if kind == "transformer":
        model = TransformerSpec(d_model=width, n_head=max(1, width // 64), **shape)
    else:
        model = LSTMSpec(d_hidden=width, d_embed=width, **shape)
    return run_spec(model=model, batch_size=batch, compute_dtype=dtype, steps=1000, evals=())


SMALL = ("transformer", 2, 64, 16, 4096, 512)
#: With layers in a loop.
#: Kind, layers, width, sequences, vocabulary, context; runs side by side; then what XLA of jax 0.10.2 compiled
#: for an H100 has: GB read and written a step, kernels, GB of memory without training tokens.
LOOPED = [
    (SMALL, 1, 0.524, 315, 0.063),
    (SMALL, 16, 8.12, 383, 0.986),
    (SMALL, 64, 32.2, 392, 3.92),
    (("transformer", 4, 128, 16, 4096, 512), 1, 2.13, 518, 0.208),
    (("transformer", 4, 128, 16, 4096, 512), 64, 125.0, 600, 12.8),
    (("transformer", 6, 320, 16, 4096, 512), 1, 8.23, 745, 0.765),
    (("transformer", 6, 320, 16, 4096, 512), 16, 132.3, 817, 12.4),
    (("transformer", 12, 768, 32, 50_304, 1024), 1, 162.8, 1396, 14.9),
    (("lstm", 1, 128, 32, 4096, 256), 1, 0.643, 3168, 0.0407),
    (("lstm", 1, 128, 32, 4096, 256), 64, 30.3, 2646, 2.93),
    (("lstm", 2, 512, 32, 4096, 256), 16, 101.1, 5759, 6.11),
    (("lstm", 4, 1024, 64, 4096, 256), 1, 58.6, 11_514, 2.24),
]


#: The same, with layers unrolled.
UNROLLED = [
    (SMALL, 1, 0.354, 183, 0.045),
    (("transformer", 2, 64, 8, 8192, 512), 64, 12.2, 240, 1.91),
    (("transformer", 5, 128, 8, 8192, 512), 64, 54.8, 317, 7.99),
    (("transformer", 12, 768, 32, 50_304, 1024), 1, 123.8, 802, 14.9),
]
COMPILED = [(False, *row) for row in LOOPED] + [(True, *row) for row in UNROLLED]


@pytest.mark.parametrize(("unrolled", "shape", "n_runs", "moved", "kernels", "memory"), COMPILED)
def test_counts_are_near_those_of_compiled_programs(
    monkeypatch, unrolled, shape, n_runs, moved, kernels, memory
):
    if not unrolled:
        monkeypatch.setattr(step_config, "UNROLLED_LAYERS", {})
    spec = spec_of(*shape)
    config = StepConfig(micro_batch=spec.batch_size)
    # A lone LSTM moves more for each run than a pack does.
    near = {"transformer": 0.1, "lstm": 0.2}[shape[0]]
    assert n_runs * gpu_bytes(spec, config, "h100") / 1e9 == pytest.approx(moved, rel=near)
    assert gpu_kernels(spec, config) == pytest.approx(kernels, rel=0.25)
    planned = n_runs * device_memory(spec, "gpu", config, "h100") / 1e9
    assert planned == pytest.approx(memory, rel=near)


#: LSTMs whose time steps are in a kernel, unrolled.
RECURRENT = [
    (("lstm", 1, 128, 32, 4096, 256), 1, 0.242, 88, 0.0401),
    (("lstm", 1, 128, 32, 4096, 256), 64, 14.3, 90, 2.6),
    (("lstm", 2, 128, 32, 4096, 256), 16, 5.76, 123, 0.955),
    (("lstm", 4, 80, 16, 4096, 512), 1, 0.41, 151, 0.0565),
    (("lstm", 1, 32, 8, 4096, 128), 64, 0.797, 79, 0.196),
    (("lstm", 1, 64, 32, 4096, 256, "float32"), 16, 18.1, 93, 2.53),
]


@pytest.mark.parametrize(("shape", "n_runs", "moved", "kernels", "memory"), RECURRENT)
def test_counts_of_the_lstm_kernel_are_near_those_of_compiled_programs(
    monkeypatch, shape, n_runs, moved, kernels, memory
):
    spec = spec_of(*shape)
    config = StepConfig(micro_batch=spec.batch_size)
    scan = gpu_kernels(spec, config), step_roofline(spec, H100, config, n_runs).launch
    monkeypatch.setenv("LMSCALE_LSTM", "kernel")
    assert n_runs * gpu_bytes(spec, config, "h100") / 1e9 == pytest.approx(moved, rel=0.2)
    # The kernels outside of the layers are those of a Transformer, which has some more.
    assert gpu_kernels(spec, config) == pytest.approx(kernels, abs=45)
    planned = n_runs * device_memory(spec, "gpu", config, "h100") / 1e9
    assert planned == pytest.approx(memory, rel=0.2)
    launch = step_roofline(spec, H100, config, n_runs).launch
    waited = 2 * spec.model.n_layer * spec.model.n_ctx * 1.5e-6
    assert launch == pytest.approx(gpu_kernels(spec, config) * H100.launch + waited)
    assert scan[0] > 10 * gpu_kernels(spec, config) and scan[1] > 5 * launch


def test_time_steps_are_in_a_kernel_where_it_is_asked_for_and_takes_them(monkeypatch):
    wide = spec_of("lstm", 1, 136, 16, 4096, 64).model
    narrow = dataclasses.replace(wide, d_hidden=128)
    assert choose_recurrence("gpu", narrow, "bfloat16") == ("scan", None)
    monkeypatch.setenv("LMSCALE_LSTM", "kernel")
    assert choose_recurrence("gpu", narrow, "bfloat16") == ("kernel", None)
    assert choose_recurrence("cpu", narrow, "bfloat16") == ("scan", None)
    assert choose_recurrence("gpu", spec_of(*SMALL).model, "bfloat16") == ("scan", None)
    assert choose_recurrence("gpu", wide, "bfloat16") == (
        "scan",
        "the kernel takes at most 128 hidden units in bfloat16",
    )
    assert "at most 64" in choose_recurrence("gpu", narrow, "float32").reason
    assert "runs of one device" in choose_recurrence("gpu", narrow, "bfloat16", 2).reason


def test_a_small_run_waits_for_launches_and_a_pack_of_them_for_memory():
    spec = spec_of(*SMALL)
    config = StepConfig(micro_batch=16)
    alone, packed = (step_roofline(spec, H100, config, n) for n in (1, 64))
    assert (alone.bound, packed.bound) == ("launch", "memory")
    assert packed.launch == alone.launch == H100.launch * gpu_kernels(spec, config)
    assert packed.memory == pytest.approx(64 * alone.memory)
    assert step_seconds(spec, H100, config, 64) == packed.step < 64 * alone.step / 3
    large = spec_of("transformer", 12, 768, 32, 50_304, 1024)
    assert step_roofline(large, H100, StepConfig(micro_batch=32)).bound in ("compute", "memory")


def test_micro_batches_and_remat_launch_more():
    spec = spec_of(*SMALL)
    whole = gpu_kernels(spec, StepConfig(micro_batch=16))
    assert gpu_kernels(spec, StepConfig(micro_batch=4)) > 2.5 * whole
    assert gpu_kernels(spec, StepConfig(micro_batch=16, remat=True)) > 1.1 * whole


def test_layers_are_unrolled_where_nothing_must_be_freed_between_them():
    def unrolled(platform, n_layer, **config):
        model = TransformerSpec(n_layer=n_layer, d_model=8, n_head=1, n_ctx=8, vocab_size=9)
        return choose_unroll(platform, model, StepConfig(**config))

    assert unrolled("cpu", 4) and unrolled("gpu", 16)
    assert not (unrolled("cpu", 5) or unrolled("gpu", 17) or unrolled("tpu", 1))
    assert not (unrolled("gpu", 2, data=2) or unrolled("gpu", 2, model=2))
    assert not unrolled("gpu", 2, remat=True)


def test_logits_are_counted_where_they_pass_through_memory():
    fused, plain = (
        gpu_bytes(spec_of(*SMALL, dtype=dtype), StepConfig(micro_batch=16))
        for dtype in ("bfloat16", "float32")
    )
    # Twice the bytes a number, and eight passes of the logits.
    assert plain - 2 * fused > 6 * 4 * 16 * 512 * 4096


def test_as_many_runs_are_packed_as_hide_the_launches():
    spec = spec_of(*SMALL)
    config = StepConfig(micro_batch=16)
    n = filling_runs(spec, H100, config)
    work = step_roofline(spec, H100, config, n)
    assert n == math.ceil(FILL * work.launch / (max(work.compute, work.memory) / n))
    runs = [Run(dataclasses.replace(spec, seed=seed), {}) for seed in range(64)]
    (pack,) = make_plan(runs, H100).packs
    assert pack.n_slots == n
    assert pack.bound == "memory"
    assert pack.seconds == pytest.approx(64 / n * 1000 * step_seconds(spec, H100, config, n))
    # A TPU's program launches nothing.
    assert filling_runs(spec, parse_devices("v5e"), config) == 1
    (large,) = make_plan([Run(spec_of("transformer", 12, 768, 32, 50_304, 1024), {})], H100).packs
    assert large.n_slots == 1


def test_a_compiled_program_is_bound_by_its_launches_too():
    (pack,) = make_plan([Run(spec_of(*SMALL), {})], H100).packs
    known = {"arguments": 0.0, "tokens": 0.0, "sent": {}, "network": 0.0, "largest": ()}
    compiled = Compiled(1e9, hbm_bytes=0.58e9, seconds=1.0, cpu_seconds=1.0, kernels=313, **known)
    bounds = roofline(pack, H100, compiled)
    assert bounds.launch == pytest.approx(313 * 3e-6)
    assert (bounds.bound, bounds.step) == ("launch", bounds.launch)
    # Results that were kept before launches were counted have none.
    old = {k: v for k, v in compiled.to_json().items() if k != "kernels"}
    assert Compiled.from_json(old).kernels == 0


@pytest.mark.skipif(
    compiler("gpu") is None, reason="needs XLA for GPUs: pip install 'lmscale[cuda13-aot]'"
)
@pytest.mark.slow
@pytest.mark.parametrize("shape", [SMALL, ("lstm", 1, 64, 8, 512, 128)])
def test_the_counts_are_the_compilers(tmp_path, monkeypatch, shape):
    monkeypatch.setenv("LMSCALE_CACHE", str(tmp_path))
    spec = spec_of(*shape)
    runs = [Run(dataclasses.replace(spec, seed=seed), {}) for seed in range(16)]
    (pack,) = make_plan(runs, H100, n_slots=16).packs
    found = aot.compile_pack(pack, H100, (10_000_000, "uint16"))
    assert (found.error, found.unknown) == (None, ())
    counted = 16 * gpu_bytes(spec, pack.step_config, "h100")
    assert found.hbm_bytes == pytest.approx(counted, rel=0.25)
    assert found.kernels == pytest.approx(gpu_kernels(spec, pack.step_config), rel=0.25)


#: Kind, layers, width, context, sequences; milliseconds of CPU time of a step on a core of an AMD EPYC while the other
#: core did the same, the less of two measurements. A vocabulary of 512; Transformers with rotary positions and one
#: head, or heads of 16.
ON_A_CORE = [
    (("transformer", 2, 8, 64, 4), 0.97),
    (("transformer", 2, 16, 64, 4), 1.04),
    (("transformer", 2, 16, 128, 2), 1.26),
    (("transformer", 1, 32, 128, 2), 2.07),
    (("transformer", 2, 32, 128, 2), 2.91),
    (("transformer", 6, 16, 128, 2), 3.64),
    (("transformer", 12, 16, 128, 2), 7.86),
    (("transformer", 2, 24, 128, 1), 1.28),
    (("transformer", 2, 24, 128, 4), 4.77),
    (("transformer", 2, 24, 128, 16), 16.96),
    (("transformer", 2, 96, 128, 2), 15.06),
    (("transformer", 2, 32, 512, 2), 35.70),
    (("transformer", 2, 32, 8, 128), 9.49),
    (("transformer", 4, 128, 256, 2), 114.36),
    (("lstm", 1, 32, 256, 2), 28.55),
    (("lstm", 1, 64, 128, 2), 17.54),
    (("lstm", 1, 128, 256, 2), 51.67),
    (("lstm", 2, 64, 128, 2), 24.17),
]


def test_steps_of_a_cpus_core_are_foretold_as_they_were_measured():
    errors = []
    for (kind, n_layer, width, n_ctx, batch), milliseconds in ON_A_CORE:
        shape = {"n_layer": n_layer, "n_ctx": n_ctx, "vocab_size": 512}
        if kind == "transformer":
            heads = width // 16 if width % 16 == 0 else 1
            model = TransformerSpec(d_model=width, n_head=heads, positions="rotary", **shape)
        else:
            model = LSTMSpec(d_hidden=width, **shape)
        spec = run_spec(model=model, batch_size=batch, steps=1000)
        errors.append(
            math.log(step_seconds(spec, parse_devices("cpu"), StepConfig()) * 1e3 / milliseconds)
        )
    assert abs(sum(errors) / len(errors)) < 0.1
    assert max(map(abs, errors)) < 0.5
    # By FLOPs alone the attention of a context of 512 and the smallest model took half of their time.
    assert sum(abs(error) > 0.25 for error in errors) <= 2


def test_evaluations_take_their_time():
    """A forward pass is a third of a step."""
    evals = tuple(
        EvalSpec(name=name, corpus="tiny", fingerprint="0", tokens=3 * 8 * 512) for name in "ab"
    )
    plain = run_spec(model=spec_of(*SMALL).model, batch_size=8, steps=1000, evals=())
    spec = dataclasses.replace(plain, evals=evals, eval_every=300, eval_steps=(10, 300))
    cpu = parse_devices("cpu")
    seconds = [make_plan([Run(one, {})], cpu).packs[0].seconds for one in (plain, spec)]
    # After steps 10, 300, 600, 900 and 1,000, on two sets of three batches each.
    evaluated = {step for step, is_evaluation in expected_records(spec, 1000) if is_evaluation}
    assert evaluated == {10, 300, 600, 900, 1000} and spec.n_evaluations == 5
    assert seconds[1] == pytest.approx(seconds[0] * (1 + 5 * 2 / 1000))
