"""`lmscale verify`: what it refuses and warns of before it trains."""

from types import SimpleNamespace

import pytest

from lmscale.cli.verify import _warnings
from tests.cli.answers import refused
from tests.report.planted_store import plant
from tests.sweep.test_recipe import BUDGETS, LAW, grid


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = plant(tmp_path_factory.mktemp("store"), grid(), analyses=(), law=LAW)
    store.write_table()
    return store


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("verify", "nowhere", "--compute", 1e20), "experiment.json"),
        (("verify", "nowhere", "--compute", "nan"), "positive number of FLOPs"),
        (("verify", "nowhere", "--compute", 1e20, "--seeds", -1), "whole number"),
        (("verify", "nowhere"), "--compute"),
    ],
)
def test_bad_questions_are_one_line(capsys, argv, says):
    assert says in refused(capsys, *argv)


def test_verify_refuses_what_the_law_cannot_tell(capsys, store):
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
    below = _warnings(forecast | {"flops": 1e11, "smallest_budget": 2e11}, corpus)
    assert not any("within those" in line for line in below)
    assert any("lies below those of the store" in line for line in below)
    forecast |= {"flops": 3e12}
    plenty = _warnings(forecast, SimpleNamespace(n_tokens=lambda split: 8e6))
    assert len(plenty) == 2


def test_verify_refuses_a_budget_far_below_the_runs(capsys, store):
    assert "trusted down to 1/30" in refused(capsys, "verify", store.path, "--compute", 1e6)
    assert not (store.path / "verify").exists()
