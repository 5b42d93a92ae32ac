"""Loss over size and dataset: L(N, D), overfitting, early stopping (Kaplan et al. 2020, sec. 4).

D is the size of the training set, whatever number of epochs a run makes of it, and the loss is the
lowest on the test set. A run is *stopped* where early stopping ended it before its last step: only
there has the data set the loss, and not the length of training.

A cell is a size on a dataset. Its seeds share what it strays from a law, and the sequences that were
drawn for its subset, so laws are fitted to the means of cells, and cells are what is drawn again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import beta

from lmscale import laws
from lmscale.laws import FitError, FitResult, TableError
from lmscale.laws.kaplan import overfitting
from lmscale.laws.result import interval
from lmscale.report import caveats, style
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.studies.estimate import interval_of_mean
from lmscale.studies.exponents import fit_power_of_cells
from lmscale.studies.fits import refused
from lmscale.studies.learning_curves import evaluations
from lmscale.studies.papers import points
from lmscale.studies.results import Results
from lmscale.wording import (
    between,
    family_name,
    listed,
    number,
    plural,
    power_of_ten,
    si,
    with_interval,
)

__all__ = ["analyse"]

NAME = "dataset"
TITLE = "Loss over model size and dataset size"
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
BOOTSTRAP = 1000


@dataclass(frozen=True)
class _Laws:
    """The fits, or why there are none."""

    #: L(N, D), eq. 1.5.
    nd: FitResult
    #: L(D) of the largest size, over its stopped runs.
    d: FitResult
    #: L(N, S) of the runs on the largest set, in updates of their own batch.
    ns: FitResult

    @property
    def exponent(self) -> tuple[float, tuple[float, float] | None]:
        """alpha_N / alpha_D."""
        p, draws = self.nd.parameters, self.nd.draws
        edges = _interval(self.nd, draws["alpha_N"] / draws["alpha_D"])
        return p["alpha_N"] / p["alpha_D"], edges


_STOP_COLUMNS = ("params", "dataset", "loss", "step", "first", "last")


@dataclass(frozen=True)
class _Stops:
    """Cells that early stopping ended.

    Attributes:
      cells: params, dataset, loss (mean), and of the updates of the lowest test loss the geometric
        mean `step`, the `first` and the `last` over seeds.
      bound: [cell] updates of eq. 5.7; NaN where the loss is no higher than L(N, infinity).
      drawn: [cell, draw] with the laws drawn again.
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

    def beyond(self, steps: float) -> str:
        """Why bounds that are mostly longer than any run of so many `steps` decide nothing."""
        bound = float(np.nanmedian(self.bound))
        if bound <= steps:
            return ""
        return (
            f"half of the bounds lie beyond {si(bound)} updates, where L(N, S) is extrapolated from "
            f"runs of {si(steps)} at most"
        )

    def share_interval(self) -> tuple[float, float]:
        """95% of the share of cells above their bound: Clopper and Pearson's, over all draws.

        Every draw of the laws has other bounds, and so another count of cells above them, for which
        either limit is drawn. With bounds known exactly this is their interval.
        """
        step = self.cells["step"].to_numpy()[:, None]
        judged = np.isfinite(self.drawn).sum(axis=0)
        kept = (step >= self.drawn).sum(axis=0)[judged > 0]
        judged = judged[judged > 0]
        # One uniform number for both limits; stratified, so that the ends do not depend on luck.
        place = (np.random.default_rng(0).permutation(len(kept)) + 0.5) / max(1, len(kept))
        low = np.where(kept > 0, beta.ppf(place, np.maximum(kept, 1), judged - kept + 1), 0.0)
        high = np.where(kept < judged, beta.ppf(place, kept + 1, np.maximum(judged - kept, 1)), 1.0)
        if not len(kept):
            return 0.0, 1.0
        return float(np.percentile(low, 2.5)), float(np.percentile(high, 97.5))

    def bound_interval(self) -> tuple[np.ndarray, np.ndarray]:
        """95% of every cell's bound; the upper end is infinite where too many draws have none."""
        drawn = np.where(np.isfinite(self.drawn), self.drawn, np.inf)
        return tuple(np.percentile(drawn, [2.5, 97.5], axis=1, method="closest_observation"))


