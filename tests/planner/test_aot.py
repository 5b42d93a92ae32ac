"""The arithmetic of compiled plans; the compilers themselves where they are installed."""

import dataclasses
import io
import json
import math
import subprocess

import jax
import pytest

from lmscale import flops
from lmscale.planner import aot, topology
from lmscale.planner.compiled import Compiled, roofline, roofline_hours
from lmscale.planner.devices import parse_devices
from lmscale.planner.packs import make_plan
from lmscale.planner.programs import slow_attention
from lmscale.planner.roofline import executed_flops
from lmscale.planner.topology import compiler
from lmscale.spec import LSTMSpec, TransformerSpec
from lmscale.sweep.experiment import Run
from tests.planner.large_models import LargeModels
from tests.planner.test_packs import runs
from tests.training.specs import run_spec

TOKENS = (10_000_000, "uint16")


class Corpus:
    name = fingerprint = "none"


def large_plan(device="v5e:16", name="transformer-124M"):
    return make_plan(LargeModels(models=(name,)).runs(Corpus), parse_devices(device))


def compiled(peak_bytes, **known):
    values = {
        "peak_bytes": peak_bytes,
        "arguments": 0.0,
        "tokens": 0.0,
        "hbm_bytes": 819e9,
        "sent": {"all-gather": 100e9, "all-reduce": 50e9},
        "network": 0.0,
        "largest": (),
        "seconds": 1.0,
        "cpu_seconds": 1.0,
    }
    return Compiled(**{**values, **known})


def test_a_step_takes_as_long_as_the_resource_that_it_needs_longest():
    plan = large_plan()
    (pack,) = plan.packs
    bounds = roofline(pack, plan.devices, compiled(1e9))
    spec = pack.runs[0].spec
    assert bounds.compute == pytest.approx(
        executed_flops(spec, pack.step_config, "tpu") / 16 / 197e12
    )
    assert bounds.memory == pytest.approx(1.0)
    assert bounds.links == pytest.approx(0.75)
    assert (bounds.step, bounds.bound) == (1.0, "memory")
    hours = roofline_hours(pack, plan.devices, compiled(1e9))
    assert hours == pytest.approx(spec.steps / 3600)


def test_what_leaves_a_host_goes_over_its_network():
    plan = large_plan("h100:64")
    bounds = roofline(plan.packs[0], plan.devices, compiled(1e9, network=25e9))
    assert bounds.links == pytest.approx(125e9 / 450e9 + 1.0)


def test_what_is_computed_twice_costs_time():
    plan = large_plan()
    spec, how = plan.packs[0].runs[0].spec, plan.packs[0].step_config
    plain = dataclasses.replace(how, remat=False, logit_pieces=1)
    remat = dataclasses.replace(plain, remat=True)
    parts = dataclasses.replace(plain, logit_pieces=8)
    assert 1.1 < executed_flops(spec, remat, "tpu") / executed_flops(spec, plain, "tpu") < 4 / 3
    assert executed_flops(spec, parts, "tpu") == executed_flops(spec, plain, "tpu")


def test_results_are_kept_by_all_that_they_depend_on():
    plan = large_plan()
    (pack,) = plan.packs

    def key(pack=pack, devices=plan.devices, tokens=TOKENS, effort="low"):
        return aot.cache_key(aot._request(pack, devices, tokens, effort))

    longer = dataclasses.replace(pack.runs[0].spec, steps=7000, seed=3)
    same = dataclasses.replace(pack, runs=(dataclasses.replace(pack.runs[0], spec=longer),))
    assert key() == key(same)
    others = [
        key(dataclasses.replace(pack, micro_batch=16)),
        key(dataclasses.replace(pack, remat=True)),
        key(devices=parse_devices("v6e:16")),
        key(tokens=(1, "uint16")),
        key(effort="full"),
    ]
    assert len({key(), *others}) == 6


def ask(monkeypatch, plan, results):
    """What comes of a plan when the compiler says these, one after the other."""
    said = iter(results)
    asked = []

    def compile_pack(pack, devices, tokens, *, effort):
        asked.append(pack)
        return next(said)

    monkeypatch.setattr(aot, "compile_pack", compile_pack)
    monkeypatch.setattr(aot, "require_compiler", lambda devices: None)
    return aot.ask_compiler(plan, "all", TOKENS), asked


