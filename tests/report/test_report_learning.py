"""The section on the law of size and steps: what it says of a planted law, and of none."""

import numpy as np

from lmscale.report import analyse
from lmscale.report.figures import _told_apart
from tests.report import planted_curves as planted
from tests.studies.test_learning import BATCH, wrong


def test_the_law_is_said_and_drawn(tmp_path, drawn):
    runs = planted.ladder_runs()
    study = planted.plant(tmp_path, runs, analyses=["learning"], critical_batch=BATCH)
    section = analyse("learning", study)
    assert "describes the learning curves of 7 sizes within 0." in section.finding
    assert section.measures["alpha_S"].what.endswith("L(N, S_min), 7 sizes, 3 seeds each")
    assert section.conclusive and not section.warnings
    assert section.charts[0].png.startswith(b"\x89PNG")
    (grid,) = section.grids
    assert [row[0] for row in grid.rows] == ["α_S", "S_c", "α_N", "N_c"]


def test_the_papers_critical_batch_stands_in_with_a_warning(tmp_path):
    runs = planted.ladder_runs(planted.SIZES[:3], seeds=(0,))
    section = analyse("learning", planted.plant(tmp_path, runs, analyses=["learning"]))
    assert any("lmscale run batch_size" in warning for warning in section.warnings)


def test_curves_that_are_no_such_law_are_called_so(tmp_path):
    """Curves that cross in the wrong order leave large residuals."""
    runs = planted.ladder_runs(planted.SIZES[:4], seeds=(0,))
    section = analyse("learning", planted.plant(tmp_path, runs, analyses=["learning"], law=wrong))
    assert not section.conclusive
    assert any("stray from the law" in w or "not positive" in w for w in section.warnings)


def test_no_curves_no_law(tmp_path):
    runs = planted.ladder_runs(planted.SIZES[:2], seeds=(0,))
    study = planted.planted.plant(
        tmp_path, runs, analyses=["learning"], status=lambda index, run: "pending"
    )
    assert "No run has evaluations" in analyse("learning", planted.Results.read(study)).finding


def test_a_legend_names_no_two_sizes_of_one_colour():
    assert _told_apart([5.92e3, 6.14e3, 2.4e4, 9.8e4], 7) == [5.92e3, 2.4e4, 9.8e4]
    assert len(_told_apart(list(np.geomspace(1e3, 1e6, 30)), 7)) == 7
    assert _told_apart([1e3], 7) == [1e3]