def analyse(study: Results) -> Section:
    """The joint law, the data that a size needs, and the step at which test loss stops falling."""
    families = study.families
    runs = _runs(study, families[0]) if families else pd.DataFrame()
    if not len(runs):
        return Section(name=NAME, title=TITLE, finding="No run on a dataset has ended well yet.")
    fits = _fits(study, runs)
    stops = _stops(runs, fits)
    charts = [_law_chart(runs, fits.nd, study.bits_per_nat)]
    if fits.nd.parameters:
        charts.append(_overfitting_chart(runs, fits.nd))
    charts += _stopping_chart(study, runs, stops)
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(fits, runs),
        conclusive=bool(fits.nd.parameters),
        details=_details(fits, runs, stops),
        key_numbers=_key_numbers(fits, runs),
        charts=charts,
        grids=[*_law_grid(fits), _run_grid(runs)],
        fits={
            "L(N,D)/kaplan": fits.nd,
            "L(D)/kaplan": fits.d,
            "L(N,S)/kaplan": fits.ns,
        },
        measures=_measures(fits, runs, stops),
        warnings=_warnings(study, families, runs, fits, stops),
    )


# --- runs and fits ------------------------------------------------------------------------------


def _runs(study: Results, family: str) -> pd.DataFrame:
    """The runs of a family with their dataset and how they ended.

    Columns params (without embeddings), dataset (tokens), loss, seed, run, best_step, stopped,
    batch_tokens, steps.
    """
    usable = study.usable
    if not len(usable):
        return usable
    usable = usable[usable["family"] == family]
    full = study.experiment.get("corpus", {}).get("train_tokens", math.nan)
    best_step = usable["evaluated_step"].astype(float).fillna(usable["steps"])
    return pd.DataFrame(
        {
            "params": usable["params_kaplan"].astype(float),
            "dataset": usable["unique_tokens"].astype(float).fillna(full),
            "loss": usable["loss"].astype(float),
            "seed": usable["seed"],
            "run": usable["run"],
            "best_step": best_step,
            "stopped": usable["tokens"] < usable["steps"] * usable["batch_tokens"],
            "batch_tokens": usable["batch_tokens"].astype(float),
            "steps": usable["steps"],
            "group": usable["run"],
        }
    ).reset_index(drop=True)


def _fitted(runs: pd.DataFrame) -> pd.Series:
    """Which runs L(N, D) is fitted to: those whose epoch is long enough, as in the paper."""
    return runs["dataset"] >= LEAST_UPDATES * runs["batch_tokens"]


def _fits(study: Results, runs: pd.DataFrame) -> _Laws:
    rows = _cell_means(runs[_fitted(runs)]).rename(columns={"dataset": "tokens"})
    largest = _largest(runs)
    limited = largest[largest["stopped"]].rename(columns={"dataset": "tokens"})
    subsets = limited["tokens"].nunique()
    if subsets < LEAST_SUBSETS:
        why = f"the largest size stopped early on {plural(subsets, 'dataset')}, and L(D) needs {LEAST_SUBSETS}"
        d = refused("power", why)
    else:
        d = _limited(limited[["tokens", "loss", "seed"]])
    return _Laws(
        nd=_fit("kaplan-nd", rows),
        d=d,
        ns=_fit("kaplan-ns", _learning_curves(study, runs)),
    )


def _fit(law: str, rows: pd.DataFrame, **options: Any) -> FitResult:
    if not len(rows):
        return refused(law, "no runs that it could be fitted to")
    try:
        table = laws.Table.read(rows, convention="kaplan")
        return laws.fit(table, law, bootstrap=BOOTSTRAP, **options)
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        return refused(law, str(error))


def _cell_means(runs: pd.DataFrame) -> pd.DataFrame:
    """The mean loss of every size and dataset; `weight` is how many seeds it is of."""
    return runs.groupby(["params", "dataset"], as_index=False).agg(
        loss=("loss", "mean"), weight=("seed", "size")
    )


def _limited(rows: pd.DataFrame) -> FitResult:
    try:
        return fit_power_of_cells(rows, "tokens")
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        return refused("power", str(error))


