"""The best learning rate against size, tokens and batch, as a rule, and the best batch.

A cell is one size N, number of tokens D and batch B, trained at several rates. Its best rate is the
vertex of a parabola in ln LR through the rates whose loss is near the lowest. The scatter of the losses
about all parabolas, which includes their misfit, is the noise. Intervals come from fits to losses with
this noise added; for the rules cells are resampled as well. Where the best rate is the lowest or the
highest that was tried, the optimum may lie beyond it, and the cell is left out of the rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from lmscale import hparams
from lmscale.laws import FitResult
from lmscale.laws.result import expanded, interval
from lmscale.studies.estimate import LEVEL, Estimate
from lmscale.studies.fits import refused
from lmscale.studies.groups import first_row
from lmscale.studies.registry import register
from lmscale.studies.results import Results
from lmscale.wording import si, with_interval

__all__ = ["LEAST_RATES", "BestBatch", "LearningRate", "RateCell", "published_rates", "study"]

#: The parabola is fitted to the rates whose loss is within this of the cell's lowest (nats): farther out
#: the loss rises faster on one side than on the other.
NEAR = 0.15
#: Rates that a parabola takes, and batches that the best batch takes.
LEAST_RATES = LEAST_BATCHES = 3
DRAWS = 600
#: Li et al. 2025 fitted models from 60M parameters; a factor of six below counts as their range.
STEPLAW_LEAST_N = 1e7
#: Why there is no rule, no exponent of it, and no exponent of a rule at the best batch.
NO_RULE = "too few cells with a minimum inside the search, or all alike"
NO_EXPONENT = "too few cells have their best rate inside the search, or they do not vary in it"
NO_BATCH = "too few sizes and lengths have their best batch inside the search"


@dataclass(frozen=True)
class RateCell:
    """One size, number of tokens and batch.

    Attributes:
      n: N without embeddings; d, b: tokens of the training and of a batch.
      columns: of the store's table, of the cell's first run.
      rates, losses: [run] of the runs that ended well.
      tried: the tried rate of lowest mean loss.
      x, y: [run] ln(rate / tried) and loss of the runs near the lowest.
      parabola: coefficients of y in x, highest power first; None where they are too few.
      edge: "" where the parabola has its minimum inside the search, otherwise why not.
      log_best, lowest: ln of the best rate and the loss there; NaN without a minimum inside.
      drawn_log_best, drawn_lowest: [draw] the same with noise added to the losses; NaN likewise.
    """

    n: float
    d: float
    b: float
    columns: Mapping[str, Any] = field(repr=False)
    rates: np.ndarray
    losses: np.ndarray
    tried: float
    x: np.ndarray
    y: np.ndarray
    parabola: np.ndarray | None
    edge: str
    log_best: float = math.nan
    lowest: float = math.nan
    drawn_log_best: np.ndarray = field(default_factory=lambda: np.full(DRAWS, np.nan), repr=False)
    drawn_lowest: np.ndarray = field(default_factory=lambda: np.full(DRAWS, np.nan), repr=False)

    @property
    def best(self) -> Estimate:
        """The best rate."""
        if self.edge:
            return Estimate(name="best_rate", undecided_because=self.edge)
        value = math.exp(self.log_best)
        return Estimate.of_draws("best_rate", value, np.exp(self.drawn_log_best))

    @property
    def rest(self) -> np.ndarray:
        """Residuals of the losses about the parabola; empty without one."""
        return np.empty(0) if self.parabola is None else self.y - np.polyval(self.parabola, self.x)


@dataclass(frozen=True)
class BestBatch:
    """The batch of lowest loss at one size and number of tokens, and the best rate at it.

    Attributes:
      edge: "smallest" or "largest" where it is one of those tried; the numbers are NaN then.
      log_batch, log_rate: of tokens, and of the rate; drawn_log_batch, drawn_log_rate: [draw].
    """

    n: float
    d: float
    edge: str
    log_batch: float
    log_rate: float
    drawn_log_batch: np.ndarray = field(repr=False)
    drawn_log_rate: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class LearningRate:
    """What `study` finds.

    Attributes:
      cells: with `LEAST_RATES` rates or more, by size, tokens and batch.
      too_few: how many cells have fewer rates that ended well.
      noise: standard deviation of a loss about its parabola, in nats; NaN where no parabola has more than
        three losses.
      batches: the best batch of every size and number of tokens with enough batches.
      rate: c N^x D^y B^z, the rule of the best rate.
      batch: k N^p D^q, that of the best batch in tokens; rate_at_best_batch: c N^x D^y.
      estimates: "n_exponent", "d_exponent", "b_exponent" of `rate`; "steplaw_n", "steplaw_d" of
        `rate_at_best_batch`; "steplaw_batch", in D, of `batch`.
    """

    cells: tuple[RateCell, ...]
    too_few: int
    noise: float
    batches: tuple[BestBatch, ...]
    rate: FitResult
    batch: FitResult
    rate_at_best_batch: FitResult
    estimates: dict[str, Estimate]

    @property
    def fits(self) -> dict[str, FitResult]:
        fits = {"transformer/kaplan": self.rate}
        if self.cells:
            fits["transformer/batch"] = self.batch
            fits["transformer/at best batch"] = self.rate_at_best_batch
        return fits

    @property
    def inside(self) -> list[RateCell]:
        """The cells that have their best rate inside the search."""
        return [cell for cell in self.cells if not cell.edge]

    @property
    def at_best_tried_batch(self) -> list[RateCell]:
        """For every N and D the cell whose batch had the lowest loss."""
        best: dict[tuple[float, float], RateCell] = {}
        for cell in self.inside:
            if cell.lowest < best.setdefault((cell.n, cell.d), cell).lowest:
                best[cell.n, cell.d] = cell
        return [best[key] for key in sorted(best)]


@register("learning_rate")
def study(results: Results) -> LearningRate:
    """Best rates, the rules through them, and the best batches (Li et al. 2025; Porian et al. 2024).

    found = learning_rate.study(Results.read("results/learning_rate"))
    print(found.rate.parameters, found.estimates["n_exponent"])
    """
    table, (cells, noise) = results.table, _cells(results)
    declared = ["params_kaplan", "batch_tokens", "steps"]
    n_cells = table.groupby(declared).ngroups if len(table) else 0
    if not cells:
        why = "no cell has enough rates"
        rate, batch = refused("learning-rate", why), refused("batch", why)
        estimates = _estimates(rate, batch, rate, math.inf, why)
        return LearningRate((), n_cells, noise, (), rate, batch, rate, estimates)
    inside = [cell for cell in cells if not cell.edge]
    batches = _best_batches(cells)
    within = [batch for batch in batches if not batch.edge]
    rate = _rule(RATE, inside, "log_best", noise)
    batch = _rule(BATCH, within, "log_batch", noise)
    at_best = _rule(RATE, within, "log_rate", noise)
    estimates = _estimates(rate, batch, at_best, min(cell.n for cell in cells))
    too_few = max(0, n_cells - len(cells))
    return LearningRate(
        tuple(cells), too_few, noise, tuple(batches), rate, batch, at_best, estimates
    )


def published_rates(cell: RateCell, tokens: float) -> dict[str, float]:
    """The peak rates that published rules give for a cell's model and tokens."""
    row = cell.columns
    per_token = hparams.deepseek_flops_per_token(
        int(row["n_layer"]), int(row["width"]), int(row["n_ctx"])
    )
    return {
        "Kaplan": hparams.kaplan_lr(cell.n),
        "Porian": hparams.porian_lr(float(row["params_standard"])),
        "DeepSeek": hparams.deepseek_lr(per_token * tokens),
        "StepLaw": hparams.steplaw_lr(cell.n, tokens),
    }


