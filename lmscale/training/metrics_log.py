"""metrics.jsonl: a record a line, appended while a run trains, and its digest.

A checkpoint holds how many bytes the log had and their digest (`Mark`), so that on resume it is known
that no record has been lost or changed since. For checkpoints of earlier versions the steps of
the records are compared with those that the run must have logged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lmscale.files import (
    DamagedError,
    append,
    digest,
    new_digest,
    parse_json,
    read_bytes,
    write_atomically,
)
from lmscale.parallel.distributed import is_main_process
from lmscale.spec import RunSpec

#: Of what a record may hold, where the readers of it lean on its type.
_TYPES = {"loss": (int, float, type(None)), "eval": (dict, type(None))}
#: {"bytes": int, "digest": str} of the log at some time.
Mark = dict[str, Any]


def log_interval(steps: int) -> int:
    """Steps between two records of metrics.jsonl.

    One record a step below 400 steps; 200 to 399 records above.
    """
    return max(1, steps // 200)


class MetricsLog:
    """The log of a run that trains; it knows the digest of all that it has written.

    Args:
      path: of metrics.jsonl.
      content: what is kept of the file as it is; it is cut to that.
    """

    def __init__(self, path: epath.Path, content: bytes = b""):
        self._path = path
        self._digest, self._size = new_digest(content), len(content)
        if is_main_process() and (read_bytes(path) or b"") != content:
            write_atomically(path, content)

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Adds records, and returns when they are on disk. A number that isn't finite becomes null."""
        text = "".join(json.dumps(_finite(record)) + "\n" for record in records)
        append(self._path, text)
        self._digest.update(text.encode())
        self._size += len(text.encode())

    def mark(self) -> Mark:
        """Tells this log from any other."""
        return {"bytes": self._size, "digest": self._digest.hexdigest()}

    def check(self) -> None:
        """Compares the file with what was written.

        Raises:
          DamagedError: when it is not that.
        """
        data = read_bytes(self._path) or b""
        if len(data) != self._size or digest(data) != self._digest.hexdigest():
            raise DamagedError(self._path, "it doesn't hold what was written")


def parse_records(data: bytes, path: epath.Path) -> list[dict[str, Any]]:
    """The records in the content of a log. A last line that a kill cut short is left out.

    Raises:
      DamagedError: when a line is no record.
    """
    records = []
    where = str(path)  # Once: a path makes its text anew each time.
    for number, line in enumerate(data.split(b"\n")[:-1], 1):
        record = parse_json(line, f"{where} line {number}", {"step": int}, allow_nan=True)
        for name, kinds in _TYPES.items():
            if not isinstance(record.get(name), kinds):
                raise DamagedError(f"{where} line {number}", f"its {name!r} has the wrong type")
        records.append(record)
    return records


def kept_content(path: epath.Path, spec: RunSpec, step: int, mark: Mark | None) -> bytes:
    """What of a log is kept when a run goes on from a checkpoint.

    Args:
      path: of metrics.jsonl.
      spec: the run's.
      step: the checkpoint's.
      mark: the log's at that time; None where an earlier version wrote the checkpoint.

    Raises:
      DamagedError: when records up to that step are missing or changed.
    """
    data = read_bytes(path) or b""
    if mark is not None:
        kept = data[: mark["bytes"]]
        if len(kept) < mark["bytes"]:
            raise DamagedError(path, f"it lacks records from before step {step}")
        if digest(kept) != mark["digest"]:
            raise DamagedError(path, f"records from before step {step} have changed")
        return kept
    records = [record for record in parse_records(data, path) if record["step"] <= step]
    found = [(record["step"], "eval" in record) for record in records]
    due = expected_records(spec, step)
    if found != due:
        at = next((want for want, have in zip(due, found, strict=False) if want != have), None)
        at = at or (due[len(found)] if len(found) < len(due) else found[len(due)])
        what = "evaluation" if at[1] else "loss"
        raise DamagedError(path, f"the records about step {at[0]} ({what}) are not whole")
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def expected_records(spec: RunSpec, last: int) -> list[tuple[int, bool]]:
    """(step, whether it is an evaluation) of all records that a run writes up to a step."""
    begin, every = spec.start.step if spec.start else 0, log_interval(spec.steps)
    logged = {*range(every, last + 1, every), spec.steps}
    evaluated = {*spec.eval_steps, spec.steps}
    if spec.eval_every is not None:
        evaluated |= {*range(spec.eval_every, last + 1, spec.eval_every)}
    found = [(step, False) for step in logged] + [(step, True) for step in evaluated]
    return sorted(entry for entry in found if begin < entry[0] <= last)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
