"""Loss over size and dataset: L(N, D), overfitting, early stopping (Kaplan et al. 2020, sec. 4).

D is the size of the training set, however many epochs a run makes of it, and the loss is the lowest on
the test set. A run is *stopped* where early stopping ended it before its last step. Only there did the
data limit the loss, and not the length of training.

A cell is one size on one dataset. Its seeds share the sequences of its subset, and the cell's deviation
from a law. So laws are fitted to the means of cells, and the bootstrap draws cells, not runs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import pandas as pd
from scipy.special import betaincinv

from lmscale import laws
from lmscale.laws import FitResult
from lmscale.laws.kaplan import overfitting
from lmscale.laws.known import median_of_known
from lmscale.laws.result import interval
from lmscale.studies.estimate import LEVEL, Basis, Estimate, few_seeds
from lmscale.studies.exponents import fit_power_of_cells
from lmscale.studies.fits import attempt
from lmscale.studies.learning_curves import evaluations
from lmscale.studies.noise import additive_noise
from lmscale.studies.papers import points
from lmscale.studies.registry import register
from lmscale.studies.results import Results
from lmscale.wording import plural, si

__all__ = [
    "LEAST_UPDATES",
    "NOISE",
    "PAPER",
    "RULE",
    "Dataset",
    "Laws",
    "Stops",
    "data_exponent",
    "data_share",
    "enters_fit",
    "fit_laws",
    "more_overfitting",
    "overfitting_at_rule",
    "overfitting_points",
    "paper_points",
    "study",
]

#: The paper's fit leaves out its smallest subset, 2.15e7 tokens: 41 updates of 2^19 an epoch.
LEAST_UPDATES = 42
#: Variation between the paper's seeds, relative to the loss: what overfitting must exceed to be seen.
NOISE = 0.02
#: D >~ 5e3 N^0.74 (eq. 4.4).
RULE = (5e3, 0.74)
PAPER = laws.published("kaplan2020-nd")
#: Fewest subsets that L(D) is fitted to.
LEAST_SUBSETS = 4
#: Draws of every fit.
BOOTSTRAP = laws.DRAWS
#: Stands for a bound that a draw of the laws does not have: later than any update.
NEVER = np.finfo(float).max / 4


@dataclass(frozen=True)
class Laws:
    """The fits.

    Attributes:
      nd: L(N, D), eq. 1.5.
      d: L(D), fitted to the stopped runs of the largest size.
      ns: L(N, S) of the runs on the largest set, in updates of their own batch.
    """

    nd: FitResult
    d: FitResult
    ns: FitResult


@dataclass(frozen=True)
class Stops:
    """Cells whose runs were stopped early, and the bound of eq. 5.7: the earliest step at which that may happen.

    Attributes:
      cells: params, dataset, loss (mean over seeds), and when the test loss was lowest, in updates: over
        seeds the geometric mean `step`, the `first` and the `last`.
      bound: [cell] updates; NaN where the loss is no higher than L(N, infinity).
      drawn: [cell, draw] the bound by each draw of the laws.
    """

    cells: pd.DataFrame
    bound: np.ndarray
    drawn: np.ndarray

    @property
    def judged(self) -> int:
        return int(np.isfinite(self.bound).sum())

    @property
    def kept(self) -> int:
        """Cells at or above their bound."""
        return int((self.cells["step"].to_numpy() >= self.bound).sum())

    def share(self, steps: float, seeds: int = 0) -> Estimate:
        """The share of cells at or above their bound.

        Args:
          steps: of the longest run. If most bounds lie beyond it, the share tests no claim.
        """
        name, why = "share_above_stopping_bound", ""
        if not self.judged:
            why = "no run stopped early, or the bound's laws could not be fitted"
            return Estimate(name=name, undecided_because=why, seeds=seeds)
        bound = float(median_of_known(self.bound))
        if bound > steps:
            why = (
                f"half of the bounds lie beyond {si(bound)} updates, where L(N, S) is extrapolated "
                f"from runs of {si(steps)} at most"
            )
        return Estimate(
            name=name,
            value=self.kept / self.judged,
            interval=self.share_interval(),
            undecided_because=why,
            n=self.judged,
            seeds=seeds,
        )

    def share_interval(self) -> tuple[float, float]:
        """The 95% interval of the share, by Clopper and Pearson's limits for every draw of the laws.

        Each draw of the laws gives other bounds, and so another count of cells above them, for which both
        limits are drawn at random. If the bounds were known exactly, the interval would be Clopper and
        Pearson's.
        """
        step = self.cells["step"].to_numpy()[:, None]
        judged = np.isfinite(self.drawn).sum(axis=0)
        kept = (step >= self.drawn).sum(axis=0)[judged > 0]
        judged = judged[judged > 0]
        if not len(kept):
            return 0.0, 1.0
        # Both limits take the same uniform number. They are evenly spread, to leave less to chance.
        place = (np.random.default_rng(0).permutation(len(kept)) + 0.5) / len(kept)
        low = np.where(kept > 0, betaincinv(np.maximum(kept, 1), judged - kept + 1, place), 0.0)
        high = np.where(
            kept < judged, betaincinv(kept + 1, np.maximum(judged - kept, 1), place), 1.0
        )
        return interval(low, LEVEL)[0], interval(high, LEVEL)[1]

    def bound_interval(self) -> tuple[np.ndarray, np.ndarray]:
        """The 95% interval of every cell's bound; the upper end is `NEVER` where too many draws have no bound."""
        drawn = np.where(np.isfinite(self.drawn), self.drawn, NEVER)
        return interval(drawn, LEVEL, axis=1)


