"""What the studies of exponents share: rows under one count, and differences with intervals."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Sequence
from typing import Unpack

import numpy as np
import pandas as pd

from lmscale import laws
from lmscale.flops import CONVENTIONS
from lmscale.laws import FitResult
from lmscale.laws.isoflop import LEAST_BUDGETS
from lmscale.laws.result import interval as interval_of_draws
from lmscale.laws.result import intervals_of
from lmscale.studies.estimate import LEAST_SEEDS, LEVEL, Basis, Estimate, few_seeds
from lmscale.studies.lines import fit_line
from lmscale.studies.restate import native_convention

__all__ = [
    "LEAST_BUDGETS",
    "counted",
    "difference",
    "exponent",
    "fit_power_of_cells",
    "frontier",
    "home_convention",
    "interval_of_difference",
    "is_informative",
    "seed_draws",
]

#: Draws of a law through cells.
DRAWS = 2000


def home_convention(runs: pd.DataFrame) -> str:
    """The convention under which the runs of a budget have equal FLOPs; "standard" (C = 6ND) without budgets."""
    if "budget" in runs and len(runs) and runs["budget"].notna().all():
        return native_convention(runs, CONVENTIONS)
    return "standard"


def counted(runs: pd.DataFrame, convention: str) -> pd.DataFrame:
    """Columns params, tokens, flops, loss, seed (and budget) of a store's runs under one count."""
    rows = pd.DataFrame(
        {
            "params": runs[f"params_{convention}"].astype(float),
            "tokens": runs["tokens"].astype(float),
            "flops": runs[f"flops_{convention}"].astype(float),
            "loss": runs["loss"].astype(float),
            "seed": runs["seed"],
        }
    )
    return rows.assign(budget=runs["budget"].astype(float)) if "budget" in runs else rows


def exponent(
    fit: FitResult,
    symbol: str = "N",
    *,
    name: str = "",
    missing: str = "",
    **rest: Unpack[Basis],
) -> Estimate:
    """The exponent of N_opt or D_opt in C of a fit that has it under one convention only.

    Args:
      name: of the estimate, by default "a" for N and "b" for D.
      missing: why there is none, for a fit that succeeded without an exponent.
    """
    name = name or ("a" if symbol == "N" else "b")
    if not fit.exponents:
        rest["undecided_because"] = fit.failure or missing
        return Estimate(name=name, **rest)
    convention, values = next(iter(fit.exponents.items()))
    found = fit.exponent_intervals.get(convention, {}).get(symbol)
    interval = found if found and all(map(math.isfinite, found)) else None
    return Estimate(name=name, value=values[symbol], interval=interval, **rest)


def is_informative(exponent: Estimate) -> bool:
    """Whether the interval of an exponent of N_opt lies between 0 and 1."""
    interval = exponent.interval
    return interval is not None and interval[0] > 0 and interval[1] < 1


def frontier(
    fit: FitResult, symbol: str, flops: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray] | None]:
    """N_opt (or D_opt) of a fit's power law at `flops`, and the edges of its 95% band."""
    power, factor = ("a", "k_N") if symbol == "N" else ("b", "k_D")
    line = fit.parameters[factor] * flops ** fit.parameters[power]
    if not fit.draws:
        return line, None
    with np.errstate(over="ignore", invalid="ignore"):
        drawn = fit.draws[factor][:, None] * flops ** fit.draws[power][:, None]
    return line, interval_of_draws(drawn, LEVEL)


