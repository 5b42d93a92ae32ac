"""Planted differences between schedules come back, with the noise that they were planted with."""

import dataclasses

import numpy as np
import pytest

from lmscale.studies.schedules import study
from tests.report.test_report_schedules import EXPERIMENT, NOISE, OVERSHOOT, read


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return read(tmp_path_factory.mktemp("schedules"))


@pytest.fixture(scope="module")
def found(results):
    return study(results)


@pytest.mark.parametrize(
    ("name", "truth"),
    [
        ("overshoot", OVERSHOOT),
        ("overshoot_quarter", OVERSHOOT * np.log2(1.25)),
        ("zero_over_tenth", 0.0),
        ("cosine_over_linear", 0.02),
        ("cooldown_over_cosine", 0.0),
    ],
)
def test_planted_differences_come_back(found, name, truth):
    low, high = found.estimates[name].interval
    assert low < truth < high
    # The seeds' common part, ten times as large, has gone.
    assert high - low < 8 * NOISE


def test_the_spread_is_that_of_schedules_which_decay(results, found):
    low, high = found.estimates["spread"].interval
    assert low < 0.02 < high < 0.05
    cells = results.table.drop_duplicates("cell").set_index("cell")
    large = cells["summed_lr"] >= 0.5 * cells["summed_lr"]["cosine to 0.1"]
    decaying = int((cells["decays"] & large).sum())
    assert 6 <= decaying < len(cells)
    assert len(found.spreads[0].members) == found.estimates["spread"].n == decaying


def test_a_spread_that_depends_on_what_counts_as_a_large_rate_covers_every_threshold(results):
    """The paper asks for a large summed rate and names no number."""
    small = results.table["cell"] == "cosine, half the run"
    table = results.table.assign(
        steps=50_000,
        decays=results.table["decays"] | small,
        loss=results.table["loss"] + 0.2 * small,
    )
    found = study(dataclasses.replace(results, table=table))
    low, high = found.estimates["spread"].interval
    assert low < 0.05 and high > 0.2
    first, *_, last = found.spreads
    assert first.members[-1]["cell"] == "cosine, half the run" != last.members[-1]["cell"]


def test_schedules_that_decay_are_compared_with_the_noise_of_these_alone(found):
    by_name = {cell["cell"]: cell for cell in found.cells}
    half = {True: found.noise(True), False: found.noise()}
    for name, own in (("cosine to 0", True), ("cosine, cycle 2x", False)):
        one = found.above(by_name[name], found.base)
        assert (one.interval[1] - one.interval[0]) / 2 == pytest.approx(
            half[own].half_of_difference
        )


def test_a_single_seed_decides_nothing(tmp_path):
    found = study(read(tmp_path, dataclasses.replace(EXPERIMENT, seeds=(0,))))
    assert found.estimates["overshoot"].is_known
    for estimate in found.estimates.values():
        assert estimate.interval is None
        assert "needs 3 seeds, not 1" in estimate.undecided_because


def test_a_store_without_schedules_holds_every_estimate_undecided(results):
    other = results.table.drop(columns="cell")
    for found in (study(dataclasses.replace(results, table=t)) for t in (other, other.head(0))):
        assert len(found.estimates) == 6 and found.base is None
        assert all(e.value is None and e.undecided_because for e in found.estimates.values())
