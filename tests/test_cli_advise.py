"""`lmscale advise` and `lmscale verify`: what they read, what they refuse, what they print."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from lmscale.cli import main
from lmscale.laws.parametric import chinchilla_loss, optimal_allocation
from lmscale.verify_command import _warnings
from tests.report.planted_store import plant
from tests.sweep.test_recipe import BUDGETS, LAW, grid

EPOCH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}


def run(capsys, *argv) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    try:
        code = main([str(item) for item in argv])
    except SystemExit as exit:
        code = exit.code
    return code, *capsys.readouterr()


def refused(capsys, *argv) -> str:
    """The one line that a bad command prints."""
    code, out, err = run(capsys, *argv)
    assert code == 2, err
    assert out == "" and len(err.strip().splitlines()) == 1, err
    return err


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = plant(tmp_path_factory.mktemp("store"), grid(), analyses=(), law=LAW)
    store.write_table()
    return store


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Four budgets of five sizes on Besiroglu's surface, and rows of another mode."""
    lines = ["size,D,final_loss,mode"]
    for c in np.geomspace(1e18, 1e20, 4):
        for n in optimal_allocation(EPOCH, c).n_params * np.geomspace(0.25, 4, 5):
            loss = chinchilla_loss(EPOCH, params=n, tokens=c / (6 * n))
            lines += [f"{n:.6g},{c / (6 * n):.6g},{loss:.6f},train", f"{n:.6g},1e9,9,eval"]
    path = tmp_path_factory.mktemp("table") / "runs.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_table_advises_like_a_law_fitted_to_it(capsys, table):
    reading = ("--columns", "params=size", "--where", "mode == train")
    code, out, _ = run(capsys, "advise", table, *reading, "--compute", 1e21, "--json")
    advice = json.loads(out)
    assert code == 0 and advice["law"] == "isoflop"
    assert advice["n_params"] == pytest.approx(optimal_allocation(EPOCH, 1e21).n_params, rel=0.1)
    assert advice["learning_rate"] is None and advice["batch_tokens"] is None
    assert "does not say by which recipe" in advice["recipe"]
    low, high = advice["intervals"]["loss"]
    assert low < optimal_allocation(EPOCH, 1e21).loss < high
    code, out, _ = run(
        capsys, "advise", table, *reading, "--law", "parametric", "--compute", 1e21, "--json"
    )
    assert code == 0 and json.loads(out)["law"] == "parametric"


def test_a_store_and_its_results_advise_alike(capsys, store):
    compute = ("--compute", 2 * BUDGETS[-1], "--json")
    found = [
        json.loads(run(capsys, "advise", source, *compute)[1])
        for source in (store.path, store.path / "results.csv")
    ]
    assert found[0] == found[1]
    assert set(found[0]) >= {
        "flops", "n_params", "n_tokens", "loss", "intervals", "model", "batch_tokens",
        "learning_rate", "warnings",
    }  # fmt: skip
    code, out, _ = run(capsys, "advise", store.path, "--compute", 2 * BUDGETS[-1])
    assert code == 0 and "the sweep's own recipe: 2 layers at every size" in out
    assert "2 layers, d_model" in out and "intervals:" in out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("advise", "besiroglu2024", "--compute", 5.76e23), "take the extrapolation with --extrapolate"),
        (("advise", "olmo-ladder2024", "--compute", 2.5e23), "128 times the largest run"),
        (("advise", "nowhere.csv", "--compute", 1e20), "no store, no table and no published law"),
        (("advise", "besiroglu2024", "--law", "isoflop", "--compute", 1e20), "leave --law"),
        (("advise", "besiroglu2024", "--where", "N > 1", "--compute", 1e20), "leave --law"),
        (("advise", "besiroglu2024"), "--compute"),
        (("advise", "besiroglu2024", "--compute", -1), "positive number"),
        (("verify", "nowhere", "--compute", 1e20), "experiment.json"),
        (("verify", "nowhere", "--compute", "nan"), "positive number of FLOPs"),
        (("verify", "nowhere", "--compute", 1e20, "--seeds", -1), "whole number"),
        (("verify", "nowhere"), "--compute"),
    ],
)  # fmt: skip
def test_bad_questions_are_one_line(capsys, monkeypatch, argv, says):
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
    assert says in refused(capsys, *argv)


def test_an_extrapolation_that_is_asked_for_is_given(capsys):
    code, out, err = run(capsys, "advise", "besiroglu2024", "--compute", 5.76e23, "--extrapolate")
    assert code == 0 and "7.22e+10" in out and "192 times the largest run" in err
    assert "no recipe is known" in out and "peak learning rate" not in out


def test_verify_refuses_what_the_law_cannot_tell(capsys, monkeypatch, store):
    monkeypatch.setattr("lmscale.cli.start_jax", lambda: None)
    far = refused(capsys, "verify", store.path, "--compute", 100 * BUDGETS[-1])
    assert "trusted up to 30 times" in far
    family = refused(capsys, "verify", store.path, "--compute", 1e13, "--family", "lstm")
    assert "no finished runs of 'lstm'" in family
    assert not (store.path / "verify").exists()


def test_verify_says_what_a_reader_should_know_before_it_is_trained():
    forecast = {
        "flops": 1e12,
        "largest_budget": 2e12,
        "advice": {"warnings": ["of the law"]},
        "runs": [{"role": "advised", "n_tokens": 1e6}, {"role": "half", "n_tokens": 2e6}],
    }
    corpus = SimpleNamespace(n_tokens=lambda split: 8e5)
    said = _warnings(forecast, corpus)
    assert said[0] == "of the law"
    assert any("within those of the store" in line for line in said)
    assert any("no model of its own for the double" in line for line in said)
    assert any("2.5 epochs of the 8e+05 training tokens" in line for line in said)
    forecast |= {"flops": 3e12}
    plenty = _warnings(forecast, SimpleNamespace(n_tokens=lambda split: 8e6))
    assert len(plenty) == 2
