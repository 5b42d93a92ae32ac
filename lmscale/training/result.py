"""result.json: what a run reached, read from its records."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lmscale import flops
from lmscale.training.run_folder import RunFolder

#: The training loss of a result is the mean over this last share of the steps (Porian et al. 2024).
SMOOTHED_SHARE = 0.05


def result(
    folder: RunFolder, status: str, reason: str | None, device: str, step: int
) -> dict[str, Any]:
    """The content of result.json: everything about a run that does not depend on the clock.

    Tokens and FLOPs are those of the `step` updates made, with those of the run it started from.
    The losses are those after the last update, or with early stopping the lowest.
    """
    spec, records = folder.spec, folder.metrics()
    trained = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "eval" in record]
    final = None
    if status == "done" and evaluations:
        final = lowest(evaluations) if spec.stopping else evaluations[-1]
    losses = final["eval"] if final else {}
    share = step / spec.steps
    return {
        "run": folder.path.name,
        "status": status,
        "reason": reason,
        "params": {c: flops.n_params(spec.model, c) for c in flops.CONVENTIONS},
        "tokens": step * spec.batch_tokens,
        "steps": step,
        "flops": {c: share * flops.training_flops(spec, c) for c in flops.CONVENTIONS},
        "operations": {
            name: dataclasses.asdict(operation)
            for name, operation in flops.operations(spec.model).items()
        },
        "train_loss": _smoothed(trained, step) if status == "done" else None,
        "evaluated_step": final["step"] if final else None,
        "losses": {name: values["loss"] for name, values in losses.items()},
        "bits_per_byte": {name: values["bits_per_byte"] for name, values in losses.items()},
        "loss_by_position": {name: values["by_position"] for name, values in losses.items()},
        # Models are compared on the same windows, and a document's windows resemble each other.
        "loss_by_window": {
            name: {"loss": values["by_window"], "document": values["document"]}
            for name, values in losses.items()
            if "by_window" in values
        },
        **_by_stretch(losses),
        "evaluations": [without_windows(record) for record in evaluations],
        "device": device,
    }


def without_windows(record: dict[str, Any]) -> dict[str, Any]:
    """An evaluation's record without its losses by window and by stretch."""
    kept = {
        name: {k: v for k, v in values.items() if k not in ("by_window", "document", "by_stretch")}
        for name, values in record["eval"].items()
    }
    return {**record, "eval": kept}


def _by_stretch(losses: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Losses by stretch of the sets that have them."""
    found = {
        name: values["by_stretch"] for name, values in losses.items() if "by_stretch" in values
    }
    return {"loss_by_stretch": found} if found else {}


def non_finite(losses: dict[str, dict[str, Any]], step: int) -> str | None:
    """What is wrong with the numbers of an evaluation; None where all are finite."""
    for name, scores in losses.items():
        if not math.isfinite(scores["loss"]):
            return f"the loss on evaluation set {name} is {scores['loss']} after step {step}"
        for kind in ("by_position", "by_window"):
            if not all(map(math.isfinite, scores[kind])):
                what = kind.replace("_", " ")
                return f"a loss {what} of evaluation set {name} is not finite after step {step}"
    return None


def worse_than_guessing(
    losses: dict[str, dict[str, Any]], vocab_size: int, step: int
) -> str | None:
    """Whether training has destroyed a model: a loss far above ln V, that of guessing; in words.

    A nat more than that is allowed, as for a model that has hardly begun. Only the first evaluation set
    counts: others may hold text that is unlike what was trained on.
    """
    guess = math.log(vocab_size)
    for name, scores in list(losses.items())[:1]:
        if scores["loss"] > guess + 1.0:
            return (
                f"the loss on evaluation set {name} is {scores['loss']:.4g} after step {step}, more than "
                f"the {guess:.3g} of guessing"
            )
    return None


def _first_loss(record: dict[str, Any]) -> float:
    return next(iter(record["eval"].values()))["loss"]


def lowest(evaluations: list[dict[str, Any]]) -> dict[str, Any]:
    return min(evaluations, key=_first_loss)


def _smoothed(records: list[dict[str, Any]], steps: int) -> float | None:
    """The training loss; None of a run that was stopped early, before its first record."""
    if not records:
        return None
    last = [r for r in records if r["step"] > (1 - SMOOTHED_SHARE) * steps] or records[-1:]
    total = sum(r["steps_averaged"] for r in last)
    return math.fsum(r["loss"] * r["steps_averaged"] for r in last) / total
