"""Worker processes that train side by side on a CPU, one a core.

In one process the programs of two cores would share XLA's threads, and train a fifth slower.

Each worker speaks to the process that started it through its own pipe, which its own thread serves. So a
worker that is killed in the middle of a call cannot block another. The parent notices the end of a
process at once (by its sentinel), closes its seat and starts another process in its place.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Protocol

import jax

from lmscale.compat import die_with_parent, quiet_compilation_cache
from lmscale.parallel.distributed import PREEMPTED
from lmscale.parallel.processes import process_context
from lmscale.training.loop import Preempted
from lmscale.user_files import load_file, loaded_files

#: Settings of jax that a worker takes over from its parent.
_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
#: How many processes in a row may die before they have taken a run.
_FRUITLESS = 6
#: Seconds between two checks whether to stop.
_LOOK = 0.5
#: Seconds that a worker may take to save its runs before a stop, which is enough for a slow disk.
_SAVING = 300.0


class WorkerError(RuntimeError):
    """The workers cannot continue; the message is one line."""


class Shared(Protocol):
    """What the workers share; it stays in the process that starts them."""

    def seat(self) -> Any:
        """The object that one worker calls; a new one for each process.

        It has the methods that the worker calls, and for the end of its process `to_save()`,
        `has_runs()` and `close(how, status)`; see `lmscale.sweep.scheduler.Seat`.
        """

    def stopped(self) -> bool:
        """Whether everything is to stop."""


@dataclass
class _Worker:
    """One worker: its process, its seat, and the thread that serves its calls."""

    process: BaseProcess
    seat: Any
    server: threading.Thread
    #: Why it ended, if it could still say so.
    reason: list[str]
    #: Whether it was ended because it had nothing to save.
    ended: bool = False


def run_workers(
    n_workers: int,
    work: Callable[..., None],
    shared: Shared,
    methods: Sequence[str],
    *args: Any,
) -> None:
    """Calls `work(seat, *args)` in `n_workers` processes and waits for all of them.

    A process that dies is replaced. When everything is to stop, a worker with nothing to save (one
    that compiles, say) is ended at once.

    Args:
      work: a function of a module; it may raise `Preempted`.
      shared: gives each process a seat. The process gets an object that passes calls of `methods` on to
        the seat.
      args: passed to `work`, pickled.

    Raises:
      Preempted: when a worker did, or was ended as everything is to stop.
      WorkerError: when no process can be kept alive, or one failed otherwise than by dying.
    """
    workers: list[_Worker] = []
    preempted, fruitless = False, 0
    asked: float | None = None
    try:
        for _ in range(n_workers):
            workers.append(_start(work, shared, methods, args))
        while workers:
            wait([worker.process.sentinel for worker in workers], timeout=_LOOK)
            if asked is None and shared.stopped():
                asked = time.monotonic()
            if asked is not None:
                _end_idle(workers, late=time.monotonic() - asked > _SAVING)
            for worker in [worker for worker in workers if not worker.process.is_alive()]:
                workers.remove(worker)
                code, had_runs = _reap(worker), worker.seat.has_runs()
                preempted |= code == PREEMPTED or worker.ended
                if code in (0, PREEMPTED) or worker.ended:
                    worker.seat.close()
                    continue
                worker.seat.close(*_how(code, worker.reason))
                if asked is not None or shared.stopped():
                    preempted = True
                    continue
                fruitless = 0 if had_runs else fruitless + 1
                if fruitless < _FRUITLESS:
                    workers.append(_start(work, shared, methods, args))
                elif not workers:
                    raise WorkerError(
                        f"{fruitless} processes in a row died before they trained anything; the last "
                        f"{_how(code, worker.reason)[0]}"
                    )
    except BaseException:
        for worker in workers:
            _kill(worker.process)
        raise
    if preempted:
        raise Preempted


def _start(work: Callable, shared: Shared, methods: Sequence[str], args: tuple) -> _Worker:
    """A new worker."""
    for attempt in range(_FRUITLESS):
        ours, theirs = multiprocessing.Pipe()
        # A new context each time, because the fork server may have been killed.
        process = process_context().Process(
            target=_run_worker,
            # The arguments are pickled here, because classes of a user's file can be unpickled only after that
            # process has loaded the file.
            args=(theirs, methods, settings(), work, pickle.dumps(args)),
            daemon=True,
        )
        try:
            process.start()
        except (OSError, EOFError) as error:
            ours.close()
            if attempt == _FRUITLESS - 1:
                raise WorkerError(f"no process could be started: {error}") from error
            continue
        finally:
            theirs.close()
        seat = shared.seat()
        reason: list[str] = []
        server = threading.Thread(target=_serve, args=(ours, seat, methods, reason), daemon=True)
        server.start()
        return _Worker(process, seat, server, reason)
    raise AssertionError("unreachable")


def _serve(pipe: Connection, seat: Any, methods: Sequence[str], reason: list[str]) -> None:
    """Answers a worker's calls until it has ended."""
    with contextlib.suppress(EOFError, OSError), pipe:
        while True:
            method, args = pipe.recv()
            if method == _FAILED:
                reason.extend(args)
                continue
            try:
                if method not in methods:
                    raise AttributeError(method)
                answer = True, getattr(seat, method)(*args)
            except Exception as error:  # The worker raises it again.
                answer = False, error
            pipe.send(answer)


