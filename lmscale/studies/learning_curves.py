"""Learning curves: evaluated loss against updates, and the law of size and steps through them.

Several studies share these: `learning`, `efficiency`, `compute` and `critical_batch`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import digamma, polygamma

from lmscale import laws
from lmscale.flops import CONVENTIONS
from lmscale.laws import FitResult
from lmscale.laws.quantiles import normal_quantile
from lmscale.laws.result import intervals_of
from lmscale.studies.estimate import LEAST_SEEDS
from lmscale.studies.groups import by_number
from lmscale.studies.results import Results

__all__ = [
    "NO_CURVES",
    "Ladder",
    "Size",
    "evaluations",
    "fit_learning_curves",
    "ladders",
    "law_rejected_because",
    "misfit",
    "moderated_noise",
    "noise_of_mean",
    "with_batch_error",
]

#: Constants of B_crit(L) = B_star / L^(1/alpha_B) in tokens, Kaplan et al. 2020, Table 5.
KAPLAN_CRITICAL_BATCH = (
    laws.published("kaplan2020-ns").parameters["B_star"],
    laws.published("kaplan2020-ns").parameters["alpha_B"],
)
#: Draws of the law of the critical batch within its declared error.
BATCH_DRAWS = 16
#: If `misfit` is larger than this, L(N, S_min) does not describe the curves.
LARGEST_MISFIT = 0.02
#: A batch this many times above or below the critical one needs hardly any correction.
FAR = 10.0
#: Fewest sizes that tell how noise goes with size.
LEAST_SHARING = 4
#: Why a store has no `ladders`.
NO_CURVES = "no run has evaluations along the way yet"


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

    def steps_to(self, target: float, losses: np.ndarray | None = None) -> float:
        """Updates to a loss on the mean curve, or on other losses [point]; NaN if never reached."""
        losses = self.loss if losses is None else losses
        return float(laws.steps_to_loss(self.steps, losses, [target])[0])

    def compute(
        self, losses: np.ndarray, convention: str, batch_law: dict[str, float] | None = None
    ) -> np.ndarray:
        """[point] FLOPs C along a curve, or C_min where B_crit(L) is given (`adjusted_compute`)."""
        flops = self.flops_per_step[convention] * self.steps
        if batch_law is None:
            return flops
        return laws.adjusted_compute(flops, self.batch_tokens, losses, **batch_law)


@dataclass(frozen=True)
class Ladder:
    """The sizes of one family, smallest first, and the critical batch that corrects their steps.

    Attributes:
      critical_batch: (B_star, alpha_B) of B_crit(L) = B_star / L^(1/alpha_B), in tokens.
      measured_batch: False where the experiment declares no such law and Kaplan's is used instead.
      batch_error: (loss, factor, alpha_low, alpha_high), where declared. With 95% confidence B_crit at
        that loss is known to within the factor, and alpha_B lies between the two ends. The loss is in
        the middle of those at which B_crit was measured, so the errors of level and power are
        independent.
    """

    family: str
    sizes: tuple[Size, ...]
    critical_batch: tuple[float, float]
    measured_batch: bool
    batch_error: tuple[float, float, float, float] | None = None

    def b_crit(self, loss: Any) -> Any:
        """B_crit(L) in tokens."""
        return laws.critical_batch(loss, *self.critical_batch)

    @property
    def batch_law(self) -> dict[str, float]:
        """`critical_batch` by name."""
        return dict(zip(("B_star", "alpha_B"), self.critical_batch, strict=True))

    def batch_laws(self) -> list[dict[str, float]]:
        """`BATCH_DRAWS` draws of `batch_law` within its error, or the law itself where none is known."""
        if self.batch_error is None:
            return [self.batch_law]
        loss, factor, *alphas = self.batch_error
        middle = normal_quantile((np.arange(BATCH_DRAWS) + 0.5) / BATCH_DRAWS)
        middle /= middle.std()
        rng = np.random.default_rng(0)
        # Level and power each take every one of their sixteen quantiles once.
        level, power = rng.permutation(middle), rng.permutation(middle)
        power = 1 / self.critical_batch[1] + power * abs(1 / alphas[0] - 1 / alphas[1]) / (2 * 1.96)
        level = np.log(self.b_crit(loss)) + level * math.log(factor) / 1.96
        return [
            {"B_star": float(np.exp(b + p * math.log(loss))), "alpha_B": float(1 / p)}
            for b, p in zip(level, power, strict=True)
        ]

    def unsure_batch(self) -> str:
        """Why numbers that depend on B_crit(L) cannot test a claim; empty where its error is known."""
        if not self.measured_batch:
            return (
                "B_crit(L) is that of Kaplan et al. 2020, measured on another text and vocabulary"
            )
        if self.batch_error is None:
            return "the error of B_crit(L) is not declared, and this number depends on it"
        return ""

    @property
    def n_seeds(self) -> int:
        """How many seeds the size with the fewest has."""
        return min((len(size.losses) for size in self.sizes), default=0)

    def drawn_losses(self, n_draws: int, seed: int = 0) -> list[np.ndarray] | None:
        """Each size's mean loss [draw, point] by the noise of its seeds; None below `LEAST_SEEDS`."""
        if self.n_seeds < LEAST_SEEDS:
            return None
        rng = np.random.default_rng(seed)
        logs = [np.log(size.losses) for size in self.sizes]
        noise = zip(logs, *moderated_noise(logs), strict=True)
        return [
            size.loss * np.exp(noise_of_mean(own, scale, freedom, n_draws, rng))
            for size, (own, scale, freedom) in zip(self.sizes, noise, strict=True)
        ]


