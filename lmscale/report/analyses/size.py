"""Loss against model size: the families side by side (Kaplan et al. 2020, Fig. 7 left)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lmscale.laws import FitError, FitResult, TableError
from lmscale.report import style
from lmscale.report.exponents import fit_power_of_cells
from lmscale.report.papers import points
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section, refused
from lmscale.report.study import Study, few_seeds
from lmscale.report.text import pair_error
from lmscale.report.wording import (
    family_name,
    flipped,
    interval_of_mean,
    listed,
    number,
    plural,
    si,
    with_interval,
)

__all__ = ["analyse"]

NAME = "size"
TITLE = "Loss against model size"
#: Fewest sizes of a family that a power law is fitted to.
LEAST_SIZES = 3
#: How far beyond a family's sizes its law is trusted to say which size has a loss.
REACH = 3.0
#: Kaplan et al. 2020 name an exponent of 0.076 for their Transformers.
KAPLAN_ALPHA = 0.076
#: Non-embedding N at which their LSTM is 0.19 nats above that law, and from which the gap widens.
KAPLAN_N = 4e5
#: Least range of sizes for a claim about the gap.
LEAST_RANGE = 10.0


@dataclass(frozen=True)
class _Size:
    """The runs of one size: mean loss over seeds and what its bar shows."""

    n_params: float
    losses: tuple[float, ...]
    tokens: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.losses))

    @property
    def interval(self) -> tuple[float, float] | None:
        return interval_of_mean(self.losses)


@dataclass(frozen=True)
class _Family:
    name: str
    sizes: tuple[_Size, ...]
    fit: FitResult | None
    failure: str

    @property
    def range(self) -> tuple[float, float]:
        return self.sizes[0].n_params, self.sizes[-1].n_params

    @property
    def architecture(self) -> str:
        return self.name.split(",")[0].split(" ")[0]

    @property
    def seeds(self) -> int:
        """Of most sizes: a single lost run does not unsettle a law."""
        return int(np.median([len(size.losses) for size in self.sizes])) if self.sizes else 0


@dataclass(frozen=True)
class _Gap:
    """Loss of `family` above the baseline at equal N, read off the two power laws."""

    base: _Family
    family: _Family
    n_params: np.ndarray
    gap: np.ndarray
    low: np.ndarray
    high: np.ndarray
    #: Parameters of the family over those of the baseline at equal loss, at the middle size.
    #: NaN where that lies far outside the baseline's sizes.
    ratio: float
    ratio_interval: tuple[float, float] | None

    def at(self, index: int) -> tuple[float, tuple[float, float] | None]:
        edges = (float(self.low[index]), float(self.high[index]))
        return float(self.gap[index]), edges if all(map(math.isfinite, edges)) else None

    @property
    def middle(self) -> int:
        return len(self.n_params) // 2

    @property
    def seeds(self) -> int:
        return min(self.base.seeds, self.family.seeds)

    def read(self, *n_params: float) -> tuple[np.ndarray, np.ndarray | None]:
        """The gap at any sizes, and its draws [draw, size]; None below three seeds."""
        at = np.array(n_params, float)
        value = self.family.fit.predict(params=at) - self.base.fit.predict(params=at)
        if few_seeds(self.seeds):
            return value, None
        return value, _drawn(self.family.fit, at) - _drawn(self.base.fit, at)


def analyse(study: Study) -> Section:
    """Power laws L(N) of every family, and how far each is behind the first."""
    families, notes = [], []
    for name in study.families:
        family, note = _family(study, name)
        families.append(family)
        notes += note
    drawn = [family for family in families if family.sizes]
    gaps = _gaps(drawn)
    charts = [_chart(study, drawn, gaps)] if drawn else []
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(families, gaps),
        # Where the number of tokens varies too, the law is not one of size.
        conclusive=any(family.fit for family in families) and not any(map(_lengths, families)),
        details=_details(study, families, gaps),
        key_numbers=_key_numbers(families, gaps),
        charts=charts,
        grids=[*_law_grid(families), *_gap_grid(gaps), *_size_grid(study, drawn)],
        fits={f"{f.name}/kaplan": f.fit or refused("power", f.failure) for f in families},
        measures=_measures(gaps),
        warnings=[*_warnings(study, families), *notes],
    )


# --- fitting ------------------------------------------------------------------------------------


def _family(study: Study, name: str) -> tuple[_Family, list[str]]:
    usable = study.usable
    runs = usable[usable["family"] == name] if len(usable) else usable
    notes = []
    if not len(runs):
        return _Family(name, (), None, "no run has ended well yet"), notes
    sizes = []
    for n_params, group in runs.groupby("params_kaplan", sort=True):
        # Where a size was trained for several lengths, the longest is nearest to convergence.
        longest = group[group["tokens"] == group["tokens"].max()]
        sizes.append(
            _Size(
                float(n_params), tuple(longest["loss"].astype(float)), float(group["tokens"].max())
            )
        )
    if len(sizes) < LEAST_SIZES:
        failure = f"{plural(len(sizes), 'size')}, and a power law needs {LEAST_SIZES}"
        return _Family(name, tuple(sizes), None, failure), notes
    rows = pd.DataFrame(
        [
            {"params": size.n_params, "loss": loss, "seed": seed}
            for size in sizes
            for seed, loss in enumerate(size.losses)
        ]
    )
    try:
        fit = fit_power_of_cells(rows, "params")
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        return _Family(name, tuple(sizes), None, str(error)), notes
    return _Family(name, tuple(sizes), fit, ""), [*notes, *_bend(name, sizes)]


def _lengths(family: _Family) -> list[str]:
    """A warning where the sizes were not trained for equally long."""
    tokens = sorted({size.tokens for size in family.sizes})
    if not tokens or tokens[-1] <= 1.05 * tokens[0]:
        return []
    return [
        (
            f"{family_name(family.name)}: the sizes were trained for {si(tokens[0])} to "
            f"{si(tokens[-1])} tokens, so part of the trend is that of the data."
        )
    ]


def _bend(name: str, sizes: list[_Size]) -> list[str]:
    """A warning where the means bend away from the straight line by more than chance."""
    if len(sizes) < 5:
        return []
    x = np.log([size.n_params for size in sizes])
    y = np.log([size.mean for size in sizes])
    x = x - x.mean()
    design = np.stack([np.ones_like(x), x, x * x], axis=1)
    coefficients, _rest, *_ = np.linalg.lstsq(design, y, rcond=None)
    variance = float(np.sum((y - design @ coefficients) ** 2)) / (len(x) - 3)
    error = math.sqrt(variance * np.linalg.inv(design.T @ design)[2, 2])
    if abs(coefficients[2]) < 3 * error:
        return []
    way = "flatten" if coefficients[2] > 0 else "steepen"
    return [
        (
            f"{family_name(name)}: the losses {way} against a straight power law by more than their "
            f"scatter, so its exponent holds for this range only."
        )
    ]


def _gaps(families: list[_Family]) -> list[_Gap]:
    """Every family against the first, where both have a law and their sizes overlap."""
    if not families or families[0].fit is None or families[0].architecture != "transformer":
        return []
    base, gaps = families[0], []
    for family in families[1:]:
        if family.fit is None:
            continue
        low = max(base.range[0], family.range[0])
        high = min(base.range[1], family.range[1])
        if low >= high:
            continue
        grid = np.geomspace(low, high, 41)
        gap = family.fit.predict(params=grid) - base.fit.predict(params=grid)
        edges = np.full((2, len(grid)), np.nan)
        ratio, ratio_interval = _size_ratio(base.fit, family.fit, grid)
        # What single seeds scatter about two laws says nothing of how another seed moves the gap.
        if few_seeds(min(base.seeds, family.seeds)):
            ratio_interval = None
        else:
            drawn = _drawn(family.fit, grid) - _drawn(base.fit, grid)
            edges = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
        gaps.append(_Gap(base, family, grid, gap, *edges, ratio, ratio_interval))
    return gaps


def _drawn(fit: FitResult, grid: np.ndarray) -> np.ndarray:
    """[draw, size]: the law's loss."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        loss = (fit.draws["N_c"][:, None] / grid) ** fit.draws["alpha_N"][:, None]
    return np.where(np.isfinite(loss), loss, np.nan)


