"""The declaration of isoflop: its grid stays what the README shows, its claims name what exists."""

import dataclasses

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


def test_several_architectures_are_tuned_rivals_with_a_multiplier():
    one = SCALES["cpu"]
    three = dataclasses.replace(one, architectures=("transformer", "lstm", "llama"))
    runs = three.runs(CORPUS)
    cells = {}
    for run in runs:
        key = (run.labels["family"], run.labels["budget"], run.spec.model)
        cells.setdefault(key, set()).add(run.labels["lr_factor"])
    assert len(cells) == 90 and all(tried == {0.5, 1.0, 2.0} for tried in cells.values())
    # The Transformers at the rule's rate are those of the grid alone.
    assert {run.spec.run_id for run in one.runs(CORPUS)} <= {run.spec.run_id for run in runs}
    # One layer is the strongest LSTM here, and no step in depth bends its profiles.
    assert {model.n_layer for kind, _, model in cells if kind == "lstm"} == {1}
    assert {"multiplier", "rate_search"} == set(three.analyses) - set(one.analyses)
    new = {c.measure for c in three.claims} - {c.measure for c in one.claims}
    assert new == {"multiplier/lstm", "multiplier/llama"}


def test_a_search_that_the_user_asks_for_takes_the_place_of_that_of_every_cell():
    centre = dataclasses.replace(
        SCALES["cpu"], architectures=("transformer", "lstm"), centre_lr_factors=(0.5, 1.0, 2.0)
    )
    assert len(centre.runs(CORPUS)) == 2 * (30 + 6 * 2)
    wide = dataclasses.replace(centre, centre_lr_factors=(), lr_factors=(0.25, 0.5, 1.0, 2.0))
    assert len(wide.runs(CORPUS)) == 2 * 30 * 4


def test_claims_of_rivals_are_against_a_transformer_that_is_there():
    two = dataclasses.replace(SCALES["cpu"], architectures=("lstm", "llama"))
    assert two.claims == SCALES["cpu"].claims and "multiplier" in two.analyses
