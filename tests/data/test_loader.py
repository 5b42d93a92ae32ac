from collections import Counter
from itertools import islice

import grain
import jax.numpy as jnp
import numpy as np
import pytest

from lmscale.data import (
    batch_indices,
    build_corpus,
    evaluation_windows,
    gather,
    gather_on_device,
    n_sequences,
    sequence_order,
)
from lmscale.data.loader import evaluation_sequences, overlapping_starts
from tests.data.prose import documents, write_text

TOKENS = np.random.default_rng(0).integers(0, 2**16, 5000).astype(np.uint16)


def grains_order(order):
    """The same order, one position at a time, by Grain itself."""
    return (
        grain.MapDataset.range(order.n_sequences)
        .shuffle(seed=order.shuffle_seed)
        .repeat()
        .batch(order.batch_size)
    )


@pytest.mark.parametrize(
    ("n", "batch_size", "seed"),
    [
        (1, 3, 0),
        (2, 1, 1),
        (100, 7, 2),
        (1000, 64, 2**31 - 1),
        (2**14, 8, 3),
        (2**14 + 1, 8, 3),
        (50_000, 16, 4),
        (65_536, 16, 5),
        (100_001, 33, 6),
        (3_000_000, 5, 7),
        (2**31 - 1, 5, 8),
    ],
)
def test_the_order_is_grains(n, batch_size, seed):
    order = sequence_order(n, batch_size, seed)
    theirs = grains_order(order)
    # The beginning, and across the end of the first epoch.
    for start in (0, max(0, n // batch_size - 1)):
        expected = np.stack([theirs[step] for step in range(start, start + 3)])
        np.testing.assert_array_equal(batch_indices(order, start, 3), expected)


@pytest.mark.parametrize("n", [1, 2, 3, 17, 1000, 16_384, 16_385, 65_537, 70_000, 262_145])
def test_an_epoch_visits_every_sequence_once(n):
    # 65,537 and 262,145 are where Grain's own shuffle skips one sequence and doubles another.
    order = sequence_order(n, 1, seed=n)
    epochs = batch_indices(order, 0, 2 * n).reshape(2, n)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(n))
    if n > 3:
        assert (epochs[0] != epochs[1]).any()


def test_batches_run_on_across_epochs():
    order = sequence_order(10, 4, seed=0)
    counts = Counter(batch_indices(order, 0, 5).ravel().tolist())
    assert counts == dict.fromkeys(range(10), 2)


@pytest.mark.parametrize("n", [50, 20_000])
def test_the_order_is_a_pure_function_of_seed_and_step(n):
    order = sequence_order(n, 8, seed=3)
    everything = batch_indices(order, 0, 40)
    assert everything.dtype == np.int32
    assert everything.shape == (40, 8)
    for start, stop in ((0, 1), (5, 9), (17, 40), (39, 40), (12, 12)):
        again = sequence_order(n, 8, seed=3)
        np.testing.assert_array_equal(
            batch_indices(again, start, stop - start), everything[start:stop]
        )
    np.testing.assert_array_equal(order[7], everything[7])


def test_seeds_give_unrelated_orders():
    # In Grain, seed s + 1 begins with the second epoch of seed s.
    n = 200
    epochs = {}
    for seed in range(5):
        for epoch in batch_indices(sequence_order(n, n, seed), 0, 5):
            epochs[tuple(epoch)] = seed
    assert len(epochs) == 25


def test_positions_are_spread_evenly():
    # Where the first sequence of an epoch goes, over many epochs: mean and spread of a uniform.
    first = batch_indices(sequence_order(1000, 1000, seed=0), 0, 400)[:, 0]
    assert abs(first.mean() - 499.5) < 5 * 288.7 / 20
    assert 250 < first.std() < 330


def test_far_positions_do_not_overflow():
    order = sequence_order(1_000_003, 4096, seed=1)
    indices = batch_indices(order, 10_000_000, 2)
    assert indices.min() >= 0
    assert indices.max() < 1_000_003


def test_an_order_needs_a_sequence():
    with pytest.raises(ValueError, match="at least one sequence"):
        sequence_order(0, 4, seed=0)


@pytest.mark.parametrize(
    ("n_tokens", "n_ctx", "expected"), [(0, 4, 0), (1, 4, 0), (4, 4, 0), (5, 4, 1), (9, 4, 2)]
)
def test_number_of_sequences(n_tokens, n_ctx, expected):
    assert n_sequences(n_tokens, n_ctx) == expected


def test_sequences_overlap_by_the_token_that_is_predicted():
    n = n_sequences(len(TOKENS), 7)
    windows = gather(TOKENS, np.arange(n), 7)
    assert windows.shape == (n, 8)
    assert windows.dtype == np.int32
    np.testing.assert_array_equal(windows[:, :-1].ravel(), TOKENS[: 7 * n])
    np.testing.assert_array_equal(windows[:, 1:].ravel(), TOKENS[1 : 7 * n + 1])


@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["uint16", pytest.param("uint32", marks=pytest.mark.slow)])
def test_the_device_gathers_what_the_host_gathers(shape, dtype):
    tokens, n_ctx = TOKENS.astype(dtype), 9
    n = n_sequences(len(tokens), n_ctx)
    indices = np.random.default_rng(1).integers(0, n, shape).astype(np.int32)
    if indices.size:
        indices.flat[-1:] = n - 1
    host = gather(tokens, indices, n_ctx)
    device = gather_on_device(jnp.asarray(tokens), jnp.asarray(indices), n_ctx)
    assert host.shape == device.shape == (*shape, n_ctx + 1)
    assert device.dtype == jnp.int32
    np.testing.assert_array_equal(host, device)