def noise_of_mean(
    seeds: np.ndarray, scale: float, freedom: float, n_draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Noise [draw, point] of the mean over seeds [seed, point], which follows Student's t.

    Seeds drawn with replacement have the short tails of a few values: 95% intervals over three seeds then cover
    73 to 91%.

    Args:
      scale, freedom: of the noise of one seed, see `moderated_noise`.
    """
    k = len(seeds)
    normal = rng.standard_normal((n_draws, k))
    chi = np.sqrt(rng.chisquare(freedom, (n_draws, 1)) / freedom)
    return scale / math.sqrt(k * (k - 1)) * (normal / chi) @ (seeds - seeds.mean(axis=0))


def moderated_noise(cells: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """How noisy the seeds of each cell are, with the help of the other cells (Smyth 2004, secs. 4 and 6.2).

    Three seeds tell their own noise with two degrees of freedom, and the tails of several such cells together
    make intervals up to three times too wide. So noise is taken to rise or fall evenly from cell to cell, as far
    as so few seeds explain the deviations from that; if cells deviate by more, each keeps more of its own noise.

    Args:
      cells: log losses [seed, point] each, smallest size first, of two seeds or more.

    Returns:
      for each cell the noise of a seed over the standard deviation of its own seeds, and its degrees of freedom.
    """
    own = np.array([float(np.mean(cell.var(axis=0, ddof=1))) for cell in cells])
    freedom = np.array([len(cell) - 1.0 for cell in cells])
    if len(cells) < LEAST_SHARING or not np.all(own > 0):
        return np.ones(len(cells)), freedom
    logs = np.log(own) - digamma(freedom / 2) + np.log(freedom / 2)
    place = np.arange(len(logs))
    trend = np.polyval(np.polyfit(place, logs, 1), place)
    spread = np.sum((logs - trend) ** 2) / (len(logs) - 2) - polygamma(1, freedom / 2).mean()
    # The cells can tell a common noise with no more freedom than the trend and a cell's own leave them.
    most = freedom.sum() - 3 * freedom.mean()
    halves = np.geomspace(0.05, most / 2, 500)
    half = halves[np.argmin(np.abs(polygamma(1, halves) - spread))]
    shared = np.exp(trend + digamma(half) - np.log(half))
    noise = (2 * half * shared + freedom * own) / (2 * half + freedom)
    return np.sqrt(noise / own), freedom + 2 * half


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


def ladders(results: Results) -> tuple[Ladder, ...]:
    """The learning curves of every family that has any, in the order of the page.

    The experiment's field `critical_batch` holds B_star and alpha_B, optionally followed by
    `Ladder.batch_error`. Where a size was trained for several lengths, only the longest counts. If
    seeds were evaluated at different steps, all are interpolated to the steps of the first.
    """
    declared = results.experiment.get("fields", {}).get("critical_batch")
    constants, error = KAPLAN_CRITICAL_BATCH, None
    if declared:
        b_star, alpha_b, *errors = map(float, declared)
        constants = (b_star, alpha_b)
        if len(errors) == 4:
            error = (errors[0], errors[1], errors[2], errors[3])
    measured, found = constants != KAPLAN_CRITICAL_BATCH, []
    for family in results.families:
        runs = results.usable
        runs = runs[runs["family"] == family] if len(runs) else runs
        groups = (group for _, group in by_number(runs, "params_kaplan"))
        longest = (group[group["tokens"] == group["tokens"].max()] for group in groups)
        sizes = tuple(size for runs in longest if (size := _size(results, runs)) is not None)
        if sizes:
            found.append(Ladder(family, sizes, constants, measured, error))
    return tuple(found)


def _size(results: Results, runs: pd.DataFrame) -> Size | None:
    curves = [evaluations(results.metrics.get(run, ())) for run in runs["run"]]
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


def fit_learning_curves(
    found: Ladder, bootstrap: int = 400, *, batch_law: dict[str, float] | None = None, seed: int = 0
) -> FitResult:
    """L(N, S_min) of Kaplan et al. 2020, eq. 1.6, with N without embeddings.

    Args:
      batch_law: the B_crit(L) that turns S into S_min; by default the ladder's.

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
        adjust=batch_law or found.batch_law,
        bootstrap=bootstrap,
        seed=seed,
    )


