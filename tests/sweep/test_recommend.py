"""Whose law is asked where no family is named."""

import pandas as pd
import pytest

from lmscale.laws.result import FitError
from lmscale.sweep.recommend import default_family, recommend
from lmscale.sweep.store import Store
from tests.report import planted_store as planted


def test_a_store_of_one_family_is_asked_for_that_one(tmp_path):
    runs = [
        run for run in planted.isoflop_runs(seeds=(0,)) if run.labels["family"] != "transformer"
    ]
    store = planted.plant(tmp_path / "isoflop", runs, analyses=["isoflop"])
    (family,) = {run.labels["family"] for run in runs}
    assert default_family(store) == family
    asked = recommend(store, flops=1e13)
    assert asked.n_params == recommend(store, family=family, flops=1e13).n_params


@pytest.mark.parametrize(
    ("families", "expected"),
    [
        ([], "transformer"),
        (["lstm", "transformer"], "transformer"),
        (["llama", "lstm"], "several families: choose one by --family: llama, lstm"),
    ],
)
def test_of_several_families_the_transformers_are_meant(tmp_path, monkeypatch, families, expected):
    store = Store(tmp_path)
    monkeypatch.setattr(Store, "table", lambda self: pd.DataFrame({"family": families}))
    if expected == "transformer":
        assert default_family(store) == expected
        return
    with pytest.raises(FitError, match=expected):
        default_family(store)
