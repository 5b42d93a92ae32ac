"""The declaration of isoflop: its grid stays what the README shows, its claims name what exists."""

import pytest
from lmscale_experiments.isoflop import SCALES

from lmscale.flops import n_params, training_flops
from tests.fake_corpus import fake_corpus

CORPUS = fake_corpus(512)


@pytest.mark.parametrize(("scale", "count"), [("cpu", 20), ("gpu", 35), ("paper", 81)])
def test_the_runs_of_a_budget_cost_the_same(scale, count):
    experiment = SCALES[scale]
    runs = experiment.runs(CORPUS)
    assert len(runs) == count
    for run in runs:
        cost = training_flops(run.spec, experiment.convention)
        assert cost == pytest.approx(run.labels["budget"], rel=0.01)


def test_the_papers_budgets_and_sizes():
    runs = SCALES["paper"].runs(CORPUS)
    budgets = sorted({run.labels["budget"] for run in runs})
    assert budgets == [6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21]
    assert max(n_params(run.spec.model, "chinchilla") for run in runs) < 17e9
    assert {run.spec.schedule.name for run in runs} == {"cosine"}
    assert all(1.2e-4 < run.spec.optimizer.peak_lr < 2.1e-4 for run in runs)


def test_every_claim_is_about_an_analysis_of_the_experiment():
    experiment = SCALES["cpu"]
    assert {claim.measure.split("/")[0] for claim in experiment.claims} == {
        "isoflop",
        "envelope",
        "parametric",
    }
    assert {"isoflop", "envelope", "parametric"} <= set(experiment.analyses)
