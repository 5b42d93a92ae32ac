"""Differences of fits on the same runs: shared noise cancels, and what is not shared is kept."""

import math

import numpy as np
import pytest

from lmscale.laws import fit_isoflop, redraw_losses
from lmscale.laws.paired import Redrawn, paired_slopes, seeds_redrawn, widened
from lmscale.laws.result import FitError, interval

from .planted_isoflop import BESIROGLU, Design

DESIGN = Design(BESIROGLU, tuple(np.geomspace(1e18, 1e21, 6)), points=7, factor=6, noise=0.01)


@pytest.fixture(scope="module")
def table():
    return DESIGN.table(0)


@pytest.fixture(scope="module")
def redrawn(table):
    return redraw_losses(table, draws=400)


def test_the_same_fit_twice_has_no_difference(table, redrawn):
    """With independent draws the difference would scatter by more than the exponent itself."""
    one, other = (fit_isoflop(table, redrawn=redrawn) for _ in range(2))
    apart = paired_slopes(one, other)
    own = np.std(one.draws["a"])
    assert own > 0.002
    # A quarter of the draws has no scatter at all between two readings that are the same.
    assert np.mean(apart == 0) > 0.25 and np.median(np.abs(apart)) < 0.1 * own
    loose = fit_isoflop(table, seed=1, bootstrap=400)
    independent = one.draws["a"] - loose.draws["a"]
    assert np.std(independent) > 1.2 * own


def test_two_windows_share_the_noise_of_the_runs():
    table = Design(BESIROGLU, DESIGN.budgets, points=17, factor=16, noise=0.01).table(0)
    redrawn = redraw_losses(table, draws=400)
    wide, narrow = (fit_isoflop(table, redrawn=redrawn, window=w) for w in (8.0, 4.0))
    apart = wide.parameters["a"] - narrow.parameters["a"]
    paired = interval(paired_slopes(wide, narrow), 0.95)
    widths = [np.diff(fit.intervals["a"])[0] for fit in (wide, narrow)]
    assert apart != 0 and paired[0] < apart < paired[1]
    assert np.diff(paired)[0] < 0.8 * math.hypot(*widths)


def test_draws_that_are_given_are_as_wide_as_own_ones(table, redrawn):
    own = fit_isoflop(table, bootstrap=1000)
    given = fit_isoflop(table, redrawn=redrawn)
    widths = [np.diff(fit.intervals["a"])[0] for fit in (own, given)]
    assert widths[1] == pytest.approx(widths[0], rel=0.25)
    assert given.parameters == own.parameters and len(given.draws["a"]) == 400


def test_another_table_gets_the_noise_of_its_runs_by_their_rows(redrawn):
    part = redrawn.of_rows([3, -1, 0])
    np.testing.assert_array_equal(part.deviation[:, [0, 2]], redrawn.deviation[:, [3, 0]])
    assert not part.deviation[:, 1].any()
    kept = redrawn.source[:, 3] == 0
    assert kept.any() and (part.source[kept, 0] == 2).all()
    # A source that the other table lacks is replaced by the run itself.
    assert (part.source[~np.isin(redrawn.source[:, 3], [0, 3]), 0] == 0).all()


def test_seeds_are_drawn_alike_in_two_tables_of_the_same_sizes():
    rng = np.random.default_rng(0)
    size, seed = np.repeat([10.0, 20.0, 30.0], 3), np.tile([0, 1, 2], 3)
    cell, common = [f"{s}" for s in size], rng.normal(size=9)
    one = seeds_redrawn(size, cell, seed, common, 500, 0.95)
    # The other table has its rows in another order, and each of its losses is twice as far off.
    turned = rng.permutation(9)
    other = seeds_redrawn(
        size[turned], [cell[i] for i in turned], seed[turned], 5 + 2 * common[turned], 500, 0.95
    )
    np.testing.assert_allclose(other.deviation, 2 * one.deviation[:, turned], atol=1e-12)
    # The variance of a mean of three, although the deviations are about that mean.
    wide = np.var(one.deviation.reshape(500, 3, 3).mean(axis=2), axis=0)
    truth = common.reshape(3, 3).var(axis=1, ddof=1) / 3
    assert np.mean(wide / truth) == pytest.approx((2.447 / 1.96) ** 2, rel=0.15)


def test_one_seed_cannot_be_drawn():
    with pytest.raises(FitError, match="two or more"):
        seeds_redrawn([1.0, 2.0], ["a", "b"], [0, 0], [3.0, 4.0], 10, 0.95)


def test_draws_are_widened_about_the_value():
    draws = np.random.default_rng(0).normal(size=20_000)
    found = interval(widened(draws, 0.0, 0.99, 0.95), 0.95)
    assert found == pytest.approx((-2.576, 2.576), abs=0.1)


def test_a_deviation_keeps_its_row_and_its_sign():
    pool, rows = np.array([-1.0, 2.0]), np.array([4, 7])
    drawn = Redrawn.of_pool(pool, rows, np.full(3, 0.5), 200, np.random.default_rng(0))
    of = {4: -1.0, 7: 2.0}
    expected = drawn.sign * np.vectorize(of.get)(drawn.source) * 0.5
    np.testing.assert_allclose(drawn.deviation, expected)
    assert set(drawn.source.ravel()) == {4, 7} and set(drawn.sign.ravel()) == {-1.0, 1.0}