def with_batch_error(fit: FitResult, found: Ladder) -> FitResult:
    """A fit of the learning curves whose intervals also contain the error of B_crit(L).

    Draw i uses `found.batch_laws()[i % their number]`.
    """
    options = found.batch_laws()
    if len(options) == 1 or not fit.draws:
        return fit
    share = max(2, len(next(iter(fit.draws.values()))) // len(options))
    parts = [
        fit_learning_curves(found, share, batch_law=law, seed=seed).draws
        for seed, law in enumerate(options)
    ]
    draws = {name: np.stack([part[name] for part in parts], axis=1).ravel() for name in fit.draws}
    return dataclasses.replace(
        fit,
        draws=draws,
        intervals=intervals_of(draws, fit.draw_level or fit.level),
        interval_method=fit.interval_method + " and the error of the critical batch",
    )


def misfit(fit: FitResult) -> float:
    """Root mean square of the relative residuals of a fit of the learning curves."""
    return float(np.sqrt(np.mean(fit.residuals["residual"] ** 2)))


def law_rejected_because(fit: FitResult) -> str:
    """Why the fitted L(N, S_min) does not describe the curves; empty where it does."""
    if fit.failure:
        return "L(N, S) could not be fitted to the curves"
    if not fit.converged:
        return "the fit of L(N, S) did not converge"
    if misfit(fit) >= LARGEST_MISFIT:
        stray = f"{100 * misfit(fit):.2g}%"
        return f"the curves stray from L(N, S) by {stray}, so it does not describe them"
    if min(fit.parameters["alpha_S"], fit.parameters["alpha_N"]) <= 0:
        return "L(N, S) with a negative exponent is no law of learning"
    return ""
