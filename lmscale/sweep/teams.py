"""Teams: processes that train side by side on a CPU, one a core.

In one process the programs of two cores would share XLA's threads, and train a fifth slower.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.managers import BaseManager, BaseProxy
from pathlib import Path
from typing import Any

import jax

from lmscale.cache import quiet_compilation_cache
from lmscale.parallel.distributed import PREEMPTED
from lmscale.parallel.processes import process_context
from lmscale.sweep.experiment import load_file, loaded_files
from lmscale.training.loop import Preempted

#: What a team takes over from the process that starts it.
_SETTINGS = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)


class TeamError(RuntimeError):
    """A team's process died; the message is one line."""


def run_teams(n_teams: int, work: Callable[..., None], shared: Any, methods: Sequence[str], *args):
    """Calls `work(shared, *args)` in `n_teams` processes and waits for all of them.

    Args:
      work: a function of a module; it may raise `Preempted`.
      shared: stays in this process; what the teams are given passes calls of its `methods` on to
        it, each team's in a thread of its own.
      args: are pickled.

    Raises:
      Preempted: when a team did.
      TeamError: when a team's process ended otherwise than by returning.
    """

    class Server(BaseManager):
        pass

    Server.register("shared", callable=lambda: shared, exposed=tuple(methods))
    key = secrets.token_bytes(16)
    server = Server(authkey=key).get_server()
    # It goes with this process: when it is stopped, Python puts back sys.stdout and sys.stderr.
    threading.Thread(target=server.serve_forever, daemon=True).start()
    context = process_context()
    teams = [
        context.Process(
            target=_team,
            # Of classes in a user's own file the other process knows when it has loaded that file.
            args=(server.address, key, methods, settings(), work, pickle.dumps(args)),
            daemon=True,
        )
        for _ in range(n_teams)
    ]
    try:
        for team in teams:
            team.start()
        for team in teams:
            team.join()
    except BaseException:
        for team in teams:
            if team.pid is not None:
                team.kill()
        raise
    codes = [team.exitcode for team in teams]
    dead = next((code for code in codes if code not in (0, PREEMPTED)), None)
    if dead is not None:
        how = f"was killed by signal {-dead}" if dead < 0 else f"ended with exit code {dead}"
        hint = "; is there enough memory for one run a core?" if dead == -signal.SIGKILL else ""
        raise TeamError(f"a process that trained {how}{hint}")
    if PREEMPTED in codes:
        raise Preempted


def settings() -> dict[str, Any]:
    """Of this process: what `become_team` wants."""
    config = {name: getattr(jax.config, name) for name in _SETTINGS}
    return {"environment": dict(os.environ), "jax": config, "files": loaded_files()}


def become_team(values: dict[str, Any]) -> None:
    """Makes this process one that trains on one core; before jax looks for devices."""
    # What it was forked from may be older than the environment.
    os.environ.clear()
    os.environ.update(values["environment"])
    # Read by XLA: the threads that share the work of one operation.
    os.environ["NPROC"] = "1"
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 1)
    for name, value in values["jax"].items():
        jax.config.update(name, value)
    quiet_compilation_cache()
    for path in values["files"]:
        load_file(Path(path))
    # The process that started it is asked to stop, and tells.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


class _Remote:
    """Passes calls on to the process that started this one, and ends with it."""

    def __init__(self, proxy: BaseProxy, methods: Sequence[str]):
        self._proxy = proxy
        for method in methods:
            setattr(self, method, self._call(method))

    def _call(self, method: str) -> Callable[..., Any]:
        def call(*args):
            try:
                return self._proxy._callmethod(method, args)
            except (EOFError, ConnectionError):
                os._exit(1)

        return call


def _team(address, key, methods, values, work, args) -> None:
    become_team(values)
    args = pickle.loads(args)

    class Client(BaseManager):
        pass

    Client.register("shared")
    client = Client(address, authkey=key)
    client.connect()
    try:
        work(_Remote(client.shared(), methods), *args)
    except Preempted:
        sys.exit(PREEMPTED)
