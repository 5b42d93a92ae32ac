"""Power laws in one variable, and loss by position."""

import jax.numpy as jnp
import numpy as np
import pytest

from lmscale import laws
from lmscale.laws.power import fit_power

X = np.geomspace(1e5, 1e10, 16)


def noisy(seed, offset, noise=0.01, n=40):
    rng = np.random.default_rng(seed)
    x = np.exp(rng.uniform(np.log(1e5), np.log(1e10), n))
    return x, (offset + (2e9 / x) ** 0.2) * np.exp(noise * rng.normal(size=n))


def test_a_pure_power_law_comes_back():
    result = laws.fit({"params": X, "loss": (8.8e13 / X) ** 0.076}, "power")
    assert result.parameters == pytest.approx({"alpha_N": 0.076, "N_c": 8.8e13}, rel=1e-9)
    assert result.objective < 1e-25


def test_an_offset_comes_back():
    result = laws.fit({"tokens": X, "loss": 1.7 + (2e9 / X) ** 0.2}, "power", offset=True)
    assert result.parameters == pytest.approx({"alpha_D": 0.2, "D_c": 2e9, "L_inf": 1.7}, rel=1e-6)
    assert result.converged


def test_fitting_leaves_the_process_in_float32():
    laws.fit({"params": X, "loss": 1.7 + (2e9 / X) ** 0.2}, "power", offset=True, bootstrap=10)
    assert jnp.ones(1).dtype == jnp.float32


@pytest.mark.parametrize("offset", [0.0, pytest.param(1.7, marks=pytest.mark.slow)])
def test_intervals_cover_the_truth(offset):
    inside = []
    for seed in range(200):
        x, loss = noisy(seed, offset)
        result = fit_power({"params": x, "loss": loss}, offset=offset > 0, bootstrap=100, seed=seed)
        low, high = result.intervals["alpha_N"]
        inside.append(low <= 0.2 <= high)
    assert 0.90 <= np.mean(inside) <= 0.99


def test_units_change_only_the_constant():
    x, loss = noisy(0, 1.7)
    one = fit_power({"params": x, "loss": loss}, offset=True)
    other = fit_power({"params": x / 1e6, "loss": loss}, offset=True)
    assert other.parameters["alpha_N"] == pytest.approx(one.parameters["alpha_N"], rel=1e-9)
    assert other.parameters["N_c"] == pytest.approx(one.parameters["N_c"] / 1e6, rel=1e-7)
    assert other.intervals["alpha_N"] == pytest.approx(one.intervals["alpha_N"], rel=1e-7)


def test_huber_shrugs_off_an_outlier_that_least_squares_follows():
    loss = (8.8e13 / X) ** 0.076
    loss[3] *= 1.3
    robust = fit_power({"params": X, "loss": loss}, delta=1e-3, bootstrap=0)
    plain = fit_power({"params": X, "loss": loss}, bootstrap=0)
    assert robust.parameters["alpha_N"] == pytest.approx(0.076, abs=1e-4)
    assert abs(plain.parameters["alpha_N"] - 0.076) > 1e-3


def test_the_curve_has_a_band_round_the_prediction():
    x, loss = noisy(1, 0.0)
    result = fit_power({"params": x, "loss": loss})
    curve = result.details["curve"]
    assert np.all(curve["low"] < curve["loss"]) and np.all(curve["loss"] < curve["high"])
    assert result.predict(params=1e7) == pytest.approx((2e9 / 1e7) ** 0.2, rel=0.02)


def test_which_variable_must_be_said_when_there_are_several():
    table = {"params": X, "tokens": X, "loss": X**-0.1}
    with pytest.raises(laws.FitError, match="say which with x="):
        laws.fit(table, "power")
    assert "alpha_N" in laws.fit(table, "power", columns="params=params", bootstrap=0).parameters
    assert "alpha_D" in laws.fit(table, "power", x="tokens", bootstrap=0).parameters


def test_warnings_for_a_short_range_and_a_rising_loss():
    n = np.linspace(1e6, 2e6, 6)
    result = fit_power({"params": n, "loss": n**0.1}, bootstrap=0)
    assert any("does not fall" in w for w in result.warnings)
    assert any("less than ten" in w for w in result.warnings)


def test_position_law_comes_back():
    """Kaplan et al. 2020, Fig. 20, the largest model: 2.3 + 5.4 T^-0.62."""
    t = np.unique(np.geomspace(1, 1024, 60).round())
    result = laws.fit({"position": t, "loss": 2.3 + 5.4 * t**-0.62}, "position", bootstrap=50)
    assert result.parameters == pytest.approx({"a": 2.3, "b": 5.4, "c": 0.62}, rel=1e-6)
    assert result.law == "position" and set(result.intervals) == {"a", "b", "c"}
    assert result.predict(position=10.0) == pytest.approx(2.3 + 5.4 * 10**-0.62)
