"""Stores with results of a known law, as if they had been trained.

The loss of a run follows `Law` or `SizeLaw`, plus noise by seed and a penalty for a learning rate off
its best. An LSTM equals the Transformer of its size on the first tokens of the context but stops
improving at `LSTM_STOPS`, so that it lies `LSTM_GAP` nats higher on the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lmscale import flops
from lmscale.architectures import lstm_shape, transformer_ladder
from lmscale.data.loader import STRETCHES
from lmscale.files import write_json
from lmscale.spec import DataSpec, EvalSpec, LSTMSpec, ModelSpec, RunSpec
from lmscale.sweep.claims import Claim
from lmscale.sweep.experiment import Run
from lmscale.sweep.grids import LearningRateRule, isoflop_grid, make_run, width_rule
from lmscale.sweep.store import Store
from lmscale.training.metrics_log import log_interval
from lmscale.training.result import result
from lmscale.training.run_folder import RunFolder

N_CTX, VOCAB = 128, 1024
BYTES_PER_TOKEN = 3.2
DATA = DataSpec(corpus="planted", fingerprint="0123456789ab")
EVALS = (EvalSpec(name="valid", corpus="planted", fingerprint="0123456789ab"),)
OVERLAPPING = EvalSpec(
    name="positions", corpus="planted", fingerprint="0123456789ab", sampling="overlapping"
)
BUDGETS = (1e12, 3e12, 9e12, 27e12)
LSTM_STOPS = 16
#: Of the held-out text, and how its losses vary: by document and window alike for all models, and by
#: window for each model alone.
WINDOWS, WINDOWS_A_DOCUMENT = 80, 4
TEXT_STD, OWN_STD = 0.2, 0.02


def position_shape(lstm: bool) -> np.ndarray:
    """Loss along the context, up to a constant: 3 T^-0.5, for an LSTM up to `LSTM_STOPS`."""
    position = np.arange(1, N_CTX + 1)
    return 3.0 * (np.minimum(position, LSTM_STOPS) if lstm else position) ** -0.5


#: Mean over the context of what the LSTM misses.
LSTM_GAP = float(np.mean(position_shape(True) - position_shape(False)))


@dataclass(frozen=True)
class Law:
    """L = E + A / N^alpha + B / D^beta; alpha = beta makes N_opt grow as C^0.5."""

    E: float = 1.8
    A: float = 70.0
    B: float = 70.0
    alpha: float = 0.4
    beta: float = 0.4

    @property
    def exponent(self) -> float:
        return self.beta / (self.alpha + self.beta)

    def best_size(self, budget: float) -> float:
        """N_opt at C = 6 N D."""
        ratio = (self.alpha * self.A) / (self.beta * self.B)
        power = 1 / (self.alpha + self.beta)
        return ratio**power * (budget / 6) ** self.exponent

    def __call__(self, spec: RunSpec) -> float:
        n = flops.n_params(spec.model, "standard")
        loss = self.E + self.A * n**-self.alpha + self.B * spec.n_tokens**-self.beta
        return loss + _gap(spec.model)


@dataclass(frozen=True)
class SizeLaw:
    """L = (N_c / N)^alpha with N without embeddings (Kaplan et al. 2020, eq. 1.1)."""

    alpha: float = 0.08
    N_c: float = 1e13

    def __call__(self, spec: RunSpec) -> float:
        n = flops.n_params(spec.model, "kaplan")
        return (self.N_c / n) ** self.alpha + _gap(spec.model)


def _gap(model: ModelSpec) -> float:
    return LSTM_GAP if isinstance(model, LSTMSpec) else 0.0


def isoflop_runs(
    budgets: Sequence[float] = BUDGETS,
    *,
    lstm: bool = True,
    seeds: Sequence[int] = (0, 1, 2),
    lr_factors: Sequence[float] = (1.0,),
    sizes: int = 7,
    law: Law | None = None,
    learning_rate: LearningRateRule | None = None,
) -> list[Run]:
    """A grid of sizes that differ by about 1.6 around each budget's best one."""
    law = law or Law()
    shared = {"n_ctx": N_CTX, "vocab_size": VOCAB}
    ladder = transformer_ladder([3e3 * 1.5**i for i in range(24)], **shared)
    lstms = [lstm_shape(2e3 * 1.6**i, n_layer=1, d_embed=32, **shared) for i in range(18)]

    def models(budget: float) -> list[ModelSpec]:
        chosen: list[ModelSpec] = []
        for choice in (ladder, lstms)[: 1 + lstm]:

            def distance(model: ModelSpec) -> float:
                return abs(math.log(flops.n_params(model, "standard") / law.best_size(budget)))

            chosen += sorted(choice, key=distance)[:sizes]
        return chosen

    return isoflop_grid(
        budgets,
        models,
        data=DATA,
        evals=EVALS,
        batch_size=4,
        learning_rate=learning_rate or width_rule(),
        lr_factors=lr_factors,
        seeds=seeds,
    )


