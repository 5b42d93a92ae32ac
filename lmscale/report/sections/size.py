"""Loss against model size: a law for each family, and how far it is behind the Transformer."""

from __future__ import annotations

from typing import Any

import numpy as np

from lmscale.report import caveats, figures, style
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.tables import MEANS, mean_loss, shown, table
from lmscale.studies.cells import equally_long
from lmscale.studies.estimate import Estimate
from lmscale.studies.papers import points
from lmscale.studies.results import Results
from lmscale.studies.size import KAPLAN_N, Family, Gap, Size
from lmscale.wording import (
    apart,
    family_name,
    flipped,
    listed,
    number,
    plural,
    sentence,
    si,
    with_interval,
)

NAME = "size"
TITLE = "Loss against model size"
#: L(N) of the Transformers of Kaplan et al. 2020, eq. 1.1.
KAPLAN_N_C, KAPLAN_ALPHA = 8.8e13, 0.076
EXTRA = "extra loss (nats per token)"


@register(NAME)
def section(found: Size, results: Results) -> Section:
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        # Where the number of tokens varies too, the law is not one of size.
        conclusive=bool(found.fitted) and all(equally_long(f.sizes) for f in found.families),
        details=_details(found),
        key_numbers=_key_numbers(found),
        charts=[_chart(found, results)] if found.drawn else [],
        grids=[*_law_grid(found), *_gap_grid(found), *_size_grid(found, results)],
        fits=found.fits,
        measures=_measures(found.estimates),
        warnings=_warnings(found, results),
    )


def _finding(found: Size) -> str:
    if found.closest:
        gap = found.estimates["gap"]
        name, at = family_name(gap.of), f"At N = {si(gap.at[0])}"
        if gap.may_be(0):
            return (
                f"{at} no difference can be seen between {name} and Transformer: "
                f"{shown(gap, '95% interval')} nats per token."
            )
        amount, side, bounds = apart(gap.value, gap.interval)
        text = f"{at} the {name} ends {amount} nats per token {side} the Transformer ({bounds})"
        if gap.value > 0 and found.closest.ratio.is_known:
            text += (
                f": it needs {shown(found.closest.ratio)} times the parameters for the same loss"
            )
        return f"{text}."
    parts = [
        f"for the {family_name(f.name)} loss falls as N^−{shown(f.alpha, '95% interval')}"
        for f in found.fitted
    ]
    reasons = [f"{family_name(f.name)}: {f.fit.failure}" for f in found.families]
    return sentence(listed(parts)) or f"No law yet. {'; '.join(reasons) or 'No runs are declared'}."


def _details(found: Size) -> list[str]:
    paragraphs = []
    if found.closest:
        gap, what = found.closest, "extra loss"
        ends = [(e.value, e.interval) for e in (gap.at(gap.low), gap.at(gap.high))]
        if all(value < 0 for value, _ in ends):
            ends, what = [flipped(*end) for end in ends], "lead"
        first, last = (with_interval(*end) for end in ends)
        paragraphs.append(
            f"Over the sizes that both have, the {family_name(gap.family.name)}'s {what} goes from "
            f"{first} nats at N = {si(gap.low)} to {last} at N = {si(gap.high)}. In Kaplan et al. "
            f"2020, Fig. 7, a 1-layer LSTM was 0.19 nats above the Transformers' law at N = 395k and "
            f"a 2-layer one 0.48 at 212M."
        )
        if found.text_error is not None:
            paragraphs.append(
                f"Compared window by window on the same text, a difference between a "
                f"{family_name(gap.family.name)} and the Transformer of nearest size has a standard "
                f"error of {number(found.text_error, 1)} nats from the choice of documents."
            )
    if found.fitted:
        parts = [f"{family_name(f.name)} {shown(f.alpha)}" for f in found.fitted]
        paragraphs.append(
            f"Exponent α of L = (N_c / N)^α with N without embeddings: {listed(parts)}. Kaplan et "
            f"al. 2020 found {KAPLAN_ALPHA:g} for Transformers trained to convergence; runs of "
            f"a fixed number of tokens give a smaller one."
        )
    return paragraphs


