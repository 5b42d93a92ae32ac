"""A study of one's own with its figure, as a user's file brings them: the spread over seeds."""

from dataclasses import dataclass
from typing import ClassVar

from lmscale import report, studies
from lmscale.report import figures, style
from lmscale.report.tables import shown
from lmscale.studies.cells import Cell, measured_cells, seed_noise


@dataclass(frozen=True)
class Spread:
    cells: tuple[Cell, ...]
    estimates: dict[str, studies.Estimate]
    fits: ClassVar[dict] = {}


@studies.register("spread")
def study(results):
    cells = measured_cells(results.usable, ["family", "params_kaplan"])
    noise = studies.Estimate(name="noise", value=seed_noise(cells), n=len(cells))
    largest = studies.Estimate.of_mean("largest", cells[-1].losses)
    return Spread(tuple(cells), {"noise": noise, "largest": largest})


@report.register("spread")
def section(found, results):
    with style.canvas(4, 3) as figure:
        axes = figure.subplots()
        figures.plot_cells(axes, found.cells, style.family_styles(["transformer"])["transformer"])
        figures.size_axes(axes, y=figures.LOSS)
        chart = style.render(figure, name="spread", caption="Every model.", alt="Loss over size.")
    return report.Section(
        name="spread",
        title="Spread over seeds",
        finding=f"Seeds scatter by {found.estimates['noise'].value:.1%} of the loss.",
        charts=[chart],
        measures={
            name: report.Measure.of(f"{name}: {shown(one)}", one)
            for name, one in found.estimates.items()
        },
    )


@studies.register("plain_spread")
def without_a_section(results):
    return study(results)