def test_what_does_not_fit_is_planned_anew(monkeypatch):
    plan = large_plan()
    (answer,), asked = ask(monkeypatch, plan, [compiled(20e9), compiled(10e9)])
    assert [pack for pack, _ in answer.refused] == asked[:1]
    assert answer.pack is asked[1]
    assert answer.pack.memory < asked[0].memory
    assert answer.compiled.fits(plan.devices)


def test_attempts_come_to_an_end(monkeypatch):
    plan = large_plan("v5e:4", "chinchilla-6.8B")
    (answer,), asked = ask(monkeypatch, plan, [compiled(80e9)] * 9)
    assert not answer.compiled.fits(plan.devices)
    assert len(asked) <= 1 + aot.ATTEMPTS


def test_the_largest_packs_are_compiled():
    plan = make_plan(LargeModels().runs(Corpus), parse_devices("v5p:64"))
    # The most FLOPs come first.
    packs = [dataclasses.replace(pack, memory=float(i)) for i, pack in enumerate(plan.packs)]
    assert aot.chosen(dataclasses.replace(plan, packs=tuple(packs)), "largest") == {0, 5}
    assert aot.chosen(plan, "all") == set(range(6))


def test_a_missing_compiler_says_what_to_install(monkeypatch):
    monkeypatch.setattr(aot, "compiler", lambda platform: None)
    with pytest.raises(aot.CompileError, match=r"pip install 'lmscale\[tpu\]'"):
        aot.require_compiler(parse_devices("v5e:16"))
    with pytest.raises(aot.CompileError, match=r"pip install 'lmscale\[cuda13-aot\]'"):
        aot.require_compiler(parse_devices("h100"))
    with pytest.raises(aot.CompileError, match="--device"):
        aot.require_compiler(parse_devices("cpu:2"))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (NotImplementedError("head dim must be\n\nmore"), "NotImplementedError: head dim must be"),
        (ValueError(""), "ValueError"),
    ],
)
def test_the_reason_of_a_failed_compilation_is_the_error_itself(monkeypatch, capsys, error, says):
    """jax ends a traceback with a note on frames that it hides, and so did we."""

    def fails(request):
        raise error

    monkeypatch.setattr(aot, "_compile", fails)
    monkeypatch.setattr("sys.stdin", io.StringIO("{}"))
    assert aot.main() == 0
    found = Compiled.from_json(json.loads(capsys.readouterr().out))
    assert found.error == f"the compiler: {says}"
    assert not found.fits(parse_devices("h100"))


@pytest.mark.parametrize(("code", "says"), [(3, "exit code 3: the end"), (-11, "SIGSEGV: the end")])
def test_a_compiler_that_crashes_ends_only_its_own_process(monkeypatch, own_cache, code, says):
    def crashes(*args, **options):
        return subprocess.CompletedProcess(args, code, "", "first\nthe end\n")

    monkeypatch.setattr(subprocess, "run", crashes)
    plan = large_plan()
    found = aot.compile_pack(plan.packs[0], plan.devices, TOKENS)
    assert found.error == f"the compiler ended with {says}"


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LMSCALE_CACHE", str(tmp_path))


needs_tpu = pytest.mark.skipif(
    compiler("tpu") is None, reason="needs the TPU compiler: pip install 'lmscale[tpu]'"
)
needs_gpu = pytest.mark.skipif(
    compiler("gpu") is None, reason="needs XLA for GPUs: pip install 'lmscale[cuda13-aot]'"
)


@needs_tpu
@pytest.mark.slow
def test_runs_side_by_side_on_a_tpu_slice_send_nothing(own_cache):
    devices = parse_devices("v5e:64")
    model = TransformerSpec(n_layer=2, d_model=64, n_ctx=128, vocab_size=512)
    (pack,) = make_plan(runs([model], seeds=range(32)), devices).packs
    assert pack.mesh == (64, 1, 1)
    assert pack.n_slots == 64
    found = aot.compile_pack(pack, devices, TOKENS)
    assert found.error is None
    assert found.sent == {}
    assert found.fits(devices)


