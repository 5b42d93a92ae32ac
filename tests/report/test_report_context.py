"""The context analysis finds what was planted in losses by position."""

import dataclasses

import numpy as np
import pytest
from lmscale_experiments.context import SCALES

from lmscale import flops
from lmscale.report import analyse
from lmscale.report.claims import judge
from lmscale.studies.results import Results
from tests.report import planted_evaluations as planted

EXPERIMENT = dataclasses.replace(SCALES["gpu"], n_ctx=512, sizes=(8e5, 1.6e6, 3.2e6, 6.4e6, 1.3e7))
C, DELAY = 0.55, 4.0


def evaluations(spec):
    """a + b T^-c; the first token knows nothing of N; far context comes DELAY times as late."""
    n_ctx = spec.model.n_ctx
    position = np.arange(1, n_ctx + 1)
    rng = np.random.default_rng(int(spec.hash, 16))
    text = 0.03 * np.random.default_rng(n_ctx).standard_normal(n_ctx)
    depth = 3.5 + 0.3 * np.log10(flops.n_params(spec.model, "kaplan") / 8e5)
    found = {}
    for step in (*spec.eval_steps, spec.steps):
        done = 3 * step / spec.steps
        reach = np.where(position <= 8, done * DELAY, done)
        learnt = np.minimum(1.0, reach)
        curve = 6.0 - depth * (1 - position**-C) * learnt
        # Eight tokens of context are all that the short model has to learn.
        curve = curve - (0.2 if n_ctx == 8 else 0.0)
        noise = 0.01 * rng.standard_normal() + 0.003 * rng.standard_normal(n_ctx)
        found[step] = {"valid": curve + text + noise}
    return found


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    runs = EXPERIMENT.runs(planted.CORPUS)
    path = tmp_path_factory.mktemp("context")
    return Results.read(planted.plant(path, runs, evaluations, experiment=EXPERIMENT))


@pytest.fixture(scope="module")
def section(study):
    return analyse("context", study)


def test_the_exponent_comes_back(section):
    low, high = section.measures["exponent"].interval
    assert low < C < high and high - low < 0.2
    assert section.conclusive and len(section.fits) == 5


def test_the_first_token_gains_nothing_from_size(section):
    low, high = section.measures["first_token"].interval
    assert low < 0.01 and high < 0.05


def test_long_range_is_learnt_later(section):
    assert section.measures["long_range_delay"].value == pytest.approx(DELAY, rel=0.35)


def test_a_short_context_is_ahead_on_its_tokens(section):
    # The two contexts have texts of their own, alike for all sizes.
    short, long = (0.03 * np.random.default_rng(n).standard_normal(n)[:8] for n in (8, 512))
    planted_gain = 0.2 + float(np.mean(long - short))
    low, high = section.measures["short_context_gain"].interval
    assert low < planted_gain < high
    assert section.measures["short_context_gain"].value == pytest.approx(planted_gain, abs=0.01)
    assert "0.2" in section.finding and "better than one of 512" in section.finding


def test_the_paper_is_agreed_with(study, section):
    words = [judge(claim, [section]).word for claim in study.claims]
    assert words == ["agrees"] * 4


def test_small_models_say_nothing_about_the_papers_exponent(tmp_path):
    experiment = dataclasses.replace(EXPERIMENT, n_ctx=64, sizes=(4e3, 8e5), seeds=(0,))
    runs = experiment.runs(planted.CORPUS)
    study = Results.read(planted.plant(tmp_path, runs, evaluations, experiment=experiment))
    section = analyse("context", study)
    assert section.measures["exponent"].value is None
    assert "below the paper's range" in section.measures["exponent"].undecided_because
    assert section.measures["first_token"].value is None
    assert section.measures["short_context_gain"].interval is None
    assert {judge(c, [section]).word for c in study.claims} == {"can't tell"}


def test_a_store_without_results_has_no_finding(tmp_path):
    runs = EXPERIMENT.runs(planted.CORPUS)
    study = Results.read(planted.plant(tmp_path, runs, lambda spec: None, experiment=EXPERIMENT))
    assert "No losses by position yet" in analyse("context", study).finding
