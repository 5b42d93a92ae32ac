"""Training curves: which runs have one, how they ended, and in what order they are drawn."""

import numpy as np
import pytest

from lmscale.studies import Results, curves
from tests.report import planted_store as planted

STATUSES = {1: "diverged", 2: "failed", 3: "out_of_memory", 4: "pending", 5: "failed"}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("curves")
    runs = planted.size_runs(layers=(1,), seeds=(0,))
    planted.plant(path, runs, analyses=["curves"], status=lambda i, run: STATUSES.get(i, "done"))
    return Results.read(path)


def test_every_run_with_records_has_a_curve(results):
    found = curves.study(results)
    assert found.n_runs == 10
    assert found.statuses == {
        "done": 5,
        "failed": 2,
        "diverged": 1,
        "out_of_memory": 1,
        "pending": 1,
    }
    assert {family: len(own) for family, own in found.families.items()} == {
        "transformer": 4,
        "lstm, 1 layer": 5,
    }
    for curve in found.families["transformer"]:
        assert (np.diff(curve.tokens) > 0).all() and (np.diff(curve.flops) > 0).all()
        assert len(curve.steps) == len(curve.losses)


def test_lost_runs_have_their_reasons_and_lie_below_the_others(results):
    found = curves.study(results)
    assert found.reasons["failed"] == {"ValueError: <planted> failure": 2}
    assert set(found.reasons) == {"diverged", "failed", "out_of_memory"}
    own = found.families["transformer"]
    assert [curve.is_lost for curve in own] == [True, True, True, False]
    assert [curve.is_best_rate for curve in own] == [False, False, False, True]


def test_no_runs_have_no_curves(tmp_path):
    planted.plant(tmp_path, [], analyses=["curves"])
    found = curves.study(Results.read(tmp_path))
    assert not found.n_runs and not found.families and not found.reasons
