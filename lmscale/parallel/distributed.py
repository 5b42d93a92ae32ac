"""Several processes that train as one: how they start, agree, fail and end.

All processes of a gang run the same code in lockstep on one mesh over all their devices. What could
differ between them (files, clocks, signals) the first one decides and tells the others through
JAX's key-value store, and it alone writes files; Orbax alone writes from every process. A process
that is in no gang decides for itself, at no cost.

How a gang ends early, and the exit code of its processes:

- all fail in the same way: the failure is dealt with as in one process;
- one fails alone: it says so, the others hear of it where they next ask, and all end with its code;
- one is lost (killed, or its machine gone): JAX ends the others with an abort as soon as the first
  process is gone, or within `HEARTBEAT` seconds; this becomes `PREEMPTED`, since what was saved
  stays and another start goes on from it.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from lmscale.parallel.meeting import PATIENCE, MeetingError, meet
from lmscale.stopping import PREEMPTED

# Commands that train nothing come here too, and importing jax takes a second.
if TYPE_CHECKING:
    import jax
    import numpy as np

#: Seconds without a sign of life after which a process counts as lost; LMSCALE_HEARTBEAT overrides.
HEARTBEAT = 10
#: Agreements whose keys stay in the store: far more than one process can be ahead of another.
_KEPT = 1000

T = TypeVar("T")


class GangError(Exception):
    """The processes cannot go on together; the message is one line.

    Attributes:
      code: the exit code that all of them should end with.
    """

    def __init__(self, message: str, code: int = PREEMPTED):
        super().__init__(message)
        self.code = code


class PeerFailedError(RuntimeError):
    """Another process has failed, so this one cannot go on; see `share_failure`."""


@dataclass
class _Gang:
    """What a process knows of its gang; without a client it is alone."""

    client: Any = None
    index: int = 0
    count: int = 1
    #: Failures that all processes have survived, agreements since, and times that a stop was asked.
    epoch: int = 0
    agreements: int = 0
    asked: int = 0
    #: What this process ends with if JAX aborts it.
    code: int = PREEMPTED
    heartbeat: int = HEARTBEAT


_gang = _Gang()


def start(where: str | tuple[str, int, int], identity: str) -> None:
    """Joins the gang. Must come before anything asks JAX for devices.

    Args:
      where: "auto" for what JAX finds by itself (a TPU pod, srun, Kubernetes), or the address
        HOST:PORT of the first process, how many there are, and the number of this one.
      identity: what all of them must agree on, such as the command. JAX would let two gangs on one
        port connect to each other; this is what tells them apart (see `lmscale.parallel.meeting`).

    Raises:
      GangError: when the others do not come, or are not of this gang; when "auto" finds nothing.
    """
    import jax

    global _gang
    heartbeat = os.environ.get("LMSCALE_HEARTBEAT", str(HEARTBEAT))
    if not heartbeat.isdigit() or int(heartbeat) < 1:
        raise GangError(f"LMSCALE_HEARTBEAT must be seconds, at least 1, not {heartbeat!r}", 2)
    _exit_on_abort()
    try:
        address, count, index, devices = _detect() if where == "auto" else (*where, None)
        meet(address, count, index, identity)
        jax.distributed.initialize(
            address,
            count,
            index,
            devices,
            cluster_detection_method="deactivate",
            heartbeat_timeout_seconds=int(heartbeat),
        )
    except MeetingError as error:
        raise GangError(str(error)) from error
    except (RuntimeError, ValueError) as error:
        raise GangError(f"the processes did not find each other: {_first_line(error)}") from error
    signal.signal(signal.SIGINT, _interrupt)
    state = jax._src.distributed.global_state
    _gang = _Gang(state.client, state.process_id, state.num_processes, heartbeat=int(heartbeat))
    check_same("command", identity)


def _detect() -> tuple[str, int, int, list[int] | None]:
    """What JAX finds by itself on a TPU pod, under srun or in Kubernetes.

    JAX would look for it when it starts, but the processes have to meet before (`meeting.meet`).

    Returns:
      HOST:PORT of the first process, how many there are, the number of this one, and the numbers of
      its devices (None for all that it sees).

    Raises:
      GangError: when nothing is found.
    """
    from jax._src import clusters

    # Under Slurm JAX asks for the device of its local rank, also where it sees only one.
    sees_one = os.environ.get("CUDA_VISIBLE_DEVICES", "").isdigit()
    address, count, index, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        coordinator_address=os.environ.get("JAX_COORDINATOR_ADDRESS"),
        num_processes=None,
        process_id=None,
        local_device_ids=[0] if sees_one else None,
        cluster_detection_method=None,
        initialization_timeout=int(PATIENCE),
    )
    if address is None or count is None or index is None:
        raise GangError(
            "--distributed auto finds no TPU pod, srun or Kubernetes here; where there is none, give "
            "HOST:PORT,COUNT,INDEX",
            2,
        )
    return address, count, index, None if "JAX_LOCAL_DEVICE_IDS" in os.environ else devices


def check_same(what: str, text: str) -> None:
    """Compares a text between all processes.

    Raises:
      GangError: when it is not the same everywhere.
    """
    if _gang.count == 1:
        return
    folder = f"lmscale/same/{what}"
    _gang.client.key_value_set(f"{folder}/{_gang.index}", text)
    _meet(folder, 300)
    texts = dict(_gang.client.key_value_dir_get(folder))
    others = sorted(int(key.rsplit("/", 1)[1]) for key, other in texts.items() if other != text)
    if others or len(texts) != _gang.count:
        raise GangError(
            f"process {_gang.index} and process {(others or ['?'])[0]} of this gang do not have the "
            f"same {what}: another job uses the same port, or one was started with other arguments"
        )


def is_first() -> bool:
    """Whether this process decides, writes and talks for its gang."""
    return _gang.index == 0


def is_alone() -> bool:
    """Whether this process trains with no others."""
    return _gang.count == 1


def agree(decide: Callable[[], T]) -> T:
    """What `decide` (JSON-ready) returns in the first process, in every process.

    The others do not call it; all must come here in the same order.

    Raises:
      PeerFailedError: when another process has failed meanwhile.
      GangError: when another has ended.
    """
    if _gang.count == 1:
        return decide()
    gang = _gang
    gang.agreements += 1
    key = f"lmscale/agreed/{gang.epoch}/{{}}".format
    if is_first():
        _hear_of_failures()
        value = decide()
        gang.client.key_value_set(key(gang.agreements), json.dumps(value))
        if gang.agreements > _KEPT:
            gang.client.key_value_delete(key(gang.agreements - _KEPT))
        return value
    import jax

    while True:
        try:
            return json.loads(gang.client.blocking_key_value_get(key(gang.agreements), 1000))
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise
        _hear_of_failures()


def preempted() -> bool:
    """Whether SIGTERM has come to any process; true in all of them at the same call.

    JAX's preemption service spreads the notice and finds the call that every process has yet to
    make, so all must call this equally often.
    """
    from jax.experimental import multihost_utils

    _gang.asked += 1
    return multihost_utils.reached_preemption_sync_point(_gang.asked)


def share_failure(error: Exception) -> tuple[list[str], bool]:
    """To be called where a failure is caught: the reasons of all processes, and whether to go on.

    They can go on where each has failed by itself, as when a program does not fit in memory. Where
    one has failed alone, what the others had queued on their devices waits for it for ever.

    The first reason is that of the process that failed first. Where the others do not come (they
    wait for this process in a collective), this process is ended.
    """
    gang, reason = _gang, f"{type(error).__name__}: {error}"
    if gang.count == 1:
        return [reason], True
    folder = f"lmscale/failed/{gang.epoch}"
    entry = {
        "order": gang.client.key_value_increment("lmscale/failures", 1),
        "reason": reason,
        "own": not isinstance(error, PeerFailedError),
        "asked": gang.asked,
    }
    gang.client.key_value_set(f"{folder}/{gang.index}", json.dumps(entry))
    # Who comes after the others have given up gets the same answer: that not all have met.
    met = _meet(folder, 2 * gang.heartbeat)
    entries = [json.loads(value) for _, value in gang.client.key_value_dir_get(folder)]
    if len(entries) == 1:
        _say(f"process {gang.index} failed alone: {reason}")
        os._exit(1)
    gang.epoch, gang.agreements = gang.epoch + 1, 0
    gang.asked = max(entry["asked"] for entry in entries)
    own = [e["reason"] for e in sorted(entries, key=lambda e: e["order"]) if e["own"]]
    sound = met and len(own) == gang.count
    if not sound:
        # Also where the process that failed is gone, and JAX aborts this one for it.
        gang.code = 1
    return own, sound


def finish(code: int) -> int:
    """Ends the gang, with this exit code if the others come or not; to be returned to the system."""
    if _gang.client is None:
        return code
    _gang.code, together = code, True
    if _gang.count > 1:
        _gang.client.key_value_set(f"lmscale/left/{_gang.index}", str(code))
        together = _meet("lmscale/left", 2 * _gang.heartbeat)
    if not together or code not in (0, PREEMPTED):
        # What is still queued on the devices may wait for ever.
        sys.stdout.flush()
        os._exit(code)
    import jax

    jax.distributed.shutdown()
    return code


def place(values: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array on the devices of all processes, from values that every process has."""
    import jax

    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def _hear_of_failures() -> None:
    """Raises what another process has failed or left with."""
    for folder in (f"lmscale/failed/{_gang.epoch}", "lmscale/left"):
        for key, value in _gang.client.key_value_dir_get(folder):
            index = key.rsplit("/", 1)[1]
            if "left" in folder:
                raise GangError(f"process {index} has ended with exit code {value}", int(value))
            raise PeerFailedError(f"process {index} has failed: {json.loads(value)['reason']}")


def _meet(barrier: str, seconds: float) -> bool:
    """Waits for all processes; whether they came. Where one is lost this process is ended."""
    import jax

    try:
        _gang.client.wait_at_barrier(barrier, int(1000 * seconds))
        return True
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error):
            return False
        _say(f"lost another process: {_first_line(error)}")
        os._exit(_gang.code)


def _say(message: str) -> None:
    print(f"lmscale: {message}", file=sys.stderr, flush=True)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(number: int) -> None:
    os.write(
        2, b"lmscale: lost another process; what was saved stays, run the same command again\n"
    )
    os._exit(_gang.code)


def _exit_on_abort() -> None:
    """Turns JAX's abort at the loss of a process into an exit code.

    It comes from a thread of JAX's, in C, so that neither an exception nor Python's own handlers
    of signals can catch it.
    """
    ctypes.CDLL(None).signal(int(signal.SIGABRT), _aborted)


def _interrupt(number, frame) -> None:
    """The first Ctrl-C asks for what SIGTERM asks for; the second ends the process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGTERM)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