@dataclass(frozen=True)
class Dataset:
    """What `study` finds, of the first family.

    Attributes:
      runs: params (without embeddings), dataset (tokens), loss, seed, run, best_step, stopped,
        batch_tokens, steps.
      requirement: the tokens with which the largest size (`at`) overfits by less than `NOISE`.
      estimates: "overfitting_exponent", r of N^r / D; "more_overfitting" of the largest size than of the
        smallest (`more_overfitting`); "overfitting_at_rule", of the largest size at `RULE`;
        "share_above_stopping_bound" (`Stops.share`); "data_exponent", that of L(D).
    """

    families: tuple[str, ...]
    runs: pd.DataFrame
    laws: Laws
    stops: Stops
    requirement: Estimate
    estimates: dict[str, Estimate]

    @property
    def fits(self) -> dict[str, FitResult]:
        if not len(self.runs):
            return {}
        names = {"L(N,D)": self.laws.nd, "L(D)": self.laws.d, "L(N,S)": self.laws.ns}
        return {f"{name}/kaplan": fit for name, fit in names.items()}

    @property
    def largest(self) -> float:
        return float(self.runs["params"].max())


@register("dataset")
def study(results: Results) -> Dataset:
    """The joint law, the data that a size needs, and the step at which test loss stops falling
    (Kaplan et al. 2020, eq. 1.5, 4.4 and 5.7).

    found = dataset.study(Results.read("results/dataset_size"))
    print(found.estimates["overfitting_exponent"], found.requirement)
    """
    families = tuple(results.families)
    runs = _runs(results, families[0] if families else "")
    fits = fit_laws(results, runs)
    stops = _stops(runs, fits)
    params = float(runs["params"].max())
    seeds = int(runs["seed"].nunique())
    basis: Basis = {"n": len(_cell_means(runs[enters_fit(runs)])), "seeds": seeds}
    found = (
        _of_joint_law(
            fits.nd, "overfitting_exponent", lambda p: p["alpha_N"] / p["alpha_D"], basis
        ),
        more_overfitting(runs),
        overfitting_at_rule(fits.nd, runs, **basis),
        stops.share(float(runs["steps"].max()), seeds),
        data_exponent(fits, params, seeds),
    )
    need = Estimate.of_fit(
        fits.nd, "requirement", lambda p: laws.data_requirement(p, params, NOISE), at=(params,)
    )
    return Dataset(families, runs, fits, stops, need, {one.name: one for one in found})


# --- runs and fits ------------------------------------------------------------------------------


def _runs(results: Results, family: str) -> pd.DataFrame:
    usable = results.usable
    usable = usable[usable["family"] == family]
    columns = ("params_kaplan", "unique_tokens", "evaluated_step", "tokens", "steps", "loss")
    usable = usable.reindex(columns=[*columns, "batch_tokens", "seed", "run"])
    full = results.experiment.get("corpus", {}).get("train_tokens", math.nan)
    return pd.DataFrame(
        {
            "params": usable["params_kaplan"].astype(float),
            "dataset": usable["unique_tokens"].astype(float).fillna(full),
            "loss": usable["loss"].astype(float),
            "seed": usable["seed"],
            "run": usable["run"],
            "best_step": usable["evaluated_step"].astype(float).fillna(usable["steps"]),
            "stopped": usable["tokens"] < usable["steps"] * usable["batch_tokens"],
            "batch_tokens": usable["batch_tokens"].astype(float),
            "steps": usable["steps"],
        }
    ).reset_index(drop=True)


def enters_fit(runs: pd.DataFrame) -> pd.Series:
    """Which runs L(N, D) is fitted to: those whose epoch is long enough, as in the paper."""
    return runs["dataset"] >= LEAST_UPDATES * runs["batch_tokens"]


