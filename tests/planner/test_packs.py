import dataclasses
import math
import time

import jax
import numpy as np
import pytest

from lmscale import flops
from lmscale.parallel.mesh import MeshError
from lmscale.planner.devices import DeviceError, parse_devices
from lmscale.planner.memory import device_memory
from lmscale.planner.mesh_search import divisors
from lmscale.planner.packs import enough_devices, fits, make_plan, replan_with_less_memory
from lmscale.planner.programs import slow_attention
from lmscale.planner.roofline import step_seconds
from lmscale.planner.step_config import StepConfig, choose_attention, default_attention
from lmscale.spec import DataSpec, LSTMSpec, TransformerSpec
from lmscale.sweep.grids import isoflop_grid, width_rule
from lmscale.sweep.shards import shard_runs
from lmscale.training.state import ProgramKey, initial_state

DATA = DataSpec(corpus="none", fingerprint="none")


def runs(models=None, batch_size=8, seeds=(0, 1, 2)):
    models = models or [
        TransformerSpec(n_layer=2, d_model=d, n_head=2, n_ctx=128, vocab_size=512)
        for d in (16, 32, 64)
    ]
    return isoflop_grid(
        (1e11, 4e11),
        models,
        data=DATA,
        evals=(),
        batch_size=batch_size,
        learning_rate=width_rule(),
        seeds=seeds,
        min_steps=1,
    )


def large_runs(batch_size=256):
    """One run of 6.6e9 parameters."""
    model = TransformerSpec(n_layer=40, d_model=3584, n_ctx=2048, vocab_size=32000, n_head=28)
    return isoflop_grid(
        (6e20,),
        [model],
        data=DATA,
        evals=(),
        batch_size=batch_size,
        learning_rate=width_rule(),
        compute_dtype="bfloat16",
    )


def test_a_pack_holds_what_compiles_to_one_program():
    plan = make_plan(runs(), parse_devices("cpu:2"))
    assert len(plan.packs) == 3
    assert plan.n_runs == 18
    for pack in plan.packs:
        assert {run.spec.model for run in pack.runs} == {pack.key.model}
        steps = [run.spec.steps for run in pack.runs]
        assert steps == sorted(steps, reverse=True)
    assert plan.flops == pytest.approx(
        math.fsum(flops.training_flops(run.spec, "exact") for run in runs())
    )


def test_a_core_holds_one_run_in_pieces_that_fit_its_cache():
    plan = make_plan(runs(), parse_devices("cpu:2"))
    assert plan.workers == plan.devices.count == 2
    for pack in plan.packs:
        assert pack.mesh == (1, 1, 1)
        assert pack.n_slots == 1
        assert pack.micro_batch == 4
    lstm = LSTMSpec(n_layer=1, d_hidden=16, d_embed=16, n_ctx=128, vocab_size=512)
    assert make_plan(runs([lstm]), parse_devices("cpu:2")).packs[0].micro_batch == 8


def test_small_runs_spread_over_a_pod_by_the_run_axis_and_fill_one_gpu_side_by_side():
    for pack in make_plan(runs(seeds=range(8)), parse_devices("v5e:16")).packs:
        assert pack.mesh == (16, 1, 1)
        assert pack.n_slots == 16
    for pack in make_plan(runs(seeds=range(8)), parse_devices("h100")).packs:
        assert pack.mesh == (1, 1, 1)
        assert pack.n_slots == 16


def test_a_large_run_is_split_until_it_fits():
    large = large_runs()
    devices = parse_devices("v5p:64")
    pack = make_plan(large, devices).packs[0]
    assert pack.mesh == (1, 64, 1)
    assert pack.memory < devices.memory
    assert device_memory(large[0].spec, "tpu", StepConfig()) > devices.memory
    assert pack.micro_batch % 64 == 0


def test_layers_are_split_where_the_batch_is_too_small_to_be():
    devices = parse_devices("v5p:64")
    run_axis, data, model = make_plan(large_runs(batch_size=16), devices).packs[0].mesh
    assert run_axis == 1
    assert data <= 16
    assert model in (2, 4)
    # Splitting layers must pay: it is quicker than leaving those devices out.
    spec = large_runs(batch_size=16)[0].spec
    assert step_seconds(spec, devices, StepConfig(data, model, data)) < step_seconds(
        spec, devices, StepConfig(data, 1, data)
    )