def _learning_curves(study: Results, runs: pd.DataFrame) -> pd.DataFrame:
    """Test loss against updates of the runs on the largest dataset, after the warmup."""
    rows = []
    for run in runs[runs["dataset"] == runs["dataset"].max()].itertuples():
        steps, losses = evaluations(study.metrics.get(run.run, ()))
        rows += [
            {"params": run.params, "steps": step, "loss": loss, "group": run.run}
            for step, loss in zip(steps, losses, strict=True)
        ]
    return pd.DataFrame(rows)


def _largest(runs: pd.DataFrame) -> pd.DataFrame:
    return runs[runs["params"] == runs["params"].max()]


def _interval(fit: FitResult, draws: np.ndarray) -> tuple[float, float] | None:
    low, high = interval(draws, fit.draw_level or fit.level)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


def _stops(runs: pd.DataFrame, fits: _Laws) -> _Stops:
    """The cells whose runs were stopped, and the bound of eq. 5.7 in updates for each.

    The paper counts updates at a batch far above the critical one. All runs here have one batch, and
    the learning curves are fitted at that batch too, so the updates are taken as they are.
    """
    stopped = runs[runs["stopped"]]
    if not (len(stopped) and fits.nd.parameters and fits.ns.parameters):
        return _Stops(pd.DataFrame(columns=_STOP_COLUMNS), np.empty(0), np.empty((0, 0)))
    cells = stopped.groupby(["params", "dataset"], as_index=False).agg(
        loss=("loss", "mean"),
        step=("best_step", lambda steps: math.exp(np.mean(np.log(steps)))),
        first=("best_step", "min"),
        last=("best_step", "max"),
    )

    def bound(nd: Any, ns: Any) -> np.ndarray:
        column = (slice(None), *[None] * np.ndim(nd["alpha_N"]))
        params, loss = (cells[name].to_numpy()[column] for name in ("params", "loss"))
        with np.errstate(all="ignore"):
            gap = loss - (nd["N_c"] / params) ** nd["alpha_N"]
            # By the law such a cell does not overfit, and eq. 5.7 says nothing of it.
            return np.where(gap > 0, ns["S_c"] * np.abs(gap) ** (-1 / ns["alpha_S"]), np.nan)

    return _Stops(
        cells,
        bound(fits.nd.parameters, fits.ns.parameters),
        bound(fits.nd.draws, fits.ns.draws),
    )


# --- numbers ------------------------------------------------------------------------------------


def _requirement(fit: FitResult, params: float) -> tuple[float, tuple[float, float] | None]:
    """Tokens that keep overfitting of a size below `NOISE`."""
    value = float(laws.data_requirement(fit.parameters, params, NOISE))
    with np.errstate(all="ignore"):
        return value, _interval(fit, laws.data_requirement(fit.draws, params, NOISE))


def _data_share(fit: FitResult, params: float, dataset: float) -> float:
    """The share of the data term in the bracket of eq. 1.5: 1 where size does not limit at all."""
    p = fit.parameters
    size = (p["N_c"] / params) ** (p["alpha_N"] / p["alpha_D"])
    return float(p["D_c"] / dataset / (size + p["D_c"] / dataset))


def _measures(fits: _Laws, runs: pd.DataFrame, stops: _Stops) -> dict[str, Measure]:
    cells = len(_cell_means(runs[_fitted(runs)]))
    seeds = runs["seed"].nunique()
    where = f"{plural(cells, 'cell')} of N and D, {plural(seeds, 'seed')}"
    if seeds > 1:
        where += " that share each subset"
    what = {
        "overfitting_exponent": f"α_N / α_D of L(N, D), {where}",
        "overfitting_at_rule": "L(N, D) / L(N, ∞) − 1 of the largest size at D = 5e3 N^0.74, by the "
        f"fitted law, {where}",
        "share_above_stopping_bound": f"share of {plural(stops.judged, 'cell')} of N and D that "
        f"stopped early at or above the bound of eq. 5.7, means over {plural(seeds, 'seed')}",
        "data_exponent": "exponent of L(D), largest size, runs that stopped early"
        + (f", {plural(seeds, 'seed')} that share each subset" if seeds > 1 else ""),
    }
    measures = {}
    if not fits.nd.parameters:
        why = f"L(N, D) could not be fitted: {fits.nd.warnings[0]}"
        for name in ("overfitting_exponent", "overfitting_at_rule"):
            measures[name] = Measure(what=what[name], value=None, undecided_because=why)
    else:
        value, edges = fits.exponent
        name = "overfitting_exponent"
        measures[name] = Measure(what=what[name], value=value, interval=edges)
        measures["overfitting_at_rule"] = _at_rule(what["overfitting_at_rule"], fits.nd, runs)
    if stops.judged:
        measures["share_above_stopping_bound"] = Measure(
            what=what["share_above_stopping_bound"],
            value=stops.kept / stops.judged,
            interval=stops.share_interval(),
            undecided_because=stops.beyond(float(runs["steps"].max())),
        )
    else:
        measures["share_above_stopping_bound"] = Measure(
            what=what["share_above_stopping_bound"],
            value=None,
            undecided_because="no run stopped early, or the bound's laws could not be fitted",
        )
    measures["data_exponent"] = _data_exponent(what["data_exponent"], fits, runs)
    return measures


