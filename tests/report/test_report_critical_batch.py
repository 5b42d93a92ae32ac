"""The section on the critical batch: its finding, its table, its figures and its warnings."""

import pytest

from lmscale.report import analyse
from tests.report import planted_curves as planted
from tests.studies.test_critical_batch import b_crit, bent, results_of, with_noise


@pytest.fixture(scope="module")
def section(tmp_path_factory):
    return analyse("critical_batch", with_noise(tmp_path_factory.mktemp("batch")))


def test_every_loss_is_shown(section):
    (grid,) = section.grids
    for row in grid.rows:
        found = float(row[4].rstrip("k")) * (1e3 if row[4].endswith("k") else 1)
        assert found == pytest.approx(b_crit(float(row[1])), rel=0.15)
    assert section.conclusive and len(section.key_numbers) == 3
    assert "2 sizes together, losses from" in section.measures["power"].what


def test_it_says_what_to_give_to_the_other_experiments(section):
    assert "--critical-batch" in section.details[0]
    assert [chart.name for chart in section.charts] == ["batch-hyperbolas", "critical-batch"]


@pytest.mark.slow
def test_batches_that_miss_the_hyperbola_are_told(tmp_path, section):
    found = analyse("critical_batch", results_of(tmp_path, law=bent))
    assert any("depends on which batches were run" in text for text in found.warnings)
    assert not any("which batches" in text for text in section.warnings)


def test_three_batches_are_too_few(tmp_path):
    runs = planted.batch_runs((2, 8, 32), seeds=(0,))
    section = analyse("critical_batch", results_of(tmp_path, runs))
    assert section.finding.startswith("No law yet")
    assert all(m.value is None and m.undecided_because for m in section.measures.values())


def test_one_seed_is_said_to_have_no_intervals(tmp_path):
    runs = planted.batch_runs((2, 4, 8, 16), seeds=(0,))
    section = analyse("critical_batch", results_of(tmp_path, runs))
    assert "Fewer than 3 seeds a batch: there are no intervals." in section.warnings
    assert not section.conclusive and section.key_numbers[2].value == "–"
