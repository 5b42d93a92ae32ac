"""The store of one experiment: experiment.json, a folder a run, results.csv."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from etils import epath

from lmscale import optimizers
from lmscale.architectures import kinds
from lmscale.data import Corpus
from lmscale.files import DamagedError, read_json, unreadable, write_atomically, write_json
from lmscale.foreign_text import is_plain_name, plain_cell
from lmscale.parallel.distributed import is_main_process
from lmscale.remote import is_remote, no_place_to_train, unreachable
from lmscale.sweep.declaration import (
    Declaration,
    extended,
    is_declaration,
    recorded_declarations,
    refusal,
)
from lmscale.sweep.experiment import Experiment, Run
from lmscale.sweep.kept import KeptRun, read_kept
from lmscale.sweep.own_code import changed_code, code_history
from lmscale.sweep.ownership import find_claim, turn
from lmscale.sweep.result_table import mark_best_lr, result_row
from lmscale.terminal import say, say_if_slow
from lmscale.training.run_folder import RunFolder
from lmscale.user_files import loaded_files

if TYPE_CHECKING:
    import pandas as pd

    from lmscale.planner.lineage import HasSpec

#: Required fields of experiment.json.
_FIELDS = {"name": str, "runs": list}
_MAY_HAVE = {
    "scale": str,
    "title": str,
    "analyses": list,
    "claims": list,
    "fields": dict,
    "corpus": dict,
    "needs": dict,
    "versions": dict,
}
_REMEDY = "the `lmscale run` that made the store writes it again"


class StoreError(ValueError):
    """A folder that is no store, or another experiment's; the message is one line."""


def _file_in_the_way(path: epath.Path) -> epath.Path | None:
    """The file that stands where a folder is wanted, if there is one.

    Object stores have no folders, and may forbid to ask for what is above the bucket.
    """
    if is_remote(path):
        return None
    above = next((folder for folder in (path, *path.parents) if folder.exists()), None)
    return above if above is not None and not above.is_dir() else None


