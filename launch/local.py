"""Runs an experiment on the devices of this machine: one worker a device, or one job over all.

Each worker trains its share and is restarted when it was stopped with everything saved, or died. Ctrl-C
or TERM stops all of them, saved (a second one at once); the same command goes on from there. The exit
code is the worst of the workers': 0 all done, 42 stopped and saved, 1 a run failed, 2 bad usage.
"""

from __future__ import annotations

import contextlib
import ctypes
import glob
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.common import (
    FINAL,
    PREEMPTED,
    Parser,
    Raw,
    command_words,
    job_name,
    lmscale_here,
    positive,
    run_command,
    shell,
    steps_done,
)

_EPILOG = """\
examples:
  one worker a GPU (TPU chip, CPU core), each with its share of the runs:
    python -m launch.local isoflop --scale gpu --out results/isoflop
  large runs, by one job that splits them over all devices as needed:
    python -m launch.local isoflop --scale paper --out results/paper --together
  on CPU cores, whatever else there is, with options of `lmscale run`:
    python -m launch.local isoflop --out results/isoflop --device cpu --workers 2 -- --seeds 0 1
  see the commands first:
    python -m launch.local isoflop --out results/isoflop --dry-run
"""

#: Seconds between two looks at the workers, and between two lines of progress.
_LOOK, _SHOW = 0.2, 15.0


@dataclass
class Worker:
    """One process: its command, what its environment adds, its log."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen | None = None
    shown: str = ""


@dataclass
class Group:
    """Workers that begin and end together: one alone, or the processes of one distributed job."""

    workers: list[Worker]
    code: int | None = None
    stuck: int = 0
    steps: int = -1


def main(argv: Sequence[str] | None = None) -> int:
    """Trains; returns the worst exit code."""
    args = _parse(argv)
    groups = _groups(args)
    if args.dry_run:
        workers = [worker for group in groups for worker in group.workers]
        print(shell(["mkdir", "-p", str(workers[0].log.parent)]))
        print("\n".join(_shown(worker) for worker in workers))
        return 0
    program = command_words(args.lmscale)[0]
    if shutil.which(program) is None:
        print(f"launch.local: there is no command {program!r}", file=sys.stderr)
        return 2
    return _supervise(args, groups)


def _parse(argv: Sequence[str] | None) -> Namespace:
    parser = Parser("local", __doc__, _EPILOG)
    parser.add_argument(
        "--device", choices=("gpu", "tpu", "cpu"), help="[what this machine has, in this order]"
    )
    parser.add_argument("--workers", type=positive, help="processes [one a device]")
    parser.add_argument(
        "--together",
        action="store_true",
        help="one job over all devices, of one process or with --workers of several",
    )
    parser.add_argument(
        "--stuck-limit", type=positive, default=3, help="restarts in a row without progress [3]"
    )
    args = parser.parse(argv)
    parser.check_file(args)
    args.lmscale = lmscale_here(args.lmscale)
    args.device, args.devices = _devices(args.device)
    if not args.devices:
        parser.error(f"this machine has no {args.device}")
    count = len(args.devices)
    args.workers = args.workers or (1 if args.together else count)
    if args.workers > count:
        parser.error(f"{args.workers} workers need as many devices; there are {count}")
    if args.device == "tpu" and args.workers not in (1, count):
        parser.error(f"on this TPU --workers must be 1 or {count}")
    if args.device == "tpu" and args.together and args.workers > 1:
        parser.error("one process drives all chips of a TPU host: leave --workers out")
    return args


def _devices(kind: str | None) -> tuple[str, list[str]]:
    """The kind and the names of this machine's devices."""
    look = {"gpu": _gpus, "tpu": _tpu_chips, "cpu": _cores}
    if kind:
        return kind, look[kind]()
    return next((kind, found) for kind in look if (found := look[kind]()))


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip() and name != "-1"]
    if shutil.which("nvidia-smi") is None:
        return []
    query = ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]
    found = subprocess.run(query, check=False, capture_output=True, text=True)
    return found.stdout.split() if found.returncode == 0 else []


def _tpu_chips() -> list[str]:
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    return [str(number) for number in range(len(chips))]


def _pins() -> bool:
    """Whether this system can hold a process to some of the cores; macOS cannot."""
    return hasattr(os, "sched_getaffinity")


def _cores() -> list[str]:
    cores = sorted(os.sched_getaffinity(0)) if _pins() else range(os.cpu_count() or 1)
    return [str(core) for core in cores]


