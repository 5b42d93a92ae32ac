"""Learning curves as a law of size and steps, its residuals, and its constants beside the paper's."""

from __future__ import annotations

import numpy as np

from lmscale import laws
from lmscale.laws import FitResult
from lmscale.report import caveats, figures, style
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.tables import by_family, edges, shown, table
from lmscale.studies.learning import Learning
from lmscale.studies.learning_curves import (
    LARGEST_MISFIT,
    NO_CURVES,
    Ladder,
    law_rejected_because,
    misfit,
)
from lmscale.studies.results import Results
from lmscale.wording import number, plural, sentence

NAME = "learning"
TITLE = "Learning curves as a law of size and steps"
#: Kaplan et al. 2020, Table 3.
PAPER = laws.published("kaplan2020-ns").parameters
SYMBOLS = {"alpha_S": "α_S", "S_c": "S_c", "alpha_N": "α_N", "N_c": "N_c"}


@register(NAME)
def section(found: Learning, results: Results) -> Section:
    measures = _measures(found)
    if found.fit.failure:
        why = found.fit.failure
        finding = sentence(why) if why == NO_CURVES else f"No law yet: {why}."
        return Section(
            name=NAME,
            title=TITLE,
            finding=finding,
            grids=_families(found),
            fits=found.fits,
            measures=measures,
        )
    alpha = found.estimates
    return Section(
        name=NAME,
        title=TITLE,
        finding=f"One law of size and steps, L(N, S), describes the learning curves of "
        f"{plural(len(found.ladder.sizes), 'size')} within {100 * misfit(found.fit):.2g}% (root "
        f"mean square), with exponents {shown(alpha['alpha_S'])} of the steps and "
        f"{shown(alpha['alpha_N'])} of the size; Kaplan et al. 2020 found 0.76 and 0.077.",
        conclusive=not law_rejected_because(found.fit),
        key_numbers=[
            KeyNumber.of_estimate("exponent of the steps in the learning curves", alpha["alpha_S"])
        ],
        charts=[_chart(found.fit_at_batch_law, found.ladder)],
        grids=[*_constants(found.fit), *_families(found)],
        fits=found.fits,
        measures=measures,
        warnings=_warnings(found),
    )


def _families(found: Learning) -> list[Grid]:
    columns = {"alpha_S": "α_S", "alpha_N": "α_N"}
    return by_family("Exponents of L(N, S_min)", [found, *found.others], columns)


def _measures(found: Learning) -> dict[str, Measure]:
    one = found.estimates["alpha_S"]
    where = f", {plural(one.n, 'size')}, {plural(one.seeds, 'seed')} each" if one.n else ""
    what = {"alpha_S": "steps", "alpha_N": "size"}
    return {
        name: Measure.of(f"exponent of the {what[name]} in L(N, S_min){where}", estimate)
        for name, estimate in found.estimates.items()
    }


def _warnings(found: Learning) -> list[str]:
    warnings = caveats.of_fit(found.fit)
    if misfit(found.fit) >= LARGEST_MISFIT:
        warnings.append(
            f"The curves stray from the law by {100 * misfit(found.fit):.2g}% (root mean square): "
            f"where the residuals show a pattern, its constants depend on which part of the curves "
            f"was fitted."
        )
    return warnings if found.ladder.measured_batch else [*warnings, caveats.BATCH_NOTE]


def _constants(fit: FitResult) -> list[Grid]:
    return table(
        "Constants of L(N, S_min) = (N_c/N)^α_N + (S_c/S_min)^α_S with 95% intervals "
        f"({fit.interval_method}); the paper's are for WebText2 and a vocabulary of 50,257. N_c and "
        "α_N are strongly correlated, as are S_c and α_S: compare losses, not constants.",
        SYMBOLS,
        {
            "constant": SYMBOLS.get,
            "these runs": lambda name: number(fit.parameters[name], 3),
            "95% interval": lambda name: edges(fit.intervals.get(name)),
            "Kaplan et al. 2020, Table 3": lambda name: number(PAPER[name], 3),
        },
        text=("constant",),
    )


def _chart(fit: FitResult, found: Ladder) -> Chart:
    """Measured curves with the law through them, and the residuals."""
    colours = style.ordered_colours([size.n_params for size in found.sizes])
    with style.canvas(7.0, 3.1) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        reached = []
        for size in found.sizes:
            colour = colours[size.n_params]
            for losses in size.losses:
                s_min = laws.adjusted_steps(
                    size.steps, size.batch_tokens, losses, **found.batch_law
                )
                reached += [s_min[0], s_min[-1]]
                left.plot(s_min, losses, ".", color=colour, ms=3.2, alpha=0.7)
                law = fit.predict(params=size.n_params, steps=s_min)
                right.plot(s_min, 100 * (losses / law - 1), color=colour, lw=0.9, alpha=0.85)
        steps = np.geomspace(min(reached), max(reached), 80)
        for size in found.sizes:
            at = {"params": np.full_like(steps, size.n_params), "steps": steps}
            edges = fit.band(**at) if fit.draws else None
            colour = colours[size.n_params]
            figures.plot_band(left, steps, fit.predict(**at), edges, colour, lw=1.2)
        right.axhline(0, color=style.INK, lw=0.8)
        label = "$S_{min}$, updates of a very large batch"
        figures.size_axes(left, x=label, y=figures.LOSS, title="Curves and law")
        label = "loss over the law's (%)"
        figures.size_axes(right, x="$S_{min}$", y=label, title="Residuals", log_y=False)
        figures.size_legend(figure, colours)
        return style.render(
            figure,
            name="learning-curves",
            caption="Evaluated loss of every run after the warmup (points, one colour a size) over "
            "updates adjusted to a very large batch, and the fitted L(N, S_min) with its 95% band "
            "(lines); right, what the law leaves over (Kaplan et al. 2020, Fig. 4 right).",
            alt=f"Learning curves of {len(found.sizes)} sizes with the fitted law, and residuals.",
        )
