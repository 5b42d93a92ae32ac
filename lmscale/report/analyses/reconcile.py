"""Five steps from Kaplan's exponent to Hoffmann's (Porian et al. 2024, Fig. 1)."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import norm
from scipy.stats import t as student_t

from lmscale import laws
from lmscale.laws import FitError, FitResult, TableError
from lmscale.report import caveats, style
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.studies.estimate import LEAST_SEEDS
from lmscale.studies.exponents import (
    LEAST_BUDGETS,
)
from lmscale.studies.exponents import (
    difference_of_pairs as difference,
)
from lmscale.studies.exponents import (
    exponent_and_interval as exponent,
)
from lmscale.studies.fits import refused
from lmscale.studies.results import Results
from lmscale.wording import listed, plural, power_of_ten, si, with_interval

__all__ = ["STEPS", "analyse", "draw_staircase"]

NAME = "reconcile"
TITLE = "From Kaplan's exponent to Hoffmann's in five steps"
#: An evaluation belongs to a budget that it misses by no more than this.
NEAR = 0.05
#: Draws of the seeds for the changes from step to step.
DRAWS = 2000


@dataclass(frozen=True)
class Step:
    """One step: which runs, how they are counted, and Porian et al.'s exponents (95% intervals)."""

    number: int
    family: str
    convention: str
    title: str
    refined_web: tuple[float, tuple[float, float]]
    web_text: tuple[float, tuple[float, float] | None]


STEPS = (
    Step(
        *(1, "step 1 and 2", "kaplan", "Kaplan's count,\nwarmup and cosine"),
        *((0.835, (0.824, 0.846)), (0.864, (0.819, 0.897))),
    ),
    Step(
        *(2, "step 1 and 2", "standard", "head\ncounted"),
        *((0.706, (0.691, 0.717)), (0.699, None)),
    ),
    Step(
        *(3, "step 3", "standard", "warmup of\nN tokens"),
        *((0.602, (0.591, 0.617)), (0.603, None)),
    ),
    Step(
        *(4, "step 4", "standard", "cosine ends\nwith budget"),
        *((0.571, (0.560, 0.589)), (0.574, None)),
    ),
    Step(
        *(5, "step 5", "standard", "tuned rate\nand batch"),
        *((0.497, (0.491, 0.505)), (0.518, (0.493, 0.541))),
    ),
)
#: What else the figure is held against.
REFERENCES = (
    # Kaplan et al. 2020: at one batch size, and adjusted to the best.
    (0.88, "Kaplan"),
    (0.73, "Kaplan"),
    (0.50, "Hoffmann"),
)


@dataclass(frozen=True)
class _Reading:
    """One step's rows (params, tokens, flops, loss, seed, budget, size) and fit, or why none."""

    step: Step
    rows: pd.DataFrame = field(repr=False)
    fit: FitResult | None
    failure: str = ""
    #: Exponents with the seeds of every size drawn anew, the same in every step.
    draws: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)

    @property
    def exponent(self) -> tuple[float, tuple[float, float] | None] | None:
        return None if self.failure else exponent(self.fit)


def analyse(study: Results) -> Section:
    """The exponent at every step, and the change from each to the next."""
    readings = [_read(study, step) for step in STEPS]
    measures = _measures(readings)
    found = [r for r in readings if r.exponent]
    drawn = [r for r in readings if r.fit is not None]
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(readings, measures),
        conclusive=measures["change_all"].interval is not None,
        details=_details(readings, measures),
        key_numbers=[
            KeyNumber.of(label, *r.exponent)
            for r, label in ((readings[0], "exponent as Kaplan"), (readings[-1], "after all steps"))
            if r.exponent
        ],
        charts=[
            *([_staircase(readings)] if found else []),
            *([_profiles(study, drawn)] if drawn else []),
        ],
        grids=_grid(readings, measures),
        fits={
            f"step {r.step.number}/{r.step.convention}": r.fit
            or refused("isoflop", r.failure or "no runs")
            for r in readings
        },
        measures=measures,
        warnings=_warnings(study, readings),
    )


# --- reading ------------------------------------------------------------------------------------


def _read(study: Results, step: Step) -> _Reading:
    fields = study.experiment.get("fields", {})
    budgets = fields.get("kaplan_budgets" if step.convention == "kaplan" else "budgets", ())
    usable = study.usable
    runs = usable[usable["family"] == step.family] if len(usable) else usable
    rows = [row for _, run in runs.iterrows() for row in _crossings(study, run, step, budgets)]
    rows = pd.DataFrame(rows)
    if not len(rows):
        return _Reading(step, rows, None, "no run of it has ended well yet")
    table = rows.drop(columns="size")
    try:
        fit = laws.fit(laws.Table.read(table, convention=step.convention), "isoflop")
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        return _Reading(step, rows, None, str(error))
    good = len(fit.details["frontier"]["flops"])
    if good < LEAST_BUDGETS:
        of = f"{good} of {plural(rows['budget'].nunique(), 'budget')} with a usable profile"
        return _Reading(step, rows, fit, f"{of}, where a power law needs {LEAST_BUDGETS}")
    return _Reading(step, rows, fit, draws=_draws(rows, fit))