class Store:
    """One experiment's folder. `path` may be remote (gs://, s3://).

    Raises:
      StoreError: when the path is of another kind, or needs a package that is not installed.
    """

    def __init__(self, path: epath.PathLike):
        if why := unreachable(path):
            raise StoreError(why)
        self.path = epath.Path(path).expanduser()
        if not is_remote(path):
            # Orbax needs absolute paths.
            self.path = self.path.absolute()

    @classmethod
    def open(cls, path: epath.PathLike) -> Store:
        """The store in a folder.

        Raises:
          StoreError: when the folder holds no experiment.
        """
        store = cls(path)
        if not store.holds_experiment():
            raise StoreError(f"{path} holds no experiment.json: give the --out of a `lmscale run`")
        return store

    def holds_experiment(self) -> bool:
        """Whether the folder holds a declared experiment.

        Raises:
          StoreError: when the path cannot be a folder, or cannot be read.
        """
        path = self.path / "experiment.json"
        try:
            if not is_remote(path):
                return path.exists()
            # The packages that reach object stores try for minutes, in silence.
            with say_if_slow(
                f"{self.path} has not answered yet: are its address and the network right?"
            ):
                return path.exists()
        except (OSError, ValueError) as error:
            raise StoreError(unreadable(self.path, error)) from error

    def inside(self) -> list[Store]:
        """The stores in the folders of this one."""
        if not self.path.is_dir():
            return []
        found = sorted(path.parent for path in self.path.glob("*/experiment.json"))
        return [Store(path) for path in found]

    def refusal(self, declaration: Declaration, extend: bool = False) -> str | None:
        """Why this folder refuses a declaration, in a line; None if it accepts it."""
        return self._refusal(self._recorded(declaration), declaration, extend)

    def _refusal(
        self, recorded: dict[str, Any] | None, declaration: Declaration, extend: bool
    ) -> str | None:
        if self.kept:
            return f"{self.path} holds kept results, which cannot be trained on: give another --out"
        if why := no_place_to_train(self.path):
            return why
        if recorded is None:
            return None
        return refusal(self.path, recorded_declarations(recorded), declaration, extend)

    def declare(
        self,
        name: str,
        scale: str,
        experiment: Experiment,
        corpus: Corpus,
        runs: Sequence[Run],
        command: str,
        *,
        extend: bool = False,
    ) -> None:
        """Writes experiment.json. A store has one declaration, which an extension adds runs to.

        Args:
          command: what the user typed, for the report.
          extend: whether another declaration of the same experiment adds its runs.

        Raises:
          StoreError: when the folder has another declaration, or there are no runs.
        """
        if not runs:
            raise StoreError(f"{name} at scale {scale} declares no runs: give it other fields")
        here = Declaration.of(name, scale, experiment, corpus, runs)
        recorded = self._accepting(here, extend)
        if line := changed_code(recorded):
            say(line)
        if recorded is None and self.holds_experiment():
            path = self.path / "experiment.json"
            say(f"{path} is damaged; written again, as these are its runs")
        what = (here, experiment, corpus, runs, command)
        values = self._declaring(recorded, *what)
        # The workers of one sweep start at once and declare the same: none of them has to wait.
        if (recorded is None and not extend) or not is_main_process():
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / "experiment.json", values, sealed=True)
        elif recorded is None or values != recorded:
            self.path.mkdir(parents=True, exist_ok=True)
            with turn(self.path, say):
                # Another command may have added its runs since.
                values = self._declaring(self._accepting(here, extend), *what)
                write_json(self.path / "experiment.json", values, sealed=True)
        # In parallel, because each waits until its file is on disk.
        with ThreadPoolExecutor(16) as pool:
            faults = list(pool.map(lambda run: self.folder(run).create(), runs))
        for fault in filter(None, faults):
            say(fault)

    def _accepting(self, here: Declaration, extend: bool) -> dict[str, Any] | None:
        """experiment.json as `_recorded` gives it.

        Raises:
          StoreError: when the store refuses the declaration.
        """
        recorded = self._recorded(here)
        if why := self._refusal(recorded, here, extend):
            raise StoreError(why)
        return recorded

    def _declaring(
        self,
        recorded: dict[str, Any] | None,
        here: Declaration,
        experiment: Experiment,
        corpus: Corpus,
        runs: Sequence[Run],
        command: str,
    ) -> dict[str, Any]:
        """What experiment.json says with a declaration joined to what is recorded, as JSON gives it back."""
        values: dict[str, Any] = {
            "name": here.name,
            "scale": here.scale,
            "command": command,
            "title": experiment.title,
            "analyses": list(experiment.analyses),
            "claims": [claim.to_json() for claim in experiment.claims],
            "repeats_text": experiment.repeats_text,
            "fields": here.fields,
            "corpus": {
                "name": corpus.name,
                "fingerprint": corpus.fingerprint,
                "vocab_size": corpus.vocab_size,
                "bytes_per_token": corpus.bytes_per_token("train"),
                "train_tokens": corpus.n_tokens("train"),
                "held_out_documents": {
                    split: corpus.n_documents(split) for split in ("valid", "test")
                },
                "copies": corpus.copies,
                **({"mixture": corpus.mixture} if corpus.mixture else {}),
            },
            "runs": list(here.runs),
            "needs": _needs(runs),
            "code": code_history(recorded),
            "versions": _versions(),
            "git_commit": _git_commit(),
        }
        if recorded is not None:
            values["command"] = recorded.get("command", command)
            values |= extended(recorded, recorded_declarations(recorded), here, command)
            for what, names in recorded.get("needs", {}).items():
                values["needs"][what] = sorted({*values["needs"].get(what, ()), *names})
        return json.loads(json.dumps(values, allow_nan=False))

    def _recorded(self, here: Declaration) -> dict[str, Any] | None:
        """experiment.json, to compare a declaration with; None where there is none.

        A damaged one counts as missing if the folder holds only runs of this declaration.
        """
        path = self.path / "experiment.json"
        if not self.holds_experiment():
            if file := _file_in_the_way(self.path):
                raise StoreError(f"{file} is a file: give another --out")
            return None
        try:
            values = self.experiment()
            if not {"scale", "corpus"} <= set(values) or not is_declaration(values):
                fault = "it does not say which runs of which corpus it holds"
                raise DamagedError(path, fault, _REMEDY)
        except DamagedError:
            there = {folder.name for folder in (self.path / "runs").glob("*")}
            if not there <= here.run_ids:
                raise
            return None
        return values

    def experiment(self) -> dict[str, Any]:
        """experiment.json.

        Raises:
          DamagedError: when it is not what was written.
          StoreError: when its runs are of an architecture or optimizer that is not known here.
        """
        path = self.path / "experiment.json"
        values = read_json(path, _FIELDS, _REMEDY)
        if values is None:
            raise DamagedError(path, "it is missing", _REMEDY)
        for name, kind in _MAY_HAVE.items():
            if not isinstance(values.get(name, kind()), kind):
                raise DamagedError(path, f"its {name!r} has the wrong type", _REMEDY)
        if not all(isinstance(names, list) for names in values.get("needs", {}).values()):
            raise DamagedError(path, "its 'needs' holds what is no list", _REMEDY)
        if why := _unknown(values.get("needs", {})):
            raise StoreError(f"{self.path} {why}")
        for entry in values["runs"]:
            sound = isinstance(entry, dict) and isinstance(entry.get("run"), str)
            if not sound or not isinstance(entry.get("labels"), dict):
                raise DamagedError(path, "an entry of its 'runs' is no run with labels", _REMEDY)
        return values

    @functools.cached_property
    def kept(self) -> dict[str, KeptRun]:
        """The runs of kept.json.xz, which `lmscale keep` writes; none in a store that trains.

        Raises:
          DamagedError: when the file does not hold what was written.
        """
        return read_kept(self.path) or {}

    def folder(self, run: HasSpec) -> RunFolder:
        folder = RunFolder(self.path / "runs" / run.spec.run_id, run.spec)
        return self.kept.get(run.spec.run_id, folder)

    def entries(self) -> Iterator[tuple[str, RunFolder | DamagedError, dict[str, Any]]]:
        """Every declared run: its id, its folder (or what is wrong with its spec), its labels.

        Raises:
          StoreError: when a run's name is that of no folder in the store.
          DamagedError: when kept.json.xz, which holds all runs of a kept store, is not what was written.
        """
        found: RunFolder | DamagedError
        kept_runs = self.kept
        for entry in self.experiment()["runs"]:
            if not is_plain_name(entry["run"]):
                raise StoreError(
                    f"{self.path / 'experiment.json'} names a run {entry['run']!r}: a run must be a "
                    "folder of runs/; did lmscale write this store?"
                )
            try:
                kept = kept_runs.get(entry["run"])
                found = kept or RunFolder.open(self.path / "runs" / entry["run"])
            except DamagedError as error:
                found = error
            yield entry["run"], found, entry["labels"]

    def declared(self) -> Iterator[tuple[RunFolder, dict[str, Any]]]:
        """Every declared run with its labels, but for those that `damage` names for their spec."""
        for _, folder, labels in self.entries():
            if isinstance(folder, RunFolder):
                yield folder, labels

    def damage(self) -> list[str]:
        """A line for each damaged file that holds the specification or results of a run.

        Such runs count as failed, or are left out where it isn't known what they are. `lmscale run`
        makes them again.
        """
        lines = []
        for _, folder, _ in self.entries():
            if isinstance(folder, DamagedError):
                faults = [folder]
            else:
                faults = [fault for fault in [folder.damage()] if fault is not None]
                faults += folder.damaged_evals()
            lines += [self._damaged(fault) for fault in faults]
        return lines

    def damaged_checkpoints(self) -> list[str]:
        """A line for every checkpoint or kept state of an ended run that is not what was written.

        It reads all of them. Those of earlier versions have no digests and cannot be checked.
        """
        # Orbax takes a second to import, and most readers of a store do not need it.
        from lmscale.training.checkpoint import checkpoint_fault, saved_steps

        lines = []
        for folder, _ in self.declared():
            if folder.result() is None:
                # A run that has not ended checks its checkpoints when it continues.
                continue
            for kept in (folder.checkpoints, folder.branches):
                for step in saved_steps(kept):
                    if (fault := checkpoint_fault(kept, folder.run_id, step)) is not None:
                        lines.append(self._damaged(fault))
        return lines

    def without_checkpoint(self) -> list[str]:
        """The runs that are done and have no checkpoint here: deleted, or taken over from another store."""
        from lmscale.training.checkpoint import saved_steps

        if self.kept:
            return []
        return [
            folder.run_id
            for folder, _ in self.declared()
            if folder.status()["status"] == "done" and not saved_steps(folder.checkpoints)
        ]

    def _damaged(self, fault: DamagedError) -> str:
        """A line about a damaged file, with its path inside the store."""
        return f"{fault.path.removeprefix(f'{self.path}/')} is damaged: {fault.fault}"

    def mended(self) -> list[str]:
        """Lines about damage that was found while training, and what was done about it."""
        return [
            f"{folder.path.name}: {line.replace(f'{self.path}/', '')}"
            for folder, _ in self.declared()
            for line in folder.damage_notes()
        ]

    def adopt(self, other: Store, runs: Sequence[Run]) -> int:
        """Copies the results of runs that `other` has and this store lacks.

        A run is a value, so what another experiment trained need not be trained again. Checkpoints
        stay where they are.

        Returns:
          How many runs were taken over.
        """
        count = 0
        for run in runs:
            ours, theirs = self.folder(run), other.folder(run)
            if ours.result() is not None or theirs.result() is None:
                continue
            if find_claim(ours.path) is not None:
                # It is being trained here, with the same result.
                continue
            for name in ("metrics.jsonl", "status.json", "result.json"):
                write_atomically(ours.path / name, (theirs.path / name).read_bytes())
            count += 1
        return count

    def table(self) -> pd.DataFrame:
        """One row a run: its configuration, its cost and its results.

        Where a learning-rate search was made, `best_lr` marks the runs of the factor with the
        lowest mean loss over seeds in their cell, of the factors at which most seeds ended well;
        without a search it marks every run that ended well. See `mark_best_lr`.
        """
        # Imported here, because pandas loads slowly and processes that train do not need it.
        import pandas as pd

        rows = [result_row(folder, labels) for folder, labels in self.declared()]
        if not rows:
            # No spec could be read.
            return pd.DataFrame(columns=["run", "status", "reason", "loss", "best_lr"])
        return mark_best_lr(pd.DataFrame(rows))

    def write_table(self) -> pd.DataFrame:
        """Writes results.csv from the runs' folders, and returns the table.

        Text that a spreadsheet would take for a formula is written with an apostrophe before it.
        """
        table = self.table()
        write_atomically(self.path / "results.csv", self.table_text(table))
        return table

    def table_text(self, table: pd.DataFrame | None = None) -> str:
        """What results.csv holds, of the runs' folders as they are or of a table of them."""
        table = self.table() if table is None else table
        return table.rename(columns=plain_cell).map(plain_cell).to_csv(index=False)


