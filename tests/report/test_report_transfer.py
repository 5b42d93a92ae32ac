"""The section on other text: its words, its table and its verdicts on planted losses."""

import dataclasses

import pytest

from lmscale.report import analyse
from lmscale.report.claims import judge
from tests.studies.test_transfer import EXPERIMENT, SLOPES, evaluations, read


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return read(tmp_path_factory.mktemp("transfer"))


def test_the_section_holds_slopes_and_verdicts(results, drawn):
    section = analyse("transfer", results)
    slopes = {row[0]: row[3] for row in section.grids[0].rows}
    for name, truth in SLOPES.items():
        low, high = (float(v) for v in slopes[name].split("(")[1].rstrip(")").split(" to "))
        assert low < truth < high and high - low < 0.1
    assert "on books" in section.measures["slope"].what
    assert [judge(c, [section]).word for c in results.claims] == ["disagrees", "agrees"]
    assert section.charts and section.conclusive


def test_a_stage_that_matters_disagrees(tmp_path):
    results = read(tmp_path, lambda spec: evaluations(spec, shift=0.3))
    section = analyse("transfer", results)
    assert judge(results.claims[1], [section]).word == "disagrees"
    assert "above the trained ones" in section.finding


def test_one_seed_decides_nothing_about_the_stage(tmp_path):
    results = read(tmp_path, experiment=dataclasses.replace(EXPERIMENT, seeds=(0,)))
    section = analyse("transfer", results)
    assert judge(results.claims[1], [section]).word in ("not decided", "not tested here")


def test_nothing_to_compare_is_said(tmp_path):
    section = analyse("transfer", read(tmp_path, lambda spec: None))
    assert "No other text to compare with yet" in section.finding
