"""What shape costs at fixed size: Kaplan et al. 2020, Fig. 5.

Within a scan one ratio varies at about constant N. Every loss is moved to the scan's mean size along
L(N) and given as percent above the best of the scan. Runs of one seed see the same text in the same
order, which moves all shapes alike; the noise that counts is what is left when each seed's mean is
taken out. The cost of a range of shapes is a largest difference out of many, so its interval is
Tukey's, which holds for all differences at once.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import studentized_range
from scipy.stats import t as student

from lmscale import laws
from lmscale.laws import FitError, FitResult, TableError
from lmscale.report import caveats, style
from lmscale.report.section import Chart, Grid, Measure, Section
from lmscale.studies.cells import unfinished
from lmscale.studies.estimate import LEAST_SEEDS, few_seeds
from lmscale.studies.exponents import fit_power_of_cells
from lmscale.studies.fits import refused
from lmscale.studies.papers import points
from lmscale.studies.results import Results
from lmscale.wording import listed, number, plural, si, with_interval

__all__ = ["Scan", "analyse", "make_scan"]

NAME = "shape"
TITLE = "What shape costs at fixed size"
#: The published slope of L(N), where the runs do not give their own.
KAPLAN_ALPHA = laws.published("kaplan2020-nd").parameters["alpha_N"]
#: The factor in aspect ratio of the paper's claim, and the ranges of its other two.
ASPECT_RANGE = 40.0
RANGES = {"ff_ratio": (1.0, 4.0), "head_width": (16.0, 64.0)}

#: scan -> (axis label, in words).
PANELS = {
    "ff_ratio": ("feed-forward ratio d_ff / d_model", "the feed-forward ratio"),
    "aspect": ("aspect ratio d_model / n_layer", "the aspect ratio"),
    "head_width": ("head width d_model / n_head", "the head width"),
}


@dataclass(frozen=True)
class Scan:
    """One ratio varied at fixed size.

    Attributes:
      ratio: of every shape, ascending.
      increase: percent of loss above the best shape, at equal N.
      half: 95% half-width of a shape's mean in percent, what seeds share taken out; NaN for fewer
        than `LEAST_SEEDS` seeds.
      tukey: half-width of any difference of two shapes, all differences at once, in percent.
      moved: the largest correction to equal N, in percent.
    """

    panel: str
    series: str
    n_params: float
    names: tuple[str, ...]
    ratio: np.ndarray
    increase: np.ndarray
    half: float
    tukey: float
    seeds: int
    moved: float

    def cost(self, chosen: np.ndarray) -> tuple[float, tuple[float, float] | None]:
        """Percent between the worst and the best of the chosen shapes, with its interval."""
        value = float(np.ptp(self.increase[chosen]))
        if not math.isfinite(self.tukey):
            return value, None
        return value, (max(0.0, value - self.tukey), value + self.tukey)


@functools.cache
def _studentized(shapes: int, freedom: int) -> float:
    """Of the largest difference of so many means over the error of one, the 95% point."""
    return float(studentized_range.ppf(0.95, shapes, freedom))


def make_scan(
    panel: str,
    series: str,
    ratio: Sequence[float],
    n_params: Sequence[float],
    losses: np.ndarray,
    *,
    alpha: float,
    alpha_error: float = 0.0,
    names: Sequence[str] = (),
) -> Scan:
    """A scan of shapes moved to equal N.

    Args:
      ratio, n_params: of every shape.
      losses: [shape, seed], in nats; every seed has seen the same text with every shape.
      alpha, alpha_error: slope of L(N) and its standard error.
    """
    order = np.argsort(ratio)
    log_n = np.log(np.asarray(n_params, float))[order]
    losses = np.asarray(losses, float)[order]
    shift = log_n - log_n.mean()
    # In the logarithm, so that differences are shares of the loss.
    y = 100 * (np.log(losses) + alpha * shift[:, None])
    k, n = y.shape
    means = y.mean(axis=1)
    half = tukey = math.nan
    if n >= LEAST_SEEDS and k >= 2:
        rest = y - means[:, None] - y.mean(axis=0) + y.mean()
        freedom = (k - 1) * (n - 1)
        scatter = math.sqrt(float(np.sum(rest**2)) / freedom / n)
        slope = 100 * alpha_error * float(np.ptp(shift))
        half = float(student.ppf(0.975, freedom)) * scatter
        tukey = math.hypot(_studentized(k, freedom) * scatter, 1.96 * slope)
    return Scan(
        panel=panel,
        series=series,
        n_params=float(np.exp(log_n.mean())),
        names=tuple(np.asarray(names or [""] * k, object)[order]),
        ratio=np.asarray(ratio, float)[order],
        increase=100 * np.expm1((means - means.min()) / 100),
        half=half,
        tukey=float(tukey),
        seeds=n,
        moved=float(100 * alpha * np.abs(shift).max()),
    )


def _cheapest_range(scan: Scan, factor: float) -> np.ndarray | None:
    """Of the stretches of shapes that span `factor` or more, the one with the least cost."""
    best = None
    for first in range(len(scan.ratio)):
        last = np.flatnonzero(scan.ratio >= factor * scan.ratio[first] * (1 - 1e-9))
        if not len(last):
            break
        chosen = np.arange(first, last[0] + 1)
        if best is None or scan.cost(chosen)[0] < scan.cost(best)[0]:
            best = chosen
    return best


def _within(scan: Scan, low: float, high: float) -> np.ndarray | None:
    chosen = np.flatnonzero((scan.ratio >= low * 0.99) & (scan.ratio <= high * 1.01))
    return chosen if len(chosen) > 1 else None


def _chosen(scan: Scan) -> np.ndarray | None:
    """The shapes of a scan that the paper's claim is about."""
    if scan.panel == "aspect":
        return _cheapest_range(scan, ASPECT_RANGE)
    return _within(scan, *RANGES[scan.panel])


