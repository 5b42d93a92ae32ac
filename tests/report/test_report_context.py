"""The section on loss by position over size: its words and verdicts on planted losses."""

import dataclasses

import pytest

from lmscale.report import analyse
from lmscale.report.claims import judge
from lmscale.studies import Results
from tests.report import planted_evaluations as planted
from tests.studies.test_context import EXPERIMENT, evaluations


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    runs = EXPERIMENT.runs(planted.CORPUS)
    path = tmp_path_factory.mktemp("context")
    return Results.read(planted.plant(path, runs, evaluations, experiment=EXPERIMENT))


@pytest.fixture(scope="module")
def section(results):
    return analyse("context", results)


def test_the_finding_names_the_short_context(section):
    assert "0.2" in section.finding and "better than one of 512" in section.finding
    assert section.conclusive
    assert [chart.name for chart in section.charts] == ["context-position", "context-size"]


def test_the_paper_is_agreed_with(results, section):
    words = [judge(claim, [section]).word for claim in results.claims]
    assert words == ["agrees", "consistent", "agrees", "agrees", "agrees"]


def test_small_models_decide_nothing(tmp_path):
    experiment = dataclasses.replace(EXPERIMENT, n_ctx=64, sizes=(4e3, 8e5), seeds=(0,))
    runs = experiment.runs(planted.CORPUS)
    results = Results.read(planted.plant(tmp_path, runs, evaluations, experiment=experiment))
    section = analyse("context", results)
    assert {judge(c, [section]).word for c in results.claims} <= {"not decided", "not tested here"}


def test_a_store_without_results_has_no_finding(tmp_path):
    runs = EXPERIMENT.runs(planted.CORPUS)
    results = Results.read(planted.plant(tmp_path, runs, lambda spec: None, experiment=EXPERIMENT))
    assert "No losses by position yet" in analyse("context", results).finding
