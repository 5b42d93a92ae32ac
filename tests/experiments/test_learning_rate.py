"""The grid of sizes, tokens, batches and rates."""

import pytest
from lmscale_experiments.learning_rate import SCALES

from tests.experiments.fake_corpus import CORPUS


@pytest.mark.parametrize("scale", SCALES)
def test_every_cell_is_searched(scale):
    experiment = SCALES[scale]
    runs = experiment.runs(CORPUS)
    specs = [run.spec for run in runs]
    assert len(specs) == len({spec.hash for spec in specs})
    cells: dict = {}
    for run in runs:
        cell = (run.spec.model, run.spec.batch_size, run.spec.steps, run.spec.seed)
        cells.setdefault(cell, []).append(run.spec.optimizer.peak_lr)
        # To the nearest step, of which there are enough.
        assert run.spec.steps >= experiment.least_steps
        assert run.spec.n_tokens == pytest.approx(run.labels["horizon"], rel=0.03)
    for rates in cells.values():
        assert len(set(rates)) == len(experiment.lr_factors)
        assert max(rates) / min(rates) == pytest.approx(
            max(experiment.lr_factors) / min(experiment.lr_factors), rel=1e-4
        )
    # A parabola for the batch needs three of them.
    per_size = {(spec.model, round(spec.n_tokens, -3)): set() for spec in specs}
    assert len(experiment.batch_sizes) >= 3 and len(per_size) >= 4


def test_the_papers_schedules_end_at_one_rate_whatever_their_peak():
    specs = [run.spec for run in SCALES["paper"].runs(CORPUS)]
    for spec in specs:
        final = spec.schedule.final_fraction * spec.optimizer.peak_lr
        assert final == pytest.approx(1e-5)
        assert spec.schedule.warmup_steps == min(2000, spec.steps // 2)
    assert all(run.spec.schedule.final_fraction == 0.1 for run in SCALES["gpu"].runs(CORPUS))
