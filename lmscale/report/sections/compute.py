"""Loss against compute, the best size for a budget, and the cost of other sizes."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmscale import laws
from lmscale.report import caveats, figures, style
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.tables import by_family, shown
from lmscale.studies.compute import OFF_OPTIMUM, Compute, Edge
from lmscale.studies.estimate import LEAST_SEEDS
from lmscale.studies.learning_curves import NO_CURVES
from lmscale.studies.results import Results
from lmscale.wording import number, plural, sentence

NAME = "compute"
TITLE = "Loss against compute, and the best size"
#: Exponents of Kaplan et al. 2020: Table 5, Table 6 and Fig. 14.
PAPER = {"C": {"loss": 0.057, "size": 0.88}, "C_min": {"loss": 0.050, "size": 0.73}}
SYMBOLS = {"C": "C", "C_min": "$C_{min}$"}


@register(NAME)
def section(found: Compute, results: Results) -> Section:
    measures = _measures(found)
    if found.failure:
        why = found.failure
        finding = sentence(why) if why == NO_CURVES else f"No law yet: {why}."
        return Section(
            name=NAME,
            title=TITLE,
            finding=finding,
            grids=_families(found),
            fits=found.fits,
            measures=measures,
        )
    alpha, size = found.estimates["alpha_C_min"], found.estimates["size_exponent_min"]
    charts = [_loss_chart(found), _size_chart(found)]
    return Section(
        name=NAME,
        title=TITLE,
        finding=f"The loss falls as C_min^−{shown(alpha)} along the lower edge of the curves, and the "
        f"best size grows as C_min^{shown(size)}, with parameters and compute counted without "
        f"embeddings; Kaplan et al. 2020 found 0.050 and 0.73.",
        conclusive=size.interval is not None and not size.undecided_because,
        details=_details(found),
        key_numbers=[
            KeyNumber.of_estimate("exponent of the loss against C_min", alpha),
            KeyNumber.of_estimate("exponent of N_opt against C_min", size),
        ],
        charts=[*charts, _cost_chart(found)] if found.costs else charts,
        grids=[*_exponents(found), *_families(found)],
        fits=found.fits,
        measures=measures,
        warnings=_warnings(found),
    )


def _families(found: Compute) -> list[Grid]:
    columns = {
        "alpha_C": "loss, C",
        "alpha_C_min": "loss, C_min",
        "size_exponent": "N_opt, C",
        "size_exponent_min": "N_opt, C_min",
    }
    return by_family("Exponents along the lower edge", [found, *found.others], columns)


def _law_constants(found: Compute) -> dict[str, float] | None:
    """Where L(N, S) falls with both, so that App. B applies to it."""
    k = found.constants
    return k if k and min(k["alpha_N"], k["alpha_S"]) > 0 else None


def _details(found: Compute) -> list[str]:
    constants = _law_constants(found)
    if constants is None:
        return []
    excess = constants["alpha_N"] / constants["alpha_S"]
    ratios = laws.stopping_ratio(excess, 0.02, constants)
    return [
        f"By Appendix B of Kaplan et al. 2020 and these runs' L(N, S), compute-efficient training "
        f"stops {100 * excess:.2g}% above the converged loss (α_N/α_S; the paper: 10%). Against "
        f"training to within 2% of it, that takes {number(ratios['N'], 2)} times the parameters, "
        f"{number(ratios['S'], 2)} times the updates and {number(ratios['C'], 2)} times the compute "
        f"to one loss (the paper: 2.7, 0.13 and 0.35)."
    ]


def _measures(found: Compute) -> dict[str, Measure]:
    low, high = OFF_OPTIMUM
    what = {
        "alpha_C": "exponent of L(C)",
        "alpha_C_min": "exponent of L(C_min)",
        "size_exponent": "exponent of N_opt(C)",
        "size_exponent_min": "exponent of N_opt(C_min)",
        "off_optimum": f"extra compute at {low} and {high} times the best size, the larger",
        "exponent_ratio": "measured exponent of L(C_min) over the predicted",
        "excess": "loss of the best size over its own converged loss (by L(N, S)), less one",
    }
    sizes, where = len(found.ladder.sizes) if found.ladder else 0, ""
    if sizes:
        where = f", {plural(sizes, 'size')}, {plural(found.ladder.n_seeds, 'seed')} each"
    return {name: Measure.of(text + where, found.estimates[name]) for name, text in what.items()}


def _warnings(found: Compute) -> list[str]:
    best = found.edges["kaplan", "C_min"]
    warnings = [*caveats.of_fit(best.size_law), *caveats.of_fit(best.loss_law)]
    if not found.ladder.measured_batch:
        warnings.append(caveats.BATCH_NOTE)
    if found.ladder.n_seeds < LEAST_SEEDS:
        warnings.append(f"Fewer than {LEAST_SEEDS} seeds a size: the exponents have no interval.")
    return warnings


def _exponents(found: Compute) -> list[Grid]:
    rows = []
    for (convention, kind), edge in found.edges.items():
        paper = PAPER[kind] if convention == "kaplan" else {}
        theirs = [number(paper[what]) if paper else "–" for what in ("loss", "size")]
        ours = [shown(edge.loss_exponent), shown(edge.size_exponent)]
        rows.append((f"{convention}, {kind}", ours[0], theirs[0], ours[1], theirs[1]))
    k = found.constants
    if k is not None:
        loss = [laws.frontier_exponent(k), laws.frontier_exponent()]
        size = [laws.allocation_exponents(k)["N"], laws.allocation_exponents()["N"]]
        rows.append(("App. B from L(N, S) and B_crit(L)", *map(number, loss + size)))
    return [
        Grid(
            caption="Exponents along the lower edge, with 95% intervals over seeds, under two counts: "
            "kaplan leaves out embeddings and head, standard counts the head, which weighs most in "
            "small models (Pearce & Song 2024; Porian et al. 2024).",
            header=["count of N and C", "loss", "Kaplan et al.", "N_opt", "Kaplan et al."],
            rows=rows,
            numeric=(1, 2, 3, 4),
        )
    ]


# --- figures ------------------------------------------------------------------------------------


def _loss_chart(found: Compute) -> Chart:
    ladder = found.ladder
    colours = style.ordered_colours([size.n_params for size in ladder.sizes])
    with style.canvas(7.0, 3.2) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, (kind, symbol) in zip(panels, SYMBOLS.items(), strict=True):
            batch_law = ladder.batch_law if kind == "C_min" else None
            for size in ladder.sizes:
                for losses in size.losses:
                    flops = size.compute(losses, "kaplan", batch_law)
                    axes.plot(flops, losses, color=colours[size.n_params], lw=0.8, alpha=0.75)
            _draw_law(axes, found.edges["kaplan", kind], PAPER[kind]["loss"])
            axes.set_xlabel(f"{symbol}, training FLOPs without embeddings")
            axes.set_title(f"Loss against {symbol}")
            style.log_axis(axes.xaxis, "power")
            axes.legend(title="exponent", title_fontsize=7.5, loc="upper right", fontsize=7.5)
        panels[0].set_ylabel(figures.LOSS)
        style.log_axis(panels[0].yaxis, "plain")
        figures.size_legend(figure, colours)
        return style.render(
            figure,
            name="compute",
            caption="Evaluated loss of every run over its compute, one colour a size; right, over "
            "what training far below the critical batch would have taken. Black: power law through "
            "the lower edge, where the best size lies inside the ladder. Dotted: the slope of "
            "Kaplan et al. 2020, Fig. 13, through its middle (their level is that of another text).",
            alt=f"Loss against compute for {len(ladder.sizes)} sizes, with power laws.",
        )


def _draw_law(axes: Any, edge: Edge, paper: float) -> None:
    flops = np.geomspace(edge.flops[0], edge.flops[-1], 40)
    label = shown(edge.loss_exponent)
    axes.plot(flops, edge.loss_law.predict(flops=flops), color=style.INK, lw=1.6, label=label)
    middle = np.sqrt(flops[0] * flops[-1])
    level = float(edge.loss_law.predict(flops=middle))
    figures.plot_slope(axes, flops, middle, level, -paper, f"Kaplan et al.: {paper:.3f}")


def _size_chart(found: Compute) -> Chart:
    looks = style.family_styles(["transformer", "other"])
    best = found.edges["kaplan", "C_min"]
    with style.canvas(3.5, 3.3) as figure:
        axes = figure.subplots()
        for kind, dashes, look in zip(("C_min", "C"), ("-", "--"), looks.values(), strict=True):
            edge = found.edges["kaplan", kind]
            every = max(1, len(edge.flops) // 25)
            figures.plot_points(axes, edge.flops[::every], edge.n_opt[::every], look, lw=0, ms=3.6)
            k, a = edge.size_law.parameters["k_N"], edge.size_exponent.value
            label = f"against {SYMBOLS[kind]}: {shown(edge.size_exponent)}"
            line = {"color": look["color"], "lw": 1.6, "ls": dashes, "label": label}
            axes.plot(edge.flops, k * edge.flops**a, **line)
        middle, paper = np.sqrt(best.flops[0] * best.flops[-1]), PAPER["C_min"]["size"]
        level = best.size_law.parameters["k_N"] * middle**best.size_exponent.value
        label = f"Kaplan et al., slope {paper}"
        figures.plot_slope(axes, best.flops, middle, level, paper, label)
        constants = _law_constants(found)
        if constants is not None:
            # With S = C / (6 N B_crit(L)) as S_min, App. B's C is C_min.
            n = laws.efficient_frontier(best.flops, constants).n_params
            axes.plot(best.flops, n, "-.", color=style.INK, lw=1.1, label="App. B, own L(N, S)")
        axes.set(xlabel="training FLOPs without embeddings", ylabel="$N_{opt}$, parameters")
        style.log_axis(axes.xaxis, "power")
        axes.autoscale_view()
        style.log_axis(axes.yaxis, "count")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", fontsize=7.5)
        return style.render(
            figure,
            name="best-size",
            caption="The size of lowest loss at each budget, by a parabola through the best size and "
            "its neighbours (points), and power laws through it, with 95% intervals over seeds "
            "(Kaplan et al. 2020, Fig. 14). Dotted: their slope against "
            "C_min. Dash-dotted: what their Appendix B predicts from L(N, S_min) of these runs.",
            alt="Best model size against compute.",
        )


def _cost_chart(found: Compute) -> Chart:
    colours = style.ordered_colours([cost.loss for cost in found.costs])
    with style.canvas(3.5, 3.1) as figure:
        axes = figure.subplots()
        axes.axvspan(*OFF_OPTIMUM, color=style.MUTED, alpha=0.12, lw=0)
        ratio, constants = np.geomspace(0.2, 8, 200), _law_constants(found)
        laws_of = {
            "eq. B.16, own L(N, S)": (constants, "-"),
            "eq. B.16, Kaplan et al.": (None, ":"),
        }
        for label, (k, line) in laws_of.items():
            if k is not None or line == ":":
                cost, _ = laws.off_optimum_cost(ratio, k)
                axes.plot(ratio, cost, line, color=style.INK, lw=1.2, label=label)
        for cost in found.costs:
            look = {"color": colours[cost.loss], "marker": "o", "lw": 0, "ms": 4.5}
            figures.plot_points(axes, cost.ratio, cost.cost, look, label=f"{cost.loss:.2f} nats")
        axes.set(xlabel="N over the best size", ylabel="compute over the least")
        axes.set(xlim=(0.2, 8), ylim=(0.9, 3))
        style.log_axis(axes.xaxis, "plain")
        axes.legend(fontsize=7)
        return style.render(
            figure,
            name="off-optimum",
            caption="Compute to one loss with a size other than the best (Kaplan et al. 2020, Fig. "
            "12), one colour a loss. Lines: eq. B.16 with the constants of these runs and of the "
            "paper. Shaded: 0.6 to 2.2 times the best size, where the paper finds at most 20% more.",
            alt="Extra compute against the size relative to the best.",
        )
