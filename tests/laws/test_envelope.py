"""The lower envelope of learning curves: a planted law at any number of points, noise, warnings."""

import math

import numpy as np
import pytest

from lmscale import laws
from lmscale.laws.chinchilla import chinchilla_loss, optimal_allocation
from lmscale.laws.envelope import _beyond_noise, fit_envelope
from lmscale.laws.envelope_laws import Envelopes, hull
from lmscale.laws.learning_curves import smoothed
from lmscale.laws.paired import Redrawn
from lmscale.laws.result import interval

EPOCH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
TRUTH = EPOCH["beta"] / (EPOCH["alpha"] + EPOCH["beta"])


def learning_curves(sizes=25, points=60, run=0.0, point=0.0, slope=0.0, seed=0, law=EPOCH):
    """Curves from 1 to 400 tokens a parameter. Noise: `run` is of a whole run, as between seeds,
    and falls with size as N^-slope; `point` is of each point."""
    rng = np.random.default_rng(seed)
    rows = {"group": [], "params": [], "flops": [], "loss": []}
    for n in np.geomspace(3e7, 3e10, sizes):
        tokens = n * np.geomspace(1, 400, points)
        noise = run * rng.normal() * (n / 1e9) ** -slope + point * rng.normal(size=points)
        rows["group"].extend([f"{n:.3g}"] * points)
        rows["params"].extend([n] * points)
        rows["flops"].extend(6 * n * tokens)
        rows["loss"].extend(np.exp(noise) * chinchilla_loss(law, params=n, tokens=tokens))
    return rows


def last_decades(points, sizes=12):
    """Twelve curves without noise over their last two decades, up to 200 tokens a parameter."""
    rows = {"group": [], "params": [], "flops": [], "loss": []}
    for n in np.geomspace(4.4e7, 1.2e10, sizes):
        tokens = 200 * n * 10 ** (-2 * (1 - np.arange(1, points + 1) / points))
        rows["group"].extend([f"{n:.3g}"] * points)
        rows["params"].extend([n] * points)
        rows["flops"].extend(6 * n * tokens)
        rows["loss"].extend(chinchilla_loss(EPOCH, params=n, tokens=tokens))
    return rows


@pytest.mark.parametrize(
    "points", [8, 50, 200, *(pytest.param(n, marks=pytest.mark.slow) for n in (20, 1000))]
)
def test_curves_without_noise_give_their_law_at_any_number_of_points(points):
    result = laws.fit(last_decades(points), "envelope", bootstrap=0)
    p = result.parameters
    assert p["a"] == pytest.approx(0.5126, abs=5e-4)
    assert p["a"] + p["b"] == pytest.approx(1, abs=1e-3)
    assert p["k_N"] * 1e22 ** p["a"] == pytest.approx(9.04e9, rel=2e-3)
    for reading in result.details["readings"].values():
        assert reading["a"] == pytest.approx(0.5126, abs=1e-3)
    assert result.warnings == ()


@pytest.mark.parametrize("smooth", [None, 0.0])
@pytest.mark.slow
def test_the_interval_of_exact_curves_holds_their_exponent(smooth):
    result = fit_envelope(learning_curves(), smooth=smooth)
    low, high = result.intervals["a"]
    assert result.parameters["a"] == pytest.approx(TRUTH, abs=1e-3)
    assert low - 1e-4 <= TRUTH <= high + 1e-4 and high - low < 1e-3
    assert len(result.details["curves"]) == 25


def test_noise_of_points_is_smoothed_by_as_much_as_there_is():
    x = np.linspace(0, 4, 300)
    y = np.log(2 + np.exp(-x))
    assert np.allclose(smoothed(x, y, None)(x), y, atol=1e-6)
    noisy = y + 0.02 * np.random.default_rng(0).normal(size=300)
    assert np.std(smoothed(x, noisy, None)(x) - y) < 0.006
    # Local lines of an asked width do not lag where the curve ends.
    line = smoothed(x, 1 - 0.1 * x, 0.3)(x)
    np.testing.assert_allclose(line, 1 - 0.1 * x, atol=1e-12)


@pytest.mark.slow
def test_noisy_curves_keep_the_exponent_within_an_interval():
    for points in (20, 200):
        result = fit_envelope(learning_curves(12, points, point=0.003, seed=1))
        low, high = result.intervals["a"]
        assert low < TRUTH < high and high - low < 0.1
        assert "whole learning curves" in result.interval_method


def test_the_hull_has_the_corners_only():
    x = np.arange(6.0)
    y = np.array([5.0, 2.0, 1.8, 0.5, np.inf, 0.6])
    assert hull(x, y).tolist() == [True, True, False, True, False, False]


def test_an_envelope_on_the_ends_of_curves_says_so():
    # Each run is cooled down: its last point lies far below the rest.
    table = learning_curves(12, 30)
    loss = np.array(table["loss"])
    loss[29::30] -= 0.3
    result = fit_envelope({**table, "loss": loss}, bootstrap=0)
    assert any("depends on how the curves are read" in w for w in result.warnings)
    assert set(result.details["readings"]) == {"envelope", "pareto", "hull"}
    short = {k: [v for i, v in enumerate(c) if i % 60 < 30] for k, c in learning_curves().items()}
    assert any("at the end of the best curve" in w for w in fit_envelope(short).warnings)


