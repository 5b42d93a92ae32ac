"""The solver: every sum over chunks of runs, the thinned first stage, merging, and what it counts."""

import jax
import numpy as np
import pytest

from lmscale.bench.fits import objective, planted
from lmscale.laws import solve as solver
from lmscale.laws.newton import derivatives
from lmscale.laws.parametric import relative_axes
from lmscale.laws.solve import multi_start, product_grid, solve
from lmscale.laws.surface import surface_residual

NEAR = np.array([[-0.9, -0.7, 0.57, 0.32, 0.36]])


def surface(table):
    x, y = np.log(table["params"]), np.log(table["tokens"])
    return {"u": x - x.mean(), "v": y - y.mean(), "log_y": np.log(table["loss"])}


def by_autodiff(theta, data):
    """As a law without derivatives of its own would be solved."""
    return surface_residual(theta, data)


# Compiled once for all of the cases below: op by op, each of them takes seconds.
OURS, AUTODIFF = (jax.jit(derivatives(law)) for law in (surface_residual, by_autodiff))


@pytest.mark.parametrize("rough", [False, True])
@pytest.mark.parametrize("delta", [1e-3, 1e-2, 1e150])
def test_closed_derivatives_are_those_of_autodiff(rough, delta):
    data = surface(planted(50))
    weight = np.random.default_rng(0).integers(0, 3, 50).astype(float)
    with jax.enable_x64(True):
        for theta in (NEAR[0], np.array([-3.0, 0.5, 0.1, 0.9, -0.1])):
            args = (theta, data, delta, weight, rough)
            for a, b in zip(OURS(*args), AUTODIFF(*args), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12 * np.abs(b).max())


@pytest.mark.parametrize("n", [64, 65, 300])
@pytest.mark.slow
def test_every_run_counts_once_however_many_chunks_they_fill(n):
    table = planted(n)
    found = solve(surface_residual, NEAR, surface(table), np.ones(n), delta=1e-3)
    theta = found.theta[0].copy()
    theta[0] += theta[3] * np.log(table["params"]).mean()
    theta[1] += theta[4] * np.log(table["tokens"]).mean()
    logs = [np.log(table[name]) for name in ("params", "tokens", "loss")]
    value, gradient = objective(theta, *logs, np.ones(n))
    assert found.converged[0]
    assert found.objective[0] == pytest.approx(value, rel=1e-12)
    assert np.abs(gradient).max() < 1e-9
    assert found.evaluations % n == 0


def test_own_weights_and_shared_ones_give_the_same():
    n, starts = 100, NEAR + 0.05 * np.random.default_rng(1).normal(size=(5, 5))
    data = surface(planted(n))
    shared = solve(surface_residual, starts, data, np.ones(n), delta=1e-3)
    own = solve(surface_residual, starts, data, np.ones((5, n)), delta=1e-3)
    np.testing.assert_allclose(shared.theta, own.theta, rtol=1e-8)
    assert shared.evaluations <= own.evaluations


@pytest.mark.parametrize("outliers", [0, 12])
def test_a_first_stage_on_some_runs_leads_to_the_same_minima(monkeypatch, outliers):
    table = planted(240, seed=6)
    table["loss"][:outliers] *= 1.5
    data = surface(table)
    starts = product_grid(*relative_axes(float(np.median(data["log_y"])), False))[::9]
    thinned = multi_start(surface_residual, starts, data, 240, delta=1e-3)
    monkeypatch.setattr(solver, "_spread", lambda data, weight: None)
    whole = multi_start(surface_residual, starts, data, 240, delta=1e-3)
    assert thinned.objective == pytest.approx(whole.objective, rel=1e-11)
    assert thinned.n_best == pytest.approx(whole.n_best, abs=0.05 * len(starts))
    assert thinned.evaluations < 0.5 * whole.evaluations


def test_the_runs_of_the_first_stage_span_every_column_and_have_weight():
    data = surface(planted(500))
    weight = np.ones(500)
    weight[::2] = 0.0
    rows = solver._spread(data, weight)
    assert len(rows) <= solver._CHUNK and len(np.unique(rows)) == len(rows)
    assert np.all(weight[rows] == 1)
    for column in data.values():
        assert column[rows].min() == column[weight > 0].min()
        assert column[rows].max() == column[weight > 0].max()
    assert solver._spread(surface(planted(120)), np.ones(120)) is None


def test_a_start_where_the_law_is_not_finite_harms_no_other():
    n = 200
    starts = np.concatenate([np.full((40, 5), np.nan), np.repeat(NEAR, 40, axis=0)])
    found = multi_start(surface_residual, starts, surface(planted(n)), n, delta=1e-3)
    assert found.converged and found.n_best == 40
    assert np.all(np.isinf(found.objectives[:40]))
