"""Sends what runs append to metrics.jsonl to trackers, from a thread beside the training.

The log is the truth: it is cut back to a checkpoint when a run resumes, and grows again to the same
records. So what was sent is remembered as a number of records (STORE/tracking/NAME.json). After a kill
the next process sends the records beyond that number, and none twice. Only one process at a time sends
what belongs to a tracker (a lock beside that file), whoever trains.

A tracker that fails is left out from then on, with one line; training never waits for it, but for
`FAREWELL` seconds at its end.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from lmscale.files import DamagedError, digest, read_json, write_json
from lmscale.foreign_text import is_plain_name
from lmscale.remote import is_remote
from lmscale.tracking.titles import titles
from lmscale.tracking.trackers import TrackedRun, Tracker
from lmscale.training.run_folder import ENDED, RunFolder

__all__ = ["FAREWELL", "follow"]

#: Seconds between two looks at the logs.
LOOK = 2.0
#: Seconds that trackers may take to send the last records, when training is over.
FAREWELL = 60.0


@contextlib.contextmanager
def follow(
    store: epath.Path,
    name: str,
    runs: Sequence[tuple[RunFolder, Mapping[str, Any]]],
    trackers: Mapping[str, Tracker],
    warn: Callable[[str], None],
) -> Iterator[None]:
    """While this lasts, new records of the runs go to the trackers.

    Args:
      store: folder of the sweep.
      name: of the sweep, to which a few characters are added for its group.
      runs: with their labels.
      trackers: by the names that a user gave them.
      warn: is told, in a line, of a tracker that has failed.
    """
    if not trackers:
        yield
        return
    over = threading.Event()
    threads = [
        threading.Thread(
            target=_Follower(store, name, runs, label, tracker, warn).run, args=(over,), daemon=True
        )
        for label, tracker in trackers.items()
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for label, thread in zip(trackers, threads, strict=True):
            thread.join(FAREWELL)
            if thread.is_alive():
                warn(f"tracking by {label} is not done after {FAREWELL:.0f} s, and is left behind")


class _Follower:
    """One tracker, and what it was sent of each run."""

    def __init__(
        self,
        store: epath.Path,
        name: str,
        runs: Sequence[tuple[RunFolder, Mapping[str, Any]]],
        label: str,
        tracker: Tracker,
        warn: Callable[[str], None],
    ):
        self._name, self._label, self._tracker, self._warn = name, label, tracker, warn
        self._folders = list(runs)
        self._titles = titles(folder.spec for folder, _ in runs)
        self._place = store / "tracking"
        self._slug = _slug(label)
        self._state: dict[str, Any] = {}
        self._sizes: dict[str, int] = {}
        self._open: dict[str, TrackedRun] = {}
        self._failed = False

    def run(self, over: threading.Event) -> None:
        """Looks at the logs until training is over, then once more."""
        with contextlib.ExitStack() as stack:
            try:
                while not self._take_lock(stack):
                    if over.wait(LOOK):
                        return
                self._state = self._read_state()
                while not over.wait(LOOK):
                    self._look()
                self._look()
            except BaseException as error:  # Whatever a tracker raises must not reach the training.
                self._fail(error)
            # Also after a failure, which leaves no file of another run open.
            for run in list(self._open.values()):
                try:
                    self._end(run)
                except BaseException as error:
                    self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """Warns of the first failure; others follow from it."""
        if not self._failed:
            self._failed = True
            words = (str(error).strip().splitlines() or [""])[0]
            self._warn(
                f"tracking by {self._label} has failed and stops, training goes on: "
                f"{type(error).__name__}: {words}"
            )

    def _look(self) -> None:
        for folder, labels in self._folders:
            run = folder.path.name
            size = _size(folder.log_path)
            if size == self._sizes.get(run, 0):
                self._end_if_over(folder)
                continue
            self._sizes[run] = size
            try:
                records = folder.metrics()
            except DamagedError:
                # The training process finds it, and makes the log again.
                continue
            seen = self._state["runs"].get(run, {"sent": 0, "step": 0})
            fresh = records[seen["sent"] :]
            if not fresh:
                continue
            tracked = self._open.get(run)
            if tracked is None:
                # A run that was shown before has the title of then: other runs may have joined the sweep
                # since, and earlier versions showed its name.
                shown = run.rpartition("-")[0] if seen["sent"] else self._titles[run]
                tracked = self._open[run] = TrackedRun(
                    name=run,
                    title=seen.get("title", shown),
                    group=self._state["group"],
                    spec=folder.spec.to_dict(),
                    labels=dict(labels),
                    folder=folder.path,
                )
            self._tracker.log(tracked, fresh, seen["step"])
            self._state["runs"][run] = {
                "sent": len(records),
                "step": fresh[-1]["step"],
                "title": tracked.title,
            }
            write_json(self._place / f"{self._slug}.json", self._state)
            # At once: the first look at a store that was trained before may find hundreds of runs.
            self._end_if_over(folder)

    def _end_if_over(self, folder: RunFolder) -> None:
        """Ends a run whose training has ended, and whose log has not grown since it was read."""
        run = self._open.get(folder.path.name)
        if run is None or folder.status()["status"] not in ENDED:
            return
        if _size(folder.log_path) == self._sizes[run.name]:
            self._end(run)

    def _end(self, run: TrackedRun) -> None:
        del self._open[run.name]
        status = RunFolder.open(run.folder).status()["status"]
        self._tracker.end(run, status)

    def _read_state(self) -> dict[str, Any]:
        path = self._place / f"{self._slug}.json"
        found = read_json(path, {"group": str, "runs": dict}, "delete it to send all again")
        if found is None:
            found = {"group": self._group(), "runs": {}}
            write_json(path, found)
        return found

    def _group(self) -> str:
        """The group under which other trackers show this sweep, else a new one."""
        for path in sorted(self._place.glob("*.json")):
            if (other := read_json(path, {"group": str})) is not None:
                return other["group"]
        return f"{self._name}-{secrets.token_hex(3)}"

    def _take_lock(self, stack: contextlib.ExitStack) -> bool:
        """Whether this process is the one that sends; until its end."""
        self._place.mkdir(parents=True, exist_ok=True)
        if is_remote(self._place):
            return True
        try:
            import fcntl
        except ImportError:  # Not on Windows.
            return True
        file = (self._place / f"{self._slug}.lock").open("w")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        stack.callback(file.close)
        return True


def _slug(label: str) -> str:
    """A file name for the state of a tracker.

    One of a file in another folder has a few characters of its label's hash: without them a/mine.py:note and
    a-mine.py:note would have one name.
    """
    plain = label.replace(":", "-")
    if is_plain_name(plain):
        return plain
    joined = plain.replace("/", "-")
    return f"{joined if is_plain_name(joined) else 'function'}-{digest(label)[:8]}"


def _size(path: epath.Path) -> int:
    try:
        return path.stat().length
    except FileNotFoundError:
        return 0
