"""The five steps on runs of a planted law."""

import dataclasses
import math

import pytest

from lmscale.studies.reconcile import study
from tests.report.test_report_reconcile import LAW
from tests.report.test_report_reconcile import study as planted_steps


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return planted_steps(tmp_path_factory.mktemp("reconcile"))


@pytest.fixture(scope="module")
def found(results):
    return study(results)


def test_counting_the_head_and_shortening_the_warmup_lower_the_exponent(found):
    estimates = found.estimates
    assert estimates["change_2"].interval[1] < 0
    assert estimates["change_3"].interval[1] < 0
    for number in (3, 4, 5):
        assert estimates[f"a_{number}"].value == pytest.approx(LAW.exponent, abs=0.06)
    assert estimates["a_1"].value > estimates["a_2"].value > estimates["a_3"].value
    assert estimates["change_all"].interval[1] < 0


def test_steps_without_an_effect_have_a_change_that_contains_none(found):
    for number in (4, 5):
        low, high = found.estimates[f"change_{number}"].interval
        assert low < 0.03 and high > -0.03
        assert abs(found.estimates[f"change_{number}"].value) < 0.06


def test_noise_that_steps_share_cancels_in_their_change(found):
    """The runs of a seed stray alike at every step, so a change is known better than its ends."""
    change = found.estimates["change_5"].interval
    ends = [found.estimates[f"a_{n}"].interval for n in (4, 5)]
    independent = math.hypot(*(high - low for low, high in ends))
    assert change[1] - change[0] < 0.6 * independent
    assert found.estimates["change_5"].draws is not None


def test_one_seed_has_intervals_of_the_residuals(results):
    one = results.table[results.table["seed"] == 0].reset_index(drop=True)
    change = study(dataclasses.replace(results, table=one)).estimates["change_3"]
    assert change.interval is not None and change.draws is None
    assert "needs 3 seeds, not 1" in change.undecided_because


def test_a_step_without_results_leaves_its_estimates_undecided(results):
    table = results.table[results.table["family"] != "step 5"].reset_index(drop=True)
    found = study(dataclasses.replace(results, table=table))
    assert found.fits["step 5/standard"].failure == "no run of it has ended well yet"
    for name in ("a_5", "change_5", "change_all"):
        assert found.estimates[name].value is None
        assert "no run of it has ended well yet" in found.estimates[name].undecided_because
    none = study(dataclasses.replace(results, table=results.table.head(0))).estimates
    assert set(none) == set(found.estimates) and len(none) == 10
    assert all(e.value is None and e.undecided_because for e in none.values())