def fit_laws(results: Results, runs: pd.DataFrame) -> Laws:
    """The three laws, fitted to these rows of `Dataset.runs`."""
    cells = _cell_means(runs[enters_fit(runs)]).rename(columns={"dataset": "tokens"})
    limited = runs[(runs["params"] == runs["params"].max()) & runs["stopped"].astype(bool)]
    limited = limited.rename(columns={"dataset": "tokens"})[["tokens", "loss", "seed"]]
    subsets, needs = limited["tokens"].nunique(), ""
    if subsets < LEAST_SUBSETS:
        needs = (
            f"the largest size stopped early on {plural(subsets, 'dataset')}, and L(D) needs "
            f"{LEAST_SUBSETS}"
        )
    return Laws(
        nd=_fit("kaplan-nd", cells),
        d=attempt("power", lambda: fit_power_of_cells(limited, "tokens"), needs=needs),
        ns=_fit("kaplan-ns", _learning_curves(results, runs)),
    )


def _fit(law: str, rows: pd.DataFrame) -> FitResult:
    return attempt(
        law,
        lambda: laws.fit(laws.Table.read(rows, convention="kaplan"), law, bootstrap=BOOTSTRAP),
        needs="" if len(rows) else "no runs that it could be fitted to",
    )


def _cell_means(runs: pd.DataFrame) -> pd.DataFrame:
    """The mean loss of every size and dataset; `weight` is how many seeds it is of."""
    return runs.groupby(["params", "dataset"], as_index=False).agg(
        loss=("loss", "mean"), weight=("seed", "size")
    )


def _learning_curves(results: Results, runs: pd.DataFrame) -> pd.DataFrame:
    """Test loss against updates of the runs on the largest dataset, after the warmup."""
    rows = []
    for run in runs[runs["dataset"] == runs["dataset"].max()].itertuples():
        steps, losses = evaluations(results.metrics.get(run.run, ()))
        rows += [
            {"params": run.params, "steps": step, "loss": loss, "group": run.run}
            for step, loss in zip(steps, losses, strict=True)
        ]
    return pd.DataFrame(rows)


def _stops(runs: pd.DataFrame, fits: Laws) -> Stops:
    """The stopped cells and their bounds.

    The paper counts updates at a batch far above the critical one. Here all runs have one batch, and the
    learning curves are fitted at that batch, so updates need no correction."""
    stopped = runs[runs["stopped"].astype(bool)]
    cells = stopped.groupby(["params", "dataset"], as_index=False).agg(
        loss=("loss", "mean"),
        step=("best_step", lambda steps: math.exp(np.mean(np.log(steps)))),
        first=("best_step", "min"),
        last=("best_step", "max"),
    )
    if not len(cells) or fits.nd.failure or fits.ns.failure:
        return Stops(cells[:0], np.empty(0), np.empty((0, 0)))

    def bound(nd: Any, ns: Any) -> np.ndarray:
        column = (slice(None), *[None] * np.ndim(nd["alpha_N"]))
        params, loss = (cells[name].to_numpy()[column] for name in ("params", "loss"))
        with np.errstate(all="ignore"):
            gap = loss - (nd["N_c"] / params) ** nd["alpha_N"]
            # By the law such a cell does not overfit, and eq. 5.7 says nothing of it.
            return np.where(gap > 0, ns["S_c"] * np.abs(gap) ** (-1 / ns["alpha_S"]), np.nan)

    return Stops(
        cells, bound(fits.nd.parameters, fits.ns.parameters), bound(fits.nd.draws, fits.ns.draws)
    )


# --- numbers ------------------------------------------------------------------------------------


def _of_joint_law(
    nd: FitResult, name: str, read: Callable[[Mapping[str, Any]], Any], basis: Basis
) -> Estimate:
    if nd.failure:
        return _unknown(name, f"L(N, D) could not be fitted: {nd.failure}", basis)
    return Estimate.of_fit(nd, name, read, **basis)


def _unknown(name: str, why: str, basis: Basis) -> Estimate:
    undecided: Basis = {**basis, "undecided_because": why}
    return Estimate(name=name, **undecided)


def overfitting_at_rule(nd: FitResult, runs: pd.DataFrame, **basis: Unpack[Basis]) -> Estimate:
    """Overfitting, L(N, D) / L(N, infinity) - 1, of the largest size of `runs` with the data that `RULE` asks for."""
    name, params, most = "overfitting_at_rule", runs["params"].max(), runs["dataset"].max()
    tokens = RULE[0] * params ** RULE[1]
    if tokens > most and not nd.failure:
        why = (
            f"the rule asks for {si(tokens)} tokens at N = {si(params)}, and the set has {si(most)}"
        )
        return _unknown(name, why, basis)
    return _of_joint_law(nd, name, lambda p: overfitting(p, params, tokens), basis)


