"""The critical batch: planted hyperbolas and noise scales come back, and what is missing is said."""

import dataclasses

import numpy as np
import pytest

from lmscale.report import analyse
from tests.report import planted_curves as planted

NOISE = 1.5


def b_crit(loss):
    return planted.LAW["B_star"] / loss ** (1 / planted.LAW["alpha_B"])


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    study = planted.plant(
        tmp_path_factory.mktemp("batch"),
        planted.batch_runs(),
        analyses=["critical_batch"],
        noise_scale=lambda loss: NOISE * b_crit(loss),
        noise_pieces=2,
    )
    return analyse("critical_batch", study)


def test_the_critical_batch_comes_back_at_every_loss(section):
    (grid,) = section.grids
    for row in grid.rows:
        found = float(row[4].rstrip("k")) * (1e3 if row[4].endswith("k") else 1)
        assert found == pytest.approx(b_crit(float(row[1])), rel=0.15)


def test_it_grows_as_the_planted_power_and_not_with_size(section):
    power, ratio = section.measures["power"], section.measures["size_ratio"]
    assert power.value == pytest.approx(1 / planted.LAW["alpha_B"], rel=0.08)
    assert power.interval[0] < power.value < power.interval[1]
    assert ratio.value == pytest.approx(1, abs=0.1)
    assert section.conclusive


def test_the_noise_scale_is_read_at_the_same_losses(section):
    ratio = section.measures["noise_ratio"]
    assert ratio.value == pytest.approx(NOISE, rel=0.1)
    assert ratio.interval[0] < ratio.value < ratio.interval[1]


def test_it_says_what_to_give_to_the_other_experiments(section):
    assert "--critical-batch" in section.details[0]
    assert [chart.name for chart in section.charts] == ["batch-hyperbolas", "critical-batch"]


def test_each_loss_takes_the_learning_rate_that_gets_there_first(tmp_path):
    """Of three rates the middle one is fastest: the others change nothing, and it is no edge."""
    runs = []
    for run in planted.batch_runs((2, 4, 8, 16, 32), sizes=(6144.0,), seeds=(0,)):
        for factor in (0.5, 1.0, 2.0):
            rate = factor * run.spec.optimizer.peak_lr
            optimizer = dataclasses.replace(run.spec.optimizer, peak_lr=rate)
            spec = dataclasses.replace(run.spec, optimizer=optimizer)
            runs.append(planted.Run(spec, run.labels | {"lr_factor": factor}))
    middle = runs[1].spec.optimizer.peak_lr

    def law(spec, steps):
        off = np.log(spec.optimizer.peak_lr / middle)
        return planted.curve(spec, steps / (1 + off**2))

    study = planted.plant(tmp_path, runs, analyses=["critical_batch"], law=law)
    section = analyse("critical_batch", study)
    assert section.measures["power"].value == pytest.approx(1 / planted.LAW["alpha_B"], rel=0.15)
    assert not any("edge" in warning for warning in section.warnings)


def test_batches_that_miss_the_hyperbola_widen_the_interval_and_are_told(tmp_path, section):
    def bent(spec, steps):
        """The smallest and the largest batch take 8% longer."""
        return planted.curve(spec, steps / (1.08 if spec.batch_size in (2, 64) else 1.0))

    study = planted.plant(tmp_path, planted.batch_runs(), analyses=["critical_batch"], law=bent)
    found = analyse("critical_batch", study)
    assert any("depends on which batches were run" in text for text in found.warnings)
    assert not any("which batches" in text for text in section.warnings)
    assert "jackknife over batches" in next(iter(found.fits.values())).interval_method

    def widths(analysed):
        (grid,) = analysed.grids
        edges = [[float(e.rstrip("k")) for e in row[5].split(" to ")] for row in grid.rows]
        return np.mean([np.log(high / low) for low, high in edges])

    assert widths(found) > 2 * widths(section)


def test_three_batches_are_too_few(tmp_path):
    runs = planted.batch_runs((2, 8, 32), seeds=(0,))
    section = analyse("critical_batch", planted.plant(tmp_path, runs, analyses=["critical_batch"]))
    assert section.finding.startswith("No law yet") and not section.measures


def test_runs_without_noise_pieces_have_no_noise_scale(tmp_path):
    runs = planted.batch_runs((2, 4, 8, 16), seeds=(0,))
    section = analyse("critical_batch", planted.plant(tmp_path, runs, analyses=["critical_batch"]))
    assert section.measures["noise_ratio"].value is None
    assert section.measures["power"].interval is None
