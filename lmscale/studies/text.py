"""How the choice of the held-out text changes losses and the numbers that are read from them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lmscale.laws.windows import paired_difference, resample_documents, text_mean
from lmscale.studies.groups import by_number
from lmscale.studies.results import Results

__all__ = ["TextError", "pair_error", "text_error", "text_spread", "windows_of"]

#: Bootstrap draws of documents for a quantity that is fitted anew in each.
DRAWS = 200
#: Fewest documents whose spread says anything of other documents.
LEAST_DOCUMENTS = 10


@dataclass(frozen=True)
class TextError:
    """Standard errors over documents, in nats.

    `loss` is the error of one run's loss, `difference` that of the difference of two runs with neighbouring
    losses; both are medians over the runs.
    """

    n_windows: int
    n_documents: int
    loss: float
    difference: float


def windows_of(results: Results, runs: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """(losses [run, window], document [window]) of runs that were scored on the same windows.

    None where a run has no losses by window, or runs have different ones.
    """
    found = []
    for run in runs:
        by_window = results.ended.get(run, {}).get("loss_by_window", {}).get(results.eval_name)
        if by_window is None:
            return None
        found.append(by_window)
    if not found or any(one["document"] != found[0]["document"] for one in found):
        return None
    return np.array([one["loss"] for one in found], float), np.array(found[0]["document"])


def text_error(results: Results) -> TextError | None:
    """How much the losses of a store depend on its text; None where that was not recorded."""
    runs = results.usable.sort_values("loss")["run"].tolist() if len(results.usable) else []
    found = windows_of(results, runs)
    if found is None:
        return None
    losses, documents = found
    alone = [text_mean(row, documents) for row in losses]
    n = alone[0].n_documents
    if n < LEAST_DOCUMENTS:
        return TextError(len(documents), n, np.nan, np.nan)
    pairs = [paired_difference(a, b, documents).error for a, b in itertools.pairwise(losses)]
    return TextError(
        len(documents),
        n,
        float(np.median([one.error for one in alone])),
        float(np.median(pairs)) if pairs else np.nan,
    )


def pair_error(results: Results, family: str, base: str) -> float | None:
    """Standard error of the difference between two families due to the choice of documents, in nats.

    Each size of `family` is paired with the size of `base` that is nearest in N, and their losses, averaged
    over seeds, are compared window by window. The result is the median over the pairs; None where losses
    by window are unknown.
    """
    usable = results.usable
    groups = {
        name: [
            (n_params, runs["run"].tolist())
            for n_params, runs in by_number(usable[usable["family"] == name], "params_kaplan")
        ]
        for name in (family, base)
    }
    errors = []
    for n_params, runs in groups[family]:
        if not groups[base]:
            break
        _, others = min(groups[base], key=lambda pair: abs(math.log(pair[0] / n_params)))
        found = windows_of(results, [*runs, *others])
        if found is None or len(set(found[1].tolist())) < LEAST_DOCUMENTS:
            return None
        losses, documents = found
        ours, theirs = losses[: len(runs)].mean(axis=0), losses[len(runs) :].mean(axis=0)
        errors.append(paired_difference(ours, theirs, documents).error)
    return float(np.median(errors)) if errors else None


def text_spread(
    results: Results, runs: Sequence[str], read: Callable[[np.ndarray], np.ndarray]
) -> float | None:
    """Standard deviation of a quantity over draws of the documents; None where it is unknown.

    Args:
      runs: in the order in which `read` takes their losses.
      read: losses [draw, run] -> the quantity [draw], NaN where they give none.
    """
    found = windows_of(results, runs)
    if found is None or len(set(found[1].tolist())) < LEAST_DOCUMENTS:
        return None
    drawn = read(np.stack(list(resample_documents(*found, DRAWS))))
    values = drawn[np.isfinite(drawn)]
    return float(np.std(values, ddof=1)) if len(values) > DRAWS / 2 else None
