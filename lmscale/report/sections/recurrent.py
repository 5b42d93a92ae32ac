"""Models with reused layers beside plain ones, by stored parameters and by compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmscale.report import caveats, figures, style
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.tables import mean_loss, shown, table
from lmscale.studies.estimate import LEAST_SEEDS
from lmscale.studies.recurrent import COUNTS, Family, Recurrent, paper_gaps, paper_models
from lmscale.studies.results import Results
from lmscale.wording import apart, family_name, listed, number, plural, si

NAME = "recurrent"
TITLE = "Reused layers against plain ones"
AT = {"params": "equal N", "compute": "equal compute"}
AXES = {
    "params": "N, stored parameters without embeddings",
    "compute": "N as used: training FLOPs a token / 6",
}
COUNTED = {"params": "once", "compute": "as used"}
#: By which factor the points of one family lie beside those of the next in the figure, where many
#: have one size.
ASIDE = 1.04


@register(NAME)
def section(found: Recurrent, results: Results) -> Section:
    charts = [_chart(found.families)] if found.families else []
    if found.plain is None or not found.gaps:
        finding = "No comparison yet: it takes two plain Transformers and a model with reuse."
        return Section(name=NAME, title=TITLE, finding=finding, charts=charts)
    known = [one for one in found.estimates.values() if one.is_known]
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        conclusive=len(known) == len(COUNTS),
        details=_details(),
        key_numbers=[
            KeyNumber.of_estimate(
                f"nats per token, reused over plain Transformer at {AT[one.name]}", one
            )
            for one in known
        ],
        charts=charts,
        grids=[*_gap_grid(found), *_model_grid(found)],
        measures=_measures(found),
        warnings=[*_warnings(found, results), *caveats.search_edges(results)],
    )


def _finding(found: Recurrent) -> str:
    parts = []
    for count, gap in found.estimates.items():
        if not gap.is_known:
            parts.append(f"at {AT[count]} no plain model is near enough to compare")
            continue
        amount, side, bounds = apart(gap.value, gap.interval)
        parts.append(f"at {AT[count]} {amount} nats per token {side} the plain one ({bounds})")
    return f"A Transformer with reused layers ends {listed(parts)}."


def _details() -> list[str]:
    parts = []
    for count, at in AT.items():
        gaps = [f"{number(gap, 2)} ({name})" for name, gap in paper_gaps(count).items()]
        parts.append(f"at {at} {listed(gaps)}")
    return [
        f"Between the plotted points of Kaplan et al. 2020, Figs. 7 and 17, reuse changes the loss by "
        f"the following nats: {'; '.join(parts)}. They do not say in which order shared blocks are "
        f"applied, nor whether a step signal is added."
    ]


def _measures(found: Recurrent) -> dict[str, Measure]:
    factors = listed([f"{family.reuse}×" for family in found.reused])
    measures = {}
    for count, gap in found.estimates.items():
        what = f"nats per token above the plain Transformer at {AT[count]}"
        if gap.is_known:
            models, seeds = plural(gap.n, "model"), plural(gap.seeds, "seed")
            what += f", mean of {models} with reuse {factors}, {seeds} each"
        measures[count] = Measure.of(what, gap)
    return measures


def _warnings(found: Recurrent, results: Results) -> list[str]:
    warnings = []
    for family in found.families:
        trained = results.table[results.table["family"] == family.name]["seed"].nunique()
        if len(family.seeds) < trained:
            lost = plural(trained - len(family.seeds), "seed")
            why = "left out, for not ending well at every size."
            warnings += caveats.about(family.name, [f"{lost} {why}"])
    if any(len(family.seeds) < LEAST_SEEDS for family in found.families):
        warnings.append(f"Fewer than {LEAST_SEEDS} seeds: the differences have no interval.")
    return warnings


def _gap_grid(found: Recurrent) -> list[Grid]:
    return table(
        "Loss above the plain Transformer (nats per token; 95% intervals over seeds), mean of the "
        "models within its sizes.",
        found.gaps.items(),
        {
            "family": lambda row: family_name(row[0]),
            f"at {AT['params']}": lambda row: shown(row[1]["params"]),
            f"at {AT['compute']}": lambda row: shown(row[1]["compute"]),
        },
        text=("family",),
    )


def _model_grid(found: Recurrent) -> list[Grid]:
    rows = []
    for family in found.families:
        gaps = [found.above_plain(family, count) for count in COUNTS]
        above = [["" if family.plain else number(x, 2) for x in gap] for gap in gaps]
        rows += zip([family.name] * len(family.cells), family.cells, *above, strict=True)
    return table(
        "Every model: what it stores, what it applies to a token, its loss, and how far that is from "
        "the plain Transformer's.",
        rows,
        {
            "family": lambda row: family_name(row[0]),
            "N": lambda row: si(row[1].n_params),
            "N as used": lambda row: si(row[1]["applied"]),
            "loss (nats)": lambda row: mean_loss(row[1]),
            AT["params"]: lambda row: row[2],
            AT["compute"]: lambda row: row[3],
        },
        text=("family",),
    )


# --- figure -------------------------------------------------------------------------------------


def _chart(families: Sequence[Family]) -> Chart:
    paper = paper_models()
    own = [family.name for family in families]
    # The paper's plain and reused Transformers, and of its LSTMs those that were trained here too.
    theirs = [n for n in sorted(set(paper["family"])) if n in own or n.startswith("transformer")]
    looks = style.family_styles(list(dict.fromkeys([*own, *theirs])))
    with style.canvas(7.2, 5.9) as figure:
        panels = figure.subplots(2, 2, sharey="row")
        for (above, below), count in zip(panels.T, COUNTS, strict=True):
            _draw_families(above, families, count, looks)
            for name in theirs:
                part = paper[paper["family"] == name].sort_values(count)
                figures.plot_points(below, part[count], part["loss"], looks[name])
            for axes, whose in ((above, "These runs"), (below, "Kaplan et al. 2020")):
                title = f"{whose}, shared layers {COUNTED[count]}"
                figures.size_axes(axes, x=AXES[count], title=title)
        for row in panels:
            row[0].set_ylabel(figures.LOSS)
        figures.legend_above(figure, {family_name(n): look for n, look in looks.items()}, ncols=3)
        bars = figures.bars_of([cell for family in families for cell in family.cells])
        return style.render(
            figure,
            name=NAME,
            caption="Loss of Transformers whose layers are applied several times, over the "
            "parameters that they store (left) and over those that a token passes, shared ones "
            f"as often as used (right). Above: these runs, {bars}; families are set {ASIDE - 1:.0%} "
            "apart to the side, so that bars of one size can be told apart. Below: Kaplan et al. 2020, "
            "Figs. 7 and 17, on another text and vocabulary.",
            alt="Loss against stored parameters and against compute for "
            f"{listed([family_name(name) for name in own])}, above the same for Kaplan et al. 2020.",
        )


def _draw_families(
    axes: Any, families: Sequence[Family], count: str, looks: dict[str, dict[str, Any]]
) -> None:
    for place, family in enumerate(reversed(families)):
        aside = ASIDE ** (place - (len(families) - 1) / 2)
        sizes = family.sizes(count) * aside
        groups = sorted(zip(sizes, (cell.losses for cell in family.cells), strict=True))
        figures.plot_seeds(axes, groups, looks[family.name])