def test_layers_are_split_inside_a_host_only():
    for pack in make_plan(large_runs(batch_size=16), parse_devices("h100:256")).packs:
        assert pack.mesh[2] <= 8


def test_communication_grows_with_the_pieces_of_a_batch():
    (run,) = large_runs()
    devices = parse_devices("v5e:256")
    times = [step_seconds(run.spec, devices, StepConfig(64, 1, n)) for n in (256, 128, 64)]
    assert times == sorted(times)
    assert step_seconds(run.spec, devices, StepConfig(micro_batch=256)) == pytest.approx(
        flops.step_flops(run.spec) / (devices.peak_flops * devices.utilisation)
    )


def test_what_does_not_fit_whole_is_computed_twice():
    devices = parse_devices("v5e:16")
    pack = make_plan(large_runs(), devices).packs[0]
    assert pack.remat
    assert fits(pack, devices)
    spec, config = pack.runs[0].spec, pack.step_config
    kept = dataclasses.replace(config, remat=False)
    assert device_memory(spec, "tpu", kept) > device_memory(spec, "tpu", config)
    assert step_seconds(spec, devices, kept) < step_seconds(spec, devices, config)


def test_logits_in_pieces_take_less_memory_and_more_time():
    (run,) = large_runs()
    devices = parse_devices("v5e:16")
    whole = StepConfig(16, 1, 256)
    pieces = dataclasses.replace(whole, logit_pieces=8)
    assert device_memory(run.spec, "tpu", pieces) < device_memory(run.spec, "tpu", whole)
    assert step_seconds(run.spec, devices, pieces) > step_seconds(run.spec, devices, whole)


def test_a_state_that_an_axis_does_not_divide_is_counted_whole():
    """33 heads of 61 are split over no data axis of 64, and a width of 2013 neither."""
    model = TransformerSpec(n_layer=4, d_model=2013, n_head=33, n_ctx=1024, vocab_size=50_257)
    runs = isoflop_grid(
        (1e18,), [model], data=DATA, evals=(), batch_size=64, learning_rate=width_rule()
    )
    spec = runs[0].spec
    odd = device_memory(spec, "tpu", StepConfig(64, 1, 64))
    assert odd > 4 * 4 * flops.n_params(model, "exact")
    even = dataclasses.replace(model, d_model=2048, n_head=32, d_ff=None, d_attn=None)
    spec = dataclasses.replace(spec, model=even)
    assert device_memory(spec, "tpu", StepConfig(64, 1, 64)) < 0.5 * odd


@pytest.mark.parametrize(
    ("model", "rows_columns_and_vectors"),
    [
        (
            TransformerSpec(n_layer=48, d_model=1600, n_ctx=1024, vocab_size=50_257),
            # Sums of d_in and d_out of qkv, out, up and down; 4 biases and 2 norms; embedding and
            # positions; the last norm.
            48 * ((1 + 3 + 1 + 1 + 1 + 4 + 4 + 1) * 1600 + (3 + 1 + 4 + 1 + 4) * 1600)
            + (50_257 + 1600 + 1024 + 1600 + 2 * 1600),
        ),
        (
            TransformerSpec(n_layer=207, d_model=768, n_ctx=1024, vocab_size=50_257),
            207 * ((1 + 3 + 1 + 1 + 1 + 4 + 4 + 1) * 768 + (3 + 1 + 4 + 1 + 4) * 768)
            + (50_257 + 768 + 1024 + 768 + 2 * 768),
        ),
        (
            LSTMSpec(n_layer=4, d_hidden=2048, n_ctx=1024, vocab_size=50_257),
            # The embedding; input and recurrent kernels and two biases a layer, of which the first
            # reads 512 numbers; the projection and its bias.
            (50_257 + 512)
            + (512 + 2048 + 2 * 4 * 2048 + 2 * 4 * 2048)
            + 3 * (2 * 2048 + 2 * 4 * 2048 + 2 * 4 * 2048)
            + (2048 + 512 + 512),
        ),
    ],
    ids=lambda value: getattr(value, "label", None),
)
def test_a_plan_counts_adafactors_moments(model, rows_columns_and_vectors):
    runs = isoflop_grid(
        (1e20,), [model], data=DATA, evals=(), batch_size=64, learning_rate=width_rule()
    )
    adam, config = runs[0].spec, StepConfig(micro_batch=64)
    factored = dataclasses.replace(
        adam, optimizer=dataclasses.replace(adam.optimizer, name="adafactor")
    )
    key = ProgramKey.of(factored)
    state = jax.eval_shape(lambda seed: initial_state(key, seed), np.int32(0))
    held = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state["opt"]))
    # Beside them the number of updates.
    assert held == 4 * rows_columns_and_vectors + 4
    saved = device_memory(adam, "gpu", config) - device_memory(factored, "gpu", config)
    assert saved == 8 * flops.n_params(model, "exact") - held
    # Moments are as whole on every device as they are small.
    split = StepConfig(8, 1, 64)
    assert device_memory(factored, "gpu", split) < device_memory(adam, "gpu", split)


