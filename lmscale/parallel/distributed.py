"""A process group: several processes that train as one. How they start, communicate, fail and end.

All processes of a group run the same code in lockstep on one mesh over all their devices. The main
process (number 0) decides whatever could differ between them (files, clocks, signals) and broadcasts
it through JAX's key-value store. It alone writes files, except for Orbax, which writes from every
process. A process that is in no group decides for itself, at no cost.

How a group ends early, and the exit code of its processes:

- All fail in the same way: the failure is dealt with as in one process.
- One fails alone: it publishes its failure, the others read it at their next broadcast, and all end
  with its exit code.
- One is lost (killed, or its machine is gone): JAX aborts the others as soon as the main process is
  gone, or within `HEARTBEAT` seconds. They end with `PREEMPTED`: what was saved stays, and the next
  start resumes from it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

from lmscale import compat
from lmscale.parallel.meeting import PATIENCE, MeetingError, meet
from lmscale.stopping import PREEMPTED
from lmscale.user_files import place_of

# Commands that train nothing import this module too, and importing jax takes a second.
if TYPE_CHECKING:
    import jax
    import numpy as np

#: Seconds without a sign of life after which a process counts as lost; LMSCALE_HEARTBEAT overrides.
HEARTBEAT = 10
#: What a process says when JAX aborts it because another is lost.
_LOST = b"lmscale: lost another process; what was saved stays, run the same command again\n"
#: Broadcasts whose keys stay in the store: far more than one process can be ahead of another.
_KEPT = 1000

T = TypeVar("T")


class DistributedError(Exception):
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
class _Group:
    """A process's own process group; without a client it is alone."""

    client: Any = None
    index: int = 0
    count: int = 1
    #: Failures that all processes have survived, and broadcasts since the last of them.
    epoch: int = 0
    broadcasts: int = 0
    #: Calls of `preempted`.
    asked: int = 0
    #: Exit code of this process if JAX aborts it.
    code: int = PREEMPTED
    heartbeat: int = HEARTBEAT


_group = _Group()


def start(where: str | tuple[str, int, int], identity: str) -> None:
    """Joins the process group. Must come before anything asks JAX for devices.

    Args:
      where: "auto" where JAX finds the others itself (a TPU pod, srun, Kubernetes), or the address
        HOST:PORT of the main process, how many there are, and the number of this one.
      identity: a text that is the same in all of them, such as the command. JAX would let two groups
        on one port connect to each other; this text tells them apart (see `lmscale.parallel.meeting`).

    Raises:
      DistributedError: when the others do not come, or are not of this group; when "auto" finds
        nothing.
    """
    import jax

    global _group
    heartbeat = os.environ.get("LMSCALE_HEARTBEAT", str(HEARTBEAT))
    # More seconds than JAX's own counter holds would end the process in C++.
    if not (heartbeat.isdecimal() and len(heartbeat) <= 9 and int(heartbeat)):
        raise DistributedError(
            f"LMSCALE_HEARTBEAT must be whole seconds from 1 to 999999999, not {heartbeat!r}", 2
        )
    compat.exit_on_abort(_LOST, lambda: _group.code)
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
        raise DistributedError(str(error)) from error
    except (RuntimeError, ValueError) as error:
        raise DistributedError(
            f"the processes did not find each other: {_first_line(error)}"
        ) from error
    signal.signal(signal.SIGINT, _interrupt)
    _group = _Group(*compat.distributed_state(), heartbeat=int(heartbeat))
    check_same("command", identity)


def _detect() -> tuple[str, int, int, list[int] | None]:
    """What JAX finds by itself on a TPU pod, under srun or in Kubernetes.

    JAX would look for it when it starts, but the processes have to meet before (`meeting.meet`).

    Returns:
      HOST:PORT of the main process, how many there are, the number of this one, and the numbers of
      its devices (None for all that it sees).

    Raises:
      DistributedError: when nothing is found.
    """
    # Under Slurm JAX asks for the device of its local rank, even where it sees only one.
    sees_one = os.environ.get("CUDA_VISIBLE_DEVICES", "").isdecimal()
    address, count, index, devices = compat.find_processes([0] if sees_one else None, int(PATIENCE))
    if address is None or count is None or index is None:
        raise DistributedError(
            "--distributed auto finds no TPU pod, srun or Kubernetes here; where there is none, give "
            "HOST:PORT,COUNT,INDEX",
            2,
        )
    return address, count, index, devices


def check_same(what: str, text: str) -> None:
    """Compares a text between all processes.

    Raises:
      DistributedError: when it is not the same everywhere.
    """
    if _group.count == 1:
        return
    folder = f"lmscale/same/{what}"
    _group.client.key_value_set(f"{folder}/{_group.index}", text)
    _meet(folder, 300)
    texts = dict(_group.client.key_value_dir_get(folder))
    others = sorted(int(key.rsplit("/", 1)[1]) for key, other in texts.items() if other != text)
    if others or len(texts) != _group.count:
        other = str(others[0]) if others else "?"
        raise DistributedError(
            f"process {_group.index} and process {other} of this group do not have the "
            f"same {what}: another job uses the same port, or one was started with other arguments"
        )


def is_main_process() -> bool:
    """Whether this process decides, writes and prints for its group."""
    return _group.index == 0


