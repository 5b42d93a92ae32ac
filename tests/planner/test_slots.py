"""How many runs train side by side is measured once, recorded and kept; and what is compiled ahead."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from lmscale.files import read_json
from lmscale.planner import slots
from lmscale.planner.devices import local_devices, parse_devices
from lmscale.planner.packs import make_plan
from lmscale.planner.programs import CompileAhead, mesh_of, program_of
from lmscale.planner.slots import SlotChoices, best_number
from lmscale.progress import progress
from lmscale.sweep import execute as execution
from lmscale.sweep.execute import execute
from lmscale.sweep.experiment import Run
from lmscale.sweep.store import Store
from lmscale.training.batch_source import BatchSource
from lmscale.training.state import packed_hyperparameters
from tests.training.specs import LSTM, run_spec

pytestmark = pytest.mark.usefixtures("compile_quickly")


@pytest.mark.parametrize(
    ("planned", "unit", "most", "rates", "best"),
    [
        (4, 1, 16, {4: 100, 8: 150, 16: 160}, 16),
        (4, 1, 8, {4: 100, 8: 150}, 8),
        (4, 1, 16, {4: 100, 8: 150, 16: 0}, 8),
        # No faster: as few as train as much.
        (4, 1, 16, {4: 100, 8: 102, 2: 99, 1: 60}, 2),
        (4, 1, 16, {4: 100, 8: 90, 2: 130, 1: 140}, 1),
        # What was planned does not fit.
        (4, 1, 16, {4: 0, 8: 0, 2: 10, 1: 5}, 2),
        # A whole number of slots a device.
        (16, 8, 16, {16: 100, 8: 110}, 8),
        (3, 1, 5, {3: 100}, 3),
    ],
)
def test_the_number_that_trains_most_is_found(planned, unit, most, rates, best):
    # A number that is asked for in vain is a KeyError.
    assert best_number(planned, unit, most, rates.__getitem__) == best


def packs_of(*specs, n_slots=1):
    runs = [Run(spec, {}) for spec in specs]
    return make_plan(runs, local_devices(), n_slots=n_slots).packs


def seeds(n, **fields):
    return [run_spec(seed=seed, **fields) for seed in range(n)]


def test_a_choice_is_measured_once_and_kept(tmp_path):
    (pack,) = packs_of(*seeds(8))
    here, machine, log = tmp_path / "store", tmp_path / "machine", []
    devices = local_devices()

    def settle(pack, rate, *folders):
        return SlotChoices(folders, devices, worth=0.0).settle(pack, rate, log.append)

    def rate(pack):
        return {1: 10.0, 2: 30.0, 4: 31.0, 8: 0.0}[pack.n_slots]

    def never(pack):
        raise AssertionError("measured again")

    chosen = settle(pack, rate, here, machine)
    assert chosen.n_slots == 4 and chosen.memory == 4 * pack.memory
    assert len(log) == 4
    (file,) = here.iterdir()
    assert read_json(file) == {
        "model": pack.key.model.label,
        "device": "cpu",
        "n_slots": 4,
        "chosen": "measured",
        "tokens_per_second": {"1": 10.0, "2": 30.0, "4": 31.0, "8": 0.0},
    }
    # By the store alone, and by another store of this machine, which keeps it.
    assert settle(pack, never, here) == chosen
    assert SlotChoices((here,), devices).planned(pack) == chosen
    assert settle(pack, never, tmp_path / "other", machine) == chosen
    assert settle(pack, never, tmp_path / "other") == chosen
    # Another kind of run has another speed.
    (longer,) = packs_of(*seeds(8, batch_size=8))
    assert SlotChoices((here,), devices).planned(longer) == longer


def test_a_store_finds_the_choices_of_an_earlier_version(tmp_path, monkeypatch):
    """The name of a pack's file is what it was when the first stores were written."""
    monkeypatch.setattr(jax, "__version__", "0.10.2")
    (pack,) = packs_of(*seeds(2))
    devices = dataclasses.replace(local_devices(), count=1)
    assert SlotChoices((tmp_path,), devices)._name(pack) == "40abca0bb3719c05.json"


def test_what_was_measured_with_a_scan_is_not_taken_for_the_kernel(tmp_path, monkeypatch):
    model = dataclasses.replace(LSTM, d_hidden=8)
    (pack,) = packs_of(run_spec(model=model, compute_dtype="bfloat16"))

    def names():
        on = (parse_devices(kind) for kind in ("h100", "cpu:1"))
        return [SlotChoices((tmp_path,), devices)._name(pack) for devices in on]

    scan = names()
    monkeypatch.setenv("LMSCALE_LSTM", "kernel")
    kernel = names()
    assert scan[0] != kernel[0] and scan[1] == kernel[1]


