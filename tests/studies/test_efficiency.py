"""Tokens to a loss by size: what the planted law says, adjusted for the batch."""

import pytest

from lmscale.studies import Results, efficiency
from tests.report import planted_curves as planted

BATCH = (planted.LAW["B_star"], planted.LAW["alpha_B"])


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    path, runs = tmp_path_factory.mktemp("efficiency"), planted.ladder_runs()
    return efficiency.study(
        planted.plant(path, runs, analyses=["efficiency"], critical_batch=BATCH)
    )


def test_the_tokens_are_those_of_the_law(found):
    k = planted.LAW
    assert len(found.reached) == 4
    for one in found.reached:
        assert one.b_crit == pytest.approx(k["B_star"] / one.loss ** (1 / k["alpha_B"]))
        for tokens in one.tokens:
            over = one.loss - (k["N_c"] / tokens.at[0]) ** k["alpha_N"]
            e_min = one.b_crit * k["S_c"] / over ** (1 / k["alpha_S"])
            assert tokens.value == pytest.approx(e_min, rel=0.12)
            assert tokens.interval[0] < tokens.value < tokens.interval[1]


def test_bigger_models_need_fewer(found):
    exponent = found.estimates["exponent"]
    low, high = exponent.interval
    assert low < exponent.value < high < 0
    assert not exponent.undecided_because and exponent.seeds == 3
    ratio = found.reached[0].ratio
    assert 1 < ratio.interval[0] < ratio.value < ratio.interval[1]


def test_the_papers_hundredfold_is_not_asked_of_a_short_ladder(found):
    ratio = found.estimates["ratio"]
    assert ratio.value is None and "factor of 64" in ratio.undecided_because


def test_one_seed_has_no_intervals_and_no_curves_nothing(tmp_path):
    runs = planted.ladder_runs(planted.SIZES[:4], seeds=(0,))
    found = efficiency.study(planted.plant(tmp_path / "one", runs, analyses=["efficiency"]))
    exponent = found.estimates["exponent"]
    assert exponent.value < 0 and exponent.interval is None
    assert exponent.undecided_because == "an interval needs 3 seeds, not 1"
    store = planted.planted.plant(
        tmp_path / "none",
        planted.ladder_runs(planted.SIZES[:2], seeds=(0,)),
        analyses=["efficiency"],
        status=lambda index, run: "pending",
    )
    found = efficiency.study(Results.read(store))
    assert found.ladder is None
    assert found.estimates["exponent"].undecided_because.startswith("no run has evaluations")
