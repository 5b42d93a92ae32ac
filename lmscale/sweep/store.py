"""The store of one experiment: experiment.json, a folder a run, results.csv."""

from __future__ import annotations

import contextlib
import math
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

from lmscale import flops
from lmscale.data import Corpus
from lmscale.files import read_json, write_atomically, write_json
from lmscale.spec import LSTMSpec
from lmscale.sweep.experiment import Experiment, Run
from lmscale.sweep.ownership import find_claim
from lmscale.training.run_folder import RunFolder

if TYPE_CHECKING:
    import pandas as pd

#: Statuses that end a run for good: a result that is not trained again.
ENDED = ("done", "diverged")


class StoreError(ValueError):
    """A folder that is no store, or another experiment's; the message is one line."""


class Store:
    """One experiment's folder. `path` may be remote (gs://)."""

    def __init__(self, path: epath.PathLike):
        self.path = epath.Path(path).expanduser()
        if "://" not in str(path):
            # Orbax wants absolute paths.
            self.path = self.path.absolute()

    @classmethod
    def open(cls, path: epath.PathLike) -> Store:
        """The store in a folder.

        Raises:
          StoreError: when the folder holds no experiment.
        """
        store = cls(path)
        if not (store.path / "experiment.json").exists():
            raise StoreError(f"{path} holds no experiment.json: give the --out of a `lmscale run`")
        return store

    def declare(
        self,
        name: str,
        scale: str,
        experiment: Experiment,
        corpus: Corpus,
        runs: Sequence[Run],
        command: str,
    ) -> None:
        """Writes experiment.json. A store keeps to one experiment; its grid may grow.

        Args:
          command: what the user typed, for the report.

        Raises:
          StoreError: when the folder belongs to another experiment, or there are no runs.
        """
        if not runs:
            raise StoreError(f"{name} at scale {scale} declares no runs: give it other fields")
        earlier = read_json(self.path / "experiment.json")
        if earlier and earlier["name"] != name:
            raise StoreError(
                f"{self.path} holds the experiment {earlier['name']}, not {name}: choose another --out"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(
            self.path / "experiment.json",
            {
                "name": name,
                "scale": scale,
                "command": command,
                "title": experiment.title,
                "analyses": list(experiment.analyses),
                "claims": [claim.to_json() for claim in experiment.claims],
                "repeats_text": experiment.repeats_text,
                "fields": {k: v for k, v in vars(experiment).items()},
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
                },
                "runs": [{"run": run.spec.run_id, "labels": run.labels} for run in runs],
                "versions": _versions(),
                "git_commit": _git_commit(),
            },
        )
        # Side by side, as each waits for its file to be on disk.
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda run: self.folder(run).create(), runs))

    def experiment(self) -> dict[str, Any]:
        """experiment.json."""
        return read_json(self.path / "experiment.json")

    def folder(self, run: Run) -> RunFolder:
        return RunFolder(self.path / "runs" / run.spec.run_id, run.spec)

    def declared(self) -> Iterator[tuple[RunFolder, dict[str, Any]]]:
        """Every declared run with its labels."""
        for entry in self.experiment()["runs"]:
            yield RunFolder.open(self.path / "runs" / entry["run"]), entry["labels"]

    def adopt(self, other: Store, runs: Sequence[Run]) -> int:
        """Copies results of runs that `other` has trained and this store has not.

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
                # It is being trained, to the same result.
                continue
            for name in ("metrics.jsonl", "status.json", "result.json"):
                write_atomically(ours.path / name, (theirs.path / name).read_bytes())
            count += 1
        return count

    def table(self) -> pd.DataFrame:
        """One row a run: what it is, what it cost, what it reached.

        Where a learning-rate search was made, `best_lr` marks the runs of the factor with the
        lowest mean loss over seeds in their cell, of the factors at which most seeds ended well;
        without a search it marks every run that ended well. See `mark_best_lr`.
        """
        # Not with the module: it loads slowly, and processes that train do without.
        import pandas as pd

        rows = [_row(folder, labels) for folder, labels in self.declared()]
        return mark_best_lr(pd.DataFrame(rows))

    def write_table(self) -> pd.DataFrame:
        """Writes results.csv from the runs' folders, and returns it."""
        table = self.table()
        write_atomically(self.path / "results.csv", table.to_csv(index=False))
        return table