def _at_rule(what: str, fit: FitResult, runs: pd.DataFrame) -> Measure:
    params, most = runs["params"].max(), runs["dataset"].max()
    tokens = RULE[0] * params ** RULE[1]
    if tokens > most:
        why = (
            f"the rule asks for {si(tokens)} tokens at N = {si(params)}, and the set has {si(most)}"
        )
        return Measure(what=what, value=None, undecided_because=why)
    value = float(overfitting(fit.parameters, params, tokens))
    with np.errstate(all="ignore"):
        edges = _interval(fit, overfitting(fit.draws, params, tokens))
    return Measure(what=what, value=value, interval=edges)


def _data_exponent(what: str, fits: _Laws, runs: pd.DataFrame) -> Measure:
    if not fits.d.parameters:
        return Measure(what=what, value=None, undecided_because=fits.d.warnings[0])
    if fits.nd.parameters:
        low, high = fits.d.ranges["tokens"]
        params = runs["params"].max()
        share = _data_share(fits.nd, params, math.sqrt(low * high))
        if share < 0.5:
            why = (
                f"by the fitted L(N, D) the loss of the largest model, N = {si(params)}, depends more "
                f"on its size than on the data ({share:.0%} of eq. 1.5's bracket are data)"
            )
            return Measure(what=what, value=None, undecided_because=why)
    value, edges = fits.d.parameters["alpha_D"], fits.d.intervals.get("alpha_D")
    return Measure(what=what, value=value, interval=edges)


# --- words --------------------------------------------------------------------------------------


def _finding(fits: _Laws, runs: pd.DataFrame) -> str:
    if not fits.nd.parameters:
        return f"No law L(N, D) yet: {fits.nd.warnings[0].removeprefix('no fit: ')}."
    params = runs["params"].max()
    need, edges = _requirement(fits.nd, params)
    ratio, ends = fits.exponent
    known = f" (95% interval of the exponent {between(ends)})" if ends else ""
    return (
        f"Overfitting depends on N^{ratio:.2f}/D{known}; at N = {si(params)} it stays below "
        f"{NOISE:.0%} from {si(need)} tokens on"
        + (f" ({si(edges[0])} to {si(edges[1])})." if edges else ".")
    )


def _details(fits: _Laws, runs: pd.DataFrame, stops: _Stops) -> list[str]:
    texts = []
    if fits.nd.parameters:
        constant, power = RULE
        params = runs["params"].max()
        texts.append(
            f"Kaplan et al. 2020 found N^{power:g}/D and {constant:g} N^{power:g} tokens, which at "
            f"N = {si(params)} are {si(constant * params**power)}; a token there carries more text "
            f"where its vocabulary is larger."
        )
    if fits.d.parameters:
        exponent = with_interval(fits.d.parameters["alpha_D"], fits.d.intervals.get("alpha_D"))
        text = f"The loss of the largest model falls as D^−α with α = {exponent}, where the paper found 0.095"
        if fits.nd.parameters:
            low, high = fits.d.ranges["tokens"]
            ends = [_data_share(fits.nd, runs["params"].max(), x) for x in (low, high)]
            text += (
                f"; by L(N, D) data are {ends[0]:.0%} of what limits it at D = {si(low)} and "
                f"{ends[1]:.0%} at {si(high)}"
            )
        texts.append(text + ".")
    if stops.judged:
        texts.append(
            f"Of {plural(stops.judged, 'cell')} of N and D whose runs stopped early, {stops.kept} had "
            f"their lowest test loss, in the mean over seeds, at or after the bound S_c / [L(N, D) − "
            f"L(N, ∞)]^(1/α_S), with S_c = "
            f"{number(fits.ns.parameters['S_c'])} and α_S = {number(fits.ns.parameters['alpha_S'])} "
            f"from the learning curves on the largest dataset."
        )
    return texts


