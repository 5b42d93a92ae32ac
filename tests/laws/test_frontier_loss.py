"""Forecasts of the loss along a frontier: the curve that may bend, and what its draws cover."""

import math

import numpy as np
import pytest

from lmscale.laws.frontier_loss import _bend_covariance, _bend_states, fit_loss, forecast_loss

X = np.log(np.geomspace(2e10, 6.4e11, 6))
NOISE = 0.004


def losses(x, turn=0.0, floor=1.5):
    """L_inf + exp(..) whose exponent rises by `turn` over the last half of the budgets, for good."""
    start = X.mean()
    bend = turn * np.maximum(x - start, 0.0)
    return floor + 2.4 * np.exp(-0.1 * (x - X[0]) - bend)


def forecast(loss, noise=NOISE, n_draws=2000):
    covariance = noise**2 * np.eye(len(loss))
    return forecast_loss(X[: len(loss)], loss, covariance, n_draws, np.random.default_rng(0))


def test_the_covariance_is_that_of_a_wiener_process_integrated():
    s = np.array([0.3, 0.8, 1.9])
    # Integrated by hand: a Wiener path has independent steps, and its integral is their running sum.
    step = 1e-3
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.standard_normal((4000, 1900)) * math.sqrt(step), axis=1)
    path = np.cumsum(walk, axis=1) * step
    at = np.round(s / step).astype(int) - 1
    assert np.cov(path[:, at].T) == pytest.approx(_bend_covariance(s, s), rel=0.1)
    assert np.all(_bend_covariance(s, -s) == 0)
    assert np.array_equal(_bend_covariance(-s, -s), _bend_covariance(s, s))


def test_slopes_are_derivatives_of_the_values():
    x, h = np.array([-1.3, -0.4, 0.2, 0.9, 1.7]), 1e-4
    with_values, states = _bend_states(x)
    ahead, behind = _bend_covariance(x + h, x), _bend_covariance(x - h, x)
    assert with_values[5:] == pytest.approx((ahead - behind) / (2 * h), abs=1e-6)
    assert states[:5, 5:] == pytest.approx(with_values[5:].T)
    for i, s in enumerate(x):
        for j, t in enumerate(x):
            corners = _bend_covariance(np.array([s + h, s - h]), np.array([t + h, t - h]))
            twice = (corners[0, 0] - corners[0, 1] - corners[1, 0] + corners[1, 1]) / (4 * h * h)
            assert states[5 + i, 5 + j] == pytest.approx(twice, abs=1e-3)
    assert np.linalg.eigvalsh(states).min() > 0


def test_a_frontier_that_follows_its_law_is_forecast_by_it():
    loss = losses(X)
    ahead = forecast(loss)
    law = fit_loss(X, loss, NOISE**2 * np.eye(6), 2000, np.random.default_rng(0))
    for factor in (1.0, 3.0, 10.0):
        flops = math.exp(X[-1]) * factor
        truth = float(losses(np.log(flops)))
        low, high = ahead.interval(flops, 0.95)
        assert low < truth < high
        assert ahead(flops) == pytest.approx(truth, abs=0.01 * factor**0.5)
        by_law = law.draws["L_inf"] + (law.draws["C_c"] / flops) ** law.draws["alpha_C"]
        edges = np.percentile(by_law, [2.5, 97.5])
        # Allowing for a bend costs width, and more of it farther ahead.
        assert edges[1] - edges[0] < high - low < 6 * factor**0.5 * (edges[1] - edges[0])


def test_a_frontier_that_turns_is_forecast_by_its_last_slope():
    loss = losses(X, turn=0.08)
    ahead = forecast(loss)
    law = fit_loss(X, loss, NOISE**2 * np.eye(6), 0, np.random.default_rng(0)).parameters
    flops = math.exp(X[-1]) * 4
    truth = float(losses(np.log(flops), turn=0.08))
    by_law = law["L_inf"] + (law["C_c"] / flops) ** law["alpha_C"]
    # The law, an irreducible loss and one exponent, cannot fall faster and faster.
    assert by_law - truth > 0.05
    assert abs(ahead(flops) - truth) < 0.6 * (by_law - truth)
    low, high = ahead.interval(flops, 0.95)
    assert low < truth < high


def test_a_budget_is_where_the_loss_is_reached():
    ahead = forecast(losses(X))
    for loss in (3.6, 3.1, 2.9):
        assert ahead(ahead.budget(loss)) == pytest.approx(loss, abs=1e-6)
    assert math.isnan(ahead.budget(0.01))
    assert math.isnan(ahead.budget(1e9))


def test_the_order_of_budgets_does_not_matter_and_draws_repeat():
    loss = losses(X) + NOISE * np.random.default_rng(1).standard_normal(6)
    covariance = np.diag(np.linspace(1, 2, 6)) * NOISE**2
    turn = np.array([3, 0, 5, 1, 4, 2])
    one, other = (
        forecast_loss(X[i], loss[i], covariance[np.ix_(i, i)], 200, np.random.default_rng(0))
        for i in (np.arange(6), turn)
    )
    assert np.array_equal(one.curves(1e12), other.curves(1e12))
    assert one.curves(np.array([1e11, 1e12]))[1] == pytest.approx(one.curves(1e12))


def test_three_budgets_forecast_with_little_confidence():
    few, many = (forecast(losses(X[:n])) for n in (3, 6))
    flops = math.exp(X[-1]) * 3
    widths = [high - low for low, high in (f.interval(flops, 0.95) for f in (few, many))]
    assert widths[0] > 2 * widths[1]


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 0.02])
def test_the_interval_covers_what_it_says(rate):
    """Frontiers whose exponent wanders at a rate; 95% intervals at 3 and 10 times the largest budget."""
    x = np.log(np.geomspace(2e10, 2.56e12, 8))
    ahead = x[-1] + np.log([3.0, 10.0])
    grid = np.linspace(x[0], ahead[-1], 800)
    covariance = NOISE**2 * np.eye(len(x))
    hits = np.zeros(2)
    tables = 150
    for seed in range(tables):
        rng = np.random.default_rng(seed)
        slope = np.cumsum(rng.standard_normal(800)) * rate * math.sqrt(grid[1] - grid[0])
        bend = np.cumsum(slope) * (grid[1] - grid[0])
        true = 1.5 + 2.4 * np.exp(-0.1 * (grid - x[0]) + bend)
        loss = np.interp(x, grid, true) + NOISE * rng.standard_normal(len(x))
        drawn = forecast_loss(x, loss, covariance, 1000, rng)
        for k, at in enumerate(ahead):
            low, high = drawn.interval(math.exp(at), 0.95)
            hits[k] += low <= np.interp(at, grid, true) <= high
    # Where nothing wanders, the chance that it might makes intervals wider than they need to be.
    least, most = (0.88, 0.99) if rate else (0.95, 1.0)
    assert np.all(hits / tables >= least) and np.all(hits / tables <= most), hits / tables
