"""One experiment trained into its store and reported, for `run` and `verify`."""

from __future__ import annotations

import contextlib
import functools
import importlib
import shlex
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from lmscale.cli.declared import Declared
from lmscale.cli.places import open_corpus
from lmscale.terminal import plural

__all__ = ["Job", "failures_of", "train_job"]


class Job(NamedTuple):
    """An experiment to train: its runs, how they are packed, and the store that they go to.

    `extend` says whether the store takes them beside other runs of the same experiment.
    """

    declared: Declared
    scale: str
    plan: Any
    store: Any
    extend: bool


def train_job(
    job: Job,
    bar: Any,
    signals: Any,
    stop: Callable[[], bool],
    *,
    checkpoint_seconds: float,
    shard: tuple[int, int] = (0, 1),
    choose_slots: bool = True,
    other_stores: Sequence[Any] = (),
    trackers: Mapping[str, Any] | None = None,
    keep_every: int | None = None,
) -> bool:
    """Trains and reports one experiment; True where a run failed for another reason than its loss, or an
    analysis of a user's file failed.

    Args:
      bar: progress, a `lmscale.progress.Tracker`.
      signals: the command's `lmscale.stopping.Stop`, deferred while there is state to save.
      stop: asked at every dispatch whether to stop; in a distributed run by all processes alike.
      checkpoint_seconds: between two checkpoints.
      shard: the part of the runs that the plan has, (index, count).
      choose_slots: whether measured speeds may change how many runs are trained side by side.
      other_stores: whose finished runs are taken over where they are equal.
      trackers: name -> `lmscale.tracking` tracker that hears of every record.
      keep_every: steps between states that are kept for good.

    Raises:
      Preempted: `stop` said so, and every run is saved.
    """
    from lmscale.parallel.distributed import is_main_process
    from lmscale.planner.slots import choices_of
    from lmscale.sweep.execute import execute

    store = job.store
    if is_main_process():
        _prepare(job, bar, shard, other_stores, keep_every)
    # From here on there is training state to save.
    with signals.deferred(), _tracking(job, trackers or {}, bar):
        execute(
            job.plan,
            store,
            functools.partial(open_corpus, vocab_size=job.declared.experiment.vocab_size),
            bar,
            choices=choices_of(store.path, job.plan.devices) if choose_slots else None,
            checkpoint_seconds=checkpoint_seconds,
            keep_every=keep_every,
            stop=stop,
        )
    return _report(store, bar) if is_main_process() else False


def _tracking(job: Job, trackers: Mapping[str, Any], bar: Any) -> Any:
    """While this lasts, the records of the job's runs go to the trackers."""
    from lmscale.parallel.distributed import is_main_process

    if not trackers or not is_main_process():
        return contextlib.nullcontext()
    from lmscale.tracking import follow

    store = job.store
    runs = [(store.folder(run), run.labels) for pack in job.plan.packs for run in pack.runs]
    name = f"{job.declared.name}-{job.scale}"
    return follow(store.path, name, runs, trackers, bar.log)


def _prepare(
    job: Job,
    bar: Any,
    shard: tuple[int, int],
    other_stores: Sequence[Any],
    keep_every: int | None,
) -> None:
    """Declares the store and takes over finished runs."""
    from lmscale.sweep.room import check_room
    from lmscale.sweep.store import note_worker

    name, experiment, corpus, runs, _ = job.declared
    check_room(job.plan, job.store, keep_every)
    # Imported meanwhile: it takes seconds that no run needs to wait for.
    report = threading.Thread(target=importlib.import_module, args=("lmscale.report",), daemon=True)
    report.start()
    command = shlex.join(["lmscale", *sys.argv[1:]])
    job.store.declare(name, job.scale, experiment, corpus, runs, command, extend=job.extend)
    note_worker(job.store, shard)
    for other in other_stores:
        if taken := job.store.adopt(other, runs):
            bar.log(f"{name}: {plural(taken, 'run')} taken from {other.path.name}")


def _report(store: Any, bar: Any) -> bool:
    """Writes the table and the report; whether a run or a user's analysis failed (`train_job`)."""
    from lmscale.report import read_summary, write_report

    for line in store.damage():
        bar.log(f"left out: {line}; the same command makes it again")
    page = write_report(store, bar.log)
    table = store.table()
    counts = table["status"].value_counts().to_dict()
    bar.log(", ".join(f"{count} {status}" for status, count in counts.items()))
    if (summary := read_summary(store)) is not None:
        for line in summary.lines():
            bar.log(line)
    for failure in (failures := failures_of(store)):
        bar.log(failure)
    bar.log(f"report: {page}")
    if next_step := _next_step(store, table):
        bar.log(next_step)
    return bool(failures) or bool({"failed", "out_of_memory"} & set(counts))


def failures_of(store: Any) -> Sequence[str]:
    """A line for each analysis of a user's file that failed in the store's report."""
    from lmscale.report import read_summary

    summary = read_summary(store)
    return () if summary is None else summary.failures


def _next_step(store: Any, table: Any) -> str:
    """What to type next, where the report has found a law that can be asked; empty elsewhere.

    At three times the largest budget a forecast is soon tested, and is one.
    """
    from lmscale.hparams import read_fits

    fits = read_fits(store.path / "fits.json")
    if "budget" not in table or not any(
        fit["exponents"] for name, fit in fits.items() if name.startswith("isoflop/")
    ):
        return ""
    compute = f"{3 * table['budget'].max():.3g}"
    load = "".join(f" --load {shlex.quote(path)}" for path in _files_needed(store))
    return (
        f"next: lmscale advise {store.path} --compute {compute}{load}; "
        f"lmscale verify {store.path} --compute {compute}{load}"
    )


def _files_needed(store: Any) -> list[str]:
    """The user's files without which another command cannot read the store, or would lose an analysis."""
    from lmscale import optimizers, studies
    from lmscale.architectures import architecture
    from lmscale.user_files import file_of

    experiment = store.experiment()
    needs = experiment.get("needs", {})
    things: list[Any] = [architecture(kind) for kind in needs.get("architectures", ())]
    things += [optimizers.optimizer(name).direction for name in needs.get("optimizers", ())]
    things += [studies.find(name) for name in experiment.get("analyses", ())]
    return sorted({path for thing in things if (path := file_of(thing)) is not None})
