"""Learning-rate schedules of one model (Kaplan et al. 2020, Fig. 22; Hoffmann et al. 2022, App. B).

Schedules are compared seed by seed, with the noise of `lmscale.studies.noise`. A decaying rate
averages the last steps, so schedules that decay are less noisy than the others. Two of them are compared
with the noise of the decaying schedules alone, any other two with the noise of all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from lmscale.laws import FitResult
from lmscale.studies.cells import Cell, paired
from lmscale.studies.estimate import LEAST_SEEDS, Estimate, few_seeds
from lmscale.studies.noise import Noise, additive_noise
from lmscale.studies.registry import register
from lmscale.studies.results import Results

__all__ = ["Schedules", "Spread", "cycle", "study"]

#: Least summed learning rate, over that of the cosine, of the schedules whose spread is measured: the
#: paper asks for a large one and names no number, so the spread is taken at each.
LEAST_SUMS = (0.5, 0.6, 0.7, 0.8, 0.9)
#: Updates of the runs of Kaplan et al. 2020, Fig. 22, and the share of them that runs must reach to
#: decide what the paper found.
PAPER_STEPS, LEAST_SHARE = 250_000, 0.1
#: Names that the experiment gives the schedules of the published comparisons.
TO_ZERO, LINEAR, COOLDOWN = "cosine to 0", "linear to 0", "cooldown over 20%"


@dataclass(frozen=True)
class Spread:
    """The decaying schedules whose summed learning rate is at least `least` times the cosine's, best first.

    `difference` is the loss of the worst less that of the best. These two are chosen by their
    losses, so the interval is Tukey's.
    """

    least: float
    members: tuple[Cell, ...]
    difference: Estimate


@dataclass(frozen=True)
class Schedules:
    """What `study` finds.

    Attributes:
      cells: one a schedule, lowest loss first, on the seeds that every schedule has. Columns: cell (its
        name), cycle, decays (whether it warms up and decays to a tenth or less), summed_lr, peak_lr.
      base: the cosine that ends with the run.
      spreads: one for each threshold of `LEAST_SUMS` that at least two schedules meet.
      lost: names of the schedules without a run that ended well.
      n_seeds_lost: seeds that some schedule lacks.
      estimates: "spread" at the least threshold, its interval covering those of all thresholds;
        "overshoot" and "overshoot_quarter" of cosines of 2 and 1.25 times the run; "zero_over_tenth",
        "cosine_over_linear" and "cooldown_over_cosine". All in nats.
    """

    cells: tuple[Cell, ...]
    base: Cell | None
    spreads: tuple[Spread, ...]
    lost: tuple[str, ...]
    n_seeds_lost: int
    estimates: dict[str, Estimate]
    fits: dict[str, FitResult] = field(default_factory=dict)

    @property
    def seeds(self) -> int:
        return len(self.cells[0].seeds)

    @property
    def cosines(self) -> list[Cell]:
        """By cycle."""
        return sorted((c for c in self.cells if math.isfinite(cycle(c))), key=cycle)

    def above(self, a: Cell, b: Cell) -> Estimate:
        """Mean loss of schedule `a` less that of `b`."""
        return _above(self.cells, a, b)

    def noise(self, decays: bool | None = None) -> Noise | None:
        """The noise of the schedules that decay, of those that do not, or of all.

        None for a single schedule or too few seeds.
        """
        cells = [c for c in self.cells if decays is None or bool(c["decays"]) == decays]
        known = len(cells) > 1 and self.seeds >= LEAST_SEEDS
        return additive_noise([c.losses for c in cells]) if known else None


@register("schedules")
def study(results: Results) -> Schedules:
    """Every schedule against the cosine that ends with the run (Kaplan et al. 2020, Fig. 22).

    found = schedules.study(Results.read("results/schedules"))
    print(found.estimates["overshoot"], found.cells[0]["cell"])
    """
    usable = results.usable
    runs = usable if "cell" in usable else usable.head(0)
    cells = sorted(paired(runs, ["cell"]), key=lambda c: c.mean)
    base = next((c for c in cells if cycle(c) == 1), None)
    lost = sorted(set(results.table["cell"]) - set(runs["cell"])) if len(runs) else ()
    seeds = len(cells[0].seeds) if cells else 0
    n_lost = runs["seed"].nunique() - seeds if len(runs) else 0
    spreads = _spreads(cells, base) if base else []
    steps = float(usable["steps"].median()) if len(usable) else math.nan
    by_name = {c["cell"]: c for c in cells}
    by_cycle = {cycle(c): c for c in cells}
    to_zero, linear, cooldown = map(by_name.get, (TO_ZERO, LINEAR, COOLDOWN))
    pairs = {
        "overshoot": (by_cycle.get(2.0), base),
        "overshoot_quarter": (by_cycle.get(1.25), base),
        "zero_over_tenth": (to_zero, base),
        "cosine_over_linear": (base, linear),
        "cooldown_over_cosine": (cooldown, base),
    }
    estimates = {name: _above(cells, *pair, name=name) for name, pair in pairs.items()}
    spread = _over_thresholds(spreads, steps)
    return Schedules(
        tuple(cells), base, tuple(spreads), tuple(lost), n_lost, {"spread": spread, **estimates}
    )


def cycle(cell: Cell) -> float:
    """The cycle of a cosine over the length of the run; NaN for other schedules."""
    return math.nan if cell["cycle"] is None else float(cell["cycle"])


def _noise(cells: Sequence[Cell], *pair: Cell) -> Noise:
    """The noise with which a comparison of `pair` is judged."""
    decaying = [c for c in cells if c["decays"]]
    own = len(decaying) > 1 and all(c["decays"] for c in pair)
    return additive_noise([c.losses for c in (decaying if own else cells)])


def _above(cells: Sequence[Cell], a: Cell | None, b: Cell | None, name: str = "above") -> Estimate:
    if a is None or b is None:
        return Estimate(name=name, undecided_because="these schedules were not run")
    value, few, interval = a.mean - b.mean, few_seeds(len(a.seeds)), None
    if not few:
        half = _noise(cells, a, b).half_of_difference
        interval = (value - half, value + half)
    return Estimate(
        name=name, value=value, interval=interval, undecided_because=few, seeds=len(a.seeds)
    )


def _spreads(cells: Sequence[Cell], base: Cell) -> list[Spread]:
    found = []
    for least in LEAST_SUMS:
        members = [c for c in cells if c["decays"] and c["summed_lr"] >= least * base["summed_lr"]]
        if len(members) < 2:
            continue
        value, seeds, interval = members[-1].mean - members[0].mean, len(base.seeds), None
        if not few_seeds(seeds):
            half = _noise(cells, *members).half_of_largest(len(members))
            interval = (max(0.0, value - half), value + half)
        spread = Estimate(
            name="spread", value=value, interval=interval, n=len(members), seeds=seeds
        )
        found.append(Spread(least, tuple(members), spread))
    return found


def _over_thresholds(spreads: Sequence[Spread], steps: float) -> Estimate:
    """The spread at the least threshold, with an interval that covers those of all of them."""
    if not spreads:
        return Estimate(name="spread", undecided_because="these were not run")
    first = spreads[0].difference
    edges = [edge for spread in spreads if (edge := spread.difference.interval) is not None]
    whole = (min(e[0] for e in edges), max(e[1] for e in edges)) if edges else None
    if len(edges) < len(spreads):
        whole = None
    short = ""
    if steps < LEAST_SHARE * PAPER_STEPS:
        short = (
            f"the runs take {steps:,.0f} steps where the paper's took {PAPER_STEPS:,}, and how much a "
            f"schedule matters falls with the length of the run (from {LEAST_SHARE * PAPER_STEPS:,.0f} "
            f"steps on it would count here)"
        )
    return Estimate(
        name="spread",
        value=first.value,
        interval=whole,
        undecided_because=few_seeds(first.seeds) or short,
        n=first.n,
        seeds=first.seeds,
    )
