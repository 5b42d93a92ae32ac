"""Learning-rate schedules of one model (Kaplan et al. 2020, Fig. 22; Hoffmann et al. 2022, App. B).

Schedules are compared seed by seed: runs of one seed share their first weights and the order of their
data, so their differences hold less noise than their losses. Of n schedules with s seeds each, that
noise is what remains beside a mean for every schedule and one for every seed, with (n - 1)(s - 1)
degrees of freedom.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import studentized_range
from scipy.stats import t as student

from lmscale.report import style
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.study import LEAST_SEEDS, Study
from lmscale.report.wording import between, interval_of_mean, number, plural, with_interval

__all__ = ["analyse"]

NAME = "schedules"
TITLE = "Learning-rate schedules"
#: Least summed learning rate, over that of the cosine, of the schedules whose spread is measured.
LEAST_SUM = 0.5
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


def analyse(study: Study) -> Section:
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
    # The paper's condition is a summed rate that is large enough; it names no number.
    enough = LEAST_SUM * base.summed_lr
    decaying = [s for s in schedules if s.decays and s.summed_lr >= enough]
    cosines = sorted((s for s in schedules if math.isfinite(s.cycle)), key=lambda s: s.cycle)
    spread = _spread(decaying)
    by_name = {s.name: s for s in schedules}
    measures = {
        "spread": _measure(
            f"nats between the worst and the best of {plural(len(decaying), 'schedule')} with warmup"
            f", final decay and at least {LEAST_SUM:g} of the cosine's summed rate",
            base,
            spread,
        ),
        "overshoot": _cycle_measure(cosines, 2.0),
        "overshoot_quarter": _cycle_measure(cosines, 1.25),
        "zero_over_tenth": _pair_measure(decaying, by_name, TO_ZERO, base.name),
        "cosine_over_linear": _pair_measure(decaying, by_name, base.name, LINEAR),
        "cooldown_over_cosine": _pair_measure(decaying, by_name, COOLDOWN, base.name),
    }
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(decaying, spread, measures["overshoot"]),
        conclusive=spread is not None and spread.interval is not None,
        details=_details(study, schedules),
        key_numbers=_key_numbers(spread, measures["overshoot"]),
        charts=[_chart(schedules, base), *_cycle_chart(cosines)],
        grids=[_grid(schedules, base)],
        measures=measures,
        warnings=[*notes, *_warnings(study, schedules)],
    )


# --- reading ------------------------------------------------------------------------------------


def _schedules(study: Study) -> tuple[list[_Schedule], list[str]]:
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


def _difference(among: list[_Schedule], a: _Schedule, b: _Schedule) -> _Difference:
    """Mean loss of a less that of b, with the noise of all schedules `among` which they are."""
    value, seeds = a.mean - b.mean, len(a.losses)
    if seeds < LEAST_SEEDS:
        return _Difference(value, None)
    spread, freedom = _noise(among)
    half = float(student.ppf(0.975, freedom)) * spread * math.sqrt(2 / seeds)
    return _Difference(value, (value - half, value + half))


def _spread(schedules: list[_Schedule]) -> _Difference | None:
    """Worst less best; the interval is Tukey's, as the two are picked by their losses."""
    if len(schedules) < 2:
        return None
    ordered = sorted(schedules, key=lambda s: s.mean)
    value, seeds = ordered[-1].mean - ordered[0].mean, len(ordered[0].losses)
    if seeds < LEAST_SEEDS:
        return _Difference(value, None)
    spread, freedom = _noise(schedules)
    quantile = float(studentized_range.ppf(0.95, len(schedules), freedom))
    half = quantile * spread / math.sqrt(seeds)
    return _Difference(value, (max(0.0, value - half), value + half))


def _measure(what: str, base: _Schedule, found: _Difference | None, why: str = "") -> Measure:
    if found is None:
        return Measure(what=what, value=None, why=why or "these schedules were not run")
    seeds = len(base.losses)
    return Measure(
        what=f"{what}, {plural(seeds, 'seed')}",
        value=found.value,
        interval=found.interval,
        why="" if found.interval else f"{plural(seeds, 'seed')} where three are needed",
    )


def _cycle_measure(cosines: list[_Schedule], cycle: float) -> Measure:
    base = next(s for s in cosines if s.cycle == 1)
    longer = next((s for s in cosines if s.cycle == cycle), None)
    found = _difference(cosines, longer, base) if longer else None
    what = f"nats that a cosine of {cycle:g} times the run ends above one that ends with it"
    return _measure(what, base, found)


def _pair_measure(among: list[_Schedule], by_name: dict[str, _Schedule], a: str, b: str) -> Measure:
    found = None
    if a in by_name and b in by_name:
        found = _difference(among, by_name[a], by_name[b])
    return _measure(f"nats that {a} ends above {b}", next(iter(by_name.values())), found)


# --- words --------------------------------------------------------------------------------------


def _finding(decaying: list[_Schedule], spread: Any, overshoot: Measure) -> str:
    parts = []
    if spread:
        shown = with_interval(spread.value, spread.interval, "95% interval")
        parts.append(
            f"{plural(len(decaying), 'schedule')} with warmup and final decay end within {shown} nats "
            f"per token of each other"
        )
    if overshoot.value is not None:
        side, edges = ("above", overshoot.interval) if overshoot.value >= 0 else ("below", None)
        if side == "below" and overshoot.interval:
            edges = (-overshoot.interval[1], -overshoot.interval[0])
        shown = with_interval(abs(overshoot.value), edges)
        parts.append(f"a cosine of twice the run ends {shown} nats {side} one that ends with it")
    text = "; ".join(parts) or "Too few schedules to compare"
    return text[0].upper() + text[1:] + "."


def _details(study: Study, schedules: list[_Schedule]) -> list[str]:
    best, worst = schedules[0], schedules[-1]
    paragraphs = [
        (
            f"Lowest: {best.name} ({best.mean:.3f}); highest: {worst.name} ({worst.mean:.3f}). Kaplan "
            f"et al. 2020, Fig. 22, put the noise between runs at {PAPER_NOISE} nats and found the "
            "schedules of a 3M model within it, but for those that summed to a small learning rate."
        )
    ]
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
        KeyNumber(
            label=label,
            value=with_interval(item.value, item.interval).split(" (")[0],
            interval=between(item.interval) if item.interval else "no interval",
        )
        for label, item in found
        if item is not None and item.value is not None
    ]


def _warnings(study: Study, schedules: list[_Schedule]) -> list[str]:
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
        caption=f"Mean loss by schedule, and above {base.name} (nats per token; 95% intervals with the "
        "noise of all schedules).",
        header=["schedule", "loss", "above", "summed rate", "peak rate"],
        rows=rows,
        numeric=(1, 2, 3, 4),
    )


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
            edges = interval_of_mean(s.losses) or (s.mean, s.mean)
            right.errorbar(
                s.summed_lr,
                s.mean,
                [[s.mean - edges[0]], [edges[1] - s.mean]],
                fmt=look["marker"],
                color=look["color"],
                elinewidth=0.8,
            )
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
            "run); bars are 95% intervals of the mean over seeds, common noise included.",
            alt=f"Loss of {len(schedules)} schedules, from {schedules[0].name} to {schedules[-1].name}.",
        )


def _cycle_chart(cosines: list[_Schedule]) -> list[Chart]:
    if len(cosines) < 2:
        return []
    base = cosines[0]
    with style.canvas(3.5, 2.9) as figure:
        axes = figure.subplots()
        look = style.family_styles(["transformer"])["transformer"]
        for s in cosines:
            found = _difference(cosines, s, base)
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
