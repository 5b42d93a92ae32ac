"""Runs an experiment on a Cloud TPU slice: asks for it, trains on all its hosts, gives it back.

Prints a shell script; with --apply it runs. The script asks for a queued resource, copies this clone to
every host and installs it, starts `lmscale run --distributed auto` on all hosts as one job, and looks
every minute: logs come to this machine, and when the job was stopped or the slice taken away, it starts
again on the same or a new slice, until all runs are done. At its end, however it ends, the slice is
deleted. Project, zone and account are gcloud's own (`gcloud config`, CLOUDSDK_*) unless given.
"""

from __future__ import annotations

import shlex
import shutil
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from launch.common import Parser, digits, job_name, positive, progress_function, run_command, shell

_EPILOG = """\
examples:
  read the script first (it costs nothing):
    python -m launch.tpu_pod isoflop --scale gpu --out gs://BUCKET/isoflop --tpu v5litepod-16
  then run it; this machine must stay up, so use tmux or a small VM:
    python -m launch.tpu_pod isoflop --scale gpu --out gs://BUCKET/isoflop --tpu v5litepod-16 --spot --apply
  flex-start, for at most a day:
    python -m launch.tpu_pod isoflop --scale gpu --out gs://BUCKET/x --tpu v6e-64 --flex-start 1d --zone us-east5-a
  two slices that share the runs: the same command twice
    python -m launch.tpu_pod isoflop --scale gpu --out gs://BUCKET/x --tpu v6e-16 --shard 0/2 --apply
    python -m launch.tpu_pod isoflop --scale gpu --out gs://BUCKET/x --tpu v6e-16 --shard 1/2 --apply
  your own text, fetched by every host:
    ... --data mytext --prologue 'gcloud storage cp -r gs://BUCKET/data/mytext ~/.cache/lmscale/data/'

before the first: gcloud auth login; ssh-add ~/.ssh/google_compute_engine; a bucket in the TPU's region.
TPU7x is not offered through queued resources: use launch.gke.
"""

#: Software of the hosts by the start of the accelerator type; newer types first.
_RUNTIMES = {
    "v6e": "v2-alpha-tpuv6e",
    "v5p": "v2-alpha-tpuv5",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v4": "tpu-ubuntu2204-base",
    "v3": "tpu-ubuntu2204-base",
    "v2": "tpu-ubuntu2204-base",
}

#: On every host, in the copy of this clone: an environment of its own, as the system's Python is older.
_SETUP = """\
python3 -m pip install --quiet --user uv
~/.local/bin/uv venv --quiet --clear --python 3.11 ~/lmscale/venv
~/.local/bin/uv pip install --quiet --python ~/lmscale/venv -e '.[tpu,gcs]' -c constraints.txt
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the script, or runs it; returns the exit code."""
    args = _parse(argv)
    text = script(args)
    if not args.apply:
        print(text, end="")
        return 0
    for tool in ("gcloud", "git"):
        if shutil.which(tool) is None:
            print(f"launch.tpu_pod: there is no {tool} here: install it first", file=sys.stderr)
            return 2
    changed = ["git", "status", "--porcelain"]
    if subprocess.run(changed, check=False, capture_output=True, text=True).stdout:
        print("launch.tpu_pod: the hosts get what is committed, not your changes", file=sys.stderr)
    path = Path(args.logs) / "script.sh"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    process = subprocess.Popen(["bash", str(path)])
    # The script saves and deletes the slice when it is stopped; a Ctrl-C it has heard by itself.
    signal.signal(signal.SIGTERM, lambda number, frame: process.terminate())
    signal.signal(signal.SIGINT, lambda number, frame: None)
    return process.wait()


def script(args: Namespace) -> str:
    """The shell script."""
    values = {"name": args.name, "out": args.out, "logs": args.logs, "poll": args.poll}
    lines = ["#!/bin/bash", "set -uo pipefail"]
    lines += [f"{name}={shlex.quote(str(value))}" for name, value in values.items()]
    lines += [f"where=({shlex.join(_where(args))})", f"request=({shlex.join(_request(args))})", ""]
    lines += ["# What every host does once, in its copy of this clone.", "setup() {", "  set -e"]
    lines += [f"  {line}" for line in (args.setup or _SETUP.splitlines())]
    lines += ["}", "# What every host does as one process of the job.", "train() {"]
    words = run_command(args, args.lmscale, args.shard)
    lines += [f"  {line}" for line in [*args.prologue, f"{shell(words)} --distributed auto"]]
    body = _BODY.replace("STUCK_LIMIT", str(args.stuck_limit))
    body = body.replace("give_back_at_end", "true" if args.keep else "give_back")
    return "\n".join([*lines, "}", progress_function(args), body])


