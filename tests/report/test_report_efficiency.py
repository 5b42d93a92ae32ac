"""Tokens to a loss by size: what the planted law says, adjusted for the batch."""

import pytest

from lmscale.report import analyse
from lmscale.report.claims import judge
from lmscale.sweep.claims import Claim
from tests.report import planted_curves as planted

BATCH = (planted.LAW["B_star"], planted.LAW["alpha_B"])


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    path = tmp_path_factory.mktemp("efficiency")
    runs = planted.ladder_runs()
    return analyse(
        "efficiency", planted.plant(path, runs, analyses=["efficiency"], critical_batch=BATCH)
    )


def test_the_tokens_are_those_of_the_law(section):
    k = planted.LAW
    (grid,) = section.grids
    for loss, size, tokens, *_ in grid.rows:
        loss, size = float(loss), _number(size)
        s_min = k["S_c"] / (loss - (k["N_c"] / size) ** k["alpha_N"]) ** (1 / k["alpha_S"])
        e_min = s_min * k["B_star"] / loss ** (1 / k["alpha_B"])
        assert _number(tokens) == pytest.approx(e_min, rel=0.12)


def _number(text):
    scale = {"k": 1e3, "M": 1e6}.get(text[-1], 1)
    return float(text.rstrip("kM").replace(",", "")) * scale


def test_bigger_models_need_fewer(section):
    low, high = section.measures["exponent"].interval
    assert low < section.measures["exponent"].value < high < 0
    assert "times fewer than" in section.finding
    claim = Claim(text="t", source="s", measure="efficiency/exponent", high=0.0)
    assert judge(claim, [section]).word == "agrees"


def test_the_papers_hundredfold_is_not_asked_of_a_short_ladder(section):
    ratio = section.measures["ratio"]
    assert ratio.value is None and "factor of 64" in ratio.undecided_because


def test_two_sizes_are_too_few(tmp_path):
    runs = planted.ladder_runs(planted.SIZES[:2], seeds=(0,))
    section = analyse("efficiency", planted.plant(tmp_path, runs, analyses=["efficiency"]))
    assert section.finding.startswith("No law yet")
