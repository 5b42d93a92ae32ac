"""Runs of one params and tokens: a search is not seeds, and what nothing tells apart is said."""

import numpy as np
import pandas as pd
import pytest

from lmscale import laws
from lmscale.laws.table import Table, TableError
from tests.laws import planted

FRAME = planted.runs()
RATES = (0.00025, 0.0005, 0.001, 0.002, 0.004)


def search(name="lr", values=RATES, seeds=None):
    """Every run at each value, whose cost is 0.01 (log2 of value over the third)^2."""
    parts = []
    for value in values:
        cost = 0.01 * np.log2(value / values[len(values) // 2]) ** 2
        part = FRAME.assign(**{name: value, "loss": FRAME["loss"] + cost})
        parts += [part.assign(seed=s, loss=part["loss"] + 0.001 * s) for s in seeds or ()] or [part]
    return pd.concat(parts).sort_values(["params", "tokens"], kind="stable", ignore_index=True)


def runs(table, **options):
    return Table.read(table, **options).runs("params", "tokens", "loss")


@pytest.mark.parametrize(
    "name", ["lr", "learning_rate", "Peak LR", "max_lr", "batch_size", "batch_tokens", "wd"]
)
def test_the_best_of_a_search_is_taken_with_a_warning(name):
    found = runs(search(name))
    np.testing.assert_array_equal(np.sort(found["loss"]), np.sort(FRAME["loss"]))
    (warning,) = found.warnings
    assert warning == (
        f"48 cells of equal params and tokens hold runs that differ in {name}: the best of each is "
        f"fitted, and 192 of 240 rows are left out (cells all takes them for repeats)"
    )


def test_a_search_gives_the_fit_of_its_best_runs():
    fits = [laws.fit(t, "parametric", bootstrap=20, starts="coarse") for t in (FRAME, search())]
    assert fits[0].n_used == fits[1].n_used == 48
    assert fits[1].parameters == pytest.approx(fits[0].parameters, rel=1e-6)
    assert "seeds" not in fits[1].interval_method
    truth = planted.LAW["beta"] / (planted.LAW["alpha"] + planted.LAW["beta"])
    assert fits[1].exponents["given"]["N"] == pytest.approx(truth, abs=0.01)


def test_a_mapped_setting_counts_as_one():
    table = search("eta")
    assert len(runs(table)) == 240
    assert len(runs(table, columns="learning_rate=eta")) == 48


def test_mean_and_all_are_there_for_the_asking():
    table = search()
    costs = 0.01 * np.array([4, 1, 0, 1, 4])
    found = runs(table, cells="mean")
    np.testing.assert_allclose(np.sort(found["loss"]), np.sort(FRAME["loss"] + costs.mean()))
    assert "their mean is fitted" in found.warnings[0]
    found = runs(table, cells="all")
    assert len(found) == 240 and found.warnings == ()
    with pytest.raises(TableError, match="cells must be best, mean, all, not 'worst'"):
        runs(table, cells="worst")


def test_a_mean_stays_a_mean_when_rows_are_held_out():
    table = Table.read(search(), cells="mean")
    whole = table.runs("params", "tokens", "loss")
    some = table.only(whole.row[10:]).runs("params", "tokens", "loss")
    np.testing.assert_array_equal(some["loss"], whole["loss"][10:])


def test_seeds_stay_repeats():
    table = pd.concat([FRAME.assign(seed=s, loss=FRAME["loss"] + 0.001 * s) for s in range(3)])
    found = runs(table)
    assert len(found) == 144 and found.warnings == ()


def test_all_seeds_of_the_best_setting_are_kept():
    found = runs(search(seeds=(0, 1, 2)))
    expected = np.add.outer(0.001 * np.arange(3), FRAME["loss"].to_numpy()).ravel()
    np.testing.assert_allclose(np.sort(found["loss"]), np.sort(expected))


def test_a_setting_is_chosen_by_its_mean_over_seeds_not_by_one_lucky_seed():
    table = {
        "params": [1e6] * 4 + [2e6, 4e6],
        "tokens": [1e8] * 4 + [1e8, 1e8],
        "lr": [1, 1, 2, 2, 1, 1],
        "seed": [0, 1, 0, 1, 0, 0],
        "loss": [4.0, 3.0, 3.4, 3.4, 3.2, 3.1],
    }
    assert runs(table).row.tolist() == [3, 4, 5, 6]


def test_a_best_rate_at_the_edge_of_those_tried_is_said():
    table = search()
    cut = table[table["lr"] >= 0.001]
    assert (
        "in 48 of these cells the best lr is the lowest or highest tried" in runs(cut).warnings[0]
    )


def test_rows_that_nothing_tells_apart_are_said_and_a_column_to_split_by_is_offered():
    table = pd.concat(
        [FRAME.assign(data="c4", run=range(48)), FRAME.assign(data="pile", run=range(48, 96))]
    )
    table["loss"] += np.where(table["data"] == "pile", 0.3, 0.0)
    found = runs(table)
    (warning,) = found.warnings
    assert len(found) == 96 and warning == (
        "96 rows share their params and tokens with another row and no seed or setting tells them "
        "apart: they are taken for repeats; choose cells best or mean, or split by data (2 values)"
    )
    best, mean = (np.sort(runs(table, cells=cells)["loss"]) for cells in ("best", "mean"))
    np.testing.assert_allclose(best, np.sort(FRAME["loss"]))
    np.testing.assert_allclose(mean, np.sort(FRAME["loss"]) + 0.15)
    for part in Table.read(table).split("data").values():
        assert part.runs("params", "tokens", "loss").warnings == ()


def test_groups_that_share_sizes_are_said():
    table = pd.concat([FRAME.assign(family=name) for name in ("lstm", "transformer")])
    (warning,) = runs(table).warnings
    assert "48 cells of equal params and tokens hold runs of several groups (lstm, tran" in warning


def test_laws_that_read_curves_or_batches_keep_every_row():
    table = Table.read(search("batch_tokens").assign(steps=np.arange(240) + 1.0))
    assert len(table.runs("loss", "steps", "batch_tokens")) == 240
    assert len(table.runs("params", "steps", "loss")) == 240