def test_a_pipeline_of_grain_gives_the_same_batches():
    n_ctx, start = 16, 35
    order = sequence_order(n_sequences(len(TOKENS), n_ctx), 8, seed=9)
    pipeline = grain.MapDataset.source(order)[start:].map(lambda rows: gather(TOKENS, rows, n_ctx))
    theirs = list(islice(pipeline.to_iter_dataset(grain.ReadOptions(num_threads=2)), 12))
    np.testing.assert_array_equal(theirs, gather(TOKENS, batch_indices(order, start, 12), n_ctx))


@pytest.mark.parametrize(
    ("wanted", "sampling", "expected"),
    [
        (40, "first", [0, 1, 2, 3]),
        # Ten sequences in four stretches of 2.5, of which the middles are 1.25, 3.75, 6.25 and 8.75.
        (40, "spread", [1, 3, 6, 8]),
        (1, "spread", [5]),
        (1000, "spread", list(range(10))),
        (100, "spread", list(range(10))),
    ],
)
def test_evaluation_sequences_are_spread_over_the_split(wanted, sampling, expected):
    found = evaluation_sequences(10 * 10 + 1, 10, wanted, sampling)
    assert found.tolist() == expected
    assert not len(evaluation_sequences(10, 10, wanted, sampling))


def test_evaluation_windows_and_their_documents(tmp_path, monkeypatch):
    monkeypatch.setenv("LMSCALE_DATA", str(tmp_path))
    text = write_text(tmp_path / "text.txt", documents(60))
    corpus = build_corpus("a", [text], vocab_size=320, valid_fraction=0.2, test_fraction=0)
    stored = corpus.tokens("valid")
    windows, _ = evaluation_windows(corpus, "valid", 32, 200)
    assert windows.shape == (6, 33)
    np.testing.assert_array_equal(windows[:, :-1].ravel(), stored[: 6 * 32])
    assert len(evaluation_windows(corpus, "valid", 32, 5)[0]) == 1
    everything, of_everything = evaluation_windows(corpus, "valid", 32, 10**9, "spread")
    assert len(everything) == n_sequences(len(stored), 32)
    assert evaluation_windows(corpus, "test", 32, 200)[0].shape == (0, 33)
    spread, document = evaluation_windows(corpus, "valid", 32, 320, "spread")
    assert len(spread) == len(document) == 10
    # Ten windows reach into every document, from one end of the split to the other.
    assert sorted(set(document)) == list(range(corpus.n_documents("valid")))
    for window, number in zip(everything, of_everything, strict=True):
        # Its middle target is a token of that document, which ends at its own end-of-document token.
        at = np.flatnonzero((everything == window).all(axis=1))[0] * 32 + 17
        assert (stored[:at] == corpus.eod_id).sum() == number
    # Bits per byte of a window are exact: the bytes of its targets are known.
    n_bytes = corpus.token_bytes[windows[0, 1:]].sum()
    assert n_bytes == len(corpus.tokenizer.decode_bytes(windows[0, 1:]))


