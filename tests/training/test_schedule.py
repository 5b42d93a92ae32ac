import math

import jax.numpy as jnp
import numpy as np
import pytest

from lmscale.training.schedule import learning_rate, schedule_hyperparameters
from tests.training.specs import run_spec


def rates(steps: int, **schedule) -> np.ndarray:
    spec = run_spec(steps=steps, schedule=schedule, optimizer={"peak_lr": 2.0})
    hyper = {k: jnp.asarray(v) for k, v in schedule_hyperparameters(spec).items()}
    return np.array([float(learning_rate(jnp.int32(step), hyper)) for step in range(steps + 1)])


def test_warmup_is_linear_and_ends_at_the_peak():
    got = rates(20, name="constant", warmup_steps=5)
    np.testing.assert_allclose(got[:5], 2.0 * np.arange(1, 6) / 5, rtol=1e-6)
    np.testing.assert_allclose(got[5:], 2.0, rtol=1e-6)


def test_cosine_is_halfway_in_the_middle_and_reaches_the_final_fraction():
    got = rates(110, name="cosine", warmup_steps=10, final_fraction=0.1)
    assert got[10] == pytest.approx(2.0)
    assert got[60] == pytest.approx(2.0 * 0.55, rel=1e-5)
    assert got[35] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))), rel=1e-5)
    assert got[110] == pytest.approx(0.2, rel=1e-5)


def test_a_longer_cycle_stops_short_of_the_end():
    got = rates(100, name="cosine", warmup_steps=0, final_fraction=0.0, cycle_steps=200)
    assert got[100] == pytest.approx(1.0, rel=1e-5)


def test_linear_falls_in_equal_steps():
    got = rates(50, name="linear", warmup_steps=10, final_fraction=0.2)
    np.testing.assert_allclose(np.diff(got[10:]), -2.0 * 0.8 / 40, rtol=1e-3)
    assert got[50] == pytest.approx(0.4, rel=1e-5)


def test_cooldown_is_constant_then_one_minus_root():
    got = rates(100, name="cooldown", warmup_steps=10, cooldown_steps=20, final_fraction=0.0)
    np.testing.assert_allclose(got[10:81], 2.0, rtol=1e-6)
    for step in (85, 90, 99):
        expected = 2.0 * (1 - math.sqrt((step - 80) / 20))
        assert got[step] == pytest.approx(expected, rel=1e-4)
    # A fifth of the run when not told.
    np.testing.assert_allclose(
        got, rates(100, name="cooldown", warmup_steps=10, final_fraction=0.0), rtol=1e-6
    )


def test_inverse_square_root():
    got = rates(100, name="inverse_sqrt", warmup_steps=4)
    assert got[3] == pytest.approx(2.0)
    assert got[15] == pytest.approx(1.0)
    assert got[99] == pytest.approx(0.4)
