"""From Kaplan's exponent to Hoffmann's: the exponent at every step, and the change from each to the next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lmscale.report import caveats, figures, style
from lmscale.report.isoflop_figures import EXPONENT, plot_profile
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.tables import paired_words, shown, table
from lmscale.studies.reconcile import STEPS, Reading, Reconcile, Step
from lmscale.studies.results import Results
from lmscale.wording import listed, plural, power_of_ten, si, with_interval

NAME = "reconcile"
TITLE = "From Kaplan's exponent to Hoffmann's in five steps"
#: What each step does, on two lines for the axis.
TITLES = {
    1: "Kaplan's count,\nwarmup and cosine",
    2: "head\ncounted",
    3: "warmup of\nN tokens",
    4: "cosine ends\nwith budget",
    5: "tuned rate\nand batch",
}
#: Kaplan et al. 2020 at one batch size, and adjusted to the best; Hoffmann et al. 2022.
REFERENCES = {0.88: "Kaplan", 0.73: "Kaplan", 0.50: "Hoffmann"}


@register(NAME)
def section(found: Reconcile, results: Results) -> Section:
    first, last = found.readings[0].exponent, found.readings[-1].exponent
    ends = {"exponent as Kaplan": first, "after all steps": last}
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(found),
        conclusive=found.estimates["change_all"].interval is not None,
        details=_details(found),
        key_numbers=KeyNumber.of_known(ends),
        charts=[*_staircase(found), *_profiles(found)],
        grids=_grid(found),
        fits=found.fits,
        measures=_measures(found),
        warnings=_warnings(found, results),
    )


def _title(step: Step) -> str:
    return TITLES[step.number].replace("\n", " ")


def _measures(found: Reconcile) -> dict[str, Measure]:
    what = {}
    for reading in found.readings:
        n, title, seeds = reading.step.number, _title(reading.step), _seeds(reading.seeds)
        count = f"{reading.step.convention} convention, {seeds}"
        what[f"a_{n}"] = f"exponent of N_opt ∝ C^a at step {n}, {title} ({count})"
        if n > 1:
            what[f"change_{n}"] = f"exponent of step {n} ({title}) less that of step {n - 1}"
    what["change_all"] = "exponent of step 5 less that of step 1"
    for name, one in found.estimates.items():
        if one.is_known and name.startswith("change"):
            alike = paired_words(one, "seeds drawn alike in both")
            what[name] += f", {alike} ({_seeds(one.seeds)})"
    return Measure.of_each(what, found.estimates)


def _seeds(n: int) -> str:
    return plural(n, "seed") if n else "no seeds"


def _finding(found: Reconcile) -> str:
    first, last = found.readings[0].exponent, found.readings[-1].exponent
    change = found.estimates["change_all"]
    if not (first.is_known and last.is_known):
        reasons = [f"step {r.step.number}: {r.failure}" for r in found.readings if r.failure]
        return f"The steps cannot be compared yet ({'; '.join(reasons)})."
    text = (
        f"Counted and scheduled as Kaplan did, N ∝ C^{shown(first)}; after all five steps N ∝ "
        f"C^{shown(last)}, a change of {shown(change)}"
    )
    return f"{text}, which could as well be none." if change.may_be(0) else f"{text}."


def _details(found: Reconcile) -> list[str]:
    groups: dict[str, list[str]] = {
        "Lower the exponent, as in Porian et al. 2024: {}.": [],
        "Raise it, against Porian et al. 2024: {}.": [],
        "Too noisy to tell the sign: {}.": [],
    }
    falls, rises, unknown = groups.values()
    for reading in found.readings[1:]:
        change = found.estimates[f"change_{reading.step.number}"]
        if change.is_known:
            low, high = change.interval or (-math.inf, math.inf)
            group = falls if high < 0 else rises if low > 0 else unknown
            group.append(f"{_title(reading.step)} {shown(change)}")
    sentences = [text.format(listed(items)) for text, items in groups.items() if items]
    if found.reach:
        sentences.append(
            f"The budgets span a factor of {found.reach:.3g}; in the paper they span 2048, from runs "
            f"that end within the warmup to runs fivefold its length, and what a step does to a slope "
            f"is read off over that range."
        )
    return [" ".join(sentences)] if sentences else []


def _warnings(found: Reconcile, results: Results) -> list[str]:
    warnings = []
    for reading in found.readings:
        own = caveats.of_fit(reading.fit)
        own += [f"{reading.fit.failure}."] if reading.fit.failure else []
        warnings += [f"Step {reading.step.number}: {text}" for text in own]
    if len(results.table) and (lost := int((results.table["status"] != "done").sum())):
        warnings.append(f"{plural(lost, 'run')} of the experiment have no result.")
    return warnings + caveats.search_edges(results)


def _grid(found: Reconcile) -> list[Grid]:
    def change(reading: Reading) -> str:
        one = found.estimates.get(f"change_{reading.step.number}")
        return shown(one) if one else "–"

    def web_text(step: Step) -> str:
        return with_interval(*step.web_text) if step.web_text[1] else f"{step.web_text[0]}"

    return table(
        "The exponent of N_opt ∝ C^a at every step and its change from the step before, with 95% "
        "intervals, beside Porian et al. 2024 on RefinedWeb and OpenWebText2.",
        found.readings,
        {
            "step": lambda r: f"{r.step.number}. {_title(r.step)}",
            "convention": lambda r: r.step.convention,
            "a": lambda r: shown(r.exponent) + (f" ({r.failure})" if r.failure else ""),
            "change": change,
            "RefinedWeb": lambda r: with_interval(*r.step.refined_web),
            "OpenWebText2": lambda r: web_text(r.step),
        },
        text=("step", "convention"),
    )


# --- figures ------------------------------------------------------------------------------------

Exponents = Mapping[int, tuple[float, tuple[float, float] | None]]


def _staircase(found: Reconcile) -> list[Chart]:
    exponents = {r.step.number: r.exponent for r in found.readings}
    known = {n: (one.value, one.interval) for n, one in exponents.items() if one.is_known}
    if not known:
        return []
    with style.canvas(7.0, 3.5) as figure:
        axes = figure.subplots()
        _draw_staircase(axes, known)
        values = ", ".join(f"{known[n][0]:.2f}" if n in known else "none" for n in exponents)
        chart = style.render(
            figure,
            name=NAME,
            caption="The exponent of N_opt ∝ C^a as Kaplan's choices are undone one by one, with 95% "
            "intervals; hollow are those of Porian et al. 2024 (Fig. 1). Steps 1 and 2 are the same "
            "runs counted differently. Dashed: Kaplan et al. 2020 at one batch size (0.88) and adjusted "
            "to the best (0.73), and Hoffmann et al. 2022.",
            alt=f"Exponents at five steps: {values}",
        )
    return [chart]


def _draw_staircase(axes: Any, found: Exponents) -> None:
    """Exponents by step number beside the paper's, with the references as lines."""
    looks = style.family_styles(["transformer", "RefinedWeb", "OpenWebText2"])
    for value, label in REFERENCES.items():
        axes.axhline(value, color=style.MUTED, lw=0.8, ls=(0, (4, 3)), zorder=0)
        axes.annotate(
            f"{label} {value:.2f}",
            (6.2, value),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            size=7.5,
            color=style.MUTED,
        )
    axes.step(
        list(found),
        [value for value, _ in found.values()],
        where="mid",
        color=looks["transformer"]["color"],
        lw=1.0,
        alpha=0.5,
    )
    series: dict[str, tuple[str, float, Exponents]] = {
        "transformer": ("this experiment", 0.0, found),
        "RefinedWeb": (
            "Porian et al., RefinedWeb",
            -0.16,
            {s.number: s.refined_web for s in STEPS},
        ),
        "OpenWebText2": (
            "Porian et al., OpenWebText2",
            0.16,
            {s.number: s.web_text for s in STEPS},
        ),
    }
    for family, (label, shift, points) in series.items():
        look, ours = dict(looks[family]), family == "transformer"
        for n, (_, interval) in points.items():
            if interval:
                axes.plot([n + shift] * 2, interval, color=look["color"], lw=2 if ours else 1.2)
        look |= {"ms": 6} if ours else {"ms": 4.5, "mfc": style.PAPER}
        at, values = [n + shift for n in points], [value for value, _ in points.values()]
        axes.plot(at, values, **look, lw=0, label=label, zorder=3)
    ticks = [f"{n}. {title}" for n, title in TITLES.items()]
    axes.set_xticks(list(TITLES), ticks, size=7.5)
    axes.set_xlim(0.5, 6.2)
    low, high = axes.get_ylim()
    # One wild interval must not flatten all the rest.
    axes.set_ylim(max(low, -0.6), min(high, 2.0))
    axes.grid(False, axis="x")
    axes.set_ylabel(EXPONENT)
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)