def test_what_was_measured_with_the_fused_head_is_not_taken_for_the_plain_one(
    tmp_path, monkeypatch
):
    (pack,) = packs_of(*seeds(2))

    def names():
        on = (parse_devices(kind) for kind in ("h100", "cpu:1"))
        return [SlotChoices((tmp_path,), devices)._name(pack) for devices in on]

    fused = names()
    monkeypatch.setenv("LMSCALE_HEAD", "xla")
    plain = names()
    assert fused[0] != plain[0] and fused[1] == plain[1]


def test_a_short_pack_is_trained_as_planned(tmp_path):
    (pack,) = packs_of(*seeds(8))

    def never(pack):
        raise AssertionError("measured")

    assert SlotChoices((tmp_path,), local_devices()).settle(pack, never, print) == pack
    (file,) = tmp_path.iterdir()
    found = json.loads(file.read_text())
    assert (found["chosen"], found["n_slots"]) == ("predicted", 1)


def test_another_error_than_memory_is_not_a_speed(tmp_path):
    (pack,) = packs_of(*seeds(2))

    def broken(pack):
        raise jax.errors.JaxRuntimeError("INTERNAL: no kernel")

    with pytest.raises(jax.errors.JaxRuntimeError, match="no kernel"):
        SlotChoices((tmp_path,), local_devices(), worth=0.0).settle(pack, broken, print)
    assert not list(tmp_path.iterdir())


def train(store, corpus, specs, *, worth, n_slots=1):
    runs = [Run(spec, {}) for spec in specs]
    for run in runs:
        store.folder(run).create()
    devices = local_devices()
    plan = make_plan(runs, devices, n_slots=n_slots)
    choices = SlotChoices((store.path / "slots",), devices, worth=worth)
    with progress("training", plan.flops) as bar:
        execute(plan, store, lambda name: corpus, bar, choices=choices)
    return [store.folder(run).result() for run in runs]


@pytest.mark.slow
def test_a_sweep_measures_and_trains(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr(slots, "TIMED_SECONDS", 0.0)
    store = Store(tmp_path)
    specs = [run_spec(corpus, seed=seed) for seed in range(2)]
    results = train(store, corpus, specs, worth=0.0)
    assert [result["status"] for result in results] == ["done"] * 2
    (file,) = (tmp_path / "slots").iterdir()
    known = json.loads(file.read_text())
    assert known["chosen"] == "measured" and known["n_slots"] in (1, 2)
    assert min(known["tokens_per_second"].values()) > 0
    before = file.read_bytes()
    more = [run_spec(corpus, seed=seed) for seed in range(2, 4)]
    train(store, corpus, [*specs, *more], worth=0.0)
    assert file.read_bytes() == before


@pytest.mark.slow
def test_runs_that_are_due_together_are_evaluated_at_once(tmp_path, corpus, monkeypatch):
    calls = []

    def counting(*args):
        program = program_of(*args)
        plain = program.evaluate

        def evaluate(*args):
            calls.append(1)
            return plain(*args)

        program.evaluate = evaluate
        return program

    specs = [run_spec(corpus, seed=seed, eval_every=6) for seed in range(2)]
    apart = train(Store(tmp_path / "apart"), corpus, specs, worth=1e9)
    monkeypatch.setattr(execution, "program_of", counting)
    together = train(Store(tmp_path / "together"), corpus, specs, worth=1e9, n_slots=2)
    # Half-way and at the end.
    assert len(calls) == 2
    for one, other in zip(apart, together, strict=True):
        assert one["losses"]["valid"] == pytest.approx(other["losses"]["valid"], rel=1e-5)
    assert len({result["losses"]["valid"] for result in together}) == 2


@pytest.fixture
def own_cache(tmp_path):
    """A compilation cache that no other test writes to."""
    shared = jax.config.jax_compilation_cache_dir
    for folder in (tmp_path, shared):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        compilation_cache.reset_cache()
        if folder is tmp_path:
            yield tmp_path


def test_what_is_compiled_ahead_is_found(corpus, own_cache):
    """In the persistent cache: the training step of a pack that nobody has trained."""
    model = dataclasses.replace(LSTM, d_hidden=20)
    (pack,) = packs_of(run_spec(corpus, model=model, seed=1), n_slots=1)
    mesh = mesh_of(pack, jax.devices())
    source = BatchSource(corpus, mesh)
    program = program_of(pack, mesh, "cpu")
    state = program.reset(program.empty(), np.array([1], np.int32), np.array([True]))

    def steps() -> list[str]:
        return [file.name for file in own_cache.glob("jit_train-*-cache")]

    assert not steps()
    ahead = CompileAhead()
    ahead.begin(program, pack, source.corpus_shape)
    ahead.wait()
    made = steps()
    assert len(made) == 1
    spec, n = pack.runs[0].spec, pack.chunk_steps
    data = source.chunk([(spec, source.order(spec), 0)], n, n)
    hyper = packed_hyperparameters([spec])
    _, metrics = program.train(state, hyper, data, np.int32(1), np.array([True]))
    assert np.isfinite(metrics["loss"][0, 0])
    assert steps() == made
