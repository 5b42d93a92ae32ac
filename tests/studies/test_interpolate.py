"""Between measured points a power law is met exactly, and nothing is extrapolated."""

import numpy as np
import pytest

from lmscale.studies.interpolate import between


def test_a_power_law_is_straight_between_points():
    sizes = np.array([1e5, 1e3, 1e4])
    at = np.array([2e3, 1e4, 7e4])
    assert between(at, sizes, 9 * sizes**-0.1) == pytest.approx(9 * at**-0.1)
    assert between(3.0, [2, 4], [10, 20], log=False) == pytest.approx(15)


def test_nothing_is_extrapolated_beyond_the_slack():
    found = between([97, 99, 100, 201, 205], [100, 200], [4, 3], slack=0.02)
    assert np.isnan(found[[0, 4]]).all()
    assert found[1:4] == pytest.approx([4, 4, 3])
