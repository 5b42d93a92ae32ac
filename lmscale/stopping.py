"""How a command is asked to stop: SIGTERM or Ctrl-C once, and it saves what it has; again, and it ends.

Before and after training nothing needs saving, and the command ends where it is (`Stopped` is raised
in the main thread, once nothing is being imported). While it trains, the loop asks at every dispatch
(`Stop.deferred`). What is said on the screen, and the end at a second signal, come from a thread that
waits for signals itself, so that they do not wait for a compiler or a disk that holds up the main thread.

A handler of signals runs between any two instructions, so `Stopped` may be raised inside of a finaliser
or of a callback of the garbage collector. Python ignores exceptions there, so it is raised once more.

This module imports nothing heavy: a command may be stopped when it has only begun.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any

#: Exit code that means "run me again".
PREEMPTED = 42
#: What a command says before it ends with that code.
PREEMPTED_LINE = "preempted: every run is saved; the same command goes on from here"
#: Seconds within which a second SIGTERM counts as the first: a job's processes and their parents may
#: each be told, and pass it on.
_ECHO = 1.0
#: Among the numbers of signals that the listening thread reads: `Stopped` was ignored, or could not be
#: raised yet. No signal is 0.
_AGAIN = 0
#: Seconds before it is raised again: what ignored it has then mostly ended.
_PAUSE = 0.05


class Stopped(KeyboardInterrupt):
    """The command was asked to stop, at a moment when nothing needs saving."""


class Stop:
    """Whether SIGTERM or SIGINT has come; from its making on it hears them. In the main thread.

    Args:
      deferred: whether to wait for the question everywhere, never raising `Stopped`.
    """

    def __init__(self, *, deferred: bool = False):
        self._asked, self._deferred = False, deferred
        self._told, self._telling = False, threading.Lock()
        self._ignored = False
        self._hook, sys.unraisablehook = sys.unraisablehook, self._unraisable
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        self._writer = writer
        self._before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(reader,), daemon=True).start()
        self._handlers = {
            number: signal.signal(number, self._handle)
            for number in (signal.SIGTERM, signal.SIGINT)
        }

    def close(self) -> None:
        """Hears no more: signals do what they did before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        os.close(self._writer)
        if sys.unraisablehook == self._unraisable:
            sys.unraisablehook = self._hook

    def __call__(self) -> bool:
        """Whether to stop."""
        return self._asked

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, signals only make the question true: the code inside asks, and saves.

        Raises:
          Stopped: at its end, when a signal has come that was not heeded.
        """
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before
        if self._asked and not self._deferred:
            raise Stopped

    def _handle(self, number: int, frame: types.FrameType | None) -> None:
        to_raise, self._asked = not self._asked or self._ignored, True
        if to_raise and not self._deferred:
            self._ignored = False
            # The thread may not come to it before the process ends.
            self._tell()
            if _imports(frame):
                self._raise_again()
                return
            raise Stopped

    def _unraisable(self, unraisable: Any) -> None:
        """Python ignores an exception that it cannot raise where it came up."""
        if not isinstance(unraisable.exc_value, Stopped):
            self._hook(unraisable)
            return
        self._raise_again()

    def _raise_again(self) -> None:
        """Has another thread send the signal once more, when the caller has returned."""
        self._ignored = True
        os.write(self._writer, bytes([_AGAIN]))

    def _tell(self) -> None:
        """Says once that the command stops."""
        # The main thread may be interrupted within, and must not wait for itself.
        if not self._telling.acquire(blocking=False):
            return
        told, self._told = self._told, True
        self._telling.release()
        if not told:
            what = ": the runs under way are saved" if self._deferred else ""
            _say(f"stopping{what}; Ctrl-C again to end at once")

    def _listen(self, reader: int) -> None:
        """Says that the command stops, and ends it when it is told again."""
        first, own = None, 0
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number == _AGAIN:
                    time.sleep(_PAUSE)
                    # The command may have ended meanwhile, and the signal is another's again.
                    if signal.getsignal(signal.SIGTERM) == self._handle:
                        own += 1
                        main = threading.main_thread().ident
                        # It has begun, as this thread was started by it.
                        assert main is not None
                        signal.pthread_kill(main, signal.SIGTERM)
                    continue
                if number not in (signal.SIGTERM, signal.SIGINT):
                    continue
                if number == signal.SIGTERM and own:
                    own -= 1
                    continue
                now = time.monotonic()
                if first is None:
                    first = now
                    self._tell()
                elif number == signal.SIGINT or now - first > _ECHO:
                    _say("ended at once; what was saved before stays")
                    os._exit(1)
        os.close(reader)


def _imports(frame: types.FrameType | None) -> bool:
    """Whether a module is being imported.

    An exception there may leave half a module behind, be told as an `ImportError` of another's, or
    abort the process: libraries in C++ do, and jax and numpy load many.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


def _say(message: str) -> None:
    # Not through sys.stderr, whose lock the main thread may hold. A bar may stand on the line.
    start = b"\n" if sys.stderr is not None and sys.stderr.isatty() else b""
    with contextlib.suppress(OSError):
        os.write(2, start + f"lmscale: {message}\n".encode())
