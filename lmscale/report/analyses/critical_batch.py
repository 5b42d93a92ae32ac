"""The critical batch: steps against tokens at equal loss (Kaplan et al. 2020, Figs. 10 and 18).

For every size and loss, S = S_min (1 + B_crit/B) is fitted to the steps that batches of B tokens took.
Beside it stands the gradient noise scale B_simple = tr(Sigma)/|G|^2 of McCandlish et al. 2018, where
the runs measured it. Intervals are over seeds drawn again within each size and batch; a run keeps
all its losses together, because they are not independent. Where runs do not follow the hyperbola,
B_crit depends on which batches were run: what it moves by when each is left out in turn counts too.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lmscale import laws
from lmscale.laws import FitResult, TableError
from lmscale.laws.batch import hyperbola_residual
from lmscale.laws.solve import seed_weights, solve
from lmscale.report import style
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.studies.estimate import LEAST_SEEDS
from lmscale.studies.fits import refused
from lmscale.studies.learning_curves import evaluations, seed_interval
from lmscale.studies.results import Results
from lmscale.wording import listed, number, plural, si, with_interval

__all__ = ["analyse"]

NAME = "critical_batch"
TITLE = "The critical batch"
#: Losses that are read off, and batches that must reach each.
TARGETS, LEAST_BATCHES = 8, 4
DRAWS = 300
#: Kaplan et al. 2020, eq. 5.3: B_crit = 2.1e8 / L^(1/0.21) tokens.
PAPER_POWER = 1 / 0.21
#: Records of a run within this factor of the step that reached a loss tell its noise scale.
NOISE_WINDOW = 1.3
#: Mean misfit of the smallest and the largest batch, in ln S, from which a warning tells of it.
MISFIT = 0.02
NO_INTERVAL = f"an interval needs {LEAST_SEEDS} seeds of each size and batch"


@dataclass(frozen=True)
class _Size:
    """One model size, at the losses that enough batches reached.

    Attributes:
      targets: [target] losses, highest first.
      rows: a row is a run and a target that it reached, at the learning rate that gets there first:
        batch_tokens, seed, loss (the target), steps.
      s_min, b_crit, noise: [target] updates; tokens; tokens of B_simple, NaN where not measured.
      drawn_s_min, drawn_b_crit, drawn_noise: [draw, target] over seeds drawn again (and batches left
        out, for the first two), or None.
      fit: the law "critical-batch".
      at_edge: cells of batch and loss whose best learning rate is the edge of those tried.
    """

    n_params: float
    targets: np.ndarray
    rows: pd.DataFrame
    s_min: np.ndarray
    b_crit: np.ndarray
    noise: np.ndarray
    drawn_s_min: np.ndarray | None
    drawn_b_crit: np.ndarray | None
    drawn_noise: np.ndarray | None
    fit: FitResult
    at_edge: int

    @property
    def n_seeds(self) -> int:
        """Of the batch that has fewest."""
        return int(self.rows.groupby("batch_tokens")["seed"].nunique().min())


@dataclass(frozen=True)
class _Line:
    """B_crit = 10^level / L^power through the points of all sizes; draws or None."""

    power: float
    level: float
    drawn_power: np.ndarray | None
    drawn_level: np.ndarray | None

    def at(self, loss: Any) -> np.ndarray:
        return np.exp(self.level - self.power * np.log(loss))

    def band(self, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        if self.drawn_power is None:
            return None
        drawn = self.drawn_level[:, None] - self.drawn_power[:, None] * np.log(loss)
        low, high = np.nanpercentile(np.exp(drawn), [2.5, 97.5], axis=0)
        return low, high


def analyse(study: Results) -> Section:
    """B_crit(L) of each size, and the gradient noise scale beside it."""
    runs = _runs(study)
    targets = _targets(runs)
    sizes, reasons = [], []
    for n_params, own in runs.groupby("n_params", sort=True) if len(targets) else ():
        try:
            sizes.append(_size(float(n_params), own, targets))
        except (TableError, np.linalg.LinAlgError) as error:
            reasons.append(f"N = {si(n_params)}: {error}")
    if not sizes:
        why = "; ".join(reasons) or f"no loss was reached by {LEAST_BATCHES} batches of one size"
        return Section(
            name=NAME,
            title=TITLE,
            finding=f"No law yet: {why}.",
            fits={"transformer/tokens": refused("critical-batch", why)},
        )
    line = _line(sizes)
    measures = {
        "power": _power(sizes, line),
        "size_ratio": _size_ratio(sizes),
        "noise_ratio": _noise_ratio(sizes),
    }
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(sizes, line, measures),
        conclusive=measures["power"].interval is not None,
        details=_details(sizes, line),
        key_numbers=[_key(label, measures[name]) for name, label in _KEYS.items()],
        charts=[_hyperbolas(sizes), _curve(sizes, line)],
        grids=[_grid(sizes)],
        fits={f"transformer, N = {size.n_params:.0f}/tokens": size.fit for size in sizes},
        measures=measures,
        warnings=_warnings(sizes, reasons),
    )


# --- from runs to steps -------------------------------------------------------------------------


def _runs(study: Results) -> pd.DataFrame:
    """Every run that ended well, whatever its learning rate, with its curve and its records."""
    table, rows = study.table, []
    pieces = study.experiment.get("fields", {}).get("noise_pieces")
    for _, row in table[table["status"] == "done"].iterrows() if len(table) else ():
        records = study.metrics.get(row["run"], [])
        steps, losses = evaluations(records)
        if len(steps) < 3:
            continue
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
    """Losses that all batches of some size pass on the way, highest first, evenly in the logarithm."""
    if not len(runs):
        return np.array([])
    ends = runs.assign(
        first=[losses[0] for losses in runs["losses"]],
        last=[losses.min() for losses in runs["losses"]],
    )
    # A curve that begins below a loss does not tell when it got there.
    cells = ends.groupby(["n_params", "batch_tokens", "lr_factor"])[["first", "last"]].mean()
    batches = cells.groupby(["n_params", "batch_tokens"]).min()
    of_size = batches.groupby("n_params").agg({"first": "min", "last": "max"})
    low, high = of_size["last"].min(), of_size["first"].max()
    # A hair inside, so that single seeds reach them too.
    low, high = 1.01 * low, 0.99 * high
    return np.geomspace(high, low, TARGETS) if low < high else np.array([])


def _size(n_params: float, runs: pd.DataFrame, targets: np.ndarray) -> _Size:
    """Raises a TableError where no loss was reached by enough batches."""
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
                trace, signal, weight = _noise(run, steps)
                rows.append(
                    {
                        "batch_tokens": batch,
                        "seed": run.seed,
                        "loss": target,
                        "steps": steps,
                        "trace": trace,
                        "signal": signal,
                        "weight": weight,
                    }
                )
    rows = pd.DataFrame(rows, columns=["batch_tokens", "seed", "loss", "steps", *_NOISE])
    batches = rows.groupby("loss")["batch_tokens"].nunique()
    enough = np.array(sorted(batches[batches >= LEAST_BATCHES].index, reverse=True))
    if not len(enough):
        raise TableError(f"no loss was reached by {LEAST_BATCHES} batches")
    rows = rows[rows["loss"].isin(enough)].reset_index(drop=True)
    fit = laws.fit(rows[["batch_tokens", "loss", "steps"]], "critical-batch", bootstrap=0)
    by_loss = {item["loss"]: item for item in fit.details["hyperbolas"]}
    found = [by_loss[target] for target in enough]
    noise, drawn_noise, drawn = _ratio_of_means(rows, enough, None), None, None
    weights = _drawn_weights(rows)
    if weights is not None:
        drawn = _drawn_hyperbolas(rows, enough, weights)
        left_out = _drawn_batches(rows, enough)
        drawn = tuple(values * factor for values, factor in zip(drawn, left_out, strict=True))
        drawn_noise = _ratio_of_means(rows, enough, weights)
    return _Size(
        n_params=n_params,
        targets=enough,
        rows=rows,
        s_min=np.array([item["S_min"] for item in found]),
        b_crit=np.array([item["B_crit"] for item in found]),
        noise=noise[0],
        drawn_s_min=None if drawn is None else drawn[0],
        drawn_b_crit=None if drawn is None else drawn[1],
        drawn_noise=drawn_noise,
        fit=_with_intervals(fit, enough, drawn),
        at_edge=at_edge,
    )


_NOISE = ("trace", "signal", "weight")


def _noise(run: Any, steps: float) -> tuple[float, float, float]:
    """tr(Sigma) and |G|^2 around a step, and the tokens that they were measured on.

    The estimates of a run are those of whole batches and of their pieces, averaged over the records
    near the step.
    """
    near = [r for r in run.records if steps / NOISE_WINDOW <= r["step"] <= steps * NOISE_WINDOW]
    if not near or not run.noise_pieces:
        return math.nan, math.nan, 0.0
    share = np.array([r["steps_averaged"] for r in near], float)
    pieces = share @ [r["piece_grad_squared"] for r in near] / share.sum()
    whole = share @ [r["grad_squared"] for r in near] / share.sum()
    found = laws.noise_scale(
        [pieces], [whole], run.batch_tokens / run.noise_pieces, run.batch_tokens
    )
    return float(found.trace), float(found.gradient_squared), share.sum() * run.batch_tokens


def _ratio_of_means(
    rows: pd.DataFrame, targets: np.ndarray, weights: np.ndarray | None
) -> np.ndarray:
    """B_simple [draw, target] in tokens, numerator and denominator averaged over all batches."""
    measured = rows["trace"].notna().to_numpy()
    weights = np.ones((1, len(rows))) if weights is None else weights
    weights = weights * np.where(measured, rows["weight"], 0)
    columns = []
    for target in targets:
        of_target = weights * (rows["loss"] == target).to_numpy()
        with np.errstate(invalid="ignore", divide="ignore"):
            trace, signal = (of_target @ rows[name].fillna(0).to_numpy() for name in _NOISE[:2])
            columns.append(np.where(signal > 0, trace / signal, np.nan))
    return np.stack(columns, axis=1)


def _drawn_weights(rows: pd.DataFrame) -> np.ndarray | None:
    """How often each row counts [draw, row]: the seeds of every batch are drawn again."""
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
    """Factors [2, draw, target] of S_min and B_crit, as the choice of batches moves them.

    The jackknife over batches: ln B_crit varies by (k - 1)/k times the sum of squares of what leaving
    each of k batches out moves it by, with k - 1 degrees of freedom. A batch is drawn alike at all
    losses and sizes, which it misfits alike.
    """
    batches = np.unique(rows["batch_tokens"])
    kept = (rows["batch_tokens"].to_numpy() != batches[:, None]).astype(float)
    without = np.log(_drawn_hyperbolas(rows, targets, kept))
    reached = rows.groupby(["batch_tokens", "loss"]).size().unstack().reindex(columns=targets)
    reached = reached.notna().to_numpy()
    k = reached.sum(axis=0)
    moved = np.where(reached, without - (without * reached).sum(axis=1, keepdims=True) / k, 0.0)
    normal = [np.random.default_rng(int(b)).standard_normal(DRAWS) for b in batches]
    freedom = len(batches) - 1
    student = np.random.default_rng(0).chisquare(freedom, DRAWS) / freedom
    drawn = np.stack(normal, axis=1) / np.sqrt(student)[:, None]
    return np.exp(drawn @ (moved * np.sqrt((k - 1) / k)))


def _with_intervals(
    fit: FitResult, targets: np.ndarray, drawn: tuple[np.ndarray, np.ndarray] | None
) -> FitResult:
    """The law of one size with intervals over seeds."""
    if drawn is None or len(targets) < 2:
        return fit
    x = np.log(targets) - np.log(targets).mean()
    slope = np.log(drawn[1]) @ x / np.sum(x**2)
    with np.errstate(divide="ignore"):
        interval = seed_interval(-1 / slope)
    if interval is None:
        return fit
    return dataclasses.replace(
        fit,
        intervals={"alpha_B": interval},
        interval_method="bootstrap over seeds within each batch, jackknife over batches",
    )


# --- what follows from them ---------------------------------------------------------------------


def _weights(drawn: np.ndarray | None, n: int) -> np.ndarray:
    """Weights [n] of logarithms that have draws [draw, n]: one over their variance, robustly."""
    if drawn is None:
        return np.ones(n)
    low, high = np.nanpercentile(drawn, [16, 84], axis=0)
    return 1 / np.maximum((high - low) / 2, 0.02) ** 2


def _line(sizes: list[_Size]) -> _Line | None:
    """ln B_crit against ln L over all sizes together, as the paper's own; None for one loss."""
    x = np.concatenate([np.log(size.targets) for size in sizes])
    if np.ptp(x) == 0:
        return None
    y = np.concatenate([np.log(size.b_crit) for size in sizes])[None]
    drawn = None
    if all(size.drawn_b_crit is not None for size in sizes):
        drawn = np.concatenate([np.log(size.drawn_b_crit) for size in sizes], axis=1)
        y = np.concatenate([y, drawn])
    w = _weights(drawn, len(x))
    middle = w @ x / w.sum()
    slope = y @ (w * (x - middle)) / (w @ (x - middle) ** 2)
    level = y @ w / w.sum() - slope * middle
    if drawn is None:
        return _Line(float(-slope[0]), float(level[0]), None, None)
    return _Line(float(-slope[0]), float(level[0]), -slope[1:], level[1:])


