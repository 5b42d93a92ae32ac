"""Loss by position: planted laws come back, and what cannot be told is said."""

import numpy as np
import pytest

from lmscale import flops
from lmscale.data.loader import overlapping_starts
from lmscale.studies import Results, position
from lmscale.studies.position import contrast, octave_means, scatter, spans, stops_improving
from tests.report import planted_store as planted


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    store = planted.plant_sizes(tmp_path_factory.mktemp("size"), "position")
    return position.study(Results.read(store))


def test_each_architecture_stops_where_it_was_planted(found):
    assert len(found.pairs) == 3
    pair = found.pairs[-1]
    assert pair.other.stop == planted.LSTM_STOPS and pair.other.stops
    assert pair.base.stop == planted.N_CTX and not pair.base.stops


def test_the_widening_comes_back(found):
    shape = planted.position_shape(True) - planted.position_shape(False)
    late = shape[planted.N_CTX // 2 :].mean() - shape[: planted.N_CTX // 16].mean()
    for pair in found.pairs:
        assert pair.widening.value == pytest.approx(late, abs=0.05)
        assert pair.widening.interval[0] < late < pair.widening.interval[1]


def test_the_law_of_position_is_fitted(found):
    transformers = [fit for key, fit in found.fits.items() if key.startswith("transformer/")]
    assert len(transformers) == 5
    for fit in transformers:
        assert fit.parameters["c"] == pytest.approx(0.5, abs=0.05)


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


def test_octaves_hold_their_positions():
    starts, means, errors = octave_means(np.arange(1, 101, dtype=float)[None])
    assert list(starts) == [1, 2, 4, 8, 16, 32, 64]
    assert means[3] == np.mean(np.arange(8, 16))
    assert means[-1] == np.mean(np.arange(64, 101))
    starts, _, _ = octave_means(np.zeros((1, 70)))
    assert starts[-1] == 32
    assert np.allclose(errors, 0)


def test_what_each_gains_beyond_a_hundred_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(planted, "N_CTX", 512)
    runs = planted.size_runs(layers=(1,))
    runs = [run for run in runs if 8e4 < flops.n_params(run.spec.model, "kaplan") < 1.2e5]
    planted.plant(tmp_path, runs, analyses=["position"], law=planted.SizeLaw())
    estimates = position.study(Results.read(tmp_path)).estimates
    middle = round(np.sqrt(100 * 512))

    def gain(curve):
        return curve[100:middle].mean() - curve[middle:].mean()

    for name, truth in (
        ("transformer_gain", gain(planted.position_shape(False))),
        ("lstm_gain", 0.0),
        ("behind_beyond", gain(planted.position_shape(False))),
    ):
        low, high = estimates[name].interval
        assert low < truth < high, name
        assert estimates[name].at == (101, middle, middle + 1, 512)
    assert estimates["behind_beyond"].interval[0] > 0


def test_a_short_context_has_nothing_beyond_a_hundred_tokens(found):
    assert "leaves no doubling" in found.estimates["lstm_gain"].undecided_because
    assert found.estimates["early"].interval is not None


def test_without_a_pair_nothing_is_estimated(tmp_path):
    planted.plant(tmp_path, planted.size_runs(layers=(), seeds=(0,)), analyses=["position"])
    found = position.study(Results.read(tmp_path))
    assert found.curves and not found.pairs and len(found.estimates) == 4
    for one in found.estimates.values():
        assert one.value is None and "no LSTM and Transformer" in one.undecided_because


# --- overlapping windows ------------------------------------------------------------------------

GAIN = [((101, 160), 1), ((161, 256), -1)]


def readings(rng, gain=0.01, seeds=3):
    """(plain [seed, position], overlapping [seed, stretch, position]) of one text of tokens that differ by nats."""
    text = 1.8 * rng.standard_normal(200_001)
    # Loss falls beyond 100 tokens, by another amount in every 4,000 tokens of text.
    slope = gain + 0.004 * np.repeat(rng.standard_normal(51), 4000)[: len(text)]
    ramp = np.interp(np.arange(1, 257), [1, 100, 256], [-2, 0, 256 - 100]) / np.ptp([130.5, 208.5])
    own = 0.003 * rng.standard_normal((seeds, 1, 256))

    def read(starts):
        targets = starts[..., None] + np.arange(1, 257)
        return (text[targets] - slope[targets] * ramp).mean(axis=-2)

    tokens = 2**18
    spread = np.arange(0, 200_000 - 256, 256)[: tokens // 256]
    return read(spread) + own[:, 0], read(overlapping_starts(len(text), 256, tokens)) + own


def test_overlapping_windows_tell_gains_that_the_text_hides():
    rng, found = np.random.default_rng(0), {"plain": [], "overlapping": []}
    for _ in range(200):
        for kind, losses in zip(found, readings(rng), strict=True):
            found[kind].append(contrast("gain", GAIN, losses).interval)
    low, high = np.array(found["overlapping"]).T
    width = {kind: np.median(np.ptp(edges, axis=1)) for kind, edges in found.items()}
    assert width["overlapping"] < width["plain"] / 4
    # A binomial share of 200 has a standard deviation of 0.015.
    assert 0.91 < np.mean((low < 0.01) & (high > 0.01)) <= 1.0
    # What a gain of nothing would be taken for.
    assert np.mean(low > 0) > 0.9


def test_the_study_reads_overlapping_windows_where_runs_have_them(tmp_path):
    runs = planted.overlapping(planted.size_runs(layers=(1,)))
    store = planted.plant(tmp_path / "runs", runs, analyses=["position"], law=planted.SizeLaw())
    found = position.study(Results.read(store))
    (shape,) = {curve.by_stretch.shape for curve in found.curves}
    assert shape == (3, 12, planted.N_CTX)
    pair = found.pairs[-1]
    assert pair.other.stop == planted.LSTM_STOPS and pair.base.stop == planted.N_CTX
    late = planted.position_shape(True) - planted.position_shape(False)
    late = late[planted.N_CTX // 2 :].mean() - late[: planted.N_CTX // 16].mean()
    low, high = pair.widening.interval
    assert low < late < high and high - low < 0.02


def test_a_text_of_few_stretches_is_read_at_equal_distances(tmp_path, monkeypatch):
    monkeypatch.setattr(planted, "STRETCHES", 5)
    runs = planted.overlapping(planted.size_runs(layers=(1,)))
    store = planted.plant(tmp_path / "runs", runs, analyses=["position"], law=planted.SizeLaw())
    found = position.study(Results.read(store))
    assert {curve.by_stretch.shape[1] for curve in found.curves} == {1}


def test_of_stretches_only_their_differences_hide_where_a_curve_stops():
    """Hard text is hard at all positions."""
    rng = np.random.default_rng(3)
    flat = 4 + 0.5 * np.minimum(np.arange(1, 257), 32) ** -0.3
    losses = (
        flat + 0.5 * rng.standard_normal((1, 12, 1)) + 0.001 * rng.standard_normal((3, 12, 256))
    )
    stop, (low, high) = stops_improving(losses)
    assert low <= stop <= high and high - low < 64
