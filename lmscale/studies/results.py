"""The results of a store, read once. Every study is a pure function of them."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lmscale.files import DamagedError
from lmscale.sweep.claims import Claim
from lmscale.sweep.store import Store
from lmscale.sweep.verify import verifications

__all__ = ["LOST", "Results"]

#: States of a run that ended without a result to use.
LOST = ("diverged", "failed", "out_of_memory")


@dataclass(frozen=True)
class Results:
    """One experiment's declaration and results.

    For example, `Results.read("results/isoflop").usable` has a row for every run that laws are
    fitted to.

    Attributes:
      experiment: experiment.json.
      table: one row a run (`Store.table`), with a column `family` in any case.
      ended: run -> result.json, for the runs that ended.
      metrics: run -> records of metrics.jsonl, for the runs that have any.
      verifications: forecasts with their outcomes (`lmscale.sweep.verify.verifications`).
      damage: a line for every file that isn't what was written (`Store.damage`).
      mended: a line for whatever was damaged and made again (`Store.mended`).
    """

    experiment: dict[str, Any]
    table: pd.DataFrame
    ended: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False)
    verifications: list[dict[str, Any]] = field(default_factory=list, repr=False)
    damage: list[str] = field(default_factory=list, repr=False)
    mended: list[str] = field(default_factory=list, repr=False)

    @classmethod
    def read(cls, store: Store | str | os.PathLike) -> Results:
        """The results of a store as it stands; `store` may be the path of its folder."""
        store = store if isinstance(store, Store) else Store.open(store)
        experiment = store.experiment()
        ended, metrics, damage = {}, {}, store.damage()
        if not experiment["runs"]:
            return cls(experiment, pd.DataFrame(columns=["run", "status", "family", "best_lr"]))
        for folder, _ in store.declared():
            result = folder.result()
            try:
                records = folder.metrics()
            except DamagedError as error:
                # Of a run that has ended `Store.damage` names it too.
                records = []
                damage.append(f"{error.path.removeprefix(f'{store.path}/')}: {error.fault}")
            if result is not None:
                ended[folder.path.name] = result
            if records:
                metrics[folder.path.name] = records
        table = store.table().reset_index(drop=True)
        if not len(table):
            table = pd.DataFrame(columns=["run", "status", "family", "best_lr"])
        if "family" not in table:
            table = table.assign(family=table["architecture"])
        return cls(
            experiment,
            table,
            ended,
            metrics,
            verifications(store),
            list(dict.fromkeys(damage)),
            store.mended(),
        )

    @property
    def title(self) -> str:
        return self.experiment.get("title") or self.experiment.get("name", "experiment")

    @property
    def claims(self) -> list[Claim]:
        """What the experiment set out to test."""
        return [Claim.from_json(values) for values in self.experiment.get("claims", [])]

    @property
    def families(self) -> list[str]:
        """In the order of the page: Transformers first, then the others by name."""
        names = sorted(set(self.table["family"]))
        return sorted(names, key=lambda name: (not name.startswith("transformer"), name))

    @property
    def usable(self) -> pd.DataFrame:
        """The runs that laws are fitted to: ended well, at the best learning rate of their cell."""
        if not len(self.table):
            return self.table
        good = self.table["best_lr"] & np.isfinite(self.table["loss"].astype(float))
        return self.table[good].reset_index(drop=True)

    @property
    def bits_per_nat(self) -> float | None:
        """Bits per byte of a loss of one nat per token; None where the runs disagree about it."""
        if not len(self.table):
            return None
        ratio = (self.table["bits_per_byte"] / self.table["loss"]).dropna()
        if not len(ratio) or ratio.max() > 1.001 * ratio.min():
            return None
        return float(ratio.iloc[0])

    @property
    def bytes_per_token(self) -> float | None:
        """Of the training text."""
        return self.experiment.get("corpus", {}).get("bytes_per_token")

    @property
    def eval_name(self) -> str | None:
        """The evaluation set whose loss is `table["loss"]`: the first that the runs declare."""
        for result in self.ended.values():
            for name in result.get("losses", {}):
                return name
        return None

    def evaluations(self, run: str) -> dict[int, dict[str, Any]]:
        """step -> evaluation set -> its losses, during training and at its end; empty where there
        are none."""
        return {e["step"]: e["eval"] for e in self.ended.get(run, {}).get("evaluations", [])}

    def tried_lr_factors(self) -> list[float]:
        """The multiples of the learning-rate rule that the experiment tries."""
        if "lr_factor" not in self.table:
            return []
        return sorted({float(x) for x in self.table["lr_factor"].dropna()})

    @property
    def lost(self) -> pd.DataFrame:
        """The runs that did not end well and will not."""
        if not len(self.table):
            return self.table
        return self.table[self.table["status"].isin(LOST)]
