"""Learning curves of all sizes as one law, L(N, S_min) (Kaplan et al. 2020, Fig. 4 right, eq. 1.6)."""

from __future__ import annotations

import numpy as np

from lmscale import laws
from lmscale.laws import FitError, FitResult, TableError
from lmscale.report import style
from lmscale.report.caveats import BATCH_NOTE
from lmscale.report.figures import size_legend
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.studies.estimate import few_seeds
from lmscale.studies.fits import refused
from lmscale.studies.learning_curves import (
    FAR,
    LARGEST_MISFIT,
    Ladder,
    fit_learning_curves,
    ladder,
    misfit,
    no_law,
    with_batch_error,
)
from lmscale.studies.results import Results
from lmscale.wording import number, plural, with_interval

__all__ = ["analyse", "draw_learning_curves"]

NAME = "learning"
TITLE = "Learning curves as a law of size and steps"
#: Kaplan et al. 2020, Table 3.
PAPER = laws.published("kaplan2020-ns").parameters


def analyse(study: Results) -> Section:
    """The fit of L(N, S_min), its residuals, and its constants beside the paper's."""
    found = ladder(study)
    if found is None:
        return Section(name=NAME, title=TITLE, finding="No run has evaluations along the way yet.")
    try:
        fit = fit_learning_curves(found)
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        return Section(
            name=NAME,
            title=TITLE,
            finding=f"No law yet: {error}.",
            fits={f"{found.family}/kaplan": refused("kaplan-ns", str(error))},
        )
    drawn, fit = fit, with_batch_error(fit, found)
    alpha = {name: _shown(fit, name) for name in ("alpha_S", "alpha_N")}
    return Section(
        name=NAME,
        title=TITLE,
        finding=f"One law of size and steps, L(N, S), describes the learning curves of "
        f"{plural(len(found.sizes), 'size')} within {100 * misfit(fit):.2g}% (root mean square), with "
        f"exponents {alpha['alpha_S']} of the steps and {alpha['alpha_N']} of the size; Kaplan et "
        f"al. 2020 found 0.76 and 0.077.",
        conclusive=not no_law(fit),
        key_numbers=[
            KeyNumber.of(
                "exponent of the steps in the learning curves",
                fit.parameters["alpha_S"],
                fit.intervals.get("alpha_S"),
            )
        ],
        charts=[draw_learning_curves(drawn, found)],
        grids=[_constants(fit)],
        fits={f"{found.family}/kaplan": fit},
        measures=_measures(fit, found, _undecided(fit, found)),
        warnings=_warnings(fit, found),
    )


def _shown(fit: FitResult, name: str) -> str:
    return with_interval(fit.parameters[name], fit.intervals.get(name))


def _undecided(fit: FitResult, found: Ladder) -> str:
    """Why the exponents decide no claim."""
    batches = [size.batch_tokens / found.b_crit(size.loss) for size in found.sizes]
    # S_min = S / (1 + B_crit/B): a batch far above the critical one needs no correction.
    unsure = "" if min(map(np.min, batches)) > FAR else found.unsure_batch()
    few = few_seeds(found.n_seeds, "an exponent of learning curves")
    return no_law(fit) or few or unsure


def _measures(fit: FitResult, found: Ladder, undecided: str) -> dict[str, Measure]:
    where = f"{plural(len(found.sizes), 'size')}, {plural(found.n_seeds, 'seed')} each"
    words = {
        "alpha_S": f"exponent of the steps in L(N, S_min), {where}",
        "alpha_N": f"exponent of the size in L(N, S_min), {where}",
    }
    return {
        name: Measure(
            what=what,
            value=fit.parameters[name],
            interval=fit.intervals.get(name),
            undecided_because=undecided,
        )
        for name, what in words.items()
    }


def _warnings(fit: FitResult, found: Ladder) -> list[str]:
    warnings = [f"{warning[0].upper()}{warning[1:]}." for warning in fit.warnings]
    if misfit(fit) >= LARGEST_MISFIT:
        warnings.append(
            f"The curves stray from the law by {100 * misfit(fit):.2g}% (root mean square): where the "
            f"residuals show a pattern, its constants depend on which part of the curves was fitted."
        )
    if not found.measured_batch:
        warnings.append(BATCH_NOTE)
    return warnings


def _constants(fit: FitResult) -> Grid:
    rows = []
    for name, label in (("alpha_S", "α_S"), ("S_c", "S_c"), ("alpha_N", "α_N"), ("N_c", "N_c")):
        low, high = fit.intervals.get(name, (np.nan, np.nan))
        rows.append(
            [
                label,
                number(fit.parameters[name], 3),
                f"{number(low, 3)} to {number(high, 3)}" if np.isfinite([low, high]).all() else "–",
                number(PAPER[name], 3),
            ]
        )
    return Grid(
        caption="Constants of L(N, S_min) = (N_c/N)^α_N + (S_c/S_min)^α_S with 95% intervals "
        f"({fit.interval_method}); the paper's are for WebText2 and a vocabulary of 50,257. N_c and "
        "α_N go together, as do S_c and α_S: compare losses, not constants.",
        header=["constant", "these runs", "95% interval", "Kaplan et al. 2020, Table 3"],
        rows=rows,
        numeric=(1, 2, 3),
    )


def draw_learning_curves(fit: FitResult, found: Ladder) -> Chart:
    """Measured curves with the law through them, and the residuals."""
    colours = style.ordered_colours([size.n_params for size in found.sizes])
    with style.canvas(7.0, 3.1) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        extent = [np.inf, 0.0]
        for size in found.sizes:
            colour = colours[size.n_params]
            for losses in size.losses:
                s_min = laws.adjusted_steps(
                    size.steps,
                    size.batch_tokens,
                    losses,
                    **found.batch_law,
                )
                extent = [min(extent[0], s_min[0]), max(extent[1], s_min[-1])]
                left.plot(s_min, losses, ".", color=colour, ms=3.2, alpha=0.7)
                law = fit.predict(params=size.n_params, steps=s_min)
                right.plot(s_min, 100 * (losses / law - 1), color=colour, lw=0.9, alpha=0.85)
        steps = np.geomspace(*extent, 80)
        for size in found.sizes:
            law = fit.predict(params=size.n_params, steps=steps)
            left.plot(steps, law, color=colours[size.n_params], lw=1.2)
            if fit.draws:
                low, high = fit.band(params=np.full_like(steps, size.n_params), steps=steps)
                left.fill_between(steps, low, high, color=colours[size.n_params], alpha=0.15, lw=0)
        right.axhline(0, color=style.INK, lw=0.8)
        left.set(xlabel="$S_{min}$, updates of a very large batch", ylabel="loss (nats per token)")
        left.set_title("Curves and law")
        right.set(xlabel="$S_{min}$", ylabel="loss over the law's (%)")
        right.set_title("Residuals")
        for axes in (left, right):
            style.log_axis(axes.xaxis, "count")
        style.log_axis(left.yaxis, "plain")
        size_legend(figure, colours)
        return style.render(
            figure,
            name="learning-curves",
            caption="Evaluated loss of every run after the warmup (points, one colour a size) over "
            "updates adjusted to a very large batch, and the fitted L(N, S_min) with its 95% band "
            "(lines); right, what the law leaves over (Kaplan et al. 2020, Fig. 4 right).",
            alt=f"Learning curves of {len(found.sizes)} sizes with the fitted law, and residuals.",
        )
