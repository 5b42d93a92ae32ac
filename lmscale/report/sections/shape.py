"""What shape costs at fixed size: three scans beside those of Kaplan et al. 2020, Fig. 5."""

from __future__ import annotations

import math

import numpy as np

from lmscale.report import caveats, style
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, Measure, Section
from lmscale.report.tables import shown, table
from lmscale.studies.estimate import LEAST_SEEDS, Estimate
from lmscale.studies.papers import points
from lmscale.studies.results import Results
from lmscale.studies.shape import ASPECT_RANGE, KAPLAN_ALPHA, PANELS, Scan, Shape, kaplan_costs
from lmscale.wording import listed, number, plural, si

NAME = "shape"
TITLE = "What shape costs at fixed size"
#: scan -> (label of the axis, in words, what its estimate is a percentage over).
WORDS = {
    "ff_ratio": (
        "feed-forward ratio d_ff / d_model",
        "feed-forward ratio",
        "d_ff / d_model from 1 to 4",
    ),
    "aspect": (
        "aspect ratio d_model / n_layer",
        "aspect ratio",
        f"a {ASPECT_RANGE:g}-fold range of d_model / n_layer",
    ),
    "head_width": ("head width d_model / n_head", "head width", "heads 16 to 64 wide"),
}


@register(NAME)
def section(found: Shape, results: Results) -> Section:
    measures = {name: Measure.of(_said(one), one) for name, one in found.estimates.items()}
    if not found.scans and not found.seeds_lost:
        finding = "No scan of shapes has ended well yet."
        return Section(name=NAME, title=TITLE, finding=finding, fits=found.fits, measures=measures)
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        conclusive=any(one.is_known for one in found.estimates.values()),
        details=_details(found),
        charts=[_chart(found.scans)] if found.scans else [],
        grids=_grid(found.scans),
        fits=found.fits,
        measures=measures,
        warnings=_warnings(found, results),
    )


def _finding(found: Shape) -> str:
    parts = []
    for panel in PANELS:
        cost = found.estimates[panel]
        if cost.is_known:
            (_, low, high), ratio = cost.at, WORDS[panel][1]
            amount, bounds = shown(cost, "95% interval").split(" (", 1)
            article = "an" if ratio[0] == "a" else "a"
            span = f"{si(low, 2)} to {si(high, 2)}"
            parts.append(f"{amount}% for {article} {ratio} of {span} ({bounds}")
    if not parts:
        return "No scan covers the range of shapes that the paper's claims are about."
    sizes = sorted({scan.n_params for scan in found.scans})
    to = f" to {si(sizes[-1], 2)}" if sizes[-1] > 1.2 * sizes[0] else ""
    return f"At N = {si(sizes[0], 2)}{to} shape changes the loss by at most {listed(parts)}."


def _details(found: Shape) -> list[str]:
    source = "published by Kaplan et al. 2020"
    if not found.fit.failure:
        slope = shown(Estimate.of_parameter(found.fit, "alpha_N"), "95% interval")
        low, high = found.fit.ranges["params"]
        sizes = f"{si(low)} to {si(high)} parameters"
        source = f"of these runs' standard shapes of {sizes}, α = {slope}"
    moved = max((scan.moved for scan in found.scans), default=0.0)
    theirs = kaplan_costs()
    return [
        f"Shapes of a scan differ a little in size, so each loss is moved to their mean size along "
        f"L ∝ N^−α {source}; the largest move is {moved:.2f}% of the loss.",
        "Noise makes a largest difference larger, not smaller, so a small one is on the safe side. Its "
        "interval (Tukey's) holds for all differences of a scan at once.",
        f"In Kaplan et al. 2020, Fig. 5, a ratio d_ff / d_model of 1 to 4 costs "
        f"{theirs['ff_ratio']:.1f}% of the loss at most, heads 16 to 64 wide "
        f"{theirs['head_width']:.1f}%, and at 1.5B parameters 6 layers of 4288 end 2.8% above 48 of "
        f"1600.",
    ]


def _said(cost: Estimate) -> str:
    about = f"percent of loss over {WORDS[cost.name][2]}"
    if not cost.is_known:
        return about
    shapes, size = plural(cost.n, "shape"), si(cost.at[0], 2)
    seeds = plural(cost.seeds, "seed")
    return f"largest difference in {about}, {shapes} of {size} parameters, {seeds} each"


