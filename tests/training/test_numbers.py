"""Numbers that go bad: a run that ends in NaN is diverged wherever it shows, and says where it was."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from lmscale.files import read_json
from lmscale.planner.devices import local_devices
from lmscale.planner.packs import make_plan
from lmscale.progress import progress
from lmscale.sweep import execute as execution
from lmscale.sweep.execute import execute
from lmscale.sweep.experiment import Run
from lmscale.sweep.store import Store
from lmscale.training.loop import LOST_GRADIENTS, Preempted
from lmscale.training.spikes import BLOCK, SpikeCounter
from tests.training.specs import run_spec

WILD = {"peak_lr": 1e30, "grad_clip": None}


def train(path, corpus, *specs, stop=lambda: False, checkpoint_seconds=60.0):
    """Trains the specs side by side; returns their folders."""
    store = Store(path)
    runs = [Run(spec, {}) for spec in specs]
    plan = make_plan(runs, local_devices(), n_slots=len(runs), mesh=(1, 1, 1))
    with progress("training", plan.flops) as bar:
        execute(
            plan,
            store,
            lambda name: corpus,
            bar,
            checkpoint_seconds=checkpoint_seconds,
            stop=stop,
        )
    return [store.folder(run) for run in runs]


@pytest.mark.slow
def test_an_evaluation_that_is_no_number_after_the_last_step_is_a_divergence(tmp_path, corpus):
    """The loss of the only step is taken before its update, so it is a good one."""
    wild = run_spec(corpus, steps=1, schedule={"warmup_steps": 1}, optimizer=WILD)
    tame = dataclasses.replace(wild, optimizer=dataclasses.replace(wild.optimizer, peak_lr=1e-3))
    [bad, good] = train(tmp_path, corpus, wild, tame)
    status, result = bad.state()
    assert status["status"] == result["status"] == "diverged"
    loss = bad.metrics()[0]["loss"]
    assert (
        f"evaluation set valid is nan after step 1; the last good loss is {loss:.4g} at step 1"
        in (status["reason"])
    )
    assert result["losses"] == {} and result["evaluations"] == [] and result["train_loss"] is None
    # JSON that any reader takes, and a pack-mate that notices nothing.
    assert "NaN" not in (bad.path / "result.json").read_text()
    [alone] = train(tmp_path / "alone", corpus, tame)
    assert good.result()["status"] == "done"
    np.testing.assert_allclose(
        good.result()["losses"]["valid"], alone.result()["losses"]["valid"], rtol=1e-6
    )


@pytest.mark.slow
def test_a_finite_loss_far_above_that_of_guessing_is_a_divergence(tmp_path, corpus):
    wild = run_spec(corpus, optimizer={"peak_lr": 300.0})
    tame = dataclasses.replace(wild, optimizer=dataclasses.replace(wild.optimizer, peak_lr=1e-3))
    [bad, good] = train(tmp_path, corpus, wild, tame)
    assert good.status()["status"] == "done"
    assert bad.status()["status"] == "diverged" and bad.result()["losses"] == {}
    reason = bad.status()["reason"]
    assert re.search(r"valid is \d\S* after step 12, more than the 5.7 of guessing", reason)
    found = float(re.search(r"valid is (\S+)", reason)[1])
    assert math.isfinite(found) and found > math.log(300) + 1


@pytest.mark.slow
def test_a_parameter_that_is_no_number_at_the_end_is_a_divergence(tmp_path, corpus):
    """Where there is no evaluation, nothing else shows it."""
    spec = run_spec(
        corpus, steps=1, evals=(), schedule={"warmup_steps": 1}, optimizer=WILD | {"peak_lr": 1e39}
    )
    [folder] = train(tmp_path, corpus, spec)
    assert folder.result()["status"] == "diverged"
    assert (
        "a parameter is not finite after step 1; the last good loss is"
        in (folder.status()["reason"])
    )


def test_a_training_loss_that_is_no_number_says_where_it_was_last_good(tmp_path, corpus):
    spec = run_spec(corpus, optimizer=WILD, schedule={"warmup_steps": 0})
    [folder] = train(tmp_path, corpus, spec)
    reason = folder.status()["reason"]
    assert reason.startswith("the training loss is nan at step 2; the last good loss is ")
    assert reason.endswith(" at step 1")
    assert folder.result()["reason"] == reason


def changed_metrics(monkeypatch, change):
    """Programs whose metrics of a dispatch go through `change(name, values [steps, R], first step)`."""
    real = execution.program_of

    def program_of(*args):
        program = real(*args)
        unchanged = program.train

        def train(state, hyper, data, n_steps, active):
            first = int(np.asarray(state["step"]).max())
            state, metrics = unchanged(state, hyper, data, n_steps, active)
            return state, {k: change(k, np.array(v), first) for k, v in metrics.items()}

        program.train = train
        return program

    monkeypatch.setattr(execution, "program_of", program_of)


@pytest.mark.slow
def test_a_gradient_norm_that_stays_infinite_is_a_divergence(tmp_path, corpus, monkeypatch):
    def change(name, values, first):
        if name == "grad_norm":
            steps = first + 1 + np.arange(len(values))
            # One step alone is not enough.
            values[(steps == 3) | (steps >= 6)] = math.inf
        return values

    changed_metrics(monkeypatch, change)
    spec = run_spec(corpus, steps=40)
    [folder] = train(tmp_path, corpus, spec)
    result = folder.result()
    assert result["status"] == "diverged" and result["steps"] == 6 + LOST_GRADIENTS - 1 == 15
    assert "the gradient norm is inf at step 15 as in the 9 steps before" in result["reason"]
    norms = [record["grad_norm"] for record in folder.metrics()]
    assert norms[2] is None and norms[3] is not None


@pytest.mark.slow
def test_spikes_are_counted_alike_however_a_run_is_cut(tmp_path, corpus, monkeypatch):
    def change(name, values, first):
        if name == "loss":
            steps = first + 1 + np.arange(len(values))
            values[np.isin(steps, (50, 130, 131, 160))] += 50.0
        return values

    changed_metrics(monkeypatch, change)
    spec = run_spec(corpus, steps=2 * BLOCK, eval_steps=(120, 131, 150))
    [folder] = train(tmp_path / "whole", corpus, spec)
    # The first block has none before it to be held against; two steps in a row are one spike.
    assert folder.result()["loss_spikes"] == 2
    asked = iter(range(1000))
    with pytest.raises(Preempted):
        train(tmp_path / "cut", corpus, spec, stop=lambda: next(asked) == 3)
    [again] = train(tmp_path / "cut", corpus, spec)
    assert (again.path / "result.json").read_bytes() == (folder.path / "result.json").read_bytes()


def test_a_spike_lies_six_deviations_above_the_block_before():
    rng = np.random.default_rng(0)
    counter = SpikeCounter()
    losses = rng.normal(3.0, 0.1, 5 * BLOCK)
    counter.add(losses.tolist())
    assert counter.count == 0
    middle = float(np.median(losses[-BLOCK:]))
    spread = float(np.median(np.abs(losses[-BLOCK:] - middle))) / 0.6745
    counter.add([middle + 5.9 * spread, middle + 6.1 * spread, middle + 7 * spread, middle])
    counter.add([middle + 6.1 * spread])
    assert counter.count == 2
    saved = json.loads(json.dumps(counter.save()))
    assert SpikeCounter(saved).save() == counter.save()


def test_results_hold_no_nan_and_the_table_has_the_spikes(tmp_path, corpus):
    [folder] = train(tmp_path, corpus, run_spec(corpus))
    assert read_json(folder.path / "result.json")["loss_spikes"] == 0
    experiment = {"name": "x", "runs": [{"run": folder.run_id, "labels": {"family": "t"}}]}
    (tmp_path / "experiment.json").write_text(json.dumps(experiment))
    assert Store(tmp_path).table()["loss_spikes"].tolist() == [0]