#: What the runs of one cell have in common: they differ in learning rate and seed only.
_CELL = (
    "family",
    "budget",
    "cell",
    "architecture",
    "n_layer",
    "width",
    "steps",
    "batch_size",
)


def cell_columns(table: pd.DataFrame) -> list[str]:
    """The columns of a store's table that name a cell of its learning-rate search."""
    return [name for name in _CELL if name in table]


def mark_best_lr(table: pd.DataFrame) -> pd.DataFrame:
    """Adds the column `best_lr`; see `Store.table`.

    Of a budget only factors that all its cells have tried count: a size whose rate was searched would
    look better than its neighbours, whose rates were not.
    """
    cell = cell_columns(table)
    losses = table["loss"].where(table["status"] == "done")
    if "lr_factor" not in table:
        return table.assign(best_lr=losses.notna())
    cells = [table[name] for name in cell]
    of_factor = losses.groupby([*cells, table["lr_factor"]], dropna=False)
    # A rate at which seeds diverge must not win by the seeds that are left.
    seeds = of_factor.transform("count")
    most = seeds.groupby(cells, dropna=False).transform("max")
    shared = _tried_by_all(table, cell)
    mean = of_factor.transform("mean").where((seeds == most) & shared)
    lowest = mean.groupby(cells, dropna=False).transform("min")
    return table.assign(best_lr=losses.notna() & (mean == lowest))


def _tried_by_all(table: pd.DataFrame, cell: list[str]) -> pd.Series:
    """Whether each run's factor was tried at every cell of its family and budget."""
    if "budget" not in table:
        return table["status"].notna()
    factor = table["lr_factor"].fillna(1.0)
    profiles = [name for name in ("family", "budget") if name in table]
    place = table.groupby(cell, dropna=False).ngroup()
    profile = table.groupby(profiles, dropna=False).ngroup()
    cells = place.groupby(profile).transform("nunique")
    tried = place.groupby([profile, factor]).transform("nunique")
    alone = (tried == cells).groupby(profile).transform("any")
    return (tried == cells) | ~alone


def note_worker(store: Store, shard: tuple[int, int]) -> None:
    """Leaves word in shards/I-of-N.json of who trains a shard, for `lmscale status`.

    It keeps nobody from training the same runs: their claims do (`lmscale.sweep.ownership`).
    """
    index, count = shard
    folder = store.path / "shards"
    folder.mkdir(parents=True, exist_ok=True)
    worker = {"host": platform.node(), "process": os.getpid(), "started": time.time()}
    write_json(folder / f"{index}-of-{count}.json", worker)


def _row(folder: RunFolder, labels: dict[str, Any]) -> dict[str, Any]:
    spec, status = folder.spec, folder.status()
    result = folder.result() or {}
    model = spec.model
    losses = result.get("losses", {})
    bits = result.get("bits_per_byte", {})
    first = next(iter(losses), None)
    return {
        "run": folder.path.name,
        "status": result.get("status", status["status"]),
        "reason": status["reason"],
        **labels,
        "architecture": model.kind,
        "n_layer": model.n_layer,
        "width": model.d_hidden if isinstance(model, LSTMSpec) else model.d_model,
        "n_ctx": model.n_ctx,
        "vocab_size": model.vocab_size,
        "batch_size": spec.batch_size,
        "steps": spec.steps,
        "seed": spec.seed,
        "peak_lr": spec.optimizer.peak_lr,
        "batch_tokens": spec.batch_tokens,
        "unique_tokens": spec.data.subset_tokens or math.nan,
        "evaluated_step": result.get("evaluated_step") or math.nan,
        "tokens": result.get("tokens", spec.n_tokens),
        "n_params": flops.n_params(model, "kaplan"),
        **{f"params_{c}": flops.n_params(model, c) for c in flops.CONVENTIONS},
        **{
            f"flops_{c}": result.get("flops", {}).get(c, flops.training_flops(spec, c))
            for c in flops.CONVENTIONS
        },
        "loss": losses.get(first, math.nan),
        "bits_per_byte": bits.get(first, math.nan),
        "train_loss": result.get("train_loss") or math.nan,
        **{f"loss_{name}": loss for name, loss in losses.items()},
        **{f"loss_{name}": found["scores"]["loss"] for name, found in folder.evals().items()},
        "seconds": status["seconds"],
        "device": result.get("device"),
    }


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