def _crossings(study: Results, run: pd.Series, step: Step, budgets: Any) -> list[dict[str, Any]]:
    """A run's loss at every budget that it was evaluated at, or that it was trained for."""
    per_token = float(run[f"flops_{step.convention}"] / run["tokens"])
    if "budget" in run and math.isfinite(run["budget"]):
        budgets, at = [float(run["budget"])], [(float(run["tokens"]), float(run["loss"]))]
    else:
        name = study.eval_name
        at = [
            (float(record["tokens"]), float(record["eval"][name]["loss"]))
            for record in study.ended.get(run["run"], {}).get("evaluations", [])
            if name in record["eval"]
        ]
    rows = []
    for budget in budgets:
        wanted = budget / per_token
        near = min(at, key=lambda item: abs(item[0] - wanted), default=None)
        if near and abs(near[0] / wanted - 1) <= NEAR and math.isfinite(near[1]):
            rows.append(
                {
                    "params": float(run[f"params_{step.convention}"]),
                    "tokens": near[0],
                    "flops": float(budget),
                    "loss": near[1],
                    "seed": int(run["seed"]),
                    "budget": float(budget),
                    "size": float(run["params_standard"]),
                }
            )
    return rows


def _draws(rows: pd.DataFrame, fit: FitResult) -> np.ndarray:
    """Exponents from seeds drawn with replacement, size by size.

    A size's draw depends on the size alone: the runs of one seed share their data's order and their
    first weights at every step, so that this noise cancels in the changes. Empty with fewer than
    three seeds. The spread is widened for what drawing from so few takes off.
    """
    seeds = sorted(set(rows["seed"]))
    if len(seeds) < LEAST_SEEDS:
        return np.empty(0)
    minima, flops = [], []
    for p in (p for p in fit.details["profiles"] if p.ok):
        index = p.row[p.used] - 1
        size, seed = rows["size"].to_numpy()[index], rows["seed"].to_numpy()[index]
        weight = np.empty((DRAWS, len(index)))
        for n in set(size):
            counts = np.random.default_rng(int(n)).multinomial(
                len(seeds), np.full(len(seeds), 1 / len(seeds)), size=DRAWS
            )
            mine = size == n
            weight[:, mine] = counts[:, np.searchsorted(seeds, seed[mine])]
        u = np.log(p.params[p.used]) - p.center
        design = np.stack([np.ones_like(u), u, u * u], axis=1)
        normal = np.einsum("bn,ni,nj->bij", weight, design, design) + 1e-9 * np.eye(3)
        right = np.einsum("bn,ni,n->bi", weight, design, p.loss[p.used])
        _, c1, c2 = np.linalg.solve(normal, right[..., None])[..., 0].T
        with np.errstate(divide="ignore", invalid="ignore"):
            at = np.where(c2 > 0, -c1 / (2 * c2), np.nan)
        # As in `laws.fit_isoflop`: a nearly flat draw has no minimum.
        at = np.where(np.abs(at) < 2 * np.ptp(u) + np.abs(u).max(), at, np.nan)
        minima.append(p.center + at)
        flops.append(math.log(p.flops))
    x = np.array(flops) - np.mean(flops)
    slope = (np.stack(minima) * x[:, None]).sum(axis=0) / (x @ x)
    freedom = (len(seeds) - 1) * rows["size"].nunique()
    widen = student_t.ppf(0.975, freedom) / norm.ppf(0.975)
    widen *= math.sqrt(len(seeds) / (len(seeds) - 1))
    return fit.parameters["a"] + widen * (slope - fit.parameters["a"])


# --- measures and words -------------------------------------------------------------------------


def _measures(readings: list[_Reading]) -> dict[str, Measure]:
    measures = {}
    for r in readings:
        found = r.exponent
        measures[f"a_{r.step.number}"] = Measure(
            what=f"exponent of N_opt ∝ C^a at step {r.step.number}, {_title(r.step)} "
            f"({r.step.convention} convention, {_seeds(r)})",
            value=found[0] if found else None,
            interval=found[1] if found else None,
            undecided_because=r.failure,
        )
    for before, after in itertools.pairwise(readings):
        number = after.step.number
        what = f"exponent of step {number} ({_title(after.step)}) less that of step {number - 1}"
        measures[f"change_{number}"] = _change(what, before, after)
    measures["change_all"] = _change(
        "exponent of step 5 less that of step 1", readings[0], readings[-1]
    )
    return measures


