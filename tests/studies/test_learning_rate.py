"""A planted rule for the learning rate and the batch comes back."""

import dataclasses
import math

import numpy as np
import pytest
from lmscale_experiments.learning_rate import SCALES

from lmscale import flops
from lmscale.studies import Results, learning_rate
from tests.report import planted_evaluations as planted

EXPERIMENT = dataclasses.replace(
    SCALES["cpu"],
    sizes=(1e4, 8e4),
    tokens=(1e6, 1.6e7),
    batch_sizes=(1, 4, 16, 64),
    lr_factors=(0.125, 0.25, 0.5, 1.0, 2.0, 4.0),
)
C, X, Y, Z = 0.06, -0.3, -0.1, 0.4
K, Q = 1.0, 0.45


def best_rate(n, d, b):
    return C * n**X * d**Y * b**Z


def evaluations(spec, noise=0.001):
    n, d, b = flops.n_params(spec.model, "kaplan"), spec.n_tokens, spec.batch_tokens
    off = math.log(spec.optimizer.peak_lr / best_rate(n, d, b))
    loss = 3.0 - 0.1 * math.log(n / 1e4) + 0.06 * off**2 + 0.02 * math.log(b / (K * d**Q)) ** 2
    rng = np.random.default_rng(int(spec.hash, 16))
    return {spec.steps: {"valid": loss + noise * rng.standard_normal()}}


def edges_experiment():
    return dataclasses.replace(EXPERIMENT, lr_factors=(0.25, 0.5, 1.0, 2.0), batch_sizes=(1, 4, 16))


def with_divergence(spec):
    return None if spec.optimizer.peak_lr > 0.008 else evaluations(spec)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    runs = EXPERIMENT.runs(planted.CORPUS)
    path = tmp_path_factory.mktemp("learning_rate")
    store = planted.plant(path, runs, evaluations, experiment=EXPERIMENT)
    return learning_rate.study(Results.read(store))


@pytest.mark.parametrize(("name", "symbol", "truth"), [("n", "x", X), ("d", "y", Y), ("b", "z", Z)])
def test_the_rule_comes_back(found, name, symbol, truth):
    low, high = found.fits["transformer/kaplan"].intervals[symbol]
    assert low < truth < high and high - low < 0.1
    assert found.estimates[f"{name}_exponent"].interval == (low, high)


def test_the_best_batch_comes_back(found):
    low, high = found.fits["transformer/batch"].intervals["q"]
    assert low < Q < high and high - low < 0.3


def test_every_best_rate_inside_has_an_interval(found):
    assert len(found.cells) == 16 and found.noise == pytest.approx(0.001, rel=0.5)
    for cell in found.inside:
        truth = best_rate(cell.n, cell.d, cell.b)
        assert cell.best.value == pytest.approx(truth, rel=0.1)
        assert cell.best.interval[0] < cell.best.value < cell.best.interval[1]
    assert {(cell.n, cell.d) for cell in found.at_best_tried_batch} == {
        (cell.n, cell.d) for cell in found.inside
    }


def test_exponents_of_a_paper_of_larger_models_are_not_decided(found):
    for name in ("steplaw_n", "steplaw_d", "steplaw_batch"):
        assert found.estimates[name].value is None
    assert "far below the paper's 60M" in found.estimates["steplaw_n"].undecided_because


def test_edges_and_divergence_are_left_out(tmp_path):
    experiment = edges_experiment()
    runs = experiment.runs(planted.CORPUS)
    store = planted.plant(tmp_path, runs, with_divergence, experiment=experiment)
    found = learning_rate.study(Results.read(store))
    assert "next one diverged" in {cell.edge for cell in found.cells}
    assert all(not cell.best.is_known for cell in found.cells if cell.edge)
    assert found.rate.failure or found.rate.n_used == len(found.inside)


def test_nothing_yet(tmp_path):
    runs = EXPERIMENT.runs(planted.CORPUS)[:3]
    store = planted.plant(tmp_path, runs, lambda s: None, experiment=EXPERIMENT)
    found = learning_rate.study(Results.read(store))
    assert not found.fits["transformer/kaplan"].converged and len(found.fits) == 1
    assert all(one.value is None and one.undecided_because for one in found.estimates.values())