def _key_numbers(found: Size) -> list[KeyNumber]:
    numbers = []
    if found.closest:
        gap, ratio = found.estimates["gap"], found.closest.ratio
        name = family_name(gap.of)
        label = f"nats per token, {name} over Transformer at N = {si(gap.at[0])}"
        numbers.append(KeyNumber.of_estimate(label, gap))
        if ratio.is_known:
            label = f"parameters that the {name} needs for the Transformer's loss"
            numbers.append(KeyNumber.of_estimate(label, ratio, "×"))
    for f in found.fitted[: 3 - len(numbers)]:
        label = f"exponent α of L(N), {family_name(f.name)}"
        numbers.append(KeyNumber.of_estimate(label, f.alpha))
    return numbers


def _measures(estimates: dict[str, Estimate]) -> dict[str, Measure]:
    gap, from_here = "nats per token above the Transformer", f"from N = {si(KAPLAN_N)} on"
    what = {
        "gap": gap,
        "gap_at_400k": f"{gap} at N = {si(KAPLAN_N)}",
        "widening": f"nats by which the gap to the Transformer grows per tenfold N, {from_here}",
    }
    where = {"gap": "at N = {}", "gap_at_400k": "", "widening": "to {}"}

    def said(name: str, one: Estimate) -> str:
        if not one.at:
            return what[name]
        whose = f"{family_name(one.of)} {where[name].format(si(one.at[-1]))}".rstrip()
        return f"{what[name]}, {whose}, {plural(one.seeds, 'seed')} a size"

    return {name: Measure.of(said(name, one), one) for name, one in estimates.items()}


def _warnings(found: Size, results: Results) -> list[str]:
    warnings = []
    for f in found.families:
        own = caveats.unequal_tokens(f.sizes)
        if f.sizes:
            own += [f"no fit, because {f.fit.failure}."] if f.fit.failure else []
            own += caveats.of_fit(f.fit) + caveats.single_seeds(f.sizes)
            own += caveats.lost_runs(results, f.name)
        own += caveats.search_edges(results, f.name)
        if f.bend:
            own.append(
                f"the losses {'flatten' if f.bend > 0 else 'steepen'} against a straight power law "
                f"by more than their scatter, so its exponent holds for this range only."
            )
        warnings += caveats.about(f.name, own)
    return warnings


# --- tables -------------------------------------------------------------------------------------


def _law_grid(found: Size) -> list[Grid]:
    def scale(f: Family) -> str:
        low, high = f.fit.intervals.get("N_c", (np.nan, np.nan))
        return f"{number(f.fit.parameters['N_c'], 2)} ({number(low, 2)} to {number(high, 2)})"

    return table(
        "L = (N_c / N)^α by family, N without embeddings; 95% intervals from how the sizes' means "
        "scatter about it. α and N_c are strongly correlated: compare losses, not N_c.",
        found.fitted,
        {
            "family": lambda f: family_name(f.name),
            "α": lambda f: shown(f.alpha),
            "N_c": scale,
            "rms residual": lambda f: (
                f"{np.sqrt(np.mean(np.square(f.fit.residuals['residual']))):.2%}"
            ),
            "runs": lambda f: str(f.fit.n_used),
        },
        text=("family",),
    )


def _gap_grid(found: Size) -> list[Grid]:
    return table(
        "Loss above the Transformer's at equal N, read off the two laws.",
        [gap.at(n) for gap in found.gaps for n in (gap.low, gap.middle, gap.high)],
        {
            "family": lambda gap: family_name(gap.of),
            "N": lambda gap: si(gap.at[0]),
            "nats per token (95% interval)": shown,
        },
        text=("family",),
    )


def _size_grid(found: Size, results: Results) -> list[Grid]:
    bits = results.bits_per_nat
    return table(
        f"Mean loss of every size. {MEANS}",
        [size for f in found.families for size in f.sizes],
        {
            "family": lambda size: family_name(size["family"]),
            "N": lambda size: si(size.n_params),
            "tokens": lambda size: si(size.tokens),
            "seeds": lambda size: str(len(size.losses)),
            "loss (nats)": mean_loss,
            "bits per byte": lambda size: number(size.mean * bits) if bits else "–",
        },
        text=("family",),
    )


