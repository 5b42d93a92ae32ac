"""Training curves of all runs: loss against tokens and against FLOPs."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lmscale.report import caveats, style
from lmscale.report.figures import size_legend
from lmscale.report.section import Chart, Grid, Section
from lmscale.studies.results import LOST, Results
from lmscale.wording import family_name, listed, plural, power_of_ten, si

__all__ = ["analyse"]

NAME = "curves"
TITLE = "Training curves"
#: Points of a drawn curve, evenly spaced in the logarithm: fewer where there are many curves.
POINTS, FEWEST_POINTS, ALL_POINTS = 90, 30, 12_000


def analyse(study: Results) -> Section:
    """How every run went, diverged ones marked."""
    table = study.table
    if not len(table):
        return Section(name=NAME, title=TITLE, finding="No runs are declared.")
    counts = table["status"].value_counts()
    warnings = []
    for status, runs in study.lost.groupby("status"):
        reasons = runs["reason"].fillna("no reason given").value_counts()
        text = "; ".join(
            f"{n}× {reason}" if len(runs) > 1 else reason for reason, n in [*reasons.items()][:3]
        )
        more = f"; and {len(reasons) - 3} other reasons" if len(reasons) > 3 else ""
        warnings.append(f"{plural(len(runs), 'run')} {_word(status)}: {text}{more}.")
    warnings += caveats.search_edges(study)
    drawn = [family for family in study.families if _curves(study, family)]
    charts = [_chart(study, drawn)] if drawn else []
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(counts, len(table)),
        charts=charts,
        grids=_grid(study),
        warnings=warnings,
    )


def _word(status: str) -> str:
    return status.replace("_", " ").replace("out of memory", "ran out of memory")


def _finding(counts: Any, total: int) -> str:
    done = int(counts.get("done", 0))
    if done == total:
        return f"All {plural(total, 'run')} trained to the end, none diverged."
    rest = [f"{n} {_word(status)}" for status, n in counts.items() if status != "done"]
    return f"{done} of {plural(total, 'run')} trained to the end; {listed(rest)}."


def _curves(study: Results, family: str) -> list[dict[str, Any]]:
    """The runs of a family that have a curve: best learning rates last, so that they lie on top."""
    rows = study.table[study.table["family"] == family]
    found = []
    for _, row in rows.iterrows():
        records = [
            r
            for r in study.metrics.get(row["run"], [])
            if r.get("loss") is not None and math.isfinite(r["loss"]) and r["tokens"] > 0
        ]
        if records:
            n = max(FEWEST_POINTS, min(POINTS, ALL_POINTS // len(study.metrics)))
            found.append({"row": row, "records": _thinned(records, n)})
    return sorted(found, key=lambda item: (bool(item["row"]["best_lr"]), -item["row"]["n_params"]))


def _thinned(records: list[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    if len(records) <= n:
        return records
    wanted = np.geomspace(records[0]["step"], records[-1]["step"], n)
    steps = np.array([record["step"] for record in records])
    index = sorted({int(np.argmin(np.abs(steps - w))) for w in wanted} | {len(records) - 1})
    return [records[i] for i in index]


def _chart(study: Results, families: list[str]) -> Chart:
    curves = {family: _curves(study, family) for family in families}
    sizes = [float(c["row"]["params_kaplan"]) for family in families for c in curves[family]]
    colours = style.ordered_colours(sizes)
    diverged = 0
    with style.canvas(10.2, 0.9 + 2.7 * len(families)) as figure:
        panels = figure.subplots(len(families), 2, squeeze=False, sharex="col", sharey=True)
        for row, family in zip(panels, families, strict=True):
            for axes, x in zip(row, ("tokens", "flops"), strict=True):
                for curve in curves[family]:
                    diverged += _draw(axes, curve, x, colours) * (x == "tokens")
                style.log_axis(axes.xaxis, "count" if x == "tokens" else "power")
                style.log_axis(axes.yaxis, "plain")
            row[0].set_ylabel("training loss (nats per token)")
            row[0].set_title(family_name(family))
        panels[-1, 0].set_xlabel("tokens D")
        panels[-1, 1].set_xlabel("training compute C (exact FLOPs)")
        size_legend(figure, colours)
        caption = (
            "Training loss of every run, averaged between two records, one colour a size; runs at a "
            "learning rate that was not the best of their cell are faint."
        )
        if any(_ended_ill(c["row"]) for family in families for c in curves[family]):
            caption += " Dashed: runs that did not end well."
        if diverged:
            caption += f" Red crosses mark where {plural(diverged, 'run')} diverged."
        return style.render(
            figure,
            name=NAME,
            caption=caption,
            alt=f"Training curves of {len(sizes)} runs of "
            + listed([family_name(f) for f in families])
            + f"; {diverged} diverged.",
        )


def _draw(axes: Any, curve: dict[str, Any], x: str, colours: dict[float, str]) -> bool:
    """Draws one run; True if it diverged."""
    row, records = curve["row"], curve["records"]
    colour = colours[float(row["params_kaplan"])]
    faint = row["status"] == "done" and not row["best_lr"]
    places = [record[x] for record in records]
    losses = [record["loss"] for record in records]
    axes.plot(
        places,
        losses,
        color=colour,
        lw=0.9 if faint else 1.2,
        alpha=0.3 if faint else 0.95,
        linestyle=(0, (3, 1.5)) if _ended_ill(row) else "-",
    )
    if row["status"] == "diverged":
        axes.plot(places[-1], losses[-1], "x", color=style.ALARM, ms=7, mew=1.8, zorder=5)
        return True
    return False


def _ended_ill(row: Any) -> bool:
    return row["status"] in LOST


def _grid(study: Results) -> list[Grid]:
    rows = []
    for family in study.families:
        runs = study.table[study.table["family"] == family]
        done = runs[runs["status"] == "done"]
        rows.append(
            [
                family_name(family),
                str(len(runs)),
                str(len(done)),
                f"{si(runs['params_kaplan'].min())} to {si(runs['params_kaplan'].max())}",
                f"{si(runs['tokens'].min())} to {si(runs['tokens'].max())}",
                power_of_ten(float(runs["flops_exact"].sum()), 3),
                f"{done['loss'].min():.3f}" if len(done) else "–",
            ]
        )
    return [
        Grid(
            caption="What was trained.",
            header=[
                "family",
                "runs",
                "done",
                "N",
                "tokens",
                "exact FLOPs, all runs",
                "lowest loss",
            ],
            rows=rows,
            numeric=(1, 2, 3, 4, 5, 6),
        )
    ]
