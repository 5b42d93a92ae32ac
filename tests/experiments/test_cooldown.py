"""The declaration of cooldown: branches that leave their trunk, and what they save."""

import pytest
from lmscale_experiments.cooldown import SCALES

from lmscale.flops import flops_without_start, n_params, training_flops
from tests.fake_corpus import fake_corpus

CORPUS = fake_corpus(512)


def of(runs, family):
    return [run for run in runs if run.labels["family"] == family]


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
def test_every_cell_has_a_cosine_and_a_branch_of_its_trunk(scale):
    experiment = SCALES[scale]
    runs = experiment.runs(CORPUS)
    trunks = {run.spec.run_id: run.spec for run in of(runs, "trunk")}
    cosines, branches = of(runs, "cosine"), of(runs, "cooldown")
    cells = len(experiment.budgets) * experiment.sizes_per_budget * len(experiment.seeds)
    assert len(cosines) == len(branches) == cells
    for run in branches:
        spec, trunk = run.spec, trunks[run.spec.start.run]
        assert spec.start.step <= trunk.steps
        assert (spec.model, spec.seed, spec.data, spec.batch_size, spec.optimizer) == (
            *(trunk.model, trunk.seed, trunk.data, trunk.batch_size, trunk.optimizer),
        )
        # Until it leaves, a branch's schedule is the trunk's.
        assert trunk.schedule.name == "constant"
        assert trunk.schedule.warmup_steps == spec.schedule.warmup_steps <= spec.start.step
        assert spec.start.step == spec.steps - spec.schedule.cooldown_steps
        assert spec.start.step == run.labels["start_step"]
        budget = pytest.approx(run.labels["budget"], rel=0.01)
        assert training_flops(spec, experiment.convention) == budget
    for trunk in trunks.values():
        assert any(run.spec.start.step == trunk.steps for run in branches)


@pytest.mark.parametrize(("scale", "most"), [("cpu", 0.55), ("gpu", 0.55), ("paper", 0.5)])
def test_sharing_trunks_saves_flops(scale, most):
    runs = SCALES[scale].runs(CORPUS)
    cosine = sum(flops_without_start(run.spec) for run in of(runs, "cosine"))
    shared = sum(
        flops_without_start(run.spec) for run in [*of(runs, "trunk"), *of(runs, "cooldown")]
    )
    assert shared / cosine < most


def test_the_constant_rate_is_half_the_cosines_peak():
    runs = SCALES["paper"].runs(CORPUS)
    rates = {
        family: {run.spec.optimizer.peak_lr for run in of(runs, family)}
        for family in ("cosine", "cooldown")
    }
    assert rates == {"cosine": {2e-3, 1e-3}, "cooldown": {1e-3, 5e-4}}
    assert {run.spec.optimizer.weight_decay for run in runs} == {0.1}


def test_the_papers_largest_size_has_twice_the_batch():
    largest = {}
    for run in SCALES["paper"].runs(fake_corpus(50_304)):
        size = n_params(run.spec.model, "standard")
        largest.setdefault(run.spec.batch_tokens, set()).add(size)
    assert sorted(largest) == [102_400, 204_800]
    assert max(largest[102_400]) < 3e8 < min(largest[204_800])


def test_no_claim_rests_on_a_count_of_the_grid_itself():
    assert "cooldown/flops_ratio" not in {claim.measure for claim in SCALES["cpu"].claims}


def test_one_cell_is_swept_under_both_schedules():
    experiment = SCALES["cpu"]
    runs = experiment.runs(CORPUS)
    swept = len(experiment.swept_lrs) * len(experiment.seeds)
    for family in ("cosine, swept", "cooldown, swept"):
        assert len(of(runs, family)) == swept
        assert len({(run.spec.model, run.spec.steps) for run in of(runs, family)}) == 1
