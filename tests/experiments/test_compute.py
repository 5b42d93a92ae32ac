"""The declaration of compute: the ladder, and the paper's training."""

from types import SimpleNamespace

import pytest
from lmscale_experiments.compute import SCALES

from lmscale.flops import n_params

CORPUS = SimpleNamespace(name="text", fingerprint="0123456789ab", vocab_size=512)


@pytest.mark.parametrize(("scale", "count"), [("cpu", 18), ("gpu", 21), ("paper", 21)])
def test_one_run_a_size_and_seed(scale, count):
    runs = SCALES[scale].runs(CORPUS)
    assert len(runs) == count == len({run.spec.run_id for run in runs})
    assert all(run.spec.eval_steps[-1] == run.spec.steps for run in runs)
    # The laws leave the warmup out.
    assert all(run.spec.eval_steps[0] > run.spec.schedule.warmup_steps for run in runs)


def test_small_sizes_train_for_longer_on_a_cpu():
    steps = [run.spec.steps for run in SCALES["cpu"].runs(CORPUS) if run.spec.seed == 0]
    assert steps == sorted(steps, reverse=True) and steps[-1] == SCALES["cpu"].steps


def test_the_paper_scale_is_the_papers():
    runs = [run.spec for run in SCALES["paper"].runs(CORPUS)]
    for spec in runs:
        assert (spec.steps, spec.batch_tokens) == (250_000, 2**19)
        assert (spec.schedule.warmup_steps, spec.schedule.final_fraction) == (3000, 0.0)
    sizes = [n_params(spec.model, "kaplan") for spec in runs]
    assert max(sizes) == 12 * 48 * 1600**2
    # Adafactor above a billion parameters.
    assert [s.optimizer.name for s in runs if n_params(s.model, "kaplan") > 1e9] == ["adafactor"]


def test_every_claim_names_a_measure_of_the_analyses():
    for experiment in SCALES.values():
        assert {c.measure.split("/")[0] for c in experiment.claims} <= set(experiment.analyses)
