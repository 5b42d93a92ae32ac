"""Kaplan et al. 2020: published numbers, and planted tables for the two-variable laws."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from lmscale import laws
from lmscale.laws import kaplan

REFERENCE = Path(laws.__file__).parent / "reference"
TABLE_2 = {"alpha_N": 0.076, "N_c": 6.4e13, "alpha_D": 0.103, "D_c": 1.8e13}
TABLE_3 = {"alpha_N": 0.077, "N_c": 6.5e13, "alpha_S": 0.76, "S_c": 2.1e3}


def grid(law, noise=0.0, seed=0, sizes=7):
    rng = np.random.default_rng(seed)
    n = np.repeat(np.geomspace(4e5, 7e8, sizes), 8)
    if law == "kaplan-nd":
        d = np.tile(np.geomspace(2e7, 2e10, 8), sizes)
        table = {"params": n, "tokens": d}
        loss = kaplan.kaplan_nd_loss(TABLE_2, **table)
    else:
        s = np.tile(np.geomspace(3e3, 2e5, 8), sizes)
        table = {"params": n, "steps": s}
        loss = kaplan.kaplan_ns_loss(TABLE_3, **table)
    return {**table, "loss": loss * np.exp(noise * rng.normal(size=len(n)))}


def test_fig_9_gives_the_published_constants():
    """PAPERS check 3: eq. 1.5 on Fig. 9 without the smallest subset."""
    frame = pd.read_csv(REFERENCE / "kaplan2020_fig9_L_N_D.csv")
    columns = {"params": "N_nonembed", "tokens": "D_tokens", "loss": "test_loss"}
    result = laws.fit(frame[frame.D_tokens > 3e7], "kaplan-nd", columns=columns, bootstrap=100)
    p = result.parameters
    assert p["alpha_N"] == pytest.approx(0.0760, abs=1e-4)
    assert p["alpha_D"] == pytest.approx(0.1029, abs=1e-4)
    assert p["N_c"] == pytest.approx(7.1e13, rel=0.01)
    assert p["D_c"] == pytest.approx(1.79e13, rel=0.01)
    assert np.sqrt(np.mean(result.residuals["residual"] ** 2)) == pytest.approx(0.008, abs=5e-4)
    low, high = result.intervals["alpha_N"]
    assert low < 0.076 < high
    everything = laws.fit(frame, "kaplan-nd", columns=columns, bootstrap=0).parameters
    assert everything["alpha_D"] == pytest.approx(0.1167, abs=2e-4)


def test_fig_6_gives_the_published_exponent():
    """PAPERS check 4: L(N) on Fig. 6 without one-layer models."""
    frame = pd.read_csv(REFERENCE / "kaplan2020_fig6_nonembed.csv")
    deep = frame[frame.n_layer > 1]
    result = laws.fit(deep, "power", columns="params=N_nonembed,loss=test_loss", bootstrap=0)
    assert result.parameters["alpha_N"] == pytest.approx(0.0746, abs=1e-4)
    assert result.parameters["N_c"] == pytest.approx(1.3e14, rel=0.03)


def test_appendix_b():
    """PAPERS check 5: C_c of eq. B.8, the two stopping rules, and the costs of Fig. 12."""
    assert kaplan.frontier_constant() == pytest.approx(1.391e28, rel=1e-3)
    ratio = kaplan.stopping_ratio(0.077 / 0.76, 0.02)
    assert ratio["N"] == pytest.approx(2.708, abs=1e-3)
    assert ratio["S"] == pytest.approx(0.1308, abs=1e-4)
    assert ratio["C"] == pytest.approx(0.354, abs=1e-3)
    cost, steps = kaplan.off_optimum_cost([0.6, 2.2])
    assert cost == pytest.approx([1.165, 1.204], abs=1e-3)
    assert steps[1] == pytest.approx(0.547, abs=1e-3)
    assert kaplan.off_optimum_cost(0.1)[0] == np.inf
    exponents = kaplan.allocation_exponents()
    assert exponents["N"] == pytest.approx(0.681, abs=1e-3)
    assert exponents["N"] + exponents["D"] == pytest.approx(1)


def test_the_efficient_frontier_is_the_minimum_of_the_law():
    frontier = kaplan.efficient_frontier(np.array([1e-3, 1.0]) * kaplan.PF_DAY)
    assert frontier.loss == pytest.approx([3.871, 2.694], abs=1e-3)
    assert frontier.n_params == pytest.approx([5.29e6, 5.84e8], rel=2e-3)
    assert frontier.steps == pytest.approx([8.17e3, 1.32e4], rel=5e-3)
    # Stops alpha_N/alpha_S above the converged loss (B.5), and spends what it says.
    converged = (6.5e13 / frontier.n_params) ** 0.077
    assert frontier.loss / converged == pytest.approx(1 + 0.077 / 0.76)
    spent = 6 * frontier.n_params * frontier.n_tokens
    assert spent == pytest.approx(np.array([1e-3, 1.0]) * kaplan.PF_DAY)


def test_where_the_laws_contradict_each_other():
    point = kaplan.contradiction_point()
    assert point.pf_days == pytest.approx(1.12e4, rel=0.01)
    assert point.loss == pytest.approx(1.668, abs=1e-3)
    assert point.n_params == pytest.approx(1.17e12, rel=0.01)
    other = kaplan.contradiction_point(D_0=4e10, D_exponent=0.26)
    assert other.pf_days == pytest.approx(1.06e5, rel=0.01)


def test_batch_adjustments():
    assert kaplan.critical_batch(3.0) == pytest.approx(1.12e6, rel=0.01)
    b = kaplan.critical_batch(3.0)
    assert kaplan.adjusted_steps(1000, b, 3.0) == pytest.approx(500)
    assert kaplan.adjusted_compute(1000, b, 3.0) == pytest.approx(500)


def test_overfitting_depends_on_one_combination_only():
    k = TABLE_2["alpha_N"] / TABLE_2["alpha_D"]
    one = kaplan.overfitting(TABLE_2, 1e8, 1e9)
    assert one == pytest.approx(kaplan.overfitting(TABLE_2, 8e8, 1e9 * 8**k))
    need = kaplan.data_requirement(TABLE_2, 1e9)
    assert kaplan.overfitting(TABLE_2, 1e9, need) == pytest.approx(0.02)
    assert need == pytest.approx(2.4e10, rel=0.05)


def test_early_stopping_bound():
    bound = kaplan.early_stopping_bound(TABLE_2, 3e8, np.array([21.5e6, 172e6, 1.375e9]))
    assert bound == pytest.approx([1.19e3, 2.94e3, 1.27e4], rel=5e-3)


@pytest.mark.parametrize(("law", "truth"), [("kaplan-nd", TABLE_2), ("kaplan-ns", TABLE_3)])
def test_planted_tables_come_back(law, truth):
    result = laws.fit(grid(law), law, bootstrap=0)
    assert result.parameters == pytest.approx(truth, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("law", "truth"), [("kaplan-nd", TABLE_2), ("kaplan-ns", TABLE_3)])
def test_intervals_cover_the_truth(law, truth):
    inside = []
    for seed in range(200):
        result = laws.fit(grid(law, 0.01, seed, sizes=4), law, bootstrap=100, seed=seed)
        low, high = result.intervals["alpha_N"]
        inside.append(low <= truth["alpha_N"] <= high)
    assert 0.90 <= np.mean(inside) <= 0.99


def test_steps_are_adjusted_on_request():
    table = grid("kaplan-ns")
    batch = np.full(len(table["loss"]), 2.0**19)
    factor = 1 + kaplan.critical_batch(table["loss"]) / batch
    raw = {**table, "steps": table["steps"] * factor, "batch_tokens": batch}
    result = laws.fit(raw, "kaplan-ns", adjust=True, bootstrap=0)
    assert result.parameters == pytest.approx(TABLE_3, rel=1e-5)


def test_points_of_one_curve_are_resampled_together():
    table = grid("kaplan-ns", 0.01)
    table["group"] = np.repeat(np.arange(7), 8)
    assert "learning curves" in laws.fit(table, "kaplan-ns", bootstrap=20).interval_method
