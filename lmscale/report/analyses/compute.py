"""What compute buys: the lower edge of all learning curves (Kaplan et al. 2020, Figs. 2, 12 to 14).

Kaplan's C counts no embeddings and no head, 6 N B S; C_min = C / (1 + B/B_crit(L)) is what training far
below the critical batch would have taken. Intervals are over seeds: each draw takes every size's
seeds again, and reads the edge anew, with another B_crit(L) where its error is declared.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from lmscale import laws
from lmscale.laws import FitError, FitResult, TableError
from lmscale.report import style
from lmscale.report.caveats import BATCH_NOTE
from lmscale.report.figures import size_legend
from lmscale.report.section import Chart, Grid, KeyNumber, Measure, Section
from lmscale.studies.estimate import LEAST_SEEDS
from lmscale.studies.fits import refused
from lmscale.studies.learning_curves import (
    FAR,
    Ladder,
    Size,
    fit_learning_curves,
    ladder,
    law_rejected_because,
    seed_interval,
    with_batch_error,
)
from lmscale.studies.results import Results
from lmscale.wording import number, plural, with_interval

__all__ = ["analyse"]

NAME = "compute"
TITLE = "Loss against compute, and the best size"
DRAWS = 200
#: Budgets at which an envelope is read.
BUDGETS = 200
#: Exponents of Kaplan et al. 2020: Table 5, Table 6 and Fig. 14.
PAPER = {"C": {"loss": 0.057, "size": 0.88}, "C_min": {"loss": 0.050, "size": 0.73}}
#: Sizes, relative to the best, between which the paper finds a cost of 20% at most (Fig. 12).
OFF_OPTIMUM = (0.6, 2.2)
#: B/B_crit(L) at the ends of the paper's frontier, with its batch of 2^19 tokens, and the least that
#: the upper end must be here for a claim about a fixed batch.
PAPER_BATCH = ("12", "half")
PAPER_ABOVE = 3.0
NO_INTERVAL = f"an interval needs {LEAST_SEEDS} seeds a size"


@dataclass(frozen=True)
class _Edge:
    """The lower edge of the curves under one count of compute.

    Attributes:
      flops: [budget] at which a size inside the ladder is best, and both its neighbours got there.
      n_opt, loss: [budget] least point of the parabola through these three, in ln N.
      size_law: N_opt = k_N C^a; loss_law: L = (C_c / C)^alpha_C, the law "power".
      size_draws, loss_draws: the exponents over seeds drawn again, or None.
      drawn: of every draw n_opt and loss [budget], empty where it could not be read.
    """

    flops: np.ndarray
    n_opt: np.ndarray
    loss: np.ndarray
    size_law: FitResult
    loss_law: FitResult
    size_draws: np.ndarray | None
    loss_draws: np.ndarray | None
    drawn: list[tuple[np.ndarray, np.ndarray]]

    @property
    def size_exponent(self) -> float:
        return self.size_law.parameters["a"]

    @property
    def loss_exponent(self) -> float:
        return self.loss_law.parameters["alpha_C"]


def analyse(study: Results) -> Section:
    """L(C), L(C_min), N_opt(C), and what App. B of the paper makes of the learning curves' law."""
    found = ladder(study)
    if found is None:
        return Section(name=NAME, title=TITLE, finding="No run has evaluations along the way yet.")
    try:
        edges = {
            (convention, kind): _edge(found, convention, kind == "C_min")
            for convention in ("kaplan", "standard")
            for kind in ("C", "C_min")
        }
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        return Section(
            name=NAME,
            title=TITLE,
            finding=f"No law yet: {error}.",
            fits={f"{found.family}/kaplan": refused("envelope", str(error))},
        )
    try:
        curves = with_batch_error(fit_learning_curves(found), found)
    except (TableError, FitError, np.linalg.LinAlgError):
        curves = None
    constants = None
    if curves is not None:
        constants = curves.parameters | found.batch_law
    costs = _costs(found)
    measures = _measures(found, edges, curves, costs)
    naive, best = edges["kaplan", "C"], edges["kaplan", "C_min"]
    charts = [_loss_chart(found, naive, best), _size_chart(naive, best, constants)]
    if costs:
        charts.append(_cost_chart(costs, constants))
    alpha, size = measures["alpha_C_min"], measures["size_exponent_min"]
    return Section(
        name=NAME,
        title=TITLE,
        finding=f"The loss falls as C_min^−{with_interval(alpha.value, alpha.interval)} along the "
        f"lower edge of the curves, and the best size grows as C_min^"
        f"{with_interval(size.value, size.interval)}, with parameters and compute counted without "
        f"embeddings; Kaplan et al. 2020 found 0.050 and 0.73.",
        conclusive=size.interval is not None and not size.undecided_because,
        details=_details(constants),
        key_numbers=[
            KeyNumber.of("exponent of the loss against C_min", alpha.value, alpha.interval),
            KeyNumber.of("exponent of N_opt against C_min", size.value, size.interval),
        ],
        charts=charts,
        grids=[_exponents(edges, constants)],
        fits={
            f"{found.family}/{convention}, {kind}, {what}": law
            for (convention, kind), edge in edges.items()
            for what, law in (("N_opt", edge.size_law), ("loss", edge.loss_law))
        },
        measures=measures,
        warnings=_warnings(found, edges),
    )


