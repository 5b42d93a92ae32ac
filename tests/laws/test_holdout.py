"""What is held out: near the share asked for, whole budgets, whole runs."""

import numpy as np
import pytest

from lmscale import laws
from lmscale.laws.chinchilla import chinchilla_loss
from lmscale.laws.holdout import _cut

EPOCH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
START = np.array([[6.178, 7.6427, 0.5973, 0.3478, 0.3658]])


def table(params, tokens, **labels):
    loss = chinchilla_loss(EPOCH, params=params, tokens=tokens)
    return {"params": params, "tokens": tokens, "loss": loss, **labels}


def held(rows, **options):
    return laws.hold_out(rows, starts=START, bootstrap=0, **options)


def test_compute_without_budgets_is_cut_at_a_quantile():
    """Gaps at the bottom of a table of 770 rows once held out 753 of them."""
    rng = np.random.default_rng(0)
    params = np.exp(rng.uniform(np.log(1e7), np.log(1e9), 770))
    tokens = np.exp(rng.uniform(np.log(1e8), np.log(1e11), 770))
    assert _cut(np.sort(params * tokens), 0.2, "flops") == 616
    # Fewer runs are fitted, by the program that other tests have compiled.
    result = held(table(params[:300], tokens[:300]))
    assert 45 <= len(result.row) <= 75 and result.fit.n_used == 300 - len(result.row)
    assert result.mean_error < 1e-6


def test_a_lone_largest_run_is_not_the_only_one_held_out():
    values = np.concatenate([np.geomspace(1.0, 40.0, 99), [100.0]])
    assert 1 - _cut(values, 0.2, "flops") / 100 == pytest.approx(0.2)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
@pytest.mark.parametrize("budgets", [3, 5, 9])
def test_budgets_are_never_split(budgets, share):
    flops = np.repeat(np.geomspace(1e18, 1e21, budgets), 7) * np.tile(
        np.linspace(0.99, 1.01, 7), budgets
    )
    cut = _cut(np.sort(flops), share, "flops")
    assert cut % 7 == 0 or budgets == 9
    assert share / 2 <= 1 - cut / len(flops) <= 0.4


def test_a_budget_of_most_runs_is_refused():
    values = np.repeat([1.0, 10.0], 10)
    with pytest.raises(laws.TableError, match="the largest flops holds more than 40%"):
        _cut(values, 0.2, "flops")
    assert _cut(values, 0.5, "flops") == 10


def test_checkpoints_of_one_run_stay_together():
    size = np.repeat(np.geomspace(5e7, 2e9, 10), 20)
    tokens = size * np.tile(np.geomspace(1, 200, 20), 10)
    group = np.repeat([f"run{i}" for i in range(10)], 20)
    result = held(table(size, tokens, group=group))
    assert len(result.row) == 40
    assert set(result.row) == set(range(161, 201))
    # A family of many sizes is not one run.
    free = held(table(size, tokens, group=np.repeat("all", 200)))
    assert len(free.row) == 40


def grid_of_budgets(budgets=6, sizes=5):
    """IsoFLOP profiles: at the largest budget stand sizes that smaller budgets have too."""
    params = np.geomspace(1e7, 1e9, sizes + budgets - 1)
    rows = [(params[k + j], 1e18 * 10**k) for k in range(budgets) for j in range(sizes)]
    n, c = np.array(rows).T
    return n, c / (6 * n)


@pytest.mark.parametrize("labels", ["one family", "two families", "a label a size", "twice"])
def test_a_label_that_names_no_runs_leaves_budgets_whole(labels):
    """A constant label once made one run of all rows of a size, so no budget could be held out."""
    n, d = grid_of_budgets()
    names = {
        "one family": np.repeat("transformer", len(n)),
        "two families": np.array(["a", "b"] * (len(n) // 2)),
        "a label a size": np.array([f"{value:.3g}" for value in n]),
        "twice": np.array([f"{value:.3g}" for value in n]),
    }
    rows = table(n, d, group=names[labels])
    if labels == "a label a size":
        rows["budget"] = [f"{value:.3g}" for value in 6 * n * d]
    if labels == "twice":
        # Two learning rates: equal tokens are no points of one curve.
        rows = {key: np.concatenate([value, value]) for key, value in rows.items()}
        rows["seed"] = np.repeat("0", 2 * len(n))
        rows["loss"][len(n) :] *= 1.001
    result = held(rows)
    largest = 6 * n * d > 0.99e23
    assert len(result.row) == largest.sum() * (2 if labels == "twice" else 1)
    assert set((np.asarray(result.row) - 1) % len(n)) == set(np.flatnonzero(largest))


def test_two_runs_of_a_size_stay_together_and_are_refused_where_they_are_too_many():
    size = np.repeat([1e8, 1e8, 2e8, 2e8], 5)
    tokens = size * np.tile(np.geomspace(5, 80, 5), 4) * np.repeat([1, 1.01, 1, 1.01], 5)
    rows = table(size, tokens, group=np.repeat(list("abcd"), 5))
    with pytest.raises(laws.TableError, match="reached by runs with more than 40% of the rows"):
        held(rows)