def _where(args: Namespace) -> list[str]:
    options = {"zone": args.zone, "project": args.project}
    return [*(f"--{name}={value}" for name, value in options.items() if value), "--quiet"]


def _request(args: Namespace) -> list[str]:
    """gcloud's words that ask for the slice."""
    # Flex-start is in gcloud's alpha commands only.
    words = ["gcloud", *(["alpha"] if args.flex_start else []), "compute", "tpus"]
    words += ["queued-resources", "create", args.name, f"--node-id={args.name}"]
    words += [f"--accelerator-type={args.tpu}", f"--runtime-version={args.runtime}"]
    if args.spot:
        words += ["--spot"]
    if args.flex_start:
        words += ["--provisioning-model=flex-start", f"--max-run-duration={args.flex_start}"]
    return [*words, *args.request]


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = Parser("tpu_pod", __doc__, _EPILOG)
    parser.add_argument(
        "--apply", action="store_true", help="run the script; this spends money until it ends"
    )
    group = parser.add_argument_group("the slice")
    group.add_argument(
        "--tpu",
        metavar="TYPE",
        required=True,
        help="accelerator type: v5litepod-16, v6e-64, v5p-128",
    )
    group.add_argument("--runtime", metavar="VERSION", help="software of the hosts [by type]")
    group.add_argument("--spot", action="store_true", help="cheaper; may be taken away at any time")
    group.add_argument("--flex-start", metavar="DURATION", help="for at most this long: 4h, 1d, 7d")
    group.add_argument("--zone", help="[gcloud's compute/zone]")
    group.add_argument("--project", help="[gcloud's project]")
    group.add_argument(
        "--name", help="of the slice and its request [from EXPERIMENT, DIR and shard]"
    )
    group.add_argument(
        "--request",
        action="append",
        default=[],
        metavar="OPTION",
        help="any other of queued-resources create, as --request=--service-account=...",
    )
    group.add_argument("--keep", action="store_true", help="do not delete the slice at the end")
    group = parser.add_argument_group("the job")
    group.add_argument("--shard", default="0/1", metavar="I/N", help="this slice's share [0/1]")
    group.add_argument(
        "--setup",
        action="append",
        default=[],
        metavar="LINE",
        help="shell line that prepares a host, instead of installing this clone; may be repeated",
    )
    group.add_argument(
        "--prologue",
        action="append",
        default=[],
        metavar="LINE",
        help="shell line on every host before the training; may be repeated",
    )
    group.add_argument("--poll", type=positive, default=60, help="seconds between two looks [60]")
    group.add_argument(
        "--stuck-limit", type=positive, default=3, help="turns in a row without progress [3]"
    )
    group.add_argument("--logs", metavar="DIR", help="on this machine [logs/NAME]")
    args = parser.parse(argv)
    parser.check_file(args)
    if args.apply and args.dry_run:
        parser.error("give --apply or --dry-run, not both")
    if not args.out.startswith("gs://"):
        parser.error(f"--out must be a bucket, as gs://BUCKET/isoflop, not {args.out!r}")
    if args.experiment.startswith(("/", "..")):
        parser.error(f"{args.experiment} is not in this clone, which is what the hosts get")
    if args.spot and args.flex_start:
        parser.error("give --spot or --flex-start, not both")
    index, count = (digits(part) for part in (args.shard.partition("/")[::2]))
    if index is None or count is None or index >= count:
        parser.error(f"--shard must be I/N with I from 0 to N - 1, not {args.shard!r}")
    if args.runtime is None:
        kind = args.tpu.split("-")[0]
        if kind not in _RUNTIMES or digits(args.tpu.removeprefix(f"{kind}-")) is None:
            parser.error(
                f"--tpu must be a type of {', '.join(_RUNTIMES)} and a size, as v5litepod-16, "
                f"not {args.tpu!r}; for others give --runtime too"
            )
        args.runtime = _RUNTIMES[kind]
    args.name = args.name or job_name(args) + (f"-{index}" if count > 1 else "")
    args.logs = args.logs or f"logs/{args.name}"
    args.lmscale = args.lmscale or ("lmscale" if args.setup else "~/lmscale/venv/bin/lmscale")
    return args


