"""Scores finished runs again on any text, without training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath

from lmscale.data import Corpus
from lmscale.files import DamagedError
from lmscale.planner.devices import Devices
from lmscale.planner.packs import Pack, make_plan
from lmscale.planner.programs import mesh_of, program_of
from lmscale.progress import Tracker
from lmscale.spec import EvalSpec, Split
from lmscale.sweep.experiment import Run
from lmscale.sweep.store import Store, StoreError
from lmscale.training.checkpoint import Checkpoints, saved_steps
from lmscale.training.evaluation import Evaluator
from lmscale.training.run_folder import RunFolder


@dataclass(frozen=True)
class Score:
    """One run's loss on one evaluation set. `scores` is what `Evaluator.scores` returns."""

    run: str
    scores: dict[str, Any]


def evaluation_set(corpus: Corpus, split: Split | None, tokens: int | None) -> EvalSpec:
    """The evaluation set of a corpus's split: all of it, or about `tokens` tokens.

    Without a split it is the test split, or validation where a corpus has no test documents. Its name
    says what it holds, so that sets of one store can be told apart: CORPUS-SPLIT, or
    CORPUS-SPLIT-TOKENS.

    Raises:
      StoreError: when the split is empty.
    """
    if split is None:
        split = "test" if corpus.n_tokens("test") else "valid"
    there = corpus.n_tokens(split)
    if there < 2:
        raise StoreError(f"the {split} split of {corpus.name} is empty: choose another --split")
    part = "" if tokens is None or tokens >= there else f"-{tokens}"
    return EvalSpec(
        name=f"{corpus.path.name}-{split}{part}",
        corpus=corpus.name,
        fingerprint=corpus.fingerprint,
        split=split,
        tokens=min(tokens or there, there),
        sampling="spread",
    )


def rescore(
    store: Store,
    evaluation: EvalSpec,
    devices: Devices,
    open_corpus: Callable[[str], Corpus],
    bar: Tracker,
) -> list[Score]:
    """Scores every finished run of a store by the checkpoint of its result.

    That is the last, but for a run that was stopped early: its result is its lowest evaluation, and without a
    state that is kept of that step it is left out, with a line.

    The scores go to runs/RUN/evals/NAME.json, and as the column loss_NAME to results.csv. A run that
    has been scored on the same set before is not scored again.

    Args:
      evaluation: the text; its corpus must have the tokeniser of the runs' own.
      bar: is told of every run.

    Raises:
      StoreError: when no run has finished, a run has lost its checkpoint, or the set holds fewer than two
        windows, which would give no spread.
    """
    runs, scores = [], []
    for line in store.damage():
        bar.log(f"left out: {line}")
    for folder, labels in store.declared():
        if (folder.result() or {}).get("status") != "done":
            continue
        if not folder.checkpoints.exists():
            raise StoreError(
                f"{folder.path} has a result but no checkpoint (it may have been taken from another "
                "store): score the store that trained it"
            )
        runs.append(Run(folder.spec, labels))
    if not runs:
        raise StoreError(f"{store.path} has no finished run to score: see `lmscale status`")
    n_ctx = max(run.spec.model.n_ctx for run in runs)
    if evaluation.tokens < 2 * n_ctx:
        raise StoreError(
            f"{evaluation.tokens} tokens are less than two windows of {n_ctx}, the context of these "
            f"runs: give at least {2 * n_ctx}, of a split that has so many"
        )
    for pack in make_plan(runs, devices).packs:
        folders = [store.folder(run) for run in pack.runs]
        waiting = []
        for folder in folders:
            known = folder.evals().get(evaluation.name)
            if known is not None and known["evaluation"] == evaluation.to_dict():
                scores.append(Score(folder.path.name, known["scores"]))
                bar.update(1)
            else:
                waiting.append(folder)
        if waiting:
            scores += _score_pack(pack, waiting, evaluation, devices, open_corpus, bar)
    if not scores:
        raise StoreError(
            f"no run of {store.path} has a sound checkpoint: `lmscale run` makes them again"
        )
    return sorted(scores, key=lambda score: score.scores["loss"])


def _score_pack(
    pack: Pack,
    folders: Sequence[RunFolder],
    evaluation: EvalSpec,
    devices: Devices,
    open_corpus: Callable[[str], Corpus],
    bar: Tracker,
) -> list[Score]:
    """The scores of runs of one shape, in groups of the pack's size."""
    import jax

    program = program_of(pack, mesh_of(pack, jax.devices()), devices.platform, kind=devices.kind)
    evaluator = Evaluator(program, lambda spec: open_corpus(spec.corpus))
    scores: list[Score] = []
    for first in range(0, len(folders), program.n_slots):
        together = folders[first : first + program.n_slots]
        state = program.empty()
        restored: list[tuple[int, RunFolder]] = []
        for slot, folder in enumerate(together):
            if (result := folder.result()) is None:
                bar.log(f"left out: {folder.path} has lost its result")
                continue
            step = result["evaluated_step"] or result["steps"]
            if (place := _place_of(folder, step, result["steps"])) is None:
                bar.log(
                    f"left out: {folder.path.name} was stopped early: its result is of step {step}, and only the "
                    f"state of step {result['steps']} was kept"
                )
                continue
            try:
                with closing(Checkpoints(place, folder.run_id, read_only=True)) as checkpoints:
                    one = checkpoints.restore(step, program.abstract_run)[0]
            except DamagedError as error:
                bar.log(
                    f"left out: {error}; delete {folder.path / 'result.json'}, then `lmscale run`"
                )
                continue
            state = program.put(state, np.int32(slot), one)
            restored.append((slot, folder))
        for slot, folder in restored:
            found = evaluator.scores(state, slot, evaluation)
            folder.write_eval(
                evaluation.name, {"evaluation": evaluation.to_dict(), "scores": found}
            )
            scores.append(Score(folder.path.name, found))
            bar.update(1, folder.path.name)
    return scores


def _place_of(folder: RunFolder, step: int, last: int) -> epath.Path | None:
    """Where the state of a finished run at a step lies; None where it was not kept."""
    if step in saved_steps(folder.branches):
        return folder.branches
    return folder.checkpoints if step == last else None
