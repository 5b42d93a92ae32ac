"""Loss by position: planted laws come back, and what cannot be told is said."""

import numpy as np
import pytest

from lmscale import flops
from lmscale.report import analyse
from lmscale.report.analyses import position as position_analysis
from lmscale.report.analyses.position import octave_means, scatter, stops_improving
from lmscale.report.position_tables import spans
from lmscale.studies.results import Results
from lmscale.wording import si
from tests.report import planted_store as planted


@pytest.fixture
def undrawn(monkeypatch):
    """Drawing takes most of an analysis' time, and one test of it will do."""
    monkeypatch.setattr(position_analysis, "_chart", lambda *args: None)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    store = planted.plant(
        tmp_path_factory.mktemp("size"),
        planted.size_runs(layers=(1,)),
        analyses=["position"],
        law=planted.SizeLaw(),
        noise=0.01,
        status=lambda index, run: "diverged" if index == 4 else "done",
    )
    return Results.read(store)


@pytest.fixture(scope="module")
def position(study):
    return analyse("position", study)


def test_position_tells_where_each_architecture_stops(position):
    assert f"stops improving after about {planted.LSTM_STOPS} tokens" in position.finding
    assert f"the Transformer improves through all {planted.N_CTX}" in position.finding
    assert "extra loss grows from" in position.finding
    pairs = position.grids[1].rows
    assert len(pairs) == 3
    shape = planted.position_shape(True) - planted.position_shape(False)
    late = shape[planted.N_CTX // 2 :].mean() - shape[: planted.N_CTX // 16].mean()
    for row in pairs:
        value, interval = row[5].split(" (")
        assert float(value) == pytest.approx(late, abs=0.05)
        low, high = (float(x) for x in interval.rstrip(")").split(" to "))
        assert low < late < high


def test_the_law_of_position_is_fitted_and_refused_where_it_does_not_hold(position):
    transformers = [fit for key, fit in position.fits.items() if key.startswith("transformer/")]
    assert len(transformers) == 5
    for fit in transformers:
        assert fit.parameters["c"] == pytest.approx(0.5, abs=0.05)
    assert any("does not describe 5 of 10 curves" in warning for warning in position.warnings)


def test_a_family_below_the_transformer_has_a_lead(tmp_path, undrawn):
    """Its own difference is negative, so where that rises the lead shrinks."""

    def ahead(spec):
        lead = 0.5 if spec.model.kind == "lstm" else 0.0
        return planted.SizeLaw()(spec) - planted.LSTM_GAP * (lead > 0) - lead

    store = planted.plant(
        tmp_path, planted.size_runs(layers=(1,)), analyses=["position"], law=ahead
    )
    study = Results.read(store)
    assert "the 1-layer LSTM's lead shrinks from 0." in analyse("position", study).finding


def test_a_matched_pair_names_both_sizes(study, position):
    largest = [
        study.usable[study.usable["family"] == f]["params_kaplan"].max() for f in study.families
    ]
    assert all(si(n) in position.finding for n in largest)


def test_stops_improving_with_and_without_an_end():
    position = np.arange(1, 257)
    falling = 4 + 2 * position**-0.3
    assert stops_improving(falling[None])[0] == 256
    flat = 4 + 2 * np.minimum(position, 32) ** -0.3
    assert stops_improving(flat[None]) == (32, (32, 63))


def test_noise_of_the_text_widens_where_it_stops():
    rng = np.random.default_rng(3)
    position = np.arange(1, 257)
    flat = 4 + 0.5 * np.minimum(position, 32) ** -0.3
    _, (quiet_low, quiet_high) = stops_improving(flat + 0.001 * rng.standard_normal((3, 256)))
    _, (low, high) = stops_improving((flat + 0.3 * rng.standard_normal(256))[None])
    assert high - low > quiet_high - quiet_low


@pytest.mark.parametrize("length", [1, 16])
def test_noise_that_neighbours_share_counts_in_a_mean_of_positions(length):
    """Text that makes whole stretches of positions harder is not seen in differences of neighbours."""
    rng = np.random.default_rng(4)
    position = np.arange(1, 513)
    noise = [0.05 * np.repeat(rng.standard_normal(-(-512 // length)), length) for _ in range(60)]
    curves = 3 * position**-0.5 + np.array(noise)
    # What a mean over half of the positions really varies by from text to text.
    truth = curves[:, 256:].mean(axis=1).std() * np.sqrt(256)
    found = np.median([scatter(curve) for curve in curves])
    assert found == pytest.approx(truth, rel=0.35)


def test_spans_are_those_of_the_comparison_and_then_double():
    assert spans(256) == [(1, 16), (17, 64), (65, 128), (129, 256)]
    assert spans(1024)[3:] == [(129, 256), (257, 512), (513, 1024)]
    assert spans(300)[-1] == (257, 300)
    assert spans(16) == [(1, 16)] and spans(40) == [(1, 16), (17, 40)]


def test_the_losses_over_spans_are_the_means_of_their_positions(study, position):
    grid = position.grids[-1]
    assert grid.header[3:] == ["T = 1 to 16", "T = 17 to 64", "T = 65 to 128"]
    usable = study.usable
    for row in grid.rows:
        lstm = "LSTM" in row[0]
        own = usable[usable["family"] == ("lstm, 1 layer" if lstm else "transformer")]
        runs = own[[si(n) == row[1] for n in own["params_kaplan"]]]["run"]
        curves = np.array([study.ended[run]["loss_by_position"]["valid"] for run in runs])
        assert int(row[2]) == len(curves)
        for text, (first, last) in zip(row[3:], spans(planted.N_CTX), strict=True):
            truth = curves[:, first - 1 : last].mean()
            assert float(text.split(" (")[0]) == pytest.approx(truth, abs=0.01)


def test_octaves_hold_their_positions():
    starts, means, errors = octave_means(np.arange(1, 101, dtype=float)[None])
    assert list(starts) == [1, 2, 4, 8, 16, 32, 64]
    assert means[3] == np.mean(np.arange(8, 16))
    assert means[-1] == np.mean(np.arange(64, 101))
    starts, _, _ = octave_means(np.zeros((1, 70)))
    assert starts[-1] == 32
    assert np.allclose(errors, 0)


def test_what_each_gains_beyond_a_hundred_tokens(tmp_path, monkeypatch, undrawn):
    monkeypatch.setattr(planted, "N_CTX", 512)
    runs = planted.size_runs(layers=(1,))
    runs = [run for run in runs if 8e4 < flops.n_params(run.spec.model, "kaplan") < 1.2e5]
    study = Results.read(
        planted.plant(tmp_path, runs, analyses=["position"], law=planted.SizeLaw())
    )
    measures = analyse("position", study).measures
    middle = round(np.sqrt(100 * 512))

    def gain(curve):
        return curve[100:middle].mean() - curve[middle:].mean()

    for name, truth in (
        ("transformer_gain", gain(planted.position_shape(False))),
        ("lstm_gain", 0.0),
        ("behind_beyond", gain(planted.position_shape(False))),
    ):
        low, high = measures[name].interval
        assert low < truth < high, name
    assert measures["behind_beyond"].interval[0] > 0
    assert f"101 to {middle} on to {middle + 1} to 512" in measures["lstm_gain"].what


def test_a_short_context_has_nothing_beyond_a_hundred_tokens(position):
    assert "leaves no doubling" in position.measures["lstm_gain"].undecided_because
    assert position.measures["early"].interval is not None