def _power(sizes: list[_Size], line: _Line | None) -> Measure:
    every = np.concatenate([size.targets for size in sizes])
    what = (
        f"power of 1/L in B_crit, {plural(len(sizes), 'size')} together, losses from "
        f"{every.max():.2f} to {every.min():.2f}, "
        f"{plural(min(size.n_seeds for size in sizes), 'seed')} a batch"
    )
    if line is None:
        return Measure(
            what=what, value=None, undecided_because="one loss only was reached by enough batches"
        )
    interval = seed_interval(line.drawn_power)
    return Measure(
        what=what,
        value=line.power,
        interval=interval,
        undecided_because="" if interval else NO_INTERVAL,
    )


def _size_ratio(sizes: list[_Size]) -> Measure:
    small, large = sizes[0], sizes[-1]
    what = f"B_crit of N = {si(large.n_params)} over that of {si(small.n_params)}, at equal loss"
    shared = [
        (list(small.targets).index(t), list(large.targets).index(t))
        for t in large.targets
        if t in small.targets
    ]
    if small is large or not shared:
        return Measure(
            what=what,
            value=None,
            undecided_because="no loss was reached by enough batches of 2 sizes",
        )
    i, j = np.array(shared).T
    logs = np.log(large.b_crit[j] / small.b_crit[i])
    drawn = None
    if small.drawn_b_crit is not None and large.drawn_b_crit is not None:
        drawn = np.log(large.drawn_b_crit[:, j] / small.drawn_b_crit[:, i])
    return _mean_of_logs(f"{what} ({plural(len(i), 'target')})", logs, drawn)


