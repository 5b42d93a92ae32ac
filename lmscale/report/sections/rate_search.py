"""The search for the learning rate, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence

from lmscale.report import caveats, figures, style
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, Section
from lmscale.report.tables import table
from lmscale.studies.rate_search import RateSearch, SearchedCell
from lmscale.studies.results import Results
from lmscale.wording import family_name, listed, number, plural, si

__all__ = ["search_grid", "section"]

NAME = "rate_search"
TITLE = "Search for the learning rate"
#: Most sizes that a panel names by itself.
_NAMED = 8
#: Columns of the store that tell a family's cells apart, shown where they differ: what a reader calls
#: them, the column, and how its values are written.
_PLACES = {
    "budget": ("budget", si),
    "layers": ("n_layer", str),
    "steps": ("steps", str),
    "batch": ("batch_size", str),
}


@register(NAME)
def section(found: RateSearch, results: Results) -> Section:
    if not found.cells:
        return Section(
            name=NAME,
            title=TITLE,
            finding="No cell has ended well at two learning rates or more, so none was searched.",
            warnings=[
                "Every model trains at the rate of a rule: one that the rule fits worse looks worse "
                "than it is."
            ],
        )
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found.cells),
        details=[
            "A factor multiplies the rule's learning rate for a model. The analyses compare models at "
            "the factor whose mean loss over seeds is the lowest of their cell; the lowest of several "
            "noisy means is a little too low, for every architecture alike."
        ],
        charts=[_chart(found.cells)],
        grids=search_grid(found.cells),
        warnings=[
            text
            for family in results.families
            for text in caveats.about(family, caveats.search_edges(results, family))
        ],
    )


def search_grid(cells: Sequence[SearchedCell]) -> list[Grid]:
    """The table of losses by factor, one row a cell; nothing where no rate was searched."""
    factors = sorted({factor for cell in cells for factor in cell.losses})
    columns = {"family": lambda c: family_name(c.family), "N": lambda c: si(c.n_params)}
    for heading, (name, write) in _PLACES.items():
        if len({cell.columns.get(name) for cell in cells}) > 1:
            columns[heading] = lambda c, name=name, write=write: write(c.columns[name])
    columns["rule's rate"] = lambda c: number(c.rule_rate, 2)
    for factor in factors:
        columns[f"×{factor:g}"] = lambda c, factor=factor: _loss(c, factor)
    columns["best"] = lambda c: f"×{c.best:g}" + (f", {c.edge} tried" if c.edge else "")
    return table(
        "Mean loss (nats per token) at each multiple of the rule's learning rate, and the multiple "
        "with the lowest.",
        cells,
        columns,
        text=("family", "best"),
    )


def _loss(cell: SearchedCell, factor: float) -> str:
    """The mean loss at a factor, and whether seeds are missing from it."""
    lost = cell.lost.get(factor, 0)
    if not cell.done.get(factor):
        return "lost" if lost else "–"
    text = number(cell.losses[factor], 4)
    return f"{text} ({plural(lost, 'seed')} lost)" if lost else text


def _finding(cells: Sequence[SearchedCell]) -> str:
    inside = sum(not cell.edge for cell in cells)
    costs = [cost for cell in cells for cost in cell.neighbours]
    return (
        f"The best learning rate lies inside the search in {inside} of {plural(len(cells), 'cell')}; "
        f"the factors next to the best cost {number(min(costs), 2)} to {number(max(costs), 2)} nats "
        f"per token."
    )


def _chart(cells: Sequence[SearchedCell]) -> Chart:
    families = list(dict.fromkeys(cell.family for cell in cells))
    looks = style.family_styles(families)
    colours = style.ordered_colours([cell.n_params for cell in cells])
    # More sizes than a panel has room to name get one legend above both.
    many = any(len({c.n_params for c in cells if c.family == f}) > _NAMED for f in families)
    with style.canvas(max(4.2, 2.9 * len(families)), 3.2) as figure:
        row = figure.subplots(1, len(families), squeeze=False, sharey=True)[0]
        for axes, family in zip(row, families, strict=True):
            named: set[str] = set()
            for cell in sorted((c for c in cells if c.family == family), key=lambda c: c.n_params):
                # A size may have a cell in each of several budgets; the legend names it once.
                name = si(cell.n_params)
                label = "_" if name in named else name
                named.add(name)
                axes.plot(
                    list(cell.extra),
                    list(cell.extra.values()),
                    color=colours[cell.n_params],
                    marker=looks[family]["marker"],
                    lw=1.1,
                    ms=4,
                    label=label,
                )
            axes.set_title(family_name(family))
            axes.set_xlabel("multiple of the rule's learning rate")
            style.log_axis(axes.xaxis, "plain")
            if not many:
                axes.legend(title="N", fontsize=7)
        row[0].set_ylabel("loss above the cell's lowest (nats)")
        if many:
            figures.size_legend(figure, colours, "N")
        return style.render(
            figure,
            name=NAME,
            caption="Mean loss of each cell above its lowest, over the learning rate. A curve that "
            "still falls at its end has its best rate at the edge of the search.",
            alt="Loss above the lowest against the multiple of the learning rate for "
            f"{listed([family_name(family) for family in families])}.",
        )
