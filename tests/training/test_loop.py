"""What ends, begins and measures a run: early stopping, branches, chosen evaluations, noise."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from lmscale.data import n_sequences, sequence_order
from lmscale.data.loader import batch_indices, gather, overlapping_starts
from lmscale.planner.devices import local_devices
from lmscale.planner.packs import make_plan
from lmscale.progress import progress
from lmscale.spec import SpecError, StartSpec, StoppingSpec
from lmscale.sweep.execute import execute
from lmscale.sweep.experiment import Run
from lmscale.sweep.shards import shard_runs
from lmscale.sweep.store import Store
from lmscale.training.checkpoint import saved_steps
from lmscale.training.loss import token_losses
from lmscale.training.state import ProgramKey, initial_state
from lmscale.training.trained import trained_state
from tests.training.specs import run_spec

TRUNK_SCHEDULE = {"name": "constant", "warmup_steps": 3}


def train(path, corpus, *specs, n_slots=1, **options):
    """Trains the specs in a store at `path`; returns their results in the same order."""
    store = Store(path)
    runs = [Run(spec, {}) for spec in specs]
    for run in runs:
        store.folder(run).create()
    plan = make_plan(runs, local_devices(), n_slots=n_slots)
    with progress("training", plan.flops) as bar:
        execute(plan, store, lambda name: corpus, bar, **options)
    return [store.folder(run).result() for run in runs]


def branching(corpus, step=6, steps=10):
    """A trunk at a constant rate, its branch that cools down, and the same without the trunk."""
    trunk = run_spec(corpus, schedule=TRUNK_SCHEDULE, steps=8)
    whole = run_spec(
        corpus,
        schedule={"name": "cooldown", "warmup_steps": 3, "cooldown_steps": steps - step},
        steps=steps,
    )
    start = StartSpec(run=trunk.run_id, step=step)
    return trunk, dataclasses.replace(whole, start=start), whole


def test_a_branch_equals_the_run_from_scratch_bit_for_bit(tmp_path, corpus):
    trunk, branch, whole = branching(corpus)
    alone, scratch = train(tmp_path / "apart", corpus, trunk, whole)
    # The branch comes first and waits for its trunk, in the one slot there is.
    branched, again = train(tmp_path / "together", corpus, branch, trunk)
    for name in ("losses", "loss_by_position", "tokens", "flops", "steps"):
        assert branched[name] == scratch[name], name
    assert again["losses"] == alone["losses"]
    store = Store(tmp_path / "together")
    steps = [r["step"] for r in store.folder(Run(branch, {})).metrics()]
    assert min(steps) == 7 and max(steps) == 10


@pytest.mark.slow
def test_a_branch_that_comes_later_has_its_trunk_trained_again(tmp_path, corpus):
    """The trunk kept only the states that were wanted when it was trained."""
    trunk, branch, whole = branching(corpus)
    [alone] = train(tmp_path / "store", corpus, trunk)
    again, branched = train(tmp_path / "store", corpus, trunk, branch)
    [scratch] = train(tmp_path / "scratch", corpus, whole)
    assert again == alone
    assert branched["losses"] == scratch["losses"]


def test_a_branch_of_a_diverged_run_is_diverged(tmp_path, corpus):
    trunk, branch, _ = branching(corpus)
    wild = dataclasses.replace(
        trunk, optimizer=dataclasses.replace(trunk.optimizer, peak_lr=1e30, grad_clip=None)
    )
    branch = dataclasses.replace(branch, start=StartSpec(run=wild.run_id, step=6))
    ends = train(tmp_path, corpus, wild, branch)
    assert [end["status"] for end in ends] == ["diverged", "diverged"]
    assert wild.run_id in ends[1]["reason"]


@pytest.mark.slow
def test_overlapping_windows_are_scored_by_stretch(tmp_path, corpus):
    plain = run_spec(corpus)
    overlapping = dataclasses.replace(
        plain.evals[0], name="positions", tokens=1500, sampling="overlapping"
    )
    spec = dataclasses.replace(plain, evals=(*plain.evals, overlapping))
    (before,), (result,) = train(tmp_path, corpus, plain), train(tmp_path, corpus, spec)
    assert "loss_by_stretch" not in before
    assert result["losses"]["valid"] == before["losses"]["valid"]
    by_stretch = np.array(result["loss_by_stretch"]["positions"])
    starts = overlapping_starts(corpus.n_tokens("valid"), 16, 1500)
    assert list(result["loss_by_stretch"]) == ["positions"]
    assert by_stretch.shape == (len(starts), 16) and len(starts) > 1
    by_position = result["loss_by_position"]["positions"]
    np.testing.assert_allclose(by_stretch.mean(axis=0), by_position, atol=1e-4)
    windows = result["loss_by_window"]["positions"]["loss"]
    assert len(windows) == starts.size
    by_window = np.reshape(windows, starts.shape).mean(axis=1)
    np.testing.assert_allclose(by_stretch.mean(axis=1), by_window, atol=2e-4)
    # Stretches are other text.
    assert np.ptp(by_window) > 1e-3
    assert result["losses"]["positions"] == pytest.approx(np.mean(windows), abs=1e-4)


@pytest.mark.slow
def test_states_that_are_kept_for_good_change_nothing(tmp_path, corpus):
    spec = run_spec(corpus)
    (plain,) = train(tmp_path / "plain", corpus, spec)
    (kept,) = train(tmp_path / "kept", corpus, spec, keep_every=5)
    assert kept["losses"] == plain["losses"] and kept["train_loss"] == plain["train_loss"]
    folder = Store(tmp_path / "kept").folder(Run(spec, {}))
    assert saved_steps(folder.branches) == [5, 10] and saved_steps(folder.checkpoints) == [12]
    states = {step: trained_state(folder, step)[1]["params"] for step in (5, 12)}
    assert trained_state(folder)[0] == 12
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), states[5], states[12])
    assert any(jax.tree.leaves(moved))
    with pytest.raises(SpecError, match="no checkpoint of step 7, but of 5, 10, 12"):
        trained_state(folder, 7)


def test_shards_keep_branches_with_their_trunk(corpus):
    trees = []
    for seed in range(5):
        trunk, branch, _ = branching(corpus)
        trunk = dataclasses.replace(trunk, seed=seed)
        start = StartSpec(run=trunk.run_id, step=6)
        trees.append([trunk, dataclasses.replace(branch, seed=seed, start=start)])
    runs = [Run(spec, {}) for tree in trees for spec in tree]
    shards = [{run.spec for run in shard_runs(runs, i, 3)} for i in range(3)]
    assert sum(map(len, shards)) == len(runs)
    assert all(any(set(tree) <= shard for shard in shards) for tree in trees)


@pytest.mark.slow
def test_early_stopping_keeps_the_lowest_loss(tmp_path, corpus):
    """A few sequences, seen again and again: the test loss turns up."""
    spec = run_spec(corpus, steps=400, eval_every=10, stopping=StoppingSpec(patience=3))
    spec = dataclasses.replace(spec, data=dataclasses.replace(spec.data, subset_tokens=200))
    [stopped] = train(tmp_path, corpus, spec)
    losses = [record["eval"]["valid"]["loss"] for record in stopped["evaluations"]]
    best = int(np.argmin(losses))
    assert stopped["status"] == "done"
    assert stopped["losses"]["valid"] == losses[best]
    assert stopped["evaluated_step"] == 10 * (best + 1)
    assert len(losses) == best + 1 + 3
    assert stopped["steps"] == 10 * len(losses) < 400
    assert stopped["tokens"] == stopped["steps"] * spec.batch_tokens
    # Killed after the last checkpoint and before the result: nothing is trained again.
    folder = Store(tmp_path).folder(Run(spec, {}))
    whole = (folder.path / "result.json").read_bytes()
    (folder.path / "result.json").unlink()
    folder.write_status("running", step=0, seconds=1.0)
    train(tmp_path, corpus, spec)
    assert (folder.path / "result.json").read_bytes() == whole


def test_a_run_that_stops_before_its_first_record_has_no_training_loss(tmp_path, corpus):
    """2,000 steps have a record every ten; the loss of this one rises from the first evaluation on."""
    spec = run_spec(
        corpus,
        steps=2000,
        eval_every=2,
        stopping=StoppingSpec(patience=1),
        optimizer={"peak_lr": 3.0, "grad_clip": None},
    )
    [stopped] = train(tmp_path, corpus, spec)
    assert stopped["status"] == "done" and stopped["steps"] < 10
    assert stopped["train_loss"] is None


def statuses(path, *specs):
    return [Store(path).folder(Run(spec, {})).status() for spec in specs]


def test_a_run_that_cannot_be_trained_fails_alone(tmp_path, corpus):
    good = [run_spec(corpus, steps=10, seed=seed) for seed in (1, 2)]
    bad = run_spec(corpus, steps=12)
    bad = dataclasses.replace(bad, data=dataclasses.replace(bad.data, subset_tokens=10**9))
    train(tmp_path, corpus, bad, *good)
    failed, *done = statuses(tmp_path, bad, *good)
    assert failed["status"] == "failed" and "subset_tokens" in failed["reason"]
    assert [one["status"] for one in done] == ["done", "done"]


@pytest.mark.slow
def test_a_run_whose_records_are_changed_fails_alone_and_is_mended(tmp_path, corpus):
    specs = [run_spec(corpus, steps=40, eval_every=5, seed=seed) for seed in (0, 1)]
    log = Store(tmp_path).folder(Run(specs[0], {})).log_path
    changed = []

    def change_a_bit():
        if log.exists() and len(data := bytearray(log.read_bytes())) > 500 and not changed:
            data[12] ^= 1
            log.write_bytes(bytes(data))
            changed.append(True)
        return False

    train(tmp_path, corpus, *specs, n_slots=2, stop=change_a_bit)
    damaged, sound = statuses(tmp_path, *specs)
    assert changed and damaged["status"] == "failed" and sound["status"] == "done"
    train(tmp_path, corpus, *specs, n_slots=2)
    assert [one["status"] for one in statuses(tmp_path, *specs)] == ["done", "done"]


def test_evaluations_at_chosen_steps(tmp_path, corpus):
    spec = run_spec(corpus, eval_every=5, eval_steps=(1, 2, 7))
    [result] = train(tmp_path, corpus, spec)
    assert [r["step"] for r in result["evaluations"]] == [1, 2, 5, 7, 10, 12]
    plain = train(tmp_path / "plain", corpus, run_spec(corpus))[0]
    assert result["losses"] == plain["losses"]


def test_a_dispatch_gives_each_of_its_steps_an_even_share_of_its_time(tmp_path, corpus):
    spec = run_spec(corpus, steps=8, eval_steps=(4,))
    train(tmp_path, corpus, spec)
    folder = Store(tmp_path).folder(Run(spec, {}))
    records = [r for r in folder.metrics() if "loss" in r]
    # A record a step, and a dispatch up to the evaluation and one after it.
    assert [r["step"] for r in records] == list(range(1, 9))
    rates = [r["tokens_per_second"] for r in records]
    assert len(set(rates[:4])) == len(set(rates[4:])) == 1
    seconds = sum(spec.batch_tokens / rate for rate in rates)
    assert 0 < seconds <= folder.status()["seconds"] + 0.001


@pytest.mark.slow
def test_the_parts_of_the_noise_scale_are_squared_gradient_norms(tmp_path, corpus):
    """Against gradients of the micro-batches, each taken by itself."""
    pieces = 4
    spec = run_spec(
        corpus, batch_size=8, steps=1, noise_pieces=pieces, schedule={"warmup_steps": 1}
    )
    train(tmp_path, corpus, spec)
    metrics = Store(tmp_path).folder(Run(spec, {})).metrics()
    record = next(r for r in metrics if "loss" in r)

    tokens, n_ctx = corpus.tokens("train"), spec.model.n_ctx
    order = sequence_order(n_sequences(len(tokens), n_ctx), 8, spec.seed)
    windows = gather(tokens, batch_indices(order, 0, 1)[0], n_ctx)
    key = ProgramKey.of(spec)
    params = jax.jit(lambda seed: initial_state(key, seed)["params"])(np.int32(spec.seed))
    graphdef = nnx.split(nnx.eval_shape(lambda: spec.model.module(nnx.Rngs(0))))[0]

    @jax.jit
    def squared(windows):
        def loss(params):
            return token_losses(nnx.merge(graphdef, params)(windows[:, :-1]), windows[:, 1:]).mean()

        return sum((g**2).sum() for g in jax.tree.leaves(jax.grad(loss)(params)))

    small = np.mean([squared(windows[i::pieces]) for i in range(pieces)])
    np.testing.assert_allclose(record["piece_grad_squared"], small, rtol=1e-4)
    np.testing.assert_allclose(record["grad_squared"], squared(windows), rtol=1e-4)


@pytest.mark.slow
def test_measuring_noise_does_not_change_the_training(tmp_path, corpus):
    measured, plain = (
        train(tmp_path / str(pieces), corpus, run_spec(corpus, noise_pieces=pieces))[0]
        for pieces in (2, None)
    )
    assert json.dumps(measured["params"]) == json.dumps(plain["params"])
    np.testing.assert_allclose(measured["losses"]["valid"], plain["losses"]["valid"], rtol=2e-5)
