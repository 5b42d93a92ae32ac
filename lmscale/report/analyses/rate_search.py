"""The search for the learning rate: the loss of every cell at each rate that was tried.

Models are compared at the best rate of each. Whether that is fair depends on the search: a cell whose
best rate is the lowest or the highest of those tried might do better beyond it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmscale.report import caveats, style
from lmscale.report.section import Chart, Grid, Section
from lmscale.studies.results import Results
from lmscale.sweep.store import cell_columns
from lmscale.wording import family_name, listed, number, plural, si

__all__ = ["analyse", "search_grid"]

NAME = "rate_search"
TITLE = "Search for the learning rate"
#: Columns of the table that tell a family's cells apart where they differ, and what a reader calls
#: them; the last value is how the column's numbers are written.
_PLACES = (
    ("budget", "budget", si),
    ("n_layer", "layers", str),
    ("steps", "steps", str),
    ("batch_size", "batch", str),
)


@dataclass(frozen=True)
class _Cell:
    """Runs that differ in learning rate and seed only."""

    family: str
    n_params: float
    #: Further columns of the table: what sets the cell apart from others of its family and size.
    place: dict[str, Any]
    #: The rule's learning rate.
    rate: float
    #: factor -> mean loss over the seeds that ended well, and how many did and did not.
    losses: dict[float, float]
    done: dict[float, int]
    lost: dict[float, int]

    @property
    def best(self) -> float | None:
        finite = {f: loss for f, loss in self.losses.items() if math.isfinite(loss)}
        return min(finite, key=finite.get) if finite else None

    @property
    def searched(self) -> bool:
        return sum(map(math.isfinite, self.losses.values())) > 1

    def at_edge(self) -> str:
        """Which end of the search the best factor is: lowest, highest or, inside it, neither ("")."""
        if not self.searched:
            return ""
        return {min(self.losses): "lowest", max(self.losses): "highest"}.get(self.best, "")


def analyse(study: Results) -> Section:
    """Loss over the learning rate, cell by cell."""
    cells = [cell for cell in _cells(study) if cell.searched]
    if not cells:
        return Section(
            name=NAME,
            title=TITLE,
            finding="No cell has ended well at two learning rates or more, so none was searched.",
            warnings=[
                (
                    "Every model trains at the rate of a rule: one that the rule fits worse looks "
                    "worse than it is."
                )
            ],
        )
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(cells),
        details=[
            (
                "A factor multiplies the rule's learning rate for a model. The analyses compare "
                "models at the factor whose mean loss over seeds is the lowest of their cell; the "
                "lowest of several noisy means is a little too low, for every architecture alike."
            )
        ],
        charts=[_chart(cells)],
        grids=search_grid(study),
        warnings=[w for f in study.families for w in _edge_warnings(study, f)],
    )


def search_grid(study: Results) -> list[Grid]:
    """The table of losses by factor, one row a cell; nothing where no rate was searched."""
    cells = [cell for cell in _cells(study) if cell.searched]
    if not cells:
        return []
    factors = sorted({factor for cell in cells for factor in cell.losses})
    places = [p for p in _PLACES if len({cell.place.get(p[0]) for cell in cells}) > 1]
    rows = [
        [
            family_name(cell.family),
            si(cell.n_params),
            *[write(cell.place[name]) for name, _, write in places],
            number(cell.rate, 2),
            *[_shown(cell, factor) for factor in factors],
            f"×{cell.best:g}" + (f", {cell.at_edge()} tried" if cell.at_edge() else ""),
        ]
        for cell in cells
    ]
    return [
        Grid(
            caption="Mean loss (nats per token) at each multiple of the rule's learning rate, and the "
            "multiple with the lowest.",
            header=[
                "family",
                "N",
                *[label for _, label, _ in places],
                "rule's rate",
                *[f"×{factor:g}" for factor in factors],
                "best",
            ],
            rows=rows,
            numeric=tuple(range(1, 3 + len(places) + len(factors))),
        )
    ]


def _cells(study: Results) -> list[_Cell]:
    table = study.table
    if "lr_factor" not in table or not len(table):
        return []
    cells = []
    for _, runs in table.groupby(cell_columns(table), dropna=False, sort=False):
        first = runs.iloc[0]
        losses, done, lost = {}, {}, {}
        for factor, part in runs.groupby("lr_factor", sort=True):
            ended = part[(part["status"] == "done") & np.isfinite(part["loss"].astype(float))]
            losses[float(factor)] = float(ended["loss"].mean()) if len(ended) else math.nan
            done[float(factor)] = len(ended)
            lost[float(factor)] = int(part["run"].isin(study.lost["run"]).sum())
        cells.append(
            _Cell(
                str(first["family"]),
                float(first["params_kaplan"]),
                {name: first[name] for name, _, _ in _PLACES if name in table},
                float(first["peak_lr"] / first["lr_factor"]),
                losses,
                done,
                lost,
            )
        )
    order = {family: index for index, family in enumerate(study.families)}
    return sorted(cells, key=lambda c: (order[c.family], c.place.get("budget") or 0, c.n_params))


# --- words --------------------------------------------------------------------------------------


def _finding(cells: list[_Cell]) -> str:
    edges = sum(bool(cell.at_edge()) for cell in cells)
    inside = len(cells) - edges
    text = (
        f"The best learning rate lies inside the search in {inside} of {plural(len(cells), 'cell')}"
    )
    costs = [cost for cell in cells for cost in _neighbours(cell)]
    if costs:
        text += (
            f"; the factors next to the best cost {number(min(costs), 2)} to "
            f"{number(max(costs), 2)} nats per token"
        )
    return text + "."


def _neighbours(cell: _Cell) -> list[float]:
    """Extra loss at the factors next to the best one."""
    factors = [f for f in sorted(cell.losses) if math.isfinite(cell.losses[f])]
    index = factors.index(cell.best)
    near = factors[max(0, index - 1) : index] + factors[index + 1 : index + 2]
    return [cell.losses[factor] - cell.losses[cell.best] for factor in near]


def _edge_warnings(study: Results, family: str) -> list[str]:
    return [f"{family_name(family)}: {text}" for text in caveats.search_edges(study, family)]


def _shown(cell: _Cell, factor: float) -> str:
    if factor not in cell.losses:
        return "–"
    if not cell.done[factor]:
        return "lost" if cell.lost[factor] else "–"
    text = number(cell.losses[factor], 4)
    return text + (f" ({plural(cell.lost[factor], 'seed')} lost)" if cell.lost[factor] else "")


# --- figure -------------------------------------------------------------------------------------


def _chart(cells: list[_Cell]) -> Chart:
    families = list(dict.fromkeys(cell.family for cell in cells))
    marker = {f: look["marker"] for f, look in style.family_styles(families).items()}
    colours = style.ordered_colours([cell.n_params for cell in cells])
    with style.canvas(max(4.2, 2.9 * len(families)), 3.2) as figure:
        row = figure.subplots(1, len(families), squeeze=False, sharey=True)[0]
        for axes, family in zip(row, families, strict=True):
            for cell in (c for c in cells if c.family == family):
                factors = [f for f in sorted(cell.losses) if math.isfinite(cell.losses[f])]
                extra = [cell.losses[f] - cell.losses[cell.best] for f in factors]
                axes.plot(
                    factors,
                    extra,
                    color=colours[cell.n_params],
                    marker=marker[family],
                    lw=1.1,
                    ms=4,
                    label=si(cell.n_params),
                )
            axes.set_title(family_name(family))
            axes.set_xlabel("multiple of the rule's learning rate")
            style.log_axis(axes.xaxis, "plain")
            axes.legend(title="N", fontsize=7)
        row[0].set_ylabel("loss above the cell's lowest (nats)")
        return style.render(
            figure,
            name=NAME,
            caption="Mean loss of each cell above its lowest, over the learning rate. A curve that "
            "still falls at its end has its best rate at the edge of the search.",
            alt="Loss above the lowest against the multiple of the learning rate for "
            + listed([family_name(f) for f in families])
            + ".",
        )
