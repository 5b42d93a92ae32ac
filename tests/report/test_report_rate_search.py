"""The search for the learning rate: every cell is shown, and the edge is told from the inside."""

import math

import numpy as np
import pytest

from lmscale.report import analyse, caveats
from lmscale.report.sections import families, position, rate_search, size
from lmscale.report.sections.rate_search import search_grid
from lmscale.studies.rate_search import study as study_rates
from tests.studies.test_rate_search import searched


@pytest.fixture(autouse=True)
def undrawn(monkeypatch):
    """Drawing takes most of an analysis' time; one test draws."""
    for analysis in (size, position, families):
        monkeypatch.setattr(analysis, "_chart", lambda *args: None)


@pytest.fixture(scope="module")
def best_inside(tmp_path_factory):
    path = tmp_path_factory.mktemp("search")
    return searched(path, best={"transformer": 1.0, "lstm": 1.0})


def columns(grid, *names):
    """Those columns of every row, as text."""
    at = [grid.header.index(name) for name in names]
    return [tuple(row[i] for i in at) for row in grid.rows]


def test_every_cell_and_factor_is_shown_with_the_best(best_inside, drawn):
    section = analyse("rate_search", best_inside)
    (grid,) = section.grids
    assert len(grid.rows) == 6
    for *losses, best in columns(grid, "×0.5", "×1", "×2", "best"):
        losses = [float(x) for x in losses]
        assert best == "×1" and losses[1] == min(losses)
    assert "inside the search in 6 of 6 cells" in section.finding
    # A factor of two away from the best: 0.05 ln(2)^2.
    for cost in [
        float(x) for x in section.finding.split("cost ")[1].split(" nats")[0].split(" to ")
    ]:
        assert cost == pytest.approx(0.05 * math.log(2) ** 2, abs=0.002)
    assert not section.warnings
    (chart,) = section.charts
    assert "LSTM" in chart.alt and "Transformer" in chart.alt


def test_the_rules_rate_of_each_architecture_is_shown(best_inside):
    study = best_inside
    (grid,) = analyse("rate_search", study).grids
    for family, rate in columns(grid, "family", "rule's rate"):
        kind = "lstm" if "LSTM" in family else "transformer"
        own = study.table[study.table["architecture"] == kind]
        assert np.isclose(own["peak_lr"] / own["lr_factor"], float(rate), rtol=0.05).any()


@pytest.mark.parametrize(("best", "where"), [(0.25, "lowest"), (8.0, "highest")])
def test_a_best_rate_at_the_edge_is_told_wherever_models_are_compared(tmp_path, best, where):
    study = searched(tmp_path, best={"transformer": 1.0, "lstm": best})
    section = analyse("rate_search", study)
    assert "inside the search in 3 of 6 cells" in section.finding
    (warning,) = section.warnings
    assert warning.startswith("1-layer LSTM: ") and "in 3 of 3 cells" in warning
    told = [best for (best,) in columns(section.grids[0], "best") if where in best]
    assert len(told) == 3
    for name in ("size", "position", "families"):
        told = analyse(name, study).warnings
        assert any("at the edge of the search" in w for w in told), name


def test_two_factors_have_no_inside(tmp_path):
    """Of two rates one is always the lowest and the other the highest."""
    study = searched(tmp_path, best={"transformer": 1.0, "lstm": 1.0}, factors=(0.5, 1.0))
    section = analyse("rate_search", study)
    assert "inside the search in 0 of 6 cells" in section.finding
    assert len(section.warnings) == 2


def test_a_lost_run_is_shown_as_lost(tmp_path):
    # The first cell's highest factor loses both of its seeds, its middle factor one.
    study = searched(
        tmp_path,
        best={"transformer": 1.0, "lstm": 1.0},
        status=lambda index, run: "diverged" if index in (3, 4, 5) else "done",
    )
    (grid,) = analyse("rate_search", study).grids
    ((middle, highest), *_) = columns(grid, "×1", "×2")
    assert middle.endswith("(1 seed lost)") and highest == "lost"


def test_no_search_is_said_and_no_table_is_shown(tmp_path):
    study = searched(tmp_path, best={"transformer": 1.0, "lstm": 1.0}, factors=(1.0,))
    section = analyse("rate_search", study)
    assert "none was searched" in section.finding and not section.grids
    assert search_grid([]) == [] and caveats.search_edges(study) == []
    assert any("at the rate of a rule" in w for w in section.warnings)


def test_a_size_that_several_budgets_have_is_named_once(best_inside):
    """With an entry a cell the legend of 30 cells pushed the axes out of the figure."""
    cells = study_rates(best_inside).cells
    chart = rate_search._chart([*cells, *cells, *cells])
    for axes in chart.figure.axes:
        names = [text.get_text() for text in axes.get_legend().get_texts()]
        assert len(names) == len(set(names)) == 3
