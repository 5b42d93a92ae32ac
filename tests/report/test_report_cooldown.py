"""What the page makes of a grid of cosines beside one of cooldowns."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from lmscale import flops
from lmscale.report import analyse
from lmscale.studies.results import Results
from lmscale.sweep import load_scales
from tests.fake_corpus import fake_corpus
from tests.report import planted_store as planted

GAP = 0.004


def declared():
    """The experiment's own runs, on sizes that the planted law has its optimum among."""
    experiment = dataclasses.replace(
        load_scales("cooldown")[2]["cpu"],
        sizes=tuple(1e4 * 2.2**i for i in range(6)),
        budgets=tuple(1e11 * 3**i for i in range(3)),
        sizes_per_budget=4,
        tokens_per_param=1.0,
        n_layer=None,
        n_ctx=planted.N_CTX,
        batch_size=4,
        warmup_steps=5,
        swept_budget=1,
    )
    return experiment.runs(fake_corpus(planted.VOCAB))


def loss(spec):
    """The planted law; a cooldown ends GAP higher, and likes half the learning rate."""
    cooled = spec.schedule.name == "cooldown"
    best = 0.006 * (32 / spec.model.d_model) ** 0.5 * (0.5 if cooled else 1.0)
    off = 0.03 * math.log2(spec.optimizer.peak_lr / best) ** 2
    return planted.Law()(spec) + GAP * cooled + off


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("cooldown")
    store = planted.plant(path, declared(), analyses=["cooldown"], law=loss, noise=0.001)
    return Results.read(store)


@pytest.fixture(scope="module")
def section(study):
    return analyse("cooldown", study)


def of(study, keep):
    """The study of some of the rows of its table."""
    return dataclasses.replace(study, table=study.table[keep(study.table)].reset_index(drop=True))


def test_a_planted_gap_and_ratio_of_rates_are_found(section):
    gap = section.measures["loss_difference"]
    assert gap.interval[0] < GAP < gap.interval[1]
    rate = section.measures["best_lr_ratio"]
    assert rate.value == pytest.approx(0.5, rel=0.1)
    assert rate.interval[0] < 0.5 < rate.interval[1]


def test_the_flops_are_those_that_the_runs_execute_themselves(section):
    spent = {"cosine": 0.0, "cooldown": 0.0, "trunk": 0.0}
    for run in declared():
        if run.labels["family"] in spent:
            spent[run.labels["family"]] += flops.flops_without_start(run.spec)
    ratio = (spent["trunk"] + spent["cooldown"]) / spent["cosine"]
    measure = section.measures["flops_ratio"]
    assert measure.value == pytest.approx(ratio, rel=1e-9)
    # How close the budgets lie decides it, so it is told and decides nothing.
    assert measure.interval is None and "its budgets decide" in measure.undecided_because
    assert 0.4 < ratio < 0.9


def test_both_grids_give_the_planted_exponent(section):
    for schedule in ("cosine", "cooldown"):
        assert section.measures[f"a_{schedule}"].value == pytest.approx(0.5, abs=0.05)
    low, high = section.measures["a_difference"].interval
    assert low < 0 < high
    assert {chart.name for chart in section.charts} == {"cooldown", "cooldown-learning-rate"}
    assert section.conclusive


def test_short_runs_do_not_decide_what_long_ones_found(study, section):
    longer = study.table.assign(steps=study.table["steps"] * 1000)
    long = analyse("cooldown", dataclasses.replace(study, table=longer))
    for name in ("loss_difference", "best_lr_ratio"):
        assert "updates (median)" in section.measures[name].undecided_because
        assert section.measures[name].interval is not None
        assert not long.measures[name].undecided_because


def test_one_seed_gives_numbers_but_no_interval(study):
    one = of(study, lambda t: (t["seed"] == 0) & ~t["family"].str.endswith("swept"))
    section = analyse("cooldown", one)
    measure = section.measures["loss_difference"]
    assert measure.value is not None and measure.interval is None
    assert "needs 3 seeds, not 1" in measure.undecided_because
    assert "needs 3 seeds, not 1" in section.measures["a_difference"].undecided_because
    assert section.measures["best_lr_ratio"].value is None
    assert not section.conclusive


def test_runs_without_a_result_are_left_out_and_told(study):
    lost = study.table.index.isin(study.table.index[study.table["family"] == "cosine"][:2])
    table = study.table.assign(
        status=np.where(lost, "pending", study.table["status"]),
        loss=study.table["loss"].mask(pd.Series(lost)),
    )
    section = analyse("cooldown", dataclasses.replace(study, table=table))
    assert section.measures["flops_ratio"].interval is None
    assert any("2 runs of the grid have no result" in w for w in section.warnings)


def test_a_sweep_whose_best_is_at_the_edge_decides_nothing(study):
    lowest = of(study, lambda t: ~t["family"].str.endswith("swept") | (t["lr_multiple"] < 1.0))
    measure = analyse("cooldown", lowest).measures["best_lr_ratio"]
    assert measure.value is None and "edge of the learning rates" in measure.undecided_because


def test_a_store_without_the_two_schedules_says_so(study):
    none = of(study, lambda t: t["family"] == "trunk")
    assert "declares no runs of the families" in analyse("cooldown", none).finding
