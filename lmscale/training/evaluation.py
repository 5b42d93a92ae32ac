"""Evaluation sets: windows on the host, losses by position and by window, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lmscale.data import Corpus
from lmscale.data.loader import evaluation_windows, overlapping_starts
from lmscale.spec import EvalSpec, ModelSpec, RunSpec, SpecError
from lmscale.training.batch_source import check_separator
from lmscale.training.program import Program


@dataclass(frozen=True)
class EvalSet:
    """One evaluation set, cut and padded for a program.

    `windows` int32 [stretch, n, eval_batch, n_ctx + 1] and `weights` float32 [stretch, n, eval_batch], 0 where
    a window is padding; `document` has one number a window that is not. Only an "overlapping" set has more
    than one stretch. `bytes_per_token` is exact for the targets of these windows.
    """

    name: str
    windows: np.ndarray
    weights: np.ndarray
    document: np.ndarray
    bytes_per_token: float


def load_eval_set(spec: EvalSpec, corpus: Corpus, model: ModelSpec, eval_batch: int) -> EvalSet:
    """Reads an evaluation set.

    Raises:
      SpecError: when the corpus has changed, has another vocabulary or separator of documents than the
        model, or too little text.
    """
    n_ctx, vocab_size = model.n_ctx, model.vocab_size
    if corpus.fingerprint != spec.fingerprint:
        raise SpecError(
            f"evaluation set {spec.name!r} was declared on {spec.corpus} with fingerprint "
            f"{spec.fingerprint}, but the corpus here has {corpus.fingerprint}"
        )
    if corpus.vocab_size != vocab_size:
        raise SpecError(
            f"evaluation set {spec.name!r} has a vocabulary of {corpus.vocab_size}, the model one "
            f"of {vocab_size}: build it with the tokeniser of the training corpus"
        )
    check_separator(model, corpus)
    windows, document = evaluation_windows(corpus, spec.split, n_ctx, spec.tokens, spec.sampling)
    if len(windows) == 0:
        raise SpecError(
            f"the {spec.split} split of {spec.corpus} has fewer than {n_ctx + 1} tokens, too few "
            f"for evaluation set {spec.name!r}"
        )
    bytes_per_token = corpus.tokenizer.count_bytes(windows) / windows[:, 1:].size
    stretches = 1
    if spec.sampling == "overlapping":
        stretches = len(overlapping_starts(corpus.n_tokens(spec.split), n_ctx, spec.tokens))
    each = len(windows) // stretches
    n = -(-each // eval_batch) * eval_batch
    weights = np.zeros((stretches, n), np.float32)
    weights[:, :each] = 1.0
    padded = np.zeros((stretches, n, n_ctx + 1), np.int32)
    padded[:, :each] = windows.reshape(stretches, each, n_ctx + 1)
    return EvalSet(
        spec.name,
        padded.reshape(stretches, -1, eval_batch, n_ctx + 1),
        weights.reshape(stretches, -1, eval_batch),
        document,
        bytes_per_token,
    )


class Evaluator:
    """Evaluates the runs of a pack; the sets are read once."""

    def __init__(self, program: Program, open_corpus: Callable[[EvalSpec], Corpus]):
        self._program = program
        self._open_corpus = open_corpus
        self._sets: dict[EvalSpec, EvalSet] = {}
        #: The last state and the losses of all its slots, as its slots are often due together.
        self._last: tuple[Any, dict[EvalSpec, tuple[np.ndarray, np.ndarray]]] = (None, {})

    def check(self, spec: RunSpec) -> None:
        """Reads the sets of a run, so that what is wrong with them shows before it trains."""
        for evaluation in spec.evals:
            self._set(evaluation)

    def __call__(self, state: Any, slot: int, spec: RunSpec) -> dict[str, dict[str, Any]]:
        """The losses of a slot's run on its own evaluation sets: {set: `scores`}."""
        return {evaluation.name: self.scores(state, slot, evaluation) for evaluation in spec.evals}

    def scores(self, state: Any, slot: int, evaluation: EvalSpec) -> dict[str, Any]:
        """The losses of a slot's run on one evaluation set.

        Returns:
          "loss" (nats a token), "bits_per_byte", "by_position" (nats [n_ctx]), and, in the order of the
          windows, "by_window" (nats [n], to 1e-4, of which `loss` is the mean) and "document" [n]. Of an
          "overlapping" set also "by_stretch" (nats [stretch][n_ctx], to 1e-4, of which `by_position` is the mean).
        """
        data = self._set(evaluation)
        by_stretch, by_window = (values[slot] for values in self._of_all_slots(state, evaluation))
        by_position = by_stretch.astype(np.float64).mean(axis=0)
        loss = float(by_position.mean())
        scores = {
            "loss": loss,
            "bits_per_byte": loss / math.log(2) / data.bytes_per_token,
            "by_position": [float(np.float32(x)) for x in by_position],
            "by_window": [round(float(x), 4) for x in by_window[data.weights > 0]],
            "document": data.document.tolist(),
        }
        if evaluation.sampling == "overlapping":
            scores["by_stretch"] = [[round(float(x), 4) for x in row] for row in by_stretch]
        return scores

    def _of_all_slots(self, state: Any, spec: EvalSpec) -> tuple[np.ndarray, np.ndarray]:
        """Losses by position [R, stretch, n_ctx] and by window [R, stretch, n, eval_batch], computed once for
        a state."""
        if self._last[0] is not state:
            self._last = (state, {})
        known = self._last[1]
        if spec not in known:
            data = self._set(spec)
            found = [
                jax.device_get(self._program.evaluate(state, windows, weights))
                for windows, weights in zip(data.windows, data.weights, strict=True)
            ]
            by_position, by_window = (
                np.stack(values, axis=1) for values in zip(*found, strict=True)
            )
            known[spec] = (by_position, by_window)
        return known[spec]

    def _set(self, spec: EvalSpec) -> EvalSet:
        if spec not in self._sets:
            model = self._program.key.model
            self._sets[spec] = load_eval_set(
                spec,
                self._open_corpus(spec),
                model,
                self._program.eval_batch,
            )
        return self._sets[spec]