def _warnings(found: Shape, results: Results) -> list[str]:
    warnings = []
    if found.fit.failure:
        warnings.append(
            f"No slope of L(N) of their own ({found.fit.failure}), so losses are moved to equal N "
            f"along the published α = {KAPLAN_ALPHA:g}."
        )
    if any(scan.seeds < LEAST_SEEDS for scan in found.scans):
        warnings.append(
            f"Fewer than {LEAST_SEEDS} seeds: what differs between shapes cannot be told from noise."
        )
    if any(scan.panel == "aspect" and scan.names[-1].startswith("1 × ") for scan in found.scans):
        warnings.append("The scan over aspect ratio ends in a single layer; the paper's has two.")
    warnings += caveats.lost_runs(results)
    for panel, lost, left in found.seeds_lost:
        ratio = f"the {WORDS[panel][1]}"
        if left:
            seeds = f"{plural(lost, 'seed')} of {ratio} left out"
            warnings.append(f"{seeds}, for not ending well with every shape.")
        else:
            warnings.append(f"No seed has ended well for every shape of {ratio}.")
    return warnings


def _grid(scans: tuple[Scan, ...]) -> list[Grid]:
    return table(
        "Loss above the best shape of each scan, at equal N; ± is the 95% half-width of a shape's "
        "mean, with what seeds share taken out.",
        [(scan, i) for scan in scans for i in range(len(scan.ratio))],
        {
            "scan": lambda row: WORDS[row[0].panel][1],
            "series": lambda row: row[0].series or si(row[0].n_params, 2),
            "layers × width": lambda row: row[0].names[row[1]],
            "ratio": lambda row: number(row[0].ratio[row[1]]),
            "increase (%)": lambda row: f"{row[0].increase[row[1]]:.2f}",
            "±": lambda row: f"{row[0].half:.2f}" if math.isfinite(row[0].half) else "–",
        },
        text=("scan", "series", "layers × width"),
    )


# --- figure -------------------------------------------------------------------------------------


def _chart(scans: tuple[Scan, ...]) -> Chart:
    paper = points("kaplan2020_fig5")
    panels = [panel for panel in PANELS if any(scan.panel == panel for scan in scans)]
    theirs_look = {"color": style.MUTED, "lw": 0.8, "ms": 4}
    with style.canvas(7.2, 3.3) as figure:
        row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, panel in zip(row, panels, strict=True):
            for _, part in paper[paper["panel"] == panel].groupby("series", sort=False):
                y = part["increase_percent"]
                axes.plot(part["ratio"], y, "x-", **theirs_look, alpha=0.75, zorder=1)
            own = [scan for scan in scans if scan.panel == panel]
            looks = style.family_styles([scan.series or "transformer" for scan in own])
            for scan, look in zip(own, looks.values(), strict=True):
                axes.errorbar(
                    scan.ratio,
                    scan.increase,
                    yerr=scan.half if math.isfinite(scan.half) else None,
                    **look,
                    lw=1.3,
                    elinewidth=1.2,
                    zorder=3,
                    label=scan.series or f"N = {si(scan.n_params, 2)}",
                )
            axes.plot([], [], "x-", **theirs_look, label="Kaplan et al.")
            axes.set_xlabel(WORDS[panel][0])
            style.log_axis(axes.xaxis, "count")
            axes.legend(loc="upper center", fontsize=7.5)
        # The paper's extremes reach 8%; beyond that these runs set the scale.
        halves = [np.nan_to_num(scan.half) for scan in scans]
        top = max(float(s.increase.max() + half) for s, half in zip(scans, halves, strict=True))
        row[0].set_ylim(min(-0.3, -1.05 * max(halves)), max(9.5, 1.3 * top))
        row[0].set_ylabel("loss above the best shape (%)")
        bars = "bars are 95% intervals of a shape's mean, with what seeds share taken out"
        if min(scan.seeds for scan in scans) < LEAST_SEEDS:
            bars = "too few seeds for bars"
        return style.render(
            figure,
            name=NAME,
            caption=f"Loss above the best shape of each scan, moved to equal N ({bars}). Grey: "
            "Kaplan et al. 2020, Fig. 5, of 25M to 1.5B parameters.",
            alt="Percent increase of loss over "
            + listed([f"the {WORDS[panel][1]}" for panel in panels])
            + ", beside the points of Kaplan et al. 2020.",
        )