def _profiles(found: Reconcile) -> list[Chart]:
    """Small multiples: how each step moves the best size of every budget."""
    readings = [reading for reading in found.readings if not reading.fit.failure]
    if not readings:
        return []
    with style.canvas(10.4, 3.0) as figure:
        panels = figure.subplots(1, len(readings), sharey=True, squeeze=False)[0]
        for axes, reading in zip(panels, readings, strict=True):
            profiles, step = reading.fit.details["profiles"], reading.step
            colours = style.ordered_colours([p.flops for p in profiles])
            for p in profiles:
                label, sizes = power_of_ten(p.flops), {"size": 3.5, "minimum": 4.5}
                plot_profile(axes, p, colours[p.flops], means=True, label=label, **sizes)
            x = "N (no head)" if step.convention == "kaplan" else "N (head)"
            figures.size_axes(axes, x=x, log_y=False)
            axes.set_title(f"{step.number}. {TITLES[step.number]}", size=8)
            axes.legend(fontsize=6.5, handletextpad=0.1, borderpad=0.1)
        panels[0].set_ylabel(figures.LOSS)
        sizes = [size for reading in readings for size in reading.rows["size"]]
        chart = style.render(
            figure,
            name=f"{NAME}-profiles",
            caption="Loss over size at every budget (FLOPs in the legends), step by step: mean over "
            "seeds, parabola and minimum; dashed where a profile has no minimum inside its sizes.",
            alt=f"IsoFLOP profiles of {len(readings)} steps, sizes from {si(min(sizes))} to "
            f"{si(max(sizes))}.",
        )
    return [chart]
