"""Runs an experiment on a Slurm cluster: an array of small tasks, or process groups that share large runs.

Writes a batch script into the logs' folder and submits it with sbatch. Each array task trains its
share of the experiment. A task that is stopped (time limit, preemption) saves, is requeued and goes
on; a cancelled or failed array is submitted again by the same command and does only what is left.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from launch.common import (
    PREEMPTED,
    Parser,
    Raw,
    job_name,
    lmscale_here,
    positive,
    progress_function,
    run_command,
    shell,
)

_EPILOG = """\
examples:
  see the script first:
    python -m launch.slurm isoflop --scale gpu --out /shared/isoflop --tasks 8 --gpus 1 --time 4:00:00 --dry-run
  many small runs, eight tasks of which four run at a time, one GPU each:
    python -m launch.slurm isoflop --scale gpu --out /shared/isoflop --tasks 8 --max 4 --gpus 1 --time 4:00:00
  large runs, each trained by 4 nodes with 8 GPUs, one process a node:
    python -m launch.slurm isoflop --scale paper --out /shared/paper --nodes 4 --gpus 8 --time 1-0
  options of `lmscale run`, and an environment of your own:
    python -m launch.slurm isoflop --out /shared/x --prologue 'source ~/venv/bin/activate' -- --seeds 0 1
  a container:
    python -m launch.slurm isoflop --out /shared/x --lmscale 'apptainer exec --nv lmscale.sif lmscale'

DIR must be on a file system that all nodes share, or a bucket. Afterwards:
  squeue --me                    lmscale status DIR                    tail -f DIR/logs/*.log
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Submits the job, or prints what it would be; returns the exit code."""
    args = _parse(argv)
    script = batch_script(args)
    path = Path(args.logs) / f"{job_name(args)}.sbatch"
    submit = ["sbatch", "--parsable", str(path)]
    if args.dry_run:
        print(f"{script}\n# submitted by: {shell(submit)}")
        return 0
    if shutil.which("sbatch") is None:
        print(
            "launch.slurm: there is no sbatch here: run this on a login node, or see --dry-run",
            file=sys.stderr,
        )
        return 2
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script)
    done = subprocess.run(submit, check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return 1
    print(f"job {done.stdout.strip().split(';')[0]}: {path}")
    print(f"logs in {args.logs}; `squeue --me` and `lmscale status {args.out}` show how far it is")
    return 0


def batch_script(args: Namespace) -> str:
    """The text for sbatch."""
    processes = args.nodes * args.tasks_per_node
    lines = ["#!/bin/bash", *(f"#SBATCH {line}" for line in _directives(args))]
    # Prologues (module, conda) rarely stand `set -u`.
    lines += ["", *args.prologue, *([""] if args.prologue else []), "set -uo pipefail"]
    lines += [f"out={shlex.quote(args.out)}", f"logs={shlex.quote(args.logs)}", ""]
    if processes > 1:
        lines += [_COORDINATOR.format(processes=processes), ""]
    lines += [_step(args, processes), "", progress_function(args), ""]
    lines += [_AFTERWARDS.replace("STUCK_LIMIT", str(args.stuck_limit))]
    return "\n".join(lines)


def _directives(args: Namespace) -> list[str]:
    array = f"0-{args.tasks - 1}" + (f"%{args.max}" if args.max else "")
    values = {
        "job-name": job_name(args),
        "array": array,
        # Another array on the same store waits for this one: no run is trained twice at once.
        "dependency": "singleton",
        "nodes": args.nodes,
        "ntasks-per-node": args.tasks_per_node,
        "cpus-per-task": args.cpus,
        "gpus-per-task": args.gpus,
        "gres": args.gres,
        "mem": args.mem,
        "time": args.time,
        "partition": args.partition,
        "account": args.account,
        "qos": args.qos,
        "constraint": args.constraint,
        # JAX's preemption service hears TERM only. Without "B:" it goes to the steps.
        "signal": f"TERM@{args.grace}",
        "open-mode": "append",
        "output": _log(args, "%A_%a.log"),
    }
    lines = [f"--{name}={_quoted(value)}" for name, value in values.items() if value is not None]
    return [*lines, "--requeue", *args.sbatch]


def _quoted(value: str | int) -> str:
    """A value as sbatch reads it: quotes and backslashes mean what they mean to a shell, # a comment."""
    if re.fullmatch(r"[\w@%+=:,./&|*!\[\]()-]+", str(value)):
        return str(value)
    escaped = re.sub(r'(["\\])', r"\\\1", str(value))
    return f'"{escaped}"'


def _log(args: Namespace, name: str) -> str:
    """The path of a log, in whose `name` Slurm fills in the numbers after its percent signs."""
    return f"{args.logs.replace('%', '%%')}/{name}"


def _step(args: Namespace, processes: int) -> str:
    """The training step: through srun always, which gives every process its rank and its signals."""
    srun = ["srun", "--kill-on-bad-exit=0", "--open-mode=append"]
    srun += [f"--output={_log(args, '%A_%a-%t.log')}"]
    if args.cpus:
        srun += [f"--cpus-per-task={args.cpus}"]
    srun += args.srun
    command = run_command(args, args.lmscale, Raw(f'"$SLURM_ARRAY_TASK_ID/{args.tasks}"'))
    if processes == 1:
        return _STEP.format(command=shell([*srun, *command]))
    group = ["bash", "-c", 'exec "$@" --distributed "$coordinator,$SLURM_PROCID"', "group"]
    disable = "# shellcheck disable=SC2016 # expanded by each process, which has a rank\n"
    return _STEP.format(command=disable + shell([*srun, *group, *command]))


# The port depends on the job and is held by a lock for as long as this shell lives, so that groups that
# begin on one node at once cannot take the same one: JAX would join two jobs on one port silently.
_COORDINATOR = """\
# Where the processes of this group meet: a port of the first node that no other group holds.
host=$(scontrol show node "$SLURMD_NODENAME" | sed -n 's/.*NodeAddr=\\([^ ]*\\).*/\\1/p')
for try in $(seq 0 199); do
  port=$((20000 + (SLURM_JOB_ID * 7 + try) % 10000))
  exec {{lock}}>"/tmp/lmscale-port-$port" || continue
  if flock --nonblock "$lock" && ! (: >"/dev/tcp/127.0.0.1/$port"); then break; fi
  exec {{lock}}>&-
  port=
