"""The data of a store, read once: what the analyses are pure functions of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lmscale.files import DamagedError
from lmscale.report.wording import number, plural
from lmscale.sweep.claims import Claim
from lmscale.sweep.epochs import epochs_of
from lmscale.sweep.store import Store, cell_columns
from lmscale.sweep.verify import verifications

__all__ = ["LEAST_SEEDS", "LOST", "Study", "few_seeds", "repeated_text", "unfinished"]

#: States of a run that ended without a result to use.
LOST = ("diverged", "failed", "out_of_memory")
#: Fewest seeds whose spread makes an interval, and so a claim: two say next to nothing of noise.
LEAST_SEEDS = 3

#: Tokens a parameter: 1.3e11 tokens for the largest model of 1.5e9 parameters (Kaplan et al. 2020, section 2.2).
KAPLAN_TOKENS_PER_PARAMETER = 88


@dataclass(frozen=True)
class Study:
    """One experiment's declaration and results.

    Attributes:
      experiment: experiment.json.
      table: one row a run (`Store.table`), with a column `family` in any case.
      results: run -> result.json, for the runs that ended.
      metrics: run -> records of metrics.jsonl, for the runs that have any.
      verifications: forecasts with their outcomes (`lmscale.sweep.verify.verifications`).
      damage: a line for every file that isn't what was written (`Store.damage`).
      mended: a line for whatever was damaged and made again (`Store.mended`).
    """

    experiment: dict[str, Any]
    table: pd.DataFrame
    results: dict[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    metrics: dict[str, list[dict[str, Any]]] = field(default_factory=dict, repr=False)
    verifications: list[dict[str, Any]] = field(default_factory=list, repr=False)
    damage: list[str] = field(default_factory=list, repr=False)
    mended: list[str] = field(default_factory=list, repr=False)

    @classmethod
    def read(cls, store: Store) -> Study:
        experiment = store.experiment()
        results, metrics, damage = {}, {}, store.damage()
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
                results[folder.path.name] = result
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
            results,
            metrics,
            verifications(store),
            list(dict.fromkeys(damage)),
            store.mended(),
        )

    def damage_warnings(self) -> list[str]:
        """Sentences on the files that aren't what was written, and on those made again."""
        found = [
            f"{line}: it is left out until “lmscale run” makes it again." for line in self.damage
        ]
        return found + [f"Found damaged, and made again: {line}." for line in self.mended]

    def spikes_sentence(self) -> str:
        """How many loss spikes the runs had; empty where there are none."""
        if "loss_spikes" not in self.table:
            return ""
        counts = self.table["loss_spikes"].dropna()
        if not (counts > 0).any():
            return ""
        return (
            f"{plural(int((counts > 0).sum()), 'run')} of {len(counts)} had loss spikes, "
            f"{int(counts.sum())} in all: steps whose training loss lies more than 6 robust standard "
            "deviations above the median of the 100 steps before."
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
        for result in self.results.values():
            for name in result.get("losses", {}):
                return name
        return None

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

    def lost_warning(self) -> list[str]:
        """One sentence where runs are missing from every analysis for not ending well."""
        n = len(self.lost)
        return [f"{plural(n, 'run')} left out for not ending well."] if n else []

    def lr_edge_warning(self, family: str | None = None) -> list[str]:
        """One sentence where the best learning rate of a searched cell is the edge of its search."""
        factors = self.tried_lr_factors()
        if len(factors) < 2:
            return []
        runs = self.table[self.table["status"] == "done"]
        if family is not None:
            runs = runs[runs["family"] == family]
        searched = low = high = 0
        for _, tried in runs.groupby(cell_columns(runs), dropna=False):
            losses = tried.groupby("lr_factor")["loss"].mean()
            if len(losses) > 1:
                searched += 1
                low += losses.idxmin() == losses.index.min()
                high += losses.idxmin() == losses.index.max()
        if not low + high:
            return []
        return [
            (
                f"The best learning rate is at the edge of the search in {low + high} of {searched} "
                f"cells ({low} at the lowest factor {factors[0]:g}, {high} at the highest "
                f"{factors[-1]:g}): a wider search might lower those losses."
            )
        ]


def repeated_text(study: Study) -> str | None:
    """One sentence where runs pass over their text more often than it is worth."""
    corpus, table = study.experiment.get("corpus", {}), study.table
    total = corpus.get("train_tokens")
    if not total or not len(table):
        return None
    subsets = table["unique_tokens"] if "unique_tokens" in table else [math.nan] * len(table)
    runs = (
        (int(trained), None if math.isnan(float(subset)) else int(subset))
        for trained, subset in zip(table["tokens"], subsets, strict=True)
        if math.isfinite(float(trained))
    )
    line = epochs_of(runs, int(total)).line(
        corpus.get("name", "the corpus"), study.experiment.get("repeats_text", False)
    )
    return line and f"{line}."


def few_seeds(seeds: int, what: str = "a difference") -> str:
    """Why `what` from so few seeds decides nothing; empty where they suffice."""
    return "" if seeds >= LEAST_SEEDS else f"{what} needs {LEAST_SEEDS} seeds, not {seeds}"


def unfinished(runs: pd.DataFrame) -> str:
    """Why runs far from convergence decide nothing that Kaplan et al. 2020 found near it.

    Empty where the largest model of `runs` saw as many tokens a parameter as theirs.
    """
    if not len(runs):
        return ""
    largest = runs.loc[runs["params_kaplan"].astype(float).idxmax()]
    ratio = largest["tokens"] / largest["params_kaplan"]
    if ratio >= KAPLAN_TOKENS_PER_PARAMETER:
        return ""
    longer = math.ceil(KAPLAN_TOKENS_PER_PARAMETER / ratio)
    return (
        f"the largest model saw {number(ratio, 2)} tokens a parameter where the paper's saw "
        f"{KAPLAN_TOKENS_PER_PARAMETER}, and deeper models take longer to learn: it would take "
        f"{longer} times the --steps first"
    )


def finite(value: Any) -> bool:
    """Whether `value` is a number that can be shown."""
    return value is not None and isinstance(value, (int, float)) and math.isfinite(value)
