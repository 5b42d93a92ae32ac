"""Errors of losses over documents, against simulation and closed forms."""

import numpy as np
import pytest

from lmscale.laws.windows import paired_difference, resample_documents, text_mean


def planted(rng, n_documents=60, per_document=5, between=0.3, within=0.2):
    """Losses of windows that share what is hard about their document."""
    documents = np.repeat(np.arange(n_documents), per_document)
    hard = rng.normal(0, between, n_documents)[documents]
    return 3 + hard + rng.normal(0, within, len(documents)), documents


def test_one_window_a_document_is_the_standard_error_of_a_mean():
    losses = np.random.default_rng(0).normal(3, 0.5, 100)
    found = text_mean(losses, range(100))
    assert found.mean == pytest.approx(losses.mean())
    assert found.error == pytest.approx(losses.std(ddof=1) / 10)
    assert (found.n_windows, found.n_documents) == (100, 100)


def test_the_error_is_the_spread_over_fresh_documents():
    rng = np.random.default_rng(1)
    found = [text_mean(*planted(rng)) for _ in range(400)]
    spread = np.std([one.mean for one in found])
    # Windows taken for independent would give 0.021 instead of 0.041.
    assert np.mean([one.error for one in found]) == pytest.approx(spread, rel=0.1)
    naive = np.std(planted(rng)[0]) / np.sqrt(300)
    assert naive < 0.6 * spread


def test_pairs_take_out_what_is_hard_for_both():
    rng = np.random.default_rng(2)
    losses, documents = planted(rng)
    better = losses - 0.05 + rng.normal(0, 0.02, len(losses))
    found = paired_difference(better, losses, documents)
    assert found.mean == pytest.approx(-0.05, abs=0.01)
    assert found.error < 0.1 * text_mean(losses, documents).error
    with pytest.raises(ValueError, match="the same windows, not 299 and 300"):
        paired_difference(better[1:], losses, documents)


def test_one_document_has_no_error():
    assert np.isnan(text_mean([1.0, 2.0], [0, 0]).error)


def test_resampled_documents_have_the_closed_form_spread():
    rng = np.random.default_rng(3)
    losses, documents = planted(rng)
    both = np.stack([losses, losses - 0.1])
    drawn = np.stack(list(resample_documents(both, documents, 2000)))
    assert drawn.shape == (2000, 2)
    assert drawn[:, 0].std() == pytest.approx(text_mean(losses, documents).error, rel=0.06)
    # A constant difference stays in every draw.
    np.testing.assert_allclose(drawn[:, 0] - drawn[:, 1], 0.1)
