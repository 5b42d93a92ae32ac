"""A planted rule for the learning rate and the batch comes back, and drives other runs."""

import dataclasses
import json
import math

import numpy as np
import pytest
from lmscale_experiments.learning_rate import SCALES

from lmscale import flops, hparams
from lmscale.report import analyse, write_report
from lmscale.report.claims import judge
from lmscale.spec import SpecError
from lmscale.studies.results import Results
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


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    runs = EXPERIMENT.runs(planted.CORPUS)
    path = tmp_path_factory.mktemp("learning_rate")
    return planted.plant(path, runs, evaluations, experiment=EXPERIMENT)


@pytest.fixture(scope="module")
def study(store):
    return Results.read(store)


@pytest.fixture(scope="module")
def section(study):
    return analyse("learning_rate", study)


@pytest.mark.parametrize("name, truth", [("x", X), ("y", Y), ("z", Z)])
def test_the_rule_comes_back(section, name, truth):
    low, high = section.fits["transformer/kaplan"].intervals[name]
    assert low < truth < high and high - low < 0.1


def test_the_best_batch_comes_back(section):
    low, high = section.fits["transformer/batch"].intervals["q"]
    assert low < Q < high and high - low < 0.3, section.finding


def test_the_rule_drives_other_experiments(store, section):
    write_report(store)
    rule = hparams.fitted_rule(store.path / "fits.json")
    spec = EXPERIMENT.runs(planted.CORPUS)[0].spec
    n = flops.n_params(spec.model, "kaplan")
    assert rule(spec.model, 4e6, 512) == pytest.approx(best_rate(n, 4e6, 512), rel=0.05)
    low, high = rule.ranges["batch_tokens"]
    assert 128 <= low < high <= 64 * 128
    with pytest.raises(SpecError, match="holds no learning-rate rule of lstm"):
        hparams.fitted_rule(store.path / "fits.json", family="lstm")
    with pytest.raises(SpecError, match="holds no learning-rate rule"):
        hparams.fitted_rule(store.path / "nothing.json")
    json.loads((store.path / "fits.json").read_text())


def test_verdicts_respect_the_range_of_the_paper(study, section):
    words = [judge(claim, [section]).word for claim in study.claims]
    assert words[:2] == ["agrees", "agrees"]
    assert words[2] == "disagrees"  # 0.4 lies below 0.5 to 1
    assert words[3:] == ["can't tell"] * 3
    assert "far below the paper's 60M" in section.measures["steplaw_n"].undecided_because


def test_edges_and_divergence_are_left_out_and_said(tmp_path):
    experiment = dataclasses.replace(
        EXPERIMENT, lr_factors=(0.25, 0.5, 1.0, 2.0), batch_sizes=(1, 4, 16)
    )

    def losses(spec):
        return None if spec.optimizer.peak_lr > 0.008 else evaluations(spec)

    runs = experiment.runs(planted.CORPUS)
    study = Results.read(planted.plant(tmp_path, runs, losses, experiment=experiment))
    section = analyse("learning_rate", study)
    (warning,) = [w for w in section.warnings if "edge of the search, or there is none" in w]
    assert "left out of the rule" in warning


def test_nothing_yet(tmp_path):
    runs = EXPERIMENT.runs(planted.CORPUS)[:3]
    study = Results.read(planted.plant(tmp_path, runs, lambda s: None, experiment=EXPERIMENT))
    section = analyse("learning_rate", study)
    assert "No best rate yet" in section.finding
    assert not section.fits["transformer/kaplan"].converged
