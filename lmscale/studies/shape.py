"""What shape costs at fixed size (Kaplan et al. 2020, Fig. 5).

Within a scan one ratio varies at about constant N. Every loss is moved to the scan's mean size along
L(N) and given as percent above the best of the scan. The noise is that of `lmscale.studies.noise`. The
cost of a range of shapes is the largest of many differences, so its interval is Tukey's, which is valid
for all differences together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from lmscale import laws
from lmscale.laws import FitResult
from lmscale.studies.cells import paired, unfinished
from lmscale.studies.estimate import LEAST_SEEDS, Estimate, few_seeds
from lmscale.studies.exponents import fit_power_of_cells
from lmscale.studies.fits import attempt
from lmscale.studies.noise import additive_noise
from lmscale.studies.papers import points
from lmscale.studies.registry import register
from lmscale.studies.results import Results
from lmscale.wording import plural, si

__all__ = ["KAPLAN_ALPHA", "PANELS", "Scan", "Shape", "kaplan_costs", "make_scan", "study"]

#: The published slope of L(N), for runs that do not give their own.
KAPLAN_ALPHA = laws.published("kaplan2020-nd").parameters["alpha_N"]
#: The ratios that are varied, each a scan of its own.
PANELS = ("ff_ratio", "aspect", "head_width")
#: The factor in aspect ratio of the paper's claim, and the ranges of its other two.
ASPECT_RANGE = 40.0
RANGES = {"ff_ratio": (1.0, 4.0), "head_width": (16.0, 64.0)}


@dataclass(frozen=True)
class Scan:
    """One ratio varied at fixed size.

    Attributes:
      panel: which ratio, one of `PANELS`; `series` tells several scans of one ratio apart.
      names: the name of every shape, such as "2 × 64, d_ff 256, 4 heads".
      ratio: the ratio of every shape, ascending.
      increase: percent of loss above the best shape, at equal N.
      half: 95% half-width of a shape's mean in percent, without the part that seeds share across
        shapes; NaN for fewer than `LEAST_SEEDS` seeds.
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

    @property
    def chosen(self) -> np.ndarray | None:
        """The shapes that the paper's claim is about; None where they do not span its range."""
        if self.panel == "aspect":
            return self._cheapest_range(ASPECT_RANGE)
        low, high = RANGES[self.panel]
        chosen = np.flatnonzero((self.ratio >= low * 0.99) & (self.ratio <= high * 1.01))
        return chosen if len(chosen) > 1 else None

    def _cheapest_range(self, factor: float) -> np.ndarray | None:
        """Of all ranges of consecutive shapes that span at least `factor`, the one of least cost."""
        found = []
        for first, ratio in enumerate(self.ratio):
            last = np.flatnonzero(self.ratio >= factor * ratio * (1 - 1e-9))
            found += [np.arange(first, last[0] + 1)] if len(last) else []
        return min(found, key=lambda chosen: self.cost(chosen)[0], default=None)


@dataclass(frozen=True)
class Shape:
    """What `study` finds.

    Attributes:
      scans: those of every panel.
      fit: L(N) of the runs of standard shape, along which losses are moved to equal N.
      alpha: its slope, or the published one.
      seeds_lost: (panel, seeds that some shape lacks, seeds that all have), where any is lacking.
      estimates: "ff_ratio", "aspect" and "head_width": the largest cost in percent of the loss over
        the range of the paper's claim. `n` counts its shapes, `at` holds N and the range of the ratio.
    """

    scans: tuple[Scan, ...]
    fit: FitResult
    alpha: float
    seeds_lost: tuple[tuple[str, int, int], ...]
    estimates: dict[str, Estimate]

    @property
    def fits(self) -> dict[str, FitResult]:
        return {"standard shapes/kaplan": self.fit}


@register("shape")
def study(results: Results) -> Shape:
    """Scans of d_ff / d_model, d_model / n_layer and d_model / n_head (Kaplan et al. 2020, Fig. 5).

    found = shape.study(Results.read("results/shape"))
    print(found.estimates["aspect"], found.scans[0].increase)
    """
    usable = results.usable
    runs = usable if "scans" in usable else usable.head(0)
    fit = _slope(runs)
    alpha = fit.parameters.get("alpha_N", KAPLAN_ALPHA)
    # A slope without an interval may be anything from none to twice its value.
    low, high = fit.intervals.get("alpha_N", (0, 2 * alpha))
    scans, seeds_lost = _scans(runs, alpha, (high - low) / 2 / 1.96)
    # The cost of depth changes during training; the other two ratios are varied at one depth.
    young = {"aspect": unfinished(runs)}
    estimates = {panel: _estimate(panel, scans, young.get(panel, "")) for panel in PANELS}
    return Shape(tuple(scans), fit, alpha, tuple(seeds_lost), estimates)


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
    shapes, seeds = y.shape
    means = y.mean(axis=1)
    half = tukey = math.nan
    if seeds >= LEAST_SEEDS and shapes >= 2:
        noise = additive_noise(y)
        slope = 100 * alpha_error * float(np.ptp(shift))
        half = noise.half_of_mean
        tukey = math.hypot(noise.half_of_largest(shapes), 1.96 * slope)
    return Scan(
        panel=panel,
        series=series,
        n_params=float(np.exp(log_n.mean())),
        names=tuple(np.asarray(names or [""] * shapes, object)[order]),
        ratio=np.asarray(ratio, float)[order],
        increase=100 * np.expm1((means - means.min()) / 100),
        half=half,
        tukey=float(tukey),
        seeds=seeds,
        moved=float(100 * alpha * np.abs(shift).max()),
    )


