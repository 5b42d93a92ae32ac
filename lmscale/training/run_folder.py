"""The folder of one run: spec.json, status.json, metrics.jsonl, result.json, checkpoints/, evals/.

Whatever is read back after a kill is either whole or absent: small files are replaced atomically,
and the log of metrics, which grows by appending, is cut back to the checkpoint on resume.

What is read back after damage is not believed: status.json and the evaluations carry a digest of
themselves, spec.json is named by its folder, and status.json of a run that has ended holds the digests
of result.json and metrics.jsonl. A run with a damaged file counts as failed, with the reason, until it
has been made again.
"""

from __future__ import annotations

import os
import time
from typing import Any

from etils import epath

from lmscale.files import (
    DamagedError,
    append,
    digest,
    parse_json,
    read_bytes,
    read_json,
    unreadable,
    write_atomically,
    write_json,
)
from lmscale.foreign_text import is_plain_name
from lmscale.parallel.distributed import is_main_process
from lmscale.remote import is_remote, unreachable
from lmscale.spec import RunSpec, SpecError, StartSpec
from lmscale.training.metrics_log import Mark, MetricsLog, kept_content, parse_records

STATUSES = ("pending", "running", "done", "diverged", "out_of_memory", "failed", "preempted")
#: Statuses that end a run for good: a result that is not trained again.
ENDED = ("done", "diverged")

_REMEDY = "`lmscale run` makes this run again"
_STATUS_FIELDS = {"status": str, "step": int, "steps": int, "seconds": float}
#: Types of what a result may hold, where its readers lean on them.
_RESULT_FIELDS: dict[str, type | tuple[type, ...]] = {
    "params": dict,
    "tokens": (int, float),
    "steps": int,
    "flops": dict,
    "train_loss": (int, float, type(None)),
    "losses": dict,
    "bits_per_byte": dict,
    "loss_by_position": dict,
    "loss_by_window": dict,
    "loss_by_stretch": dict,
    "evaluations": list,
    "loss_spikes": int,
}