def note_worker(store: Store, shard: tuple[int, int]) -> None:
    """Notes in shards/I-of-N.json who trains a shard, for `lmscale status`.

    The note does not reserve runs; claims do (`lmscale.sweep.ownership`).
    """
    index, count = shard
    folder = store.path / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    worker = {"host": platform.node(), "process": os.getpid(), "started": time.time()}
    write_json(folder / f"{index}-of-{count}.json", worker)


def _needs(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Architectures and optimizers that a reader of these runs needs, and the users' files that define them."""
    return {
        "architectures": sorted({run.spec.model.kind for run in runs}),
        "optimizers": sorted({run.spec.optimizer.name for run in runs}),
        "files": sorted(loaded_files()),
    }


def _unknown(needs: dict[str, Any]) -> str | None:
    """The entries of `_needs` that are not registered here, in words."""
    known = {"architectures": kinds(), "optimizers": optimizers.names()}
    missing = [
        f"the {what[:-1]} {name!r}"
        for what, names in known.items()
        for name in needs.get(what, ())
        if name not in names
    ]
    if not missing:
        return None
    files = " ".join(f"--load {path}" for path in needs.get("files", ())) or "--load FILE.py"
    return f"has {' and '.join(missing)}, known when its file is loaded: add {files} to the command"


def _versions() -> dict[str, str]:
    names = ("lmscale", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")
    versions = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def _git_commit() -> str | None:
    """The commit of the checkout that lmscale runs from, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