def _noise_ratio(sizes: list[_Size]) -> Measure:
    what = f"gradient noise scale over B_crit, {plural(len(sizes), 'size')}"
    logs, drawn = [], []
    for size in sizes:
        measured = np.isfinite(size.noise)
        with np.errstate(invalid="ignore"):
            logs += list(np.log(size.noise[measured] / size.b_crit[measured]))
            if size.drawn_noise is not None:
                drawn.append(np.log(size.drawn_noise / size.drawn_b_crit)[:, measured])
    if not logs:
        return Measure(
            what=what,
            value=None,
            undecided_because="the runs did not measure their gradients' noise",
        )
    return _mean_of_logs(
        what, np.array(logs), np.concatenate(drawn, axis=1) if len(drawn) == len(sizes) else None
    )


def _mean_of_logs(what: str, logs: np.ndarray, drawn: np.ndarray | None) -> Measure:
    w = _weights(drawn, len(logs))
    value = float(np.exp(w @ logs / w.sum()))
    interval = None if drawn is None else seed_interval(np.exp(drawn @ w / w.sum()))
    return Measure(
        what=what, value=value, interval=interval, undecided_because="" if interval else NO_INTERVAL
    )


# --- words and tables ---------------------------------------------------------------------------

_KEYS = {
    "power": "power of 1/L in B_crit (Kaplan et al.: 4.8)",
    "size_ratio": "B_crit of the largest over the smallest size, at equal loss",
    "noise_ratio": "gradient noise scale over B_crit",
}


