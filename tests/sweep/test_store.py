import pandas as pd
import pytest

from lmscale.sweep.experiment import Run
from lmscale.sweep.result_table import mark_best_lr
from lmscale.sweep.store import Store, StoreError
from tests.training.specs import run_spec


def table(**columns):
    return pd.DataFrame({"status": "done", "steps": 10, **columns})


def test_the_best_learning_rate_of_a_cell_is_that_of_the_lowest_mean_loss():
    rows = table(
        family=["t"] * 6,
        lr_factor=[1, 1, 2, 2, 4, 4],
        loss=[3.0, 3.2, 2.9, 3.1, 2.0, 9.0],
    )
    assert list(mark_best_lr(rows)["best_lr"]) == [False, False, True, True, False, False]


def test_a_run_without_a_loss_is_never_best():
    rows = table(lr_factor=[1, 2], loss=[float("nan"), 3.0]).assign(status=["diverged", "done"])
    assert list(mark_best_lr(rows)["best_lr"]) == [False, True]


def test_a_rate_at_which_a_seed_diverges_does_not_win_by_the_seeds_that_are_left():
    losses = [3.0, 3.2, float("nan"), 2.0]
    rows = table(lr_factor=[1, 1, 2, 2], loss=losses)
    rows = rows.assign(status=["done", "done", "diverged", "done"])
    assert list(mark_best_lr(rows)["best_lr"]) == [True, True, False, False]


def test_cells_do_not_mix():
    rows = table(budget=[1, 1, 2, 2], lr_factor=[1, 2, 1, 2], loss=[3.0, 4.0, 2.0, 1.0])
    assert list(mark_best_lr(rows)["best_lr"]) == [True, False, False, True]


def test_rates_that_only_some_sizes_of_a_budget_have_tried_count_for_none():
    """The middle size would look better than its neighbours, whose rates were not searched."""
    rows = table(
        family="t",
        budget=[1, 1, 1, 1, 1, 2, 2],
        width=[8, 16, 16, 16, 32, 16, 16],
        lr_factor=[1.0, 0.5, 1.0, 2.0, 1.0, 1.0, 2.0],
        loss=[3.0, 2.8, 2.9, 3.1, 3.0, 2.5, 2.4],
    )
    assert list(mark_best_lr(rows)["best_lr"]) == [True, False, True, False, True, False, True]
    # Runs of no budget, and of no search, beside them.
    rows = table(
        family=["t", "t", "u"], budget=[1, 1, float("nan")], lr_factor=[1, 2, float("nan")]
    )
    rows = rows.assign(loss=[2.0, 1.0, 3.0])
    assert list(mark_best_lr(rows)["best_lr"]) == [False, True, True]
    # Without a factor that all have tried, each keeps its best.
    rows = table(budget=1, width=[8, 16, 16], lr_factor=[1.0, 0.5, 2.0], loss=[3.0, 2.8, 2.9])
    assert list(mark_best_lr(rows)["best_lr"]) == [True, True, False]


def test_a_folder_without_an_experiment_is_refused(tmp_path):
    with pytest.raises(StoreError, match=r"experiment.json"):
        Store.open(tmp_path)


def test_results_of_another_store_are_taken_over_as_they_are(tmp_path):
    first, second = Store(tmp_path / "a"), Store(tmp_path / "b")
    done, other = Run(run_spec(), {}), Run(run_spec(seed=1), {})
    for store in (first, second):
        for run in (done, other):
            store.folder(run).create()
    folder = first.folder(done)
    folder.append_metrics([{"step": 12, "loss": 3.0}])
    folder.write_status("done", step=12, seconds=1.5)
    folder.write_result({"status": "done", "losses": {"valid": 3.0}})
    assert second.adopt(first, [done, other]) == 1
    assert second.folder(done).result() == folder.result()
    assert second.folder(done).metrics() == folder.metrics()
    assert second.folder(other).result() is None
    assert second.adopt(first, [done, other]) == 0