@needs_tpu
@pytest.mark.slow
def test_a_tpu_plan_is_as_the_compiler_says(own_cache):
    plan = large_plan("v5e:16")
    (answer,) = aot.ask_compiler(plan, "all", TOKENS)
    assert answer.refused == ()
    assert answer.compiled.fits(plan.devices)
    assert answer.pack.memory == pytest.approx(answer.compiled.peak_bytes, rel=0.15)
    # Weights are gathered and gradients reduced for every micro-batch, logits and activations are not.
    n_bytes = 2 * 124e6
    n_micro_batches = answer.pack.runs[0].spec.batch_size // answer.pack.micro_batch
    assert sum(answer.compiled.sent.values()) < 4 * n_micro_batches * n_bytes


@needs_gpu
@pytest.mark.slow
def test_a_gpu_plan_is_as_the_compiler_says(own_cache):
    plan = large_plan("h100:8")
    (pack,) = plan.packs
    found = aot.compile_pack(pack, plan.devices, TOKENS)
    assert found.error is None
    assert pack.memory == pytest.approx(found.peak_bytes, rel=0.15)
    assert {"all-gather", "reduce-scatter"} <= set(found.sent)


@needs_gpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("d_head", "mesh"), [(44, (1, 1, 1)), (44, (2, 4, 1)), (44, (2, 2, 2)), (256, (1, 1, 1))]
)
def test_odd_and_wide_heads_compile_for_a_gpu_on_every_mesh(own_cache, d_head, mesh):
    """Heads of other widths than multiples of 8 were refused, and so were packs with a data axis."""
    devices = parse_devices(f"h100:{math.prod(mesh)}")
    model = TransformerSpec(
        n_layer=1, d_model=2 * d_head, n_head=2, d_ff=64, n_ctx=128, vocab_size=512
    )
    several = [
        dataclasses.replace(run, spec=dataclasses.replace(run.spec, compute_dtype="bfloat16"))
        for run in runs([model], seeds=range(2))
    ]
    (pack,) = make_plan(several, devices, mesh=mesh).packs
    found = aot.compile_pack(pack, devices, TOKENS)
    assert (found.error, found.unknown) == (None, ())
    assert slow_attention(pack.key, devices) is None
    assert bool(found.sent) == (mesh[1] * mesh[2] > 1)


@needs_gpu
@pytest.mark.slow
def test_a_time_step_of_an_lstm_launches_few_kernels(own_cache, monkeypatch):
    """Five forward, six backward: they were eleven forward, seven of which saved what backward read."""
    devices = parse_devices("h100")
    model = LSTMSpec(n_layer=1, d_hidden=256, d_embed=256, n_ctx=128, vocab_size=512)
    several = [
        dataclasses.replace(run, spec=dataclasses.replace(run.spec, compute_dtype="bfloat16"))
        for run in runs([model], seeds=range(8))
    ]
    (pack,) = make_plan(several, devices, n_slots=8).packs
    found = aot.compile_pack(pack, devices, TOKENS)
    assert found.error is None
    assert found.kernels < 12 * model.n_ctx + 250


@pytest.mark.slow
def test_a_program_is_compiled_and_read_as_in_the_other_process(monkeypatch):
    """All but the stand-ins for devices: these are CPUs that are here."""
    monkeypatch.setattr(topology, "absent_devices", lambda *args: jax.devices())
    devices = parse_devices("cpu:1")
    spec = run_spec()
    (pack,) = make_plan([Run(spec, {})], devices).packs
    monkeypatch.setattr(aot, "compiler", lambda platform: None)
    request = aot._request(pack, devices, TOKENS, "low")
    found = aot._compile({**request, "spec": spec.to_dict(), "files": []})
    assert found.error is None and found.sent == {}
    assert 0 < found.arguments < found.peak_bytes
    # The parameters, gradients and moments at the least.
    assert found.hbm_bytes > 4 * 4 * flops.n_params(spec.model, "exact")
    assert Compiled.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert {"needs", "touched"} < found.to_json().keys()
