"""The section on loss against size: what it says of a planted gap, and where there is none."""

import dataclasses

import pytest

from lmscale.report import analyse
from lmscale.report.sections import size as size_section
from lmscale.studies import Results
from tests.report import planted_store as planted
from tests.report.fixtures import undrawn_section

undrawn = undrawn_section(size_section)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    store = planted.plant_sizes(tmp_path_factory.mktemp("size"), "size")
    return Results.read(store)


@pytest.fixture(scope="module")
def section(results):
    return analyse("size", results)


def test_the_gap_is_said_and_shown(section):
    assert "the 1-layer LSTM ends 0." in section.finding
    assert "times the parameters for the same loss" in section.finding
    (grid,) = [g for g in section.grids if g.caption.startswith("Loss above")]
    middle = float(grid.rows[1][2].split(" (")[0])
    assert middle == pytest.approx(planted.LSTM_GAP, abs=0.03)
    assert any("1 run left out" in warning for warning in section.warnings)
    assert "3 seeds a size" in section.measures["gap"].what
    assert "N = 400k" in section.measures["gap_at_400k"].what
    assert section.conclusive and len(section.charts) == 1


def test_a_gap_from_one_seed_is_said_without_an_interval(results, undrawn):
    one = results.table[results.table["seed"] == 0].reset_index(drop=True)
    section = analyse("size", dataclasses.replace(results, table=one))
    assert "(no interval" in section.finding
    assert any("with a single seed, whose spread is unknown" in w for w in section.warnings)


def test_a_family_below_the_transformer_has_a_lead(tmp_path, undrawn):
    def ahead(spec):
        lead = 0.5 if spec.model.kind == "lstm" else 0.0
        return planted.SizeLaw()(spec) - planted.LSTM_GAP * (lead > 0) - lead

    planted.plant(tmp_path, planted.size_runs(layers=(1,)), analyses=["size"], law=ahead)
    section = analyse("size", Results.read(tmp_path))
    lead = section.details[0].split("the 1-layer LSTM's lead goes from ")[1].split(" (")[0]
    assert float(lead) == pytest.approx(0.5, abs=0.03)
    assert "below the Transformer" in section.finding


def test_two_sizes_are_no_law(tmp_path):
    runs = [run for run in planted.size_runs(layers=()) if run.spec.model.d_model < 48]
    planted.plant(tmp_path, runs, analyses=["size"], law=planted.SizeLaw())
    section = analyse("size", Results.read(tmp_path))
    assert section.finding == "No law yet. Transformer: 2 sizes, and a power law needs 3."
    assert section.charts and not section.conclusive


def test_nothing_declared(tmp_path):
    planted.plant(tmp_path, [], analyses=["size"])
    section = analyse("size", Results.read(tmp_path))
    assert section.finding == "No law yet. No runs are declared." and not section.charts


def test_sizes_of_unequal_training_do_not_head_the_page(tmp_path, undrawn):
    runs = planted.isoflop_runs((1e12, 3e12), lstm=False, seeds=(0,))
    section = analyse("size", Results.read(planted.plant(tmp_path, runs, analyses=["size"])))
    assert not section.conclusive
    assert any("part of the trend is that of the data" in w for w in section.warnings)
