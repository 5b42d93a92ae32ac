"""Execution of a plan: pack by pack, every run to its end, every failure written down."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace

import jax

from lmscale import flops
from lmscale.data import Corpus
from lmscale.files import write_atomically
from lmscale.parallel import make_mesh
from lmscale.progress import Tracker
from lmscale.spec import EvalSpec
from lmscale.sweep.plan import Pack, Plan, branch_steps
from lmscale.sweep.store import ENDED, Store
from lmscale.training.evaluation import Evaluator
from lmscale.training.feed import Feed
from lmscale.training.loop import Preempted, train_pack
from lmscale.training.run_folder import RunFolder
from lmscale.training.step import build_program


def execute(
    plan: Plan,
    store: Store,
    open_corpus: Callable[[str], Corpus],
    bar: Tracker,
    *,
    attention: str | None = None,
    checkpoint_seconds: float = 60.0,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Trains every run of the plan that has not ended.

    A failure of one pack is written to its runs' status.json (and error.txt) and the next pack goes
    on. A pack that does not fit in memory is tried again with half the slots.

    Args:
      plan: for the devices of this process.
      store: where the runs live.
      open_corpus: by name.
      bar: is told of every FLOP of the plan (`Plan.flops` in all).
      attention: see `lmscale.models.build_model`; by platform when None.
      checkpoint_seconds: at most this much work is lost to a kill.
      stop: asked between dispatches.

    Raises:
      Preempted: when `stop` said so; every state is saved.
    """
    kept_steps = branch_steps([run for pack in plan.packs for run in pack.runs])
    corpora: dict[str, Corpus] = {}
    feeds: dict[tuple, Feed] = {}

    def corpus(name: str) -> Corpus:
        if name not in corpora:
            corpora[name] = open_corpus(name)
        return corpora[name]

    for number, pack in enumerate(plan.packs, 1):
        folders = [store.folder(run) for run in pack.runs]
        left = [folder for folder in folders if folder.result() is None]
        cost_left = sum(flops.own_flops(folder.spec) for folder in left)
        bar.skip(pack.flops - cost_left)
        if not left:
            continue
        label = pack.key.model.label
        bar.log(
            f"pack {number}/{len(plan.packs)}: {len(left)} runs of {label}, {pack.n_slots} at a time"
        )
        feed_key = (pack.fingerprint, pack.mesh)
        mesh = mesh_of(pack)

        def train(pack: Pack, left: list[RunFolder], mesh=mesh, feed_key=feed_key) -> None:
            name = left[0].spec.data.corpus
            if feed_key not in feeds:
                feeds[feed_key] = Feed(corpus(name), mesh)
            program = build_program(
                pack.key,
                n_slots=pack.n_slots,
                mesh=mesh,
                chunk_steps=pack.chunk_steps,
                micro_batch=pack.micro_batch,
                attention=attention or default_attention(pack.key.compute_dtype),
            )

            def eval_corpus(evaluation: EvalSpec) -> Corpus:
                return corpus(evaluation.corpus)

            train_pack(
                program,
                left,
                feeds[feed_key],
                Evaluator(program, eval_corpus),
                bar,
                kept_steps=kept_steps,
                checkpoint_seconds=checkpoint_seconds,
                stop=stop,
            )

        _train_or_record(train, pack, left, bar.log)


def _train_or_record(train: Callable, pack: Pack, left: list[RunFolder], log: Callable) -> None:
    while True:
        try:
            train(pack, left)
            return
        except (Preempted, KeyboardInterrupt):
            raise
        except Exception as error:  # noqa: BLE001 (whatever broke a pack must not end the sweep)
            left = [folder for folder in left if folder.status()["status"] not in ENDED]
            memory = "RESOURCE_EXHAUSTED" in str(error)
            smallest = pack.mesh[0]
            if memory and pack.n_slots > smallest:
                slots = max(smallest, pack.n_slots // 2 // smallest * smallest)
                log(
                    f"{pack.key.model.label}: {pack.n_slots} runs do not fit in memory, trying {slots}"
                )
                pack = replace(pack, n_slots=slots)
                continue
            status = "out_of_memory" if memory else "failed"
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            for folder in left:
                old = folder.status()
                folder.write_status(status, step=old["step"], seconds=old["seconds"], reason=reason)
                write_atomically(folder.path / "error.txt", traceback.format_exc())
            log(f"{pack.key.model.label}: {len(left)} runs {status}: {reason}")
            return


def mesh_of(pack: Pack) -> jax.sharding.Mesh:
    """The pack's mesh on the first devices of this process."""
    run, data, model = pack.mesh
    return make_mesh(run, data, model, devices=jax.devices()[: run * data * model])


def default_attention(compute_dtype: str) -> str:
    """The flash kernel on a GPU in bfloat16, XLA's elsewhere."""
    on_gpu = jax.default_backend() == "gpu"
    return "cudnn" if on_gpu and compute_dtype == "bfloat16" else "xla"
