"""The section on loss against compute: the finding, both counts, and where there is no law."""

import pytest

from lmscale.report import analyse
from tests.report import planted_curves as planted
from tests.studies.test_compute import BATCH


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    path, runs = tmp_path_factory.mktemp("compute"), planted.ladder_runs()
    return analyse("compute", planted.plant(path, runs, analyses=["compute"], critical_batch=BATCH))


def test_what_appendix_b_says_of_these_runs_is_told(section):
    assert section.finding.startswith("The loss falls as C_min^−0.0")
    assert "stops 13% above" in section.details[0]
    assert section.measures["excess"].what.endswith("less one, 7 sizes, 3 seeds each")


def test_both_counts_are_shown(section):
    (grid,) = section.grids
    assert [row[0] for row in grid.rows] == [
        "kaplan, C",
        "kaplan, C_min",
        "standard, C",
        "standard, C_min",
        "App. B from L(N, S) and B_crit(L)",
    ]
    assert {chart.name for chart in section.charts} == {"compute", "best-size", "off-optimum"}


def test_a_ladder_that_holds_no_best_size_says_so(tmp_path):
    runs = planted.ladder_runs(planted.SIZES[:2], seeds=(0,))
    section = analyse("compute", planted.plant(tmp_path, runs, analyses=["compute"]))
    assert section.finding.startswith("No law yet: 2 sizes")
    assert all(m.value is None and m.undecided_because for m in section.measures.values())
