"""How the processes of one job meet on their port before JAX does, and strangers are turned away.

JAX's coordinator takes a process of another job that comes to its port for one of its own, started
anew, and ends the job that runs. So the processes meet first, on the same port: the first listens,
each other says who it is, and when all have come the first tells them so, leaves the port to JAX's
coordinator, and only then do they go on to it. A process of another job finds, at any time, a
meeting that is not its own or a port that answers otherwise, and is refused before JAX has seen it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import selectors
import socket
import time
from dataclasses import dataclass, field
from typing import Any, BinaryIO

#: Seconds in which all processes must have come.
PATIENCE = 300.0
#: Seconds in which whoever listens on the port must have answered a greeting.
_ANSWER = 10.0
#: Bytes of the longest line; what is longer is not ours.
_LINE = 1000


class MeetingError(RuntimeError):
    """The processes did not meet; the message is one line."""


def meet(
    address: str, count: int, index: int, identity: str, *, patience: float = PATIENCE
) -> None:
    """Returns in all processes of a job once all have come to the port.

    Args:
      address: HOST:PORT of the first process.
      count, index: how many there are, and the number of this one.
      identity: what all of them must agree on.
      patience: seconds to wait for the others.

    Raises:
      MeetingError: when the port is another job's, or the others do not come.
    """
    host, port = address.rsplit(":", 1)
    job = f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}/{count}"
    if index == 0:
        # JAX's coordinator may be told to listen elsewhere than where the others look for it.
        listen = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", address).rsplit(":", 1)[1]
        _receive(int(listen), count, job, patience)
    else:
        _greet((host.strip("[]"), int(port)), index, job, patience)


def _refusal(port: int) -> str:
    return (
        f"port {port} is taken, by another job perhaps: every process group needs a port of its own"
    )


# --- the first process --------------------------------------------------------------------------


@dataclass
class _Guest:
    """A connection, what it has said so far, and the number of its process."""

    data: bytes = b""
    index: int | None = None
    since: float = field(default_factory=time.monotonic)


def _receive(port: int, count: int, job: str, patience: float) -> None:
    end = time.monotonic() + patience
    guests: dict[socket.socket, _Guest] = {}
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as ready:
        door = stack.enter_context(_listen(port))
        ready.register(door, selectors.EVENT_READ)

        def leave(guest: socket.socket) -> None:
            ready.unregister(guest)
            del guests[guest]
            guest.close()

        while len(come := {g.index for g in guests.values()} - {None}) < count - 1:
            if time.monotonic() > end:
                missing = sorted(set(range(1, count)) - come)
                raise MeetingError(
                    f"the processes did not find each other: number {missing[0]} of {count} did not "
                    f"come to port {port} in {patience:.0f} s"
                )
            for key, _ in ready.select(timeout=0.5):
                if key.fileobj is door:
                    guest, _ = door.accept()
                    guest.setblocking(False)
                    guests[guest] = _Guest()
                    ready.register(guest, selectors.EVENT_READ, guest)
                    continue
                guest = key.data
                try:
                    data = guest.recv(_LINE)
                except OSError:
                    data = b""
                if not data or not _welcome(guest, guests, data, count, job):
                    leave(guest)
            for guest in [g for g, told in guests.items() if told.index is None]:
                if time.monotonic() - guests[guest].since > _ANSWER:
                    leave(guest)
        # Nobody may be told before the port is free for JAX.
        door.close()
        for guest in guests:
            with guest, contextlib.suppress(OSError):
                guest.sendall(b'{"lmscale": "go"}\n')


def _listen(port: int) -> socket.socket:
    try:
        if socket.has_dualstack_ipv6():
            return socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
        return socket.create_server(("", port))
    except OSError as error:
        raise MeetingError(f"{_refusal(port)} ({error.strerror or error})") from error


def _welcome(
    guest: socket.socket,
    guests: dict[socket.socket, _Guest],
    data: bytes,
    count: int,
    job: str,
) -> bool:
    """Takes in what a guest says; False when it is to leave."""
    told = guests[guest]
    told.data += data
    if b"\n" not in told.data:
        return len(told.data) < _LINE
    if told.index is not None:
        return True
    try:
        said = json.loads(told.data.split(b"\n")[0])
        theirs, index = said["lmscale"], said["index"]
    except (ValueError, KeyError, TypeError):
        return False
    here = {other.index for other in guests.values()}
    if theirs != job or index in here or index not in range(1, count):
        why = "another command" if theirs != job else f"a process {index} has come already"
        with contextlib.suppress(OSError):
            guest.sendall(json.dumps({"lmscale": "no", "why": why}).encode() + b"\n")
        return False
    told.index = index
    with contextlib.suppress(OSError):
        guest.sendall(b'{"lmscale": "wait"}\n')
    return True


# --- the others ---------------------------------------------------------------------------------


def _greet(address: tuple[str, int], index: int, job: str, patience: float) -> None:
    end = time.monotonic() + patience
    greeting = json.dumps({"lmscale": job, "index": index}).encode() + b"\n"
    while True:
        left = end - time.monotonic()
        if left <= 0:
            raise MeetingError(
                f"the processes did not find each other: nobody answers at {address[0]}:{address[1]}"
            )
        try:
            door = socket.create_connection(address, timeout=min(left, _ANSWER))
        except OSError:
            # The first process has not come yet.
            time.sleep(min(0.2, max(left, 0)))
            continue
        with door:
            try:
                door.sendall(greeting)
                lines = door.makefile("rb")
                answer = _answer(lines)
                if answer.get("lmscale") == "no":
                    raise MeetingError(f"{_refusal(address[1])} ({answer.get('why')})")
                if answer.get("lmscale") != "wait":
                    raise MeetingError(_refusal(address[1]))
                door.settimeout(max(end - time.monotonic(), 1))
                if _answer(lines).get("lmscale") == "go":
                    return
            except OSError as error:
                raise MeetingError(f"{_refusal(address[1])} ({error})") from error
            raise MeetingError("the first process has left before all had come")


def _answer(lines: BinaryIO) -> dict[str, Any]:
    """What the listener says; empty where it is no meeting of ours."""
    try:
        answer = json.loads(lines.readline(_LINE))
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
