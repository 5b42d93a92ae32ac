"""The declaration of isoflop: its grid stays what the README shows, its claims name what exists."""

import pytest
from lmscale_experiments.isoflop import SCALES

from lmscale.flops import n_params, training_flops
from tests.fake_corpus import fake_corpus

CORPUS = fake_corpus(512)


@pytest.mark.parametrize(("scale", "count"), [("cpu", 30), ("gpu", 45), ("paper", 81)])
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


def test_the_papers_profiles_are_wide_enough_for_a_minimum():
    experiment = SCALES["paper"]
    runs = experiment.runs(fake_corpus(32_000))
    for budget in experiment.budgets:
        specs = [run.spec for run in runs if run.labels["budget"] == budget]
        sizes = [n_params(spec.model, "chinchilla") for spec in specs]
        # At both ends of the grid the paper's shapes end.
        assert max(sizes) / min(sizes) > (25 if budget < 3e21 else 15)
        # By the law of Besiroglu et al. 2024: far above the noise of a run.
        losses = [
            1.8172 + 482.01 / n**0.3478 + 2085.43 / spec.n_tokens**0.3658
            for n, spec in zip(sizes, specs, strict=True)
        ]
        smallest, largest = losses[sizes.index(min(sizes))], losses[sizes.index(max(sizes))]
        assert min(smallest, largest) > min(losses) + 0.025
