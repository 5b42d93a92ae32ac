"""Means, medians and percentiles of arrays with NaN: as NumPy's, and NaN without a warning where all is NaN."""

import warnings

import numpy as np
import pytest

from lmscale.laws.envelope import _beyond_noise
from lmscale.laws.envelope_laws import Envelopes
from lmscale.laws.known import mean_of_known, median_of_known, percentiles_of_known, std_of_known
from lmscale.laws.result import FitResult, interval
from lmscale.studies.envelope import selection_bias

NAN = np.nan
VALUES = np.array([[1.0, NAN, 4.0], [NAN, NAN, NAN], [2.0, 3.0, NAN]])


@pytest.fixture(autouse=True)
def _every_warning_is_an_error():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_a_row_of_nan_is_nan_and_the_others_are_numpys():
    assert np.array_equal(mean_of_known(VALUES, axis=1), [2.5, NAN, 2.5], equal_nan=True)
    assert np.array_equal(median_of_known(VALUES, axis=1), [2.5, NAN, 2.5], equal_nan=True)
    found = percentiles_of_known(VALUES, [0, 100], axis=1)
    assert np.array_equal(found, [[1.0, NAN, 2.0], [4.0, NAN, 3.0]], equal_nan=True)
    assert mean_of_known(VALUES) == np.nanmean(VALUES) == 2.5
    assert std_of_known(VALUES) == np.nanstd(VALUES)


@pytest.mark.parametrize("nothing", [np.full(4, NAN), np.empty(0)])
def test_of_nothing_there_is_nothing(nothing):
    for statistic in (mean_of_known, median_of_known, std_of_known):
        assert np.isnan(statistic(nothing))
    assert np.isnan(interval(nothing, 0.95)).all()
    assert percentiles_of_known(nothing, [5, 95]).shape == (2,)


def test_an_interval_of_which_some_columns_have_no_draws():
    draws = np.stack([np.arange(99.0), np.full(99, NAN), np.full(99, np.inf)], axis=1)
    low, high = interval(draws, 0.9)
    assert np.allclose(low, [4.0, NAN, NAN], equal_nan=True)
    assert np.allclose(high, [94.0, NAN, NAN], equal_nan=True)


def test_envelopes_of_which_no_draw_has_a_law():
    fit = FitResult(law="envelope", parameters={"a": 0.5}, draws={"a": np.full(50, NAN)})
    assert selection_bias(fit) == 0.0
    one = {
        name: Envelopes(np.ones((1, 3), bool), np.ones(1, bool), {"a": np.array([a])})
        for name, a in (("envelope", 0.5), ("hull", 0.6))
    }
    drawn = {name: {"a": np.full(51, NAN)} for name in one}
    # Where nothing is known of the noise, the draws stay at the envelope itself.
    assert _beyond_noise(one, drawn, "hull") == 0.0