def size_runs(
    *, seeds: Sequence[int] = (0, 1, 2), steps: int = 4000, layers: Sequence[int] = (1, 2)
) -> list[Run]:
    """Families of equal sizes: Transformers, and LSTMs of so many layers."""
    shared = {"n_ctx": N_CTX, "vocab_size": VOCAB}
    sizes = [1e4, 3e4, 1e5, 3e5, 1e6]
    members = [("transformer", model) for model in transformer_ladder(sizes, **shared)]
    for n in layers:
        name = f"lstm, {n} layer{'s' * (n > 1)}"
        members += [(name, lstm_shape(s, n_layer=n, d_embed=64, **shared)) for s in sizes]
    return [
        Run(
            make_run(
                model,
                steps=steps,
                data=DATA,
                evals=EVALS,
                batch_size=4,
                learning_rate=width_rule(),
                seed=seed,
            ),
            {"family": family, "lr_factor": 1.0},
        )
        for family, model in members
        for seed in seeds
    ]


def overlapping(runs: Sequence[Run]) -> list[Run]:
    """The runs, evaluated on overlapping windows as well."""
    return [
        replace(run, spec=replace(run.spec, evals=(*run.spec.evals, OVERLAPPING))) for run in runs
    ]


def plant(
    path: Any,
    runs: Sequence[Run],
    *,
    analyses: Sequence[str],
    law: Callable[[RunSpec], float] | None = None,
    noise: float = 0.002,
    status: Callable[[int, Run], str] = lambda index, run: "done",
    name: str = "planted",
    title: str = "A planted law",
    claims: Sequence[Claim] = (),
    thinned: int = 4,
) -> Store:
    """Writes a store of `runs`.

    Args:
      status: how the run of an index ended.
      thinned: only every so many of the steps that training logs are in the logs. To write and to read
        logs is half of what many tests take.
    """
    law = law or Law()
    store = Store(path)
    store.path.mkdir(parents=True, exist_ok=True)
    write_json(
        store.path / "experiment.json",
        {
            "name": name,
            "scale": "cpu",
            "title": title,
            "analyses": list(analyses),
            "claims": [claim.to_json() for claim in claims],
            "fields": {"vocab_size": VOCAB, "seeds": [0, 1, 2], "convention": "standard"},
            "corpus": {
                "name": DATA.corpus,
                "fingerprint": DATA.fingerprint,
                "vocab_size": VOCAB,
                "bytes_per_token": BYTES_PER_TOKEN,
                "train_tokens": 30_000_000,
                "held_out_documents": {"valid": 237, "test": 0},
                "copies": {"valid": {"share": 0.0123, "documents": 1}},
            },
            "runs": [{"run": run.spec.run_id, "labels": run.labels} for run in runs],
            "versions": {"python": "3.11.0", "lmscale": "0.1.0", "jax": "0.10.2"},
            "git_commit": "0123456789abcdef0123456789abcdef01234567",
        },
    )
    rng = np.random.default_rng(7)
    for index, run in enumerate(runs):
        shift = noise * rng.standard_normal()
        factor = run.labels.get("lr_factor", 1.0)
        loss = law(run.spec) + shift + 0.05 * math.log(factor) ** 2
        _write_run(store.folder(run), loss, status(index, run), thinned)
    return store