def _key_numbers(fits: _Laws, runs: pd.DataFrame) -> list[KeyNumber]:
    if not fits.nd.parameters:
        return []
    ratio, edges = fits.exponent
    params = runs["params"].max()
    need, ends = _requirement(fits.nd, params)
    found = [
        KeyNumber.of("exponent r of overfitting in N^r / D", ratio, edges),
        KeyNumber(
            label=f"tokens that keep N = {si(params)} from overfitting by {NOISE:.0%}",
            value=si(need),
            interval=f"{si(ends[0])} to {si(ends[1])}" if ends else "no interval",
        ),
    ]
    if fits.d.parameters:
        edges = fits.d.intervals.get("alpha_D")
        found.append(
            KeyNumber.of("exponent of L(D), largest size", fits.d.parameters["alpha_D"], edges)
        )
    return found


def _warnings(
    study: Results, families: list[str], runs: pd.DataFrame, fits: _Laws, stops: _Stops
) -> list[str]:
    warnings = []
    for name, fit in (("L(N, D)", fits.nd), ("L(D)", fits.d), ("L(N, S)", fits.ns)):
        warnings += [f"{name}: {text[0].upper()}{text[1:]}." for text in fit.warnings]
    left_out = int((~_fitted(runs)).sum())
    if left_out:
        warnings.append(
            f"{plural(left_out, 'run')} with fewer than {LEAST_UPDATES} updates an epoch left out of "
            f"L(N, D), as in the paper."
        )
    seeds = runs["seed"].nunique()
    warnings.append(
        f"{plural(seeds, 'seed')} a cell: intervals come from how the cells' means scatter about the "
        f"law."
        + (" All seeds of a subset" if seeds > 1 else " All sizes")
        + " train on the same sequences, and small subsets are parts of the larger ones, so that "
        "which sequences were drawn is in no interval."
    )
    unstopped = runs[~runs["stopped"] & (runs["dataset"] < runs["dataset"].max())]
    if len(unstopped):
        warnings.append(
            f"{plural(len(unstopped), 'run')} on a subset trained to the last step without being "
            f"stopped: longer training might lower the loss."
        )
    if len(families) > 1:
        others = listed([family_name(f) for f in families[1:]])
        warnings.append(f"Only {family_name(families[0])} is analysed here, not {others}.")
    missing = len(stops.bound) - stops.judged
    if missing:
        warnings.append(
            f"{plural(missing, 'cell')} that stopped early left out of the bound on early stopping: "
            f"the loss is no higher than the law's for unlimited data."
        )
    return [*warnings, *caveats.lost_runs(study)]


# --- tables -------------------------------------------------------------------------------------


def _law_grid(fits: _Laws) -> list[Grid]:
    if not fits.nd.parameters:
        return []
    p, edges = fits.nd.parameters, fits.nd.intervals
    rows = []
    for name in ("alpha_N", "alpha_D", "N_c", "D_c"):
        label = name.replace("alpha_", "α_")
        if name.startswith("alpha"):
            own = with_interval(p[name], edges.get(name))
        else:
            own = power_of_ten(p[name])
            if name in edges:
                own += f" ({power_of_ten(edges[name][0])} to {power_of_ten(edges[name][1])})"
        shown = number if name.startswith("alpha") else power_of_ten
        rows.append([label, own, shown(PAPER.parameters[name])])
    rms = float(np.sqrt(np.mean(np.square(fits.nd.residuals["residual"]))))
    rows.append(["rms residual", f"{rms:.1%}", "0.8%"])
    return [
        Grid(
            caption="L(N, D) = [(N_c/N)^(α_N/α_D) + D_c/D]^α_D with 95% intervals, N without "
            "embeddings, beside Kaplan et al. 2020, Table 2 (its residual is that of a refit to Fig. "
            "9). N_c and D_c depend on the vocabulary.",
            header=["parameter", "here", "paper"],
            rows=rows,
            numeric=(1, 2),
        )
    ]