def _key(label: str, measure: Measure) -> KeyNumber:
    if measure.value is None:
        return KeyNumber(label=label, value="–", interval="no interval")
    return KeyNumber.of(label, measure.value, measure.interval)


def _finding(sizes: list[_Size], line: _Line | None, measures: dict[str, Measure]) -> str:
    size = sizes[-1]
    low, high = size.b_crit[0], size.b_crit[-1]
    text = (
        f"The critical batch of N = {si(size.n_params)} goes from {si(low)} tokens at a loss of "
        f"{size.targets[0]:.2f} to {si(high)} at {size.targets[-1]:.2f}"
    )
    if line is not None:
        power = measures["power"]
        text += f", as 1/L to the power {with_interval(power.value, power.interval)}"
    ratio = measures["size_ratio"]
    if ratio.value is not None:
        text += (
            f"; that of N = {si(size.n_params)} is {with_interval(ratio.value, ratio.interval)} "
            f"times that of {si(sizes[0].n_params)} at equal loss"
        )
    return text + "."


def _details(sizes: list[_Size], line: _Line | None) -> list[str]:
    if line is None or line.power <= 0:
        return []
    middle = float(np.sqrt(sizes[-1].targets[0] * sizes[-1].targets[-1]))
    paper = float(laws.critical_batch(middle))
    return [
        (
            f"B_crit(L) = {number(math.exp(line.level), 3)} / L^{line.power:.2f} tokens over these "
            f"losses: give `--critical-batch {math.exp(line.level):.3g} {1 / line.power:.3g}` to the "
            f"experiments compute and sample_efficiency. At a loss of {middle:.2f} that is "
            f"{si(line.at(middle))} tokens; Kaplan et al. 2020 have {si(paper)} there, for another "
            f"text and vocabulary, in which the same loss means a far better model."
        )
    ]


