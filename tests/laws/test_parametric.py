"""Approach 3: planted surfaces, the solver against scipy, units and reductions, the frontier."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from lmscale import laws
from lmscale.laws.chinchilla import chinchilla_loss, iso_loss, optimal_allocation
from lmscale.laws.parametric import fit_parametric
from lmscale.laws.surface import log_of_normal

EPOCH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
TRUTH_START = np.array([[6.178, 7.6427, 0.5973, 0.3478, 0.3658]])


def runs(n=60, noise=0.0, seed=0, law=EPOCH):
    rng = np.random.default_rng(seed)
    params = np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), n))
    flops = np.exp(rng.uniform(np.log(1e18), np.log(3e21), n))
    tokens = flops / (6 * params)
    loss = chinchilla_loss(law, params=params, tokens=tokens) * np.exp(noise * rng.normal(size=n))
    return {"params": params, "tokens": tokens, "loss": loss}


def objective(theta, table, scale=1.0, delta=1e-3):
    """The published objective and its gradient in (a, b, e, alpha, beta), in numpy."""
    a, b, e, alpha, beta = theta
    x, y = np.log(table["params"]), np.log(table["tokens"])
    z = np.stack([a - alpha * x, b - beta * y, np.full_like(x, e)])
    top = z.max(axis=0)
    total = np.exp(z - top).sum(axis=0)
    r = top + np.log(total) - np.log(table["loss"])
    p = np.exp(z - top) / total
    slope = np.clip(r, -delta, delta)
    size = np.abs(r)
    value = np.where(size <= delta, r * r / 2, delta * (size - delta / 2)).sum()
    gradient = np.array(
        [slope @ p[0], slope @ p[1], slope @ p[2], -(slope * p[0]) @ x, -(slope * p[1]) @ y]
    )
    return value * scale, gradient * scale


def scipy_best(table, starts, scale=1.0, **options):
    found = [
        minimize(objective, s, args=(table, scale), jac=True, method="L-BFGS-B", options=options)
        for s in starts
    ]
    return min(found, key=lambda f: f.fun)


@pytest.mark.parametrize("method", ["huber", "varpro"])
def test_a_planted_surface_comes_back(method):
    result = laws.fit(runs(), "parametric", method=method, starts="coarse", bootstrap=0)
    assert result.parameters == pytest.approx(EPOCH, rel=1e-5)
    assert result.converged and result.objective < 1e-12
    share = EPOCH["beta"] / (EPOCH["alpha"] + EPOCH["beta"])
    assert result.exponents["given"]["N"] == pytest.approx(share, abs=1e-6)


def test_never_worse_than_the_best_of_scipy():
    table = runs(n=64, noise=0.02, seed=3)
    ours = fit_parametric(table, starts="coarse", bootstrap=0)
    rng = np.random.default_rng(0)
    starts = TRUTH_START + rng.normal(size=(12, 5)) * [1, 1, 0.2, 0.05, 0.05]
    theirs = scipy_best(table, starts, maxiter=5000, maxfun=20000, ftol=1e-15, gtol=1e-12)
    assert ours.objective <= theirs.fun * (1 + 1e-9)
    assert ours.objective == pytest.approx(theirs.fun, rel=0.02)


@pytest.mark.slow
def test_the_published_grid_finds_the_same_minimum():
    table = runs(n=50, noise=0.01, seed=1)
    ours = fit_parametric(table, starts="coarse", bootstrap=0)
    grid = fit_parametric(table, starts="hoffmann", bootstrap=0)
    assert grid.details["n_starts"] == 4500
    assert grid.objective == pytest.approx(ours.objective, rel=1e-9)


def test_the_logarithm_that_vectorises_is_the_logarithm():
    x = np.concatenate([1 + np.geomspace(1e-15, 1, 2000), np.geomspace(1e-300, 1e300, 2000)])
    with jax.enable_x64(True):
        np.testing.assert_allclose(log_of_normal(jnp.asarray(x)), np.log(x), rtol=5e-16)


def test_neither_units_nor_reduction_change_the_answer():
    """Besiroglu et al. 2024: an averaged objective stopped L-BFGS early at a' = 0.45."""
    table = runs(n=64, noise=0.02, seed=4)
    ours = fit_parametric(table, starts="coarse", bootstrap=0)
    scaled = {
        "params": table["params"] / 1e6,
        "tokens": table["tokens"] / 1e9,
        "loss": table["loss"],
    }
    other = fit_parametric(scaled, starts="coarse", bootstrap=0)
    averaged = fit_parametric(
        {**table, "weight": np.full(64, 1 / 64)}, starts="coarse", bootstrap=0
    )
    for fit in (other, averaged):
        assert fit.exponents["given"]["N"] == pytest.approx(ours.exponents["given"]["N"], abs=1e-8)
        assert fit.parameters["E"] == pytest.approx(ours.parameters["E"], rel=1e-8)
    assert averaged.objective * 64 == pytest.approx(ours.objective, rel=1e-9)
    # The same average misleads scipy at its default tolerances, from the same kind of starts.
    start = [[5.0, 5.0, 0.0, 0.5, 0.5]]
    early, late = scipy_best(table, start, scale=1 / 64), scipy_best(table, start, ftol=1e-15)
    assert objective(early.x, table)[0] > 1.5 * ours.objective
    assert objective(late.x, table)[0] < objective(early.x, table)[0]