# --- cells --------------------------------------------------------------------------------------


def _cells(results: Results) -> tuple[list[RateCell], float]:
    """Cells with enough rates, and the noise of a loss about its parabola (nats)."""
    table = results.table
    if not len(table):
        return [], math.nan
    # Lengths are rounded to whole steps: the length asked for tells which cells belong together.
    horizon = table["horizon"] if "horizon" in table else table["tokens"]
    table = table.assign(horizon=horizon.astype(float))
    cells = []
    for _, group in table.groupby(["params_kaplan", "horizon", "batch_tokens"], sort=True):
        done = group[(group["status"] == "done") & np.isfinite(group["loss"].astype(float))]
        if done["peak_lr"].nunique() >= LEAST_RATES:
            cells.append(_cell(group, done))
    freedom = sum(max(0, len(cell.rest) - 3) for cell in cells)
    squares = sum(float(np.sum(cell.rest**2)) for cell in cells)
    noise = math.sqrt(squares / freedom) if freedom else math.nan
    rng = np.random.default_rng(0)
    return [_with_draws(cell, noise, rng) for cell in cells], noise


def _cell(group: pd.DataFrame, done: pd.DataFrame) -> RateCell:
    """A cell with its parabola in ln LR, or why it has none."""
    mean = done.groupby("peak_lr")["loss"].mean()
    tried = float(mean.index.to_numpy(float)[mean.argmin()])
    edge = ""
    if tried == mean.index.min():
        edge = "lowest tried"
    elif tried == mean.index.max():
        lost = group[(group["status"] == "diverged") & (group["peak_lr"] > tried)]
        edge = "next one diverged" if len(lost) else "highest tried"
    # The best rate and its neighbours always count.
    place = list(mean.index).index(tried)
    keep = {*mean.index[max(0, place - 1) : place + 2], *mean.index[mean < mean.min() + NEAR]}
    used = done[done["peak_lr"].isin(keep)]
    x = np.log(used["peak_lr"].to_numpy(float)) - math.log(tried)
    y = used["loss"].to_numpy(float)
    enough = used["peak_lr"].nunique() >= LEAST_RATES
    parabola = np.polyfit(x, y, 2) if enough else None
    if parabola is not None and parabola[0] <= 0:
        edge = edge or "no minimum"
    first = group.iloc[0]
    return RateCell(
        n=float(first["params_kaplan"]),
        d=float(first["horizon"]),
        b=float(first["batch_tokens"]),
        columns=first_row(group),
        rates=done["peak_lr"].to_numpy(float),
        losses=done["loss"].to_numpy(float),
        tried=tried,
        x=x,
        y=y,
        parabola=parabola,
        edge=edge,
    )


