"""What the page concludes from profiles, and under which count."""

import re

import pytest

from lmscale import flops
from lmscale.report import analyse, caveats
from lmscale.studies.results import Results
from tests.report import planted_store as planted


def study(path, runs, **options):
    return Results.read(planted.plant(path, runs, analyses=["isoflop"], **options))


def test_profiles_without_a_minimum_inside_are_shown_as_such(tmp_path):
    """A law whose best size lies far above the grid: every profile falls to its edge."""
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=5)
    section = analyse(
        "isoflop", study(tmp_path, runs, law=planted.Law(A=4000.0, alpha=0.4), noise=0.0)
    )
    assert not section.conclusive
    assert "No exponent yet" in section.finding and "no interior minimum" in section.finding
    assert "its minimum lies above the sizes that were run" in section.charts[0].caption
    assert not section.fits["transformer/standard"].exponents
    assert [chart.name for chart in section.charts] == ["isoflop-transformer"]


def test_a_profile_whose_lowest_run_is_at_the_edge_is_flagged(tmp_path):
    """The parabola may still turn within the sizes; whoever looks should know what holds it."""
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=5)
    losses, base = {}, planted.Law()
    for budget in planted.BUDGETS:
        profile = [run.spec for run in runs if run.labels["budget"] == budget]
        profile.sort(key=lambda spec: flops.n_params(spec.model, "standard"))
        losses |= {spec.hash: base(spec) for spec in profile}
        losses[profile[0].hash] = min(map(base, profile)) - 0.002
    section = analyse(
        "isoflop", study(tmp_path, runs, law=lambda spec: losses[spec.hash], noise=0.0)
    )
    (minima,) = [grid for grid in section.grids if grid.caption.startswith("The minima")]
    assert any("lowest run at the edge" in row[5] for row in minima.rows)


@pytest.mark.slow
def test_two_families_are_compared_and_published_values_named(tmp_path):
    section = analyse(
        "isoflop", study(tmp_path, planted.isoflop_runs(seeds=(0,), sizes=5), noise=0.002)
    )
    assert section.finding.startswith("The best Transformer for a budget grows as N ∝ C^0.")
    assert "for the LSTM the exponent is 0." in section.finding
    assert any("0.5 (Hoffmann et al. 2022, Approach 1)" in text for text in section.details)
    own = [chart for chart in section.charts if not chart.other_view_of]
    assert {chart.name for chart in own} == {
        "isoflop-transformer",
        "isoflop-lstm",
        "isoflop-exponents",
    }
    assert own[0].view == "standard (the grid's own)"
    # Each other count that gives an exponent is a figure that the page can show in its place.
    _, *others = section.views_of(own[0])
    counts = {
        c for c in ("kaplan", "chinchilla", "exact") if section.fits[f"transformer/{c}"].exponents
    }
    assert {chart.view for chart in others} == counts and counts
    for chart in others:
        assert chart.name == f"isoflop-transformer-{chart.view}"
        assert f"standard budgets restated as {chart.view} counts" in chart.caption


def test_a_learning_rate_search_at_its_edge_is_a_warning(tmp_path):
    """Losses are lowest at factor 1, which is the highest of these."""
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=5, lr_factors=(0.5, 1.0))
    searched = study(tmp_path, runs, noise=0.0)
    (warning,) = caveats.search_edges(searched, "transformer")
    assert re.search(
        r"in 20 of 20 cells \(0 at the lowest factor 0.5, 20 at the highest 1\)", warning
    )
    assert set(searched.usable["lr_factor"]) == {1.0}


def test_a_search_at_one_size_of_each_budget_warns_and_decides_nothing(tmp_path):
    """Losses are lowest at factor 1, which is the highest of these."""
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=5, lr_factors=(0.5, 1.0))
    middle = {}
    for run in runs:
        middle.setdefault(run.labels["budget"], []).append(run.spec.model)
    middle = {budget: models[len(models) // 2] for budget, models in middle.items()}
    some = [
        run
        for run in runs
        if run.labels["lr_factor"] == 1.0 or run.spec.model == middle[run.labels["budget"]]
    ]
    searched = study(tmp_path, some, noise=0.0)
    assert set(searched.usable["lr_factor"]) == {1.0}
    assert len(searched.usable) == 20
    (warning,) = caveats.search_edges(searched, "transformer")
    assert "in 4 of 4 cells (0 at the lowest factor 0.5, 4 at the highest 1)" in warning


@pytest.mark.slow
def test_noise_that_hides_the_exponent_is_said_to(tmp_path):
    runs = planted.isoflop_runs((1e12, 1.3e12, 1.7e12), lstm=False, seeds=(0,), sizes=5)
    section = analyse("isoflop", study(tmp_path, runs, noise=0.01))
    low, high = section.fits["transformer/standard"].intervals["a"]
    assert low < 0 or high > 1
    assert section.finding.startswith("Too noisy to tell how the best Transformer grows")
    assert not section.conclusive


def test_an_experiment_without_budgets_has_no_profiles(tmp_path):
    runs = planted.size_runs(seeds=(0,), layers=())
    assert "carry no budget" in analyse("isoflop", study(tmp_path, runs)).finding


@pytest.mark.slow
def test_a_difference_of_two_counts_needs_no_second_seed(tmp_path):
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=5)
    exact = analyse("isoflop", study(tmp_path / "exact", runs, noise=0.0))
    section = analyse("isoflop", study(tmp_path, runs, noise=0.002))
    found, truth = (one.measures["kaplan_minus_native"] for one in (section, exact))
    assert not found.undecided_because
    assert found.interval[0] < truth.value < found.interval[1]
    assert "one seed, so that the points have no bars" in section.charts[0].caption


@pytest.mark.slow
def test_a_minimum_just_outside_the_sizes_is_not_called_inside(tmp_path):
    """A law whose best size lies a little above the grid, at every budget."""
    runs = planted.isoflop_runs(lstm=False, seeds=(0,), sizes=5)
    section = analyse("isoflop", study(tmp_path, runs, law=planted.Law(A=150.0), noise=0.0))
    (minima,) = [grid for grid in section.grids if grid.caption.startswith("The minima")]
    outside = [row for row in minima.rows if "above the sizes that were run, read with" in row[5]]
    assert outside and not any("minimum inside" in row[5] for row in outside)
    assert any("above the sizes" in warning for warning in section.warnings)