def _change(what: str, before: _Reading, after: _Reading) -> Measure:
    if before.exponent is None or after.exponent is None:
        missing = before if before.exponent is None else after
        return Measure(
            what=what,
            value=None,
            undecided_because=f"step {missing.step.number}: {missing.failure or 'no runs'}",
        )
    if not (len(before.draws) and len(after.draws)):
        seeds = min(r.rows["seed"].nunique() for r in (before, after))
        what += f", their intervals taken as independent ({_seeds(after)})"
        found = difference("change", after.exponent, before.exponent, "", seeds=seeds)
        return Measure.of(what, found)
    gap = after.draws - before.draws
    gap = gap[np.isfinite(gap)]
    interval = tuple(np.percentile(gap, [2.5, 97.5]).tolist()) if len(gap) > 100 else None
    return Measure(
        what=f"{what}, seeds drawn alike in both ({_seeds(after)})",
        value=after.exponent[0] - before.exponent[0],
        interval=interval,
    )


def _title(step: Step) -> str:
    return step.title.replace("\n", " ")


def _seeds(r: _Reading) -> str:
    return plural(r.rows["seed"].nunique(), "seed") if len(r.rows) else "no seeds"


def _finding(readings: list[_Reading], measures: dict[str, Measure]) -> str:
    first, last, change = readings[0], readings[-1], measures["change_all"]
    if first.exponent is None or last.exponent is None:
        reasons = [f"step {r.step.number}: {r.failure}" for r in readings if r.failure]
        return f"The steps cannot be compared yet ({'; '.join(reasons)})."
    text = (
        f"Counted and scheduled as Kaplan did, N ∝ C^{with_interval(*first.exponent)}; after all "
        f"five steps N ∝ C^{with_interval(*last.exponent)}, a change of "
        f"{with_interval(change.value, change.interval)}"
    )
    if change.interval and change.interval[0] < 0 < change.interval[1]:
        text += ", which could as well be none"
    return text + "."


def _details(readings: list[_Reading], measures: dict[str, Measure]) -> list[str]:
    words: dict[str, list[str]] = {"falls": [], "rises": [], "open": []}
    for r in readings[1:]:
        change = measures[f"change_{r.step.number}"]
        if change.value is None:
            continue
        shown = f"{_title(r.step)} {with_interval(change.value, change.interval)}"
        low, high = change.interval or (-math.inf, math.inf)
        words["falls" if high < 0 else "rises" if low > 0 else "open"].append(shown)
    sentences = [
        (words["falls"], "Lower the exponent, as in Porian et al. 2024: {}."),
        (words["rises"], "Raise it, against Porian et al. 2024: {}."),
        (words["open"], "Too noisy to tell the sign: {}."),
    ]
    text = " ".join(sentence.format(listed(items)) for items, sentence in sentences if items)
    reach = [r.rows["budget"].max() / r.rows["budget"].min() for r in readings if len(r.rows)]
    if reach:
        text += (
            f" The budgets span a factor of {max(reach):.3g}; in the paper they span 2048, from "
            f"runs that end within the warmup to runs fivefold its length, and what a step does to "
            f"a slope is read off over that range."
        )
    return [text] if text else []


def _warnings(study: Results, readings: list[_Reading]) -> list[str]:
    warnings = []
    for r in readings:
        if r.fit is not None:
            warnings += [f"Step {r.step.number}: {w[0].upper()}{w[1:]}." for w in r.fit.warnings]
        elif r.failure:
            warnings.append(f"Step {r.step.number}: {r.failure}.")
    if len(study.table) and (lost := int((study.table["status"] != "done").sum())):
        warnings.append(f"{plural(lost, 'run')} of the experiment have no result.")
    return warnings + caveats.search_edges(study)


def _grid(readings: list[_Reading], measures: dict[str, Measure]) -> list[Grid]:
    rows = []
    for r in readings:
        change = measures.get(f"change_{r.step.number}")
        rows.append(
            [
                f"{r.step.number}. {_title(r.step)}",
                r.step.convention,
                with_interval(*r.exponent) if r.exponent else f"– ({r.failure})",
                with_interval(change.value, change.interval)
                if change and change.value is not None
                else "–",
                with_interval(*r.step.refined_web),
                with_interval(*r.step.web_text) if r.step.web_text[1] else f"{r.step.web_text[0]}",
            ]
        )
    return [
        Grid(
            caption="The exponent of N_opt ∝ C^a at every step and its change from the step before, "
            "with 95% intervals, beside Porian et al. 2024 on RefinedWeb and OpenWebText2.",
            header=["step", "convention", "a", "change", "RefinedWeb", "OpenWebText2"],
            rows=rows,
            numeric=(2, 3, 4, 5),
        )
    ]