def test_overlapping_windows_show_every_token_at_eight_positions():
    starts = overlapping_starts(100_001, 64, 12 * 40 * 64)
    assert starts.shape == (12, 40) and (np.diff(starts, axis=1) == 8).all()
    # From one end of the split to the other.
    assert starts[0, 0] < 9_000 and starts[-1, -1] + 65 > 92_000
    for begin, end in zip(starts[:, 0], starts[:, -1] + 64, strict=True):
        row = np.arange(begin, end - 7, 8)
        for target in range(begin + 64, end - 63):
            positions = [target - start for start in row if 0 < target - start <= 64]
            assert len(positions) == 8 and (np.diff(positions) == -8).all()


@pytest.mark.parametrize("n_ctx", [1, 5, 64])
@pytest.mark.parametrize("tokens", [1, 3000, 10**9])
def test_overlapping_windows_stay_in_a_split_of_any_length(n_ctx, tokens):
    for n_tokens in [*range(12 * n_ctx), 1000, 5000, 12_345]:
        starts = overlapping_starts(n_tokens, n_ctx, tokens)
        assert (len(starts) == 0) == (n_tokens < n_ctx + 1)
        if not len(starts):
            continue
        ends = starts[:, -1] + n_ctx + 1
        assert starts.min() >= 0 and ends.max() <= n_tokens
        # Stretches share no targets, and each is of four contexts or more where there is room.
        assert (starts[1:, 0] >= ends[:-1] - 1).all()
        long = min(n_tokens, 4 * n_ctx + 1) - max(1, n_ctx // 8)
        assert (ends - starts[:, 0] >= long).all()


def test_overlapping_windows_and_their_documents(tmp_path, monkeypatch):
    monkeypatch.setenv("LMSCALE_DATA", str(tmp_path))
    text = write_text(tmp_path / "text.txt", documents(60))
    corpus = build_corpus("a", [text], vocab_size=320, valid_fraction=0.2, test_fraction=0)
    stored = corpus.tokens("valid")
    starts = overlapping_starts(len(stored), 16, 2000).reshape(-1)
    windows, document = evaluation_windows(corpus, "valid", 16, 2000, "overlapping")
    for start, window, number in zip(starts, windows, document, strict=True):
        np.testing.assert_array_equal(window, stored[start : start + 17])
        assert (stored[: start + 9] == corpus.eod_id).sum() == number
    assert evaluation_windows(corpus, "test", 16, 2000, "overlapping")[0].shape == (0, 17)


@pytest.mark.parametrize("population", [500, 100_003])
def test_samples_are_nested_spread_out_and_the_same_for_every_seed(population):
    def sample(n, seed):
        order = sequence_order(n, n, seed, population)
        first, second = batch_indices(order, 0, 2)
        assert sorted(first) == sorted(second)
        return set(first.tolist())

    small, large = sample(40, seed=0), sample(160, seed=0)
    assert len(small) == 40 and len(large) == 160
    assert small < large == sample(160, seed=3)
    assert max(large) > 0.9 * population and min(large) < 0.1 * population