def fit_power_of_cells(rows: pd.DataFrame, x: str) -> FitResult:
    """The law "power" in `x`, fitted to cells of runs with one x; its draws resample cells.

    The seeds of a cell share its deviation from the law, so drawing runs one by one would give too narrow
    an interval. With fewer than three cells there is none.

    Raises:
      TableError, FitError: when the runs do not determine it.
    """
    fit = laws.fit(laws.Table.read(rows, convention="kaplan"), "power", x=x, bootstrap=0)
    line = fit_line(np.log(rows[x].to_numpy(float)), np.log(rows["loss"].to_numpy(float)))
    interval = line.slope_interval(fit.level)
    if interval is None:
        return fit
    # Each table has a generator of its own, so that the draws of two families are independent.
    height, slope = line.draws(DRAWS, seed=zlib.crc32(rows.to_csv().encode()))
    alpha, x_c = fit.parameters
    with np.errstate(divide="ignore", over="ignore"):
        draws = {alpha: -slope, x_c: np.exp(line.middle - height / slope)}
    fit = dataclasses.replace(
        fit,
        draws=draws,
        intervals=intervals_of(draws, fit.level) | {alpha: (-interval[1], -interval[0])},
        draw_level=fit.level,
        interval_method=f"Student's t over {rows[x].nunique()} means",
    )
    curve = fit.details["curve"]
    with np.errstate(divide="ignore", over="ignore"):
        low, high = fit.band(**{x: curve["x"]})
    return fit.with_details(curve=curve | {"low": low, "high": high})


def interval_of_difference(
    a: float, a_interval: Sequence[float], b: float, b_interval: Sequence[float]
) -> tuple[float, float]:
    """Of a - b, from the intervals of each, as if they were independent (Zou and Donner 2008)."""
    below = math.hypot(a - a_interval[0], b_interval[1] - b)
    above = math.hypot(a_interval[1] - a, b - b_interval[0])
    return a - b - below, a - b + above


def seed_draws(rows: pd.DataFrame, size: str, fit: FitResult, convention: str) -> FitResult | None:
    """The profiles of `fit` with the seeds of each size resampled; None with fewer than three seeds, or no fit.

    Which seeds are drawn depends on the size alone (`laws.seeds_redrawn`). So the draws of two grids with
    the same sizes and seeds are paired: runs of one size and seed share their first weights and the order
    of their data.

    Args:
      rows: those that were fitted, with columns loss, seed, budget and `size`.
      size: the column with the size in a count that both grids share.
    """
    if fit.failure or rows["seed"].nunique() < LEAST_SEEDS:
        return None
    cell = rows["budget"].astype(str) + " " + rows[size].astype(str)
    redrawn = laws.seeds_redrawn(
        rows[size].tolist(),
        cell.tolist(),
        rows["seed"].tolist(),
        rows["loss"].tolist(),
        DRAWS,
        LEVEL,
    )
    fitted = rows if size == "params" else rows.drop(columns=size)
    return laws.fit(laws.Table.read(fitted, convention=convention), "isoflop", redrawn=redrawn)


def difference(
    name: str,
    ours: Estimate,
    other: Estimate,
    missing: str,
    *,
    seeds: int | None = None,
    draws: np.ndarray | None = None,
) -> Estimate:
    """The difference of two exponents, by paired draws; without them the two intervals count as independent.

    Args:
      missing: what is missing where one of the two is unknown.
      draws: of the difference, where both fits read the same draws of their runs.
      seeds: how many seeds the runs have, where the interval depends on them: fewer than `LEAST_SEEDS` then
        test no claim. So it is for seeds that are drawn, and for two intervals that count as independent; draws
        of the runs of one grid need no second seed.
    """
    if not (ours.is_known and other.is_known):
        return Estimate(name=name, undecided_because=missing)
    few, interval = few_seeds(seeds) if seeds is not None else "", None
    if draws is not None:
        value = ours.known - other.known
        return Estimate.of_draws(name, value, draws, undecided_because=few, seeds=seeds or 0)
    if ours.interval is None or other.interval is None:
        few = few or "one of the two has no interval"
    else:
        interval = interval_of_difference(ours.known, ours.interval, other.known, other.interval)
    return Estimate(
        name=name,
        value=ours.known - other.known,
        interval=interval,
        undecided_because=few,
        seeds=seeds or 0,
    )
