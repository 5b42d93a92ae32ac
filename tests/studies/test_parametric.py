"""Parametric fits of a planted surface."""

import dataclasses

import pytest

from lmscale.studies import parametric
from lmscale.studies.exponents import interval_of_difference
from lmscale.studies.results import Results
from tests.report import planted_store as planted
from tests.report.fixtures import throughout

# The full grid of 4500 starts takes seconds and finds the same minimum here.
few_starts = throughout(parametric, "STARTS", "coarse")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=6)
    store = planted.plant(tmp_path_factory.mktemp("p"), runs, analyses=["parametric"], noise=0.003)
    return Results.read(store)


@pytest.fixture(scope="module")
def found(results):
    return parametric.study(results)


def test_the_planted_surface_lies_within_its_intervals(found):
    law = planted.Law()
    for name in ("alpha", "beta", "E"):
        estimate = found.estimates[name]
        assert estimate.interval[0] < getattr(law, name) < estimate.interval[1]
    a = found.estimates["a"]
    assert a.interval[0] < law.exponent < a.interval[1]
    assert found.families[0].is_informative
    assert "transformer/standard" in found.fits


def test_it_is_held_against_the_profiles_of_the_same_runs(found):
    estimate = found.estimates["a_minus_approach_2"]
    assert estimate.interval[0] < 0 < estimate.interval[1]
    assert abs(estimate.value) < 0.05
    assert not estimate.undecided_because


def test_the_residuals_of_a_surface_that_holds_lie_about_zero(found):
    (family,) = found.families
    means = family.budget_means
    assert [mean.at[0] for mean in means] == sorted(planted.BUDGETS)
    assert all(mean.interval[0] < mean.value < mean.interval[1] for mean in means)
    assert family.residual_rms == pytest.approx(0.003 / 3.0, rel=0.5)


def test_estimates_that_the_results_do_not_hold_say_why(results):
    few = parametric.study(dataclasses.replace(results, table=results.table.head(4)))
    none = parametric.study(dataclasses.replace(results, table=results.table.head(0)))
    for estimates in (few.estimates, none.estimates):
        assert set(estimates) == {"a", *parametric.PARAMETERS, "a_minus_approach_2"}
        assert all(e.value is None and e.undecided_because for e in estimates.values())
    assert few.fits["transformer/standard"].failure


def test_an_interval_of_a_difference_of_two():
    low, high = interval_of_difference(0.5, (0.4, 0.7), 0.45, (0.41, 0.46))
    assert low == pytest.approx(0.05 - (0.1**2 + 0.01**2) ** 0.5)
    assert high == pytest.approx(0.05 + (0.2**2 + 0.04**2) ** 0.5)