def _run_grid(runs: pd.DataFrame) -> Grid:
    rows = []
    for (params, dataset), cell in runs.groupby(["params", "dataset"]):
        tokens = cell["best_step"].mean() * cell["batch_tokens"].mean()
        losses = tuple(cell["loss"])
        rows.append(
            [
                si(params),
                si(dataset),
                str(len(cell)),
                with_interval(float(np.mean(losses)), interval_of_mean(losses))
                if len(losses) > 1
                else f"{losses[0]:.3f}",
                si(cell["best_step"].mean()),
                number(tokens / dataset, 2),
                f"{int(cell['stopped'].sum())} of {len(cell)}",
            ]
        )
    return Grid(
        caption="Lowest test loss of every size and dataset. In brackets the 95% interval of the mean "
        "(three or more seeds) or the range (two).",
        header=["N", "D", "seeds", "loss (nats)", "best step", "epochs by then", "stopped early"],
        rows=rows,
        numeric=(0, 1, 2, 3, 4, 5, 6),
    )


# --- figures ------------------------------------------------------------------------------------


def _paper_points() -> pd.DataFrame:
    """Kaplan et al. 2020, Fig. 9 left, in this module's columns."""
    table = points("kaplan2020_fig9_L_N_D")
    return pd.DataFrame(
        {
            "params": table["N_nonembed"].astype(float),
            "dataset": table["D_tokens"].astype(float),
            "loss": table["test_loss"],
            "batch_tokens": 2.0**19,
        }
    )


def _law_chart(runs: pd.DataFrame, fit: FitResult, bits_per_nat: float | None) -> Chart:
    """L(N, D) as a fan of curves over D, one a size, beside the paper's."""
    with style.canvas(10.2, 4.6) as figure:
        figure.get_layout_engine().set(wspace=0.06)
        own, paper = figure.subplots(1, 2)
        draw_fan(own, runs, fit)
        draw_fan(paper, _paper_points(), PAPER)
        own.set_title("These runs")
        paper.set_title("Kaplan et al. 2020, Fig. 9")
        style.bits_axis(own, bits_per_nat)
        return style.render(
            figure,
            name="dataset",
            caption="Lowest test loss against the size of the training set, one colour a size, with "
            "the law L(N, D) fitted to all (Kaplan et al. 2020, eq. 1.5) and its 95% band. Points are "
            "means over seeds, bars their 95% interval (three or more seeds) or range (two); hollow "
            "points have too short an epoch to enter the fit. Right: the paper's measured points, read "
            "off its figure, and its published constants; its vocabulary is 50,257 tokens.",
            alt="Loss against dataset size for several model sizes, these runs and the paper's.",
        )


def draw_fan(axes: Any, runs: pd.DataFrame, fit: FitResult) -> None:
    """Measured loss and a law L(N, D) against D, one curve a size.

    Args:
      runs: columns params, dataset, loss, batch_tokens; one row a seed.
      fit: of "kaplan-nd"; without parameters, points alone.
    """
    sizes = sorted(runs["params"].unique())
    colours = style.ordered_colours(sizes)
    grid = np.geomspace(runs["dataset"].min() / 1.3, runs["dataset"].max() * 1.3, 80)
    for size in sizes:
        colour = colours[size]
        if fit.parameters:
            axes.plot(grid, fit.predict(params=size, tokens=grid), color=colour, lw=1.2)
            if fit.draws:
                with np.errstate(all="ignore"):
                    low, high = fit.band(params=np.full_like(grid, size), tokens=grid)
                axes.fill_between(grid, low, high, color=colour, alpha=0.18, lw=0)
        _draw_cells(axes, runs[runs["params"] == size], "dataset", "loss", colour)
    _size_legend(axes, sizes, colours)
    axes.set(xlabel="D, tokens in the training set", ylabel="test loss (nats per token)")
    style.log_axis(axes.xaxis, "count")
    style.log_axis(axes.yaxis, "plain")


