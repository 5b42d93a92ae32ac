"""The critical batch: steps against tokens at equal loss (Kaplan et al. 2020, Figs. 10 and 18).

For every size and loss, S = S_min (1 + B_crit/B) is fitted to the steps that batches of B tokens took.
The gradient noise scale B_simple = tr(Sigma)/|G|^2 of McCandlish et al. 2018 is read at the same losses,
where the runs measured it. Intervals are over seeds, resampled within each size and batch; all losses
of a run are resampled together, because they are not independent. Where runs do not follow the hyperbola,
B_crit depends on which batches were run: a jackknife over batches adds that to its interval.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Unpack

import numpy as np
import pandas as pd

from lmscale import laws
from lmscale.laws import FitResult
from lmscale.laws.batch import hyperbola_residual
from lmscale.laws.result import interval
from lmscale.laws.solve import seed_weights, solve
from lmscale.studies.estimate import (
    LEAST_SEEDS,
    LEVEL,
    Basis,
    Estimate,
    few_seeds,
    interval_of_draws,
    undecided,
)
from lmscale.studies.fits import attempt, refused
from lmscale.studies.groups import by_number
from lmscale.studies.learning_curves import evaluations
from lmscale.studies.lines import lines_through
from lmscale.studies.registry import register
from lmscale.studies.results import Results
from lmscale.wording import si

__all__ = ["BatchLaw", "CriticalBatch", "Hyperbola", "ModelSize", "study"]

#: Losses that are read, and batches that must reach each.
TARGETS, LEAST_BATCHES = 8, 4
DRAWS = 300
#: Records of a run within this factor of the step that reached a loss give its noise scale.
NOISE_WINDOW = 1.3
#: Mean misfit of the smallest and the largest batch, in ln S, from which on it is reported.
MISFIT = 0.02


@dataclass(frozen=True)
class Hyperbola:
    """(S/S_min - 1)(E/E_min - 1) = 1 at one loss; every estimate is `at` that loss.

    Attributes:
      loss: in nats per token.
      s_min: least updates; e_min: least tokens.
      b_crit: E_min/S_min in tokens; noise: B_simple in tokens, not known where it was not measured.
    """

    loss: float
    s_min: Estimate
    e_min: Estimate
    b_crit: Estimate
    noise: Estimate


@dataclass(frozen=True)
class ModelSize:
    """One size, at the losses that enough batches reached.

    Attributes:
      hyperbolas: highest loss first; empty where the fit was refused.
      rows: one a run and loss that it reached, at the learning rate that gets there first:
        batch_tokens, seed, loss, steps, and the parts of the noise scale.
      fit: the law "critical-batch".
      at_edge: cells of batch and loss whose best learning rate is the edge of those tried.
    """

    n_params: float
    hyperbolas: tuple[Hyperbola, ...]
    rows: pd.DataFrame = field(repr=False)
    fit: FitResult
    at_edge: int

    @property
    def losses(self) -> np.ndarray:
        return np.array([one.loss for one in self.hyperbolas])

    @property
    def n_seeds(self) -> int:
        """Of the batch with the fewest."""
        return int(self.rows.groupby("batch_tokens")["seed"].nunique().min())

    @property
    def misfit(self) -> tuple[float, float] | None:
        """By how much ln S of the smallest and of the largest batch lies above the hyperbolas, on average.

        None unless both lie clearly on one side of the hyperbolas and the batches between on the other.
        """
        rest = pd.DataFrame({k: self.fit.residuals[k] for k in ("batch_tokens", "residual")})
        first, *inner, last = rest.groupby("batch_tokens")["residual"].mean()
        if min(abs(first), abs(last)) < MISFIT or first * last < 0 or first * np.mean(inner) > 0:
            return None
        return first, last


@dataclass(frozen=True)
class BatchLaw:
    """B_crit(L) = exp(level) / L^power in tokens, through the points of all sizes."""

    power: Estimate
    level: float
    level_draws: np.ndarray | None

    def at(self, loss: Any) -> np.ndarray:
        return np.exp(self.level - self.power.value * np.log(loss))

    def band(self, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        """Edges of the 95% interval."""
        if self.level_draws is None or self.power.draws is None:
            return None
        drawn = self.level_draws[:, None] - self.power.draws[:, None] * np.log(loss)
        return interval(np.exp(drawn), LEVEL)


@dataclass(frozen=True)
class CriticalBatch:
    """What `study` finds.

    Attributes:
      sizes: those with a law, smallest first.
      refused: those without one; `fit.failure` says why.
      law: None where only one loss was reached.
      estimates: "power" of 1/L in B_crit; "size_ratio" of B_crit, the largest over the smallest size
        at equal loss; "noise_ratio" of the noise scale over B_crit.
    """

    sizes: tuple[ModelSize, ...]
    refused: tuple[ModelSize, ...]
    law: BatchLaw | None
    estimates: dict[str, Estimate]

    @property
    def fits(self) -> dict[str, FitResult]:
        if not self.sizes:
            why = self.estimates["power"].undecided_because
            return {"transformer/tokens": refused("critical-batch", why)}
        return {f"transformer, N = {size.n_params:.0f}/tokens": size.fit for size in self.sizes}


@register("critical_batch")
def study(results: Results) -> CriticalBatch:
    """B_crit(L) of each size (Kaplan et al. 2020, eq. 1.4), and the gradient noise scale beside it.

    found = critical_batch.study(Results.read("results/batch_size"))
    print(found.estimates["power"], found.sizes[0].hyperbolas[0].b_crit)
    """
    runs = _runs(results)
    targets = _targets(runs)
    every = [
        _size(n_params, own, targets)
        for n_params, own in (by_number(runs, "n_params") if len(targets) else ())
    ]
    sizes = [size for size in every if not size.fit.failure]
    without = [size for size in every if size.fit.failure]
    if not sizes:
        why = "; ".join(f"N = {si(size.n_params)}: {size.fit.failure}" for size in without)
        why = why or f"no loss was reached by {LEAST_BATCHES} batches of one size"
        none = undecided(("power", "size_ratio", "noise_ratio"), why)
        return CriticalBatch((), tuple(without), None, none)
    law = _law(sizes)
    estimates = undecided(("power",), "only one loss was reached by enough batches")
    read = [law.power] if law else []
    estimates |= {one.name: one for one in [*read, _size_ratio(sizes), _noise_ratio(sizes)]}
    return CriticalBatch(tuple(sizes), tuple(without), law, estimates)


# --- from runs to steps -------------------------------------------------------------------------


def _runs(results: Results) -> pd.DataFrame:
    """Every run that ended well, whatever its learning rate, with its curve and its records."""
    table, rows = results.table, []
    pieces = results.experiment.get("fields", {}).get("noise_pieces")
    for _, row in table[table["status"] == "done"].iterrows() if len(table) else ():
        records = results.metrics.get(row["run"], [])
        steps, losses = evaluations(records)
        if len(steps) >= 3:
            rows.append(
                {
                    "n_params": float(row["params_kaplan"]),
                    "batch_tokens": float(row["batch_tokens"]),
                    "lr_factor": float(row.get("lr_factor", 1.0)),
                    "seed": row["seed"],
                    "steps": steps,
                    "losses": losses,
                    "records": [r for r in records if r.get("piece_grad_squared") is not None],
                    "noise_pieces": pieces,
                }
            )
    return pd.DataFrame(rows)


def _targets(runs: pd.DataFrame) -> np.ndarray:
    """Losses that all batches of at least one size reach, highest first, evenly spaced in the logarithm."""
    if not len(runs):
        return np.array([])
    first = [losses[0] for losses in runs["losses"]]
    last = [losses.min() for losses in runs["losses"]]
    ends = runs.assign(first=first, last=last)
    # A curve that begins below a loss does not show when it was reached.
    cells = ends.groupby(["n_params", "batch_tokens", "lr_factor"])[["first", "last"]].mean()
    batches = cells.groupby(["n_params", "batch_tokens"]).min()
    of_size = batches.groupby("n_params").agg({"first": "min", "last": "max"})
    # A little inside the range, so that single seeds reach the losses at its ends too.
    low, high = 1.01 * of_size["last"].min(), 0.99 * of_size["first"].max()
    return np.geomspace(high, low, TARGETS) if low < high else np.array([])


def _size(n_params: float, runs: pd.DataFrame, targets: np.ndarray) -> ModelSize:
    rows, at_edge = _rows(runs, targets)
    batches = rows.groupby("loss")["batch_tokens"].nunique()
    enough = np.array(sorted(batches[batches >= LEAST_BATCHES].index, reverse=True))
    rows = rows[rows["loss"].isin(enough)].reset_index(drop=True)
    fit = attempt(
        "critical-batch",
        lambda: laws.fit(rows[["batch_tokens", "loss", "steps"]], "critical-batch", bootstrap=0),
        needs="" if len(enough) else f"no loss was reached by {LEAST_BATCHES} batches",
    )
    if fit.failure:
        return ModelSize(n_params, (), rows, fit, at_edge)
    by_loss = {item["loss"]: item for item in fit.details["hyperbolas"]}
    weights, drawn_noise, drawn = _drawn_weights(rows), None, None
    if weights is not None:
        of_seeds = _drawn_hyperbolas(rows, enough, weights)
        drawn = [a * b for a, b in zip(of_seeds, _drawn_batches(rows, enough), strict=True)]
        drawn_noise = _ratio_of_means(rows, enough, weights)
    noise = _ratio_of_means(rows, enough, np.ones((1, len(rows))))[0]
    hyperbolas = []
    for i, loss in enumerate(enough):
        s, b = by_loss[loss]["S_min"], by_loss[loss]["B_crit"]
        s_draws = e_draws = b_draws = n_draws = None
        if drawn is not None:
            s_draws, b_draws = drawn[0][:, i], drawn[1][:, i]
            e_draws = s_draws * b_draws
        if drawn_noise is not None:
            n_draws = drawn_noise[:, i]
        read = (("S_min", s, s_draws), ("E_min", s * b, e_draws), ("B_crit", b, b_draws))
        estimates = [
            Estimate.of_draws(name, value, draws, at=(float(loss),))
            for name, value, draws in (*read, ("B_simple", noise[i], n_draws))
        ]
        hyperbolas.append(Hyperbola(float(loss), *estimates))
    return ModelSize(n_params, tuple(hyperbolas), rows, _with_interval(fit, hyperbolas), at_edge)


#: Parts of the noise scale: tr(Sigma), |G|^2, and the tokens that they were measured on.
_NOISE = ("trace", "signal", "weight")


def _rows(runs: pd.DataFrame, targets: np.ndarray) -> tuple[pd.DataFrame, int]:
    """`ModelSize.rows` of one size before batches are counted, and `at_edge`."""
    rows, at_edge = [], 0
    factors = sorted(set(runs["lr_factor"]))
    for batch, of_batch in runs.groupby("batch_tokens"):
        for target in targets:
            took = {
                factor: [
                    laws.steps_to_loss(run.steps, run.losses, [target])[0]
                    for run in of_factor.itertuples()
                ]
                for factor, of_factor in of_batch.groupby("lr_factor")
            }
            took = {factor: steps for factor, steps in took.items() if np.isfinite(steps).all()}
            if not took:
                continue
            best = min(took, key=lambda factor: np.mean(np.log(took[factor])))
            at_edge += len(factors) > 1 and best in (factors[0], factors[-1])
            chosen = of_batch[of_batch["lr_factor"] == best]
            for run, steps in zip(chosen.itertuples(), took[best], strict=True):
                rows.append((batch, run.seed, target, steps, *_noise(run, steps)))
    return pd.DataFrame(rows, columns=["batch_tokens", "seed", "loss", "steps", *_NOISE]), at_edge


def _noise(run: Any, steps: float) -> tuple[float, float, float]:
    """The parts `_NOISE` around a step, averaged over the records near it.

    The two squared norms of a record are those of the whole batch and of its micro-batches.
    """
    near = [r for r in run.records if steps / NOISE_WINDOW <= r["step"] <= steps * NOISE_WINDOW]
    if not near or not run.noise_pieces:
        return math.nan, math.nan, 0.0
    share = np.array([r["steps_averaged"] for r in near], float)
    small, big = (
        share @ [r[name] for r in near] / share.sum()
        for name in ("piece_grad_squared", "grad_squared")
    )
    piece = run.batch_tokens / run.noise_pieces
    found = laws.noise_scale([small], [big], piece, run.batch_tokens)
    return float(found.trace), float(found.gradient_squared), share.sum() * run.batch_tokens


def _ratio_of_means(rows: pd.DataFrame, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """B_simple [draw, target] in tokens, numerator and denominator averaged over all batches."""
    weights = weights * np.where(rows["trace"].notna(), rows["weight"], 0)
    columns = []
    for target in targets:
        of_target = weights * (rows["loss"] == target).to_numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            trace, signal = (of_target @ rows[name].fillna(0).to_numpy() for name in _NOISE[:2])
            columns.append(np.where(signal > 0, trace / signal, np.nan))
    return np.stack(columns, axis=1)


def _drawn_weights(rows: pd.DataFrame) -> np.ndarray | None:
    """How often each row counts [draw, row], with the seeds of every batch resampled."""
    units = rows[["batch_tokens", "seed"]].drop_duplicates().reset_index(drop=True)
    if units.groupby("batch_tokens").size().min() < LEAST_SEEDS:
        return None
    rng = np.random.default_rng(0)
    drawn = seed_weights(units["batch_tokens"].to_numpy(), DRAWS, rng)
    place = {unit: i for i, unit in enumerate(units.itertuples(index=False, name=None))}
    return drawn[:, [place[unit] for unit in zip(rows["batch_tokens"], rows["seed"], strict=True)]]


def _drawn_hyperbolas(
    rows: pd.DataFrame, targets: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """S_min and B_crit, each [draw, target]."""
    log_batch, log_steps = np.log(rows["batch_tokens"]), np.log(rows["steps"])
    starts, counts = [], []
    for target in targets:
        own = (rows["loss"] == target).to_numpy()
        counts.append(weights * own)
        start = [log_steps[own].min() - 0.3, log_batch[own].median()]
        starts.append(np.tile(start, (len(weights), 1)))
    found = solve(
        hyperbola_residual,
        np.concatenate(starts),
        {"log_batch": log_batch.to_numpy(), "log_steps": log_steps.to_numpy()},
        np.concatenate(counts),
    )
    theta = np.exp(found.theta.reshape(len(targets), len(weights), 2))
    return theta[:, :, 0].T, theta[:, :, 1].T


def _drawn_batches(rows: pd.DataFrame, targets: np.ndarray) -> np.ndarray:
    """Factors [2, draw, target] by which the choice of batches moves S_min and B_crit.

    The jackknife over k batches: leave out each batch in turn. The variance of ln B_crit is (k - 1)/k times
    the sum of the squared changes, with k - 1 degrees of freedom. A draw shifts all losses and sizes
    together, because a batch that does not fit the hyperbola does so at all of them.
    """
    batches = np.unique(rows["batch_tokens"])
    kept = (rows["batch_tokens"].to_numpy() != batches[:, None]).astype(float)
    without = np.log(_drawn_hyperbolas(rows, targets, kept))
    counts = rows.groupby(["batch_tokens", "loss"]).size().unstack().reindex(columns=targets)
    reached = counts.notna().to_numpy()
    k = reached.sum(axis=0)
    moved = np.where(reached, without - (without * reached).sum(axis=1, keepdims=True) / k, 0.0)
    normal = [np.random.default_rng(int(b)).standard_normal(DRAWS) for b in batches]
    freedom = len(batches) - 1
    student = np.random.default_rng(0).chisquare(freedom, DRAWS) / freedom
    drawn = np.stack(normal, axis=1) / np.sqrt(student)[:, None]
    return np.exp(drawn @ (moved * np.sqrt((k - 1) / k)))


def _with_interval(fit: FitResult, hyperbolas: Sequence[Hyperbola]) -> FitResult:
    """The law of one size with the interval of alpha_B."""
    x, drawn = np.log([one.loss for one in hyperbolas]), _log_draws(hyperbolas)
    if drawn is None or len(x) < 2:
        return fit
    with np.errstate(divide="ignore"):
        found = interval_of_draws(-1 / lines_through(x, drawn)[0])
    method = "bootstrap over seeds within each batch, jackknife over batches"
    if found is None:
        return fit
    return dataclasses.replace(fit, intervals={"alpha_B": found}, interval_method=method)


# --- what follows from them ---------------------------------------------------------------------


def _log_draws(hyperbolas: Sequence[Hyperbola], name: str = "b_crit") -> np.ndarray | None:
    """ln of an estimate [draw, hyperbola]; None without draws."""
    every = (getattr(one, name).draws for one in hyperbolas)
    draws = [one for one in every if one is not None]
    if len(draws) < len(hyperbolas):
        return None
    with np.errstate(invalid="ignore"):
        return np.log(np.stack(draws, axis=1))


def _weights(drawn: np.ndarray | None, n: int) -> np.ndarray:
    """Weights [n] of logarithms with draws [draw, n]: one over their variance, robustly."""
    if drawn is None:
        return np.ones(n)
    low, high = interval(drawn, 0.68)
    return 1 / np.maximum((high - low) / 2, 0.02) ** 2


def _law(sizes: Sequence[ModelSize]) -> BatchLaw | None:
    """ln B_crit against ln L over all sizes together, as in the paper; None for one loss."""
    points = [one for size in sizes for one in size.hyperbolas]
    x, y = np.log([one.loss for one in points]), np.log([one.b_crit.known for one in points])
    if np.ptp(x) == 0:
        return None
    drawn = _log_draws(points)
    w = _weights(drawn, len(x))
    slope, level = lines_through(x, y, w)
    slopes, levels = (None, None) if drawn is None else lines_through(x, drawn, w)
    seeds = min(size.n_seeds for size in sizes)
    power = Estimate.of_draws(
        "power",
        -float(slope),
        None if slopes is None else -slopes,
        undecided_because=few_seeds(seeds, "an interval"),
        n=len(sizes),
        seeds=seeds,
    )
    return BatchLaw(power, float(level), levels)


def _size_ratio(sizes: Sequence[ModelSize]) -> Estimate:
    small, large = ({one.loss: one for one in size.hyperbolas} for size in (sizes[0], sizes[-1]))
    shared = [loss for loss in large if loss in small]
    if len(sizes) < 2 or not shared:
        why = "no loss was reached by enough batches of 2 sizes"
        return Estimate(name="size_ratio", undecided_because=why)
    pairs = [(large[loss], small[loss]) for loss in shared]
    logs = np.log([a.b_crit.known / b.b_crit.known for a, b in pairs])
    above, below = (_log_draws(side) for side in zip(*pairs, strict=True))
    at = (sizes[0].n_params, sizes[-1].n_params)
    drawn = None if above is None or below is None else above - below
    return _mean_of_logs("size_ratio", logs, drawn, sizes, at=at, n=len(shared))


def _noise_ratio(sizes: Sequence[ModelSize]) -> Estimate:
    points = [one for size in sizes for one in size.hyperbolas if one.noise.is_known]
    if not points:
        why = "the runs did not measure their gradients' noise"
        return Estimate(name="noise_ratio", undecided_because=why)
    logs = np.log([one.noise.known / one.b_crit.known for one in points])
    noise, batch = _log_draws(points, "noise"), _log_draws(points)
    drawn = None if noise is None or batch is None else noise - batch
    return _mean_of_logs("noise_ratio", logs, drawn, sizes, n=len(sizes))


def _mean_of_logs(
    name: str,
    logs: np.ndarray,
    drawn: np.ndarray | None,
    sizes: Sequence[ModelSize],
    **rest: Unpack[Basis],
) -> Estimate:
    """The weighted geometric mean of ratios."""
    w = _weights(drawn, len(logs))
    w = w / w.sum()
    seeds = min(size.n_seeds for size in sizes)
    few = few_seeds(seeds, "an interval")
    draws = None if drawn is None else np.exp(drawn @ w)
    basis: Basis = {**rest, "undecided_because": few, "seeds": seeds}
    return Estimate.of_draws(name, float(np.exp(w @ logs)), draws, **basis)