@pytest.mark.parametrize(("gap", "share"), [(0.01, 0.0), (0.02, 15 / 16), (0.2, 1.0), (0.0, 0.0)])
def test_readings_move_draws_as_far_as_they_differ_by_more_than_noise(gap, share):
    """Noise alone sets the two readings of a draw 0.01 apart."""

    def reading(a):
        return Envelopes(np.empty(0), np.empty(0), {"a": np.array(a)})

    noise = 0.01 * np.array([1.0, -1.0, 1.0, -1.0, 0.0])
    drawn = {"envelope": {"a": np.full(5, 0.5)}, "hull": {"a": 0.5 + noise}}
    found = _beyond_noise({"envelope": reading([0.5]), "hull": reading([0.5 + gap])}, drawn, "hull")
    assert found == pytest.approx(share, abs=1e-4)


def test_the_interval_spans_readings_that_ends_of_curves_set_apart():
    table = learning_curves(12, 30, run=0.001)
    loss = np.array(table["loss"])
    loss[29::30] -= 0.3
    result = fit_envelope({**table, "loss": loss}, points=300, smooth=0.0)
    values = [reading["a"] for reading in result.details["readings"].values()]
    low, high = result.intervals["a"]
    assert np.ptp(values) > 0.03 and low < min(values) and max(values) < high


def test_an_envelope_of_few_sizes_says_so():
    result = fit_envelope(learning_curves(5, 20))
    assert result.intervals == {} and result.exponents
    assert any("5 learning curves are too few" in w for w in result.warnings)
    assert any("sizes decide the envelope" in w for w in result.warnings)


def test_an_envelope_needs_curves():
    table = {k: v[::60] for k, v in learning_curves().items()}
    with pytest.raises(laws.TableError, match="0 sizes have learning curves"):
        laws.fit(table, "envelope")


@pytest.mark.slow
@pytest.mark.parametrize(
    "noise",
    [
        {"sizes": 15, "points": 30, "run": 0.003},
        {"sizes": 15, "points": 30, "run": 0.003, "slope": 0.2, "point": 0.003},
        {"sizes": 15, "points": 30, "point": 0.01},
        {"sizes": 8, "points": 40, "run": 0.003, "point": 0.003},
    ],
)
def test_envelope_intervals_cover_the_truth(noise):
    """The exponent, and N_opt at 10 and 100 times the largest compute."""
    inside, found = [], []
    for seed in range(50):
        fit = fit_envelope(learning_curves(**noise, seed=seed), points=300, seed=seed)
        flops = fit.ranges["flops"][1]
        row = [fit.intervals["a"][0] <= TRUTH <= fit.intervals["a"][1]]
        for beyond in (10, 100):
            drawn = fit.draws["k_N"] * (beyond * flops) ** fit.draws["a"]
            low, high = interval(drawn, fit.draw_level)
            row.append(low <= optimal_allocation(EPOCH, beyond * flops).n_params <= high)
        inside.append(row)
        found.append(fit.parameters["a"])
    share = np.mean(inside, axis=0)
    # Where intervals cover 0.95, fewer than 44 of 50 have a chance of 1%. RESULTS.md has 100 a row.
    assert np.all(0.88 <= share), share
    # The lowest of noisy curves is a biased choice: with 8 sizes by 0.006 where tables scatter by
    # 0.014, which the intervals above hold.
    # The mean itself is known to a seventh of the scatter.
    known = 2 * np.std(found) / math.sqrt(len(found))
    assert np.mean(found) == pytest.approx(TRUTH, abs=max(0.004, np.std(found) / 2) + known)


def test_shared_noise_moves_the_draws_as_it_moves_the_envelope():
    """Each draw against the envelope of curves that really have that noise, with the opposite sign.

    Draws are the value less what the opposite noise does (the basic bootstrap).
    """
    sizes, points = 14, 20
    table = learning_curves(sizes, points, run=0.003, seed=3)
    exact = learning_curves(sizes, points)
    noise = np.log(np.array(table["loss"]) / exact["loss"])[::points]
    names = list(dict.fromkeys(table["group"]))
    rng = np.random.default_rng(0)
    shared = Redrawn.of_pool(noise, np.arange(sizes), np.ones(sizes), 40, rng)
    drawn = fit_envelope(table, redrawn=(shared, names)).draws["a"]
    again = fit_envelope(table, redrawn=(shared, names), seed=1).draws["a"]
    np.testing.assert_array_equal(drawn, again)
    refitted = []
    for deviation in shared.deviation:
        moved = np.array(exact["loss"]) * np.exp(-np.repeat(deviation, points))
        refitted.append(fit_envelope({**exact, "loss": moved}, bootstrap=0).parameters["a"])
    assert np.corrcoef(drawn, refitted)[0, 1] < -0.7