class RunFolder:
    """Reads and writes one run's files. `path` may be remote (gs://)."""

    def __init__(self, path: epath.PathLike, spec: RunSpec):
        self.path = epath.Path(path)
        self.spec = spec

    @classmethod
    def open(cls, path: epath.PathLike) -> RunFolder:
        """The folder of a run that has been created before.

        Raises:
          DamagedError: when its spec.json is missing, damaged or another run's.
        """
        path = epath.Path(path)
        spec = _read_spec(path)
        if spec.run_id != path.name:
            raise DamagedError(path / "spec.json", f"it is of another run, {spec.run_id}", _REMEDY)
        return cls(path, spec)

    @classmethod
    def named(cls, path: epath.PathLike) -> RunFolder:
        """The folder of a run that a user names, of this machine or in an object store.

        Raises:
          SpecError: when it is none; the message is one line.
          DamagedError: see `open`.
        """
        if why := unreachable(path):
            raise SpecError(why)
        try:
            # Its name must be the run's, and not that of a link to it.
            folder = epath.Path(path if is_remote(path) else os.path.realpath(path))
            there = (folder / "spec.json").exists()
        except (OSError, ValueError) as error:
            raise SpecError(unreadable(path, error)) from error
        if not there:
            raise SpecError(f"{path} holds no spec.json: give a folder of DIR/runs")
        return cls.open(folder)

    def create(self) -> str | None:
        """Makes the folder and writes spec.json, unless they are there.

        Returns:
          What was wrong with a spec.json that has been written again, in one line.
        """
        if not is_main_process():
            return None
        self.path.mkdir(parents=True, exist_ok=True)
        text, path = self.spec.to_json() + "\n", self.path / "spec.json"
        there = read_bytes(path)
        if there == text.encode():
            return None
        fault = None
        try:
            if there is not None or (self.path / "status.json").exists():
                if _read_spec(self.path) == self.spec:
                    # As an earlier version wrote it.
                    return None
                fault = f"{path} is damaged: it is of another run; written again"
        except DamagedError as error:
            fault = f"{path} is damaged: {error.fault}; written again"
        if fault is not None:
            self.note_damage(fault)
        write_atomically(path, text)
        return fault

    @property
    def checkpoints(self) -> epath.Path:
        return self.path / "checkpoints"

    @property
    def branches(self) -> epath.Path:
        """States that other runs start from, kept for good."""
        return self.path / "branches"

    @property
    def run_id(self) -> str:
        return self.spec.run_id

    @property
    def start(self) -> StartSpec:
        """Which run this one starts from, and where.

        Raises:
          ValueError: when it starts from its seed.
        """
        if self.spec.start is None:
            raise ValueError(f"{self.path.name} starts from no other run")
        return self.spec.start

    def trunk(self) -> RunFolder:
        """The folder of the run that this one starts from."""
        return RunFolder.open(self.path.parent / self.start.run)

    # --- Status and result ------------------------------------------------------------------

    def state(self) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """What status.json says, and result.json, or None for a run that has not ended.

        A run with a damaged file is failed, for that reason, and has no result.
        """
        try:
            # The result is written before the status that tells of it.
            status = self._status()
            return status, self._result(status)
        except DamagedError as error:
            return {**self._pending(), "status": "failed", "reason": str(error)}, None

    def status(self) -> dict[str, Any]:
        """The first of `state`; a run that has not been started is pending."""
        return self.state()[0]

    def result(self) -> dict[str, Any] | None:
        """The second of `state`."""
        return self.state()[1]

    def damage(self) -> DamagedError | None:
        """What is wrong with the files that say how the run ended."""
        try:
            self._result(self._status())
        except DamagedError as error:
            return error
        return None

    def write_status(
        self,
        status: str,
        *,
        step: int,
        seconds: float,
        reason: str | None = None,
        digests: dict[str, str] | None = None,
    ) -> None:
        """Replaces status.json.

        Args:
          status: one of `STATUSES`.
          step: updates made so far.
          seconds: trained so far, summed over restarts.
          reason: why it is so, in one line.
          digests: of result.json and metrics.jsonl, for a run that has ended; see `end`.
        """
        if status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {status!r}")
        values: dict[str, Any] = {
            "run": self.path.name,
            "status": status,
            "reason": reason,
            "step": step,
            "steps": self.spec.steps,
            "seconds": round(seconds, 3),
            "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        if digests is not None:
            values["digests"] = digests
        write_json(self.path / "status.json", values, sealed=True)

    def write_result(self, values: dict[str, Any]) -> None:
        write_json(self.path / "result.json", values)

    def end(self, values: dict[str, Any], metrics: Mark, *, step: int, seconds: float) -> None:
        """Writes the result of a run and the status that vouches for it.

        Args:
          values: of result.json.
          metrics: the run's log at its end.
          step: updates made.
          seconds: trained, summed over restarts.
        """
        self.write_result(values)
        if not is_main_process():
            return
        digests = {
            "result": digest((self.path / "result.json").read_bytes()),
            "metrics": metrics["digest"],
        }
        self.write_status(
            values["status"], step=step, seconds=seconds, reason=values["reason"], digests=digests
        )

    def forget_end(self) -> None:
        """Deletes what says that the run has ended, so that it is trained (to its end) again."""
        if is_main_process():
            (self.path / "result.json").unlink(missing_ok=True)
            (self.path / "status.json").unlink(missing_ok=True)

    def _pending(self) -> dict[str, Any]:
        return {
            "status": "pending",
            "reason": None,
            "step": 0,
            "steps": self.spec.steps,
            "seconds": 0.0,
        }

    def content(self, name: str) -> bytes | None:
        """What a file of the folder holds; None where there is none.

        All results are read through this, so that they may also lie elsewhere (`lmscale.sweep.kept`).
        """
        return read_bytes(self.path / name)

    def eval_names(self) -> list[str]:
        """The evaluation sets in evals/."""
        folder = self.path / "evals"
        return sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []

    def _status(self) -> dict[str, Any]:
        path = self.path / "status.json"
        data = self.content("status.json")
        if data is None:
            if self.content("result.json") is not None:
                raise DamagedError(path, "it is missing", _REMEDY)
            return self._pending()
        status = parse_json(data, path, _STATUS_FIELDS, _REMEDY)
        if status["status"] not in STATUSES:
            raise DamagedError(path, f"there is no status {status['status']!r:.40}", _REMEDY)
        if not isinstance(status.setdefault("reason", None), (str, type(None))):
            raise DamagedError(path, "its 'reason' is no text", _REMEDY)
        if (
            status["steps"] != self.spec.steps
            or status.get("run", self.path.name) != self.path.name
        ):
            raise DamagedError(path, "it is of another run", _REMEDY)
        return status

    def _result(self, status: dict[str, Any]) -> dict[str, Any] | None:
        path = self.path / "result.json"
        data, digests = self.content("result.json"), status.get("digests")
        if data is None:
            if status["status"] in ENDED:
                raise DamagedError(path, "it is missing", _REMEDY)
            return None
        if status["status"] not in ENDED and "run" in status:
            # A kill came between the two files, or another process is about to write the second.
            return None
        if isinstance(digests, dict):
            if digest(data) != digests.get("result"):
                raise DamagedError(path, "its digest in status.json doesn't match", _REMEDY)
            metrics = self.path / "metrics.jsonl"
            if digest(self.content("metrics.jsonl") or b"") != digests.get("metrics"):
                raise DamagedError(metrics, "its digest in status.json doesn't match", _REMEDY)
        result = parse_json(data, path, {"status": str}, _REMEDY)
        if result["status"] not in ENDED:
            raise DamagedError(path, f"no run ends as {result['status']!r:.40}", _REMEDY)
        if result.get("run", self.path.name) != self.path.name:
            raise DamagedError(path, f"it is of another run, {result['run']!r:.80}", _REMEDY)
        for name, kinds in _RESULT_FIELDS.items():
            if name in result and not isinstance(result[name], kinds):
                raise DamagedError(path, f"its {name!r} has the wrong type", _REMEDY)
        for name in ("losses", "bits_per_byte", "flops"):
            if not all(isinstance(x, (int, float)) for x in result.get(name, {}).values()):
                raise DamagedError(path, f"its {name!r} holds what is no number", _REMEDY)
        return result

    # --- Evaluations after the end ----------------------------------------------------------

    def evals(self) -> dict[str, dict[str, Any]]:
        """Name -> what `lmscale eval` found on an evaluation set after the run had ended.

        Damaged ones are left out; see `damaged_evals`.
        """
        return {name: found for name, found in self._evals() if isinstance(found, dict)}

    def damaged_evals(self) -> list[DamagedError]:
        """What is wrong with those that `evals` leaves out."""
        return [found for _, found in self._evals() if isinstance(found, DamagedError)]

    def _evals(self) -> list[tuple[str, dict[str, Any] | DamagedError]]:
        found: list[tuple[str, dict[str, Any] | DamagedError]] = []
        for name in self.eval_names():
            path, remedy = self.path / "evals" / f"{name}.json", "`lmscale eval` makes it again"
            try:
                data = self.content(f"evals/{name}.json")
                if data is None:
                    # Deleted since the folder was listed.
                    continue
                values = parse_json(data, path, {"evaluation": dict, "scores": dict}, remedy)
                if not isinstance(values["scores"].get("loss"), (int, float)):
                    raise DamagedError(path, "its scores have no loss", remedy)
                if values.get("run", self.path.name) != self.path.name:
                    raise DamagedError(path, "it is of another run", remedy)
                if values["evaluation"].get("name", path.stem) != path.stem:
                    raise DamagedError(path, "it is of another evaluation set", remedy)
                found.append((path.stem, values))
            except DamagedError as error:
                found.append((path.stem, error))
        return found

    def write_eval(self, name: str, values: dict[str, Any]) -> None:
        if not is_plain_name(name):
            raise ValueError(f"scores need a name that a file can have, not {name!r}")
        (self.path / "evals").mkdir(exist_ok=True)
        values = {"run": self.path.name, **values}
        write_json(self.path / "evals" / f"{name}.json", values, sealed=True)

    # --- Metrics ----------------------------------------------------------------------------

    @property
    def log_path(self) -> epath.Path:
        return self.path / "metrics.jsonl"

    def metrics(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl; a last line that a kill cut short is left out.

        Raises:
          DamagedError: when a line is no record.
        """
        return parse_records(self.content("metrics.jsonl") or b"", self.log_path)

    def kept_metrics(self, step: int, mark: Mark | None) -> bytes:
        """What of the log goes with a checkpoint; see `metrics_log.kept_content`."""
        return kept_content(self.log_path, self.spec, step, mark)

    def append_metrics(self, records: list[dict[str, Any]]) -> None:
        """Adds records to a log that nobody else writes."""
        MetricsLog(self.log_path, read_bytes(self.log_path) or b"").append(records)

    # --- Damage that was mended ---------------------------------------------------------------

    def note_damage(self, line: str) -> None:
        """Keeps word of damage, and of what was done about it, for the report."""
        append(self.path / "damage.log", line.replace("\n", " ") + "\n")

    def damage_notes(self) -> list[str]:
        """Those words."""
        data = self.content("damage.log") or b""
        return data.decode(errors="replace").splitlines()


def _read_spec(folder: epath.Path) -> RunSpec:
    path = folder / "spec.json"
    values = read_json(path, remedy=_REMEDY)
    if values is None:
        raise DamagedError(path, "it is missing", _REMEDY)
    try:
        return RunSpec.from_dict(values)
    except (SpecError, TypeError, OverflowError) as error:
        raise DamagedError(path, str(error), _REMEDY) from error
