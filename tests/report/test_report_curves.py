"""The section on training curves: how the runs ended, in words, a table and a figure."""

from lmscale.report import analyse
from lmscale.studies import Results
from tests.report import planted_store as planted
from tests.studies.test_curves import STATUSES


def test_how_the_runs_ended_is_said_and_shown(tmp_path, drawn):
    runs = planted.size_runs(layers=(1,), seeds=(0,))
    planted.plant(
        tmp_path, runs, analyses=["curves"], status=lambda i, run: STATUSES.get(i, "done")
    )
    section = analyse("curves", Results.read(tmp_path))
    assert section.finding.startswith("5 of 10 runs trained to the end; 2 failed, 1 ")
    assert "2 runs failed: 2× ValueError: <planted> failure." in section.warnings
    (grid,) = section.grids
    assert [row[:3] for row in grid.rows] == [["Transformer", "5", "1"], ["1-layer LSTM", "5", "4"]]
    (chart,) = section.charts
    assert "Dashed: runs that did not end well. Red crosses mark where 1 run" in chart.caption
    assert chart.alt == "Training curves of 9 runs of Transformer and 1-layer LSTM; 1 diverged."


def test_all_done_and_nothing_declared(tmp_path):
    runs = planted.size_runs(layers=(), seeds=(0,))
    planted.plant(tmp_path / "done", runs, analyses=["curves"])
    section = analyse("curves", Results.read(tmp_path / "done"))
    assert section.finding == "All 5 runs trained to the end, none diverged."
    assert not section.warnings
    planted.plant(tmp_path / "empty", [], analyses=["curves"])
    section = analyse("curves", Results.read(tmp_path / "empty"))
    assert section.finding == "No runs are declared." and not section.charts
