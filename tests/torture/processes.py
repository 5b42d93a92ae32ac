"""A `lmscale` process group: started, killed in all ways, and never left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

#: What is done to a sweep: the signal, and to whom.
KILLS = {
    "group": (signal.SIGKILL, "group"),
    "parent": (signal.SIGKILL, "parent"),
    "worker": (signal.SIGKILL, "worker"),
    "term": (signal.SIGTERM, "parent"),
    "term-group": (signal.SIGTERM, "group"),
    "int": (signal.SIGINT, "parent"),
    "int-group": (signal.SIGINT, "group"),
}


class HangError(AssertionError):
    """A process did not end in time; the message holds the stacks of all its threads."""


class Process:
    """`lmscale` with these arguments, in a process group of its own.

    Args:
      log: where standard output and standard error go.
    """

    def __init__(self, arguments: Sequence[str], environment: dict[str, str], log: Path):
        self.log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lmscale", *arguments],
                # With a fault handler SIGABRT prints the stacks of all threads.
                env=environment | {"PYTHONFAULTHANDLER": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the parent, and of its group."""
        return self._process.pid

    def code(self) -> int | None:
        """The exit code of the parent, or None while it lives."""
        return self._process.poll()

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def members(self) -> list[psutil.Process]:
        """The living processes of the group."""
        found = []
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == self.pid and process.status() != "zombie":
                    found.append(process)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return found

    def workers(self) -> list[psutil.Process]:
        """The processes that train: what the fork server has started."""
        found = []
        for process in self.members():
            try:
                parent = process.parent()
                if parent is not None and "forkserver" in " ".join(parent.cmdline()):
                    found.append(process)
            except psutil.NoSuchProcess:
                continue
        return found

    def kill(self, kind: str, rng: random.Random) -> bool:
        """Sends the signal of one of `KILLS`; False where there is nobody to send it to."""
        number, target = KILLS[kind]
        try:
            if target == "group":
                os.killpg(self.pid, number)
            elif target == "parent":
                os.kill(self.pid, number)
            else:
                workers = self.workers()
                if not workers:
                    return False
                rng.choice(workers).send_signal(number)
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False
        return True

    def wait(self, seconds: float) -> int:
        """The exit code of the parent.

        Raises:
          HangError: when it has not ended after `seconds`; the group is dead then.
        """
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            stacks = self._stacks()
            raise HangError(f"not ended after {seconds:.0f} s\n{stacks}") from None

    def wait_for_group(self, seconds: float) -> None:
        """Returns when none of the group lives.

        Raises:
          HangError: when one still lives after `seconds`; the group is dead then.
        """
        end = time.monotonic() + seconds
        while self.members():
            if time.monotonic() > end:
                names = [" ".join(process.cmdline()) for process in self.members()]
                stacks = self._stacks()
                raise HangError(f"left behind after {seconds:.0f} s: {names}\n{stacks}")
            time.sleep(0.05)

    def end(self) -> None:
        """Kills whatever is left."""
        if self.members():
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def _stacks(self) -> str:
        before = len(self.said())
        for process in self.members():
            process.send_signal(signal.SIGABRT)
        time.sleep(2.0)
        self.end()
        return self.said()[before:]
