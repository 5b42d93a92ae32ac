"""The critical batch: planted hyperbolas and noise scales come back, and what is missing is said."""

import dataclasses

import numpy as np
import pytest

from lmscale.studies import critical_batch
from tests.report import planted_curves as planted

NOISE = 1.5


def b_crit(loss):
    return planted.LAW["B_star"] / loss ** (1 / planted.LAW["alpha_B"])


def results_of(path, runs=None, **fields):
    runs = planted.batch_runs() if runs is None else runs
    return planted.plant(path, runs, analyses=["critical_batch"], **fields)


def with_noise(path):
    return results_of(path, noise_scale=lambda loss: NOISE * b_crit(loss), noise_pieces=2)


def bent(spec, steps):
    """The smallest and the largest batch take 8% longer."""
    return planted.curve(spec, steps / (1.08 if spec.batch_size in (2, 64) else 1.0))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return critical_batch.study(with_noise(tmp_path_factory.mktemp("batch")))


@pytest.mark.slow
def test_the_critical_batch_comes_back_at_every_loss(found):
    for size in found.sizes:
        for one in size.hyperbolas:
            assert one.b_crit.value == pytest.approx(b_crit(one.loss), rel=0.15)
            assert one.b_crit.interval[0] < one.b_crit.value < one.b_crit.interval[1]
            assert one.e_min.value == pytest.approx(one.s_min.value * one.b_crit.value)


def test_it_grows_as_the_planted_power_and_not_with_size(found):
    power, ratio = found.estimates["power"], found.estimates["size_ratio"]
    assert power.value == pytest.approx(1 / planted.LAW["alpha_B"], rel=0.08)
    assert power.interval[0] < power.value < power.interval[1]
    assert (power.n, power.seeds) == (2, 3) and not power.undecided_because
    assert ratio.value == pytest.approx(1, abs=0.1)


def test_the_noise_scale_is_read_at_the_same_losses(found):
    ratio = found.estimates["noise_ratio"]
    assert ratio.value == pytest.approx(NOISE, rel=0.1)
    assert ratio.interval[0] < ratio.value < ratio.interval[1]


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

    found = critical_batch.study(results_of(tmp_path, runs, law=law))
    power = found.estimates["power"]
    assert power.value == pytest.approx(1 / planted.LAW["alpha_B"], rel=0.15)
    assert [size.at_edge for size in found.sizes] == [0]


def test_batches_that_miss_the_hyperbola_widen_the_interval(tmp_path, found):
    wrong = critical_batch.study(results_of(tmp_path, law=bent))
    for size, right in zip(wrong.sizes, found.sizes, strict=True):
        assert min(size.misfit) > critical_batch.MISFIT and right.misfit is None
        assert "jackknife over batches" in size.fit.interval_method

    def widths(study):
        edges = [one.b_crit.interval for size in study.sizes for one in size.hyperbolas]
        return np.mean([np.log(high / low) for low, high in edges])

    assert widths(wrong) > 2 * widths(found)


def test_three_batches_are_too_few(tmp_path):
    runs = planted.batch_runs((2, 8, 32), seeds=(0,))
    found = critical_batch.study(results_of(tmp_path, runs))
    assert not found.sizes and found.fits["transformer/tokens"].failure
    assert all(one.value is None and one.undecided_because for one in found.estimates.values())


def test_runs_without_noise_pieces_have_no_noise_scale(tmp_path):
    runs = planted.batch_runs((2, 4, 8, 16), seeds=(0,))
    estimates = critical_batch.study(results_of(tmp_path, runs)).estimates
    assert estimates["noise_ratio"].value is None
    assert estimates["power"].interval is None
    assert estimates["power"].undecided_because == "an interval needs 3 seeds, not 1"