def _size_ratio(
    base: FitResult, other: FitResult, grid: np.ndarray
) -> tuple[float, tuple[float, float] | None]:
    """N of `other` over N of `base` at the loss that `other` reaches at the middle size."""
    at = float(grid[len(grid) // 2])

    def ratio(base_values: Any, other_values: Any) -> Any:
        log_loss = other_values["alpha_N"] * (np.log(other_values["N_c"]) - math.log(at))
        return np.exp(math.log(at) - np.log(base_values["N_c"]) + log_loss / base_values["alpha_N"])

    value, interval = float(ratio(base.parameters, other.parameters)), None
    low, high = base.ranges["params"]
    if not low / REACH <= at / value <= high * REACH:
        return math.nan, None
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        draws = ratio(base.draws, other.draws)
    draws = draws[np.isfinite(draws)]
    if len(draws) > 20:
        interval = tuple(float(v) for v in np.percentile(draws, [2.5, 97.5]))
    return value, interval


# --- measures -----------------------------------------------------------------------------------


def _measures(gaps: list[_Gap]) -> dict[str, Measure]:
    """The gap to the Transformer, of the family that is least behind."""
    nats = "nats per token above the Transformer"
    if not gaps:
        why = "no family overlaps the Transformers in size with enough sizes for a law"
        none = Measure(what=nats, value=None, why=why)
        return dict.fromkeys(("gap", "gap_at_400k", "widening"), none)
    best = _closest(gaps)
    name = family_name(best.family.name)
    value, interval = best.at(best.middle)
    middle = Measure(
        what=f"{nats}, {name} at N = {si(best.n_params[best.middle])}, {_seeds(best)}",
        value=value,
        interval=interval,
        why=few_seeds(best.seeds),
    )
    return {"gap": middle, "gap_at_400k": _gap_at_400k(gaps), "widening": _widening(gaps)}


def _gap_at_400k(gaps: list[_Gap]) -> Measure:
    what = f"nats per token above the Transformer at N = {si(KAPLAN_N)}"
    near = [g for g in gaps if g.n_params[0] / 1.2 <= KAPLAN_N <= g.n_params[-1] * 1.2]
    if not near:
        largest = max(gap.n_params[-1] for gap in gaps)
        why = f"the sizes that both have end at {si(largest)}"
        if largest > KAPLAN_N:
            why = f"the sizes that both have begin at {si(min(g.n_params[0] for g in gaps))}"
        return Measure(what=what, value=None, why=why)
    best = min(near, key=lambda gap: gap.read(KAPLAN_N)[0][0])
    value, draws = best.read(KAPLAN_N)
    return Measure(
        what=f"{what}, {family_name(best.family.name)}, {_seeds(best)}",
        value=float(value[0]),
        interval=_percentiles(draws[:, 0]) if draws is not None else None,
        why=few_seeds(best.seeds),
    )


def _widening(gaps: list[_Gap]) -> Measure:
    """How much the gap grows over ten times the size, from where the paper saw it grow."""
    what = (
        f"nats by which the gap to the Transformer grows per tenfold N, from N = {si(KAPLAN_N)} on"
    )
    found = []
    for gap in gaps:
        low, high = max(gap.n_params[0], KAPLAN_N / 1.2), gap.n_params[-1]
        if high >= LEAST_RANGE * low:
            value, draws = gap.read(low, high)
            found.append((gap, low, high, value, draws))
    if not found:
        ends = si(max(gap.n_params[-1] for gap in gaps))
        why = (
            f"the sizes that both have end at {ends}; the paper's gap narrows up to {si(KAPLAN_N)} and "
            f"widens from there on"
        )
        return Measure(what=what, value=None, why=why)
    gap, low, high, value, draws = min(found, key=lambda item: item[3].mean())
    decades = math.log10(high / low)
    interval = None
    if draws is not None:
        interval = _percentiles((draws[:, 1] - draws[:, 0]) / decades)
    return Measure(
        what=f"{what}, {family_name(gap.family.name)} to {si(high)}, {_seeds(gap)}",
        value=float((value[1] - value[0]) / decades),
        interval=interval,
        why=few_seeds(gap.seeds),
    )


def _percentiles(draws: np.ndarray) -> tuple[float, float]:
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(low), float(high)


def _seeds(gap: _Gap) -> str:
    return f"{plural(gap.seeds, 'seed')} a size"


# --- words --------------------------------------------------------------------------------------


def _closest(gaps: list[_Gap]) -> _Gap:
    """The family that is least behind."""
    return min(gaps, key=lambda gap: gap.gap[gap.middle])


def _finding(families: list[_Family], gaps: list[_Gap]) -> str:
    fitted = [family for family in families if family.fit]
    if gaps:
        best = _closest(gaps)
        gap, interval = best.at(best.middle)
        name = family_name(best.family.name)
        size = si(best.n_params[best.middle])
        shown = with_interval(*flipped(gap, interval), "95% interval")
        if interval and interval[0] <= 0 <= interval[1]:
            return (
                f"At N = {size} no difference can be seen between {name} and Transformer: "
                f"{with_interval(gap, interval, '95% interval')} nats per token."
            )
        side = "above" if gap > 0 else "below"
        amount, nats = shown.split(" (", 1)
        text = f"At N = {size} the {name} ends {amount} nats per token {side} the Transformer"
        text += f" ({nats}"
        if gap > 0 and math.isfinite(best.ratio):
            ratio = with_interval(best.ratio, best.ratio_interval)
            text += f": it needs {ratio} times the parameters for the same loss"
        return text + "."
    if fitted:
        parts = [
            f"for the {family_name(f.name)} loss falls as N^−"
            + with_interval(
                f.fit.parameters["alpha_N"], f.fit.intervals.get("alpha_N"), "95% interval"
            )
            for f in fitted
        ]
        text = listed(parts)
        return text[0].upper() + text[1:] + "."
    reasons = "; ".join(f"{family_name(f.name)}: {f.failure}" for f in families)
    return f"No law yet. {reasons}." if reasons else "No law yet: no runs."


def _details(study: Study, families: list[_Family], gaps: list[_Gap]) -> list[str]:
    paragraphs = []
    if gaps:
        gap = _closest(gaps)
        first, last, what = gap.at(0), gap.at(-1), "extra loss"
        if first[0] < 0 and last[0] < 0:
            first, last, what = flipped(*first), flipped(*last), "lead"
        paragraphs.append(
            f"Over the sizes that both have, the {family_name(gap.family.name)}'s {what} goes "
            f"from {with_interval(*first)} nats at N = {si(gap.n_params[0])} to "
            f"{with_interval(*last)} at N = {si(gap.n_params[-1])}."
            " In Kaplan et al. 2020, Fig. 7, a 1-layer LSTM was 0.19 nats above the Transformers' law "
            "at N = 395k and a 2-layer one 0.48 at 212M."
        )
        error = pair_error(study, gap.family.name, gap.base.name)
        if error is not None:
            paragraphs.append(
                f"Compared window by window on the same text, a difference between a "
                f"{family_name(gap.family.name)} and the Transformer of nearest size has a standard "
                f"error of {number(error, 1)} nats from the choice of documents."
            )
    fitted = [f for f in families if f.fit]
    if fitted:
        parts = [
            f"{family_name(f.name)} "
            + with_interval(f.fit.parameters["alpha_N"], f.fit.intervals.get("alpha_N"))
            for f in fitted
        ]
        paragraphs.append(
            f"Exponent α of L = (N_c / N)^α with N without embeddings: {listed(parts)}. Kaplan et "
            f"al. 2020 found {KAPLAN_ALPHA:g} for Transformers trained to convergence; runs of a "
            f"fixed number of tokens give a smaller one."
        )
    return paragraphs


def _key_numbers(families: list[_Family], gaps: list[_Gap]) -> list[KeyNumber]:
    numbers = []
    if gaps:
        best = _closest(gaps)
        name, at = family_name(best.family.name), si(best.n_params[best.middle])
        label = f"nats per token, {name} over Transformer at N = {at}"
        numbers.append(KeyNumber.of(label, *best.at(best.middle)))
        if math.isfinite(best.ratio):
            label = f"parameters that the {name} needs for the Transformer's loss"
            numbers.append(KeyNumber.of(label, best.ratio, best.ratio_interval, "×"))
    for f in families:
        if f.fit and len(numbers) < 3:
            label = f"exponent α of L(N), {family_name(f.name)}"
            alpha = f.fit.parameters["alpha_N"], f.fit.intervals.get("alpha_N")
            numbers.append(KeyNumber.of(label, *alpha))
    return numbers


def _warnings(study: Study, families: list[_Family]) -> list[str]:
    warnings = []
    for family in families:
        name = family_name(family.name)
        warnings += _lengths(family)
        if family.failure and family.sizes:
            warnings.append(f"{name}: no fit, because {family.failure}.")
        if family.fit:
            warnings += [f"{name}: {w[0].upper()}{w[1:]}." for w in family.fit.warnings]
        single = [size for size in family.sizes if len(size.losses) < 2]
        if single:
            warnings.append(
                f"{name}: {plural(len(single), 'size')} with a single seed, whose spread is unknown."
            )
        lost = study.lost[study.lost["family"] == family.name] if len(study.lost) else ()
        if len(lost) and family.sizes:
            warnings.append(f"{name}: {plural(len(lost), 'run')} left out for not ending well.")
        warnings += [f"{name}: {text}" for text in study.lr_edge_warning(family.name)]
    return warnings


# --- tables -------------------------------------------------------------------------------------


def _law_grid(families: list[_Family]) -> list[Grid]:
    rows = []
    for f in families:
        if f.fit is None:
            continue
        rms = float(np.sqrt(np.mean(np.square(f.fit.residuals["residual"]))))
        low, high = f.fit.intervals.get("N_c", (math.nan, math.nan))
        rows.append(
            [
                family_name(f.name),
                with_interval(f.fit.parameters["alpha_N"], f.fit.intervals.get("alpha_N")),
                f"{number(f.fit.parameters['N_c'], 2)} ({number(low, 2)} to {number(high, 2)})",
                f"{rms:.2%}",
                str(f.fit.n_used),
            ]
        )
    if not rows:
        return []
    return [
        Grid(
            caption="L = (N_c / N)^α by family, N without embeddings; 95% intervals from how "
            "the sizes' means scatter about it. α and N_c are strongly correlated: compare losses, not N_c.",
            header=["family", "α", "N_c", "rms residual", "runs"],
            rows=rows,
            numeric=(1, 2, 3, 4),
        )
    ]


def _gap_grid(gaps: list[_Gap]) -> list[Grid]:
    if not gaps:
        return []
    rows = []
    for gap in gaps:
        for index in (0, gap.middle, len(gap.n_params) - 1):
            value, interval = gap.at(index)
            rows.append(
                [
                    family_name(gap.family.name),
                    si(gap.n_params[index]),
                    with_interval(value, interval),
                ]
            )
    return [
        Grid(
            caption="Loss above the Transformer's at equal N, read off the two laws.",
            header=["family", "N", "nats per token (95% interval)"],
            rows=rows,
            numeric=(1, 2),
        )
    ]


def _size_grid(study: Study, families: list[_Family]) -> list[Grid]:
    if not families:
        return []
    bits = study.bits_per_nat
    rows = [
        [
            family_name(f.name),
            si(size.n_params),
            si(size.tokens),
            str(len(size.losses)),
            with_interval(size.mean, size.interval)
            if size.interval
            else f"{number(size.mean, 4)} (one seed)",
            number(size.mean * bits) if bits else "–",
        ]
        for f in families
        for size in f.sizes
    ]
    return [
        Grid(
            caption="Mean loss of every size. In brackets the 95% interval of the mean (three or "
            "more seeds) or the range (two).",
            header=["family", "N", "tokens", "seeds", "loss (nats)", "bits per byte"],
            rows=rows,
            numeric=(1, 2, 3, 4, 5),
        )
    ]


# --- figure -------------------------------------------------------------------------------------


def _chart(study: Study, families: list[_Family], gaps: list[_Gap]) -> Chart:
    styles = style.family_styles([family.name for family in families])
    paper = any(gap.family.architecture == "lstm" for gap in gaps)
    with style.canvas(7.2 if gaps else 6.4, 6.6 if paper else 3.6) as figure:
        panels = figure.subplots(2 if paper else 1, 2 if gaps else 1, squeeze=False)
        own = panels[0]
        for family in families:
            _draw_family(own[0], family, styles[family.name])
        own[0].set(xlabel="N, parameters without embeddings", ylabel="loss (nats per token)")
        style.log_axis(own[0].xaxis, "count")
        style.log_axis(own[0].yaxis, "plain")
        style.bits_axis(own[0], study.bits_per_nat)
        own[0].legend(fontsize=7.5)
        if gaps:
            own[0].set_title("These runs")
            own[1].set_title("Above the Transformer's law, equal N")
            _draw_gaps(own[1], families, gaps, styles)
        if paper:
            _draw_paper(panels[1], styles)
        seeds = sorted({len(size.losses) for family in families for size in family.sizes})
        caption = (
            f"Final loss over model size (Kaplan et al. 2020, Fig. 7 left). "
            f"{_bars(seeds)} Lines are power laws with their 95% band."
        )
        if gaps:
            caption += (
                " Right: how far each family lies above the Transformer at equal N; the band is "
                "the 95% interval of the difference between the two laws, the points are measured "
                "means minus the Transformer's law."
            )
        if paper:
            caption += (
                " Below: the paper's own points, on another text and vocabulary; right, above its "
                f"Transformers' law, (8.8×10¹³ / N)^{KAPLAN_ALPHA:g}."
            )
        return style.render(
            figure,
            name=NAME,
            caption=caption,
            alt="Loss against parameters for "
            + listed([family_name(f.name) for f in families])
            + (", above the same for Kaplan et al. 2020." if paper else ""),
        )


def _draw_paper(row: Any, styles: dict[str, dict[str, Any]]) -> None:
    """Kaplan et al. 2020, Fig. 7 left, in the looks of one's own families."""
    table = points("kaplan2020_fig7")
    names = list(dict.fromkeys(table["family"]))
    looks = style.family_styles(list(dict.fromkeys([*styles, *names])))
    row[1].axhline(0, color=looks["transformer"]["color"], lw=1.3)
    for name, part in table.groupby("family", sort=False):
        part = part.sort_values("n_params")
        mark = {"mec": style.PAPER, "mew": 0.4, **looks[name]}
        row[0].plot(part["n_params"], part["loss"], lw=1, label=family_name(name), **mark)
        law = (8.8e13 / part["n_params"]) ** KAPLAN_ALPHA
        lines = {"lw": 0} if name == "transformer" else {"lw": 1}
        row[1].plot(part["n_params"], part["loss"] - law, **lines, **mark)
    row[0].set_title("Kaplan et al. 2020, Fig. 7")
    row[1].set_title("Above its Transformers' law")
    row[0].set_ylabel("loss (nats per token)")
    row[1].set_ylabel("extra loss (nats per token)")
    style.log_axis(row[0].yaxis, "plain")
    row[0].legend(fontsize=7.5)
    for axes in row:
        axes.set_xlabel("N, parameters without embeddings")
        style.log_axis(axes.xaxis, "count")


def _bars(seeds: list[int]) -> str:
    if seeds == [1]:
        return "One seed a size, so the points have no bars."
    if seeds == [2]:
        return "Points are means of two seeds, bars their range."
    if seeds[0] >= 3:
        return f"Points are means over seeds ({seeds[0]} or more), bars their 95% intervals."
    return (
        "Points are means over seeds; bars are 95% intervals of the mean for three or more seeds, "
        "the range for two, and missing for one."
    )


def _draw_family(axes: Any, family: _Family, look: dict[str, Any]) -> None:
    x = [size.n_params for size in family.sizes]
    if family.fit:
        curve = family.fit.details["curve"]
        inside = (curve["x"] >= family.range[0] / 1.2) & (curve["x"] <= family.range[1] * 1.2)
        axes.plot(curve["x"][inside], curve["loss"][inside], color=look["color"], lw=1.3)
        if "low" in curve:
            low, high = curve["low"][inside], curve["high"][inside]
            axes.fill_between(curve["x"][inside], low, high, color=look["color"], alpha=0.18, lw=0)
    for size in family.sizes:
        if size.interval:
            axes.plot([size.n_params] * 2, size.interval, color=look["color"], lw=1.5)
    label = family_name(family.name)
    if family.fit:
        label += (
            ", α = "
            + with_interval(
                family.fit.parameters["alpha_N"], family.fit.intervals.get("alpha_N")
            ).split(" (")[0]
        )
    axes.plot(
        x,
        [size.mean for size in family.sizes],
        look["marker"],
        color=look["color"],
        mec=style.PAPER,
        mew=0.5,
        ms=5.5,
        label=label,
        zorder=3,
    )


def _draw_gaps(axes: Any, families: list[_Family], gaps: list[_Gap], styles: dict) -> None:
    base = families[0].fit
    axes.axhline(0, color=styles[families[0].name]["color"], lw=1.3)
    for gap in gaps:
        look = styles[gap.family.name]
        axes.plot(gap.n_params, gap.gap, color=look["color"], lw=1.3)
        if np.isfinite(gap.low).all():
            axes.fill_between(
                gap.n_params, gap.low, gap.high, color=look["color"], alpha=0.18, lw=0
            )
        for size in gap.family.sizes:
            if gap.n_params[0] / 1.01 <= size.n_params <= gap.n_params[-1] * 1.01:
                level = float(base.predict(params=size.n_params))
                if size.interval:
                    edges = [edge - level for edge in size.interval]
                    axes.plot([size.n_params] * 2, edges, color=look["color"], lw=1.5)
                axes.plot(
                    size.n_params,
                    size.mean - level,
                    look["marker"],
                    color=look["color"],
                    mec=style.PAPER,
                    mew=0.5,
                    ms=5.5,
                    zorder=3,
                )
    axes.set(xlabel="N, parameters without embeddings", ylabel="extra loss (nats per token)")
    style.log_axis(axes.xaxis, "count")