def test_a_pack_that_did_not_fit_is_planned_with_less():
    devices = parse_devices("v5e:16")
    pack = make_plan(large_runs(), devices).packs[0]
    other = replan_with_less_memory(pack, devices, 0.9 * pack.memory)
    assert other.memory <= 0.9 * pack.memory
    assert other.runs == pack.runs
    kept = replan_with_less_memory(
        pack, devices, 0.9 * pack.memory, n_slots=pack.n_slots, mesh=pack.mesh
    )
    assert kept.mesh == pack.mesh
    least = replan_with_less_memory(pack, devices, 1.0)
    assert replan_with_less_memory(least, devices, 1.0) is None


def test_how_many_devices_would_do():
    devices = parse_devices("v5e:2")
    pack = make_plan(large_runs(), devices).packs[0]
    assert not fits(pack, devices)
    count = enough_devices(pack, devices)
    assert fits(make_plan(large_runs(), parse_devices(f"v5e:{count}")).packs[0], devices)
    assert not fits(make_plan(large_runs(), parse_devices(f"v5e:{count // 2}")).packs[0], devices)


def test_each_platform_has_its_attention():
    def attention(platform, n_ctx, compute_dtype="bfloat16"):
        model = TransformerSpec(n_layer=2, d_model=64, n_ctx=n_ctx, vocab_size=512)
        return default_attention(platform, model, compute_dtype)

    assert attention("tpu", 1024) == "splash"
    assert attention("tpu", 100) == "xla"
    assert attention("gpu", 1024) == "cudnn"
    assert attention("gpu", 1024, "float32") == "xla"
    assert attention("cpu", 1024) == "xla"


def test_heads_too_wide_for_a_gpu_are_computed_by_xla_with_the_reason():
    def choice(d_head, kind, compute_dtype="bfloat16"):
        model = TransformerSpec(
            n_layer=1, d_model=64, n_head=2, d_attn=2 * d_head, n_ctx=128, vocab_size=512
        )
        return choose_attention("gpu", model, compute_dtype, kind)

    assert choice(44, "a100") == ("cudnn", None)
    assert choice(160, "h100") == ("cudnn", None)
    assert choice(160, "a100") == (
        "xla",
        "the flash kernel takes heads of at most 128 here, not of 160",
    )
    assert choice(160, "some other gpu").kernel == "xla"
    assert choice(257, "h200").kernel == "xla"
    assert "not float32" in choice(64, "h100", "float32").reason
    key = ProgramKey.of(runs()[0].spec)
    assert "not float32" in slow_attention(key, parse_devices("h100"))
    assert slow_attention(key, parse_devices("cpu:1")) is None
    recurrent = LSTMSpec(n_layer=1, d_hidden=8, d_embed=8, n_ctx=16, vocab_size=32)
    key = dataclasses.replace(key, model=recurrent)
    assert slow_attention(key, parse_devices("h100")) is None


def test_masked_documents_are_computed_by_xla_on_a_gpu_with_the_reason_and_their_memory():
    model = TransformerSpec(n_layer=2, d_model=64, n_ctx=1024, vocab_size=512)
    masked = dataclasses.replace(model, document_separator=1)
    assert choose_attention("gpu", masked, "bfloat16", "h100") == (
        "xla",
        "the flash kernel has no mask between documents (mask_documents)",
    )
    assert choose_attention("tpu", masked, "bfloat16", "v5e") == ("splash", None)
    crossing, apart = (
        dataclasses.replace(runs()[0].spec, model=one, compute_dtype="bfloat16")
        for one in (model, masked)
    )
    assert "between documents" in slow_attention(ProgramKey.of(apart), parse_devices("h100"))
    config = StepConfig(micro_batch=8)
    more = device_memory(apart, "gpu", config, "h100") - device_memory(
        crossing, "gpu", config, "h100"
    )
    # Scores in float32 and weights in bfloat16, of one head, in each of two layers.
    assert more == pytest.approx(8 * 1024 * 2 * 6 * 1024, rel=0.1)
    assert device_memory(apart, "tpu", config) == device_memory(crossing, "tpu", config)


