"""The best learning rate against size, tokens and batch, as a rule, beside the published ones.

A cell is one size N, number of tokens D and batch B, trained at several rates. Its best rate is the
vertex of a parabola in ln LR through the rates whose loss is near the lowest. What the losses scatter
about all parabolas (their misfit included) is the noise; the intervals come from fits to losses with
that noise added, and the rule's also from resampled cells. Cells whose best rate is the lowest or the
highest that was tried say where the optimum is not, and are left out of the rule.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lmscale import hparams
from lmscale.laws import FitResult
from lmscale.laws.result import expanded, interval
from lmscale.report import style
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.studies.fits import refused
from lmscale.studies.results import Results
from lmscale.wording import listed, number, plural, si, with_interval

__all__ = ["analyse"]

NAME = "learning_rate"
TITLE = "The best learning rate and batch"
#: Rates whose loss is within this of the cell's lowest shape its parabola (nats): farther out the
#: loss rises faster to one side than to the other.
NEAR = 0.15
LEAST_RATES = 3
DRAWS = 600
#: Li et al. 2025 fitted models from 60M parameters; a factor of six below is taken as in their range.
STEPLAW_LEAST_N = 1e7


@dataclass(frozen=True)
class _Cell:
    """One size, number of tokens and batch. `rates` and `losses` are those that ended well."""

    n: float
    d: float
    b: float
    row: Any
    rates: np.ndarray
    losses: np.ndarray
    #: ln of the best rate and the loss there; NaN where the cell has no minimum inside.
    log_best: float
    lowest: float
    drawn: np.ndarray
    drawn_lowest: np.ndarray
    coefficients: np.ndarray | None
    #: "" where the minimum is inside; otherwise why not.
    edge: str

    @property
    def best(self) -> float:
        return math.exp(self.log_best)

    @property
    def interval(self) -> tuple[float, float]:
        low, high = np.nanpercentile(self.drawn, [2.5, 97.5])
        return math.exp(low), math.exp(high)


@dataclass(frozen=True)
class _BestBatch:
    """The batch with the lowest loss of one size and number of tokens, and the rate at it."""

    n: float
    d: float
    log_batch: float
    log_rate: float
    drawn_batch: np.ndarray
    drawn_rate: np.ndarray
    edge: str


@dataclass(frozen=True)
class _Rule:
    """exp(theta0) N^theta1 D^theta2 ..., by name of the variable."""

    names: tuple[str, ...]
    theta: np.ndarray
    draws: np.ndarray
    n_cells: int
    residual: float

    def value(self, name: str) -> tuple[float, tuple[float, float]] | None:
        if name not in self.names:
            return None
        index = 1 + self.names.index(name)
        share = expanded(0.95, self.n_cells, len(self.theta))
        return float(self.theta[index]), interval(self.draws[:, index], share, axis=0)


def analyse(study: Results) -> Section:
    """Best rates, the rule through them, the best batches, and the published rules at these cells."""
    cells, noise = _cells(study)
    inside = [cell for cell in cells if not cell.edge]
    if not cells:
        return Section(
            name=NAME,
            title=TITLE,
            finding=f"No best rate yet: no cell has ended well at {LEAST_RATES} rates.",
            fits={"transformer/kaplan": refused("learning-rate", "no cell has enough rates")},
        )
    rule = _rule(
        {"x": "n", "y": "d", "z": "b"}, inside, [c.log_best for c in inside], _drawn(inside)
    )
    batches = _best_batches(cells)
    within = [batch for batch in batches if not batch.edge]
    batch_rule = _rule(
        {"p": "n", "q": "d"},
        within,
        [batch.log_batch for batch in within],
        np.array([batch.drawn_batch for batch in within]),
    )
    at_best = _rule(
        {"x": "n", "y": "d"},
        within,
        [batch.log_rate for batch in within],
        np.array([batch.drawn_rate for batch in within]),
    )
    fits = {
        "transformer/kaplan": _fit(rule, inside, noise, "learning-rate", "c"),
        "transformer/batch": _fit(batch_rule, within, noise, "batch", "k"),
        "transformer/at best batch": _fit(at_best, within, noise, "learning-rate", "c"),
    }
    return Section(
        name=NAME,
        title=TITLE,
        finding=_finding(rule, inside, cells),
        conclusive=rule is not None,
        details=_details(batch_rule, at_best, noise),
        key_numbers=_key_numbers(rule),
        charts=[*_parabola_chart(cells), *_rule_chart(inside)],
        grids=[*_rule_grid(rule, batch_rule, at_best), _cell_grid(cells), *_published_grid(inside)],
        fits=fits,
        measures=_measures(cells, rule, batch_rule, at_best),
        warnings=_warnings(study, cells, batches),
    )


# --- cells --------------------------------------------------------------------------------------


def _cells(study: Results) -> tuple[list[_Cell], float]:
    """Cells with enough rates, and the noise of a loss about its parabola (nats)."""
    if not len(study.table):
        return [], math.nan
    table = study.table
    # Lengths are rounded to whole steps: what was asked for tells which cells belong together.
    horizon = table["horizon"] if "horizon" in table else table["tokens"]
    table = table.assign(horizon=horizon.astype(float))
    groups = []
    for _, group in table.groupby(["params_kaplan", "horizon", "batch_tokens"], sort=True):
        done = group[(group["status"] == "done") & np.isfinite(group["loss"].astype(float))]
        if done["peak_lr"].nunique() >= LEAST_RATES:
            groups.append((group, done))
    fitted = [_parabola(group, done) for group, done in groups]
    squares = sum(float(np.sum(f["rest"] ** 2)) for f in fitted if f["rest"] is not None)
    freedom = sum(max(0, len(f["rest"]) - 3) for f in fitted if f["rest"] is not None)
    noise = math.sqrt(squares / freedom) if freedom else math.nan
    rng = np.random.default_rng(0)
    return [_cell(*pair, f, noise, rng) for pair, f in zip(groups, fitted, strict=True)], noise


def _parabola(group: pd.DataFrame, done: pd.DataFrame) -> dict[str, Any]:
    """The parabola of a cell in ln LR less its best tried value, or why there is none."""
    mean = done.groupby("peak_lr")["loss"].mean()
    best = float(mean.idxmin())
    if best == mean.index.min():
        edge = "lowest tried"
    elif best == mean.index.max():
        lost = group[(group["status"] == "diverged") & (group["peak_lr"] > best)]
        edge = "next one diverged" if len(lost) else "highest tried"
    else:
        edge = ""
    # The best rate and its neighbours always count.
    place = list(mean.index).index(best)
    keep = {*mean.index[max(0, place - 1) : place + 2], *mean.index[mean < mean.min() + NEAR]}
    used = done[done["peak_lr"].isin(keep)]
    x = np.log(used["peak_lr"].to_numpy(float)) - math.log(best)
    y = used["loss"].to_numpy(float)
    found = {"edge": edge, "best": best, "x": x, "y": y, "rest": None, "theta": None}
    if used["peak_lr"].nunique() < LEAST_RATES:
        return found
    theta = np.polyfit(x, y, 2)
    found |= {"theta": theta, "rest": y - np.polyval(theta, x)}
    if theta[0] <= 0:
        found["edge"] = edge or "no minimum"
    return found


def _cell(
    group: pd.DataFrame, done: pd.DataFrame, found: dict, noise: float, rng: np.random.Generator
) -> _Cell:
    x, y, theta = found["x"], found["y"], found["theta"]
    log_best = lowest = math.nan
    drawn = drawn_lowest = np.full(DRAWS, np.nan)
    if not found["edge"] and theta is not None:
        log_best, lowest = _vertex(theta)
        if math.isfinite(noise):
            noisy = y + noise * rng.standard_normal((DRAWS, len(y)))
            drawn, drawn_lowest = _vertex(np.polyfit(x, noisy.T, 2))
            # A draw that has lost its minimum puts it somewhere among the rates.
            lost = ~np.isfinite(drawn) | (drawn < x.min()) | (drawn > x.max())
            drawn = np.where(lost, rng.uniform(x.min(), x.max(), DRAWS), drawn)
            drawn_lowest = np.where(lost, y.min(), drawn_lowest)
        log_best, drawn = log_best + math.log(found["best"]), drawn + math.log(found["best"])
    first = group.iloc[0]
    return _Cell(
        n=float(first["params_kaplan"]),
        d=float(first["horizon"]),
        b=float(first["batch_tokens"]),
        row=first,
        rates=done["peak_lr"].to_numpy(float),
        losses=done["loss"].to_numpy(float),
        log_best=float(log_best),
        lowest=float(lowest),
        drawn=drawn,
        drawn_lowest=drawn_lowest,
        coefficients=theta,
        edge=found["edge"],
    )


def _vertex(theta: np.ndarray) -> tuple[Any, Any]:
    """(place, value) of the minimum of a x^2 + b x + c; NaN where there is none."""
    a, b, c = theta
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.where(a > 0, -b / (2 * a), np.nan)
        return place, c - b**2 / (4 * a)


def _drawn(cells: list[_Cell]) -> np.ndarray:
    return np.array([cell.drawn for cell in cells])


def _best_batches(cells: list[_Cell]) -> list[_BestBatch]:
    """Best batch of every size and number of tokens with three batches or more."""
    found = []
    groups: dict[tuple[float, float], list[_Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.n, cell.d), []).append(cell)
    for (n, d), own in sorted(groups.items()):
        own = sorted((c for c in own if not c.edge), key=lambda c: c.b)
        if len(own) < 3:
            continue
        x = np.log([c.b for c in own])
        best = int(np.argmin([c.lowest for c in own]))
        edge = {0: "smallest", len(own) - 1: "largest"}.get(best, "")
        # The best and its neighbours: over many doublings the loss is no parabola.
        near = slice(max(0, best - 1), best + 2)
        rates = np.array([c.drawn for c in own])
        log_batch = log_rate = math.nan
        drawn_batch = drawn_rate = np.full(DRAWS, np.nan)
        if not edge:
            lowest = np.array([c.drawn_lowest for c in own])[near]
            log_batch = float(_vertex(np.polyfit(x[near], [c.lowest for c in own[near]], 2))[0])
            drawn_batch = _vertex(np.polyfit(x[near], lowest, 2))[0]
            drawn_batch = np.where(np.isfinite(drawn_batch), drawn_batch, log_batch)
            drawn_batch = np.clip(drawn_batch, x[near].min(), x[near].max())
            log_rate = float(np.interp(log_batch, x, [c.log_best for c in own]))
            drawn_rate = np.array(
                [np.interp(b, x, r) for b, r in zip(drawn_batch, rates.T, strict=True)]
            )
        found.append(_BestBatch(n, d, log_batch, log_rate, drawn_batch, drawn_rate, edge))
    return found


# --- rules --------------------------------------------------------------------------------------


def _rule(
    names: dict[str, str], points: list, values: list[float], drawn: np.ndarray
) -> _Rule | None:
    """A power law in the variables of which the points have more than one value.

    Args:
      names: exponent -> attribute of a point.
      values: ln of what is ruled, a point; `drawn` [point, draw].
    """
    kept = {k: v for k, v in names.items() if len({getattr(p, v) for p in points}) > 1}
    if not kept or len(points) < len(kept) + 2:
        return None
    columns = [np.log([getattr(p, v) for p in points]) for v in kept.values()]
    design = np.stack([np.ones(len(points)), *columns], axis=1)
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return None
    theta = np.linalg.lstsq(design, np.array(values), rcond=None)[0]
    rest = values - design @ theta
    draws = []
    rng = np.random.default_rng(1)
    for column in drawn.T:
        pick = rng.integers(len(points), size=len(points))
        if np.linalg.matrix_rank(design[pick]) < design.shape[1]:
            continue
        target = column if np.isfinite(column).all() else np.array(values)
        draws.append(np.linalg.lstsq(design[pick], target[pick], rcond=None)[0])
    residual = math.sqrt(float(np.sum(rest**2)) / max(1, len(points) - len(theta)))
    return _Rule(tuple(kept), theta, np.array(draws), len(points), residual)


def _fit(rule: _Rule | None, points: list, noise: float, law: str, constant: str) -> FitResult:
    """The rule as fits.json holds it."""
    if rule is None:
        return refused(law, "too few cells with a minimum inside the search, or all alike")
    columns = {"n": "params", "d": "tokens", "b": "batch_tokens"}
    share = expanded(0.95, rule.n_cells, len(rule.theta))
    parameters = {constant: math.exp(rule.theta[0])}
    intervals = {constant: tuple(np.exp(interval(rule.draws[:, 0], share, axis=0)))}
    for name in rule.names:
        parameters[name], intervals[name] = rule.value(name)
    return FitResult(
        law=law,
        parameters=parameters,
        intervals=intervals,
        interval_method="noise about the parabolas, and bootstrap over cells",
        objective_name="squared residuals of the logarithm",
        objective=rule.residual**2 * max(1, rule.n_cells - len(rule.theta)),
        n_used=rule.n_cells,
        ranges={
            column: (min(getattr(p, name) for p in points), max(getattr(p, name) for p in points))
            for name, column in columns.items()
            if hasattr(points[0], name)
        },
        details={"noise": noise, "residual": rule.residual},
    )


def _measures(cells: list[_Cell], rule: Any, batch_rule: Any, at_best: Any) -> dict[str, Measure]:
    few = "too few cells have their best rate inside the search, or they do not vary in it"

    def measure(what: str, source: _Rule | None, name: str, why: str = few) -> Measure:
        value = source.value(name) if source else None
        if value is None:
            return Measure(what=what, value=None, undecided_because=why)
        return Measure(
            what=f"{what}, {plural(source.n_cells, 'cell')}", value=value[0], interval=value[1]
        )

    measures = {
        "n_exponent": measure("exponent of the best rate in N at fixed D and B", rule, "x"),
        "d_exponent": measure("exponent of the best rate in D at fixed N and B", rule, "y"),
        "b_exponent": measure("exponent of the best rate in B at fixed N and D", rule, "z"),
    }
    no_batch = "too few sizes and lengths have their best batch inside the search"
    published = {
        "steplaw_n": measure("exponent of the rate in N at the best batch", at_best, "x", no_batch),
        "steplaw_d": measure("exponent of the rate in D at the best batch", at_best, "y", no_batch),
        "steplaw_batch": measure("exponent of the best batch in D", batch_rule, "q", no_batch),
    }
    smallest = min(cell.n for cell in cells)
    for name, found in published.items():
        if found.value is not None and smallest < STEPLAW_LEAST_N:
            shown = with_interval(found.value, found.interval)
            why = f"sizes from {si(smallest)} are far below the paper's 60M; here it is {shown}"
            found = Measure(what=found.what, value=None, undecided_because=why)
        measures[name] = found
    return measures


# --- words --------------------------------------------------------------------------------------

_VARIABLES = {"x": "N", "y": "D", "z": "B", "p": "N", "q": "D"}


def _formula(rule: _Rule) -> str:
    """'N^−0.3 (…) D^0.1 (…)' with intervals."""
    return " ".join(f"{_VARIABLES[name]}^{with_interval(*rule.value(name))}" for name in rule.names)


def _finding(rule: _Rule | None, inside: list[_Cell], cells: list[_Cell]) -> str:
    if rule is None:
        return (
            f"No rule yet: {len(inside)} of {plural(len(cells), 'cell')} have their best rate inside "
            f"the search."
        )
    return (
        f"The best learning rate goes as {_formula(rule)} (95% intervals; N without embeddings, D and B "
        f"in tokens), from {len(inside)} of {plural(len(cells), 'cell')}."
    )


def _details(batch_rule: Any, at_best: Any, noise: float) -> list[str]:
    paragraphs = []
    if math.isfinite(noise):
        paragraphs.append(
            f"Losses scatter by {noise:.4f} nats about the parabolas, which is the noise that the "
            "intervals rest on. To use the rule in another experiment: "
            "hparams.fitted_rule('…/fits.json'), or --lr-fit where an experiment has it."
        )
    if batch_rule:
        paragraphs.append(f"The best batch goes as {_formula(batch_rule)} tokens.")
    if at_best:
        paragraphs.append(
            f"At the best batch the best rate goes as {_formula(at_best)}; Li et al. 2025 found "
            "N^−0.713 D^0.307 and a batch of D^0.571."
        )
    return paragraphs


def _key_numbers(rule: _Rule | None) -> list[KeyNumber]:
    if rule is None:
        return []
    return [
        KeyNumber.of(f"exponent of the best learning rate in {_VARIABLES[name]}", *rule.value(name))
        for name in rule.names
    ]


def _warnings(study: Results, cells: list[_Cell], batches: list[_BestBatch]) -> list[str]:
    warnings = []
    edges: dict[str, int] = {}
    for cell in cells:
        if cell.edge:
            edges[cell.edge] = edges.get(cell.edge, 0) + 1
    if edges:
        parts = [f"{count} ({edge})" for edge, count in edges.items()]
        warnings.append(
            f"The best rate is at the edge of the search, or there is none, in {sum(edges.values())} of "
            f"{plural(len(cells), 'cell')}: {listed(parts)}. They are left out of the rule: a wider "
            f"search (--lr-factors) would bring them in."
        )
    at_edge = [batch.edge for batch in batches if batch.edge]
    if at_edge:
        parts = [f"{at_edge.count(edge)} at the {edge}" for edge in dict.fromkeys(at_edge)]
        warnings.append(
            f"The best batch is at the edge of those tried for {len(at_edge)} of {len(batches)} pairs of "
            f"N and D ({listed(parts)}); they are left out of the batch rule."
        )
    planned = study.table.groupby(["params_kaplan", "batch_tokens", "steps"]).ngroups
    if planned > len(cells):
        warnings.append(
            f"{plural(planned - len(cells), 'cell')} with fewer than {LEAST_RATES} rates that ended well."
        )
    return warnings


# --- tables -------------------------------------------------------------------------------------


def _rule_grid(rule: Any, batch_rule: Any, at_best: Any) -> list[Grid]:
    rows = []
    for name, found in (
        ("best rate", rule),
        ("best batch (tokens)", batch_rule),
        ("best rate at the best batch", at_best),
    ):
        if found is None:
            continue
        shown = {_VARIABLES[n]: with_interval(*found.value(n)) for n in found.names}
        rows.append(
            [
                name,
                number(math.exp(found.theta[0])),
                *[shown.get(v, "–") for v in ("N", "D", "B")],
                f"{math.exp(found.residual) - 1:.0%}",
                str(found.n_cells),
            ]
        )
    if not rows:
        return []
    return [
        Grid(
            caption="Rules: constant times N, D and B to these powers (95% intervals); N without "
            "embeddings, D and B in tokens.",
            header=["of", "constant", "N", "D", "B", "residual", "cells"],
            rows=rows,
            numeric=(1, 2, 3, 4, 5, 6),
        )
    ]


def _cell_grid(cells: list[_Cell]) -> Grid:
    rows = []
    for cell in cells:
        best = f"– ({cell.edge})"
        if not cell.edge:
            low, high = cell.interval
            best = f"{number(cell.best)} ({number(low)} to {number(high)})"
        lowest = cell.losses.min() if cell.edge else cell.lowest
        rows.append([si(cell.n), si(cell.d), si(cell.b), best, f"{lowest:.3f}"])
    return Grid(
        caption="Best rate of every cell with its 95% interval, and the loss there (nats per token).",
        header=["N", "D", "B", "best rate", "loss"],
        rows=rows,
        numeric=(0, 1, 2, 3, 4),
    )


def published_rates(n_kaplan: float, n_head: float, d: float, row: Any) -> dict[str, float]:
    """Peak rates of the published rules for one cell."""
    per_token = hparams.deepseek_flops_per_token(
        int(row["n_layer"]), int(row["width"]), int(row["n_ctx"])
    )
    return {
        "Kaplan": hparams.kaplan_lr(n_kaplan),
        "Porian": hparams.porian_lr(n_head),
        "DeepSeek": hparams.deepseek_lr(per_token * d),
        "StepLaw": hparams.steplaw_lr(n_kaplan, d),
    }


def _published_grid(inside: list[_Cell]) -> list[Grid]:
    """At every N and D the batch of lowest loss, whose rate the published rules speak of."""
    best: dict[tuple[float, float], _Cell] = {}
    for cell in inside:
        at = best.setdefault((cell.n, cell.d), cell)
        if cell.lowest < at.lowest:
            best[cell.n, cell.d] = cell
    if not best:
        return []
    rows = []
    for (n, d), cell in sorted(best.items()):
        rates = published_rates(n, float(cell.row["params_standard"]), d, cell.row)
        shown = [f"{number(rate, 2)} ({number(rate / cell.best, 2)}×)" for rate in rates.values()]
        rows.append([si(n), si(d), si(cell.b), number(cell.best, 2), *shown])
    return [
        Grid(
            caption="The rate found at the best batch tried, and what the published rules give, with its "
            "ratio to the rate found. They were fitted to far larger models and runs.",
            header=["N", "D", "B", "found", *rates],
            rows=rows,
            numeric=tuple(range(4 + len(rates))),
        )
    ]


# --- figures ------------------------------------------------------------------------------------


def _parabola_chart(cells: list[_Cell]) -> list[Chart]:
    """Loss against rate: a panel a size and batch, at most three of either, a colour per D."""
    sizes = _three(sorted({c.n for c in cells}))
    batches = _three(sorted({c.b for c in cells}))
    colours = style.ordered_colours([c.d for c in cells])
    with style.canvas(7.0, 0.9 + 1.75 * len(batches)) as figure:
        panels = figure.subplots(len(batches), len(sizes), squeeze=False, sharex=True, sharey=True)
        for row, b in zip(panels, batches, strict=True):
            for axes, n in zip(row, sizes, strict=True):
                for cell in (c for c in cells if (c.n, c.b) == (n, b)):
                    _draw_cell(axes, cell, colours[cell.d])
                axes.set_title(f"N = {si(n)}, B = {si(b)}", fontsize=8.5)
            row[0].set_ylabel("loss (nats)")
        for axes in panels[-1]:
            axes.set_xlabel("peak learning rate")
            style.log_axis(axes.xaxis, "power")
        top = max(float(c.losses.min()) for c in cells) + 0.8
        low = min(float(c.losses.min()) for c in cells)
        panels[0, 0].set_ylim(low - 0.15, top)
        handles = [panels[0, 0].plot([], [], "o-", ms=3, color=colours[d])[0] for d in colours]
        labels = [f"D = {si(d)}" for d in colours]
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
        return [
            style.render(
                figure,
                name="learning_rate-cells",
                caption="Loss against the peak learning rate, with the parabola of every cell; diamonds "
                "mark its minimum and its 95% interval. Cells without a diamond have their best rate at "
                "the edge of the search. Losses far above are cut off.",
                alt=f"Loss against learning rate for {plural(len(cells), 'cell')}.",
            )
        ]


def _three(values: list[float]) -> list[float]:
    return values if len(values) <= 3 else [values[0], values[len(values) // 2], values[-1]]


def _draw_cell(axes: Any, cell: _Cell, colour: str) -> None:
    axes.plot(cell.rates, cell.losses, "o", ms=2.8, color=colour, alpha=0.8)
    if cell.edge:
        means = pd.Series(cell.losses).groupby(cell.rates).mean()
        axes.plot(means.index, means, ":", lw=0.8, color=colour)
        return
    rates = np.geomspace(cell.rates.min(), cell.rates.max(), 60)
    # The parabola is in ln LR less that of the best tried rate.
    means = pd.Series(cell.losses).groupby(cell.rates).mean()
    axes.plot(
        rates, np.polyval(cell.coefficients, np.log(rates / means.idxmin())), color=colour, lw=1
    )
    axes.plot(cell.interval, (cell.lowest, cell.lowest), color=colour, lw=2.2, alpha=0.6)
    axes.plot(cell.best, cell.lowest, "D", ms=4, color=colour, mec=style.PAPER, mew=0.6, zorder=4)


def _rule_chart(inside: list[_Cell]) -> list[Chart]:
    """The best rate against each variable; lines join cells that differ in it alone."""
    if len(inside) < 2:
        return []
    colours = style.ordered_colours([c.n for c in inside])
    by_tokens = style.ordered_colours([c.d for c in inside])
    with style.canvas(7.0, 3.5) as figure:
        panels = figure.subplots(1, 3, sharey=True)
        for axes, name, label in zip(
            panels,
            "ndb",
            ("size N", "tokens D", "batch B (tokens)"),
            strict=True,
        ):
            others = [v for v in "ndb" if v != name]
            lines: dict[tuple, list[_Cell]] = {}
            for cell in inside:
                lines.setdefault(tuple(getattr(cell, v) for v in others), []).append(cell)
            for line in lines.values():
                colour = by_tokens[line[0].d] if name == "n" else colours[line[0].n]
                line = sorted(line, key=lambda c: getattr(c, name))
                axes.plot(
                    [getattr(c, name) for c in line],
                    [c.best for c in line],
                    "o-",
                    ms=3,
                    lw=0.8,
                    color=colour,
                )
                for c in line:
                    axes.plot([getattr(c, name)] * 2, c.interval, color=colour, lw=0.6, alpha=0.6)
            axes.set_xlabel(label)
        _draw_published(panels[0], inside)
        for axes in panels:
            style.log_axis(axes.xaxis, "count")
        style.log_axis(panels[0].yaxis, "power")
        panels[0].set_ylabel("best learning rate")
        for axes, values, letter in ((panels[0], by_tokens, "D"), (panels[1], colours, "N")):
            handles = [axes.plot([], [], "o-", ms=3, color=c)[0] for c in values.values()]
            axes.legend(
                handles,
                [f"{letter} = {si(v)}" for v in values],
                loc="upper center",
                bbox_to_anchor=(0.5, -0.2),
                ncols=2,
                columnspacing=0.8,
                handlelength=1.2,
            )
        return [
            style.render(
                figure,
                name=NAME,
                caption="The best learning rate of every cell, with its 95% interval, against size, "
                "tokens and batch; lines join cells that differ in that alone, coloured by D on the left "
                "and by N on the right. N is without embeddings. Grey: the published rules at these sizes "
                "and the middle number of tokens.",
                alt=f"Best learning rate of {plural(len(inside), 'cell')} against N, D and B.",
            )
        ]


def _draw_published(axes: Any, inside: list[_Cell]) -> None:
    tokens = sorted({c.d for c in inside})
    middle = tokens[len(tokens) // 2]
    rows = {c.n: c.row for c in inside}
    curves: dict[str, list[float]] = {}
    for n, row in sorted(rows.items()):
        for name, rate in published_rates(n, float(row["params_standard"]), middle, row).items():
            curves.setdefault(name, []).append(rate)
    dashes = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2)))
    for (name, rates), dash in zip(curves.items(), dashes, strict=True):
        axes.plot(sorted(rows), rates, ls=dash, color=style.MUTED, lw=1)
        axes.annotate(
            name,
            (min(rows), rates[0]),
            xytext=(2, 2),
            textcoords="offset points",
            fontsize=6.5,
            color=style.MUTED,
            bbox={"fc": style.PAPER, "ec": "none", "pad": 0.4, "alpha": 0.8},
        )