def _draw_cells(axes: Any, runs: pd.DataFrame, x: str, y: str, colour: str) -> None:
    """Means over seeds with their bars, hollow where the cell did not enter the fit."""
    for place, cell in runs.groupby(x):
        values = tuple(cell[y])
        edges = interval_of_mean(values)
        if edges:
            axes.plot([place] * 2, edges, color=colour, lw=1.4)
        entered = bool(_fitted(cell).all())
        axes.plot(
            place,
            np.mean(values),
            "o",
            ms=5,
            color=colour if entered else style.PAPER,
            mec=style.PAPER if entered else colour,
            mew=0.5 if entered else 1.2,
            zorder=3,
        )


def _size_legend(axes: Any, sizes: Sequence[float], colours: dict) -> None:
    """Below the panel, where it covers no data."""
    handles = [axes.plot([], [], "o-", color=colours[n], ms=4.5, lw=1.2)[0] for n in sizes]
    axes.legend(
        handles,
        [f"N = {si(n)}" for n in sizes],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.14),
        ncols=3,
        handlelength=1.4,
        columnspacing=1.2,
    )


def _overfitting_chart(runs: pd.DataFrame, fit: FitResult) -> Chart:
    """Overfitting against N^r / D: one curve for all sizes if the law holds."""
    with style.canvas(10.2, 4.4) as figure:
        panels = figure.subplots(1, 2)
        draw_overfitting(panels[0], runs, fit)
        draw_overfitting(panels[1], _paper_points(), PAPER)
        panels[0].set_title("These runs")
        panels[1].set_title("Kaplan et al. 2020, Fig. 9")
        return style.render(
            figure,
            name="dataset-overfitting",
            caption="Overfitting, the loss on a subset over the law's loss on unlimited data less "
            "one, against N^r/D with the fitted r = α_N/α_D: points of all sizes fall on the one curve of the "
            f"law if nothing else matters. Band: 95%; dashed: {NOISE:.0%}, the paper's noise between "
            "seeds. Right: the paper's points and constants.",
            alt="Overfitting against N to the r over D, these runs and the paper's.",
        )


def draw_overfitting(axes: Any, runs: pd.DataFrame, fit: FitResult) -> None:
    """L(N, D) / L(N, infinity) - 1 against N^(alpha_N/alpha_D) / D.

    Args:
      runs: as in `draw_fan`.
      fit: of "kaplan-nd".
    """
    p = fit.parameters
    ratio = p["alpha_N"] / p["alpha_D"]
    x = runs["params"] ** ratio / runs["dataset"]
    limit = fit.predict(params=runs["params"], tokens=np.inf)
    runs = runs.assign(x=x, overfitting=runs["loss"] / limit - 1)
    sizes = sorted(runs["params"].unique())
    colours = style.ordered_colours(sizes)
    grid = np.geomspace(x.min() / 1.5, x.max() * 1.5, 100)
    middle = math.sqrt(sizes[0] * sizes[-1])
    tokens = middle**ratio / grid
    axes.plot(grid, overfitting(p, middle, tokens), color=style.INK, lw=1.2)
    if fit.draws:
        with np.errstate(all="ignore"):
            drawn = overfitting({k: v[:, None] for k, v in fit.draws.items()}, middle, tokens)
        low, high = interval(drawn, fit.draw_level or fit.level)
        axes.fill_between(grid, low, high, color=style.MUTED, alpha=0.25, lw=0)
    axes.axhline(NOISE, color=style.MUTED, lw=0.9, ls=(0, (4, 2)))
    for size in sizes:
        _draw_cells(axes, runs[runs["params"] == size], "x", "overfitting", colours[size])
    _size_legend(axes, sizes, colours)
    axes.set(xlabel=f"$N^{{{ratio:.2f}}}$ / D", ylabel="overfitting, L(N, D) / L(N, ∞) − 1")
    style.log_axis(axes.xaxis, "power")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g}%".replace("-", "−"))


