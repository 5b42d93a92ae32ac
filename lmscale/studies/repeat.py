"""What repeated data are worth (Muennighoff et al. 2023).

A run of D tokens of which U are unique makes D/U epochs. It is compared with a run of equal length on
fresh data. Two readings need no law: how much higher the loss of the repeated run is, and how many fresh
tokens D' give the same loss, interpolated between the fresh runs of its size and seed. The law says
D' = U + U R* (1 - exp(-R/R*)) with R = D/U - 1.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lmscale import laws
from lmscale.laws import FitResult
from lmscale.laws.data_constrained import DETERMINED, effective
from lmscale.studies.estimate import Estimate, few_seeds, undecided
from lmscale.studies.fits import attempt, refused
from lmscale.studies.interpolate import between
from lmscale.studies.registry import register
from lmscale.studies.results import Results
from lmscale.wording import plural

__all__ = ["Epochs", "Repeat", "decay", "is_fresh", "nearest", "study"]

#: A run with at most this many epochs counts as one on fresh data.
ONCE = 1.01
#: An epoch count stands for another within this factor (the paper's 14 for 16).
NEAR = 1.3
#: How far D' is extrapolated beyond the longest fresh run, on the line through the last two points.
REACH = 1.5
#: Tokens of GPT-2's vocabulary, in which the paper's base law counts.
PAPER_VOCABULARY = 50_257
#: Draws of the law's fit.
BOOTSTRAP = laws.DRAWS
ESTIMATES = ("excess_at_4", "worth_at_16", "gain_beyond_40", "R_D_star")


@dataclass(frozen=True)
class Epochs:
    """What this many epochs cost and are worth: means over sizes, with intervals over seeds.

    Attributes:
      excess: the loss relative to that of as many fresh tokens, less one.
      worth: D' / D, fresh tokens of equal loss over tokens seen; its `n` counts the sizes whose loss
        the fresh runs of every seed reach.
      by_law: D' / D of the fitted law.
      sizes: how many sizes were trained for so many epochs.
    """

    epochs: float
    excess: Estimate
    worth: Estimate
    by_law: Estimate
    sizes: int


@dataclass(frozen=True)
class Repeat:
    """What `study` finds, of the first family.

    Attributes:
      runs: params (embeddings counted, as in the paper), n_params (without), tokens, unique, epochs,
        loss, seed.
      pairs: every repeated run, with fresh (the loss of the fresh run of its size, length and seed),
        excess (relative), worth (D'/U) and share (D'/D); NaN where there is no such run.
      fit: R_D* and R_N* (Muennighoff et al. 2023, eq. 5) on a base law that is held fixed.
      epochs: by their number.
      estimates: "excess_at_4", "worth_at_16" and "gain_beyond_40" (the share by which the loss still
        falls); `at` holds the epochs at which they were read. "R_D_star".
    """

    families: tuple[str, ...]
    runs: pd.DataFrame
    pairs: pd.DataFrame
    fit: FitResult
    epochs: tuple[Epochs, ...]
    estimates: dict[str, Estimate]

    @property
    def fits(self) -> dict[str, FitResult]:
        return {"data-constrained/chinchilla": self.fit} if len(self.runs) else {}


@register("repeat")
def study(results: Results) -> Repeat:
    """Loss against epochs beside fresh data, effective data, and R_D* (Muennighoff et al. 2023).

    found = repeat.study(Results.read("results/repeat"))
    print(found.estimates["excess_at_4"], [row.worth for row in found.epochs])
    """
    families = tuple(results.families)
    runs = _runs(results, families[0]) if families else pd.DataFrame()
    pairs = _pairs(runs) if len(runs) else runs
    if not len(pairs):
        why = "no repeated run has ended well" if len(runs) else "no run has ended well"
        fit = refused("data-constrained", why)
        if len(runs):
            fit = _fit(runs, int(results.table["vocab_size"].iloc[0]))
        return Repeat(families, runs, pairs, fit, (), undecided(ESTIMATES, why))
    fit = _fit(runs, int(results.table["vocab_size"].iloc[0]))
    found = (
        _at("excess_at_4", "excess", pairs, nearest(pairs, 4), "of 4 epochs"),
        _at(
            "worth_at_16",
            "share",
            pairs,
            nearest(pairs, 16),
            "of 16 epochs whose loss fresh runs reach",
        ),
        _gain_beyond(runs, 40),
        decay(fit, "R_D_star"),
    )
    rows = tuple(_epochs(pairs, fit, epochs) for epochs in sorted(pairs["epochs"].unique()))
    return Repeat(families, runs, pairs, fit, rows, {one.name: one for one in found})


# --- runs and fits ------------------------------------------------------------------------------


def _runs(results: Results, family: str) -> pd.DataFrame:
    usable = results.usable
    usable = usable[usable["family"] == family]
    if not len(usable):
        return pd.DataFrame()
    full = results.experiment.get("corpus", {}).get("train_tokens", math.nan)
    tokens = usable["tokens"].astype(float)
    unique = np.minimum(usable["unique_tokens"].astype(float).fillna(full), tokens)
    return pd.DataFrame(
        {
            "params": usable["params_chinchilla"].astype(float),
            "n_params": usable["params_kaplan"].astype(float),
            "tokens": tokens,
            "unique": unique,
            # The last step may overrun the set by less than a batch.
            "epochs": (tokens / unique).round(2),
            "loss": usable["loss"].astype(float),
            "seed": usable["seed"],
        }
    ).reset_index(drop=True)


def is_fresh(runs: pd.DataFrame) -> pd.Series:
    """Which runs see no token twice."""
    return runs["epochs"] <= ONCE


def _pairs(runs: pd.DataFrame) -> pd.DataFrame:
    fresh = runs[is_fresh(runs)]
    rows = []
    for row in runs[~is_fresh(runs)].to_dict("records"):
        own = fresh[(fresh["params"] == row["params"]) & (fresh["seed"] == row["seed"])]
        equal = own[(own["tokens"] / row["tokens"] - 1).abs() < 0.01]
        loss = float(equal["loss"].mean()) if len(equal) else math.nan
        worth = _tokens_at(own.groupby("tokens")["loss"].mean(), row["loss"]) / row["unique"]
        share = worth / row["epochs"]
        excess = row["loss"] / loss - 1
        rows.append({**row, "fresh": loss, "excess": excess, "worth": worth, "share": share})
    return pd.DataFrame(rows)


def _tokens_at(curve: pd.Series, loss: float) -> float:
    """Where a fresh curve (loss by tokens) reaches a loss, on straight lines in log-log."""
    # Noise can let a longer run end higher; the best so far never rises.
    best = curve.cummin()
    best = best[best.diff().fillna(-1) < 0]
    if len(best) < 2 or loss > best.iloc[0]:
        return math.nan
    if loss >= best.iloc[-1]:
        return float(between(loss, best.to_numpy(), best.index.to_numpy(float)))
    (x1, x2), (y1, y2) = np.log(best.index.to_numpy(float)[-2:]), np.log(best.to_numpy()[-2:])
    beyond = (math.log(loss) - y2) * (x2 - x1) / (y2 - y1)
    return float(np.exp(x2 + beyond)) if beyond <= math.log(REACH) else math.nan


def _fit(runs: pd.DataFrame, vocab_size: int) -> FitResult:
    """R_D* and R_N*. The base law is fitted to these runs, or the paper's if they use its tokeniser."""
    # What a cell strays from the law is common to its seeds, so each cell is one point: the mean.
    cells = runs.assign(loss=np.log(runs["loss"])).groupby(["params", "tokens", "unique", "epochs"])
    rows = np.exp(cells["loss"].mean()).reset_index().rename(columns={"unique": "unique_tokens"})
    once = rows[is_fresh(rows)]
    # The base law has five parameters, and one size does not tell how loss falls with size.
    own = once["params"].nunique() >= 2 and len(once) >= 6
    needs = ""
    if not own and vocab_size != PAPER_VOCABULARY:
        needs = f"{plural(len(once), 'fresh cell')}, and the base law needs 6 of two sizes or more"
    fit = attempt(
        "data-constrained",
        lambda: laws.fit(
            laws.Table.read(rows.drop(columns="epochs"), convention="chinchilla"),
            "data-constrained",
            base="fit" if own else "muennighoff",
            bootstrap=BOOTSTRAP,
        ),
        needs=needs,
    )
    star = fit.parameters.get("R_D_star", 1.0)
    if not DETERMINED[0] < star < DETERMINED[1]:
        why = f"R_D* ran off to {star:.2g}: the law does not describe it"
        return refused("data-constrained", why)
    return fit


