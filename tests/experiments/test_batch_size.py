"""The declaration of batch_size: steps along the hyperbola, learning rates that follow the batch."""

from types import SimpleNamespace

import pytest
from lmscale_experiments.batch_size import SCALES

from lmscale import hparams
from lmscale.flops import n_params

CORPUS = SimpleNamespace(name="text", fingerprint="0123456789ab", vocab_size=512)


@pytest.mark.parametrize(("scale", "count"), [("cpu", 72), ("gpu", 42), ("paper", 14)])
def test_two_sizes_at_every_batch(scale, count):
    runs = SCALES[scale].runs(CORPUS)
    assert len(runs) == count
    assert len({n_params(run.spec.model, "kaplan") for run in runs}) == 2
    assert all(run.spec.schedule.name == "constant" and run.spec.noise_pieces for run in runs)


@pytest.mark.parametrize("scale", ["cpu", "gpu", "paper"])
def test_small_batches_take_more_steps_and_smaller_rates(scale):
    experiment = SCALES[scale]
    runs = [run.spec for run in experiment.runs(CORPUS)]
    runs = [spec for spec in runs if spec.model == runs[0].model and spec.seed == 0]
    steps = [spec.steps for spec in runs]
    rates = [spec.optimizer.peak_lr for spec in runs]
    assert steps == sorted(steps, reverse=True) and rates == sorted(rates)
    tokens = [spec.n_tokens for spec in runs]
    assert tokens == sorted(tokens)
    turning = next(s for s in runs if s.batch_size == experiment.turning_batch)
    assert turning.steps == 2 * experiment.steps


def test_the_papers_models_and_its_rate_at_its_batch():
    runs = [run.spec for run in SCALES["paper"].runs(CORPUS)]
    assert sorted({n_params(spec.model, "kaplan") for spec in runs}) == [3_145_728, 84_934_656]
    own = next(spec for spec in runs if spec.batch_tokens == hparams.KAPLAN_BATCH)
    expected = hparams.kaplan_lr(n_params(own.model, "kaplan"))
    assert own.optimizer.peak_lr == pytest.approx(expected, rel=1e-5)
