"""Learning-rate schedules of one model: every one against the cosine that ends with the run."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from lmscale.report import figures, style
from lmscale.report.registry import register
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.report.tables import shown, table
from lmscale.studies.cells import Cell
from lmscale.studies.estimate import LEAST_SEEDS
from lmscale.studies.results import Results
from lmscale.studies.schedules import COOLDOWN, LINEAR, TO_ZERO, Schedules, cycle
from lmscale.wording import apart, number, plural, sentence

NAME = "schedules"
TITLE = "Learning-rate schedules"
#: How far runs of Kaplan et al. 2020, Fig. 22, differ whatever the schedule, in nats.
PAPER_NOISE = 0.05


@register(NAME)
def section(found: Schedules, results: Results) -> Section:
    common = {"name": NAME, "title": TITLE, "measures": _measures(found)}
    if found.base is None or len(found.cells) < 2:
        finding = (
            "Nothing to compare yet: it takes the cosine that ends with the run and another "
            "schedule."
        )
        return Section(finding=finding, warnings=_lost(found), **common)
    return Section(
        finding=_finding(found),
        conclusive=found.estimates["spread"].interval is not None,
        details=_details(found, results),
        key_numbers=_key_numbers(found),
        charts=[_chart(found), *_cycle_chart(found)],
        grids=[*_grid(found), *_spread_grid(found)],
        warnings=[*_lost(found), *_warnings(found, results)],
        **common,
    )


def _finding(found: Schedules) -> str:
    parts = []
    if found.spreads:
        spread = found.spreads[0].difference
        parts.append(
            f"{plural(spread.n, 'schedule')} with warmup and final decay end within "
            f"{shown(spread, '95% interval')} nats per token of each other"
        )
    overshoot = found.estimates["overshoot"]
    if overshoot.is_known:
        amount, side, bounds = apart(overshoot.value, overshoot.interval)
        parts.append(
            f"a cosine of twice the run ends {amount} nats {side} one that ends with it ({bounds})"
        )
    return sentence("; ".join(parts) or "Too few schedules to compare")


def _details(found: Schedules, results: Results) -> list[str]:
    best, worst = found.cells[0], found.cells[-1]
    paragraphs = [
        f"Lowest: {best['cell']} ({best.mean:.3f}); highest: {worst['cell']} ({worst.mean:.3f}). Kaplan "
        f"et al. 2020, Fig. 22, put the noise between runs at {PAPER_NOISE} nats. They found the "
        f"schedules of a 3M model within it, except those with a small summed learning rate."
    ]
    own, rest = found.noise(True), found.noise(False)
    if own and rest:
        paragraphs.append(
            f"Noise beside the means of schedules and seeds: {own.std:.3f} nats among the schedules "
            f"that decay, {rest.std:.3f} among the others. Two that decay are compared with the noise "
            f"of the decaying ones, any other two with that of all, {found.noise().std:.3f}."
        )
    if len(results.tried_lr_factors()) < 2:
        paragraphs.append(
            f"All schedules have the same peak rate, {number(best['peak_lr'])}: a schedule whose best "
            f"peak is another one is judged too hard."
        )
    return paragraphs


def _key_numbers(found: Schedules) -> list[KeyNumber]:
    spread, overshoot = found.estimates["spread"], found.estimates["overshoot"]
    return KeyNumber.of_known(
        {
            "nats between the best and the worst schedule that decays": spread,
            "nats that a cosine of twice the run costs": overshoot,
        }
    )


def _measures(found: Schedules) -> dict[str, Measure]:
    cosine = found.base["cell"] if found.base else "the cosine that ends with the run"
    overshoot = "nats that a cosine of {} times the run ends above one that ends with it"
    above = "nats that {} ends above {}"
    what = {
        "spread": "nats between schedules",
        "overshoot": overshoot.format(2),
        "overshoot_quarter": overshoot.format(1.25),
        "zero_over_tenth": above.format(TO_ZERO, cosine),
        "cosine_over_linear": above.format(cosine, LINEAR),
        "cooldown_over_cosine": above.format(COOLDOWN, cosine),
    }
    if found.spreads:
        first, last = found.spreads[0], found.spreads[-1]
        what["spread"] = (
            f"nats between the worst and the best of {plural(len(first.members), 'schedule')} with "
            f"warmup, final decay and at least {first.least:g} of the cosine's summed rate; the "
            f"interval covers those of every threshold up to {last.least:g}"
        )
    for name, one in found.estimates.items():
        what[name] += f", {plural(one.seeds, 'seed')}" if one.seeds else ""
    return Measure.of_each(what, found.estimates)


def _lost(found: Schedules) -> list[str]:
    notes = [f"No run ended well under: {', '.join(found.lost)}."] if found.lost else []
    if found.n_seeds_lost:
        seeds = plural(found.seeds if found.cells else 0, "seed")
        notes.append(f"Compared on {seeds}, those that every schedule has.")
    return notes


def _warnings(found: Schedules, results: Results) -> list[str]:
    warnings = []
    if found.seeds < LEAST_SEEDS:
        warnings.append(f"{plural(found.seeds, 'seed')}: differences have no interval.")
    factors = results.tried_lr_factors()
    edge = [c["cell"] for c in found.cells if c["lr_factor"] in (factors[0], factors[-1])]
    if len(factors) > 1 and edge:
        warnings.append(f"The best peak is at the edge of the search for {', '.join(edge)}.")
    return warnings


# --- tables -------------------------------------------------------------------------------------


def _grid(found: Schedules) -> list[Grid]:
    base = found.base
    return table(
        f"Mean loss by schedule, and above {base['cell']} (nats per token; 95% intervals over seeds, "
        f"with the noise of the schedules that decay where it is one of them, else of all).",
        found.cells,
        {
            "schedule": lambda c: c["cell"],
            "loss": lambda c: f"{c.mean:.4f}",
            "above": lambda c: "–" if c is base else shown(found.above(c, base)),
            "summed rate": lambda c: number(c["summed_lr"]),
            "peak rate": lambda c: number(c["peak_lr"]),
        },
        text=("schedule",),
    )


def _spread_grid(found: Schedules) -> list[Grid]:
    # Several thresholds may leave the same schedules: one row for them.
    groups = itertools.groupby(found.spreads, lambda spread: len(spread.members))
    rows = [(group[0], group[-1].least) for group in (list(spreads) for _, spreads in groups)]
    return table(
        "Worst less best (nats per token; Tukey's 95% interval) of the schedules that decay, by the "
        "least summed rate that counts as large, over that of the cosine.",
        rows,
        {
            "least summed rate": lambda row: " to ".join(
                f"{least:g}" for least in sorted({row[0].least, row[1]})
            ),
            "schedules": lambda row: str(len(row[0].members)),
            "best": lambda row: row[0].members[0]["cell"],
            "worst": lambda row: row[0].members[-1]["cell"],
            "worst − best": lambda row: shown(row[0].difference),
        },
        text=("best", "worst"),
    )


# --- figures ------------------------------------------------------------------------------------


def _kind(schedule: Cell) -> str:
    if schedule["decays"]:
        return "warmup and final decay"
    return (
        "cosine beyond the run" if math.isfinite(cycle(schedule)) else "no warmup or no full decay"
    )


def _chart(found: Schedules) -> Chart:
    base, cells = found.base, found.cells
    kinds = list(dict.fromkeys(map(_kind, sorted(cells, key=lambda c: not c["decays"]))))
    looks = style.family_styles(["transformer", *kinds[1:]])
    looks[kinds[0]] = looks.pop("transformer")
    with style.canvas(7.0, 1.5 + 0.19 * len(cells)) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        for row, cell in enumerate(cells):
            look, above = looks[_kind(cell)], found.above(cell, base)
            each = np.subtract(cell.losses, base.losses)
            left.plot(each, [row] * len(each), **look, lw=0, ms=2.6, alpha=0.45)
            if above.interval and cell is not base:
                left.plot(above.interval, (row, row), color=look["color"], lw=1.2)
                edges = [base.mean + edge for edge in above.interval]
                right.plot([cell["summed_lr"]] * 2, edges, color=look["color"], lw=1.0)
            left.plot(above.value, row, **look)
            right.plot(cell["summed_lr"], cell.mean, **look)
        left.axvline(0, color=style.MUTED, lw=0.8)
        left.set_yticks(range(len(cells)), [c["cell"] for c in cells])
        left.invert_yaxis()
        left.set_xlabel(f"loss above {base['cell']} (nats per token)")
        right.set(xlabel="summed learning rate", ylabel=figures.LOSS)
        handles = [left.plot([], [], **looks[kind], lw=0)[0] for kind in kinds]
        figure.legend(handles, kinds, loc="outside lower center", ncols=3, handlelength=1.0)
        return style.render(
            figure,
            name=NAME,
            caption=f"Left: loss of every schedule above {base['cell']}, seed by seed (faint) and the "
            "mean with its 95% interval. Right: loss against the summed learning rate (Kaplan et al. "
            f"2020, Fig. 22, whose 3M model lay between 3.65 and 3.90, {PAPER_NOISE} nats from run to "
            f"run); bars are the intervals on the left, of the distance from {base['cell']}.",
            alt=f"Loss of {len(cells)} schedules, from {cells[0]['cell']} to {cells[-1]['cell']}.",
        )


def _cycle_chart(found: Schedules) -> list[Chart]:
    cosines = found.cosines
    if len(cosines) < 2:
        return []
    base, look = cosines[0], style.family_styles(["transformer"])["transformer"]
    with style.canvas(3.5, 2.9) as figure:
        axes: Any = figure.subplots()
        for cell in cosines:
            above, at = found.above(cell, base), cycle(cell)
            each = np.subtract(cell.losses, base.losses)
            axes.plot([at] * len(each), each, ".", color=look["color"], alpha=0.45)
            if above.interval and cell is not base:
                axes.plot([at, at], above.interval, color=look["color"], lw=1.0)
            axes.plot(at, above.value, "o", color=look["color"])
        axes.axhline(0, color=style.MUTED, lw=0.8)
        axes.axvspan(1.0, 1.25, color=style.MUTED, alpha=0.15, lw=0)
        axes.set_xlabel("cosine cycle over the steps of the run")
        axes.set_ylabel("loss above cycle 1 (nats per token)")
        style.log_axis(axes.xaxis, "plain")
        chart = style.render(
            figure,
            name="schedules-cycle",
            caption="Cosines that would end after the run (Hoffmann et al. 2022, App. B): loss above "
            "the one that ends with it, by seed (faint) and mean with 95% interval. Grey: the quarter "
            "beyond which the paper found clearly higher losses.",
            alt="Loss against the length of the cosine cycle.",
        )
    return [chart]
