"""A store and its results.csv are one table, read by one counting convention."""

import numpy as np
import pandas as pd
import pytest

from lmscale import laws
from lmscale.sweep.recommend import store_law
from lmscale.sweep.tables import table_of_runs
from tests.report import planted_store


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    runs = planted_store.isoflop_runs(lstm=False, seeds=(0, 1), lr_factors=(0.5, 1.0, 2.0))
    store = planted_store.plant(tmp_path_factory.mktemp("store"), runs, analyses=["isoflop"])
    store.write_table()
    return store


def fit(source, **options):
    return laws.fit(table_of_runs(source, **options), "isoflop", bootstrap=0)


def test_results_csv_is_read_like_its_store(store):
    csv = store.path / "results.csv"
    fits = [
        store_law(store, "transformer"),
        fit(store),
        fit(str(store.path)),
        fit(csv),
        laws.fit(csv, "isoflop", bootstrap=0),
        laws.fit(pd.read_csv(csv), "isoflop", bootstrap=0),
    ]
    for other in fits:
        assert other.parameters == pytest.approx(fits[0].parameters, rel=1e-9)
        assert list(other.exponents) == ["standard"] and other.n_used == 56
        assert other.warnings == ()
    assert fits[0].exponents["standard"]["N"] == pytest.approx(
        planted_store.Law().exponent, abs=0.02
    )


@pytest.mark.parametrize("convention", laws.CONVENTIONS)
def test_a_convention_chooses_params_and_flops_together(store, convention):
    rows = store.table()
    for source in (store, store.path / "results.csv"):
        table = table_of_runs(source, convention=convention)
        runs = table.runs("params", "flops", "loss")
        best = rows.iloc[runs.row - 1]
        assert runs.convention == convention and len(runs) == 56 and best["best_lr"].all()
        np.testing.assert_allclose(runs["params"], best[f"params_{convention}"])
        np.testing.assert_allclose(runs["flops"], best[f"flops_{convention}"])
        # Budgets were set in standard FLOPs.
        assert ("budget" in runs.labels) == (convention == "standard")
        assert bool(runs.warnings) == (convention != "standard")


def test_a_mapping_of_one_count_brings_the_other_along(store):
    runs = table_of_runs(store, columns="params=n_params").runs("params", "flops", "loss")
    assert runs.convention == "kaplan"
    np.testing.assert_allclose(runs["flops"], 6 * runs["params"] * runs["tokens"], rtol=1e-6)


def test_counts_that_are_mixed_on_purpose_are_said(store):
    columns = "params=params_kaplan,flops=flops_standard"
    runs = table_of_runs(store, columns=columns).runs("params", "flops", "loss")
    assert runs.convention == "given"
    assert any("params are counted as kaplan" in warning for warning in runs.warnings)


def test_all_runs_of_a_search_are_there_for_the_asking(store):
    assert len(table_of_runs(store, cells="all").runs("params", "flops", "loss")) == 168
    runs = table_of_runs(store, where="budget > 5e12").runs("params", "flops", "loss")
    assert len(runs) == 28 and runs.labels["seed"].tolist().count("0") == 14


def test_two_families_are_not_one_law_silently(tmp_path):
    runs = planted_store.isoflop_runs(seeds=(0,))
    store = planted_store.plant(tmp_path, runs, analyses=["isoflop"])
    table = table_of_runs(store)
    (warning,) = table.runs("params", "flops", "loss").warnings
    assert "runs of 2 families (lstm, transformer) are fitted as one law" in warning
    assert table.split("family")["lstm"].runs("params", "flops", "loss").warnings == ()


def test_what_cannot_be_read_is_one_line(store, tmp_path):
    with pytest.raises(laws.TableError, match="there is no convention 'hoffmann'; choose from kap"):
        table_of_runs(store, convention="hoffmann")
    (tmp_path / "runs.csv").write_text("params,tokens,loss\n1e6,1e8,3\n")
    with pytest.raises(laws.TableError, match=r"that only a store's results have .params_kaplan"):
        table_of_runs(tmp_path / "runs.csv", convention="kaplan")
    pending = planted_store.plant(
        tmp_path / "store",
        planted_store.isoflop_runs(lstm=False, seeds=(0,)),
        analyses=["isoflop"],
        status=lambda index, run: "pending",
    )
    with pytest.raises(laws.TableError, match="has no finished run yet: see `lmscale status"):
        table_of_runs(pending)
    pending.write_table()
    with pytest.raises(laws.TableError, match="no run of these results has ended well yet"):
        table_of_runs(pending.path / "results.csv")
