"""A grid of cosines beside one of cooldowns, whose difference was planted."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from lmscale import flops
from lmscale.studies.cooldown import study
from lmscale.studies.results import Results
from tests.report import planted_store as planted
from tests.report.test_report_cooldown import GAP, declared, loss, of


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("cooldown")
    store = planted.plant(path, declared(), analyses=["cooldown"], law=loss, noise=0.001)
    return Results.read(store)


@pytest.fixture(scope="module")
def found(results):
    return study(results)


def test_a_planted_gap_and_ratio_of_rates_are_found(found):
    gap = found.estimates["loss_difference"]
    assert gap.interval[0] < GAP < gap.interval[1]
    rate = found.estimates["best_lr_ratio"]
    assert rate.value == pytest.approx(0.5, rel=0.1)
    assert rate.interval[0] < 0.5 < rate.interval[1]


def test_the_flops_are_those_that_the_runs_execute_themselves(found):
    spent = {"cosine": 0.0, "cooldown": 0.0, "trunk": 0.0}
    for run in declared():
        if run.labels["family"] in spent:
            spent[run.labels["family"]] += flops.flops_without_start(run.spec)
    ratio = (spent["trunk"] + spent["cooldown"]) / spent["cosine"]
    estimate = found.estimates["flops_ratio"]
    assert estimate.value == pytest.approx(ratio, rel=1e-9)
    # How close the budgets lie decides it, so it is told and decides nothing.
    assert estimate.interval is None and "its budgets decide" in estimate.undecided_because
    assert 0.4 < ratio < 0.9


def test_short_runs_do_not_decide_what_long_ones_found(results, found):
    longer = results.table.assign(steps=results.table["steps"] * 1000)
    long = study(dataclasses.replace(results, table=longer))
    for name in ("loss_difference", "best_lr_ratio"):
        assert "updates (median)" in found.estimates[name].undecided_because
        assert found.estimates[name].interval is not None
        assert not long.estimates[name].undecided_because


def test_a_sweep_whose_best_is_at_the_edge_decides_nothing(results):
    lowest = of(results, lambda t: ~t["family"].str.endswith("swept") | (t["lr_multiple"] < 1.0))
    estimate = study(lowest).estimates["best_lr_ratio"]
    assert estimate.value is None and "edge of the learning rates" in estimate.undecided_because


def test_both_grids_give_the_planted_exponent(found):
    for schedule in ("cosine", "cooldown"):
        assert found.estimates[f"a_{schedule}"].value == pytest.approx(0.5, abs=0.05)
    assert found.estimates["a_difference"].may_be(0)
    mean = np.mean([pair.gap.value for pair in found.pairs])
    assert found.estimates["loss_difference"].value == pytest.approx(mean)


def test_one_seed_gives_numbers_but_no_interval(results):
    one = of(results, lambda t: (t["seed"] == 0) & ~t["family"].str.endswith("swept"))
    found = study(one)
    estimate = found.estimates["loss_difference"]
    assert estimate.value is not None and estimate.interval is None
    assert "needs 3 seeds, not 1" in estimate.undecided_because
    assert "needs 3 seeds, not 1" in found.estimates["a_difference"].undecided_because
    assert found.estimates["best_lr_ratio"].value is None


def test_a_seed_that_has_just_begun_leaves_the_cells_of_the_others(results, found):
    """And the other way round: the cells are those that the seeds that are counted have."""
    whole, table = found.estimates["loss_difference"], results.table
    cells = table[table["family"].isin(["cosine", "cooldown"])]
    first = cells.groupby("family").head(1)
    begun = first.assign(seed=table["seed"].max() + 1, loss=first["loss"] + [0.0, 1.0])
    both = study(dataclasses.replace(results, table=pd.concat([table, begun], ignore_index=True)))
    same = both.estimates["loss_difference"]
    assert (same.value, same.interval, same.n, same.seeds) == (
        pytest.approx(whole.value),
        pytest.approx(whole.interval),
        whole.n,
        whole.seeds,
    )


def test_runs_without_a_result_are_left_out(results):
    lost = results.table.index.isin(results.table.index[results.table["family"] == "cosine"][:2])
    table = results.table.assign(
        status=np.where(lost, "pending", results.table["status"]),
        loss=results.table["loss"].mask(pd.Series(lost)),
    )
    found = study(dataclasses.replace(results, table=table))
    assert found.missing == 2
    assert "2 runs without a result" in found.estimates["flops_ratio"].undecided_because


def test_a_store_without_the_two_schedules_holds_every_estimate_undecided(results, found):
    none = study(of(results, lambda t: t["family"] == "trunk"))
    empty = study(dataclasses.replace(results, table=results.table.head(0)))
    for estimates in (none.estimates, empty.estimates):
        assert set(estimates) == set(found.estimates)
        assert all(e.value is None and e.undecided_because for e in estimates.values())