done 2>/dev/null
if [ -z "$port" ]; then
  echo "no free port between 20000 and 29999 on $SLURMD_NODENAME" >&2
  exit 1
fi
export coordinator="${{host:-$(hostname)}}:$port,{processes}"\
"""

_STEP = """\
# TERM (preemption, requeue, scancel) is for the training processes; this shell stays to see them end.
trap : TERM
{command} &
step=$!
while kill -0 "$step" 2>/dev/null; do wait "$step"; done
wait "$step"
code=$?
echo "$(date '+%F %T') task $SLURM_ARRAY_TASK_ID ended with code $code"\
"""

_AFTERWARDS = f"""\
# 0: all is done. 1, 2: a run failed, or bad usage: no repetition helps. {PREEMPTED}: stopped and saved. Others: killed.
case $code in 0 | 1 | 2) exit "$code" ;; esac
if [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" != RUNNING ]; then
  # Cancelled, or already on its way back into the queue.
  exit "$code"
fi
record="$logs/${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID.steps"
last=-1 stuck=0
[ -f "$record" ] && read -r last stuck <"$record"
now=$(steps_done)
# Without an answer the last one stays, and nothing is said about progress.
if [ "$now" != unknown ]; then
  if [ "$now" -gt "$last" ]; then stuck=0; else stuck=$((stuck + 1)); fi
  last=$now
fi
if [ "$stuck" -ge STUCK_LIMIT ]; then
  echo "no progress in $stuck requeues: giving up; see the logs of this task in $logs" >&2
  exit 1
fi
echo "$last $stuck" >"$record"
echo "requeued after $now steps of all runs"
scontrol requeue "$SLURM_JOB_ID" || exit "$code"
"""


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = Parser("slurm", __doc__, _EPILOG)
    group = parser.add_argument_group("how much")
    group.add_argument("--tasks", type=positive, default=1, help="shards of the experiment [1]")
    group.add_argument("--max", type=positive, help="tasks that run at a time [all]")
    group.add_argument(
        "--nodes", type=positive, default=1, help="nodes that share a task's runs [1]"
    )
    group.add_argument(
        "--tasks-per-node", type=positive, default=1, help="processes on each node of a group [1]"
    )
    group.add_argument("--gpus", type=positive, help="GPUs a process")
    group.add_argument("--cpus", type=positive, help="CPUs a process")
    group.add_argument("--gres", help="generic resources a node, such as gpu:a100:4")
    group.add_argument("--mem", help="memory a node, such as 64G")
    group.add_argument(
        "--time", help="limit a turn; what is left goes on in the next [partition's]"
    )
    group = parser.add_argument_group("where (default: what your Slurm and its SBATCH_* say)")
    group.add_argument("--partition")
    group.add_argument("--account")
    group.add_argument("--qos")
    group.add_argument("--constraint")
    group.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="OPTION",
        help="any other, as --sbatch=--exclusive",
    )
    group.add_argument(
        "--srun", action="append", default=[], metavar="OPTION", help="such as --srun=--mpi=none"
    )
    group = parser.add_argument_group("how")
    group.add_argument(
        "--prologue",
        action="append",
        default=[],
        metavar="LINE",
        help="shell line before the training, such as 'module load cuda'; may be repeated",
    )
    group.add_argument(
        "--grace", type=positive, default=120, help="seconds to save before the time limit [120]"
    )
    group.add_argument(
        "--stuck-limit", type=positive, default=3, help="requeues in a row without progress [3]"
    )
    group.add_argument("--logs", metavar="DIR", help="[OUT/logs]")
    args = parser.parse(argv)
    parser.check_file(args)
    if args.logs is None:
        if "://" in args.out:
            parser.error("with a bucket as --out, give a --logs folder that the nodes share")
        args.logs = f"{args.out.rstrip('/')}/logs"
    if args.gpus and args.gres:
        parser.error("give --gpus or --gres, not both")
    if args.gres and args.tasks_per_node > 1:
        parser.error("--gres is a node's, for all its processes at once: give --gpus, a process's")
    if args.lmscale is None:
        args.lmscale = "lmscale" if args.prologue else lmscale_here(None)
    if args.time is not None:
        seconds = _seconds(args.time)
        if seconds is None:
            parser.error(f"--time must be as 90, 4:00:00 or 1-12, not {args.time!r}")
        # Slurm may send the signal a minute early; what comes before must be worth a start.
        if seconds < args.grace + 300:
            parser.error(f"--time {args.time} leaves too little before --grace {args.grace}")
    for option in args.sbatch:
        if not option.startswith("-"):
            parser.error(f"--sbatch takes an option, as --sbatch=--exclusive, not {option!r}")
    return args


def _seconds(limit: str) -> int | None:
    """Slurm's time formats: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None for anything else."""
    match = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", limit)
    if not match:
        return None
    days, first, second, third = match.groups()
    parts = [int(part) for part in (first, second, third) if part is not None]
    if days is None and len(parts) < 3:
        parts = [0, *parts]
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


if __name__ == "__main__":
    sys.exit(main())
