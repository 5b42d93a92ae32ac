"""The compute multiplier of planted frontiers: known factors come back, and only tuned rivals decide."""

import dataclasses
import math

import numpy as np
import pytest

from lmscale import flops
from lmscale.laws.compute_multiplier import Minima, fit_jointly, log_compute, response
from lmscale.spec import LSTMSpec
from lmscale.studies import multiplier
from lmscale.studies.multiplier import compare, study
from lmscale.studies.results import Results
from lmscale.sweep.result_table import mark_best_lr
from tests.laws.planted_isoflop import SMALL
from tests.report import planted_store as planted
from tests.studies.planted_frontiers import BUDGETS, found, frontier


def test_one_factor_at_every_loss_comes_back_by_both_fits():
    two = found(2.0, 0.0)
    assert not two.extrapolated and two.losses[0] > two.losses[-1]
    assert np.all((two.low < 2.0) & (two.high > 2.0))
    assert two.middle.may_be(2.0) and two.middle.value == pytest.approx(2.0, rel=0.04)
    assert two.growth.may_be(0.0) and two.one_exponent
    assert two.joint.may_be(2.0) and not two.middle.may_be(1.0)
    joint, own = (np.diff(np.log(one.interval))[0] for one in (two.joint, two.middle))
    assert joint < own


def test_a_factor_that_grows_is_seen_and_the_joint_fit_says_that_it_does_not_hold():
    more = found(2.0, 0.25)
    assert more.growth.may_be(0.25) and not more.growth.may_be(0.0)
    assert more.value[-1] > 1.3 * more.value[0]
    assert not more.one_exponent
    # That no learning rates were searched comes first; without it the exponents decide.
    assert more.exponents.may_be(0.25)


def test_equal_frontiers_are_not_told_apart_and_draws_are_independent():
    """Fits of one seed draw alike: taken in pairs, their noise would cancel."""
    same = compare(frontier("a", SMALL, 3), frontier("b", SMALL, 3))
    assert same.middle.value == pytest.approx(1.0, abs=0.02)
    half = np.diff(np.log(same.middle.interval))[0] / 2
    assert half > 0.01


def test_frontiers_without_a_common_loss_are_extrapolated_and_decide_nothing():
    far = found(1e4, 0.0)
    assert far.extrapolated
    assert far.middle.undecided_because


def test_the_joint_fit_shares_what_it_says_it_shares():
    curve = {"alpha_C": 0.1, "L_inf": 1.5}
    x = np.log(BUDGETS)
    minima = [
        Minima(x, curve["L_inf"] + np.exp(-0.1 * (x - math.log(c))), 1e-8 * np.eye(6))
        for c in (3e13, 1.2e14)
    ]
    rng = np.random.default_rng(0)
    one = fit_jointly(minima, 300, rng, shared_exponent=True)
    assert np.ptp(one.alpha, axis=0).max() == 0
    assert np.exp(np.median(one.log_multiplier(1))) == pytest.approx(4.0, rel=0.02)
    own = fit_jointly(minima, 300, rng, shared_exponent=False)
    assert abs(np.median(own.growth(1))) < 0.01


def test_compute_at_a_loss_inverts_the_frontier_and_moves_as_differences_say():
    x, curve = np.log(BUDGETS), {"alpha_C": 0.12, "C_c": 5e13, "L_inf": 1.4}
    loss = curve["L_inf"] + (curve["C_c"] / np.exp(x)) ** curve["alpha_C"]
    np.testing.assert_allclose(log_compute(curve, loss), x)
    draws = {name: np.full(3, value) for name, value in curve.items()}
    assert log_compute(draws, loss).shape == (6, 3)
    minima = Minima(x, loss, 1e-6 * np.eye(6))
    # All losses up by as much: the compute for one loss grows by that over the slope.
    at = loss[2:4]
    moved = response(minima, curve, 0.0, at) @ np.full(6, 1e-4)
    slope = curve["alpha_C"] * (at - curve["L_inf"])
    np.testing.assert_allclose(moved, 1e-4 / slope, rtol=0.1)


# --- of a store ---------------------------------------------------------------------------------


def loss_of(spec):
    """The LSTM learns from its tokens as the Transformer does from half as many."""
    law, half = planted.Law(), 2.0 if isinstance(spec.model, LSTMSpec) else 1.0
    n = flops.n_params(spec.model, "standard")
    return law.E + law.A * n**-law.alpha + law.B * (spec.n_tokens / half) ** -law.beta


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """Three rates in every cell."""
    runs = planted.isoflop_runs((1e12, 3e12, 9e12), lr_factors=(0.5, 1.0, 2.0), seeds=(0,), sizes=4)
    path = tmp_path_factory.mktemp("searched")
    store = planted.plant(path, runs, analyses=["multiplier"], law=loss_of, noise=0.002)
    return Results.read(store)


def part(results, keep):
    """The results without the runs that `keep` leaves out."""
    table = results.table[keep(results.table)].reset_index(drop=True)
    return dataclasses.replace(results, table=mark_best_lr(table))


def test_a_store_with_searched_rates_gives_the_planted_factor(searched):
    two = study(searched)
    assert two.base == "transformer" and set(two.estimates) == {
        "lstm",
        "lstm_growth",
        "lstm_joint",
        "lstm_exponents",
    }
    one = two.estimates["lstm"]
    assert one.may_be(2.0) and one.interval[0] > 1 and not one.undecided_because
    (comparison,) = two.comparisons
    # Hard documents are hard for both.
    assert 0 < comparison.text < 0.05
    assert [frontier.rate_cost for frontier in two.frontiers] == [0.0, 0.0]


def test_rivals_whose_rates_were_not_searched_decide_nothing(searched):
    two = study(part(searched, lambda table: table["lr_factor"] == 1.0))
    assert two.estimates["lstm"].value == pytest.approx(2.0, rel=0.15)
    assert "rates were not searched" in two.estimates["lstm"].undecided_because
    largest = part(searched, lambda t: (t["lr_factor"] == 1.0) | (t["budget"] == 9e12))
    why = study(largest).estimates["lstm"].undecided_because
    assert "not searched at its smallest and its largest budget" in why


def test_a_search_at_one_size_that_the_rule_fails_decides_nothing(searched):
    """The runs take the rule's rate, and the search says what that costs."""

    def middle(table):
        sizes = table.groupby(["family", "budget"])["n_params"]
        return table["n_params"] == sizes.transform(lambda n: sorted(set(n))[1])

    some = part(searched, lambda t: (t["lr_factor"] == 1.0) | middle(t))
    assert not study(some).estimates["lstm"].undecided_because
    better = middle(some.table) & (some.table["lr_factor"] == 0.5)
    better &= some.table["family"] == "lstm"
    table = some.table.assign(loss=some.table["loss"] - 0.2 * better)
    two = study(dataclasses.replace(some, table=mark_best_lr(table)))
    assert two.frontiers[1].rate_cost > 0.1 > two.frontiers[0].rate_cost == 0
    assert "more compute on one side" in two.estimates["lstm"].undecided_because


def test_one_architecture_or_too_few_budgets_is_no_comparison(searched):
    assert study(part(searched, lambda table: table["family"] == "lstm")).frontiers == ()
    few = study(part(searched, lambda table: table["budget"] < 9e12))
    assert not few.comparisons
    assert "power law" in few.estimates["lstm"].undecided_because
    assert few.estimates.keys() == multiplier._undecided("lstm", "").keys()