def _end_idle(workers: Sequence[_Worker], *, late: bool) -> None:
    """Ends the workers that have nothing to save, or all when `late`. Wakes those that were halted."""
    for worker in workers:
        _signal(worker.process, signal.SIGCONT)
        if late or not worker.seat.to_save():
            worker.ended = True
            _kill(worker.process)


def _kill(process: BaseProcess) -> None:
    with contextlib.suppress(ProcessLookupError, AttributeError):
        process.kill()


def _signal(process: BaseProcess, number: signal.Signals) -> None:
    """Sends a signal to a process, if it was started and is there."""
    if process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)


def _reap(worker: _Worker) -> int:
    """The exit code of a process that has ended. Makes sure that it is gone."""
    code = worker.process.exitcode
    # The caller has seen that it has ended.
    assert code is not None
    if code == _UNKNOWN:
        # The fork server was killed and may have left this process alive.
        _signal(worker.process, signal.SIGKILL)
    # Waits until its end of the pipe is closed. A call may still wait at the seat, which is closed next.
    worker.server.join(timeout=1.0)
    worker.process.close()
    return code


#: Exit code of a process whose fork server died first, so that its own code is unknown.
_UNKNOWN = 255


def _how(code: int, reason: Sequence[str]) -> tuple[str, str]:
    """What became of a process, and the status for a run during which that happens again."""
    if code == _UNKNOWN:
        return "was killed with the process that had started it", "failed"
    if code >= 0:
        return f"ended with exit code {code}" + "".join(f" ({why})" for why in reason), "failed"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    return f"was killed by {name}", "out_of_memory" if code == -signal.SIGKILL else "failed"


# --- in a worker --------------------------------------------------------------------------------

#: Sent instead of the name of a method by a worker that ends with a failure.
_FAILED = ""


def settings() -> dict[str, Any]:
    """The settings of this process, as `become_worker` takes them."""
    config = {name: getattr(jax.config, name) for name in _SETTINGS}
    return {"environment": dict(os.environ), "jax": config, "files": loaded_files()}


def become_worker(values: dict[str, Any]) -> None:
    """Makes this process a worker that trains on one core. Call it before jax looks for devices."""
    # The fork server may be older than the environment.
    os.environ.clear()
    os.environ.update(values["environment"])
    # XLA reads it: the number of threads that share one operation.
    os.environ["NPROC"] = "1"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    for name, value in values["jax"].items():
        jax.config.update(name, value)
    quiet_compilation_cache()
    for path in values["files"]:
        load_file(Path(path))
    # The parent receives the request to stop, and passes it on.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # The worker is killed together with the fork server, which ends with the parent. This also works while the
    # worker is halted or deep in a computation, and must: another process may train its run next.
    if multiprocessing.get_start_method(allow_none=True) != "spawn":
        die_with_parent()
    parent = multiprocessing.parent_process()
    # This is a process that `run_workers` has started.
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: BaseProcess) -> None:
    """Ends this process when its parent has ended."""
    parent.join()
    os._exit(1)


class _Remote:
    """Passes calls on to the parent, and ends this process when the parent is gone."""

    def __init__(self, pipe: Connection, methods: Sequence[str]):
        self._pipe, self._lock = pipe, threading.Lock()
        for method in methods:
            setattr(self, method, self._call(method))

    def _call(self, method: str) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            try:
                with self._lock:
                    self._pipe.send((method, args))
                    fine, answer = self._pipe.recv()
            except (EOFError, OSError):
                os._exit(1)
            if not fine:
                raise answer
            return answer

        return call


def _run_worker(
    pipe: Connection,
    methods: Sequence[str],
    values: dict[str, Any],
    work: Callable[..., None],
    pickled: bytes,
) -> None:
    become_worker(values)
    args = pickle.loads(pickled)
    try:
        work(_Remote(pipe, methods), *args)
    except Preempted:
        sys.exit(PREEMPTED)
    except Exception as error:  # The parent reports it.
        traceback.print_exc()
        with contextlib.suppress(OSError):
            pipe.send((_FAILED, (f"{type(error).__name__}: {error}".splitlines()[0],)))
        sys.exit(1)
