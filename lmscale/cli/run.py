"""`lmscale run`: an experiment, or many, trained, fitted and drawn; resumes what is there."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from lmscale.cli import argument_types
from lmscale.cli.declared import (
    badly_centered_lines,
    declare,
    default_store_name,
    earlier_store,
    plan_line,
    prior_source,
    refusal,
    repeated_text,
)
from lmscale.cli.errors import CommandError, code_and_line
from lmscale.cli.experiment_arguments import add_experiment, chosen_experiments, config_lines
from lmscale.cli.parser import Parser
from lmscale.cli.shared_arguments import add_checkpoint_seconds, add_mesh, add_prior
from lmscale.cli.training import Job, train_job
from lmscale.stopping import PREEMPTED, PREEMPTED_LINE
from lmscale.terminal import plural, say

__all__ = ["add_arguments", "run"]


def add_arguments(parser: Parser, words: Sequence[str]) -> None:
    add_experiment(parser, words, _add_options)


def _add_options(parser: Parser) -> None:
    """The options of every experiment."""
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=argument_types.folder,
        help="store of the results (results/NAME-SCALE and what was overridden, as plan shows; of "
        "many experiments: their folder)",
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help="add these runs to the store, where it holds others of the same experiment",
    )
    parser.add_argument(
        "--shard",
        metavar="I/N",
        type=argument_types.shard,
        default=(0, 1),
        help="part I of N, from 0",
    )
    parser.add_argument(
        "--slots", type=argument_types.positive_int, help="runs trained side by side (planned)"
    )
    add_mesh(parser)
    add_prior(parser)
    add_checkpoint_seconds(parser)
    parser.add_argument(
        "--distributed",
        metavar="auto|HOST:PORT,COUNT,INDEX",
        type=argument_types.distributed,
        help="train together with other processes, all given this command: what JAX finds on a TPU "
        "pod, under srun or in Kubernetes, or process INDEX of COUNT whose first is at HOST:PORT",
    )
    parser.add_argument(
        "--keep-every",
        metavar="STEPS",
        type=argument_types.positive_whole,
        help="keep the state of every so many steps for good, in runs/RUN/branches, beside the rolling pair "
        "of checkpoints (export and sample take one by --step)",
    )
    parser.add_argument(
        "--track",
        metavar="tensorboard|wandb|MODULE:FUNCTION",
        action="append",
        default=[],
        help="send the curves of all runs there while they train (DIR/tensorboard; wandb also offline, "
        "WANDB_MODE=offline; or your function(run, records)); may be given several times",
    )
    parser.add_argument(
        "--print-config",
        action="store_true",
        help="print the fields of the experiment, their values and what they mean, as YAML; train nothing "
        "(lmscale run FILE.yaml runs such a file)",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would be trained, and where it would go; train and write no run",
    )


def run(args: argparse.Namespace) -> int:
    """Trains alone, or as one process of several."""
    if args.print_config:
        documents = ["\n".join(config_lines(*one, args)) for one in chosen_experiments(args)]
        print("\n---\n".join(documents))
        return 0
    if args.dry_run and args.distributed is not None:
        raise CommandError(
            "--dry-run is of this machine alone: leave --distributed out, or ask lmscale plan --device"
        )
    from lmscale.cli import start_jax

    start_jax()
    if args.dry_run:
        return _dry_run(args)
    if args.distributed is None:
        return _train_all(args, args.stop)
    return _train_together(args)


def _dry_run(args: argparse.Namespace) -> int:
    """Says for each experiment what `_train_all` would say first, and how many runs are done."""
    prior, jobs = prior_source(args.prior), _jobs(args)
    for job in jobs:
        for line in _opening_lines(args, job, prior):
            print(line)
        folders = [job.store.folder(run) for run in job.declared.runs]
        done = sum(one.damage() is None and one.result() is not None for one in folders)
        if done:
            print(f"{job.declared.name}: {done} of {plural(len(folders), 'run')} done already")
    return 0


def _train_together(args: argparse.Namespace) -> int:
    """Trains as one process of a distributed run; every process ends with the same exit code."""
    from lmscale.parallel import distributed

    try:
        distributed.start(args.distributed, _identity(args))
        if args.stop():
            # From here on JAX hears the signal, for all processes.
            os.kill(os.getpid(), signal.SIGTERM)
        code = _train_all(args, distributed.preempted)
    except distributed.DistributedError as error:
        say(f"lmscale run: {error}")
        code = error.code
    except BaseException as error:  # The other processes must hear of it.
        code, line = code_and_line(error)
        if line is None:
            traceback.print_exc()
        else:
            say(f"lmscale run: {line}")
    return distributed.finish(code)


def _identity(args: argparse.Namespace) -> str:
    """The command, as far as all processes that train together must have the same."""
    own = ("handler", "stop", "distributed", "loaded", "many", "files")
    return json.dumps({k: repr(v) for k, v in vars(args).items() if k not in own}, sort_keys=True)


def _train_all(args: argparse.Namespace, stop: Callable[[], bool]) -> int:
    """Trains every experiment that was asked for, the cheapest first."""
    from etils import epath

    from lmscale.parallel.distributed import broadcast_from_main, is_main_process
    from lmscale.progress import progress
    from lmscale.training.loop import Preempted

    trackers = _trackers(args)
    prior, jobs = prior_source(args.prior), _jobs(args)
    parent = epath.Path(args.out or "results").expanduser()
    any_failed, flops = False, sum(job.plan.flops for job in jobs)
    with progress("training", flops, silent=not is_main_process()) as bar:
        for number, job in enumerate(jobs):
            for line in _opening_lines(args, job, prior):
                bar.log(line)
            others = [other.store for other in (*jobs[:number], *jobs[number + 1 :])]
            try:
                any_failed |= train_job(
                    job,
                    bar,
                    args.stop,
                    stop,
                    checkpoint_seconds=args.checkpoint_seconds,
                    shard=args.shard,
                    choose_slots=not args.slots,
                    other_stores=others,
                    trackers=trackers,
                    keep_every=args.keep_every,
                )
            except Preempted:
                if is_main_process():
                    job.store.write_table()
                    say(PREEMPTED_LINE)
                return PREEMPTED
            if args.many and is_main_process():
                from lmscale.report import write_front

                write_front(parent)
    if args.many and is_main_process():
        say(f"all reports: {parent / 'index.html'}")
    # The others wait until the first has written its reports.
    return broadcast_from_main(lambda: 1 if any_failed else 0)


def _trackers(args: argparse.Namespace) -> dict[str, Any]:
    """The trackers by name, in the process that sends; one that cannot be had is refused at once."""
    from lmscale.parallel.distributed import is_main_process

    if not args.track or not is_main_process():
        return {}
    from lmscale.tracking import make_tracker

    return {name: make_tracker(name) for name in args.track}


def _jobs(args: argparse.Namespace) -> list[Job]:
    """The experiments that were asked for, declared and planned, the cheapest first.

    Raises:
      StoreError: a store holds runs of another declaration.
    """
    from lmscale.parallel.distributed import broadcast_from_main, check_same, is_main_process
    from lmscale.planner.devices import Devices, local_devices
    from lmscale.planner.packs import make_plan
    from lmscale.sweep.shards import shard_runs
    from lmscale.sweep.store import Store, StoreError

    chosen, found = chosen_experiments(args), []
    # All names before any corpus is built: a bad one is refused at once.
    stores = [Store(_out(args, default_store_name(args, *one))) for one in chosen]
    for one, store in zip(chosen, stores, strict=True):
        # The first process builds the corpora that are not there yet, the others read them.
        declared = declare(args, *one) if is_main_process() else None
        if declared:
            # Before anything is trained, and before many workers would each do it.
            declared.corpus.check()
        broadcast_from_main(lambda: None)
        declared = declared or declare(args, *one)
        if is_main_process() and (why := refusal(args, declared, store)):
            raise StoreError(why)
        found.append((declared, store))
    check_same("runs", " ".join(run.spec.hash for one, _ in found for run in one.runs))
    # JAX looks for devices in all processes at once. Machines differ by some bytes of memory, but
    # plans must not.
    own = local_devices()
    devices, jobs = Devices(**broadcast_from_main(lambda: dataclasses.asdict(own))), []
    for declared, store in found:
        plan = make_plan(
            shard_runs(declared.runs, *args.shard),
            devices,
            n_slots=args.slots,
            mesh=args.mesh,
            whole=args.distributed is not None,
        )
        jobs.append(Job(declared, args.scale, plan, store, args.extend))
    return sorted(jobs, key=lambda job: job.plan.flops)


def _out(args: argparse.Namespace, name: str) -> str:
    """Where an experiment's results go, if its folder has this name."""
    if args.out is not None and not args.many:
        return args.out
    # As text: the store says in a line why it cannot take a path, of which a path object may not be made.
    return f"{(args.out or 'results').rstrip('/')}/{name}"


def _opening_lines(args: argparse.Namespace, job: Job, prior: Any) -> list[str]:
    """What a user should know of an experiment before it is trained."""
    from lmscale.parallel.distributed import is_main_process

    declared, store = job.declared, job.store
    lines = [*declared.lines, f"{plan_line(job.plan)} -> {store.path}"]
    if is_main_process():
        earlier = earlier_store(args, declared.name, store)
        lines += badly_centered_lines(prior, declared.runs, earlier)
    if repeated := repeated_text(declared)[1]:
        lines.append(repeated)
    return [f"{declared.name}: {line}" for line in lines]