def _warnings(sizes: list[_Size], reasons: list[str]) -> list[str]:
    warnings = [f"{reason[0].upper()}{reason[1:]}." for reason in reasons]
    for size in sizes:
        warnings += [f"N = {si(size.n_params)}: {warning}." for warning in size.fit.warnings]
        warnings += _misfit(size)
        if size.at_edge:
            warnings.append(
                f"N = {si(size.n_params)}: in {size.at_edge} cells of batch and loss the best "
                f"learning rate is the edge of those tried."
            )
    tried = sum(size.rows["batch_tokens"].nunique() for size in sizes)
    if min(size.n_seeds for size in sizes) < LEAST_SEEDS and tried:
        warnings.append(f"Fewer than {LEAST_SEEDS} seeds a batch: there are no intervals.")
    return warnings


def _misfit(size: _Size) -> list[str]:
    """A warning where both ends of the batches lie on one side of the hyperbolas."""
    rest = pd.DataFrame({name: size.fit.residuals[name] for name in ("batch_tokens", "residual")})
    mean = rest.groupby("batch_tokens")["residual"].mean()
    first, *inner, last = mean
    if min(abs(first), abs(last)) < MISFIT or first * last < 0 or first * np.mean(inner) > 0:
        return []
    side = "more" if first > 0 else "fewer"
    return [
        (
            f"N = {si(size.n_params)}: the smallest and the largest batch take {abs(first):.1%} and "
            f"{abs(last):.1%} {side} updates than the hyperbola, those between the other way: B_crit "
            f"depends on which batches were run, which its interval counts."
        )
    ]