# --- figure -------------------------------------------------------------------------------------


def _chart(found: Size, results: Results) -> Chart:
    looks = style.family_styles([f.name for f in found.drawn])
    paper = any(gap.family.architecture == "lstm" for gap in found.gaps)
    with style.canvas(7.2 if found.gaps else 6.4, 6.6 if paper else 3.6) as figure:
        panels = figure.subplots(2 if paper else 1, 2 if found.gaps else 1, squeeze=False)
        _draw_losses(panels[0, 0], found, looks, results.bits_per_nat)
        if found.gaps:
            panels[0, 0].set_title("These runs")
            _draw_gaps(panels[0, 1], found.gaps, looks)
        if paper:
            _draw_paper(panels[1], looks)
        sizes = [size for f in found.drawn for size in f.sizes]
        caption = (
            f"Final loss over model size (Kaplan et al. 2020, Fig. 7 left): {figures.bars_of(sizes)}. "
            f"Lines are power laws with their 95% band."
        )
        if found.gaps:
            caption += (
                " Right: how far each family lies above the Transformer at equal N; the band is the "
                "95% interval of the difference between the two laws, the points are measured means "
                "minus the Transformer's law."
            )
        if paper:
            caption += (
                " Below: the paper's own points, on another text and vocabulary; right, above its "
                f"Transformers' law, (8.8×10¹³ / N)^{KAPLAN_ALPHA:g}."
            )
        names = listed([family_name(f.name) for f in found.drawn])
        alt = f"Loss against parameters for {names}"
        alt += ", above the same for Kaplan et al. 2020." if paper else ""
        return style.render(figure, name=NAME, caption=caption, alt=alt)


def _draw_losses(axes: Any, found: Size, looks: dict[str, Any], bits: float | None) -> None:
    for f in found.drawn:
        label = family_name(f.name)
        if f.alpha.is_known:
            label += f", α = {shown(f.alpha).split(' (')[0]}"
        figures.plot_law(axes, f.fit, looks[f.name]["color"])
        figures.plot_cells(axes, f.sizes, looks[f.name], label=label)
    figures.size_axes(axes, y=figures.LOSS)
    style.bits_axis(axes, bits)
    axes.legend(fontsize=7.5)


def _draw_gaps(axes: Any, gaps: tuple[Gap, ...], looks: dict[str, Any]) -> None:
    base = gaps[0].base
    axes.axhline(0, color=looks[base.name]["color"], lw=1.3)
    for gap in gaps:
        look = looks[gap.family.name]
        figures.plot_band(axes, gap.n_params, gap.curve, gap.band(), look["color"])
        inside = [s for s in gap.family.sizes if gap.low / 1.01 <= s.n_params <= gap.high * 1.01]
        figures.plot_cells(
            axes,
            inside,
            look,
            above=lambda size: float(base.fit.predict(params=size.n_params)),
        )
    title = "Above the Transformer's law, equal N"
    figures.size_axes(axes, y=EXTRA, title=title, log_y=False)


def _draw_paper(row: Any, looks: dict[str, Any]) -> None:
    """Kaplan et al. 2020, Fig. 7 left, in the looks of one's own families."""
    models = points("kaplan2020_fig7")
    looks = style.family_styles(list(dict.fromkeys([*looks, *models["family"]])))
    row[1].axhline(0, color=looks["transformer"]["color"], lw=1.3)
    for name, part in models.groupby("family", sort=False):
        part = part.sort_values("n_params")
        extra = part["loss"] - (KAPLAN_N_C / part["n_params"]) ** KAPLAN_ALPHA
        figures.plot_points(
            row[0], part["n_params"], part["loss"], looks[name], lw=1, label=family_name(name)
        )
        lw = 0 if name == "transformer" else 1
        figures.plot_points(row[1], part["n_params"], extra, looks[name], lw=lw)
    figures.size_axes(row[0], y=figures.LOSS, title="Kaplan et al. 2020, Fig. 7")
    figures.size_axes(row[1], y=EXTRA, title="Above its Transformers' law", log_y=False)
    row[0].legend(fontsize=7.5)