@pytest.mark.parametrize("mesh", [(2, 2, 1), (1, 4, 1), (1, 2, 2), (4, 1, 1)])
def test_the_mesh_can_be_chosen(mesh):
    plan = make_plan(runs(), parse_devices("h100:4"), mesh=mesh)
    assert {pack.mesh for pack in plan.packs} == {mesh}
    for pack in plan.packs:
        assert pack.n_slots % mesh[0] == 0
        assert pack.micro_batch % mesh[1] == 0


@pytest.mark.parametrize(
    ("mesh", "whole", "says"),
    [
        ((2, 4, 1), False, "the mesh 2x4x1 needs 8 devices, but there are 4"),
        ((1, 2, 1), True, "the mesh 1x2x1 uses 2 devices, but there are 4"),
        ((1, 3, 1), False, "batches of 8 sequences"),
    ],
)
def test_a_mesh_that_cannot_be_is_refused(mesh, whole, says):
    with pytest.raises(MeshError, match=says):
        make_plan(runs(), parse_devices("h100:4"), mesh=mesh, whole=whole)


@pytest.mark.parametrize("devices", ["cpu:4", "h100:16", "v5e:8"])
@pytest.mark.parametrize("n_seeds", [1, 3])
def test_processes_that_train_together_use_every_device_one_pack_at_a_time(devices, n_seeds):
    devices = parse_devices(devices)
    plan = make_plan(runs(seeds=range(n_seeds)), devices, whole=True)
    assert plan.workers == 1
    assert {math.prod(pack.mesh) for pack in plan.packs} == {devices.count}


def test_the_number_of_slots_can_be_chosen():
    pack = make_plan(runs(), parse_devices("cpu:2"), n_slots=3).packs[0]
    assert (pack.n_slots, pack.mesh) == (3, (1, 1, 1))
    pack = make_plan(runs(), parse_devices("cpu:2"), n_slots=4).packs[0]
    assert (pack.n_slots, pack.mesh) == (4, (2, 1, 1))


def test_shards_are_disjoint_complete_and_balanced():
    everything = runs()
    shards = [shard_runs(everything, i, 4) for i in range(4)]
    hashes = [run.spec.hash for shard in shards for run in shard]
    assert sorted(hashes) == sorted({run.spec.hash for run in everything})
    loads = [sum(flops.training_flops(r.spec, "exact") for r in shard) for shard in shards]
    assert max(loads) < 1.6 * min(loads)


@pytest.mark.parametrize("text", ["", "cpu:0", "h100:", "abacus", "h100:8:2"])
def test_unknown_devices_are_refused(text):
    with pytest.raises(DeviceError, match="KIND"):
        parse_devices(text)


def test_the_divisors_of_a_batch_are_found_quickly_however_large_it_is():
    for number in (*range(1, 200), 10_000, 10_007):
        assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]
    begun = time.process_time()
    assert divisors(2**40) == [2**i for i in range(41)]
    assert time.process_time() - begun < 5


def test_a_slice_of_several_hosts_trains_as_a_whole():
    """Fifteen runs were planned on 15 of 16 chips, which no launch of its four processes could do."""
    fifteen = runs(models=[TransformerSpec(n_layer=1, d_model=16, n_ctx=64, vocab_size=512)])
    fifteen = [
        dataclasses.replace(one, spec=dataclasses.replace(one.spec, seed=seed))
        for one in fifteen[:1]
        for seed in range(15)
    ]
    for device in ("v5e:16", "v5p:8", "v5e:512"):
        plan = make_plan(fifteen, parse_devices(device))
        assert {math.prod(pack.mesh) for pack in plan.packs} == {plan.devices.count}
    # One host's chips, and GPUs, may be left free.
    (pack,) = make_plan(fifteen[:7], parse_devices("v5e:8"), n_slots=7).packs
    assert pack.mesh == (7, 1, 1)
    assert not parse_devices("h100:16").train_together
