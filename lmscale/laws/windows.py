"""How much a measured loss depends on the text that it was measured on.

A loss is a mean over windows of held-out text. Windows of one document resemble each other, so the
sample is one of documents. The errors here are those of a mean over clusters (the sandwich estimator
for clusters, Liang and Zeger 1986, with G/(G - 1) for G documents).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["TextMean", "paired_difference", "resample_documents", "text_mean"]


@dataclass(frozen=True)
class TextMean:
    """A mean over windows and the standard error that the choice of documents gives it, in nats.

    `error` is NaN where there is only one document.
    """

    mean: float
    error: float
    n_windows: int
    n_documents: int


def text_mean(
    losses: Sequence[float] | np.ndarray, documents: Sequence[int] | np.ndarray
) -> TextMean:
    """The mean loss over windows, and its standard error over documents.

    Args:
      losses: mean loss of each window in nats, [n].
      documents: the document of each window, [n].
    """
    values = np.asarray(losses, float)
    names, where = np.unique(np.asarray(documents), return_inverse=True)
    if values.shape != where.shape or not len(values):
        raise ValueError(f"{values.size} losses need as many documents, not {where.size}")
    mean, n = float(values.mean()), len(names)
    of_documents = np.bincount(where, values - mean)
    error = np.nan
    if n > 1:
        error = float(np.sqrt(n / (n - 1) * np.sum(of_documents**2))) / len(values)
    return TextMean(mean, error, len(values), n)


def paired_difference(
    losses: Sequence[float] | np.ndarray,
    others: Sequence[float] | np.ndarray,
    documents: Sequence[int] | np.ndarray,
) -> TextMean:
    """The mean of `losses` less `others`, of two models on the same windows.

    A window that is hard for one model is hard for the other as well. So the difference is known far
    better than either loss.
    """
    one, other = np.asarray(losses, float), np.asarray(others, float)
    if one.shape != other.shape:
        raise ValueError(f"pairs need the same windows, not {one.size} and {other.size}")
    return text_mean(one - other, documents)


def resample_documents(
    losses: np.ndarray, documents: Sequence[int] | np.ndarray, draws: int, seed: int = 0
) -> Iterator[np.ndarray]:
    """Bootstrap draws of the mean losses of several models: for each draw, float [models].

    Args:
      losses: [models, n] on the same n windows.
      documents: the document of each window, [n].
      draws: how many; each draws as many documents as there are, with replacement.
    """
    losses = np.asarray(losses, float)
    names, where = np.unique(np.asarray(documents), return_inverse=True)
    totals = np.stack([np.bincount(where, row, len(names)) for row in losses])
    counts = np.bincount(where, minlength=len(names))
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        times = np.bincount(rng.integers(0, len(names), len(names)), minlength=len(names))
        yield totals @ times / (counts @ times)
