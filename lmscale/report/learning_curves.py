"""Learning curves of a study: evaluated loss against updates, and what several analyses take from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lmscale import laws
from lmscale.flops import CONVENTIONS
from lmscale.laws import FitResult
from lmscale.laws.solve import seed_weights
from lmscale.report.study import LEAST_SEEDS, Study
from lmscale.report.wording import si

__all__ = [
    "BATCH_NOTE",
    "Ladder",
    "Size",
    "evaluations",
    "fit_learning_curves",
    "ladder",
    "seed_interval",
    "size_legend",
]

#: Constants of B_crit(L) = B_star / L^(1/alpha_B) in tokens, Kaplan et al. 2020, Table 5.
KAPLAN_BATCH = (2.1e8, 0.21)
#: Warning for what was adjusted by the paper's critical batch.
BATCH_NOTE = (
    "S_min, E_min and C_min are read with B_crit(L) of Kaplan et al. 2020, measured on another text "
    "and vocabulary. `lmscale run batch_size` measures it on yours; give it as --critical-batch."
)


@dataclass(frozen=True)
class Size:
    """The learning curves of one size: every seed at the same steps, after the warmup.

    Attributes:
      steps: [point] updates.
      losses: [seed, point] on the first evaluation set, nats per token.
      params, flops_per_step: by convention.
    """

    steps: np.ndarray
    losses: np.ndarray
    batch_tokens: float
    params: dict[str, float]
    flops_per_step: dict[str, float]

    @property
    def n_params(self) -> float:
        """N without embeddings."""
        return self.params["kaplan"]

    @property
    def loss(self) -> np.ndarray:
        """[point] the mean over seeds."""
        return self.losses.mean(axis=0)


@dataclass(frozen=True)
class Ladder:
    """The sizes of one family, smallest first, and the critical batch that they are read with.

    Attributes:
      critical_batch: (B_star, alpha_B) of B_crit(L) = B_star / L^(1/alpha_B), in tokens.
      measured_batch: whether the experiment declares that law, or Kaplan's stands in for it.
    """

    family: str
    sizes: tuple[Size, ...]
    critical_batch: tuple[float, float]
    measured_batch: bool

    def b_crit(self, loss: Any) -> Any:
        """B_crit(L) in tokens."""
        return laws.critical_batch(loss, *self.critical_batch)

    @property
    def batch_law(self) -> dict[str, float]:
        """`critical_batch` by name."""
        return dict(zip(("B_star", "alpha_B"), self.critical_batch, strict=True))

    @property
    def n_seeds(self) -> int:
        """Of the size that has fewest."""
        return min((len(size.losses) for size in self.sizes), default=0)

    def drawn_losses(self, n_draws: int, seed: int = 0) -> list[np.ndarray] | None:
        """Each size's mean loss [draw, point] over seeds drawn again; None below `LEAST_SEEDS`."""
        if self.n_seeds < LEAST_SEEDS:
            return None
        cells = np.repeat(np.arange(len(self.sizes)), [len(s.losses) for s in self.sizes])
        weights = seed_weights(cells, n_draws, np.random.default_rng(seed))
        return [
            weights[:, cells == cell] @ size.losses / len(size.losses)
            for cell, size in enumerate(self.sizes)
        ]


def evaluations(records: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Steps and losses of a run's evaluations, on the first set, from the end of the warmup on."""
    rates = [(r["step"], r["lr"]) for r in records if r.get("lr") is not None]
    peak = max((rate for _, rate in rates), default=0.0)
    warm = next((step for step, rate in rates if rate >= 0.97 * peak), 0)
    points = {
        r["step"]: next(iter(r["eval"].values()))["loss"]
        for r in records
        if r.get("eval") and r["step"] >= warm
    }
    steps = np.array(sorted(points), float)
    return steps, np.array([points[step] for step in sorted(points)], float)


def ladder(study: Study) -> Ladder | None:
    """The learning curves of the first family that has any; None where there are none.

    Where a size was trained for several lengths, the longest counts; seeds that were evaluated at
    other steps than the first one are read off between their own.
    """
    declared = study.experiment.get("fields", {}).get("critical_batch")
    constants = tuple(declared) if declared else KAPLAN_BATCH
    for family in study.families:
        runs = study.usable
        runs = runs[runs["family"] == family] if len(runs) else runs
        sizes = []
        for _, group in runs.groupby("params_kaplan", sort=True):
            size = _size(study, group[group["tokens"] == group["tokens"].max()])
            if size is not None:
                sizes.append(size)
        if sizes:
            measured = constants != KAPLAN_BATCH
            return Ladder(family, tuple(sizes), constants, measured)
    return None


def _size(study: Study, runs: pd.DataFrame) -> Size | None:
    curves = [evaluations(study.metrics.get(run, ())) for run in runs["run"]]
    curves = [curve for curve in curves if len(curve[0]) >= 3]
    if not curves:
        return None
    first = runs.iloc[0]
    steps = curves[0][0]
    per_step = first["batch_tokens"] / first["tokens"]
    return Size(
        steps=steps,
        losses=np.stack([np.interp(np.log(steps), np.log(s), loss) for s, loss in curves]),
        batch_tokens=float(first["batch_tokens"]),
        params={name: float(first[f"params_{name}"]) for name in CONVENTIONS},
        flops_per_step={name: float(first[f"flops_{name}"] * per_step) for name in CONVENTIONS},
    )


def fit_learning_curves(found: Ladder, bootstrap: int = 400) -> FitResult:
    """L(N, S_min) of Kaplan et al. 2020, eq. 1.6, with N without embeddings.

    Raises:
      TableError, FitError: when the curves do not determine it.
    """
    rows = [
        {
            "params": size.n_params,
            "steps": step,
            "loss": loss,
            "batch_tokens": size.batch_tokens,
            "group": f"{size.n_params:g} {seed}",
        }
        for size in found.sizes
        for seed, losses in enumerate(size.losses)
        for step, loss in zip(size.steps, losses, strict=True)
    ]
    return laws.fit(
        laws.Table.read(pd.DataFrame(rows), convention="kaplan"),
        "kaplan-ns",
        adjust=found.batch_law,
        bootstrap=bootstrap,
    )


def seed_interval(draws: np.ndarray | None, level: float = 0.95) -> tuple[float, float] | None:
    """The central interval of draws; None where more than a tenth of them are no numbers."""
    if draws is None:
        return None
    draws = np.asarray(draws, float)
    finite = np.isfinite(draws)
    if finite.mean() < 0.9:
        return None
    draws = draws[finite]
    tail = 50 * (1 - level)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(low), float(high)


def size_legend(figure: Any, colours: dict[float, str]) -> None:
    """N by colour, above the panels."""
    shown = sorted(colours)
    if len(shown) > 7:
        keep = np.unique(np.round(np.linspace(0, len(shown) - 1, 7)).astype(int))
        shown = [shown[i] for i in keep]
    handles = [figure.axes[0].plot([], [], color=colours[n], lw=2)[0] for n in shown]
    figure.legend(
        handles,
        [si(n) for n in shown],
        title="N, parameters without embeddings",
        title_fontsize=8,
        loc="outside upper center",
        ncols=len(shown),
        handlelength=1.2,
        columnspacing=1.4,
    )
