"""Exponents of fits, their differences, and when they decide nothing."""

import numpy as np
import pytest

from lmscale.laws import FitResult
from lmscale.studies.estimate import Estimate
from lmscale.studies.exponents import difference, exponent, frontier, is_informative
from lmscale.studies.fits import refused

OURS = Estimate(name="a", value=0.5, interval=(0.4, 0.6))
OTHER = Estimate(name="a", value=0.3, interval=(0.2, 0.4))


@pytest.mark.parametrize("seeds", [1, 2])
def test_a_difference_from_few_seeds_decides_nothing(seeds):
    estimate = difference("a_minus_b", OURS, OTHER, "", seeds=seeds)
    assert estimate.value == pytest.approx(0.2)
    assert estimate.undecided_because == f"a difference needs 3 seeds, not {seeds}"


def test_three_seeds_may_decide():
    estimate = difference("a_minus_b", OURS, OTHER, "", seeds=3)
    assert not estimate.undecided_because
    assert estimate.interval == pytest.approx((0.2 - 0.02**0.5, 0.2 + 0.02**0.5))


def test_draws_of_the_difference_replace_independent_intervals():
    draws = 0.2 + 0.01 * np.random.default_rng(0).standard_normal(400)
    paired = difference("a_minus_b", OURS, OTHER, "", seeds=3, draws=draws)
    assert paired.interval == pytest.approx((0.18, 0.22), abs=0.005)
    assert paired.draws is draws and difference("d", OURS, OTHER, "").draws is None
    few = difference("a_minus_b", OURS, OTHER, "", seeds=2, draws=draws)
    assert few.interval == paired.interval and "needs 3 seeds" in few.undecided_because


def test_what_is_missing_is_said():
    none, bare = Estimate(name="a"), Estimate(name="a", value=0.5)
    assert difference("a_minus_b", none, OTHER, "no fit", seeds=3).undecided_because == "no fit"
    assert (
        difference("a_minus_b", bare, OTHER, "", seeds=3).undecided_because
        == "one of the two has no interval"
    )


def test_an_exponent_of_a_fit_or_why_there_is_none():
    fit = FitResult(
        law="isoflop",
        parameters={"a": 0.5, "k_N": 2.0},
        exponents={"exact": {"N": 0.5, "D": 0.6}},
        exponent_intervals={"exact": {"N": (0.4, 0.7), "D": (0.5, np.nan)}},
        draws={"a": np.full(200, 0.5), "k_N": np.linspace(1, 3, 200)},
    )
    assert (exponent(fit).value, exponent(fit).interval) == (0.5, (0.4, 0.7))
    assert (exponent(fit, "D").name, exponent(fit, "D").interval) == ("b", None)
    assert is_informative(exponent(fit)) and not is_informative(exponent(fit, "D"))
    assert exponent(refused("isoflop", "no runs"), missing="flat").undecided_because == "no runs"
    flat = FitResult(law="isoflop", parameters={})
    assert exponent(flat, missing="flat").undecided_because == "flat"
    line, (low, high) = frontier(fit, "N", np.array([100.0]))
    assert line == pytest.approx([20.0])
    assert low == pytest.approx([10.5], abs=0.1) and high == pytest.approx([29.5], abs=0.1)
