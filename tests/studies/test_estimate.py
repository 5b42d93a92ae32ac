"""Estimates and their intervals."""

import numpy as np
import pytest

from lmscale.laws.result import interval
from lmscale.studies.estimate import Estimate, interval_of_mean
from lmscale.studies.fits import attempt, refused


def test_the_interval_of_a_mean_takes_three_seeds():
    assert interval_of_mean([3.0]) is None
    assert interval_of_mean([3.0, 3.4]) == (3.0, 3.4)
    low, high = interval_of_mean([1.0, 2.0, 3.0])
    # Student's with two degrees of freedom: 4.303 / sqrt(3).
    assert (low, high) == pytest.approx((2 - 2.484, 2 + 2.484), abs=1e-3)
    few = Estimate.of_mean("x", [3.0, 3.4])
    assert few.interval is None and few.undecided_because == "an interval needs 3 seeds, not 2"
    assert Estimate.of_mean("x", [1.0, 2.0, 3.0]).interval == (low, high)


def test_draws_that_are_not_numbers_are_left_out():
    draws = np.append(np.random.default_rng(0).standard_normal(500), np.nan)
    found = Estimate.of_draws("x", 0.0, draws)
    assert found.interval == interval(draws[:-1], 0.95)
    assert found.may_be(0) and not found.may_be(3)
    assert Estimate.of_draws("x", 0.0, draws[:10]).interval is None


def test_draws_that_often_give_no_number_make_no_interval():
    draws = np.random.default_rng(0).standard_normal(500)
    draws[:60] = np.inf
    found = Estimate.of_draws("x", 0.0, draws)
    assert found.interval is None and "often give no number" in found.undecided_because
    assert Estimate.of_draws("x", 0.0, draws, undecided_because="why").undecided_because == "why"
    assert Estimate.of_draws("x", 0.0, draws[20:]).interval == interval(draws[60:], 0.95)
    assert Estimate.of_draws("x", 0.0, None).undecided_because == ""


def test_a_refused_fit_gives_no_number_and_says_why():
    def impossible():
        raise np.linalg.LinAlgError("singular")

    fit = attempt("power", impossible)
    assert fit.failure == "singular" and fit.n_used == 0
    found = Estimate.of_parameter(fit, "alpha_N")
    assert not found.is_known and found.undecided_because == "singular"
    assert attempt("power", impossible, needs="3 sizes").failure == "3 sizes"
    assert refused("power", "why").to_json()["warnings"] == ["no fit: why"]


def test_a_number_that_is_not_known_is_not_read_as_one():
    assert Estimate(name="a", value=2.0).known == 2.0
    with pytest.raises(ValueError, match="a is not known: no runs"):
        _ = Estimate(name="a", undecided_because="no runs").known