def _part(scan: Scan, chosen: np.ndarray) -> str:
    """Why the chosen shapes do not stand for the paper's whole range; empty where they do."""
    low, high = RANGES.get(scan.panel, (math.inf, 0.0))
    first, last = scan.ratio[chosen[0]], scan.ratio[chosen[-1]]
    if first <= low * 1.01 and last >= high * 0.99:
        return ""
    return f"the shapes reach from {si(first)} to {si(last)}, the claim from {low:g} to {high:g}"


def analyse(study: Results) -> Section:
    """Three scans of shape and what each costs."""
    usable = study.usable
    if not len(usable) or "scans" not in usable:
        return Section(name=NAME, title=TITLE, finding="No scan of shapes has ended well yet.")
    fit, failure = _slope(usable)
    alpha = KAPLAN_ALPHA if fit is None else fit.parameters["alpha_N"]
    # A slope without an interval may be anything from none to twice its value.
    low, high = fit.intervals.get("alpha_N", (0, 2 * alpha)) if fit else (0, 2 * alpha)
    scans, notes = _scans(usable, alpha, (high - low) / 2 / 1.96)
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(scans),
        conclusive=any(_chosen(scan) is not None for scan in scans),
        details=_details(scans, fit, alpha),
        charts=[_chart(scans)] if scans else [],
        grids=[_grid(scans)] if scans else [],
        fits={"standard shapes/kaplan": fit or refused("power", failure)},
        measures={
            # What depth costs changes as training goes on; one depth's other ratios need no such care.
            panel: _measure(panel, scans, unfinished(usable) if panel == "aspect" else "")
            for panel in PANELS
        },
        warnings=[*_warnings(study, scans, fit, failure), *notes],
    )


def _slope(usable: pd.DataFrame) -> tuple[FitResult | None, str]:
    """L(N) of the runs of standard shape, its interval from how the sizes stray from the line."""
    runs = usable[usable["scans"].str.contains("standard:", regex=False)]
    sizes = runs["params_kaplan"].nunique()
    if sizes < 2:
        return None, f"{plural(sizes, 'size')} of standard shape, and a slope needs 2"
    rows = pd.DataFrame(
        {"params": runs["params_kaplan"], "loss": runs["loss"], "seed": runs["seed"]}
    )
    try:
        return fit_power_of_cells(rows, "params"), ""
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        return None, str(error)


def _scans(usable: pd.DataFrame, alpha: float, error: float) -> tuple[list[Scan], list[str]]:
    members: dict[tuple[str, str], list[int]] = {}
    for index, text in usable["scans"].items():
        for item in str(text).split("; "):
            panel, series = item.split(":", 1)
            if panel in PANELS:
                members.setdefault((panel, series), []).append(index)
    scans, notes = [], []
    for panel in PANELS:
        for (name, series), rows in members.items():
            if name != panel:
                continue
            runs = usable.loc[rows]
            table = runs.assign(
                ratio=_ratio(runs, panel),
                shape=[
                    f"{r.n_layer} × {r.width}, d_ff {r.d_ff}, {plural(r.n_head, 'head')}"
                    for r in runs.itertuples()
                ],
            ).pivot_table(index=["ratio", "params_kaplan", "shape"], columns="seed", values="loss")
            # Differences are taken within a seed, so every shape must have it.
            whole = table.dropna(axis=1)
            if not whole.shape[1]:
                notes.append(f"No seed has ended well for every shape of {PANELS[panel][1]}.")
                continue
            if whole.shape[1] < table.shape[1]:
                lost = table.shape[1] - whole.shape[1]
                notes.append(
                    f"{plural(lost, 'seed')} of {PANELS[panel][1]} left out, for not ending well "
                    f"with every shape."
                )
            if len(whole) > 1:
                ratios, sizes, names = zip(*whole.index, strict=True)
                scans.append(
                    make_scan(
                        panel,
                        series,
                        ratios,
                        sizes,
                        whole.to_numpy(),
                        alpha=alpha,
                        alpha_error=error,
                        names=names,
                    )
                )
    return scans, notes