@pytest.mark.slow
def test_intervals_cover_the_truth():
    inside = []
    share = EPOCH["beta"] / (EPOCH["alpha"] + EPOCH["beta"])
    for seed in range(200):
        table = runs(n=60, noise=0.01, seed=seed)
        result = fit_parametric(table, starts=TRUTH_START, bootstrap=100, seed=seed)
        low, high = result.exponent_intervals["given"]["N"]
        inside.append(low <= share <= high)
    assert 0.90 <= np.mean(inside) <= 0.99


@pytest.mark.slow
def test_variable_projection_covers_the_truth():
    inside = []
    for seed in range(200):
        table = runs(n=60, noise=0.01, seed=seed)
        result = fit_parametric(table, method="varpro", bootstrap=60, seed=seed)
        low, high = result.intervals["alpha"]
        inside.append(low <= EPOCH["alpha"] <= high)
    assert 0.90 <= np.mean(inside) <= 0.99


def test_repeated_seeds_are_resampled_within_their_configuration():
    one = runs(n=20, noise=0.0)
    rng = np.random.default_rng(0)
    table = {k: np.repeat(v, 3) for k, v in one.items()}
    table["loss"] = table["loss"] * np.exp(0.01 * rng.normal(size=60))
    table["seed"] = np.tile([0, 1, 2], 20)
    result = fit_parametric(table, starts=TRUTH_START, bootstrap=50)
    assert "seeds" in result.interval_method
    low, high = result.intervals["alpha"]
    assert low < EPOCH["alpha"] < high
    with pytest.raises(laws.FitError, match="run at least twice"):
        fit_parametric(one, resample="seeds")


@pytest.mark.parametrize(
    ("flops", "n", "d", "loss"),
    [
        (1e18, 80.5e6, 2.07e9, 3.491),
        (5.76e23, 72.3e9, 1.33e12, 1.974),
        (1e26, 1016e9, 16.4e12, 1.880),
    ],
)
def test_the_closed_form_optimum_of_besiroglu(flops, n, d, loss):
    best = optimal_allocation(EPOCH, flops)
    assert best.n_params == pytest.approx(n, rel=5e-3)
    assert best.n_tokens == pytest.approx(d, rel=5e-3)
    assert best.loss == pytest.approx(loss, abs=6e-4)
    assert best.n_params * best.n_tokens * 6 == pytest.approx(flops)
    # It is a minimum: sizes to either side do worse on the same compute.
    for factor in (0.99, 1.01):
        size = best.n_params * factor
        assert chinchilla_loss(EPOCH, params=size, tokens=flops / 6 / size) > best.loss


def test_contours_have_equal_loss_and_touch_the_frontier():
    contour = iso_loss(EPOCH, 2.5)
    values = chinchilla_loss(EPOCH, params=contour["params"], tokens=contour["tokens"])
    np.testing.assert_allclose(values, 2.5, rtol=1e-12)
    cheapest = contour["flops"].min()
    assert optimal_allocation(EPOCH, cheapest).loss == pytest.approx(2.5, abs=1e-3)
    with pytest.raises(laws.FitError, match=r"irreducible loss is 1\.817"):
        iso_loss(EPOCH, 1.8)


def test_pictures_are_there_and_the_band_holds_the_frontier():
    result = fit_parametric(runs(noise=0.01), starts="coarse", bootstrap=60)
    frontier = result.details["frontier"]
    assert np.all(frontier["n_opt_low"] <= frontier["n_opt"])
    assert np.all(frontier["n_opt"] <= frontier["n_opt_high"])
    assert len(result.details["contours"]) == 10
    assert result.details["evaluations"] > 0


def test_warnings_name_what_is_wrong():
    n = np.geomspace(1e7, 1e9, 12)
    line = {"params": n, "tokens": 20 * n, "loss": chinchilla_loss(EPOCH, params=n, tokens=20 * n)}
    result = fit_parametric(line, starts="coarse", bootstrap=0)
    assert any("hardly be told apart" in w for w in result.warnings)
    table = runs()
    table["loss"] = (1e13 / table["params"]) ** 0.1 + 1e-9 * table["tokens"] ** -0.01
    result = fit_parametric(table, starts="coarse", bootstrap=0)
    assert result.warnings