def _grid(sizes: list[_Size]) -> Grid:
    rows = []
    for size in sizes:
        for i, target in enumerate(size.targets):
            drawn, noise = size.drawn_b_crit, size.drawn_noise
            spread = seed_interval(drawn[:, i]) if drawn is not None else None
            noise_spread = seed_interval(noise[:, i]) if noise is not None else None
            rows.append(
                [
                    si(size.n_params),
                    f"{target:.3f}",
                    number(size.s_min[i]),
                    si(size.s_min[i] * size.b_crit[i]),
                    si(size.b_crit[i]),
                    f"{si(spread[0])} to {si(spread[1])}" if spread else "–",
                    si(size.noise[i]),
                    f"{si(noise_spread[0])} to {si(noise_spread[1])}" if noise_spread else "–",
                ]
            )
    return Grid(
        caption="Least updates and tokens to a loss, critical batch and gradient noise scale (both in "
        "tokens, with 95% intervals: over seeds, and for B_crit over which batches were run).",
        header=["N", "loss", "S_min", "E_min", "B_crit", "interval", "noise scale", "interval"],
        rows=rows,
        numeric=(0, 1, 2, 3, 4, 5, 6, 7),
    )


# --- figures ------------------------------------------------------------------------------------


def _hyperbolas(sizes: list[_Size]) -> Chart:
    colours = style.ordered_colours([t for size in sizes for t in size.targets])
    with style.canvas(7.0, 3.3) as figure:
        panels = figure.subplots(1, len(sizes), squeeze=False, sharey=True)[0]
        for axes, size in zip(panels, sizes, strict=True):
            for i, target in enumerate(size.targets):
                _hyperbola(axes, size, i, colours[target])
            axes.set_title(f"N = {si(size.n_params)}")
            axes.set_xlabel("S, updates to the loss")
            style.log_axis(axes.xaxis, "count")
        panels[0].set_ylabel("E, tokens to the loss")
        style.log_axis(panels[0].yaxis, "count")
        handles = [panels[0].plot([], [], "o-", color=c, ms=4)[0] for c in colours.values()]
        figure.legend(
            handles,
            [f"{loss:.2f}" for loss in colours],
            title="loss (nats per token)",
            title_fontsize=8,
            loc="outside upper center",
            ncols=len(colours),
            handlelength=1.2,
            columnspacing=1.4,
        )
        return style.render(
            figure,
            name="batch-hyperbolas",
            caption="Updates against tokens to the same loss, a point a run, from small batches "
            "(right) to large ones (left), and the fitted (S/S_min − 1)(E/E_min − 1) = 1 (Kaplan et "
            "al. 2020, Fig. 18). Crosses: the critical batch, twice the least of each, with its 95% "
            "interval over seeds and batches.",
            alt="Updates against tokens to a loss for "
            + listed([f"N = {si(size.n_params)}" for size in sizes]),
        )