def more_overfitting(runs: pd.DataFrame) -> Estimate:
    """How much more the largest size overfits than the smallest, on the same subsets and without a law.

    By L(N, D) larger models overfit more wherever they are better with unlimited data, as eq. 1.5 has no room
    for anything else. So this compares losses: the factor L(N, D) / L(N, full set) of the largest size over that
    of the smallest, geometric mean over subsets, less 1. It is 0 where both overfit alike. The interval is
    Student's over the seeds that all cells have (`additive_noise`).

    Args:
      runs: those of `Dataset.runs`.

    Returns:
      the estimate, whose `n` counts the subsets that enter the fit and that both sizes have.
    """
    name = "more_overfitting"
    ends = (float(runs["params"].min()), float(runs["params"].max()))
    rows = runs[enters_fit(runs) & runs["params"].isin(ends)]
    losses = rows.pivot_table(index="dataset", columns=["params", "seed"], values="loss")
    full = runs["dataset"].max()
    # [size][dataset, seed], of the seeds that both sizes have on every dataset that both have.
    both = [losses[size] for size in ends if size in losses]
    needs = "two sizes need runs on the full set"
    if len(set(ends)) < 2 or len(both) < 2:
        return _unknown(name, needs, {"at": ends})
    shared = [size.dropna(how="all").index for size in both]
    common = shared[0].intersection(shared[1])
    if full not in common:
        return _unknown(name, needs, {"at": ends})
    if len(common) < 2:
        return _unknown(
            name, "no subset has runs of the smallest and the largest size", {"at": ends}
        )
    small, large = (size.loc[common].dropna(axis=1) for size in both)
    seeds = small.columns.intersection(large.columns)
    if not len(seeds):
        return _unknown(name, "no seed was trained on every subset", {"at": ends})
    logs = [np.log(size[seeds].to_numpy()) for size in (small, large)]
    subset = (common < full)[:, None]
    gaps = [np.mean(log, axis=0, where=subset) - log[~subset[:, 0]][0] for log in logs]
    value, few = float(np.mean(gaps[1] - gaps[0])), few_seeds(len(seeds), "an interval")
    edges = None
    if not few:
        # The mean over m subsets less the full set, of two sizes.
        scale = math.sqrt(2 * (1 / (len(common) - 1) + 1))
        half = scale * additive_noise(np.concatenate(logs)).half_of_mean
        edges = (math.expm1(value - half), math.expm1(value + half))
    return Estimate(
        name=name,
        value=math.expm1(value),
        interval=edges,
        undecided_because=few,
        at=ends,
        n=len(common) - 1,
        seeds=len(seeds),
    )


def data_share(nd: FitResult, params: float, dataset: float) -> float:
    """The share of the data term in the sum of eq. 1.5: 1 where the size does not limit the loss at all."""
    p = nd.parameters
    size = (p["N_c"] / params) ** (p["alpha_N"] / p["alpha_D"])
    return float(p["D_c"] / dataset / (size + p["D_c"] / dataset))


def data_exponent(fits: Laws, params: float, seeds: int = 0) -> Estimate:
    """The exponent of L(D); undecided where the size, `params`, limits the loss as well."""
    found = Estimate.of_parameter(fits.d, "alpha_D", seeds=seeds)
    if not found.undecided_because and not fits.nd.failure:
        share = data_share(fits.nd, params, math.sqrt(math.prod(fits.d.ranges["tokens"])))
        if share < 0.5:
            why = (
                f"by the fitted L(N, D) the loss of the largest model, N = {si(params)}, depends more "
                f"on its size than on the data ({share:.0%} of eq. 1.5's bracket are data)"
            )
            return Estimate(name="data_exponent", undecided_because=why, seeds=seeds)
    return dataclasses.replace(found, name="data_exponent")


def overfitting_points(runs: pd.DataFrame, nd: FitResult) -> pd.DataFrame:
    """The rows of `runs` with two more columns: x = N^(alpha_N/alpha_D) / D, and overfitting, the loss over
    L(N, infinity) less 1.

    Args:
      runs: columns params, dataset and loss.
    """
    ratio = nd.parameters["alpha_N"] / nd.parameters["alpha_D"]
    limit = nd.predict(params=runs["params"], tokens=np.inf)
    return runs.assign(
        x=runs["params"] ** ratio / runs["dataset"], overfitting=runs["loss"] / limit - 1
    )


def paper_points() -> pd.DataFrame:
    """Kaplan et al. 2020, Fig. 9 left: columns params, dataset, loss and batch_tokens."""
    table = points("kaplan2020_fig9_L_N_D")
    return pd.DataFrame(
        {
            "params": table["N_nonembed"].astype(float),
            "dataset": table["D_tokens"].astype(float),
            "loss": table["test_loss"],
            "batch_tokens": 2.0**19,
        }
    )
