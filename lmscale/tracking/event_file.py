"""An event file of TensorBoard, of which all that was flushed is on the disk.

tensorboardX's own `SummaryWriter` hands events to a thread, and its flush does not wait for that thread:
what it had not written yet is lost with a process that is killed. Its parts write at once.
"""

from __future__ import annotations

import time

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import directory_check
from tensorboardX.summary import scalar, text


class EventFile:
    """A new event file in a folder, or at an address of a bucket.

    Args:
      folder: is made where it is not there.
      first_step: events of other files in the folder are not shown from this step on.
    """

    def __init__(self, folder: str, first_step: int):
        directory_check(folder)
        # Named by the second, it would otherwise write over that of a process before.
        self._file = EventsWriter(f"{folder}/events", f".{time.time_ns()}")
        self._write(first_step, session_log=SessionLog(status=SessionLog.START))

    def text(self, name: str, value: str, step: int) -> None:
        """Adds a text, as Markdown."""
        self._write(step, summary=text(name, value))

    def scalar(self, name: str, value: float, step: int) -> None:
        """Adds a point of a curve."""
        self._write(step, summary=scalar(name, value))

    def flush(self) -> None:
        """Writes what was added; a process may be killed afterwards."""
        self._file.flush()

    def close(self) -> None:
        """Flushes, and ends the file."""
        self._file.close()

    def _write(self, step: int, **what: Summary | SessionLog) -> None:
        self._file.write_event(Event(step=step, wall_time=time.time(), **what))