# --- figures ------------------------------------------------------------------------------------


def _staircase(readings: list[_Reading]) -> Chart:
    with style.canvas(7.0, 3.5) as figure:
        axes = figure.subplots()
        draw_staircase(axes, {r.step.number: r.exponent for r in readings if r.exponent})
        return style.render(
            figure,
            name=NAME,
            caption="The exponent of N_opt ∝ C^a as Kaplan's choices are undone one by one, with 95% "
            "intervals; hollow are those of Porian et al. 2024 (Fig. 1). Steps 1 and 2 are the same "
            "runs counted differently. Dashed: Kaplan et al. 2020 at one batch size (0.88) and adjusted "
            "to the best (0.73), and Hoffmann et al. 2022.",
            alt="Exponents at five steps: "
            + ", ".join(f"{r.exponent[0]:.2f}" if r.exponent else "none" for r in readings),
        )


def draw_staircase(axes: Any, found: dict[int, tuple[float, tuple[float, float] | None]]) -> None:
    """Exponents by step number beside the paper's, with the references as lines."""
    looks = style.family_styles(["transformer", "RefinedWeb", "OpenWebText2"])
    for value, label in REFERENCES:
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
    series = [
        ("this experiment", "transformer", 0.0, found),
        (
            "Porian et al., RefinedWeb",
            "RefinedWeb",
            -0.16,
            {s.number: s.refined_web for s in STEPS},
        ),
        (
            "Porian et al., OpenWebText2",
            "OpenWebText2",
            0.16,
            {s.number: s.web_text for s in STEPS},
        ),
    ]
    for label, family, shift, points in series:
        look = looks[family]
        ours = family == "transformer"
        at = np.array(sorted(points))
        values = [points[n][0] for n in at]
        if ours:
            axes.step(at, values, where="mid", color=look["color"], lw=1.0, alpha=0.5)
        for n in at:
            if points[n][1]:
                axes.plot([n + shift] * 2, points[n][1], color=look["color"], lw=2 if ours else 1.2)
        axes.plot(
            at + shift,
            values,
            look["marker"],
            color=look["color"],
            mfc=look["color"] if ours else style.PAPER,
            ms=6 if ours else 4.5,
            label=label,
            zorder=3,
        )
    axes.set_xticks([s.number for s in STEPS], [f"{s.number}. {s.title}" for s in STEPS], size=7.5)
    axes.set_xlim(0.5, 6.2)
    low, high = axes.get_ylim()
    # One wild interval must not flatten all the rest.
    axes.set_ylim(max(low, -0.6), min(high, 2.0))
    axes.grid(False, axis="x")
    axes.set_ylabel(r"exponent $a$ of $N_{\mathrm{opt}} \propto C^{\,a}$")
    axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=3)


def _profiles(study: Results, readings: list[_Reading]) -> Chart:
    """Small multiples: how each step moves the best size of every budget."""
    with style.canvas(10.4, 3.0) as figure:
        panels = figure.subplots(1, len(readings), sharey=True, squeeze=False)[0]
        for axes, r in zip(panels, readings, strict=True):
            profiles = r.fit.details["profiles"]
            colours = style.ordered_colours([p.flops for p in profiles])
            for p in profiles:
                colour = colours[p.flops]
                mean = pd.Series(p.loss).groupby(p.params).mean()
                axes.plot(mean.index, mean, "o", color=colour, ms=3.5, label=power_of_ten(p.flops))
                if p.coefficients is not None:
                    inside = p.params[p.used]
                    n = np.geomspace(inside.min() / 1.1, inside.max() * 1.1, 50)
                    line = "-" if p.ok else (0, (4, 2))
                    axes.plot(n, p.curve(n), color=colour, lw=1.2, ls=line)
                if p.ok:
                    axes.plot(p.n_opt, p.loss_opt, "D", ms=4.5, color=colour, mec=style.INK)
            axes.set_title(f"{r.step.number}. {r.step.title}", size=8)
            axes.set_xlabel("N (" + ("no head" if r.step.convention == "kaplan" else "head") + ")")
            style.log_axis(axes.xaxis, "count")
            axes.legend(fontsize=6.5, handletextpad=0.1, borderpad=0.1)
        panels[0].set_ylabel("loss (nats per token)")
        n = [r.rows["size"] for r in readings]
        return style.render(
            figure,
            name=f"{NAME}-profiles",
            caption="Loss over size at every budget (FLOPs in the legends), step by step: mean over "
            "seeds, parabola and minimum; dashed where a profile has no minimum inside its sizes.",
            alt=f"IsoFLOP profiles of {len(readings)} steps, sizes from "
            f"{si(min(x.min() for x in n))} to {si(max(x.max() for x in n))}.",
        )
