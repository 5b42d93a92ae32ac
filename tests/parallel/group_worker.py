"""A process that trains jobs for the tests, as one of several.

    python -m tests.parallel.group_worker ADDRESS COUNT INDEX JOBS

JOBS is a JSON list of arguments of `train`; it is also what tells one group from another.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Iterator
from unittest import mock

import jax

from lmscale.cli import start_jax
from lmscale.data import open_corpus
from lmscale.data.loader import gather
from lmscale.parallel import distributed
from lmscale.planner.devices import local_devices
from lmscale.planner.packs import make_plan
from lmscale.progress import progress
from lmscale.sweep.execute import execute
from lmscale.sweep.experiment import Run
from lmscale.sweep.store import Store
from lmscale.training.loop import Preempted
from tests.training.specs import LSTM, TRANSFORMER, run_spec

MODELS = {"transformer": TRANSFORMER, "lstm": dataclasses.replace(LSTM, n_layer=1)}
#: Steps of a dispatch: each ends with an evaluation.
DISPATCH = 4


def main(address: str, count: int, index: int, jobs: str) -> int:
    start_jax()
    try:
        distributed.start((address, count, index), jobs)
        for job in json.loads(jobs):
            train(**job)
        code = 0
    except distributed.DistributedError as error:
        print(error, file=sys.stderr)
        code = error.code
    return distributed.finish(code)


def train(store, models, mesh, seeds, steps, stop_after=None, fail=(), on_host=False) -> None:
    """Trains the runs of these models and seeds in a store, on a mesh.

    Args:
      stop_after: dispatches after which to stop, with everything saved.
      fail: processes in which training fails after its first dispatch.
      on_host: keeps the training tokens there; a process must read its own devices' parts only.
    """
    corpus = open_corpus("tiny")
    runs = [
        Run(
            run_spec(
                corpus,
                model=MODELS[name],
                seed=seed,
                steps=steps,
                eval_every=DISPATCH,
                # At 1e-2 single steps overshoot, and blow rounding up to more than the tolerance.
                optimizer={"peak_lr": 3e-3},
            ),
            {},
        )
        for name in models
        for seed in seeds
    ]
    store = Store(store)
    for run in runs:
        store.folder(run).create()
    # Stopping is asked for before each of them.
    dispatches = -1

    def stop() -> bool:
        nonlocal dispatches
        dispatches += 1
        if dispatches and jax.process_index() in fail:
            raise OSError("this disk is full")
        return dispatches == stop_after

    plan = make_plan(runs, local_devices(), mesh=tuple(mesh), whole=jax.process_count() > 1)
    with (
        progress("training", plan.flops, silent=True) as bar,
        tokens_on_host() if on_host else contextlib.nullcontext() as parts,
    ):
        try:
            execute(plan, store, lambda name: corpus, bar, stop=stop)
        except Preempted:
            assert dispatches == stop_after
    if on_host:
        (pack,) = plan.packs
        a_device = (pack.chunk_steps, pack.n_slots // mesh[0], runs[0].spec.batch_size // mesh[1])
        assert parts == dispatches * jax.local_device_count() * [a_device]


@contextlib.contextmanager
def tokens_on_host() -> Iterator[list[tuple[int, ...]]]:
    """As where they do not fit on the device; the shapes of indices whose windows are read."""
    parts = []

    def noted(tokens, indices, n_ctx):
        parts.append(indices.shape)
        return gather(tokens, indices, n_ctx)

    module = "lmscale.training.batch_source"
    with mock.patch(f"{module}.gather", noted), mock.patch(f"{module}._fits") as fits:
        fits.return_value = False
        yield parts


if __name__ == "__main__":
    address, count, index, jobs = sys.argv[1:]
    sys.exit(main(address, int(count), int(index), jobs))
