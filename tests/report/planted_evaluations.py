"""Stores whose runs hold chosen losses by position at chosen steps, as if they had been trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from lmscale.files import read_json, write_json
from lmscale.spec import RunSpec
from lmscale.sweep.experiment import Experiment, Run
from lmscale.sweep.store import Store
from lmscale.training.result import result
from tests.report import planted_store as planted

#: What an experiment's `runs` reads of a corpus.
CORPUS = SimpleNamespace(name="planted", fingerprint="0123456789ab", vocab_size=planted.VOCAB)

#: run -> {step: {evaluation set: losses by position, or one for all}}; None where it diverged.
Evaluations = Callable[[RunSpec], Mapping[int, Mapping[str, Any]] | None]


def plant(
    path: Any,
    runs: Sequence[Run],
    evaluations: Evaluations,
    *,
    experiment: Experiment,
    name: str = "planted",
) -> Store:
    """Writes a store of `runs` of `experiment`, every run ended."""
    store = planted.plant(
        path,
        runs,
        analyses=experiment.analyses,
        status=lambda index, run: "pending",
        name=name,
        title=experiment.title,
    )
    declared = read_json(store.path / "experiment.json")
    claims = [claim.to_json() for claim in experiment.claims]
    write_json(store.path / "experiment.json", declared | {"claims": claims})
    for run in {run.spec.hash: run for run in runs}.values():
        folder, spec = store.folder(run), run.spec
        values = evaluations(spec)
        if values is None:
            reason = "the training loss is nan at step 3"
            folder.write_result(result(folder, "diverged", reason, "cpu", 3))
            folder.write_status("diverged", step=3, seconds=1.0, reason=reason)
            continue
        records = [{"step": s, "tokens": s * spec.batch_tokens} for s in sorted(values)]
        for record in records:
            record["eval"] = {
                name: _evaluation(losses, spec.model.n_ctx)
                for name, losses in values[record["step"]].items()
            }
        trained = {
            "step": spec.steps,
            "tokens": spec.n_tokens,
            "flops": 6.0 * spec.n_tokens,
            "lr": 1e-3,
        }
        trained |= {"loss": _first_loss(records[-1]), "steps_averaged": 1}
        folder.append_metrics([*records, trained])
        folder.write_result(result(folder, "done", None, "cpu", spec.steps))
        folder.write_status("done", step=spec.steps, seconds=12.5, reason=None)
    return store


def _first_loss(record: Mapping[str, Any]) -> float:
    return next(iter(record["eval"].values()))["loss"]


def _evaluation(losses: Any, n_ctx: int) -> dict[str, Any]:
    by_position = np.broadcast_to(np.asarray(losses, float), (n_ctx,))
    loss = float(by_position.mean())
    return {
        "loss": loss,
        "bits_per_byte": loss / math.log(2) / planted.BYTES_PER_TOKEN,
        "by_position": by_position.tolist(),
    }
