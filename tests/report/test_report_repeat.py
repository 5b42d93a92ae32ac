"""The section on repeated data: what it says of a planted decay, its tables and its charts."""

import pytest

from lmscale.report import analyse
from lmscale.studies import repeat
from tests.report.fixtures import throughout, without_law
from tests.studies.test_repeat import declared, mixed, read

few_draws = throughout(repeat, "BOOTSTRAP", 100)


no_law = without_law(repeat, "data-constrained")


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    return analyse("repeat", read(tmp_path_factory.mktemp("repeat"), declared()))


@pytest.mark.slow
def test_the_finding_holds_the_decay(section):
    assert section.conclusive and "R_D* =" in section.finding
    assert "from 32 to 64 epochs" in section.measures["gain_beyond_40"].what


@pytest.mark.slow
def test_charts_and_tables(section):
    assert [chart.name for chart in section.charts] == ["repeat", "repeat-worth"]
    assert [row[0] for row in section.grids[0].rows] == ["2", "4", "8", "16", "32", "64"]
    assert section.grids[0].rows[1][5] == "0.931"


@pytest.mark.slow
def test_intervals_say_that_one_set_was_drawn(section):
    assert "one drawn set" in section.measures["excess_at_4"].what
    assert any("not which tokens were drawn" in text for text in section.warnings)


def test_one_seed_is_warned_of(tmp_path, no_law):
    section = analyse("repeat", read(tmp_path, declared(seeds=(0,))))
    assert any("not known" in text for text in section.warnings)


def test_sizes_that_fresh_runs_do_not_reach_are_counted(tmp_path, no_law):
    section = analyse("repeat", read(tmp_path, declared(fresh=(2, 4, 8)), law=mixed))
    what = section.measures["worth_at_16"].what
    assert "mean of 2 sizes" in what or "mean of 1 size," in what
    assert "of 3" in section.grids[0].rows[3][3]


def test_too_few_fresh_runs_have_no_law(tmp_path):
    section = analyse("repeat", read(tmp_path, declared(sizes=(1e4,), seeds=(0,))))
    assert section.conclusive and "lose their worth" not in section.finding
    assert any("of two sizes or more" in text for text in section.warnings)


def test_a_store_without_results_says_so(tmp_path):
    runs = declared(epochs=(2, 4), fresh=(), seeds=(0,))
    pending = read(tmp_path, runs, status=lambda index, run: "pending")
    assert analyse("repeat", pending).finding == "No run has ended well yet."
