"""The folder of one run: spec.json, status.json, metrics.jsonl, result.json, checkpoints/, evals/.

Whatever is read back after a kill is either whole or absent: small files are replaced atomically,
and the log of metrics, which grows by appending, is cut back to the checkpoint on resume.
"""

from __future__ import annotations

import json
import time
from typing import Any

from etils import epath

from lmscale.files import append, read_json, write_atomically, write_json
from lmscale.foreign_text import is_plain_name
from lmscale.parallel.distributed import is_first
from lmscale.spec import RunSpec

STATUSES = ("pending", "running", "done", "diverged", "out_of_memory", "failed", "preempted")


class RunFolder:
    """Reads and writes one run's files. `path` may be remote (gs://)."""

    def __init__(self, path: epath.PathLike, spec: RunSpec):
        self.path = epath.Path(path)
        self.spec = spec

    @classmethod
    def open(cls, path: epath.PathLike) -> RunFolder:
        """The folder of a run that has been created before."""
        path = epath.Path(path)
        return cls(path, RunSpec.from_json((path / "spec.json").read_text()))

    def create(self) -> None:
        """Makes the folder and writes spec.json, unless they are there."""
        if not is_first():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / "spec.json").exists():
            write_atomically(self.path / "spec.json", self.spec.to_json() + "\n")

    @property
    def checkpoints(self) -> epath.Path:
        return self.path / "checkpoints"

    @property
    def branches(self) -> epath.Path:
        """States that other runs start from, kept for good."""
        return self.path / "branches"

    def trunk(self) -> RunFolder:
        """The folder of the run that this one starts from."""
        return RunFolder.open(self.path.parent / self.spec.start.run)

    def status(self) -> dict[str, Any]:
        """status.json; a run that has not been started is pending."""
        return read_json(self.path / "status.json") or {
            "status": "pending",
            "reason": None,
            "step": 0,
            "steps": self.spec.steps,
            "seconds": 0.0,
        }

    def write_status(self, status: str, *, step: int, seconds: float, reason: str | None = None):
        """Replaces status.json; `seconds` is the time trained so far, over all sittings."""
        if status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {status!r}")
        values = {
            "status": status,
            "reason": reason,
            "step": step,
            "steps": self.spec.steps,
            "seconds": round(seconds, 3),
            "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_json(self.path / "status.json", values)

    def result(self) -> dict[str, Any] | None:
        """result.json, or None for a run that has not ended."""
        return read_json(self.path / "result.json")

    def write_result(self, values: dict[str, Any]) -> None:
        write_json(self.path / "result.json", values)

    def evals(self) -> dict[str, dict[str, Any]]:
        """Name -> what `lmscale eval` found on an evaluation set after the run had ended."""
        folder = self.path / "evals"
        if not folder.exists():
            return {}
        return {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}

    def write_eval(self, name: str, values: dict[str, Any]) -> None:
        if not is_plain_name(name):
            raise ValueError(f"scores need a name that a file can have, not {name!r}")
        (self.path / "evals").mkdir(exist_ok=True)
        write_json(self.path / "evals" / f"{name}.json", values)

    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl; a last line that a kill cut short is left out."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return []
        lines = path.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def append_metrics(self, records: list[dict[str, Any]]) -> None:
        append(
            self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in records)
        )

    def cut_metrics(self, step: int) -> None:
        """Drops the records after `step`, which training will write again."""
        if not is_first():
            return
        kept = [record for record in self.metrics() if record["step"] <= step]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        write_atomically(self.path / "metrics.jsonl", text)
