"""Envelopes of learning curves that follow a planted surface."""

import dataclasses

import numpy as np
import pytest

from lmscale.laws import FitResult
from lmscale.studies.envelope import study, unbiased_exponent
from tests.report import planted_store as planted
from tests.report.test_report_envelope import planted_curves


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return planted_curves(tmp_path_factory.mktemp("e"))


@pytest.mark.slow
def test_the_envelope_finds_the_planted_exponent(results):
    found = study(results)
    a = found.estimates["a"]
    assert a.value == pytest.approx(planted.Law().exponent, abs=0.06)
    assert a.interval[0] < a.value < a.interval[1]
    assert found.estimates["b"].value == pytest.approx(1 - a.value, abs=0.02)
    gap = found.estimates["a_minus_approach_2"]
    assert gap.interval[0] < 0 < gap.interval[1]
    assert not gap.undecided_because
    assert 0 < found.families[0].late_share <= 1


def test_noise_that_moves_the_exponent_more_than_it_scatters_it_leaves_no_interval():
    rng = np.random.default_rng(0)
    common = {"law": "envelope", "exponents": {"standard": {"N": 0.5, "D": 0.5}}}
    common["exponent_intervals"] = {"standard": {"N": (0.4, 0.6), "D": (0.4, 0.6)}}
    for shift, sound in ((0.02, True), (0.1, False)):
        draws = {"a": 0.5 + shift + 0.05 * rng.standard_normal(400)}
        fit = FitResult(parameters={"a": 0.5}, draws=draws, **common)
        assert (unbiased_exponent(fit, "N").interval is not None) == sound


def test_estimates_that_the_results_do_not_hold_say_why(results):
    found = study(dataclasses.replace(results, metrics={}))
    assert found.fits["transformer/standard"].failure == "no run has a training curve"
    none = study(dataclasses.replace(results, table=results.table.head(0)))
    for estimates in (found.estimates, none.estimates):
        assert set(estimates) == {"a", "b", "a_minus_approach_2"}
        assert all(e.value is None and e.undecided_because for e in estimates.values())
