"""Training curves of all runs, and how the runs ended."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lmscale.laws import FitResult
from lmscale.studies.estimate import Estimate
from lmscale.studies.groups import by_name, rows_of
from lmscale.studies.registry import register
from lmscale.studies.results import LOST, Results

__all__ = ["Curves", "TrainingCurve", "study"]


@dataclass(frozen=True)
class TrainingCurve:
    """The training loss of one run, averaged between two records.

    Attributes:
      columns: the run's row of the store's table.
      steps, tokens, flops, losses: [record]; exact FLOPs, nats per token.
    """

    columns: Mapping[str, Any] = field(repr=False)
    steps: np.ndarray
    tokens: np.ndarray
    flops: np.ndarray
    losses: np.ndarray

    @property
    def n_params(self) -> float:
        """N without embeddings."""
        return float(self.columns["params_kaplan"])

    @property
    def status(self) -> str:
        return self.columns["status"]

    @property
    def is_lost(self) -> bool:
        return self.status in LOST

    @property
    def is_best_rate(self) -> bool:
        """Whether it trained at the best learning rate of its cell."""
        return bool(self.columns["best_lr"])


@dataclass(frozen=True)
class Curves:
    """What `study` finds; it has no estimates of its own and fits no law.

    Attributes:
      statuses: status -> runs, the commonest first.
      reasons: status -> reason -> runs, of the runs that were lost.
      families: family -> curves of its runs, those at the best learning rates last.
    """

    statuses: dict[str, int]
    reasons: dict[str, dict[str, int]]
    families: dict[str, list[TrainingCurve]]
    estimates: dict[str, Estimate] = field(default_factory=dict)
    fits: dict[str, FitResult] = field(default_factory=dict)

    @property
    def n_runs(self) -> int:
        return sum(self.statuses.values())


@register("curves")
def study(results: Results) -> Curves:
    """The curves of every run that has records, and how many runs ended how.

    found = curves.study(Results.read("results/isoflop"))
    print(found.statuses, found.families["transformer"][0].losses)
    """
    table = results.table
    reasons = {
        status: _counts(runs["reason"].fillna("no reason given"))
        for status, runs in by_name(results.lost, "status")
    }
    families: dict[str, list[TrainingCurve]] = {}
    for family in results.families:
        rows = rows_of(table[table["family"] == family])
        found = [curve for row in rows if (curve := _curve(results, row)) is not None]
        if found:
            order = sorted(found, key=lambda c: (c.is_best_rate, -c.columns["n_params"]))
            families[family] = order
    return Curves(_counts(table["status"]), reasons, families)


def _counts(texts: Iterable[str]) -> dict[str, int]:
    """text -> how often it occurs, the commonest first."""
    return dict(Counter(texts).most_common())


def _curve(results: Results, row: Mapping[str, Any]) -> TrainingCurve | None:
    records = [
        (r["step"], r["tokens"], r["flops"], r["loss"])
        for r in results.metrics.get(row["run"], ())
        if r.get("loss") is not None and math.isfinite(r["loss"]) and r["tokens"] > 0
    ]
    return TrainingCurve(row, *np.array(records, float).T) if records else None
