"""The bootstrap of residuals: its noise is unbiased, and rows that share noise are drawn together."""

import numpy as np
import pytest

from lmscale import laws
from lmscale.laws.chinchilla import chinchilla_loss, optimal_allocation
from lmscale.laws.parametric import fit_parametric
from lmscale.laws.resample import fit_noise, student_level
from lmscale.laws.result import interval
from lmscale.laws.table import Table
from lmscale.laws.units import Units, correlate

EPOCH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
TRUTH = EPOCH["beta"] / (EPOCH["alpha"] + EPOCH["beta"])
START = np.array([[6.178, 7.6427, 0.5973, 0.3478, 0.3658]])


def curves(sizes=8, points=15, shared=0.01, own=0.001, seed=0):
    rng = np.random.default_rng(seed)
    n = np.repeat(np.geomspace(5e7, 2e9, sizes), points)
    d = n * np.tile(np.geomspace(2, 200, points), sizes)
    noise = np.repeat(shared * rng.normal(size=sizes), points) + own * rng.normal(size=len(n))
    loss = chinchilla_loss(EPOCH, params=n, tokens=d) * np.exp(noise)
    return {"params": n, "tokens": d, "loss": loss}


def labelled(table, points=15, name="run"):
    count = len(table["loss"]) // points
    return {**table, "group": np.repeat([f"{name}{i}" for i in range(count)], points)}


def fit(table, **options):
    return fit_parametric(table, **{"starts": START, "bootstrap": 60, "robust": "none"} | options)


def width(result, name="alpha"):
    low, high = result.intervals[name]
    return high - low


# --- The noise ----------------------------------------------------------------------------------


def line(n=12):
    x = np.linspace(-1, 1, n)
    return np.column_stack([np.ones(n), x, x**2])


def test_corrected_residuals_have_the_size_of_the_noise():
    rng, slopes = np.random.default_rng(0), line()
    basis = np.linalg.qr(slopes)[0]
    rows, squares = Units.rows(12), []
    for _ in range(800):
        noise = rng.normal(size=12)
        left = noise - basis @ (basis.T @ noise)
        found = fit_noise(left, slopes, rows, np.empty((12, 0)))
        squares.append(found.value**2)
    np.testing.assert_allclose(np.mean(squares, axis=0), 1, atol=0.2)
    assert found.freedom == 9


def test_noise_that_grows_is_drawn_as_it_grows():
    rng = np.random.default_rng(1)
    x = np.linspace(-0.5, 0.5, 200)
    slopes = np.column_stack([np.ones(200), x])
    left = np.exp(2 * x) * rng.normal(size=200)
    noise = fit_noise(left, slopes, Units.rows(200), x[:, None])
    drawn = noise.draw(2000, rng).std(axis=0)
    assert drawn[-40:].mean() / drawn[:40].mean() == pytest.approx(np.exp(2 * 0.8), rel=0.3)


def test_the_correlation_of_groups_is_found_in_what_the_fit_leaves():
    rng, found = np.random.default_rng(2), []
    of_row = np.repeat(np.arange(10), 6)
    slopes = np.column_stack(
        [np.ones(60), np.repeat(np.arange(10.0), 6), np.tile(np.arange(6.0), 10)]
    )
    basis = np.linalg.qr(slopes)[0]
    for _ in range(200):
        noise = np.repeat(rng.normal(size=10), 6) + rng.normal(size=60)
        found.append(correlate(of_row, basis, noise - basis @ (basis.T @ noise)))
    assert np.mean([c for c, _ in found]) == pytest.approx(0.5, abs=0.08)
    assert np.mean([p < 0.01 for _, p in found]) > 0.8
    null = [rng.normal(size=60) for _ in range(400)]
    p_values = [correlate(of_row, basis, e - basis @ (basis.T @ e))[1] for e in null]
    assert np.mean(np.array(p_values) < 0.25) == pytest.approx(0.25, abs=0.07)


def test_groups_are_judged_where_no_parameter_moves_the_fit():
    """At the bounds of a search the slopes are zero, and the basis has no column."""
    rng, of_row = np.random.default_rng(3), np.repeat(np.arange(10), 6)
    noise = np.repeat(rng.normal(size=10), 6) + 0.1 * rng.normal(size=60)
    correlation, p_value = correlate(of_row, np.zeros((60, 0)), noise)
    assert correlation > 0.8 and p_value < 0.01


def test_few_degrees_of_freedom_move_the_percentiles_out():
    assert student_level(0.95, 1e6) == pytest.approx(0.95, abs=1e-4)
    assert 0.95 < student_level(0.95, 15) < student_level(0.95, 5) < 1


@pytest.mark.parametrize("n_draws", [39, 100, 200, 1000])
def test_an_interval_holds_its_level_of_further_draws_however_many_there_are(n_draws):
    """Ranks 1 + p (B - 1), numpy's default, hold 0.903 of them at 39 draws and 0.931 at 100."""
    rng = np.random.default_rng(0)
    # Of uniform draws an interval holds its own length.
    low, high = interval(rng.random((4000, n_draws)), 0.95, axis=1)
    assert np.mean(high - low) == pytest.approx(0.95, abs=0.003)


# --- Rows or groups -----------------------------------------------------------------------------


