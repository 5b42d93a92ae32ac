"""Scans of shape: planted costs come back at equal N, with intervals that hold for the largest."""

import numpy as np
import pandas as pd
import pytest

from lmscale.studies.exponents import fit_power_of_cells
from lmscale.studies.papers import points
from lmscale.studies.shape import kaplan_costs, make_scan, study
from tests.report import planted_store as planted
from tests.report.test_report_shape import COST
from tests.report.test_report_shape import study as results

#: Short runs, and heads over a part of the claim's range.
GRID = {
    "size": 24_576,
    "n_layer": 2,
    "depths": (1, 2, 4, 8, 14),
    "ff_ratios": (1, 2, 4, 8),
    "head_widths": (8, 16, 32),
    "slope_sizes": (13_824, 38_400),
    "steps": 1000,
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return study(results(tmp_path_factory.mktemp("shape"), **GRID))


def test_each_planted_cost_lies_in_its_interval(found):
    costs = {"ff_ratio": 100 * COST * np.log(4), "aspect": 0.0, "head_width": 0.0}
    for name, cost in costs.items():
        estimate = found.estimates[name]
        low, high = estimate.interval
        assert low - 1e-9 <= cost <= high, name
        assert estimate.seeds == 3
    assert found.estimates["aspect"].value < 0.5


def test_sizes_are_made_equal_along_the_runs_own_slope(found):
    fit = found.fits["standard shapes/kaplan"]
    assert fit.parameters["alpha_N"] == pytest.approx(planted.SizeLaw().alpha, abs=0.01)
    assert fit.ranges["params"] == (13_824, 38_400)


def test_a_seed_that_failed_once_leaves_the_scan(tmp_path):
    found = study(results(tmp_path, status=lambda i, run: "diverged" if i == 0 else "done", **GRID))
    assert found.estimates["aspect"].interval is None
    assert "needs 3 seeds, not 2" in found.estimates["aspect"].undecided_because
    assert found.estimates["ff_ratio"].interval is not None
    assert ("aspect", 1, 2) in found.seeds_lost


def test_nothing_trained_yet_holds_every_estimate_undecided(tmp_path):
    found = study(results(tmp_path, status=lambda i, run: "pending"))
    assert set(found.estimates) == {"ff_ratio", "aspect", "head_width"} and found.fit.failure
    assert all(e.value is None and e.undecided_because for e in found.estimates.values())


def test_the_papers_own_costs_are_read_off_its_points():
    assert kaplan_costs() == pytest.approx({"ff_ratio": 0.293, "head_width": 0.518}, abs=1e-3)


def test_only_what_depth_costs_waits_for_longer_training(found):
    assert "tokens a parameter" in found.estimates["aspect"].undecided_because
    assert not found.estimates["ff_ratio"].undecided_because


def test_a_part_of_the_range_does_not_stand_for_all_of_it(found):
    assert (
        "from 16 to 32, the claim from 16 to 64" in found.estimates["head_width"].undecided_because
    )


def test_what_seeds_share_is_no_noise():
    rng = np.random.default_rng(0)
    losses = 3 + 0.1 * rng.standard_normal(4) + 0.001 * rng.standard_normal((5, 4))
    scan = make_scan("aspect", "", [1, 3, 10, 30, 100], [1e6] * 5, losses, alpha=0.08)
    # Seeds move all shapes by 3%, but one against another by 0.03% only.
    assert 0 < scan.half < scan.tukey < 0.1
    assert scan.increase.min() == 0


def test_tukeys_interval_holds_for_the_largest_of_many():
    """Of shapes without any difference, 95% of scans allow a cost of zero."""
    rng = np.random.default_rng(1)
    allowed = []
    for _ in range(60):
        losses = 3 * np.exp(0.01 * rng.standard_normal((6, 3)))
        scan = make_scan("aspect", "", range(1, 7), [1e6] * 6, losses, alpha=0.08)
        allowed.append(scan.cost(np.arange(6))[1][0] <= 0)
    assert np.mean(allowed) > 0.88


def test_losses_are_moved_to_equal_size():
    n = np.array([0.9e6, 1e6, 1.1e6])
    losses = (1e13 / n[:, None]) ** 0.08 * np.ones(3)
    scan = make_scan("aspect", "", [1, 2, 3], n, losses, alpha=0.08)
    assert np.allclose(scan.increase, 0, atol=1e-9)
    assert scan.moved == pytest.approx(0.8, abs=0.1)


def test_the_papers_points_meet_its_claims():
    paper = points("kaplan2020_fig5")
    aspect = paper[(paper["panel"] == "aspect") & (paper["series"] == "1.5B")]
    scan = make_scan(
        "aspect",
        "1.5B",
        aspect["ratio"],
        np.full(len(aspect), 1.5e9),
        np.exp(aspect["increase_percent"].to_numpy()[:, None] / 100),
        alpha=0.0,
    )
    assert scan.cost(np.arange(5))[0] == pytest.approx(2.8, abs=0.1)
    assert scan.cost(np.arange(5))[1] is None
    assert set(paper["panel"]) == {"aspect", "ff_ratio", "head_width"}
    shapes = paper.dropna(subset=["n_layer"])
    assert np.allclose(12 * shapes["n_layer"] * shapes["d_model"] ** 2, shapes["n_params"])


def test_the_slope_counts_sizes_and_not_seeds():
    """Sizes stray from the line by much more than their seeds scatter."""
    rng = np.random.default_rng(2)
    held = []
    for _ in range(200):
        sizes = np.repeat(np.geomspace(1e4, 4e4, 4), 3)
        stray = np.repeat(0.01 * rng.standard_normal(4), 3) + 0.001 * rng.standard_normal(12)
        rows = pd.DataFrame({"params": sizes, "loss": 3 * (sizes / 1e4) ** -0.08 * np.exp(stray)})
        low, high = fit_power_of_cells(rows, "params").intervals["alpha_N"]
        held.append(low < 0.08 < high)
    assert 0.9 < np.mean(held) < 0.99
    two = rows[rows["params"] < 2e4]
    assert not fit_power_of_cells(two, "params").intervals
