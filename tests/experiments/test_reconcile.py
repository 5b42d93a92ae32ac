"""The declaration of reconcile: five steps that differ in what their names say and nothing else."""

import pytest
from lmscale_experiments.reconcile import SCALES

from lmscale import flops
from tests.fake_corpus import fake_corpus

CORPUS = fake_corpus(512)


def of(runs, step):
    return [run for run in runs if run.labels["family"] == f"step {step}"]


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
def test_the_first_runs_cross_every_budget_in_both_counts(scale):
    experiment = SCALES[scale]
    runs = of(experiment.runs(CORPUS), "1 and 2")
    for budgets, count in ((experiment.kaplan_budgets, "kaplan"), (experiment.budgets, "standard")):
        for budget in budgets:
            sizes = set()
            for run in runs:
                per_step = flops.training_flops(run.spec, count) / run.spec.steps
                wanted = budget / per_step
                if any(abs(step / wanted - 1) < 0.05 for step in run.spec.eval_steps):
                    sizes.add(run.spec.model)
            assert len(sizes) >= 3, (count, budget)
    assert len({run.spec.optimizer.beta2 for run in runs}) == 1


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
def test_each_step_changes_what_it_says(scale):
    experiment = SCALES[scale]
    runs = experiment.runs(CORPUS)
    first, third, fourth, fifth = (of(runs, step) for step in ("1 and 2", "3", "4", "5"))
    fixed = experiment.fixed_batch * experiment.n_ctx
    for run in first:
        spec = run.spec
        # Where a run ends within the warmup, its rate rises as steeply as the others'.
        slope = spec.optimizer.peak_lr / spec.schedule.warmup_steps
        whole = experiment.fixed_lr / round(experiment.fixed_warmup / fixed)
        assert slope == pytest.approx(whole, rel=1e-3)
        assert spec.schedule.cycle_steps * fixed >= experiment.fixed_cosine
    for run in third:
        warmup = run.spec.schedule.warmup_steps * fixed
        assert warmup == pytest.approx(flops.n_params(run.spec.model, "standard"), abs=fixed)
        assert run.spec.schedule.cycle_steps == first[0].spec.schedule.cycle_steps
    for run in fourth:
        assert run.spec.schedule.cycle_steps is None
        assert run.spec.optimizer.peak_lr == experiment.fixed_lr
        assert run.spec.batch_size == experiment.fixed_batch
    assert {r.spec.model for r in fourth} == {r.spec.model for r in fifth}
    assert {r.labels["budget"] for r in fifth} == set(experiment.budgets)
    for run in (*fourth, *fifth):
        cost = flops.training_flops(run.spec, "standard")
        assert cost == pytest.approx(run.labels["budget"], rel=0.02)


def test_the_papers_shapes_budgets_and_lengths():
    experiment = SCALES["paper"]
    runs = experiment.runs(fake_corpus(50_432))
    assert len({run.spec.model for run in runs}) == 16
    assert len(experiment.budgets) == 12
    assert {run.spec.batch_tokens for run in of(runs, "4")} == {2**19}
    factors = {run.labels["lr_factor"] for run in of(runs, "5")}
    assert factors == {0.5, 1.0, 2.0}
    steps = {run.spec.schedule.warmup_steps for run in of(runs, "1 and 2")}
    assert max(steps) == round(1.57e9 / 2**19)
    assert len(experiment.claims) == 7


@pytest.mark.parametrize("scale", ["cpu", "gpu"])
def test_the_fixed_lengths_are_those_of_the_papers_shrunk(scale):
    experiment = SCALES[scale]
    # D of the best run, with D = tokens_per_param N and C = 6 N D.
    best = (experiment.tokens_per_param * min(experiment.budgets) / 6) ** 0.5
    assert experiment.fixed_warmup == pytest.approx(best, rel=0.05)
    corpus = fake_corpus(experiment.vocab_size)
    longest = max(run.spec.n_tokens for run in experiment.runs(corpus))
    assert experiment.fixed_cosine == pytest.approx(16 * longest, rel=0.1)