def is_alone() -> bool:
    """Whether this process trains with no others."""
    return _group.count == 1


def broadcast_from_main(decide: Callable[[], T]) -> T:
    """The value that `decide` returns in the main process, in every process.

    Args:
      decide: called in the main process only; returns a value that JSON can hold.

    All processes must call this in the same order.

    Raises:
      PeerFailedError: when another process has failed in the meantime.
      DistributedError: when another has ended.
    """
    if _group.count == 1:
        return decide()
    group = _group
    group.broadcasts += 1
    key = f"lmscale/broadcast/{group.epoch}/{{}}".format
    if is_main_process():
        _check_for_failures()
        value = decide()
        group.client.key_value_set(key(group.broadcasts), json.dumps(value))
        if group.broadcasts > _KEPT:
            group.client.key_value_delete(key(group.broadcasts - _KEPT))
        return value
    import jax

    while True:
        try:
            return json.loads(group.client.blocking_key_value_get(key(group.broadcasts), 1000))
        except jax.errors.JaxRuntimeError as error:
            if not compat.is_timeout(error):
                raise
        _check_for_failures()


def preempted() -> bool:
    """Whether SIGTERM has come to any process; true in all of them at the same call.

    JAX's preemption service spreads the notice and finds a call that no process has made yet, so all
    must call this equally often.
    """
    _group.asked += 1
    return compat.reached_preemption_sync_point(_group.asked)


def share_failure(error: Exception) -> tuple[list[str], bool]:
    """Publishes a failure and collects those of the others; to be called where one is caught.

    The processes can go on where each has failed itself, as when a program does not fit in memory.
    Where one has failed alone, the work that the others have queued on their devices waits for it for
    ever. Where the others do not come (they wait for this process in a collective), this process ends.

    Returns:
      The reasons of all processes, that of the one that failed first first, and whether to go on.
    """
    group, reason = _group, _reason(error)
    if group.count == 1:
        return [reason], True
    folder = f"lmscale/failed/{group.epoch}"
    entry = {
        "order": group.client.key_value_increment("lmscale/failures", 1),
        "reason": reason,
        "own": not isinstance(error, PeerFailedError),
        "asked": group.asked,
    }
    group.client.key_value_set(f"{folder}/{group.index}", json.dumps(entry))
    # A process that comes after the others have given up also learns that not all have met.
    met = _meet(folder, 2 * group.heartbeat)
    entries = [json.loads(value) for _, value in group.client.key_value_dir_get(folder)]
    if len(entries) == 1:
        _say(f"process {group.index} failed alone: {reason}")
        os._exit(1)
    group.epoch, group.broadcasts = group.epoch + 1, 0
    group.asked = max(entry["asked"] for entry in entries)
    own = [e["reason"] for e in sorted(entries, key=lambda e: e["order"]) if e["own"]]
    sound = met and len(own) == group.count
    if not sound:
        # Also used where the process that failed is gone and JAX aborts this one because of it.
        group.code = 1
    return own, sound


def _reason(error: Exception) -> str:
    """What failed; its first line names the line of the user's file, if it came through one."""
    first, *rest = f"{type(error).__name__}: {error}".splitlines()
    place = place_of(error)
    return "\n".join([first if place is None else f"{first} ({place})", *rest])


def finish(code: int) -> int:
    """Ends this process and its group with an exit code, whether the others come or not.

    Returns:
      The exit code, only where there is no group.
    """
    if _group.client is None:
        return code
    _group.code, together = code, True
    if _group.count > 1:
        _group.client.key_value_set(f"lmscale/left/{_group.index}", str(code))
        together = _meet("lmscale/left", 2 * _group.heartbeat)
    # Work of a failed run that is still queued on the devices may wait for ever.
    if together and code in (0, PREEMPTED):
        import jax

        jax.distributed.shutdown()
    # Not by way of the interpreter's end: threads of JAX's and Gloo's in C++ outlive it, and now and
    # then one of them aborts the process (exit codes -6 and -11 were seen) with all its work done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def place(values: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """An array on the devices of all processes, from values that every process holds."""
    import jax

    return jax.make_array_from_callback(values.shape, sharding, lambda index: values[index])


def _check_for_failures() -> None:
    """Raises an error where another process has failed or has left."""
    for folder in (f"lmscale/failed/{_group.epoch}", "lmscale/left"):
        for key, value in _group.client.key_value_dir_get(folder):
            index = key.rsplit("/", 1)[1]
            if "left" in folder:
                raise DistributedError(
                    f"process {index} has ended with exit code {value}", int(value)
                )
            raise PeerFailedError(f"process {index} has failed: {json.loads(value)['reason']}")


def _meet(barrier: str, seconds: float) -> bool:
    """Waits for all processes and returns whether they came. Where one is lost this process ends."""
    import jax

    try:
        _group.client.wait_at_barrier(barrier, int(1000 * seconds))
        return True
    except jax.errors.JaxRuntimeError as error:
        if compat.is_timeout(error):
            return False
        _say(f"lost another process: {_first_line(error)}")
        os._exit(_group.code)


def _say(message: str) -> None:
    print(f"lmscale: {message}", file=sys.stderr, flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first Ctrl-C acts like SIGTERM; the second ends the process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.kill(os.getpid(), signal.SIGTERM)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]
