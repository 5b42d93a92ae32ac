"""What compute buys: the lower edge of all learning curves (Kaplan et al. 2020, Figs. 2, 12 to 14).

Kaplan's C = 6 N B S counts no embeddings and no head. C_min = C / (1 + B/B_crit(L)) is the compute that
would reach the same loss with a batch far below the critical one. Intervals are over seeds: each draw
has the noise of every size's seeds (`Ladder.drawn_losses`) and B_crit(L) within its declared error if there
is one, and reads the edge again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.interpolate import CubicSpline

from lmscale import laws
from lmscale.laws import FitError, FitResult, TableError
from lmscale.laws.known import mean_of_known
from lmscale.studies.estimate import Basis, Estimate, few_seeds, undecided
from lmscale.studies.fits import attempt, refused
from lmscale.studies.learning_curves import (
    FAR,
    NO_CURVES,
    Ladder,
    fit_learning_curves,
    ladders,
    law_rejected_because,
    with_batch_error,
)
from lmscale.studies.lines import lines_through
from lmscale.studies.registry import register
from lmscale.studies.results import Results
from lmscale.wording import number, plural

__all__ = ["OFF_OPTIMUM", "Compute", "Cost", "Edge", "lower_edge", "study"]

#: Of the noise of seeds, and budgets at which an edge is read.
DRAWS = BUDGETS = 200
#: Sizes, relative to the best, between which the paper finds a cost of 20% at most (Fig. 12), and how
#: many sizes must reach a loss for it to be read.
OFF_OPTIMUM, LEAST_SIZES = (0.6, 2.2), 5
#: B/B_crit(L) at the ends of the paper's frontier, with its batch of 2^19 tokens, and the least that
#: the upper end must be here for a claim about a fixed batch.
PAPER_BATCH, PAPER_ABOVE = ("12", "half"), 3.0
NAMES = (
    "alpha_C",
    "alpha_C_min",
    "size_exponent",
    "size_exponent_min",
    "off_optimum",
    "exponent_ratio",
    "excess",
)


@dataclass(frozen=True)
class Edge:
    """The lower edge of the curves under one count of compute.

    Attributes:
      flops: [budget] the budgets at which the best size is neither the smallest nor the largest, and both
        its neighbours have losses.
      n_opt, loss: [budget] least point of the parabola in ln N through these three.
      size_law: N_opt = k_N C^a; loss_law: L = (C_c / C)^alpha_C, the law "power".
      size_exponent, loss_exponent: a and alpha_C over the noise of seeds.
      drawn: for each draw its n_opt and loss, each [budget]; empty where the draw gave no edge.
    """

    flops: np.ndarray
    n_opt: np.ndarray
    loss: np.ndarray
    size_law: FitResult
    loss_law: FitResult
    size_exponent: Estimate
    loss_exponent: Estimate
    drawn: list[tuple[np.ndarray, np.ndarray]] = field(repr=False)


@dataclass(frozen=True)
class Cost:
    """Compute to one loss, by size, relative to the least (Kaplan et al. 2020, Fig. 12).

    Attributes:
      ratio: [size] N over the best one, cost: [size] compute over the least.
      at: how much more compute the sizes at the ends of `OFF_OPTIMUM` need: the larger of the two costs,
        less one; NaN where an end lies outside the sizes that were run.
      draws: of `at` over the noise of seeds, or None.
    """

    loss: float
    ratio: np.ndarray
    cost: np.ndarray
    at: float
    draws: np.ndarray | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Compute:
    """What `study` finds, of the first family.

    Attributes:
      ladder: None where no run was evaluated along the way.
      edges: by convention ("kaplan", "standard") and kind ("C", "C_min"); empty without a law.
      curves: the fit of L(N, S_min); its intervals contain the error of B_crit(L).
      costs: the compute that each size needs, at several losses.
      failure: why there is no edge.
      estimates: exponents "alpha_C", "alpha_C_min" of L, "size_exponent", "size_exponent_min" of N_opt;
        "exponent_ratio", alpha_C_min over the value that `curves` predicts; "excess", by which share the
        loss of the best size lies above its converged loss; "off_optimum", the mean of `Cost.at`.
      others: the same of every other family, with the same B_crit(L).
    """

    ladder: Ladder | None
    edges: dict[tuple[str, str], Edge]
    curves: FitResult
    costs: tuple[Cost, ...]
    failure: str
    estimates: dict[str, Estimate]
    others: tuple[Compute, ...] = ()

    @property
    def fits(self) -> dict[str, FitResult]:
        if self.ladder is None:
            return {}
        own = {
            f"{self.ladder.family}/{convention}, {kind}, {what}": law
            for (convention, kind), edge in self.edges.items()
            for what, law in (("N_opt", edge.size_law), ("loss", edge.loss_law))
        }
        if self.failure:
            own = {f"{self.ladder.family}/kaplan": refused("envelope", self.failure)}
        for other in self.others:
            own |= other.fits
        return own

    @property
    def constants(self) -> dict[str, float] | None:
        """The constants of L(N, S_min) and B_crit(L) that App. B uses; None without a fit."""
        if self.curves.failure or self.ladder is None:
            return None
        return self.curves.parameters | self.ladder.batch_law


@register("compute")
def study(results: Results) -> Compute:
    """L(C), L(C_min) and N_opt(C), and what App. B predicts from L(N, S) (Kaplan et al. 2020).

    found = compute.study(Results.read("results/compute"))
    print(found.estimates["size_exponent_min"], found.edges["kaplan", "C_min"].n_opt)
    """
    if not (found := ladders(results)):
        return _without_edge(None, NO_CURVES)
    first, *others = map(_of_family, found)
    return dataclasses.replace(first, others=tuple(others))


def _of_family(found: Ladder) -> Compute:
    try:
        edges = {
            (convention, kind): lower_edge(found, convention, kind == "C_min")
            for convention in ("kaplan", "standard")
            for kind in ("C", "C_min")
        }
    except (TableError, FitError, np.linalg.LinAlgError) as error:
        return _without_edge(found, str(error))
    curves = attempt("kaplan-ns", lambda: with_batch_error(fit_learning_curves(found), found))
    costs = _costs(found)
    estimates = estimates_of(found, edges, curves, costs)
    return Compute(found, edges, curves, costs, "", {one.name: one for one in estimates})


def _without_edge(found: Ladder | None, why: str) -> Compute:
    return Compute(found, {}, refused("kaplan-ns", why), (), why, undecided(NAMES, why))


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
    curves = _log_curves(found, [size.loss for size in found.sizes], convention, batch_law)
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


def lower_edge(found: Ladder, convention: str, adjusted: bool) -> Edge:
    """The edge over C, or where `adjusted` over C_min.

    Raises:
      TableError: where no size inside the ladder is best anywhere.
    """
    place = _place(found, convention, found.batch_law if adjusted else None)
    grid = place.grid
    x, y = _vertex(place.log_n, place.level, place.best)
    slope, start = (float(value) for value in lines_through(grid, x))
    flops, n_opt, loss = np.exp([grid, x, y])
    loss_law = laws.fit({"flops": flops, "loss": loss}, "power", x="flops", bootstrap=0)
    losses, draws = found.drawn_losses(DRAWS), None
    drawn: list[tuple[np.ndarray, np.ndarray]] = []
    if losses is not None:
        draws = np.full((2, DRAWS), np.nan)
        places = _places(found, convention) if adjusted else [place]
        for i in range(DRAWS):
            of_draw = [of_size[i] for of_size in losses]
            budgets, sizes, low = _drawn_edge(found, convention, places[i % len(places)], of_draw)
            with np.errstate(over="ignore"):
                drawn.append((np.exp(sizes), np.exp(low)))
            if len(budgets):
                draws[:, i] = lines_through(budgets, np.stack([sizes, low]))[0]
    size_law = FitResult(
        law="envelope",
        parameters={"a": slope, "k_N": float(np.exp(start))},
        objective_name="sum of squared residuals of ln N about the power law",
        objective=float(np.sum((x - start - slope * grid) ** 2)),
        n_used=len(found.sizes),
        exponents={convention: {"N": slope, "D": 1 - slope}},
        ranges={"flops": (float(flops[0]), float(flops[-1]))},
        details={"envelope": {"flops": flops, "n_opt": n_opt, "loss": loss}},
    )
    few = few_seeds(found.n_seeds, "an interval")
    rest: Basis = {"n": len(found.sizes), "seeds": found.n_seeds, "undecided_because": few}
    alpha = loss_law.parameters["alpha_C"]
    of_size, of_loss = (None, None) if draws is None else (draws[0], -draws[1])
    size_exponent = Estimate.of_draws("size_exponent", slope, of_size, **rest)
    loss_exponent = Estimate.of_draws("alpha_C", alpha, of_loss, **rest)
    return Edge(
        flops=flops,
        n_opt=n_opt,
        loss=loss,
        size_law=_with_interval(size_law, "a", size_exponent),
        loss_law=_with_interval(loss_law, "alpha_C", loss_exponent),
        size_exponent=size_exponent,
        loss_exponent=loss_exponent,
        drawn=drawn,
    )


def _places(found: Ladder, convention: str) -> list[_Place | None]:
    """The places for C_min by each law that B_crit(L) may follow; None for a law that gives no edge."""
    places: list[_Place | None] = []
    for law in found.batch_laws():
        try:
            places.append(_place(found, convention, law))
        except TableError:
            places.append(None)
    return places


def _drawn_edge(
    found: Ladder, convention: str, place: _Place | None, losses: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The edge of redrawn losses: ln of budgets, N_opt and loss; empty where too many budgets have no minimum."""
    nothing = np.empty(0)
    if place is None:
        return nothing, nothing, nothing
    curves = _log_curves(found, losses, convention, place.batch_law)
    # Draws keep the budgets of the edge, and the three sizes around its best.
    level = _three(_levels(place.grid, curves), place.best)
    n_opt, low = _vertex(place.log_n, level, place.best)
    sound = np.isfinite(n_opt)
    if sound.mean() <= 0.9:
        return nothing, nothing, nothing
    return place.grid[sound], n_opt[sound], low[sound]