def decay(fit: FitResult, name: str) -> Estimate:
    """R_D* or R_N*, with an interval that is open above where draws ran off.

    Args:
      name: "R_D_star" or "R_N_star".
    """
    found = Estimate.of_parameter(fit, name, n=fit.n_used)
    if found.interval is None or found.interval[1] < DETERMINED[1]:
        return found
    return dataclasses.replace(found, interval=(found.interval[0], math.inf))


# --- readings -----------------------------------------------------------------------------------


def nearest(pairs: pd.DataFrame, wanted: float) -> float | None:
    """The epoch count of the runs that stands for `wanted`; None where none is near enough."""
    found = min(pairs["epochs"].unique(), key=lambda e: abs(math.log(e / wanted)), default=None)
    return found if found and abs(math.log(found / wanted)) <= math.log(NEAR) else None


def _over_seeds(name: str, rows: pd.DataFrame, column: str, needs: str, *at: float) -> Estimate:
    """The mean of a number over the sizes that all seeds have, with its interval over seeds.

    Args:
      needs: which runs it takes, for when they are missing.
    """
    missing = Estimate(name=name, undecided_because=f"there are no runs {needs}", at=at)
    if not len(rows):
        return missing
    table = rows[column].astype(float).groupby([rows["params"], rows["seed"]]).mean().unstack()
    whole = table.dropna(axis=0)
    per_seed = whole.mean(axis=0).dropna().tolist()
    if not per_seed:
        return missing
    out, why = len(table) - len(whole), few_seeds(len(per_seed))
    if out and not why:
        sizes = plural(out, "size")
        why = f"{sizes} of {len(table)} left out: not all seeds have runs {needs}"
    return Estimate.of_mean(name, per_seed, undecided_because=why, at=at, n=len(whole))


