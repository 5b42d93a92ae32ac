"""Learning-rate schedules of one model (Kaplan et al. 2020, Fig. 22; Hoffmann et al. 2022, App. B).

Schedules are compared seed by seed: runs of one seed share their first weights and the order of their
data, so their differences hold less noise than their losses. Of n schedules with s seeds each, that
noise is what remains beside a mean for every schedule and one for every seed, with (n - 1)(s - 1)
degrees of freedom. It is smaller among schedules that decay, which end on an average of their last
steps, so two of those are compared with the noise of these alone, and any others with that of all.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import studentized_range
from scipy.stats import t as student

from lmscale.report import style
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.studies.estimate import LEAST_SEEDS, few_seeds
from lmscale.studies.results import Results
from lmscale.wording import flipped, number, plural, with_interval

__all__ = ["analyse"]

NAME = "schedules"
TITLE = "Learning-rate schedules"
#: Least summed learning rate, over that of the cosine, of the schedules whose spread is measured: the
#: paper asks for a large one and names no number, so the spread is taken at each.
LEAST_SUMS = (0.5, 0.6, 0.7, 0.8, 0.9)
#: Updates of the runs of Kaplan et al. 2020, Fig. 22, and the share of them from which runs speak of it.
PAPER_STEPS, LEAST_SHARE = 250_000, 0.1
#: Loss that runs of Kaplan et al. 2020, Fig. 22, differ by whatever the schedule.
PAPER_NOISE = 0.05
#: Names that the experiment gives the schedules of the published comparisons.
TO_ZERO, LINEAR, COOLDOWN = "cosine to 0", "linear to 0", "cooldown over 20%"


@dataclass(frozen=True)
class _Schedule:
    """One schedule at its best peak; `losses` by seed, in the order of the seeds."""

    name: str
    losses: np.ndarray
    #: Cosine cycle over the run, NaN for schedules that are not of that series.
    cycle: float
    #: Whether it warms up and decays to a tenth or less by the end.
    decays: bool
    summed_lr: float
    peak_lr: float

    @property
    def mean(self) -> float:
        return float(self.losses.mean())


@dataclass(frozen=True)
class _Difference:
    value: float
    interval: tuple[float, float] | None


def analyse(study: Results) -> Section:
    """Every schedule against the cosine that ends with the run."""
    schedules, notes = _schedules(study)
    base = next((s for s in schedules if s.cycle == 1), None)
    if base is None or len(schedules) < 2:
        return Section(
            name=NAME,
            title=TITLE,
            finding="Nothing to compare yet: it takes the cosine that ends with the run and another "
            "schedule.",
            warnings=notes,
        )
    spreads = _spreads(schedules, base)
    cosines = sorted((s for s in schedules if math.isfinite(s.cycle)), key=lambda s: s.cycle)
    spread = _over_thresholds(spreads)
    by_name = {s.name: s for s in schedules}
    by_cycle = {s.cycle: s.name for s in cosines}
    pairs = {
        "zero_over_tenth": (TO_ZERO, base.name),
        "cosine_over_linear": (base.name, LINEAR),
        "cooldown_over_cosine": (COOLDOWN, base.name),
    }
    measures = {
        "spread": _spread_measure(study, spreads, spread, base),
        "overshoot": _cycle_measure(by_name, by_cycle, 2.0),
        "overshoot_quarter": _cycle_measure(by_name, by_cycle, 1.25),
    } | {
        name: _pair_measure(by_name, f"nats that {a} ends above {b}", a, b)
        for name, (a, b) in pairs.items()
    }
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(spreads, measures["overshoot"]),
        conclusive=spread is not None and spread.interval is not None,
        details=_details(study, schedules),
        key_numbers=_key_numbers(spread, measures["overshoot"]),
        charts=[_chart(schedules, base), *_cycle_chart(schedules, cosines)],
        grids=[_grid(schedules, base), *_spread_grid(spreads)],
        measures=measures,
        warnings=[*notes, *_warnings(study, schedules)],
    )


# --- reading ------------------------------------------------------------------------------------


def _schedules(study: Results) -> tuple[list[_Schedule], list[str]]:
    """Best first; only seeds that every schedule has."""
    usable = study.usable
    if not len(usable) or "cell" not in usable:
        return [], []
    notes = []
    missing = sorted(set(study.table["cell"]) - set(usable["cell"]))
    if missing:
        notes.append(f"No run ended well under: {', '.join(missing)}.")
    seeds = sorted(set.intersection(*(set(g["seed"]) for _, g in usable.groupby("cell"))))
    if len(seeds) < usable["seed"].nunique():
        notes.append(f"Compared on {plural(len(seeds), 'seed')}, those that every schedule has.")
    found = []
    for name, group in usable.groupby("cell"):
        group = group[group["seed"].isin(seeds)].sort_values("seed")
        if len(group):
            first = group.iloc[0]
            found.append(
                _Schedule(
                    name=str(name),
                    losses=group["loss"].to_numpy(float),
                    cycle=float(first["cycle"]) if first["cycle"] is not None else math.nan,
                    decays=bool(first["decays"]),
                    summed_lr=float(first["summed_lr"]),
                    peak_lr=float(first["peak_lr"]),
                )
            )
    return sorted(found, key=lambda s: s.mean), notes


# --- differences --------------------------------------------------------------------------------


def _noise(schedules: list[_Schedule]) -> tuple[float, int]:
    """Standard deviation beside the means of schedules and seeds, and its degrees of freedom."""
    losses = np.array([s.losses for s in schedules])
    rest = losses - losses.mean(axis=0) - losses.mean(axis=1, keepdims=True) + losses.mean()
    freedom = (losses.shape[0] - 1) * (losses.shape[1] - 1)
    return math.sqrt(float(np.sum(rest**2)) / max(1, freedom)), freedom


def _pool(schedules: list[_Schedule], *pair: _Schedule) -> list[_Schedule]:
    """The schedules whose noise a comparison is held against: one rule wherever it is shown."""
    decaying = [s for s in schedules if s.decays]
    return decaying if all(s.decays for s in pair) and len(decaying) > 1 else schedules


def _difference(schedules: list[_Schedule], a: _Schedule, b: _Schedule) -> _Difference:
    """Mean loss of a less that of b."""
    value, seeds = a.mean - b.mean, len(a.losses)
    if seeds < LEAST_SEEDS:
        return _Difference(value, None)
    spread, freedom = _noise(_pool(schedules, a, b))
    half = float(student.ppf(0.975, freedom)) * spread * math.sqrt(2 / seeds)
    return _Difference(value, (value - half, value + half))


def _spreads(
    schedules: list[_Schedule], base: _Schedule
) -> dict[float, tuple[list[_Schedule], _Difference]]:
    """Least summed rate -> the decaying schedules that have it, best first, and worst less best.

    The interval is Tukey's, as the two are picked by their losses.
    """
    found = {}
    for least in LEAST_SUMS:
        members = [s for s in schedules if s.decays and s.summed_lr >= least * base.summed_lr]
        if len(members) < 2:
            continue
        value, seeds = members[-1].mean - members[0].mean, len(base.losses)
        interval = None
        if seeds >= LEAST_SEEDS:
            noise, freedom = _noise(_pool(schedules, *members))
            half = float(studentized_range.ppf(0.95, len(members), freedom)) * noise
            half /= math.sqrt(seeds)
            interval = (max(0.0, value - half), value + half)
        found[least] = (members, _Difference(value, interval))
    return found


def _over_thresholds(
    spreads: dict[float, tuple[list[_Schedule], _Difference]],
) -> _Difference | None:
    """The spread at the least threshold, with an interval that holds those of all of them."""
    found = [item for _, item in spreads.values()]
    if not found:
        return None
    edges = [item.interval for item in found]
    whole = None if None in edges else (min(e[0] for e in edges), max(e[1] for e in edges))
    return _Difference(found[0].value, whole)


def _spread_measure(study: Results, spreads: Any, found: Any, base: _Schedule) -> Measure:
    if found is None:
        return Measure(
            what="nats between schedules", value=None, undecided_because="these were not run"
        )
    least = next(iter(spreads))
    steps, seeds = float(study.usable["steps"].median()), len(base.losses)
    short = ""
    if steps < LEAST_SHARE * PAPER_STEPS:
        short = (
            f"the runs take {steps:,.0f} steps where the paper's took {PAPER_STEPS:,}, and how much a "
            f"schedule matters falls with the length of the run (from {LEAST_SHARE * PAPER_STEPS:,.0f} "
            f"steps on it would count here)"
        )
    return Measure(
        what=f"nats between the worst and the best of {plural(len(spreads[least][0]), 'schedule')} "
        f"with warmup, final decay and at least {least:g} of the cosine's summed rate; the interval "
        f"holds those of every threshold up to {max(spreads):g}, {plural(seeds, 'seed')}",
        value=found.value,
        interval=found.interval,
        undecided_because=few_seeds(seeds) or short,
    )


def _cycle_measure(
    by_name: dict[str, _Schedule], by_cycle: dict[float, str], cycle: float
) -> Measure:
    what = f"nats that a cosine of {cycle:g} times the run ends above one that ends with it"
    return _pair_measure(by_name, what, by_cycle.get(cycle, ""), by_cycle[1.0])


def _pair_measure(by_name: dict[str, _Schedule], what: str, a: str, b: str) -> Measure:
    """Loss under schedule `a` less that under `b`."""
    if not (a in by_name and b in by_name):
        return Measure(what=what, value=None, undecided_because="these schedules were not run")
    found, seeds = (
        _difference(list(by_name.values()), by_name[a], by_name[b]),
        len(by_name[b].losses),
    )
    return Measure(
        what=f"{what}, {plural(seeds, 'seed')}",
        value=found.value,
        interval=found.interval,
        undecided_because=few_seeds(seeds),
    )


# --- words --------------------------------------------------------------------------------------


def _finding(spreads: Any, overshoot: Measure) -> str:
    parts = []
    if spreads:
        members, spread = next(iter(spreads.values()))
        shown = with_interval(spread.value, spread.interval, "95% interval")
        parts.append(
            f"{plural(len(members), 'schedule')} with warmup and final decay end within {shown} nats "
            f"per token of each other"
        )
    if overshoot.value is not None:
        side = "above" if overshoot.value >= 0 else "below"
        shown = with_interval(*flipped(overshoot.value, overshoot.interval))
        parts.append(f"a cosine of twice the run ends {shown} nats {side} one that ends with it")
    text = "; ".join(parts) or "Too few schedules to compare"
    return text[0].upper() + text[1:] + "."


def _details(study: Results, schedules: list[_Schedule]) -> list[str]:
    best, worst = schedules[0], schedules[-1]
    paragraphs = [
        (
            f"Lowest: {best.name} ({best.mean:.3f}); highest: {worst.name} ({worst.mean:.3f}). Kaplan "
            f"et al. 2020, Fig. 22, put the noise between runs at {PAPER_NOISE} nats and found the "
            "schedules of a 3M model within it, but for those that summed to a small learning rate."
        )
    ]
    kinds = [[s for s in schedules if s.decays == decays] for decays in (True, False)]
    if len(best.losses) >= LEAST_SEEDS and min(map(len, kinds)) > 1:
        own, rest = (f"{_noise(kind)[0]:.3f}" for kind in kinds)
        paragraphs.append(
            f"Noise beside the means of schedules and seeds: {own} nats among those that decay, "
            f"{rest} among the others. Two that decay are compared with the noise of these, any "
            f"other two with that of all, {_noise(schedules)[0]:.3f}."
        )
    if len(study.tried_lr_factors()) < 2:
        paragraphs.append(
            "All schedules have one peak, "
            f"{number(best.peak_lr)}: one that wants another peak is judged too hard."
        )
    return paragraphs


def _key_numbers(spread: Any, overshoot: Measure) -> list[KeyNumber]:
    found = [
        ("nats between the best and the worst schedule that decays", spread),
        ("nats that a cosine of twice the run costs", overshoot),
    ]
    return [
        KeyNumber.of(label, item.value, item.interval)
        for label, item in found
        if item is not None and item.value is not None
    ]


def _warnings(study: Results, schedules: list[_Schedule]) -> list[str]:
    warnings = []
    seeds = len(schedules[0].losses)
    if seeds < LEAST_SEEDS:
        warnings.append(f"{plural(seeds, 'seed')}: differences have no interval.")
    factors = study.tried_lr_factors()
    if len(factors) > 1:
        best = study.usable.drop_duplicates("cell")
        edge = best["lr_factor"].isin([factors[0], factors[-1]])
        if edge.any():
            warnings.append(
                f"The best peak is at the edge of the search for {', '.join(best[edge]['cell'])}."
            )
    return warnings


def _grid(schedules: list[_Schedule], base: _Schedule) -> Grid:
    rows = []
    for s in schedules:
        found = _difference(schedules, s, base)
        rows.append(
            [
                s.name,
                f"{s.mean:.4f}",
                "–" if s is base else with_interval(found.value, found.interval),
                number(s.summed_lr),
                number(s.peak_lr),
            ]
        )
    return Grid(
        caption=f"Mean loss by schedule, and above {base.name} (nats per token; 95% intervals over "
        "seeds, with the noise of the schedules that decay where it is one of them, else of all).",
        header=["schedule", "loss", "above", "summed rate", "peak rate"],
        rows=rows,
        numeric=(1, 2, 3, 4),
    )


def _spread_grid(spreads: Any) -> list[Grid]:
    rows = []
    # A row for every set of schedules, which are the same at several thresholds.
    for n, group in itertools.groupby(spreads.items(), lambda item: len(item[1][0])):
        group = list(group)
        members, spread = group[0][1]
        rows.append(
            [
                " to ".join(f"{least:g}" for least in sorted({group[0][0], group[-1][0]})),
                str(n),
                members[0].name,
                members[-1].name,
                with_interval(spread.value, spread.interval),
            ]
        )
    if not rows:
        return []
    return [
        Grid(
            caption="Worst less best (nats per token; Tukey's 95% interval) of the schedules that "
            "decay, by the least summed rate that counts as large, over that of the cosine.",
            header=["least summed rate", "schedules", "best", "worst", "worst − best"],
            rows=rows,
            numeric=(0, 1, 4),
        )
    ]


# --- figures ------------------------------------------------------------------------------------


def _kind(schedule: _Schedule) -> str:
    if schedule.decays:
        return "warmup and final decay"
    if math.isfinite(schedule.cycle):
        return "cosine beyond the run"
    return "no warmup or no full decay"


def _chart(schedules: list[_Schedule], base: _Schedule) -> Chart:
    kinds = list(dict.fromkeys(map(_kind, sorted(schedules, key=lambda s: not s.decays))))
    looks = style.family_styles(["transformer", *kinds[1:]])
    looks[kinds[0]] = looks.pop("transformer")
    with style.canvas(7.0, 1.5 + 0.19 * len(schedules)) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        for row, s in enumerate(schedules):
            look = looks[_kind(s)]
            found = _difference(schedules, s, base)
            for value in s.losses - base.losses:
                left.plot(value, row, look["marker"], color=look["color"], ms=2.6, alpha=0.45)
            if found.interval and s is not base:
                left.plot(found.interval, (row, row), color=look["color"], lw=1.2)
            left.plot(found.value, row, look["marker"], color=look["color"], ms=4.5)
            if found.interval and s is not base:
                edges = [base.mean + edge for edge in found.interval]
                right.plot([s.summed_lr] * 2, edges, color=look["color"], lw=1.0)
            right.plot(s.summed_lr, s.mean, look["marker"], color=look["color"], ms=4.5)
        left.axvline(0, color=style.MUTED, lw=0.8)
        left.set_yticks(range(len(schedules)), [s.name for s in schedules])
        left.invert_yaxis()
        left.set_xlabel(f"loss above {base.name} (nats per token)")
        right.set_xlabel("summed learning rate")
        right.set_ylabel("loss (nats per token)")
        handles = [left.plot([], [], looks[k]["marker"], color=looks[k]["color"])[0] for k in kinds]
        figure.legend(handles, kinds, loc="outside lower center", ncols=3, handlelength=1.0)
        return style.render(
            figure,
            name=NAME,
            caption=f"Left: loss of every schedule above {base.name}, seed by seed (faint) and on the "
            "mean with its 95% interval. Right: loss against the summed learning rate (Kaplan et al. "
            f"2020, Fig. 22, whose 3M model lay between 3.65 and 3.90, {PAPER_NOISE} nats from run to "
            f"run); bars are the intervals on the left, of the distance from {base.name}.",
            alt=f"Loss of {len(schedules)} schedules, from {schedules[0].name} to {schedules[-1].name}.",
        )


def _cycle_chart(schedules: list[_Schedule], cosines: list[_Schedule]) -> list[Chart]:
    if len(cosines) < 2:
        return []
    base = cosines[0]
    with style.canvas(3.5, 2.9) as figure:
        axes = figure.subplots()
        look = style.family_styles(["transformer"])["transformer"]
        for s in cosines:
            found = _difference(schedules, s, base)
            low, high = found.interval or (found.value, found.value)
            if s is base:
                low = high = found.value
            bars = [[found.value - low], [high - found.value]]
            axes.plot(
                [s.cycle] * len(s.losses),
                s.losses - base.losses,
                ".",
                color=look["color"],
                alpha=0.45,
            )
            axes.errorbar(s.cycle, found.value, bars, fmt="o", color=look["color"], elinewidth=1.0)
        axes.axhline(0, color=style.MUTED, lw=0.8)
        axes.axvspan(1.0, 1.25, color=style.MUTED, alpha=0.15, lw=0)
        axes.set_xlabel("cosine cycle over the steps of the run")
        axes.set_ylabel("loss above cycle 1 (nats per token)")
        style.log_axis(axes.xaxis, "plain")
        return [
            style.render(
                figure,
                name="schedules-cycle",
                caption="Cosines that would end after the run (Hoffmann et al. 2022, App. B): loss above "
                "the one that ends with it, by seed (faint) and mean with 95% interval. Grey: the "
                "quarter beyond which the paper found clearly higher losses.",
                alt="Loss against the length of the cosine cycle.",
            )
        ]
