"""Stores whose learning curves follow L(N, S_min) and B_crit(L), as if they had been trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lmscale.architectures import transformer_ladder
from lmscale.files import read_json, write_json
from lmscale.flops import n_params
from lmscale.spec import RunSpec
from lmscale.studies.results import Results
from lmscale.sweep.experiment import Run
from lmscale.sweep.grids import make_run, width_rule
from tests.report import planted_store as planted

#: L(N, S_min) = (N_c/N)^alpha_N + (S_c/S_min)^alpha_S, B_crit = B_star / L^(1/alpha_B).
LAW = {"alpha_N": 0.09, "N_c": 1e10, "alpha_S": 0.7, "S_c": 15.0, "B_star": 1e6, "alpha_B": 0.25}
SIZES = tuple(24.0 * width**2 for width in (8, 12, 16, 24, 32, 48, 64))


def curve(spec: RunSpec, steps: np.ndarray, law: dict[str, float] = LAW) -> np.ndarray:
    """Loss after each number of updates, at the run's own batch."""
    floor = (law["N_c"] / n_params(spec.model, "kaplan")) ** law["alpha_N"]
    low, high = np.full(len(steps), floor), np.full(len(steps), 1e3)
    for _ in range(200):
        loss = np.sqrt(low * high)
        b_crit = law["B_star"] / loss ** (1 / law["alpha_B"])
        s_min = steps / (1 + b_crit / spec.batch_tokens)
        above = floor + (law["S_c"] / s_min) ** law["alpha_S"] > loss
        low, high = np.where(above, loss, low), np.where(above, high, loss)
    return loss


def ladder_runs(
    sizes: Sequence[float] = SIZES, *, seeds: Sequence[int] = (0, 1, 2), steps: int = 4000
) -> list[Run]:
    """One long run a size and seed, evaluated at log-spaced steps."""
    at = tuple(sorted({round(s) for s in np.geomspace(40, steps, 30)}))
    models = transformer_ladder(sizes, n_ctx=planted.N_CTX, vocab_size=planted.VOCAB, n_layer=2)
    return [
        Run(_run(model, steps=steps, seed=seed, eval_steps=at, batch_size=4), {"family": "transformer"})
        for model in models
        for seed in seeds
    ]  # fmt: skip


def batch_runs(
    batch_sizes: Sequence[int] = (2, 4, 8, 16, 32, 64),
    *,
    sizes: Sequence[float] = (6144.0, 24576.0),
    seeds: Sequence[int] = (0, 1, 2),
) -> list[Run]:
    """Batches of many sizes, the small ones for longer."""
    models = transformer_ladder(sizes, n_ctx=planted.N_CTX, vocab_size=planted.VOCAB, n_layer=2)
    runs = []
    for model in models:
        for batch in batch_sizes:
            steps = round(150 * (1 + 24 / batch))
            at = tuple(sorted({round(s) for s in np.geomspace(steps / 20, steps, 30)}))
            for seed in seeds:
                spec = _run(model, steps=steps, seed=seed, eval_steps=at, batch_size=batch)
                runs.append(Run(spec, {"family": "transformer", "lr_factor": 1.0}))
    return runs


def _run(model: Any, **fields: Any) -> RunSpec:
    return make_run(
        model, data=planted.DATA, evals=planted.EVALS, learning_rate=width_rule(), **fields
    )


def plant(
    path: Any,
    runs: Sequence[Run],
    *,
    analyses: Sequence[str],
    noise: float = 0.001,
    law: Callable[[RunSpec, np.ndarray], np.ndarray] = curve,
    noise_scale: Callable[[np.ndarray], np.ndarray] | None = None,
    **fields: Any,
) -> Results:
    """A study of those curves; `noise_scale` gives B_simple in tokens as a function of loss."""
    store = planted.plant(
        path,
        runs,
        analyses=analyses,
        law=lambda spec: float(law(spec, np.array([float(spec.steps)]))[0]),
        noise=0.0,
        thinned=1,
    )
    experiment = read_json(store.path / "experiment.json")
    experiment["fields"] |= fields
    write_json(store.path / "experiment.json", experiment)
    rng = np.random.default_rng(5)
    for run in runs:
        steps = np.array(run.spec.eval_steps, float)
        # A run is off as a whole, and a little at every evaluation.
        off = noise * (rng.standard_normal() + 0.3 * rng.standard_normal(len(steps)))
        losses = law(run.spec, steps) * np.exp(off)
        records = []
        for step, loss in zip(steps, losses, strict=True):
            record = {"step": int(step), "tokens": step * run.spec.batch_tokens, "flops": 0.0}
            records.append({**record, "eval": {"valid": {"loss": loss, "bits_per_byte": loss}}})
            if noise_scale is not None:
                batch = run.spec.batch_tokens
                share = float(noise_scale(loss))
                records.append(
                    {
                        **record,
                        "steps_averaged": 5,
                        "grad_squared": 0.1 * (1 + share / batch),
                        "piece_grad_squared": 0.1 * (1 + 2 * share / batch),
                    }
                )
        store.folder(run).append_metrics(records)
    return Results.read(store)