def _ratio(runs: pd.DataFrame, panel: str) -> pd.Series:
    if panel == "aspect":
        return runs["width"] / runs["n_layer"]
    if panel == "ff_ratio":
        return (runs["d_ff"] / runs["width"]).round(3)
    return runs["width"] / runs["n_head"]


# --- words --------------------------------------------------------------------------------------


def _worst(panel: str, scans: list[Scan]) -> tuple[Scan, np.ndarray] | None:
    """The scan of the largest cost speaks for its panel."""
    own = [(scan, _chosen(scan)) for scan in scans if scan.panel == panel]
    own = [(scan, chosen) for scan, chosen in own if chosen is not None]
    return max(own, key=lambda pair: pair[0].cost(pair[1])[0], default=None)


def _finding(scans: list[Scan]) -> str:
    parts = []
    for panel, (_, words) in PANELS.items():
        worst = _worst(panel, scans)
        if worst is None:
            continue
        scan, chosen = worst
        low, high = si(scan.ratio[chosen[0]], 2), si(scan.ratio[chosen[-1]], 2)
        cost = with_interval(*scan.cost(chosen), "95% interval")
        amount, bounds = cost.split(" (", 1)
        ratio = words.removeprefix("the ")
        article = "an" if ratio[0] == "a" else "a"
        parts.append(f"{amount}% for {article} {ratio} of {low} to {high} ({bounds}")
    if not parts:
        return "No scan covers the range of shapes that the paper's claims are about."
    sizes = sorted({scan.n_params for scan in scans})
    at = f"N = {si(sizes[0], 2)}" + (
        f" to {si(sizes[-1], 2)}" if sizes[-1] > 1.2 * sizes[0] else ""
    )
    return f"At {at} shape changes the loss by at most {listed(parts)}."


def _details(scans: list[Scan], fit: FitResult | None, alpha: float) -> list[str]:
    moved = max((scan.moved for scan in scans), default=0.0)
    source = "published by Kaplan et al. 2020"
    if fit is not None:
        slope = with_interval(alpha, fit.intervals.get("alpha_N"), "95% interval")
        low, high = fit.ranges["params"]
        source = (
            f"of these runs' standard shapes of {si(low)} to {si(high)} parameters, α = {slope}"
        )
    text = (
        f"Shapes of a scan do not meet in size exactly, so each loss is moved to their mean size "
        f"along L ∝ N^−α {source}; the largest move is {moved:.2f}% of the loss."
    )
    paper = points("kaplan2020_fig5")
    worst = {
        panel: paper[(paper["panel"] == panel) & paper["ratio"].between(*bounds)]
        .groupby("series")["increase_percent"]
        .agg(np.ptp)
        .max()
        for panel, bounds in RANGES.items()
    }
    noise = (
        "Of a largest difference noise makes more, not less, so a small one is on the safe side; its "
        "interval (Tukey's) holds for all differences of a scan at once."
    )
    theirs = (
        f"In Kaplan et al. 2020, Fig. 5, a ratio d_ff / d_model of 1 to 4 costs "
        f"{worst['ff_ratio']:.1f}% of the loss at most, heads 16 to 64 wide "
        f"{worst['head_width']:.1f}%, and at 1.5B parameters 6 layers of 4288 end 2.8% above 48 of "
        f"1600."
    )
    return [text, noise, theirs]


