"""The section on tokens to a loss by size: the finding, its table, and where there is none."""

import pytest

from lmscale.report import analyse
from lmscale.report.claims import judge
from lmscale.sweep.claims import Claim
from tests.report import planted_curves as planted
from tests.studies.test_efficiency import BATCH


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    path, runs = tmp_path_factory.mktemp("efficiency"), planted.ladder_runs()
    return analyse(
        "efficiency", planted.plant(path, runs, analyses=["efficiency"], critical_batch=BATCH)
    )


def test_the_finding_names_the_sizes(section):
    assert "times fewer than that of 1.54k" in section.finding
    (grid,) = section.grids
    losses = list(dict.fromkeys(row[0] for row in grid.rows))
    assert [row[0] for row in grid.rows if row[5]] == losses and len(losses) == 4
    assert "mean of 4 losses from" in section.measures["exponent"].what
    assert section.conclusive and len(section.charts) == 1


def test_the_claim_of_fewer_tokens_agrees(section):
    claim = Claim(text="t", source="s", measure="efficiency/exponent", high=0.0)
    assert judge(claim, [section]).word == "agrees"


def test_two_sizes_are_too_few(tmp_path):
    runs = planted.ladder_runs(planted.SIZES[:2], seeds=(0,))
    section = analyse("efficiency", planted.plant(tmp_path, runs, analyses=["efficiency"]))
    assert section.finding.startswith("No law yet: 2 sizes")
    assert all(m.value is None and m.undecided_because for m in section.measures.values())
