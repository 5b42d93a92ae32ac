"""The same runs in torch: `python -m lmscale.bench.torch_sweep RUNS.json OUT.json`, as a process.

Every run reads the batches that ours reads, in the same order, and ends with the same evaluation.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
from pathlib import Path

import numpy as np

from lmscale.data import open_corpus
from lmscale.data.loader import (
    batch_indices,
    evaluation_windows,
    gather,
    n_sequences,
    sequence_order,
)
from lmscale.spec import RunSpec


def train(spec: RunSpec, *, compiled: bool) -> float:
    """Trains one run on the CPU; returns its loss on its evaluation set, nats per token."""
    import torch

    from lmscale.bench.torch_models import Trainer

    corpus = open_corpus(spec.data.corpus, vocab_size=spec.model.vocab_size)
    tokens, n_ctx = corpus.tokens("train"), spec.model.n_ctx
    order = sequence_order(n_sequences(len(tokens), n_ctx), spec.batch_size, spec.seed, None)
    torch.manual_seed(spec.seed)
    trainer = Trainer(spec.model, spec.optimizer, compiled=compiled, device="cpu", bfloat16=False)
    for step in range(spec.steps):
        windows = gather(tokens, batch_indices(order, step, 1), n_ctx)[0]
        trainer.step(torch.from_numpy(windows.astype(np.int64)), learning_rate(spec, step))
    held_out, _ = evaluation_windows(
        corpus, spec.evals[0].split, n_ctx, spec.evals[0].tokens, spec.evals[0].sampling
    )
    return trainer.evaluate(torch.from_numpy(held_out.astype(np.int64)))


def learning_rate(spec: RunSpec, step: int) -> float:
    """Linear warmup, then a cosine: `lmscale.training.schedule` for a plain number."""
    schedule, peak = spec.schedule, spec.optimizer.peak_lr
    if step < schedule.warmup_steps:
        return peak * (step + 1) / schedule.warmup_steps
    x = (step - schedule.warmup_steps) / (spec.steps - schedule.warmup_steps)
    final = schedule.final_fraction
    return peak * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * x)))


def _worker(text: str, compiled: bool, threads: int) -> tuple[str, float]:
    import torch

    torch.set_num_threads(threads)
    spec = RunSpec.from_json(text)
    return spec.run_id, train(spec, compiled=compiled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, help="JSON list of specs, as text")
    parser.add_argument("out", type=Path, help="written: {run: loss}")
    parser.add_argument("--workers", type=int, default=1, help="runs at a time, each a process")
    parser.add_argument("--threads", type=int, default=1, help="of each")
    parser.add_argument("--compile", action="store_true", help="through torch.compile")
    args = parser.parse_args()
    jobs = [(text, args.compile, args.threads) for text in json.loads(args.runs.read_text())]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool:
        losses = dict(pool.starmap(_worker, jobs, chunksize=1))
    args.out.write_text(json.dumps(losses))


if __name__ == "__main__":
    main()
