"""The results of a store, read once. Every study is a pure function of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from lmscale.files import DamagedError
from lmscale.spec import RunSpec
from lmscale.sweep.claims import Claim
from lmscale.sweep.store import Store
from lmscale.sweep.verify import verifications

__all__ = ["LOST", "WAITING", "Results"]

_Made = TypeVar("_Made")
#: States of a run that ended without a result to use.
LOST = ("diverged", "failed", "out_of_memory")
#: States of a run that is still to be trained, or goes on.
WAITING = ("pending", "running", "preempted")
#: The columns that `Results.curves` has in any case, in this order.
_FIRST_OF_CURVES = ("run", "step", "tokens", "flops", "loss")


@dataclass(frozen=True)
class Results:
    """One experiment's declaration and results; what `lmscale.load` returns.

        results = lmscale.load("results/isoflop-cpu")
        results.runs[["budget", "optimizer.peak_lr", "params_standard", "loss"]]
        results.curves.query("run == @results.runs.run[0]").plot("tokens", "loss")

    Attributes:
      experiment: experiment.json.
      table: one row a run (`Store.table`), with a column `family` in any case.
      ended: run -> result.json, for the runs that ended.
      metrics: run -> records of metrics.jsonl, for the runs that have any.
      verifications: forecasts with their outcomes (`lmscale.sweep.verify.verifications`).
      damage: a line for every file that isn't what was written (`Store.damage`).
      mended: a line for whatever was damaged and made again (`Store.mended`).
      specs: run -> its spec.
      store: what was read; None for results that were made by hand.
    """

    experiment: dict[str, Any]
    table: pd.DataFrame
    ended: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False)
    verifications: list[dict[str, Any]] = field(default_factory=list, repr=False)
    damage: list[str] = field(default_factory=list, repr=False)
    mended: list[str] = field(default_factory=list, repr=False)
    specs: dict[str, RunSpec] = field(default_factory=dict, repr=False)
    store: Store | None = None
    _made: dict[Any, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def once(self, key: Any, make: Callable[[], _Made]) -> _Made:
        """What `make` gives, computed once for these results: several studies read the same fit."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    @classmethod
    def read(cls, store: Store | str | os.PathLike) -> Results:
        """The results of a store as it stands; `store` may be the path of its folder."""
        store = store if isinstance(store, Store) else Store.open(store)
        experiment = store.experiment()
        ended, metrics, specs, damage = {}, {}, {}, store.damage()
        if not experiment["runs"]:
            empty = pd.DataFrame(columns=["run", "status", "family", "best_lr"])
            return cls(experiment, empty, store=store)
        for folder, _ in store.declared():
            result = folder.result()
            specs[folder.path.name] = folder.spec
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
            specs,
            store,
        )

    def __repr__(self) -> str:
        states = self.table["status"].value_counts().to_dict()
        said = ", ".join(f"{count} {status}" for status, count in states.items()) or "no runs"
        where = f" in {self.store.path}" if self.store is not None else ""
        return f"<{self.title}{where}: {said}>"

    def _repr_html_(self) -> str:
        """The runs, in a notebook."""
        return self.runs.to_html(max_rows=20, max_cols=20, notebook=True)

    @property
    def runs(self) -> pd.DataFrame:
        """One row a run: the columns of results.csv, and every field of its spec.

        Fields of the spec have the names that they have in spec.json, with dots: `model.d_model`,
        `optimizer.peak_lr`, `schedule.warmup_steps`, `data.corpus`. Losses are in nats per token, and
        params and flops are there under each convention (`params_standard`, `flops_exact`).
        """
        if not self.specs:
            return self.table
        fields = pd.DataFrame(
            [{"run": run, **dict(_flat(spec.to_dict()))} for run, spec in self.specs.items()]
        )
        # A field of the same name as a column (`steps`, `seed`) is the same number.
        new = [name for name in fields if name == "run" or name not in self.table]
        return self.table.merge(fields[new], on="run", how="left")

    @property
    def curves(self) -> pd.DataFrame:
        """What the runs recorded while they trained, one row a run and step.

        Columns run, step, tokens, flops (exact convention), loss (training loss in nats per token,
        the mean over `steps_averaged` steps), `loss_NAME` and `bits_per_byte_NAME` of each evaluation
        set, lr, grad_norm and the rest of metrics.jsonl. A step that was only evaluated has no loss,
        one that was only recorded has no `loss_NAME`.
        """
        rows: dict[tuple[str, int], dict[str, Any]] = {}
        for run, records in self.metrics.items():
            for record in records:
                row = rows.setdefault((run, record["step"]), {"run": run})
                row |= {name: value for name, value in record.items() if name != "eval"}
                for name, scores in (record.get("eval") or {}).items():
                    for score in ("loss", "bits_per_byte"):
                        row[f"{score}_{name}"] = scores.get(score)
        table = pd.DataFrame(list(rows.values()))
        first = [name for name in _FIRST_OF_CURVES if name not in table]
        table = table.reindex(columns=[*table.columns, *first])
        return table[[*_FIRST_OF_CURVES, *(name for name in table if name not in _FIRST_OF_CURVES)]]

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


def _flat(values: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a spec by dotted name; of its evaluation sets the names alone."""
    for name, value in values.items():
        if name == "evals":
            yield above + name, ", ".join(one["name"] for one in value)
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        else:
            yield above + name, tuple(value) if isinstance(value, list) else value