def _stopping_chart(study: Results, runs: pd.DataFrame, stops: _Stops) -> list[Chart]:
    """The bound on early stopping, and learning curves of one size over the datasets."""
    drawn = _largest(runs)
    seed = drawn["seed"].min()
    curves = [row for row in drawn[drawn["seed"] == seed].itertuples() if row.run in study.metrics]
    if not curves:
        return []
    with style.canvas(10.2, 4.4) as figure:
        both = bool(stops.judged)
        panels = figure.subplots(1, 1 + both, squeeze=False)[0]
        if both:
            draw_stops(panels[0], stops)
        _draw_curves(study, panels[-1], curves)
        caption = (
            f"Test loss (solid) and training loss (dashed, with dropout) of N = {si(curves[0].params)} "
            "over the updates, one colour a dataset, one seed; points: the lowest test loss, which "
            "the run keeps."
        )
        if both:
            caption = (
                "Left: the update of the lowest test loss where runs stopped early (mean over seeds, "
                "with their range), against the bound of Kaplan et al. 2020, eq. 5.7, with its 95% "
                "interval; the bound says that nothing lies in the grey. Right: "
                + caption[0].lower()
                + caption[1:]
            )
        caption += " As in the paper's Fig. 16."
        return [
            style.render(
                figure,
                name="dataset-stopping",
                caption=caption,
                alt="Where early stopping ends runs against its bound, and learning curves by dataset.",
            )
        ]


def draw_stops(axes: Any, stops: _Stops) -> None:
    """Update of the lowest test loss of every cell against the bound of eq. 5.7."""
    low, high = stops.bound_interval()
    cells = stops.cells.assign(bound=stops.bound, low=low, high=high)
    cells = cells[np.isfinite(stops.bound)]
    sizes = sorted(cells["params"].unique())
    colours = style.ordered_colours(sizes)
    ends = [cells[["bound", "first"]].min().min() / 1.6, cells[["bound", "last"]].max().max() * 1.6]
    for cell in cells.itertuples():
        colour = colours[cell.params]
        edges = np.clip([cell.low, cell.high], *ends)
        axes.plot(edges, [cell.step] * 2, color=colour, lw=0.9, alpha=0.6)
        axes.plot([cell.bound] * 2, [cell.first, cell.last], color=colour, lw=0.9, alpha=0.6)
        axes.plot(cell.bound, cell.step, "o", color=colour, mec=style.PAPER, mew=0.5, zorder=3)
    axes.plot(ends, ends, color=style.INK, lw=1)
    axes.fill_between(ends, [ends[0]] * 2, ends, color=style.FAINT, alpha=0.5, lw=0, zorder=0)
    axes.set(xlim=ends, ylim=ends)
    axes.set_xlabel(r"bound $S_c$ / [L(N, D) − L(N, ∞)]$^{1/\alpha_S}$ (updates)")
    axes.set_ylabel("update of the lowest test loss")
    axes.set_title("Early stopping")
    _size_legend(axes, sizes, colours)
    style.log_axis(axes.xaxis, "count")
    style.log_axis(axes.yaxis, "count")


def _draw_curves(study: Results, axes: Any, curves: list[Any]) -> None:
    curves = sorted(curves, key=lambda row: row.dataset)
    # By rank: the full set lies so far off that the subsets would look alike.
    ranks = style.ordered_colours(range(len(curves)), log=False)
    colours = dict(zip((row.dataset for row in curves), ranks.values(), strict=True))
    handles = []
    for row in curves:
        records, colour = study.metrics[row.run], colours[row.dataset]
        steps, losses = evaluations(records)
        trained = [(r["step"], r["loss"]) for r in records if r.get("loss") is not None]
        trained = [(step, loss) for step, loss in trained if len(steps) and step >= steps[0]]
        if trained:
            axes.plot(
                *zip(*trained, strict=True), color=colour, lw=0.8, ls=(0, (3, 1.5)), alpha=0.8
            )
        handles += axes.plot(steps, losses, color=colour, lw=1.4)
        axes.plot(row.best_step, row.loss, "o", color=colour, mec=style.PAPER, mew=0.6, zorder=4)
    axes.legend(
        handles, [f"D = {si(x)}" for x in sorted(colours)], loc="upper right", handlelength=1.4
    )
    axes.set(xlabel="updates", ylabel="loss (nats per token)")
    axes.set_title(f"N = {si(curves[0].params)}")
    style.log_axis(axes.xaxis, "count")
    style.log_axis(axes.yaxis, "plain")