def _measure(panel: str, scans: list[Scan], young: str) -> Measure:
    about = {
        "aspect": f"percent of loss over a {ASPECT_RANGE:g}-fold range of d_model / n_layer",
        "ff_ratio": "percent of loss over d_ff / d_model from 1 to 4",
        "head_width": "percent of loss over heads 16 to 64 wide",
    }[panel]
    worst = _worst(panel, scans)
    if worst is None:
        why = "the runs that ended well do not span that range"
        return Measure(what=about, value=None, undecided_because=why)
    scan, chosen = worst
    value, interval = scan.cost(chosen)
    what = (
        f"largest difference in {about}, {plural(len(chosen), 'shape')} of "
        f"{si(scan.n_params, 2)} parameters, {plural(scan.seeds, 'seed')} each"
    )
    why = few_seeds(scan.seeds) or _part(scan, chosen) or young
    return Measure(what=what, value=value, interval=interval, undecided_because=why)


def _warnings(study: Results, scans: list[Scan], fit: FitResult | None, failure: str) -> list[str]:
    warnings = []
    if fit is None:
        warnings.append(
            f"No slope of L(N) of their own ({failure}), so losses are moved to equal N along the "
            f"published α = {KAPLAN_ALPHA:g}."
        )
    if any(scan.seeds < LEAST_SEEDS for scan in scans):
        warnings.append(
            f"Fewer than {LEAST_SEEDS} seeds: what differs between shapes cannot be told from noise."
        )
    if any(scan.panel == "aspect" and "1 × " in scan.names[-1][:4] for scan in scans):
        warnings.append("The scan over aspect ratio ends in a single layer; the paper's has two.")
    return [*warnings, *caveats.lost_runs(study)]


def _grid(scans: list[Scan]) -> Grid:
    rows = [
        [
            PANELS[scan.panel][1].removeprefix("the "),
            scan.series or si(scan.n_params, 2),
            scan.names[i],
            number(scan.ratio[i]),
            f"{scan.increase[i]:.2f}",
            f"{scan.half:.2f}" if math.isfinite(scan.half) else "–",
        ]
        for scan in scans
        for i in range(len(scan.ratio))
    ]
    return Grid(
        caption="Loss above the best shape of each scan, at equal N; ± is the 95% half-width of a "
        "shape's mean, with what seeds share taken out.",
        header=["scan", "series", "layers × width", "ratio", "increase (%)", "±"],
        rows=rows,
        numeric=(3, 4, 5),
    )


# --- figure -------------------------------------------------------------------------------------


def _chart(scans: list[Scan]) -> Chart:
    paper = points("kaplan2020_fig5")
    shown = [panel for panel in PANELS if any(scan.panel == panel for scan in scans)]
    with style.canvas(7.2, 3.3) as figure:
        row = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        top = max(float((s.increase + np.nan_to_num(s.half)).max()) for s in scans)
        for axes, panel in zip(row, shown, strict=True):
            theirs = paper[paper["panel"] == panel]
            for series, part in theirs.groupby("series", sort=False):
                axes.plot(
                    part["ratio"], part["increase_percent"], "x-", color=style.MUTED, lw=0.8,
                    ms=4, alpha=0.75, zorder=1,
                )  # fmt: skip
            own = [scan for scan in scans if scan.panel == panel]
            looks = style.family_styles([scan.series or "transformer" for scan in own])
            for scan, look in zip(own, looks.values(), strict=True):
                error = scan.half if math.isfinite(scan.half) else None
                axes.errorbar(
                    scan.ratio, scan.increase, yerr=error, color=look["color"],
                    marker=look["marker"], lw=1.3, elinewidth=1.2, zorder=3,
                    label=(scan.series or f"N = {si(scan.n_params, 2)}"),
                )  # fmt: skip
            axes.plot([], [], "x-", color=style.MUTED, lw=0.8, ms=4, label="Kaplan et al.")
            axes.set_xlabel(PANELS[panel][0])
            style.log_axis(axes.xaxis, "count")
            axes.legend(loc="upper center", fontsize=7.5)
        # The paper's extremes reach 8%; what these runs show sets the scale beyond that.
        row[0].set_ylim(
            min(-0.3, -1.05 * max(np.nan_to_num(s.half) for s in scans)), max(9.5, 1.3 * top)
        )
        row[0].set_ylabel("loss above the best shape (%)")
        seeds = min(scan.seeds for scan in scans)
        bars = (
            "bars are 95% intervals of a shape's mean, with what seeds share taken out"
            if seeds >= LEAST_SEEDS
            else "too few seeds for bars"
        )
        return style.render(
            figure,
            name=NAME,
            caption=f"Loss above the best shape of each scan, moved to equal N ({bars}). Grey: "
            "Kaplan et al. 2020, Fig. 5, of 25M to 1.5B parameters.",
            alt="Percent increase of loss over "
            + listed([PANELS[panel][1] for panel in shown])
            + ", beside the points of Kaplan et al. 2020.",
        )
