"""A tiny run: twice the same bits, and after a stop the same bits as without one."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

from lmscale.doctor.check import Finding, Place

#: Steps of a run, and of a dispatch: a run can be stopped between two of these.
STEPS, CHUNK = 12, 3
_N_TOKENS = 20_000


class RandomText:
    """A corpus of random tokens, so that nothing needs to be built. It has no text to evaluate on."""

    name = fingerprint = "doctor"
    vocab_size = 256

    def tokens(self, split: str) -> np.ndarray:
        rng = np.random.default_rng(0)
        return rng.integers(0, self.vocab_size, _N_TOKENS).astype(np.uint16)

    def n_tokens(self, split: str) -> int:
        return _N_TOKENS


def tiny_spec() -> Any:
    """A Transformer of two layers in the type that the platform trains in."""
    import jax

    from lmscale.spec import DataSpec, OptimizerSpec, RunSpec, ScheduleSpec, TransformerSpec

    on_cpu = jax.devices()[0].platform == "cpu"
    return RunSpec(
        model=TransformerSpec(n_layer=2, d_model=64, n_head=2, n_ctx=128, vocab_size=256),
        data=DataSpec(corpus=RandomText.name, fingerprint=RandomText.fingerprint),
        optimizer=OptimizerSpec(peak_lr=1e-2),
        schedule=ScheduleSpec(warmup_steps=3),
        batch_size=8,
        steps=STEPS,
        evals=(),
        compute_dtype="float32" if on_cpu else "bfloat16",
    )


def determinism(place: Place) -> Finding:
    """The same steps twice by one program, from the same state."""
    first, second = (_state_digest() for _ in range(2))
    facts = {"digests": [first, second], "same_bits": first == second}
    if first != second:
        remedy = (
            "a resumed run will differ from an undisturbed one by rounding; "
            "XLA_FLAGS=--xla_gpu_deterministic_ops=true may help, at a cost"
        )
        return Finding("warning", "the same steps twice gave other bits", remedy, facts)
    return Finding("ok", f"{STEPS} steps twice: the same bits", None, facts)


def _state_digest() -> str:
    """A digest of a state after some steps, by the program that training would use."""
    import jax

    from lmscale.planner.packs import make_plan
    from lmscale.planner.programs import mesh_of, program_of
    from lmscale.sweep.experiment import Run
    from lmscale.training.batch_source import BatchSource
    from lmscale.training.state import packed_hyperparameters

    here, spec = _one_device(), tiny_spec()
    (pack,) = make_plan([Run(spec, {})], here).packs
    pack = dataclasses.replace(pack, chunk_steps=CHUNK)
    mesh = mesh_of(pack, jax.devices())
    program = program_of(pack, mesh, here.platform, kind=here.kind)
    source, active = BatchSource(RandomText(), mesh), np.ones(1, bool)  # type: ignore[arg-type]
    state = program.reset(program.empty(), np.zeros(1, np.int32), active)
    hyper = packed_hyperparameters([spec])
    for step in range(0, STEPS, CHUNK):
        data = source.chunk([(spec, source.order(spec), step)], CHUNK, CHUNK)
        state, _ = program.train(state, hyper, data, np.int32(CHUNK), active)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(state):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def _one_device() -> Any:
    """One of the devices that are here, so that the check is the same on a large machine."""
    from lmscale.planner.devices import local_devices

    return dataclasses.replace(local_devices(), count=1)


def resume(place: Place) -> Finding:
    """A run that is stopped and resumed, against one that was left alone, through store and checkpoints."""
    alone, stopped = place.scratch / "alone", place.scratch / "stopped"
    train(alone)
    stops = 0
    # Every sitting trains one dispatch; the last one needs no stop.
    while not train(stopped, dispatches=1) and stops < STEPS:
        stops += 1
    expected, found = results(alone), results(stopped)
    different = [name for name in expected if expected[name] != found.get(name)]
    if not expected["metrics"]:
        return Finding("failed", "the run wrote no metrics")
    facts = {"stops": stops, "same_bits": not different, "different": different}
    if stops == 0:
        return Finding("failed", "the run could not be stopped between two dispatches", None, facts)
    if different:
        remedy = "results of resumed runs differ by rounding; see the remedy of determinism"
        text = f"after {stops} stops the run ended with other bits: {', '.join(different)}"
        return Finding("warning" if _rounding(expected, found) else "failed", text, remedy, facts)
    return Finding("ok", f"stopped {stops} times and resumed: the same bits", None, facts)


def train(folder: Path, dispatches: int | None = None) -> bool:
    """Trains the tiny run in a store, at most so many dispatches of it; whether it ended."""
    from lmscale.planner.packs import make_plan
    from lmscale.progress import progress
    from lmscale.sweep.execute import execute
    from lmscale.sweep.experiment import Run
    from lmscale.sweep.store import Store
    from lmscale.training.loop import Preempted

    run = Run(tiny_spec(), {})
    plan = make_plan([run], _one_device())
    packs = tuple(dataclasses.replace(pack, chunk_steps=CHUNK) for pack in plan.packs)
    plan = dataclasses.replace(plan, packs=packs, workers=1)
    store = Store(folder)
    store.folder(run).create()
    asked = itertools.count()

    def stop() -> bool:
        return dispatches is not None and next(asked) >= dispatches

    with progress("training", plan.flops, silent=True) as bar, contextlib.suppress(Preempted):
        execute(plan, store, lambda name: RandomText(), bar, stop=stop, checkpoint_seconds=0.0)  # type: ignore[arg-type, return-value]
    status = store.folder(run).status()
    if status["status"] == "failed":
        raise RuntimeError(f"the tiny run failed: {status['reason']}")
    return store.folder(run).result() is not None


def results(folder: Path) -> dict[str, Any]:
    """What decides whether two runs are the same: result.json, and the metrics of every record.

    Args:
      folder: a store of exactly one run.

    Raises:
      ValueError: it has none, or several.
    """
    (run,) = (folder / "runs").iterdir()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    metrics = [json.loads(line) for line in lines]
    return {
        "result.json": (run / "result.json").read_bytes(),
        "metrics": [{k: m.get(k) for k in ("step", "loss", "grad_norm")} for m in metrics],
    }


def _rounding(expected: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether losses differ by rounding only."""
    pairs = list(zip(expected["metrics"], found["metrics"], strict=False))
    same = len(expected["metrics"]) == len(found["metrics"])
    return same and all(abs(a["loss"] - b["loss"]) <= 1e-2 * abs(a["loss"]) for a, b in pairs)