def test_checkpoints_that_share_noise_are_drawn_as_whole_runs():
    table = curves()
    by_group, by_row = fit(labelled(table)), fit(table, resample="runs")
    assert "8 whole groups" in by_group.interval_method
    assert width(by_group) > 2.5 * width(by_row)
    assert any("as checkpoints of one run do" in w for w in by_group.warnings)
    assert by_group.details["resampling"]["correlation"] > 0.9
    # Without a label the size tells.
    by_size = fit(table)
    assert "8 whole sizes" in by_size.interval_method and width(by_size) > 2.5 * width(by_row)


def test_an_ordinary_grid_is_drawn_by_rows_whatever_its_labels():
    rng = np.random.default_rng(3)
    n, d = np.repeat(np.geomspace(5e7, 2e9, 5), 5), np.tile(np.geomspace(1e9, 4e10, 5), 5)
    loss = chinchilla_loss(EPOCH, params=n, tokens=d) * np.exp(0.003 * rng.normal(size=25))
    table = {"params": n, "tokens": d, "loss": loss}
    plain = fit(table)
    assert plain.interval_method == "bootstrap of residuals over runs"
    named = fit(labelled(table, 5, "model"))
    assert "over runs (not over the 5 values of group" in named.interval_method
    assert width(named) == width(plain)
    asked = fit(labelled(table, 5, "model"), resample="groups")
    assert "5 whole groups" in asked.interval_method
    assert any("rest on 5 whole groups" in w for w in asked.warnings)


def test_groups_that_share_a_size_name_runs():
    table = curves(8, 15)
    half = {k: v[::1] for k, v in table.items()}
    half["group"] = [f"{i // 15}-{i % 2}" for i in range(120)]
    assert "16 whole groups" in fit(half).interval_method


def test_groups_that_cannot_be_drawn_are_refused():
    with pytest.raises(laws.FitError, match="resample groups needs a column group"):
        fit(curves(), resample="groups")


@pytest.mark.parametrize("law", ["kaplan-nd", "over-training", "power"])
@pytest.mark.slow
def test_every_law_of_losses_draws_the_same_units(law):
    options = {"x": "tokens"} if law == "power" else {}
    result = laws.fit(labelled(curves()), law, bootstrap=20, **options)
    assert "whole groups" in result.interval_method
    assert result.details["resampling"]["count"] == 8


# --- Coverage -----------------------------------------------------------------------------------


def planted(kind, seed):
    """Runs whose noise falls from 0.6% at the smallest size to 0.15% at the largest."""
    rng = np.random.default_rng(seed)
    if kind == "4 x 5":
        n, d = np.repeat(np.geomspace(5e7, 2e9, 4), 5), np.tile(np.geomspace(1e9, 4e10, 5), 4)
    else:
        budgets, sizes = {
            "three budgets": (np.geomspace(1e18, 1e20, 3), np.geomspace(0.25, 4, 6)),
            "off centre": (np.geomspace(1e18, 1e20, 5), np.geomspace(0.5, 16, 7)),
        }[kind]
        c = np.repeat(budgets, len(sizes))
        n = optimal_allocation(EPOCH, c).n_params * np.tile(sizes, len(budgets))
        d = c / (6 * n)
    size = 0.006 * (n / n.min()) ** (-np.log(4) / np.log(n.max() / n.min()))
    loss = chinchilla_loss(EPOCH, params=n, tokens=d) * np.exp(size * rng.normal(size=len(n)))
    return {"params": n, "tokens": d, "loss": loss}


def covered(table, seed, **options):
    """Whether the exponent, and N_opt and loss at 10 and 100 times the compute, are inside."""
    result = fit(table, bootstrap=200, seed=seed, **options)
    low, high = result.exponent_intervals["given"]["N"]
    row = [low <= TRUTH <= high]
    for beyond in (10, 100):
        flops = beyond * result.ranges["flops"][1]
        with np.errstate(all="ignore"):
            drawn = optimal_allocation(result.draws, flops)
        best = optimal_allocation(EPOCH, flops)
        for values, truth in ((drawn.n_params, best.n_params), (drawn.loss, best.loss)):
            low, high = interval(values, result.draw_level)
            row.append(low <= truth <= high)
    return row


@pytest.mark.slow
@pytest.mark.parametrize("robust", ["none", "huber"])
@pytest.mark.parametrize("kind", ["4 x 5", "three budgets", "off centre"])
def test_surface_intervals_cover_the_truth(kind, robust):
    share = np.mean([covered(planted(kind, s), s, robust=robust) for s in range(100)], axis=0)
    # Three standard errors of 100 tables below 0.95; above it, of one number all may be inside.
    assert np.all(share >= 0.89) and np.mean(share) <= 0.985, share


@pytest.mark.slow
def test_intervals_over_groups_cover_the_truth():
    """Drawn by points, they hold the exponent in a quarter of such tables."""
    tables = [labelled(curves(seed=s)) for s in range(100)]
    share = np.mean([covered(t, s) for s, t in enumerate(tables)], axis=0)
    assert np.all((0.90 <= share) & (share <= 1.0)), share
    by_row = [covered(t, s, resample="runs")[0] for s, t in enumerate(tables[:40])]
    assert np.mean(by_row) < 0.6


def test_a_table_object_is_read_as_it_is():
    table = Table.read(labelled(curves()))
    assert "whole groups" in fit(table, bootstrap=10).interval_method
