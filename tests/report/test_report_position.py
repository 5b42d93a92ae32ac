"""The section on loss by position: what it says of planted curves, and the means it shows."""

import numpy as np
import pytest

from lmscale import flops
from lmscale.report import analyse
from lmscale.report.sections import position as position_section
from lmscale.studies import Results
from lmscale.studies.position import spans
from lmscale.wording import si
from tests.report import planted_store as planted
from tests.report.fixtures import undrawn_section

undrawn = undrawn_section(position_section)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    store = planted.plant_sizes(tmp_path_factory.mktemp("size"), "position")
    return Results.read(store)


@pytest.fixture(scope="module")
def section(results):
    return analyse("position", results)


def test_position_tells_where_each_architecture_stops(section):
    assert f"stops improving after about {planted.LSTM_STOPS} tokens" in section.finding
    assert f"the Transformer improves through all {planted.N_CTX}" in section.finding
    assert "extra loss grows from" in section.finding
    assert len(section.grids[1].rows) == 3


def test_a_law_that_does_not_hold_is_refused(section):
    assert any("does not describe 5 of 10 curves" in warning for warning in section.warnings)


def test_a_family_below_the_transformer_has_a_lead(tmp_path, undrawn):
    """Its own difference is negative, so where that rises the lead shrinks."""

    def ahead(spec):
        lead = 0.5 if spec.model.kind == "lstm" else 0.0
        return planted.SizeLaw()(spec) - planted.LSTM_GAP * (lead > 0) - lead

    planted.plant(tmp_path, planted.size_runs(layers=(1,)), analyses=["position"], law=ahead)
    section = analyse("position", Results.read(tmp_path))
    assert "the 1-layer LSTM's lead shrinks from 0." in section.finding


def test_a_matched_pair_names_both_sizes(results, section):
    usable = results.usable
    largest = [usable[usable["family"] == f]["params_kaplan"].max() for f in results.families]
    assert all(si(n) in section.finding for n in largest)


def test_the_losses_over_spans_are_the_means_of_their_positions(results, section):
    grid = section.grids[-1]
    assert grid.header[3:] == ["T = 1 to 16", "T = 17 to 64", "T = 65 to 128"]
    usable = results.usable
    for row in grid.rows:
        lstm = "LSTM" in row[0]
        own = usable[usable["family"] == ("lstm, 1 layer" if lstm else "transformer")]
        runs = own[[si(n) == row[1] for n in own["params_kaplan"]]]["run"]
        curves = np.array([results.ended[run]["loss_by_position"]["valid"] for run in runs])
        assert int(row[2]) == len(curves)
        for text, (first, last) in zip(row[3:], spans(planted.N_CTX), strict=True):
            truth = curves[:, first - 1 : last].mean()
            assert float(text.split(" (")[0]) == pytest.approx(truth, abs=0.01)


def test_a_measure_names_its_positions(tmp_path, monkeypatch, undrawn):
    monkeypatch.setattr(planted, "N_CTX", 512)
    runs = planted.size_runs(layers=(1,))
    runs = [run for run in runs if 8e4 < flops.n_params(run.spec.model, "kaplan") < 1.2e5]
    planted.plant(tmp_path, runs, analyses=["position"], law=planted.SizeLaw())
    what = analyse("position", Results.read(tmp_path)).measures["lstm_gain"].what
    middle = round(np.sqrt(100 * 512))
    assert f"101 to {middle} on to {middle + 1} to 512" in what
