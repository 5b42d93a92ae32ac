"""Finished runs scored again: the recorded losses come back, on other text too."""

import dataclasses
import json
import shutil

import jax
import pytest

from lmscale.cli import main
from lmscale.planner.devices import local_devices
from lmscale.planner.packs import make_plan
from lmscale.progress import progress
from lmscale.spec import EvalSpec, StoppingSpec
from lmscale.sweep.execute import execute
from lmscale.sweep.experiment import Experiment, Run
from lmscale.sweep.rescore import evaluation_set, rescore
from lmscale.sweep.store import Store, StoreError
from tests.quick_compile import quick_jit
from tests.training.specs import LSTM, run_spec


@pytest.fixture(scope="module", autouse=True)
def quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "jit", quick_jit)
        yield


@pytest.fixture(scope="module")
def store(quick, corpus, tmp_path_factory):
    """Three finished runs of two shapes, evaluated on a part of the test split."""
    store = Store(tmp_path_factory.mktemp("store"))
    evals = (
        EvalSpec(
            name="valid",
            corpus=corpus.name,
            fingerprint=corpus.fingerprint,
            split="test",
            tokens=320,
            sampling="spread",
        ),
    )
    specs = [
        run_spec(corpus, seed=0, evals=evals),
        run_spec(corpus, seed=1, evals=evals),
        run_spec(corpus, model=LSTM, evals=evals),
    ]
    runs = [Run(spec, {"family": spec.model.kind}) for spec in specs]
    store.declare("tiny", "cpu", Experiment(), corpus, runs, "lmscale run tiny")
    plan = make_plan(runs, local_devices(), n_slots=1)
    with progress("training", plan.flops) as bar:
        execute(plan, store, lambda name: corpus, bar)
    return store


def score(store, corpus, evaluation):
    with progress("scoring", 3) as bar:
        return rescore(store, evaluation, local_devices(), lambda name: corpus, bar)


@pytest.mark.slow
def test_the_same_text_gives_the_recorded_losses(store, corpus):
    evaluation = evaluation_set(corpus, "test", 320)
    assert evaluation.name == "tiny-test-320"
    found = {one.run: one.scores for one in score(store, corpus, evaluation)}
    for folder, _ in store.declared():
        result = folder.result()
        scores = found[folder.path.name]
        assert scores["loss"] == pytest.approx(result["losses"]["valid"], rel=1e-6)
        windows = result["loss_by_window"]["valid"]
        assert scores["document"] == windows["document"]
        assert scores["by_window"] == pytest.approx(windows["loss"], abs=2e-4)
    table = store.table()
    assert table["loss_tiny-test-320"].tolist() == pytest.approx(table["loss"].tolist(), rel=1e-6)


def test_a_run_is_scored_once_on_a_set(store, corpus, monkeypatch):
    evaluation = evaluation_set(corpus, "valid", None)
    first = score(store, corpus, evaluation)
    monkeypatch.setattr("lmscale.sweep.rescore.program_of", None)
    assert score(store, corpus, evaluation) == first
    # A set of the same name with other text is not mistaken for it.
    other = dataclasses.replace(evaluation, tokens=160)
    with pytest.raises(TypeError):
        score(store, corpus, other)


def test_the_command_prints_a_table_or_json(store, corpus, capsys, monkeypatch):
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
    assert main(["eval", str(store.path), "--tokens", "320", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n_windows"] == 20 and found["n_documents"] > 5
    assert [run["loss"] for run in found["runs"]] == sorted(run["loss"] for run in found["runs"])
    assert found["runs"][0]["above_best"] == 0
    assert all(run["text_error"] > 0 for run in found["runs"])
    assert main(["eval", str(store.path), "--tokens", "320"]) == 0
    out = capsys.readouterr().out
    assert "20 windows of" in out and "loss_tiny-test-320" in out
    assert "loss_tiny-test-320" in (store.path / "results.csv").read_text()


def test_a_run_without_a_checkpoint_is_named(store, corpus, tmp_path):
    empty = Store(tmp_path / "empty")
    empty.declare("tiny", "cpu", Experiment(), corpus, [Run(run_spec(corpus), {})], "lmscale")
    with pytest.raises(StoreError, match="no finished run"):
        score(empty, corpus, evaluation_set(corpus, "test", None))
    folder = next(folder for folder, _ in store.declared())
    hidden = folder.path / "elsewhere"
    folder.checkpoints.rename(hidden)
    try:
        with pytest.raises(StoreError, match=f"{folder.path.name} has a result but no checkpoint"):
            score(store, corpus, evaluation_set(corpus, "test", None))
    finally:
        hidden.rename(folder.checkpoints)


def test_a_run_whose_checkpoint_is_damaged_is_left_out_with_a_line(
    store, corpus, capsys, monkeypatch
):
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
    folder = next(folder for folder, _ in store.declared())
    (file,) = folder.checkpoints.glob("12/digests.json")
    whole = file.read_bytes()
    file.unlink()
    try:
        assert main(["eval", str(store.path), "--tokens", "300", "--json"]) == 0
    finally:
        file.write_bytes(whole)
    out, err = capsys.readouterr()
    assert len(json.loads(out)["runs"]) == 2
    assert f"left out: {folder.checkpoints / '12'} is damaged: its digests.json is missing" in err


def test_a_set_of_less_than_two_windows_is_refused(store, corpus):
    with pytest.raises(StoreError, match="10 tokens are less than two windows of 16"):
        score(store, corpus, evaluation_set(corpus, "test", 10))


def test_a_corpus_without_test_documents_is_scored_on_validation(corpus, monkeypatch):
    assert evaluation_set(corpus, None, None).name == "tiny-test"
    counts = {"train": 9999, "valid": 640, "test": 0}
    monkeypatch.setattr(type(corpus), "n_tokens", lambda self, split: counts[split])
    assert evaluation_set(corpus, None, 320).name == "tiny-valid-320"
    with pytest.raises(StoreError, match="the test split of tiny is empty"):
        evaluation_set(corpus, "test", None)


def test_a_run_that_was_stopped_early_is_scored_where_its_result_is(
    quick, corpus, tmp_path, capsys
):
    """Its lowest evaluation comes before its last state; another step's loss would stand beside that."""
    spec = run_spec(
        corpus,
        steps=400,
        eval_every=10,
        stopping=StoppingSpec(patience=3),
        optimizer={"peak_lr": 3e-2},
    )
    spec = dataclasses.replace(spec, data=dataclasses.replace(spec.data, subset_tokens=400))
    store, runs = Store(tmp_path), [Run(spec, {"family": "transformer"})]
    store.declare("tiny", "cpu", Experiment(), corpus, runs, "lmscale run tiny")
    plan = make_plan(runs, local_devices(), n_slots=1)
    folder = store.folder(runs[0])
    again = dataclasses.replace(spec.evals[0], name="again")
    for keep_every in (None, 10):
        with progress("training", plan.flops) as bar:
            execute(plan, store, lambda name: corpus, bar, keep_every=keep_every)
        result = folder.result()
        assert result["evaluated_step"] < result["steps"]
        if keep_every is None:
            with pytest.raises(StoreError, match="no run"):
                score(store, corpus, again)
            assert "was stopped early: its result is of step" in capsys.readouterr().err
            shutil.rmtree(folder.path)
    (scored,) = score(store, corpus, again)
    assert scored.scores["loss"] == pytest.approx(result["losses"]["valid"], rel=1e-6)