def _log_curves(
    found: Ladder,
    losses: Sequence[np.ndarray],
    convention: str,
    batch_law: dict[str, float] | None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """ln C, or ln C_min by `batch_law`, and ln L along each size's curve, as far as compute grows."""
    curves = []
    for size, loss in zip(found.sizes, losses, strict=True):
        flops = size.compute(loss, convention, batch_law)
        grows = flops >= np.maximum.accumulate(flops)
        curves.append((np.log(flops[grows]), np.log(loss[grows])))
    return curves


def _levels(grid: np.ndarray, curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
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


def _with_interval(fit: FitResult, name: str, estimate: Estimate) -> FitResult:
    if estimate.interval is None:
        return fit
    method = "Student's t over seeds within each size"
    return dataclasses.replace(fit, intervals={name: estimate.interval}, interval_method=method)


# --- the cost of other sizes --------------------------------------------------------------------


def _cost(found: Ladder, losses: Sequence[np.ndarray], target: float) -> Cost | None:
    """The costs at one loss; None where fewer than five sizes reach it, or the best is the smallest or largest."""
    n, flops = [], []
    for size, loss in zip(found.sizes, losses, strict=True):
        steps = size.steps_to(target, loss)
        if np.isfinite(steps):
            n.append(size.n_params)
            # At one loss B_crit is one number, so that C_min has the same ratios.
            flops.append(size.flops_per_step["kaplan"] * steps)
    if len(n) < LEAST_SIZES:
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
    return Cost(target, np.exp(x - best), np.exp(y - least), at)


def _costs(found: Ladder) -> tuple[Cost, ...]:
    """The costs at losses that five or more sizes reach."""
    if len(found.sizes) < LEAST_SIZES:
        return ()
    lowest = sorted((size.loss.min() for size in found.sizes), reverse=True)
    highest = max(size.loss[0] for size in found.sizes)
    ends = 1.005 * lowest[-LEAST_SIZES], 0.9 * highest + 0.1 * lowest[-LEAST_SIZES]
    if ends[0] >= ends[1]:
        return ()
    drawn, costs = found.drawn_losses(DRAWS), []
    for target in map(float, np.geomspace(*ends, 6)):
        cost = _cost(found, [size.loss for size in found.sizes], target)
        if cost is not None and drawn is not None:
            again = [_cost(found, [of_size[i] for of_size in drawn], target) for i in range(DRAWS)]
            draws = np.array([one.at if one else np.nan for one in again])
            cost = dataclasses.replace(cost, draws=draws)
        if cost is not None:
            costs.append(cost)
    return tuple(costs)


# --- estimates ----------------------------------------------------------------------------------


def estimates_of(
    found: Ladder,
    edges: dict[tuple[str, str], Edge],
    curves: FitResult,
    costs: Sequence[Cost],
) -> list[Estimate]:
    """The estimates that `NAMES` lists, read from the edges under Kaplan's count."""
    naive, best = edges["kaplan", "C"], edges["kaplan", "C_min"]
    batch = max(size.batch_tokens for size in found.sizes)
    above = float(np.max(batch / found.b_crit(naive.loss)))
    # C_min = C / (1 + B/B_crit): a batch far below the critical one needs no correction.
    unsure = found.unsure_batch() if above > 1 / FAR else ""

    def told(name: str, estimate: Estimate, why: str) -> Estimate:
        why = estimate.undecided_because or why
        return dataclasses.replace(estimate, name=name, undecided_because=why)

    fixed = fixed_batch_undecided(above)
    return [
        told("alpha_C", naive.loss_exponent, fixed),
        told("alpha_C_min", best.loss_exponent, unsure),
        told("size_exponent", naive.size_exponent, fixed),
        told("size_exponent_min", best.size_exponent, unsure),
        _off_optimum(found, costs),
        *_beside_curves(found, best, curves),
    ]


def fixed_batch_undecided(above: float) -> str:
    """Why claims about a fixed batch cannot be tested; `above` is the largest B/B_crit(L) along the edge."""
    if above >= PAPER_ABOVE:
        return ""
    return (
        f"the paper's batch went from {PAPER_BATCH[0]} times B_crit(L) to {PAPER_BATCH[1]} of it along "
        f"its frontier, which is what makes C differ from C_min; here it is {number(above, 2)} times "
        f"B_crit(L) at most"
    )


def _off_optimum(found: Ladder, costs: Sequence[Cost]) -> Estimate:
    use = [cost for cost in costs if np.isfinite(cost.at)]
    n, seeds = len(found.sizes), found.n_seeds
    if not use:
        why = "no loss is reached by sizes from {} to {} times its best one".format(*OFF_OPTIMUM)
        return Estimate(name="off_optimum", undecided_because=why, n=n, seeds=seeds)
    drawn = [cost.draws for cost in use if cost.draws is not None]
    return Estimate.of_draws(
        "off_optimum",
        float(np.mean([cost.at for cost in use])),
        mean_of_known(drawn, axis=0) if drawn else None,
        undecided_because=few_seeds(seeds, "an interval"),
        n=n,
        seeds=seeds,
    )


def _beside_curves(found: Ladder, best: Edge, curves: FitResult) -> list[Estimate]:
    """The estimates "exponent_ratio" and "excess", which compare the edge with what L(N, S_min) predicts."""
    names = ("exponent_ratio", "excess")
    if curves.failure:
        return list(undecided(names, law_rejected_because(curves)).values())

    def predicted(alpha_n: Any, alpha_s: Any, alpha_b: Any) -> Any:
        return 1 / (1 / alpha_s + 1 / alpha_b + 1 / alpha_n)

    k, alpha = curves.parameters, best.loss_exponent
    ratio = alpha.known / predicted(k["alpha_N"], k["alpha_S"], found.critical_batch[1])
    converged = (k["N_c"] / best.n_opt) ** k["alpha_N"]
    excess = float(np.mean(best.loss / converged)) - 1
    ratios = excesses = None
    if alpha.draws is not None and curves.draws:
        # Draw i of both has the same B_crit(L). Their other noise is independent, so the order does not matter.
        d = {name: values[:DRAWS] for name, values in curves.draws.items()}
        alpha_b = np.array([law["alpha_B"] for law in found.batch_laws()])
        alpha_b = alpha_b[np.arange(DRAWS) % len(alpha_b)]
        ratios = alpha.draws / predicted(d["alpha_N"], d["alpha_S"], alpha_b)
        with np.errstate(over="ignore", invalid="ignore"):
            excesses = np.array(
                [
                    np.mean(loss / (n_c / n_opt) ** power) - 1 if len(loss) else np.nan
                    for n_c, power, (n_opt, loss) in zip(
                        d["N_c"], d["alpha_N"], best.drawn, strict=True
                    )
                ]
            )
    why = few_seeds(found.n_seeds, "an interval") or law_rejected_because(curves)
    rest: Basis = {"n": alpha.n, "seeds": alpha.seeds}
    rest["undecided_because"] = why or found.unsure_batch()
    return [
        Estimate.of_draws(name, value, draws, **rest)
        for name, value, draws in zip(names, (ratio, excess), (ratios, excesses), strict=True)
    ]
