"""Training curves of all runs: loss against tokens and against FLOPs."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmscale.report import caveats, style
from lmscale.report.figures import size_legend
from lmscale.report.notes import annotate, run_note
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, Section
from lmscale.report.tables import table
from lmscale.studies.curves import Curves, TrainingCurve
from lmscale.studies.results import Results
from lmscale.wording import family_name, listed, plural, power_of_ten, si

NAME = "curves"
TITLE = "Training curves"
#: Points of a drawn curve, evenly spaced in the logarithm: fewer where there are many curves.
POINTS, FEWEST_POINTS, ALL_POINTS = 90, 30, 12_000
#: Reasons of one status that are named.
NAMED_REASONS = 3


@register(NAME)
def section(found: Curves, results: Results) -> Section:
    if not found.n_runs:
        return Section(name=NAME, title=TITLE, finding="No runs are declared.")
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        charts=[_chart(found)] if found.families else [],
        grids=_grid(results),
        warnings=[
            *[_lost(status, reasons) for status, reasons in found.reasons.items()],
            *caveats.search_edges(results),
        ],
    )


def _word(status: str) -> str:
    return status.replace("_", " ").replace("out of memory", "ran out of memory")


def _finding(found: Curves) -> str:
    total, done = plural(found.n_runs, "run"), found.statuses.get("done", 0)
    if done == found.n_runs:
        return f"All {total} trained to the end, none diverged."
    rest = [f"{n} {_word(status)}" for status, n in found.statuses.items() if status != "done"]
    return f"{done} of {total} trained to the end; {listed(rest)}."


def _lost(status: str, reasons: dict[str, int]) -> str:
    """How many runs ended so, and the commonest reasons."""
    n, more = sum(reasons.values()), len(reasons) - NAMED_REASONS
    named = [*reasons.items()][:NAMED_REASONS]
    text = "; ".join(f"{times}× {reason}" if n > 1 else reason for reason, times in named)
    rest = f"; and {more} other reasons" if more > 0 else ""
    return f"{plural(n, 'run')} {_word(status)}: {text}{rest}."


def _grid(results: Results) -> list[Grid]:
    def span(column: str) -> Any:
        return lambda runs: f"{si(runs[column].min())} to {si(runs[column].max())}"

    def lowest(runs: Any) -> str:
        losses = runs.loc[runs["status"] == "done", "loss"]
        return f"{losses.min():.3f}" if len(losses) else "–"

    return table(
        "What was trained.",
        [results.table[results.table["family"] == family] for family in results.families],
        {
            "family": lambda runs: family_name(runs["family"].iloc[0]),
            "runs": lambda runs: str(len(runs)),
            "done": lambda runs: str((runs["status"] == "done").sum()),
            "N": span("params_kaplan"),
            "tokens": span("tokens"),
            "exact FLOPs, all runs": lambda runs: power_of_ten(float(runs["flops_exact"].sum()), 3),
            "lowest loss": lowest,
        },
        text=("family",),
    )


def _chart(found: Curves) -> Chart:
    curves = [curve for family in found.families.values() for curve in family]
    colours = style.ordered_colours([curve.n_params for curve in curves])
    points = max(FEWEST_POINTS, min(POINTS, ALL_POINTS // len(curves)))
    with style.canvas(10.2, 0.9 + 2.7 * len(found.families)) as figure:
        panels = figure.subplots(len(found.families), 2, squeeze=False, sharex="col", sharey=True)
        for row, (family, own) in zip(panels, found.families.items(), strict=True):
            for axes, x in zip(row, ("tokens", "flops"), strict=True):
                for curve in own:
                    _draw(axes, curve, x, colours[curve.n_params], points)
                style.log_axis(axes.xaxis, "count" if x == "tokens" else "power")
                style.log_axis(axes.yaxis, "plain")
            row[0].set_ylabel("training loss (nats per token)")
            row[0].set_title(family_name(family))
        panels[-1, 0].set_xlabel("tokens D")
        panels[-1, 1].set_xlabel("training compute C (exact FLOPs)")
        size_legend(figure, colours)
        diverged = sum(curve.status == "diverged" for curve in curves)
        caption = (
            "Training loss of every run, averaged between two records, one colour a size; runs at a "
            "learning rate that was not the best of their cell are faint."
        )
        if any(curve.is_lost for curve in curves):
            caption += " Dashed: runs that did not end well."
        if diverged:
            caption += f" Red crosses mark where {plural(diverged, 'run')} diverged."
        names = listed([family_name(family) for family in found.families])
        alt = f"Training curves of {len(curves)} runs of {names}; {diverged} diverged."
        return style.render(figure, name=NAME, caption=caption, alt=alt)


def _draw(axes: Any, curve: TrainingCurve, x: str, colour: str, points: int) -> None:
    faint = curve.status == "done" and not curve.is_best_rate
    place, kept = getattr(curve, x), _thinned(curve.steps, points)
    look = {"lw": 0.9, "alpha": 0.3} if faint else {"lw": 1.2, "alpha": 0.95}
    dashes = (0, (3, 1.5)) if curve.is_lost else "-"
    line = axes.plot(place[kept], curve.losses[kept], color=colour, ls=dashes, **look)[0]
    annotate(line, [run_note({**curve.columns, "loss": curve.losses[-1]})])
    if curve.status == "diverged":
        axes.plot(place[-1], curve.losses[-1], "x", color=style.ALARM, ms=7, mew=1.8, zorder=5)


def _thinned(steps: np.ndarray, points: int) -> list[int]:
    """Which records are drawn: as many as that, evenly spaced in the logarithm, and the last."""
    if len(steps) <= points:
        return list(range(len(steps)))
    wanted = np.geomspace(steps[0], steps[-1], points)
    return sorted({int(np.argmin(np.abs(steps - w))) for w in wanted} | {len(steps) - 1})
