"""What a store foretold of larger budgets, and what became of it (`lmscale verify`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmscale.report import style
from lmscale.report.section import Chart, Grid, Section
from lmscale.studies.results import Results
from lmscale.wording import between, listed, plural, power_of_ten, si

__all__ = ["forecast_section"]

NAME = "forecast"
TITLE = "Forecast and outcome"
_WORDS = {True: "inside", False: "outside", None: "–"}


def forecast_section(results: Results) -> Section | None:
    """Every forecast of a store beside its outcome; None where none was made."""
    if not results.verifications:
        return None
    sound = [v for v in results.verifications if v["forecast"] is not None]
    tested = [v for v in sound if v["outcome"] is not None]
    warnings = [f"{v['problem']}." for v in results.verifications if v["problem"]]
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(sound, tested),
        details=[v["outcome"]["finding"] for v in tested] if len(tested) > 1 else [],
        charts=[_chart(sound)] if sound else [],
        grids=[_grid(sound)] if sound else [],
        warnings=warnings,
    )


def _finding(sound: Sequence[dict[str, Any]], tested: Sequence[dict[str, Any]]) -> str:
    if not sound:
        return "A forecast was made, but its file is not as it was written."
    if not tested:
        budgets = listed([power_of_ten(v["forecast"]["flops"], 3) for v in sound])
        return f"The forecast for {budgets} FLOPs is written down and not tested yet."
    if len(tested) == 1:
        return tested[0]["outcome"]["finding"]
    inside = sum(bool(v["outcome"]["contained"]) for v in tested)
    best = sum(
        v["outcome"]["best"] == "advised" or bool(v["outcome"].get("within_noise")) for v in tested
    )
    return (
        f"Of {plural(len(tested), 'forecast')} the interval held the loss of {inside}, and the advised "
        f"size was the best of the sizes tried, or within noise of it, in {best}."
    )


def _grid(sound: Sequence[dict[str, Any]]) -> Grid:
    rows = []
    for v in sound:
        forecast, outcome = v["forecast"], v["outcome"]
        found = {run["role"]: run for run in outcome["runs"]} if outcome else {}
        for planned in forecast["runs"]:
            run = found.get(planned["role"], {"losses": [], "contained": None})
            rows.append(
                [
                    power_of_ten(forecast["flops"], 3),
                    forecast["date"],
                    planned["role"],
                    si(planned["n_params"]),
                    si(planned["n_tokens"]),
                    f"{planned['loss']:.3f}",
                    between(planned["interval"]) if planned["interval"] else "none",
                    ", ".join(f"{loss:.3f}" for loss in run["losses"]) or "–",
                    _WORDS[run["contained"]],
                ]
            )
    header = ["C (FLOPs)", "written on", "size", "N", "D", "forecast", "interval", "outcome", ""]
    return Grid(
        caption="Losses foretold before the runs were trained, with 95% intervals, and those of the "
        "runs (one a seed), in nats per token.",
        header=header,
        rows=rows,
        numeric=(0, 3, 4, 5, 7),
    )


def _chart(sound: Sequence[dict[str, Any]]) -> Chart:
    """A panel a budget: the forecast's interval at each size, and what the runs reached."""
    with style.canvas(1.2 + 3.2 * len(sound), 3.2) as figure:
        panels = figure.subplots(1, len(sound), squeeze=False)[0]
        for axes, v in zip(panels, sound, strict=True):
            _draw(axes, v)
        panels[0].set_ylabel("loss (nats per token)")
        n = sum(v["outcome"] is not None for v in sound)
        return style.render(
            figure,
            name=NAME,
            caption="Loss over size at one budget: grey bars are the forecast's 95% intervals, grey dashes "
            "its losses, written down before the training; diamonds are the runs, filled for the advised "
            "size.",
            alt=f"{plural(len(sound), 'forecast')} of the loss of three sizes, {n} with outcomes.",
        )


def _draw(axes: Any, v: dict[str, Any]) -> None:
    forecast, outcome = v["forecast"], v["outcome"]
    found = {run["role"]: run["losses"] for run in outcome["runs"]} if outcome else {}
    colour = style.family_styles(["transformer"])["transformer"]["color"]
    for planned in forecast["runs"]:
        x = planned["n_params"]
        if planned["interval"]:
            axes.plot(
                [x, x],
                planned["interval"],
                color=style.MUTED,
                lw=7,
                alpha=0.35,
                solid_capstyle="butt",
            )
        axes.plot(x, planned["loss"], "_", color=style.INK, ms=13, mew=1.4)
        losses = found.get(planned["role"], [])
        fill = colour if planned["role"] == "advised" else style.PAPER
        axes.plot([x] * len(losses), losses, "D", color=colour, mfc=fill, ms=5.5, zorder=4)
    times = forecast["flops"] / forecast["largest_budget"]
    axes.set_title(f"C = {power_of_ten(forecast['flops'], 3)}, {times:.3g}x the largest")
    axes.set_xscale("log")
    axes.set_xlabel("N (parameters)")
    sizes = [planned["n_params"] for planned in forecast["runs"]]
    axes.set_xlim(min(sizes) / 1.5, max(sizes) * 1.5)
    axes.set_xticks(sizes, [si(size) for size in sizes])
    axes.set_xticks([], minor=True)
