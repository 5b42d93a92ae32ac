"""Whose law is asked where no family is named."""

import pytest

from lmscale.laws.result import FitError, FitResult
from lmscale.sweep.recommend import default_family, law_source, recommend
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


@pytest.fixture
def profiles(tmp_path):
    runs = planted.isoflop_runs(seeds=(0,), lstm=False)
    return planted.plant(tmp_path / "isoflop", runs, analyses=["isoflop"])


def test_runs_that_are_damaged_are_said_to_be_left_out(profiles):
    assert not recommend(profiles, flops=1e13).warnings
    result = next(profiles.path.glob("runs/*/result.json"))
    result.write_text("{}")
    (warning,) = recommend(Store(profiles.path), flops=1e13).warnings
    assert "left out as damaged" in warning and result.parent.name in warning


def test_a_table_that_was_edited_is_a_table(profiles):
    """Of its own results.csv a store is asked; other rows are not silently taken for its runs."""
    profiles.write_table()
    path = profiles.path / "results.csv"
    assert isinstance(law_source(path), Store)
    rows = path.read_text().splitlines()
    path.write_text("\n".join(rows[:-2]) + "\n")
    fit = law_source(path)
    assert isinstance(fit, FitResult) and fit.n_used < len(rows) - 1


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
    runs = [{"run": name, "labels": {"family": name}} for name in families]
    monkeypatch.setattr(Store, "experiment", lambda self: {"runs": runs})
    if expected == "transformer":
        assert default_family(store) == expected
        return
    with pytest.raises(FitError, match=expected):
        default_family(store)
