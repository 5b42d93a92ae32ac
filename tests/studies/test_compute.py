"""The lower edge of planted learning curves has the exponents that Appendix B derives from their law."""

import dataclasses

import numpy as np
import pytest

from lmscale import laws
from lmscale.studies import compute
from lmscale.studies.fits import refused
from lmscale.studies.learning_curves import ladders
from tests.report import planted_curves as planted

BATCH = (planted.LAW["B_star"], planted.LAW["alpha_B"])


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("compute")
    return planted.plant(path, planted.ladder_runs(), analyses=["compute"], critical_batch=BATCH)


@pytest.fixture(scope="module")
def found(results):
    return compute.study(results)


@pytest.mark.slow
def test_the_exponents_are_those_of_appendix_b(found):
    alpha = laws.frontier_exponent(planted.LAW)
    size = laws.allocation_exponents(planted.LAW)["N"]
    estimates = found.estimates
    assert set(estimates) == set(compute.NAMES)
    assert estimates["alpha_C_min"].value == pytest.approx(alpha, rel=0.01)
    assert estimates["size_exponent_min"].value == pytest.approx(size, rel=0.02)
    assert estimates["exponent_ratio"].value == pytest.approx(1, abs=0.02)
    for estimate in estimates.values():
        low, high = estimate.interval
        assert low < estimate.value < high
        assert (estimate.n, estimate.seeds) == (7, 3)


@pytest.mark.slow
def test_at_a_fixed_batch_the_exponents_are_larger(found):
    estimates = found.estimates
    assert estimates["alpha_C"].value > estimates["alpha_C_min"].value
    assert estimates["size_exponent"].value > estimates["size_exponent_min"].value


@pytest.mark.slow
def test_training_stops_at_alpha_n_over_alpha_s_above_the_converged_loss(found):
    ratio = planted.LAW["alpha_N"] / planted.LAW["alpha_S"]
    assert found.estimates["excess"].value == pytest.approx(ratio, abs=0.01)


@pytest.mark.slow
def test_the_cost_of_other_sizes_is_that_of_eq_b16(found):
    cost, _ = laws.off_optimum_cost(np.array([0.6, 2.2]), planted.LAW)
    assert found.estimates["off_optimum"].value == pytest.approx(cost.max() - 1, abs=0.03)


@pytest.mark.slow
def test_both_counts_are_fitted(found):
    assert list(found.edges) == [
        ("kaplan", "C"),
        ("kaplan", "C_min"),
        ("standard", "C"),
        ("standard", "C_min"),
    ]
    assert len(found.fits) == 8
    fit = found.fits["transformer/kaplan, C_min, N_opt"]
    assert fit.intervals["a"] == found.estimates["size_exponent_min"].interval


def test_one_seed_has_values_and_no_intervals(tmp_path, monkeypatch):
    def refuse(found):
        raise laws.FitError("none")

    monkeypatch.setattr(compute, "fit_learning_curves", refuse)
    runs = planted.ladder_runs(seeds=(0,))
    results = planted.plant(tmp_path, runs, analyses=["compute"], critical_batch=BATCH)
    estimates = compute.study(results).estimates
    assert estimates["alpha_C_min"].value > 0 and estimates["alpha_C_min"].interval is None
    assert "3 seeds" in estimates["alpha_C_min"].undecided_because
    assert estimates["excess"].value is None


def test_a_ladder_that_holds_no_best_size_says_so(tmp_path):
    runs = planted.ladder_runs(planted.SIZES[:2], seeds=(0,))
    found = compute.study(planted.plant(tmp_path, runs, analyses=["compute"]))
    assert found.failure.startswith("2 sizes") and not found.edges
    assert all(one.value is None and one.undecided_because for one in found.estimates.values())
    assert found.fits["transformer/kaplan"].failure == found.failure


def test_a_fixed_batch_below_the_critical_one_tells_nothing_of_its_own(found):
    """The planted batch is at most a fifth of B_crit(L)."""
    for name in ("alpha_C", "size_exponent"):
        assert "times B_crit(L) at most" in found.estimates[name].undecided_because
    assert compute.fixed_batch_undecided(12.0) == ""


def test_what_depends_on_the_critical_batch_waits_for_its_error(found):
    for name in ("alpha_C_min", "size_exponent_min", "exponent_ratio", "excess"):
        assert "is not declared" in found.estimates[name].undecided_because
    assert not found.estimates["off_optimum"].undecided_because


def test_the_error_of_the_critical_batch_is_in_the_intervals(results):
    exact = ladders(results)[0]
    unsure = dataclasses.replace(exact, batch_error=(4.0, 2.0, 0.17, 0.5))
    spread = [
        np.std(compute.lower_edge(found, "kaplan", adjusted=True).loss_exponent.draws)
        for found in (exact, unsure)
    ]
    assert spread[1] > 3 * spread[0]
    edges = {
        ("kaplan", kind): compute.lower_edge(unsure, "kaplan", kind == "C_min")
        for kind in ("C", "C_min")
    }
    found = compute.estimates_of(unsure, edges, refused("kaplan-ns", "none"), [])
    alpha = {one.name: one for one in found}["alpha_C_min"]
    low, high = alpha.interval
    assert low < laws.frontier_exponent(planted.LAW) < high
    assert not alpha.undecided_because