_BODY = """\

say() { echo "$(date '+%F %T') $*" >&2; }
on() { gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker="$1" --command="$2"; }
state() {
  local answer
  if answer=$(gcloud compute tpus queued-resources describe "$name" "${where[@]}" --format='value(state.state)' 2>&1); then
    tail -n 1 <<<"$answer"
  else
    case $answer in *NOT_FOUND*) echo NONE ;; *) echo UNKNOWN ;; esac
  fi
}
give_back() {
  say "deleting $name"
  gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force
}
# The processes save and end; one that is left would keep the chips.
stop_training() {
  # shellcheck disable=SC2016 # expanded by the hosts
  on all 'pid=$(cat ~/lmscale/pid 2>/dev/null) || exit 0; kill -TERM -- "-$pid" 2>/dev/null
for _ in $(seq 90); do kill -0 -- "-$pid" 2>/dev/null || exit 0; sleep 1; done
kill -KILL -- "-$pid"; true' >/dev/null 2>&1
}
trap give_back_at_end EXIT
trap 'say "stopping"; stop_training; exit 42' INT TERM

# Returns with a slice that is there and prepared; waits in the queue for as long as it takes.
get_slice() {
  local asked=0 tried=0
  while true; do
    case $(state) in
      ACTIVE)
        prepare && return
        tried=$((tried + 1))
        [ "$tried" -lt 5 ] || { say "the hosts could not be prepared; see $logs"; exit 1; }
        ;;
      NONE)
        asked=$((asked + 1))
        [ "$asked" -lt 5 ] || { say "the slice does not come up"; exit 1; }
        say "asking for $name"
        "${request[@]}" "${where[@]}" --async || exit 1
        ;;
      FAILED | SUSPENDED) give_back ;;
    esac
    sleep "$poll"
  done
}
prepare() {
  on all 'test -e ~/lmscale/ready' >/dev/null 2>&1 && return
  say "preparing the hosts"
  git archive --format=tar.gz --output="$logs/clone.tar.gz" HEAD || exit 1
  on all 'mkdir -p ~/lmscale/clone' >"$logs/prepare.log" 2>&1 &&
    gcloud compute tpus tpu-vm scp "$logs/clone.tar.gz" "$name:lmscale/" "${where[@]}" --worker=all >>"$logs/prepare.log" 2>&1 &&
    on all "$(declare -f setup)
tar -xzf ~/lmscale/clone.tar.gz -C ~/lmscale/clone && cd ~/lmscale/clone && (setup) && touch ~/lmscale/ready" >>"$logs/prepare.log" 2>&1
}
# Detached, so that a lost connection stops nothing; the exit code is the last line of a host's log.
start_training() {
  # shellcheck disable=SC2016 # expanded by the hosts
  { declare -f train; echo 'cd ~/lmscale/clone 2>/dev/null; (train); echo "exit code $?"'; } >"$logs/train.sh"
  # shellcheck disable=SC2016 # expanded by the hosts
  gcloud compute tpus tpu-vm scp "$logs/train.sh" "$name:lmscale/" "${where[@]}" --worker=all >/dev/null 2>&1 &&
    on all 'cd ~/lmscale && { setsid nohup bash train.sh >log 2>&1 </dev/null & echo $! >pid; }' >/dev/null 2>&1
}

mkdir -p "$logs"
last=-1 stuck=0 turn=0
while true; do
  get_slice
  stop_training
  now=$(on 0 "cd ~/lmscale/clone 2>/dev/null; out=$(printf %q "$out"); $(declare -f steps_done); steps_done" 2>"$logs/status.log" | tail -n 1)
  # Without an answer the last one stays, and nothing is said about progress.
  if [ "$now" != unknown ]; then
    if [ "${now:-0}" -gt "$last" ]; then stuck=0; else stuck=$((stuck + 1)); fi
    last=${now:-0}
  fi
  if [ "$stuck" -ge STUCK_LIMIT ]; then
    say "no progress in $stuck turns: giving up; see $logs"
    exit 1
  fi
  turn=$((turn + 1)) log="$logs/turn-$turn"
  say "turn $turn begins; logs in $log.*"
  start_training
  code=
  while [ -z "$code" ]; do
    sleep "$poll"
    # shellcheck disable=SC2016 # expanded by the host
    on 0 'cat ~/lmscale/log; kill -0 "$(cat ~/lmscale/pid)" 2>/dev/null || echo "exit code gone"' >"$log.new" 2>/dev/null &&
      mv "$log.new" "$log.0.log" && code=$(sed -n 's/^exit code //p' "$log.0.log" | head -n 1)
    if [ -z "$code" ]; then
      case $(state) in ACTIVE | UNKNOWN) ;; *) code=lost ;; esac
    fi
    say "$(tail -n 1 "$log.0.log" 2>/dev/null)"
  done
  # shellcheck disable=SC2016 # expanded by the hosts
  on all 'sed "s/^/$(hostname) /" ~/lmscale/log' >"$log.all.log" 2>/dev/null
  # 0: all is done. 1, 2: a run failed, or bad usage: no repetition helps. 42: stopped, saved. Else: lost.
  say "turn $turn ended: $code"
  case $code in 0 | 1 | 2) exit "$code" ;; esac
done
"""


if __name__ == "__main__":
    sys.exit(main())
