"""The lower edge of planted learning curves has the exponents that Appendix B derives from their law."""

import dataclasses

import numpy as np
import pytest

from lmscale import laws
from lmscale.report import analyse
from lmscale.report.analyses import compute
from lmscale.studies.learning_curves import ladder
from tests.report import planted_curves as planted

BATCH = (planted.LAW["B_star"], planted.LAW["alpha_B"])


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    path = tmp_path_factory.mktemp("compute")
    return planted.plant(path, planted.ladder_runs(), analyses=["compute"], critical_batch=BATCH)


@pytest.fixture(scope="module")
def section(study):
    return analyse("compute", study)


def test_the_exponents_are_those_of_appendix_b(section):
    alpha = laws.frontier_exponent(planted.LAW)
    size = laws.allocation_exponents(planted.LAW)["N"]
    measures = section.measures
    assert measures["alpha_C_min"].value == pytest.approx(alpha, rel=0.01)
    assert measures["size_exponent_min"].value == pytest.approx(size, rel=0.02)
    assert measures["exponent_ratio"].value == pytest.approx(1, abs=0.02)
    for measure in measures.values():
        low, high = measure.interval
        assert low < measure.value < high


def test_at_a_fixed_batch_the_exponents_are_larger(section):
    measures = section.measures
    assert measures["alpha_C"].value > measures["alpha_C_min"].value
    assert measures["size_exponent"].value > measures["size_exponent_min"].value


def test_training_stops_at_alpha_n_over_alpha_s_above_the_converged_loss(section):
    ratio = planted.LAW["alpha_N"] / planted.LAW["alpha_S"]
    assert section.measures["excess"].value == pytest.approx(ratio, abs=0.01)
    assert "stops 13% above" in section.details[0]


def test_the_cost_of_other_sizes_is_that_of_eq_b16(section):
    cost, _ = laws.off_optimum_cost(np.array([0.6, 2.2]), planted.LAW)
    assert section.measures["off_optimum"].value == pytest.approx(cost.max() - 1, abs=0.03)


def test_both_counts_are_shown(section):
    (grid,) = section.grids
    assert [row[0] for row in grid.rows][:4] == [
        "kaplan, C",
        "kaplan, C_min",
        "standard, C",
        "standard, C_min",
    ]
    assert {chart.name for chart in section.charts} == {"compute", "best-size", "off-optimum"}


def test_one_seed_has_values_and_no_intervals(tmp_path, monkeypatch):
    def refuse(found):
        raise laws.FitError("none")

    monkeypatch.setattr(compute, "fit_learning_curves", refuse)
    runs = planted.ladder_runs(seeds=(0,))
    study = planted.plant(tmp_path, runs, analyses=["compute"], critical_batch=BATCH)
    measures = analyse("compute", study).measures
    assert measures["alpha_C_min"].value > 0 and measures["alpha_C_min"].interval is None
    assert "3 seeds" in measures["alpha_C_min"].undecided_because
    assert measures["excess"].value is None


def test_a_ladder_that_holds_no_best_size_says_so(tmp_path):
    runs = planted.ladder_runs(planted.SIZES[:2], seeds=(0,))
    section = analyse("compute", planted.plant(tmp_path, runs, analyses=["compute"]))
    assert section.finding.startswith("No law yet: 2 sizes")
    assert not section.measures


def test_a_fixed_batch_below_the_critical_one_tells_nothing_of_its_own(section):
    """The planted batch is at most a fifth of B_crit(L)."""
    for name in ("alpha_C", "size_exponent"):
        assert "times B_crit(L) at most" in section.measures[name].undecided_because
    assert compute._fixed(12.0) == ""


def test_what_hangs_on_the_critical_batch_waits_for_its_error(section):
    for name in ("alpha_C_min", "size_exponent_min", "exponent_ratio", "excess"):
        assert "is not declared" in section.measures[name].undecided_because
    assert not section.measures["off_optimum"].undecided_because


def test_the_error_of_the_critical_batch_is_in_the_intervals(study):
    exact = ladder(study)
    unsure = dataclasses.replace(exact, batch_error=(4.0, 2.0, 0.17, 0.5))
    spread = [
        np.std(compute._edge(found, "kaplan", adjusted=True).loss_draws)
        for found in (exact, unsure)
    ]
    assert spread[1] > 3 * spread[0]
    measures = compute._measures(
        unsure,
        {
            (convention, kind): compute._edge(unsure, convention, kind == "C_min")
            for convention in ("kaplan",)
            for kind in ("C", "C_min")
        },
        None,
        [],
    )
    low, high = measures["alpha_C_min"].interval
    assert low < laws.frontier_exponent(planted.LAW) < high
    assert not measures["alpha_C_min"].undecided_because