def kaplan_costs() -> dict[str, float]:
    """The largest cost of a range of shapes in Kaplan et al. 2020, Fig. 5, in percent of the loss."""
    paper = points("kaplan2020_fig5")
    return {
        panel: float(
            paper[(paper["panel"] == panel) & paper["ratio"].between(*bounds)]
            .groupby("series")["increase_percent"]
            .agg(np.ptp)
            .max()
        )
        for panel, bounds in RANGES.items()
    }


def _slope(runs: pd.DataFrame) -> FitResult:
    """L(N) of the runs of standard shape; its interval comes from the scatter of the sizes about the line."""
    if len(runs):
        runs = runs[runs["scans"].str.contains("standard:", regex=False)]
    sizes = runs["params_kaplan"].nunique() if len(runs) else 0
    needs = "" if sizes >= 2 else f"{plural(sizes, 'size')} of standard shape, and a slope needs 2"

    def fit() -> FitResult:
        rows = runs[["params_kaplan", "loss", "seed"]].rename(columns={"params_kaplan": "params"})
        return fit_power_of_cells(rows, "params")

    return attempt("power", fit, needs=needs)


def _scans(
    runs: pd.DataFrame, alpha: float, error: float
) -> tuple[list[Scan], list[tuple[str, int, int]]]:
    members: dict[tuple[str, str], list[int]] = {}
    for row, text in enumerate(runs["scans"] if len(runs) else ()):
        for item in str(text).split("; "):
            panel, series = item.split(":", 1)
            if panel in PANELS:
                members.setdefault((panel, series), []).append(row)
    scans, lost = [], []
    for (panel, series), rows in sorted(members.items(), key=lambda item: PANELS.index(item[0][0])):
        own = _with_shapes(runs.iloc[rows], panel)
        shapes = paired(own, ["ratio", "params_kaplan", "shape"])
        seeds = len(shapes[0].seeds) if shapes else 0
        if seeds < own["seed"].nunique():
            lost.append((panel, own["seed"].nunique() - seeds, seeds))
        if len(shapes) > 1:
            scan = make_scan(
                panel,
                series,
                [shape["ratio"] for shape in shapes],
                [shape.n_params for shape in shapes],
                np.array([shape.losses for shape in shapes]),
                alpha=alpha,
                alpha_error=error,
                names=[shape["shape"] for shape in shapes],
            )
            scans.append(scan)
    return scans, lost


def _with_shapes(runs: pd.DataFrame, panel: str) -> pd.DataFrame:
    """The runs with their ratio and the name of their shape."""
    if panel == "aspect":
        ratio = runs["width"] / runs["n_layer"]
    elif panel == "ff_ratio":
        ratio = (runs["d_ff"] / runs["width"]).round(3)
    else:
        ratio = runs["width"] / runs["n_head"]
    columns = (runs[name].tolist() for name in ("n_layer", "width", "d_ff", "n_head"))
    names = [
        f"{n_layer} × {width}, d_ff {d_ff}, {plural(n_head, 'head')}"
        for n_layer, width, d_ff, n_head in zip(*columns, strict=True)
    ]
    return runs.assign(ratio=ratio, shape=names)


def _estimate(panel: str, scans: Sequence[Scan], young: str) -> Estimate:
    """The cost of the panel's worst scan."""
    all_of_panel = ((scan, scan.chosen) for scan in scans if scan.panel == panel)
    own = [(scan, chosen) for scan, chosen in all_of_panel if chosen is not None]
    if not own:
        why = "the runs that ended well do not span that range"
        return Estimate(name=panel, undecided_because=why)
    scan, chosen = max(own, key=lambda pair: pair[0].cost(pair[1])[0])
    value, interval = scan.cost(chosen)
    first, last = float(scan.ratio[chosen[0]]), float(scan.ratio[chosen[-1]])
    low, high = RANGES.get(panel, (math.inf, 0.0))
    part = ""
    if first > low * 1.01 or last < high * 0.99:
        part = (
            f"the shapes reach from {si(first)} to {si(last)}, the claim from {low:g} to {high:g}"
        )
    return Estimate(
        name=panel,
        value=value,
        interval=interval,
        undecided_because=few_seeds(scan.seeds) or part or young,
        at=(scan.n_params, first, last),
        n=len(chosen),
        seeds=scan.seeds,
    )
