"""The scale cpu-hour: an hour of two cores by the plan, three seeds, a wide range of compute."""

import dataclasses

import pytest

from lmscale.planner.devices import parse_devices
from lmscale.planner.packs import make_plan
from lmscale.sweep import ExperimentError
from lmscale.sweep.experiment import load_scales
from tests.fake_corpus import fake_corpus

CORPUS = fake_corpus(512)
#: Experiment -> the least factor between its largest and its smallest budget.
HOURS = {"isoflop": 200, "reconcile": 100, "lstm_vs_transformer": None}


def hour(name):
    return load_scales(name)[2]["cpu-hour"]


@pytest.mark.parametrize("name", HOURS)
def test_it_takes_about_an_hour_of_two_cores_by_the_plan(name):
    runs = hour(name).runs(CORPUS)
    plan = make_plan(runs, parse_devices("cpu:2"))
    assert 48 < plan.seconds / 60 < 80
    assert {run.spec.seed for run in runs} == {0, 1, 2}
    if HOURS[name]:
        budgets = [run.labels["budget"] for run in runs if "budget" in run.labels]
        assert max(budgets) / min(budgets) > HOURS[name]


def test_isoflop_repeats_the_budgets_that_are_cheap_and_tests_the_rate_at_two():
    experiment, seeds, tried = hour("isoflop"), {}, {}
    for run in experiment.runs(CORPUS):
        budget = run.labels["budget"]
        tried.setdefault(budget, set()).add(run.labels["lr_factor"])
        if run.labels["lr_factor"] == 1.0:
            seeds.setdefault(budget, []).append(run.spec.seed)
    assert [len(set(seeds[budget])) for budget in experiment.budgets] == [3] * 8 + [2, 1]
    assert [len(seeds[budget]) for budget in experiment.budgets] == [15] * 8 + [10, 5]
    searched = {budget for budget, factors in tried.items() if len(factors) == 3}
    assert searched == set(experiment.centre_budgets)


def test_seeds_of_budgets_that_are_not_there_are_refused():
    with pytest.raises(ExperimentError, match="a count for each of the 2 budgets, not 10"):
        dataclasses.replace(hour("isoflop"), budgets=(2e10, 4e10))
    with pytest.raises(ExperimentError, match="at most the 1 --seeds"):
        dataclasses.replace(hour("isoflop"), seeds=(0,))


def test_a_profile_of_reconcile_has_sizes_enough_for_a_minimum():
    sizes = {}
    for run in hour("reconcile").runs(CORPUS):
        if "budget" in run.labels:
            sizes.setdefault(run.labels["budget"], set()).add(run.spec.model)
    assert min(map(len, sizes.values())) >= 4
