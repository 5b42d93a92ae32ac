"""The recurrent Transformer against the plain one (Kaplan et al. 2020, Fig. 17).

Blocks that are applied several times are stored once. In the paper such a model is a little better than
a plain Transformer of as many stored parameters, and a little worse than one of as much compute. The
losses of plain models are interpolated between sizes and never extrapolated. Differences are taken seed
by seed, because runs of one seed see the same text in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from lmscale.laws import FitResult
from lmscale.laws.known import mean_of_known
from lmscale.studies.cells import Cell, paired, unfinished
from lmscale.studies.estimate import Estimate, few_seeds
from lmscale.studies.groups import by_name
from lmscale.studies.interpolate import between
from lmscale.studies.papers import points
from lmscale.studies.registry import register
from lmscale.studies.results import Results

__all__ = ["COUNTS", "Family", "Recurrent", "behind", "paper_gaps", "paper_models", "study"]

#: Two ways to count a size: the parameters that a model stores (without embeddings), and those that a token
#: passes, where shared ones count each time they are applied (training FLOPs per token / 6).
COUNTS = ("params", "compute")
#: A size outside of the plain ones by at most this share counts as the nearest of them.
SLACK = 0.02


def behind(size: Any, loss: Any, plain_size: Any, plain_loss: Any) -> np.ndarray:
    """Loss of models above the plain ones of their size, in nats; NaN outside the plain sizes.

    Args:
      size, loss: [model].
      plain_size, plain_loss: [plain model].
    """
    return np.asarray(loss, float) - between(size, plain_size, plain_loss, slack=SLACK)


@dataclass(frozen=True)
class Family:
    """One curve: its models, with the seeds that all of them have. Layers are applied `reuse` times."""

    name: str
    reuse: int
    cells: tuple[Cell, ...]

    @property
    def plain(self) -> bool:
        return self.name == "transformer"

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.cells[0].seeds

    def sizes(self, count: str) -> np.ndarray:
        """[model]"""
        column = {"params": "params_kaplan", "compute": "applied"}[count]
        return np.array([cell[column] for cell in self.cells], float)

    def losses(self, seed: int | None = None) -> np.ndarray:
        """[model] of one seed; the means by default."""
        if seed is None:
            return np.array([cell.mean for cell in self.cells])
        return np.array([cell.losses[cell.seeds.index(seed)] for cell in self.cells])


@dataclass(frozen=True)
class Recurrent:
    """What `study` finds.

    Attributes:
      families: the plain Transformer first.
      gaps: family -> count -> mean nats above the plain Transformer, for every other family.
      estimates: the same over all families with reuse: "params" at equal stored parameters,
        "compute" at equal compute.
    """

    families: tuple[Family, ...]
    gaps: dict[str, dict[str, Estimate]]
    estimates: dict[str, Estimate]
    fits: dict[str, FitResult] = field(default_factory=dict)

    @property
    def plain(self) -> Family | None:
        return _plain(self.families)

    @property
    def reused(self) -> list[Family]:
        return [family for family in self.families if family.reuse > 1 and not family.plain]

    def above_plain(self, family: Family, count: str) -> np.ndarray:
        """[model] nats of the means above the plain ones' at equal size; NaN without plain ones."""
        if self.plain is None:
            return np.full(len(family.cells), np.nan)
        plain = (self.plain.sizes(count), self.plain.losses())
        return behind(family.sizes(count), family.losses(), *plain)


@register("recurrent")
def study(results: Results) -> Recurrent:
    """Every reuse, and other families, against plain Transformers (Kaplan et al. 2020, Fig. 17).

    found = recurrent.study(Results.read("results/recurrent_transformer"))
    print(found.estimates["params"], found.estimates["compute"])
    """
    families = tuple(family for name in results.families for family in _family(results, name))
    plain, others = _plain(families), [family for family in families if not family.plain]
    young = unfinished(results.usable)
    reused = [family for family in others if family.reuse > 1]
    gaps = {f.name: {c: _gap(plain, [f], c, young) for c in COUNTS} for f in others}
    pooled = {count: _gap(plain, reused, count, young) for count in COUNTS}
    return Recurrent(families, gaps, pooled)


def _plain(families: Sequence[Family]) -> Family | None:
    return next((f for f in families if f.plain and len(f.cells) > 1), None)


def _family(results: Results, name: str) -> list[Family]:
    """One family; empty where no seed has ended well at every size."""
    runs = results.usable
    runs = runs[runs["family"] == name]
    if not len(runs):
        return []
    runs = runs.assign(applied=runs["flops_kaplan"] / runs["tokens"] / 6)
    cells = paired(runs, ["params_kaplan", "applied"])
    return [Family(name, int(runs.iloc[0].get("reuse", 1)), tuple(cells))] if cells else []


def _gap(plain: Family | None, families: Sequence[Family], count: str, young: str) -> Estimate:
    """The mean gap over all models within the range of the plain sizes, seed by seed."""
    if plain is None:
        why = "no two sizes of the plain Transformer have ended well"
        return Estimate(name=count, undecided_because=why)
    if not families:
        return Estimate(name=count, undecided_because="no model with reuse has ended well")
    per_seed, models = [], 0
    for seed in (s for s in plain.seeds if all(s in f.seeds for f in families)):
        base = (plain.sizes(count), plain.losses(seed))
        gaps = np.concatenate([behind(f.sizes(count), f.losses(seed), *base) for f in families])
        models = int(np.isfinite(gaps).sum())
        if models:
            per_seed.append(float(mean_of_known(gaps)))
    if not per_seed:
        return Estimate(name=count, undecided_because="the sizes do not overlap")
    why = few_seeds(len(per_seed)) or young
    return Estimate.of_mean(count, per_seed, undecided_because=why, n=models)


def paper_models() -> pd.DataFrame:
    """Kaplan et al. 2020, Figs. 7 and 17: columns family, params, compute, loss, and series of the
    models with reuse."""
    plain = points("kaplan2020_fig7").rename(columns={"n_params": "params"})
    reused = points("kaplan2020_fig17").rename(
        columns={"n_params": "params", "n_params_unshared": "compute"}
    )
    plain = plain.assign(compute=plain["params"])
    reused = reused.assign(family="transformer, reused " + reused["series"])
    return pd.concat([plain, reused]).sort_values("params")


def paper_gaps(count: str) -> dict[str, float]:
    """series -> mean nats of the paper's models with reuse above its plain ones."""
    paper = paper_models()
    plain, reused = paper[paper["family"] == "transformer"], paper[paper["series"].notna()]
    gaps = behind(reused[count], reused["loss"], plain["params"], plain["loss"])
    rows = reused.assign(gap=gaps)
    return {series: float(part["gap"].mean()) for series, part in by_name(rows, "series")}