def plant_sizes(path: Any, study: str) -> Store:
    """Transformers and LSTMs of one layer on a law of their size, with noise; one run has diverged."""
    return plant(
        path,
        size_runs(layers=(1,)),
        analyses=[study],
        law=SizeLaw(),
        noise=0.01,
        status=lambda index, run: "diverged" if index == 4 else "done",
    )


def _write_run(folder: RunFolder, loss: float, status: str, thinned: int) -> None:
    spec = folder.spec
    folder.create()
    if status == "pending":
        return
    share = {"diverged": 0.35, "running": 0.6, "preempted": 0.5, "failed": 0.1}.get(status, 1.0)
    last = max(1, int(share * spec.steps))
    records = list(_records(spec, loss, last, thinned))
    reason = {
        "diverged": f"the training loss is nan at step {last}",
        "failed": "ValueError: <planted> failure",
        "out_of_memory": "RESOURCE_EXHAUSTED: planted",
    }.get(status)
    if status == "done":
        by_position = _by_position(spec, loss)
        evaluation = {
            "loss": loss,
            "bits_per_byte": loss / math.log(2) / BYTES_PER_TOKEN,
            "by_position": by_position,
            "by_window": _by_window(spec, loss),
            "document": [i // WINDOWS_A_DOCUMENT for i in range(WINDOWS)],
        }
        place = {"step": spec.steps, "tokens": spec.n_tokens, "flops": 0.0}
        found = {"valid": evaluation}
        for other in spec.evals[1:]:
            by_stretch = _by_stretch(spec, loss)
            found[other.name] = evaluation | {
                "by_position": np.mean(by_stretch, axis=0).tolist(),
                "by_stretch": by_stretch,
            }
        records.append(place | {"eval": found})
    folder.append_metrics(records)
    if status in ("done", "diverged"):
        folder.write_result(result(folder, status, reason, "cpu", last))
    folder.write_status(status, step=last, seconds=12.5, reason=reason)


def _records(spec: RunSpec, loss: float, last: int, thinned: int):
    per_step = flops.training_flops(spec, "exact") / spec.steps
    rng = np.random.default_rng(spec.seed)
    every = thinned * log_interval(spec.steps)
    for step in range(every, last + 1, every):
        ease = (1 - step / spec.steps) * 0.3
        value = loss + (math.log(VOCAB) - loss) * (1 + step / 20) ** -0.7 * (0.6 + ease)
        yield {
            "step": step,
            "tokens": step * spec.batch_tokens,
            "flops": step * per_step,
            "loss": value + 0.02 * rng.standard_normal(),
            "grad_norm": 1.0,
            "lr": 1e-3,
            "steps_averaged": every,
            "tokens_per_second": 1e4,
        }


def _by_window(spec: RunSpec, loss: float) -> list[float]:
    """Losses with mean `loss`: some documents are hard for all models."""
    hard = np.random.default_rng(0).normal(0, TEXT_STD, WINDOWS // WINDOWS_A_DOCUMENT)
    own = np.random.default_rng(int(spec.hash, 16)).normal(0, OWN_STD, WINDOWS)
    curve = np.repeat(hard, WINDOWS_A_DOCUMENT) + own
    return [float(x) for x in curve - curve.mean() + loss]


def _by_stretch(spec: RunSpec, loss: float) -> list[list[float]]:
    """Losses of overlapping windows: stretches of text are easy or hard at all positions, for all runs."""
    text = 0.3 * np.random.default_rng(0).standard_normal((STRETCHES, 1))
    rest = 0.01 * np.random.default_rng(1).standard_normal((STRETCHES, N_CTX))
    own = 0.01 * np.random.default_rng(int(spec.hash, 16)).standard_normal((STRETCHES, N_CTX))
    curve = position_shape(isinstance(spec.model, LSTMSpec)) + text + rest + own
    return [[round(float(x), 4) for x in row] for row in curve - curve.mean() + loss]


def _by_position(spec: RunSpec, loss: float) -> list[float]:
    """Losses with mean `loss`; the noise of the text is common to all runs."""
    text = 0.05 * np.random.default_rng(0).standard_normal(N_CTX)
    own = 0.01 * np.random.default_rng(int(spec.hash, 16)).standard_normal(N_CTX)
    curve = position_shape(isinstance(spec.model, LSTMSpec)) + text + own
    return [float(x) for x in curve - curve.mean() + loss]