def _with_draws(cell: RateCell, noise: float, rng: np.random.Generator) -> RateCell:
    """The cell with its minimum, and draws of it."""
    if cell.edge or cell.parabola is None:
        return cell
    x, y, middle = cell.x, cell.y, math.log(cell.tried)
    place, lowest = _vertex(cell.parabola)
    cell = replace(cell, log_best=float(place) + middle, lowest=float(lowest))
    if not math.isfinite(noise):
        return cell
    drawn, low = _vertex(np.polyfit(x, (y + noise * rng.standard_normal((DRAWS, len(y)))).T, 2))
    # If a draw has no minimum inside the rates, any of them may be its best.
    outside = ~np.isfinite(drawn) | (drawn < x.min()) | (drawn > x.max())
    drawn = np.where(outside, rng.uniform(x.min(), x.max(), DRAWS), drawn)
    low = np.where(outside, y.min(), low)
    return replace(cell, drawn_log_best=drawn + middle, drawn_lowest=low)


def _vertex(theta: np.ndarray) -> tuple[Any, Any]:
    """(place, value) of the minimum of a x^2 + b x + c; NaN where there is none."""
    a, b, c = theta
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.where(a > 0, -b / (2 * a), np.nan)
        return place, c - b**2 / (4 * a)


def _best_batches(cells: Sequence[RateCell]) -> list[BestBatch]:
    groups: dict[tuple[float, float], list[RateCell]] = {}
    for cell in cells:
        if not cell.edge:
            groups.setdefault((cell.n, cell.d), []).append(cell)
    return [_best_batch(own) for _, own in sorted(groups.items()) if len(own) >= LEAST_BATCHES]


def _best_batch(cells: Sequence[RateCell]) -> BestBatch:
    """The best batch among the cells of one size and number of tokens."""
    cells = sorted(cells, key=lambda cell: cell.b)
    n, d, x = cells[0].n, cells[0].d, np.log([cell.b for cell in cells])
    best = int(np.argmin([cell.lowest for cell in cells]))
    edge = {0: "smallest", len(cells) - 1: "largest"}.get(best, "")
    if edge:
        nothing = np.full(DRAWS, np.nan)
        return BestBatch(n, d, edge, math.nan, math.nan, nothing, nothing)
    # The best and its neighbours: over many doublings the loss is no parabola.
    near = slice(best - 1, best + 2)
    log_batch = float(_vertex(np.polyfit(x[near], [c.lowest for c in cells[near]], 2))[0])
    lowest = np.array([cell.drawn_lowest for cell in cells[near]])
    drawn = _vertex(np.polyfit(x[near], lowest, 2))[0]
    drawn = np.where(np.isfinite(drawn), drawn, log_batch).clip(x[near].min(), x[near].max())
    rates = np.array([cell.drawn_log_best for cell in cells]).T
    return BestBatch(
        n,
        d,
        edge,
        log_batch,
        float(np.interp(log_batch, x, [cell.log_best for cell in cells])),
        drawn,
        np.array([np.interp(b, x, rate) for b, rate in zip(drawn, rates, strict=True)]),
    )


