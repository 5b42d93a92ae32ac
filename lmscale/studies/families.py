"""Loss against size in families of equal depth (Kaplan et al. 2020, Fig. 6).

The losses of the same models are plotted against N without and with embeddings. In the paper models of
all depths lie on one line if N excludes the embeddings, and on one line per depth if it includes them.
The scatter about one power law, under each count, measures this.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import pandas as pd

from lmscale import flops, laws
from lmscale.laws import FitResult
from lmscale.laws.quantiles import student_quantile
from lmscale.spec import RunSpec
from lmscale.studies.cells import Cell, cell_rows, measured_cells, seed_noise, unfinished
from lmscale.studies.estimate import Basis, Estimate
from lmscale.studies.fits import attempt
from lmscale.studies.papers import points
from lmscale.studies.registry import register
from lmscale.studies.results import Results
from lmscale.wording import plural

__all__ = [
    "Collapse",
    "Families",
    "collapse",
    "columns",
    "kaplan_models",
    "n_total",
    "single_layer_shift",
    "study",
]

#: Kaplan et al. 2020 leave models of one layer out of L(N).
LEAST_DEPTH = 2
#: Fewest models for a line whose scatter means something.
LEAST_MODELS = 5
#: Of the bootstrap over models.
DRAWS = 2000
#: Vocabulary and positions of the models of Kaplan et al. 2020, which have embeddings.
KAPLAN_ROWS = 50_257 + 1024


@dataclass(frozen=True)
class Collapse:
    """Scatter of models about one power law, N counted without and with embeddings.

    Attributes:
      without, including: residual rms of the logarithm of the loss (two degrees of freedom spent).
      ratio: including / without; above 1 where excluding the embeddings brings the depths together.
    """

    without: float
    including: float
    ratio: Estimate


@dataclass(frozen=True)
class Families:
    """What `study` finds.

    Attributes:
      models: Transformers, by depth and then size.
      fit: L(N) = (N_c / N)^alpha_N of the models of two and more layers.
      collapse: None for fewer than `LEAST_MODELS` of them.
      seed_noise: standard deviation over seeds as a share of the loss, where it is known.
      estimates: "collapse", "single_layer" (`single_layer_shift`) and "alpha_N".
    """

    models: tuple[Cell, ...]
    fit: FitResult
    collapse: Collapse | None
    seed_noise: float | None
    estimates: dict[str, Estimate]

    @property
    def fits(self) -> dict[str, FitResult]:
        return {f"depth {LEAST_DEPTH} and more/kaplan": self.fit}


@register("families")
def study(results: Results) -> Families:
    """Both ways of counting N, and the law of the deeper models (Kaplan et al. 2020, eq. 1.1).

    found = families.study(Results.read("results/model_size"))
    print(found.estimates["collapse"], found.collapse.without)
    """
    usable = results.usable
    runs = usable[usable["architecture"] == "transformer"] if len(usable) else usable
    if len(runs):
        runs = runs.assign(embeddings=[_embeddings(results.specs[run]) for run in runs["run"]])
    models = measured_cells(runs, ["n_layer", "width"])
    models = sorted(models, key=lambda model: (model["n_layer"], model.n_params))
    deep = [model for model in models if model["n_layer"] >= LEAST_DEPTH]
    n, seeds = len(deep), min((len(model.losses) for model in deep), default=0)
    young, needs = unfinished(usable), ""
    if len(deep) < LEAST_MODELS:
        many = plural(len(deep), "model")
        needs = f"{many} of two or more layers, and {LEAST_MODELS} are needed"
    fit = attempt("power", lambda: _law(deep), needs=needs)
    found = collapse(columns(deep), undecided_because=young, n=n, seeds=seeds)
    none = Estimate(name="collapse", undecided_because=needs, n=n, seeds=seeds)
    estimates = (
        found.ratio if found else none,
        single_layer_shift(columns(models), undecided_because=young, seeds=seeds),
        Estimate.of_parameter(fit, "alpha_N", undecided_because=young, n=n, seeds=seeds),
    )
    return Families(
        tuple(models), fit, found, seed_noise(models), {one.name: one for one in estimates}
    )


def _embeddings(spec: RunSpec) -> int:
    """Parameters of the embeddings of tokens, and of positions where these are learnt."""
    counted = flops.operations(spec.model)
    return counted["embedding"].params + counted["position"].params


def n_total(model: Cell) -> float:
    """N with embeddings."""
    return model.n_params + float(model["embeddings"])


def columns(models: Sequence[Cell]) -> pd.DataFrame:
    """n_layer, n_params, n_total and the mean loss of each model."""
    rows = [(model["n_layer"], model.n_params, n_total(model), model.mean) for model in models]
    return pd.DataFrame(rows, columns=["n_layer", "n_params", "n_total", "loss"])


def kaplan_models() -> pd.DataFrame:
    """The 39 models of Kaplan et al. 2020, Fig. 6, in the same columns."""
    table = points("kaplan2020_fig6_nonembed").rename(
        columns={"N_nonembed": "n_params", "test_loss": "loss"}
    )
    return table.assign(n_total=table["n_params"] + KAPLAN_ROWS * table["d_model"])


def collapse(models: pd.DataFrame, *, seed: int = 0, **rest: Unpack[Basis]) -> Collapse | None:
    """Scatter about one power law, with an interval of the ratio over bootstrap draws of models.

    Args:
      models: `columns`, of the depths to be compared.
      rest: of the `Estimate`.

    Returns:
      None for fewer than `LEAST_MODELS`.
    """
    x = np.log(models[["n_params", "n_total"]].to_numpy(float)).T
    y = np.log(models["loss"].to_numpy(float))
    n = len(y)
    if n < LEAST_MODELS:
        return None
    counts = np.random.default_rng(seed).multinomial(n, [1 / n] * n, size=DRAWS).astype(float)
    # A line through fewer than four distinct models has no scatter to speak of.
    counts = counts[(counts > 0).sum(axis=1) >= 4]
    weights = np.concatenate([np.ones((1, n)), counts])
    without, including = (_residual_rms(row, y, weights) for row in x)
    ratio = including / without
    basis: Basis = {"n": n, **rest}
    estimate = Estimate.of_draws("collapse", ratio[0], ratio[1:], **basis)
    return Collapse(float(without[0]), float(including[0]), estimate)


def single_layer_shift(
    models: pd.DataFrame, *, undecided_because: str = "", seeds: int = 0
) -> Estimate:
    """How far models of one layer lie above the line of the deeper ones, as a share of the loss.

    Only models whose N lies within the range of the deeper models count, so nothing is extrapolated. The
    interval is Student's, from the scatter of the deeper models about their line, whose level and slope
    are uncertain too.

    Args:
      models: `columns`, of all depths.
      undecided_because, seeds: of the `Estimate`, whose `n` counts the models of one layer.
    """
    x, y = (np.log(models[name].to_numpy(float)) for name in ("n_params", "loss"))
    deep = (models["n_layer"] >= LEAST_DEPTH).to_numpy()
    single = ~deep & (x >= x[deep].min(initial=np.inf)) & (x <= x[deep].max(initial=0))
    n, m = int(deep.sum()), int(single.sum())
    if n < LEAST_MODELS or not m:
        why = "no one-layer model lies among the sizes of deeper ones"
        return Estimate(name="single_layer", undecided_because=why)
    slope, level = np.polyfit(x[deep], y[deep], 1)
    rest_of_line = y - slope * x - level
    scatter = math.sqrt(float(np.sum(rest_of_line[deep] ** 2)) / (n - 2))
    # What an error of the slope moves at the middle of the models of one layer, away from the line's own.
    away = (x[single].mean() - x[deep].mean()) ** 2 / (n * x[deep].var())
    half = student_quantile(0.975, n - 2) * scatter * math.sqrt(1 / n + 1 / m + away)
    value = float(rest_of_line[single].mean())
    interval = (math.expm1(value - half), math.expm1(value + half))
    return Estimate(
        name="single_layer",
        value=math.expm1(value),
        interval=interval,
        undecided_because=undecided_because,
        n=m,
        seeds=seeds,
    )


def _residual_rms(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """[draw]: rms about the straight line of every draw's weights."""
    total = weights.sum(axis=1)
    dx = x - (weights @ x / total)[:, None]
    dy = y - (weights @ y / total)[:, None]
    slope = (weights * dx * dy).sum(axis=1) / (weights * dx**2).sum(axis=1)
    rest = dy - slope[:, None] * dx
    return np.sqrt((weights * rest**2).sum(axis=1) / (total - 2))


def _law(deep: list[Cell]) -> FitResult:
    """L(N) through the models.

    The bootstrap draws models, not runs, because the seeds of a model share its deviation from the law.
    """
    groups = [f"{model['n_layer']} x {model['width']}" for model in deep for _ in model.losses]
    table = laws.Table.read(cell_rows(deep).assign(group=groups), convention="kaplan")
    return laws.fit(table, "power", x="params", by=("group",))
