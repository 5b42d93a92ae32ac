"""Outliers: named with their rows, and without weight in Tukey's loss."""

import numpy as np
import pytest

from lmscale import laws
from lmscale.laws.parametric import chinchilla_loss, fit_parametric
from lmscale.laws.robust import biweight, tukey
from lmscale.laws.surface import surface_residual

EPOCH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}


def grid(outliers=(), high=1.2, noise=0.003, seed=0):
    """Six sizes at six numbers of tokens; `outliers` (rows from 1) have losses `high` nats too high."""
    rng = np.random.default_rng(seed)
    params = np.repeat(np.geomspace(1e7, 4e8, 6), 6)
    tokens = np.tile(np.geomspace(4e8, 1e11, 6), 6)
    loss = chinchilla_loss(EPOCH, params=params, tokens=tokens) * np.exp(
        noise * rng.normal(size=36)
    )
    loss[np.array(outliers, int) - 1] += high
    return {"params": params, "tokens": tokens, "loss": loss}


def exponent(table, **options):
    fit = fit_parametric(table, starts="coarse", bootstrap=0, **options)
    return fit.exponents["given"]["N"], fit


def test_two_losses_too_high_are_named_and_leave_tukeys_fit_unmoved():
    plain, fit = exponent(grid(), robust="tukey")
    assert not any("outlier" in w for w in fit.warnings)
    moved, fit = exponent(grid((6, 18)), robust="tukey")
    assert moved == pytest.approx(plain, abs=0.003)
    least_squares, fit = exponent(grid((6, 18)), robust="none")
    assert abs(least_squares - plain) > 0.02
    (said,) = [w for w in fit.warnings if "--robust tukey" in w]
    assert said.startswith("rows 6, 18 are outliers") and f"in place of {least_squares:.3f}" in said
    influence = fit.details["influence"]
    assert influence.flagged == (6, 18)
    assert influence.without_flagged == pytest.approx(plain, abs=0.01)
    assert fit.to_json()["details"]["influence"]["flagged"] == [6, 18]
    # The published loss names them too.
    assert exponent(grid((6, 18)))[1].details["influence"].flagged == (6, 18)


def test_tukey_is_least_squares_where_nothing_is_far_off():
    tukey_a, fit = exponent(grid(), robust="tukey")
    squares_a, _ = exponent(grid(), robust="none")
    assert tukey_a == pytest.approx(squares_a, abs=0.008)
    assert fit.converged and "Tukey" in fit.objective_name


def test_tukey_survives_a_quarter_of_outliers():
    rng = np.random.default_rng(1)
    n = 80
    x = rng.normal(size=n)
    data = {"u": x, "v": rng.normal(size=n)}
    theta = np.array([-0.9, -0.7, 0.57, 0.32, 0.36])
    data["log_y"] = np.zeros(n)
    data["log_y"] = np.asarray(surface_residual(theta, data)) + 0.002 * rng.normal(size=n)
    data["log_y"][:20] += 0.5
    found = tukey(surface_residual, theta + 0.1, data)
    assert np.all(found.weights[:20] == 0) and found.weights[20:].mean() > 0.8
    assert found.scale == pytest.approx(0.002, rel=0.5)
    assert biweight(np.array([0.0, 5.0]), 1.0).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"robust": "cauchy"}, "robust must be huber, tukey or none"),
        ({"method": "varpro", "robust": "tukey"}, "needs method huber"),
        ({"method": "lbfgs"}, "method must be huber or varpro"),
        ({"delta": 0.0}, "delta must be positive"),
        ({"resample": "models"}, "resample must be auto, runs, groups or seeds"),
    ],
)
def test_options_that_cannot_be(options, reason):
    with pytest.raises(laws.FitError, match=reason):
        fit_parametric(grid(), **options)
