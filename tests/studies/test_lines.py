"""Lines through sizes of several seeds: the interval counts sizes, not runs."""

import numpy as np
import pytest
from scipy import stats

from lmscale.studies.lines import fit_line, lines_through

X = np.linspace(0.0, 3.0, 6)


def planted(seed, stray, noise, seeds=3):
    """Runs on y = 1 - 2 x whose sizes stray from it in common, and whose seeds vary besides."""
    rng = np.random.default_rng(seed)
    means = 1 - 2 * X + stray * rng.standard_normal(len(X))
    x = np.repeat(X, seeds)
    return x, np.repeat(means, seeds) + noise * rng.standard_normal(len(x))


@pytest.mark.parametrize("seeds", [1, 3])
def test_it_is_the_interval_of_a_line_through_the_means(seeds):
    x, y = planted(0, 0.3, 0.0, seeds)
    line = fit_line(x, y)
    means = y.reshape(-1, seeds).mean(axis=1)
    expected = stats.linregress(X, means)
    half = stats.t.ppf(0.975, len(X) - 2) * expected.stderr
    assert line.slope == pytest.approx(expected.slope)
    low, high = line.slope_interval()
    assert (low, high) == pytest.approx((expected.slope - half, expected.slope + half))


@pytest.mark.parametrize(("stray", "noise"), [(0.2, 0.02), (0.0, 0.2)])
def test_the_interval_covers_where_sizes_stray_and_where_seeds_vary(stray, noise):
    """Runs taken as independent would miss the slope in about a third of the first case."""
    intervals = [fit_line(*planted(seed, stray, noise)).slope_interval() for seed in range(400)]
    covered = np.mean([low < -2 < high for low, high in intervals])
    assert 0.92 < covered < 0.999


def test_draws_have_the_spread_of_the_interval():
    line = fit_line(*planted(3, 0.2, 0.05))
    heights, slopes = line.draws(20_000)
    assert np.percentile(slopes, [2.5, 97.5]) == pytest.approx(line.slope_interval(), abs=0.05)
    assert np.mean(heights) == pytest.approx(line.height, abs=0.01)


def test_noise_along_x_counts_with_the_size_it_belongs_to():
    rng = np.random.default_rng(5)
    sizes = np.repeat(np.arange(6), 3)
    common = 0.05 * rng.standard_normal(18)
    line = fit_line(X[sizes] + common, 1 - 2 * (X[sizes] + common), sizes)
    assert line.slope == pytest.approx(-2.0)
    assert line.freedom == 4


def test_two_sizes_have_no_interval():
    assert fit_line(np.array([0.0, 0.0, 1.0]), np.array([1.0, 1.1, 2.0])).slope_interval() is None


def test_many_lines_at_once_are_those_of_polyfit():
    y = np.random.default_rng(3).standard_normal((4, len(X)))
    weights = np.linspace(0.5, 2.0, len(X))
    slope, height = lines_through(X, y, weights)
    for row, *found in zip(y, slope, height, strict=True):
        assert found == pytest.approx(np.polyfit(X, row, 1, w=np.sqrt(weights)))
    assert lines_through(X, 1 - 2 * X) == (pytest.approx(-2), pytest.approx(1))
