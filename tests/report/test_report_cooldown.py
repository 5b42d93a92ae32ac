"""What the page makes of a grid of cosines beside one of cooldowns."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

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


@pytest.mark.slow
def test_both_grids_and_the_rates_are_drawn(section):
    assert {chart.name for chart in section.charts} == {"cooldown", "cooldown-learning-rate"}
    assert section.conclusive


def test_one_seed_gives_numbers_but_no_interval(study):
    one = of(study, lambda t: (t["seed"] == 0) & ~t["family"].str.endswith("swept"))
    section = analyse("cooldown", one)
    assert not section.conclusive and "too few seeds for an interval" in section.finding


def test_runs_without_a_result_are_left_out_and_told(study):
    lost = study.table.index.isin(study.table.index[study.table["family"] == "cosine"][:2])
    table = study.table.assign(
        status=np.where(lost, "pending", study.table["status"]),
        loss=study.table["loss"].mask(pd.Series(lost)),
    )
    section = analyse("cooldown", dataclasses.replace(study, table=table))
    assert section.measures["flops_ratio"].interval is None
    assert any("2 runs of the grid have no result" in w for w in section.warnings)


def test_a_store_without_the_two_schedules_says_so(study):
    none = of(study, lambda t: t["family"] == "trunk")
    assert "declares no runs of the families" in analyse("cooldown", none).finding