def _groups(args: Namespace) -> list[Group]:
    count, kind = args.workers, args.device
    folder = Path(job_name(args) if "://" in args.out else args.out) / "logs"
    workers, total = [], len(args.devices)
    for number in range(count):
        devices = args.devices[number * total // count : (number + 1) * total // count]
        command = run_command(args, args.lmscale, "0/1" if args.together else f"{number}/{count}")
        if args.together and count > 1:
            command += ["--distributed", f"127.0.0.1:PORT,{count},{number}"]
        environment = {}
        if kind == "cpu":
            environment = {"JAX_PLATFORMS": "cpu"}
            if _pins():
                command = ["taskset", "--cpu-list", ",".join(devices), *command]
            else:
                environment["JAX_NUM_CPU_DEVICES"] = str(len(devices))
        elif kind == "gpu":
            environment = {"CUDA_VISIBLE_DEVICES": ",".join(devices)}
        elif count > 1:
            environment = {
                "TPU_VISIBLE_CHIPS": devices[0],
                "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
                "TPU_PROCESS_BOUNDS": "1,1,1",
            }
        log = folder / f"local-{number}.log"
        workers.append(Worker(f"{kind} {','.join(devices)}", command, environment, log))
    return [Group(workers)] if args.together else [Group([worker]) for worker in workers]


def _shown(worker: Worker) -> str:
    """The worker as a shell command; for PORT a free port is taken at each start."""
    words = [Raw(f"{name}={shell([value])}") for name, value in worker.environment.items()]
    return f"{shell([*words, *worker.command])} >>{shell([str(worker.log)])} 2>&1"


# --- supervision --------------------------------------------------------------------------------


def _supervise(args: Namespace, groups: list[Group]) -> int:
    stops: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stops.append(number))
    handled, shown = 0, time.monotonic()
    workers = [worker for group in groups for worker in group.workers]
    _say(f"{len(workers)} worker{'s' * (len(workers) > 1)}; logs in {workers[0].log.parent}")
    for group in groups:
        _start(group)
    while any(group.code is None for group in groups):
        time.sleep(_LOOK)
        if len(stops) > handled:
            handled = len(stops)
            _say("stopping: the workers save what they have; once more to kill them")
            _signal(workers, signal.SIGTERM if handled == 1 else signal.SIGKILL)
        for group in groups:
            if group.code is None and all(w.process.poll() is not None for w in group.workers):
                _ended(args, group, stopping=bool(stops))
        if time.monotonic() - shown >= _SHOW:
            shown = time.monotonic()
            _show(workers)
    codes = [group.code for group in groups]
    words = {0: "done", PREEMPTED: "stopped, saved", 1: "failed", 2: "refused"}
    counts = [f"{codes.count(code)} {word}" for code, word in words.items() if code in codes]
    _say(f"{'job' if args.together else 'workers'}: " + ", ".join(counts))
    return _worst(codes)


def _start(group: Group) -> None:
    port = str(_free_port())
    for worker in group.workers:
        worker.log.parent.mkdir(parents=True, exist_ok=True)
        command = [word.replace("127.0.0.1:PORT,", f"127.0.0.1:{port},") for word in worker.command]
        with open(worker.log, "ab") as log:
            worker.process = subprocess.Popen(
                command,
                env={**os.environ, **worker.environment},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                # The terminal's Ctrl-C is ours alone; a worker hears one TERM.
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 (this process has one thread)
            )


def _ended(args: Namespace, group: Group, stopping: bool) -> None:
    """Gives the group its code, or starts it again."""
    codes = [worker.process.returncode for worker in group.workers]
    # A signal's death is like a preemption without a last save: the next start goes on from before.
    codes = [
        code if code in (0, *FINAL) else PREEMPTED if _retriable(code) else 1 for code in codes
    ]
    code, names = _worst(codes), " + ".join(worker.name for worker in group.workers)
    if code == PREEMPTED and not stopping:
        steps = steps_done(args)
        # Without an answer the last one stays, and nothing is said about progress.
        if steps is not None:
            group.stuck, group.steps = 0 if steps > group.steps else group.stuck + 1, steps
        if group.stuck < args.stuck_limit:
            _say(f"{names}: stopped, starting again")
            _start(group)
            return
        _say(f"{names}: no progress in {group.stuck} restarts: giving up")
        code = 1
    group.code = code
    if code in FINAL:
        worker = next(w for w, c in zip(group.workers, codes, strict=True) if c == max(codes))
        _say(f"{worker.name}: {_last_line(worker.log)} (see {worker.log})")


def _retriable(code: int) -> bool:
    return code == PREEMPTED or code < 0 or code > 128


def _worst(codes: Sequence[int]) -> int:
    """Bad usage, then failure, then a stop, then success."""
    return next((code for code in (2, 1, PREEMPTED) if code in codes), 0)


def _signal(workers: Sequence[Worker], number: int) -> None:
    for worker in workers:
        if worker.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.process.pid, number)


def _die_with_parent() -> None:
    """In a worker: TERM when the launcher dies, however it dies (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _show(workers: Sequence[Worker]) -> None:
    """The last line of every log that has a new one."""
    for worker in workers:
        line = _last_line(worker.log)
        if worker.process.poll() is None and line != worker.shown:
            worker.shown = line
            _say(f"{worker.name}: {line}")


def _last_line(path: Path) -> str:
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "nothing said")


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