# --- rules --------------------------------------------------------------------------------------


#: Name of the law, of its constant, and exponent -> attribute of a cell or best batch.
RATE = ("learning-rate", "c", {"x": "n", "y": "d", "z": "b"})
BATCH = ("batch", "k", {"p": "n", "q": "d"})
COLUMNS = {"n": "params", "d": "tokens", "b": "batch_tokens"}


def _rule(form: tuple, points: Sequence[RateCell | BestBatch], of: str, noise: float) -> FitResult:
    """A power law in those attributes that take more than one value among the points.

    Args:
      form: such as `RATE`.
      of: attribute with the logarithm of what the rule gives; its draws are in "drawn_" + `of`.
    """
    law, constant, exponents = form
    at = {a: [getattr(p, a) for p in points] for a in COLUMNS if all(hasattr(p, a) for p in points)}
    kept = {name: a for name, a in exponents.items() if len(set(at.get(a, ()))) > 1}
    n, values = len(points), np.array([getattr(p, of) for p in points])
    design = np.stack([np.ones(n), *(np.log(at[a]) for a in kept.values())], axis=1)
    if not kept or n < len(kept) + 2 or np.linalg.matrix_rank(design) < design.shape[1]:
        return refused(law, NO_RULE)
    theta = np.linalg.lstsq(design, values, rcond=None)[0]
    squares = float(np.sum((values - design @ theta) ** 2))
    draws, rng = [], np.random.default_rng(1)
    for column in np.array([getattr(p, f"drawn_{of}") for p in points]).T:
        pick = rng.integers(n, size=n)
        if np.linalg.matrix_rank(design[pick]) < design.shape[1]:
            continue
        target = column if np.isfinite(column).all() else values
        draws.append(np.linalg.lstsq(design[pick], target[pick], rcond=None)[0])
    names = [constant, *kept]
    edges = np.array(interval(np.array(draws), expanded(LEVEL, n, len(theta)), axis=0))
    theta[0], edges[:, 0] = math.exp(theta[0]), np.exp(edges[:, 0])
    return FitResult(
        law=law,
        parameters=dict(zip(names, map(float, theta), strict=True)),
        intervals={name: (float(a), float(b)) for name, a, b in zip(names, *edges, strict=True)},
        interval_method="noise about the parabolas, and bootstrap over cells",
        objective_name="squared residuals of the logarithm",
        objective=squares,
        n_used=n,
        ranges={COLUMNS[a]: (min(values), max(values)) for a, values in at.items()},
        details={"noise": noise, "residual": math.sqrt(squares / max(1, n - len(theta)))},
    )


def _estimates(
    rate: FitResult, batch: FitResult, at_best: FitResult, smallest: float, why: str = ""
) -> dict[str, Estimate]:
    estimates = {
        f"{variable}_exponent": _exponent(rate, symbol, why or NO_EXPONENT)
        for variable, symbol in (("n", "x"), ("d", "y"), ("b", "z"))
    }
    published = {
        "steplaw_n": (at_best, "x"),
        "steplaw_d": (at_best, "y"),
        "steplaw_batch": (batch, "q"),
    }
    for name, (fit, symbol) in published.items():
        one = _exponent(fit, symbol, why or NO_BATCH)
        if one.is_known and smallest < STEPLAW_LEAST_N:
            found = with_interval(one.known, one.interval)
            far = f"sizes from {si(smallest)} are far below the paper's 60M; here it is {found}"
            one = replace(one, value=None, interval=None, undecided_because=far)
        estimates[name] = one
    return {name: replace(one, name=name) for name, one in estimates.items()}


def _exponent(fit: FitResult, symbol: str, why: str) -> Estimate:
    if symbol not in fit.parameters:
        return Estimate(name=symbol, undecided_because=why)
    return Estimate.of_parameter(fit, symbol, n=fit.n_used)
