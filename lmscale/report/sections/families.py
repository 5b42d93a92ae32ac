"""Loss against size, by depth: ours and the paper's, with and without embeddings."""

from __future__ import annotations

from lmscale import laws
from lmscale.report import caveats, figures, style
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.sections.rate_search import search_grid
from lmscale.report.tables import MEANS, mean_loss, shown, table
from lmscale.studies.estimate import Estimate
from lmscale.studies.families import (
    LEAST_DEPTH,
    Families,
    collapse,
    columns,
    kaplan_models,
    n_total,
    single_layer_shift,
)
from lmscale.studies.rate_search import searched_cells
from lmscale.studies.results import Results
from lmscale.wording import listed, plural, si

NAME = "families"
TITLE = "Loss against size, by depth"
#: Depths that share a curve in the paper: 1, 2, 3, 6 and all above.
DEEP = 6
KAPLAN_ALPHA = laws.published("kaplan2020-nd").parameters["alpha_N"]
#: Whether embeddings count, the column of that count, and the same of one model.
COUNTS = (("with", "n_total", n_total), ("without", "n_params", lambda model: model.n_params))


@register(NAME)
def section(found: Families, results: Results) -> Section:
    if not found.models:
        return Section(
            name=NAME, title=TITLE, finding="No run of a Transformer has ended well yet."
        )
    ratio = found.estimates["collapse"]
    label = "scatter about one L(N) with embeddings, over that without"
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        conclusive=found.collapse is not None,
        details=_details(found),
        key_numbers=[KeyNumber.of_estimate(label, ratio, "×")] if ratio.is_known else [],
        charts=[_chart(found)],
        grids=[*_grid(found), *search_grid(searched_cells(results))],
        fits=found.fits,
        measures=_measures(found.estimates),
        warnings=[
            *caveats.of_fit(found.fit),
            *caveats.unequal_tokens(found.models),
            *caveats.lost_runs(results),
            *caveats.search_edges(results),
        ],
    )


def _finding(found: Families) -> str:
    if found.collapse is None:
        return f"No verdict on depth yet: {found.fit.failure}."
    depths = sorted({m["n_layer"] for m in found.models if m["n_layer"] >= LEAST_DEPTH})
    text = (
        f"About one power law the models of {listed(depths)} layers scatter by "
        f"{found.collapse.without:.1%} of the loss where N leaves the embeddings out and by "
        f"{found.collapse.including:.1%} where it counts them, "
        f"{shown(found.collapse.ratio, '95% interval')} times as much"
    )
    if found.collapse.ratio.may_be(1):
        text += ", so these models do not tell which count brings the depths together"
    return f"{text}."


def _details(found: Families) -> list[str]:
    paper = kaplan_models()
    theirs = collapse(paper[paper["n_layer"] >= LEAST_DEPTH])
    text = (
        f"Read in the same way, the models of two and more layers of Kaplan et al. 2020, Fig. 6, "
        f"scatter by {theirs.without:.1%} without and {theirs.including:.1%} with embeddings, "
        f"{shown(theirs.ratio)} times as much; and their models of one layer lie "
        f"{single_layer_shift(paper).value:.1%} above the others' line."
    )
    shift = found.estimates["single_layer"]
    if shift.is_known:
        low, high = shift.interval
        text += (
            f" Here {plural(shift.n, 'model')} of one layer {'lies' if shift.n == 1 else 'lie'} "
            f"{shift.value:+.1%} from it (95% interval {low:+.1%} to {high:+.1%})."
        ).replace("-", "−")
    paragraphs = [text]
    if found.seed_noise is not None and found.collapse is not None:
        paragraphs.append(f"Seeds alone scatter by {found.seed_noise:.1%} of the loss.")
    if not found.fit.failure:
        paragraphs.append(
            f"The law of the models of two and more layers is L = (N_c / N)^α with α = "
            f"{shown(found.estimates['alpha_N'])}; Kaplan et al. found {KAPLAN_ALPHA:g}, trained to "
            f"convergence on another text."
        )
    return paragraphs


def _measures(estimates: dict[str, Estimate]) -> dict[str, Measure]:
    seeds = estimates["collapse"].seeds
    each = f"{plural(seeds, 'seed')} each" if seeds else "no seeds"
    on = f"{plural(estimates['collapse'].n, 'model')} of two or more layers, {each}"
    shift = estimates["single_layer"]
    singles = f", {plural(shift.n, 'model')}, {each}" if shift.is_known else ""
    what = {
        "collapse": f"scatter about one power law with embeddings over that without, {on}",
        "single_layer": "share of the loss by which one-layer models lie above the line of the "
        f"deeper ones{singles}",
        "alpha_N": f"exponent α of L(N) without embeddings, {on}",
    }
    return {name: Measure.of(text, estimates[name]) for name, text in what.items()}


def _grid(found: Families) -> list[Grid]:
    return table(
        "Every model: N without and with the embeddings of tokens and positions, and its mean loss. "
        + MEANS,
        found.models,
        {
            "layers": lambda model: str(model["n_layer"]),
            "width": lambda model: str(model["width"]),
            "N": lambda model: si(model.n_params),
            "N with embeddings": lambda model: si(n_total(model)),
            "seeds": lambda model: str(len(model.losses)),
            "loss (nats)": mean_loss,
        },
    )


def _depth(n_layer: int) -> str:
    return f"> {DEEP} layers" if n_layer > DEEP else plural(n_layer, "layer")


def _chart(found: Families) -> Chart:
    paper = kaplan_models()
    paper = paper.assign(depth=paper["n_layer"].map(_depth))
    looks = figures.ordered_looks(
        [min(n, DEEP + 1) for n in (*columns(found.models)["n_layer"], *paper["n_layer"])]
    )
    looks = {_depth(n): look for n, look in looks.items()}
    with style.canvas(7.2, 5.9) as figure:
        panels = figure.subplots(2, 2, sharey="row")
        for (own, theirs), (word, column, size) in zip(panels.T, COUNTS, strict=True):
            for depth, look in looks.items():
                models = [model for model in found.models if _depth(model["n_layer"]) == depth]
                models = sorted(models, key=size)
                figures.plot_cells(own, models, look, x=size, lw=1.1, ms=4.5, mew=0.4)
                part = paper[paper["depth"] == depth].sort_values(column)
                figures.plot_points(theirs, part[column], part["loss"], look)
            if word == "without":
                figures.plot_law(own, found.fit, style.INK, lw=1.0, ls=(0, (4, 2)))
            for axes, whose in ((own, "These runs"), (theirs, "Kaplan et al. 2020")):
                label = f"N, parameters {word} embeddings"
                figures.size_axes(axes, x=label, title=f"{whose}, {word} embeddings")
        for row in panels:
            row[0].set_ylabel(figures.LOSS)
        figures.legend_above(figure, looks)
        law = "; the dashed line is the power law of the models of two and more layers with its 95% band"
        return style.render(
            figure,
            name=NAME,
            caption="Loss over model size by depth, N counted with the embeddings of tokens and "
            "positions (left) and without (right). Above: these runs, "
            f"{figures.bars_of(found.models)}{'' if found.fit.failure else law}. Below: the 39 models "
            "of Kaplan et al. 2020, Fig. 6, on another text and vocabulary.",
            alt="Loss against parameters with and without embeddings, one curve a depth, for these "
            "runs and for those of Kaplan et al. 2020.",
        )
