"""Differences of exponents, and when they decide nothing."""

import pytest

from lmscale.studies.exponents import difference

OURS, OTHER = (0.5, (0.4, 0.6)), (0.3, (0.2, 0.4))


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_difference_from_few_seeds_decides_nothing(seeds):
    estimate = difference("a_minus_b", OURS, OTHER, "", seeds=seeds)
    assert estimate.value == pytest.approx(0.2)
    assert estimate.undecided_because == f"a difference needs 3 seeds, not {seeds}"


def test_three_seeds_may_decide():
    estimate = difference("a_minus_b", OURS, OTHER, "", seeds=3)
    assert not estimate.undecided_because
    assert estimate.interval == pytest.approx((0.2 - 0.02**0.5, 0.2 + 0.02**0.5))


def test_what_is_missing_is_said():
    assert difference("a_minus_b", None, OTHER, "no fit", seeds=3).undecided_because == "no fit"
    assert (
        difference("a_minus_b", (0.5, None), OTHER, "", seeds=3).undecided_because
        == "one of the two has no interval"
    )