def _at(name: str, column: str, pairs: pd.DataFrame, epochs: float | None, needs: str) -> Estimate:
    """The `excess` or the `share` of the runs of so many epochs."""
    at = () if epochs is None else (epochs,)
    return _over_seeds(name, pairs[pairs["epochs"] == epochs], column, needs, *at)


def _epochs(pairs: pd.DataFrame, fit: FitResult, epochs: float) -> Epochs:
    needs = f"of {epochs:g} epochs"
    return Epochs(
        epochs,
        _at("excess", "excess", pairs, epochs, needs),
        _at("worth", "share", pairs, epochs, needs),
        Estimate.of_fit(fit, "worth", lambda p: effective(1.0, epochs - 1, p["R_D_star"]) / epochs),
        pairs[pairs["epochs"] == epochs]["params"].nunique(),
    )


def _gain_beyond(runs: pd.DataFrame, epochs: float) -> Estimate:
    """By what share the loss still falls from the largest count up to `epochs` to the largest of all."""
    name, needs = "gain_beyond_40", f"up to and beyond {epochs:g} epochs of one set of tokens"
    repeated = runs[~is_fresh(runs)]
    below = repeated[(repeated["epochs"] <= epochs) & (repeated["epochs"] > epochs / 2)]
    above = repeated[repeated["epochs"] > epochs]
    both = below.merge(above, on=["params", "unique", "seed"], suffixes=("", "_more"))
    first, last = both["epochs"].max(), both["epochs_more"].max()
    at = (first, last) if len(both) else ()
    both = both[(both["epochs"] == first) & (both["epochs_more"] == last)]
    both = both.assign(gain=1 - both["loss_more"] / both["loss"])
    return _over_seeds(name, both, "gain", needs, *at)