# --- the lower edge -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """Where an edge is read: the budgets, and which size is about the best at each.

    Attributes:
      batch_law: that makes C_min of C, or None for C.
      log_n: [size], grid: [budget] ln of compute, best: [budget] index of a size, level: [3, budget]
        ln L of the best size and its neighbours.
    """

    batch_law: dict[str, float] | None
    log_n: np.ndarray
    grid: np.ndarray
    best: np.ndarray
    level: np.ndarray


def _place(found: Ladder, convention: str, batch_law: dict[str, float] | None) -> _Place:
    """Raises a TableError where no size inside the ladder is best anywhere."""
    if len(found.sizes) < 3:
        raise TableError(f"{plural(len(found.sizes), 'size')}, and a best one needs neighbours")
    log_n = np.log([size.params[convention] for size in found.sizes])
    curves = [_log_curve(size, size.loss, convention, batch_law) for size in found.sizes]
    grid = np.linspace(min(c[0][0] for c in curves), max(c[0][-1] for c in curves), BUDGETS)
    level = _levels(grid, curves)
    best = np.clip(np.argmin(level, axis=0), 1, len(log_n) - 2)
    inside = (np.argmin(level, axis=0) == best) & np.isfinite(_three(level, best)).all(axis=0)
    grid, best = grid[inside], best[inside]
    if len(grid) < 3 or len(set(best)) < 2:
        raise TableError(
            "no two sizes inside the ladder are best anywhere: it takes smaller ones, larger ones "
            "or longer runs"
        )
    return _Place(batch_law, log_n, grid, best, _three(level[:, inside], best))


def _edge(found: Ladder, convention: str, adjusted: bool) -> _Edge:
    """Raises a TableError where no size inside the ladder is best anywhere."""
    place = _place(found, convention, found.batch_law if adjusted else None)
    grid = place.grid
    x, y = _vertex(place.log_n, place.level, place.best)
    slope, start = np.polyfit(grid, x, 1)
    loss_law = laws.fit({"flops": np.exp(grid), "loss": np.exp(y)}, "power", x="flops", bootstrap=0)
    losses, size_draws, loss_draws, drawn = found.drawn_losses(DRAWS), None, None, []
    if losses is not None:
        size_draws, loss_draws = np.full((2, DRAWS), np.nan)
        places = _places(found, convention) if adjusted else [place]
        for i in range(DRAWS):
            budgets, n_opt, low = _drawn_edge(
                found, convention, places[i % len(places)], [of_size[i] for of_size in losses]
            )
            drawn.append((np.exp(n_opt), np.exp(low)))
            if len(budgets):
                size_draws[i] = np.polyfit(budgets, n_opt, 1)[0]
                loss_draws[i] = -np.polyfit(budgets, low, 1)[0]
    size_law = FitResult(
        law="envelope",
        parameters={"a": float(slope), "k_N": float(np.exp(start))},
        objective_name="sum of squared residuals of ln N about the power law",
        objective=float(np.sum((x - start - slope * grid) ** 2)),
        n_used=len(found.sizes),
        exponents={convention: {"N": float(slope), "D": float(1 - slope)}},
        ranges={"flops": (float(np.exp(grid[0])), float(np.exp(grid[-1])))},
        details={"envelope": {"flops": np.exp(grid), "n_opt": np.exp(x), "loss": np.exp(y)}},
    )
    return _Edge(
        flops=np.exp(grid),
        n_opt=np.exp(x),
        loss=np.exp(y),
        size_law=_with_interval(size_law, "a", size_draws),
        loss_law=_with_interval(loss_law, "alpha_C", loss_draws),
        size_draws=size_draws,
        loss_draws=loss_draws,
        drawn=drawn,
    )


def _places(found: Ladder, convention: str) -> list[_Place | None]:
    """Of C_min by every law that B_crit(L) may follow; None where that one has no edge."""
    places = []
    for law in found.batch_laws():
        try:
            places.append(_place(found, convention, law))
        except TableError:
            places.append(None)
    return places


def _drawn_edge(
    found: Ladder, convention: str, place: _Place | None, losses: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ln of budgets, N_opt and loss by other losses; empty where a tenth of them have no minimum."""
    nothing = np.empty(0)
    if place is None:
        return nothing, nothing, nothing
    curves = [
        _log_curve(size, loss, convention, place.batch_law)
        for size, loss in zip(found.sizes, losses, strict=True)
    ]
    # At the same budgets, about the same sizes: a draw of seeds chooses neither.
    level = _three(_levels(place.grid, curves), place.best)
    n_opt, low = _vertex(place.log_n, level, place.best)
    sound = np.isfinite(n_opt)
    if sound.mean() <= 0.9:
        return nothing, nothing, nothing
    return place.grid[sound], n_opt[sound], low[sound]


