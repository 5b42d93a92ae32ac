"""The section on the best learning rate: its rules drive other runs, and what is left out is said."""

import json

import pytest

from lmscale import flops, hparams
from lmscale.report import analyse, write_report
from lmscale.report.claims import judge
from lmscale.spec import SpecError
from lmscale.studies.results import Results
from tests.report import planted_evaluations as planted
from tests.studies.test_learning_rate import (
    EXPERIMENT,
    best_rate,
    edges_experiment,
    evaluations,
    with_divergence,
)


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


def test_the_rules_are_said_and_shown(section):
    assert section.finding.startswith("The best learning rate goes as N^−0.")
    assert len(section.key_numbers) == 3 and len(section.charts) == 2
    rules, cells, published = section.grids
    assert [row[0] for row in rules.rows][:2] == ["best rate", "best batch (tokens)"]
    assert len(cells.rows) == 16
    assert published.header[-4:] == ["Kaplan", "Porian", "DeepSeek", "StepLaw"]


@pytest.mark.slow
def test_the_rule_drives_other_experiments(store, section, drawn):
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
    assert words[2:4] == ["agrees", "differs"]  # 0.4 is above 0, and below 0.5 to 1
    assert words[4:] == ["not tested here"] * 4
    assert "far below the paper's 60M" in section.measures["steplaw_n"].undecided_because


def test_edges_and_divergence_are_left_out_and_said(tmp_path):
    experiment = edges_experiment()
    runs = experiment.runs(planted.CORPUS)
    store = planted.plant(tmp_path, runs, with_divergence, experiment=experiment)
    section = analyse("learning_rate", Results.read(store))
    (warning,) = [w for w in section.warnings if "edge of the search, or there is none" in w]
    assert "left out of the rule" in warning


def test_nothing_yet(tmp_path):
    runs = EXPERIMENT.runs(planted.CORPUS)[:3]
    study = Results.read(planted.plant(tmp_path, runs, lambda s: None, experiment=EXPERIMENT))
    section = analyse("learning_rate", study)
    assert "No best rate yet" in section.finding
    assert not section.fits["transformer/kaplan"].converged