def _hyperbola(axes: Any, size: _Size, i: int, colour: str) -> None:
    rows = size.rows[size.rows["loss"] == size.targets[i]]
    s_min, b_crit = size.s_min[i], size.b_crit[i]
    batches = np.geomspace(rows["batch_tokens"].min() / 1.5, rows["batch_tokens"].max() * 1.5, 80)
    steps = s_min * (1 + b_crit / batches)
    axes.plot(steps, steps * batches, color=colour, lw=1.2)
    axes.plot(
        rows["steps"],
        rows["steps"] * rows["batch_tokens"],
        "o",
        color=colour,
        mec=style.PAPER,
        mew=0.4,
        ms=4.2,
    )
    if size.drawn_b_crit is not None:
        # Along the diagonal of constant S_min E_min the batch is the ratio of the two.
        s, e = size.drawn_s_min[:, i], size.drawn_s_min[:, i] * size.drawn_b_crit[:, i]
        for x, y in (
            (seed_interval(2 * s), [2 * s_min * b_crit] * 2),
            ([2 * s_min] * 2, seed_interval(2 * e)),
        ):
            if x and y:
                axes.plot(x, y, color=style.INK, lw=0.8)
    axes.plot(2 * s_min, 2 * s_min * b_crit, "+", color=style.INK, ms=6, mew=1.1, zorder=4)


def _curve(sizes: list[_Size], line: _Line | None) -> Chart:
    looks = style.family_styles(["transformer", "other", "third", "fourth"])
    with style.canvas(3.5, 3.6) as figure:
        axes = figure.subplots()
        every = np.concatenate([size.targets for size in sizes])
        loss = np.geomspace(every.min() / 1.03, every.max() * 1.03, 60)
        if line is not None:
            axes.plot(
                loss, line.at(loss), color=style.INK, lw=1.3, label=f"$L^{{{-line.power:.1f}}}$"
            )
            band = line.band(loss)
            if band:
                axes.fill_between(loss, *band, color=style.INK, alpha=0.13, lw=0)
            middle = np.sqrt(every.min() * every.max())
            axes.plot(
                loss,
                line.at(middle) * (loss / middle) ** -PAPER_POWER,
                ":",
                color=style.MUTED,
                lw=1.5,
                label="Kaplan et al., slope $L^{-4.8}$",
            )
        for k, (size, look) in enumerate(zip(sizes, looks.values(), strict=False)):
            # Side by side, so that bars at one loss can be told apart.
            x = size.targets * 1.006 ** (2 * k - len(sizes) + 1)
            if size.drawn_b_crit is not None:
                for i in range(len(x)):
                    spread = seed_interval(size.drawn_b_crit[:, i])
                    if spread:
                        axes.plot([x[i]] * 2, spread, color=look["color"], lw=1.3)
            name = f"N = {si(size.n_params)}"
            style_of = {"color": look["color"], "ms": 5.5, "ls": "none", "marker": look["marker"]}
            axes.plot(
                x, size.b_crit, mec=style.PAPER, mew=0.5, label=f"$B_{{crit}}$, {name}", **style_of
            )
            if np.isfinite(size.noise).any():
                # Beside the filled point of its loss.
                x = x * 1.003
                if size.drawn_noise is not None:
                    spreads = [seed_interval(drawn) for drawn in size.drawn_noise.T]
                    for at, spread in zip(x, spreads, strict=True):
                        if spread:
                            axes.plot([at] * 2, spread, color=look["color"], lw=0.8)
                axes.plot(x, size.noise, mfc=style.PAPER, label=f"noise scale, {name}", **style_of)
        axes.set(xlabel="loss (nats per token), falling", ylabel="batch (tokens)")
        axes.set_xlim(loss[-1], loss[0])
        style.log_axis(axes.xaxis, "plain")
        axes.set_xlim(loss[-1], loss[0])
        style.log_axis(axes.yaxis, "count")
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, fontsize=7
        )
        return style.render(
            figure,
            name="critical-batch",
            caption="Critical batch against loss (filled, 95% intervals over seeds and "
            "over which batches were run) and the gradient noise scale at the same losses (open, 95% "
            "intervals over seeds). Line and band: power law through the filled "
            "points of all sizes. Dotted: the slope of Kaplan et al. 2020, Fig. 10, through its "
            "middle; the level is that of another text.",
            alt="Critical batch and gradient noise scale against loss.",
        )