def _log_curve(
    size: Size, losses: np.ndarray, convention: str, batch_law: dict[str, float] | None
) -> tuple[np.ndarray, np.ndarray]:
    """ln C, or ln C_min by `batch_law`, and ln L along a curve, as far as compute grows."""
    flops = size.flops_per_step[convention] * size.steps
    if batch_law is not None:
        flops = laws.adjusted_compute(flops, size.batch_tokens, losses, **batch_law)
    grows = flops >= np.maximum.accumulate(flops)
    return np.log(flops[grows]), np.log(losses[grows])


def _levels(grid: np.ndarray, curves: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """ln L [size, budget], infinite where a curve does not reach."""
    return np.stack([np.interp(grid, x, y, np.inf, np.inf) for x, y in curves])


def _three(values: np.ndarray, best: np.ndarray) -> np.ndarray:
    """[3, budget]: of the best size and its neighbours."""
    return np.stack([values[best + k, np.arange(len(best))] for k in (-1, 0, 1)])


def _vertex(log_n: np.ndarray, y: np.ndarray, best: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least points of parabolas through y [3, budget]; NaN where they are not convex."""
    x = np.stack([log_n[best + k] for k in (-1, 0, 1)]) - log_n[best]
    with np.errstate(invalid="ignore", divide="ignore"):
        left, right = (y[0] - y[1]) / x[0], (y[2] - y[1]) / x[2]
        curvature = (right - left) / (x[2] - x[0])
        slope = left - curvature * x[0]
        place = -slope / (2 * curvature)
        low = y[1] - slope**2 / (4 * curvature)
    sound = np.isfinite(place) & (curvature > 0)
    return np.where(sound, log_n[best] + place, np.nan), np.where(sound, low, np.nan)


def _with_interval(fit: FitResult, name: str, draws: np.ndarray | None) -> FitResult:
    interval = seed_interval(draws)
    if interval is None:
        return fit
    return dataclasses.replace(
        fit, intervals={name: interval}, interval_method="bootstrap over seeds within each size"
    )


# --- the cost of other sizes --------------------------------------------------------------------


@dataclass(frozen=True)
class _Cost:
    """Compute to one loss, by size, relative to the least.

    Attributes:
      ratio: [size] N over the best one, cost: [size] compute over the least.
      at: the larger cost at the two ends of `OFF_OPTIMUM`, less one; NaN where they lie outside.
    """

    loss: float
    ratio: np.ndarray
    cost: np.ndarray
    at: float


def _cost(found: Ladder, losses: list[np.ndarray], target: float) -> _Cost | None:
    """None where fewer than five sizes reach the loss, or the best is not inside them."""
    n, flops = [], []
    for size, loss in zip(found.sizes, losses, strict=True):
        steps = laws.steps_to_loss(size.steps, loss, [target])[0]
        if np.isfinite(steps):
            n.append(size.n_params)
            # At one loss B_crit is one number, so that C_min has the same ratios.
            flops.append(size.flops_per_step["kaplan"] * steps)
    if len(n) < 5:
        return None
    x, y = np.log(n), np.log(flops)
    curve = CubicSpline(x, y)
    grid = np.linspace(x[0], x[-1], 400)
    place = int(np.argmin(curve(grid)))
    if place in (0, len(grid) - 1):
        return None
    best, least = grid[place], curve(grid[place])
    ends = best + np.log(OFF_OPTIMUM)
    inside = x[0] <= ends[0] and ends[1] <= x[-1]
    at = float(np.expm1(np.max(curve(ends)) - least)) if inside else np.nan
    return _Cost(target, np.exp(x - best), np.exp(y - least), at)


def _costs(found: Ladder) -> list[tuple[_Cost, np.ndarray | None]]:
    """At losses that five sizes or more reach, with draws of `at`."""
    if len(found.sizes) < 5:
        return []
    lowest = sorted((size.loss.min() for size in found.sizes), reverse=True)
    highest = max(size.loss[0] for size in found.sizes)
    ends = 1.005 * lowest[-5], 0.9 * highest + 0.1 * lowest[-5]
    if ends[0] >= ends[1]:
        return []
    drawn, costs = found.drawn_losses(DRAWS), []
    for target in np.geomspace(*ends, 6):
        cost = _cost(found, [size.loss for size in found.sizes], float(target))
        if cost is None:
            continue
        draws = None
        if drawn is not None:
            again = [_cost(found, [d[i] for d in drawn], float(target)) for i in range(DRAWS)]
            draws = np.array([item.at if item else np.nan for item in again])
        costs.append((cost, draws))
    return costs


# --- measures -----------------------------------------------------------------------------------


def _measures(
    found: Ladder,
    edges: dict[tuple[str, str], _Edge],
    curves: FitResult | None,
    costs: list[tuple[_Cost, np.ndarray | None]],
) -> dict[str, Measure]:
    naive, best = edges["kaplan", "C"], edges["kaplan", "C_min"]
    batch = max(size.batch_tokens for size in found.sizes)
    above = float(np.max(batch / found.b_crit(naive.loss)))
    fixed = _fixed(above)
    unsure = found.unsure_batch()
    # C_min = C / (1 + B/B_crit): a batch far below the critical one needs no correction.
    adjusted = unsure if above > 1 / FAR else ""
    where = f"{plural(len(found.sizes), 'size')}, {plural(found.n_seeds, 'seed')} each"

    def exponent(what: str, value: float, draws: np.ndarray | None, why: str) -> Measure:
        interval = seed_interval(draws)
        why = why if interval else NO_INTERVAL
        return Measure(
            what=f"{what}, {where}", value=value, interval=interval, undecided_because=why
        )

    measures = {
        "alpha_C": exponent("exponent of L(C)", naive.loss_exponent, naive.loss_draws, fixed),
        "alpha_C_min": exponent(
            "exponent of L(C_min)", best.loss_exponent, best.loss_draws, adjusted
        ),
        "size_exponent": exponent(
            "exponent of N_opt(C)", naive.size_exponent, naive.size_draws, fixed
        ),
        "size_exponent_min": exponent(
            "exponent of N_opt(C_min)", best.size_exponent, best.size_draws, adjusted
        ),
        "off_optimum": _off_optimum(costs, where),
    }
    if curves is None:
        missing = Measure(
            what="", value=None, undecided_because="L(N, S) could not be fitted to the curves"
        )
        return measures | {"exponent_ratio": missing, "excess": missing}
    k, unfit = curves.parameters, law_rejected_because(curves)

    def predicted(alpha_n: Any, alpha_s: Any, alpha_b: Any) -> Any:
        return 1 / (1 / alpha_s + 1 / alpha_b + 1 / alpha_n)

    ratio = best.loss_exponent / predicted(k["alpha_N"], k["alpha_S"], found.critical_batch[1])
    converged = (k["N_c"] / best.n_opt) ** k["alpha_N"]
    ratio_draws = excess_draws = None
    if best.loss_draws is not None and curves.draws:
        # Draw i of either is of the same B_crit(L); of seeds and curves any pairing will do.
        d = {name: values[:DRAWS] for name, values in curves.draws.items()}
        laws_of_batch = found.batch_laws()
        alpha_b = np.array([law["alpha_B"] for law in laws_of_batch])
        alpha_b = alpha_b[np.arange(DRAWS) % len(alpha_b)]
        ratio_draws = best.loss_draws / predicted(d["alpha_N"], d["alpha_S"], alpha_b)
        with np.errstate(over="ignore", invalid="ignore"):
            excess_draws = np.array(
                [
                    np.mean(loss / (n_c / n_opt) ** alpha) - 1 if len(loss) else np.nan
                    for n_c, alpha, (n_opt, loss) in zip(
                        d["N_c"], d["alpha_N"], best.drawn, strict=True
                    )
                ]
            )
    return measures | {
        "exponent_ratio": exponent(
            "measured exponent of L(C_min) over the predicted", ratio, ratio_draws, unfit or unsure
        ),
        "excess": exponent(
            "loss of the best size over its own converged loss (by L(N, S)), less one",
            float(np.mean(best.loss / converged) - 1),
            excess_draws,
            unfit or unsure,
        ),
    }


def _fixed(above: float) -> str:
    """Why a fixed batch tells nothing of its own, from the most that it is over B_crit(L)."""
    if above >= PAPER_ABOVE:
        return ""
    return (
        f"the paper's batch went from {PAPER_BATCH[0]} times B_crit(L) to {PAPER_BATCH[1]} of it along "
        f"its frontier, and that is what sets C apart from C_min; here it is {number(above, 2)} times "
        f"B_crit(L) at most"
    )


def _off_optimum(costs: list[tuple[_Cost, np.ndarray | None]], where: str) -> Measure:
    low, high = OFF_OPTIMUM
    use = [(cost, draws) for cost, draws in costs if np.isfinite(cost.at)]
    what = f"extra compute at {low} and {high} times the best size, the larger, {where}"
    if not use:
        return Measure(
            what=what,
            value=None,
            undecided_because=f"no loss is reached by sizes from {low} to {high} times its best one",
        )
    drawn = [draws for _, draws in use if draws is not None]
    interval = seed_interval(np.nanmean(drawn, axis=0)) if drawn else None
    value = float(np.mean([cost.at for cost, _ in use]))
    return Measure(
        what=what, value=value, interval=interval, undecided_because="" if interval else NO_INTERVAL
    )


# --- words and tables ---------------------------------------------------------------------------


def _details(constants: dict[str, float] | None) -> list[str]:
    if constants is None or min(constants["alpha_N"], constants["alpha_S"]) <= 0:
        return []
    excess = constants["alpha_N"] / constants["alpha_S"]
    ratios = laws.stopping_ratio(excess, 0.02, constants)
    return [
        (
            f"By Appendix B of Kaplan et al. 2020 and these runs' L(N, S), compute-efficient training "
            f"stops {100 * excess:.2g}% above the converged loss (α_N/α_S; the paper: 10%). Against "
            f"training to within 2% of it, that takes {number(ratios['N'], 2)} times the parameters, "
            f"{number(ratios['S'], 2)} times the updates and {number(ratios['C'], 2)} times the "
            f"compute to one loss (the paper: 2.7, 0.13 and 0.35)."
        )
    ]


def _exponents(edges: dict[tuple[str, str], _Edge], constants: dict[str, float] | None) -> Grid:
    rows = []
    for (convention, kind), edge in edges.items():
        paper = PAPER[kind] if convention == "kaplan" else {}
        rows.append(
            [
                f"{convention}, {kind}",
                with_interval(edge.loss_exponent, seed_interval(edge.loss_draws)),
                number(paper["loss"]) if paper else "–",
                with_interval(edge.size_exponent, seed_interval(edge.size_draws)),
                number(paper["size"]) if paper else "–",
            ]
        )
    if constants is not None:
        rows.append(
            [
                "App. B from L(N, S) and B_crit(L)",
                number(laws.frontier_exponent(constants)),
                number(laws.frontier_exponent()),
                number(laws.allocation_exponents(constants)["N"]),
                number(laws.allocation_exponents()["N"]),
            ]
        )
    return Grid(
        caption="Exponents along the lower edge, with 95% intervals over seeds, under two counts: "
        "kaplan leaves out embeddings and head, standard counts the head, which weighs most in "
        "small models (Pearce & Song 2024; Porian et al. 2024).",
        header=["count of N and C", "loss", "Kaplan et al.", "N_opt", "Kaplan et al."],
        rows=rows,
        numeric=(1, 2, 3, 4),
    )


def _warnings(found: Ladder, edges: dict[tuple[str, str], _Edge]) -> list[str]:
    warnings = []
    for law in (edges["kaplan", "C_min"].size_law, edges["kaplan", "C_min"].loss_law):
        warnings += [f"{warning[0].upper()}{warning[1:]}." for warning in law.warnings]
    if not found.measured_batch:
        warnings.append(BATCH_NOTE)
    if found.n_seeds < LEAST_SEEDS:
        warnings.append(f"Fewer than {LEAST_SEEDS} seeds a size: the exponents have no interval.")
    return warnings


# --- figures ------------------------------------------------------------------------------------


def _loss_chart(found: Ladder, naive: _Edge, best: _Edge) -> Chart:
    colours = style.ordered_colours([size.n_params for size in found.sizes])
    with style.canvas(7.0, 3.2) as figure:
        panels = figure.subplots(1, 2, sharey=True)
        for axes, edge, kind in zip(panels, (naive, best), ("C", "C_min"), strict=True):
            for size in found.sizes:
                for losses in size.losses:
                    flops = size.flops_per_step["kaplan"] * size.steps
                    if kind == "C_min":
                        flops = laws.adjusted_compute(
                            flops, size.batch_tokens, losses, **found.batch_law
                        )
                    axes.plot(flops, losses, color=colours[size.n_params], lw=0.8, alpha=0.75)
            _draw_law(axes, edge, PAPER[kind]["loss"])
            symbol = "$C_{min}$" if kind == "C_min" else "C"
            axes.set_xlabel(f"{symbol}, training FLOPs without embeddings")
            axes.set_title(f"Loss against {symbol}")
            style.log_axis(axes.xaxis, "power")
            axes.legend(title="exponent", title_fontsize=7.5, loc="upper right", fontsize=7.5)
        panels[0].set_ylabel("loss (nats per token)")
        style.log_axis(panels[0].yaxis, "plain")
        size_legend(figure, colours)
        return style.render(
            figure,
            name="compute",
            caption="Evaluated loss of every run over its compute, one colour a size; right, over "
            "what training far below the critical batch would have taken. Black: power law through "
            "the lower edge, where the best size lies inside the ladder. Dotted: the slope of "
            "Kaplan et al. 2020, Fig. 13, through its middle (their level is that of another text).",
            alt=f"Loss against compute for {len(found.sizes)} sizes, with power laws.",
        )


def _draw_law(axes: Any, edge: _Edge, paper: float) -> None:
    flops = np.geomspace(edge.flops[0], edge.flops[-1], 40)
    spread = seed_interval(edge.loss_draws)
    axes.plot(
        flops,
        edge.loss_law.predict(flops=flops),
        color=style.INK,
        lw=1.6,
        label=with_interval(edge.loss_exponent, spread),
    )
    middle = np.sqrt(flops[0] * flops[-1])
    level = float(edge.loss_law.predict(flops=middle))
    axes.plot(
        flops,
        level * (flops / middle) ** -paper,
        ":",
        color=style.MUTED,
        lw=1.5,
        label=f"Kaplan et al.: {paper:.3f}",
    )


def _size_chart(naive: _Edge, best: _Edge, constants: dict[str, float] | None) -> Chart:
    looks = style.family_styles(["transformer", "other"])
    with style.canvas(3.5, 3.3) as figure:
        axes = figure.subplots()
        for edge, kind, look in zip((best, naive), ("C_min", "C"), looks.values(), strict=True):
            every = max(1, len(edge.flops) // 25)
            axes.plot(
                edge.flops[::every],
                edge.n_opt[::every],
                look["marker"],
                color=look["color"],
                mec=style.PAPER,
                mew=0.4,
                ms=3.6,
            )
            k, a = edge.size_law.parameters["k_N"], edge.size_exponent
            symbol = "$C_{min}$" if kind == "C_min" else "C"
            shown = with_interval(a, seed_interval(edge.size_draws))
            axes.plot(
                edge.flops,
                k * edge.flops**a,
                "-" if kind == "C_min" else "--",
                color=look["color"],
                lw=1.6,
                label=f"against {symbol}: {shown}",
            )
        middle = np.sqrt(best.flops[0] * best.flops[-1])
        level = best.size_law.parameters["k_N"] * middle**best.size_exponent
        paper = PAPER["C_min"]["size"]
        axes.plot(
            best.flops,
            level * (best.flops / middle) ** paper,
            ":",
            color=style.MUTED,
            lw=1.5,
            label=f"Kaplan et al., slope {paper}",
        )
        if constants is not None and min(constants["alpha_N"], constants["alpha_S"]) > 0:
            # With S = C / (6 N B_crit(L)) as S_min, App. B's C is C_min.
            n = laws.efficient_frontier(best.flops, constants).n_params
            axes.plot(best.flops, n, "-.", color=style.INK, lw=1.1, label="App. B, own L(N, S)")
        axes.set(xlabel="training FLOPs without embeddings", ylabel="$N_{opt}$, parameters")
        style.log_axis(axes.xaxis, "power")
        axes.autoscale_view()
        style.log_axis(axes.yaxis, "count")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", fontsize=7.5)
        return style.render(
            figure,
            name="best-size",
            caption="The size of lowest loss at each budget, by a parabola through the best size and "
            "its neighbours (points), and power laws through it, with 95% intervals over seeds "
            "(Kaplan et al. 2020, Fig. 14). Dotted: their slope against "
            "C_min. Dash-dotted: what their Appendix B predicts from L(N, S_min) of these runs.",
            alt="Best model size against compute.",
        )


def _cost_chart(
    costs: list[tuple[_Cost, np.ndarray | None]], constants: dict[str, float] | None
) -> Chart:
    colours = style.ordered_colours([cost.loss for cost, _ in costs])
    with style.canvas(3.5, 3.1) as figure:
        axes = figure.subplots()
        low, high = OFF_OPTIMUM
        axes.axvspan(low, high, color=style.MUTED, alpha=0.12, lw=0)
        ratio = np.geomspace(0.2, 8, 200)
        for k, line, label in (
            (constants, "-", "eq. B.16, own L(N, S)"),
            (None, ":", "eq. B.16, Kaplan et al."),
        ):
            if k is None and line == "-" or k and min(k["alpha_N"], k["alpha_S"]) <= 0:
                continue
            cost, _ = laws.off_optimum_cost(ratio, k)
            axes.plot(ratio, cost, line, color=style.INK, lw=1.2, label=label)
        for cost, _ in costs:
            axes.plot(
                cost.ratio,
                cost.cost,
                "o",
                color=colours[cost.loss],
                mec=style.PAPER,
                mew=0.4,
                ms=4.5,
                label=f"{cost.loss:.2f} nats",
            )
        axes.set(
            xlabel="N over the best size", ylabel="compute over the least", xlim=(0.2, 8), ylim=(0.9, 3)
        )  # fmt: skip
        style.log_axis(axes.xaxis, "plain")
        axes.legend(fontsize=7)
        return style.render(
            figure,
            name="off-optimum",
            caption="Compute to one loss with a size other than the best (Kaplan et al. 2020, Fig. "
            "12), one colour a loss. Lines: eq. B.16 with the constants of these runs and of the "
            "paper. Shaded: 0.6 to 2.2 times the best size, where the paper finds at most 20% more.",
            alt="Extra compute against the size relative to the best.",
        )
