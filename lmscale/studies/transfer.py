"""Loss on other distributions against that on the training distribution (Kaplan et al. 2020, Fig. 8).

Every model is evaluated on the same windows of every set. So all models share the noise of the text, and
their differences depend on the runs alone.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from lmscale.laws import FitResult
from lmscale.laws.known import mean_of_known
from lmscale.laws.quantiles import normal_quantile
from lmscale.studies.cells import Cell, measured_cells
from lmscale.studies.estimate import LEVEL, Estimate, few_seeds, interval_of_mean
from lmscale.studies.interpolate import between
from lmscale.studies.lines import fit_line
from lmscale.studies.registry import register
from lmscale.studies.results import Results
from lmscale.wording import plural

__all__ = ["LEAST_SIZES", "Other", "Size", "Transfer", "study"]

#: Fewest sizes for a slope.
LEAST_SIZES = 3
#: The sets of text that is installed everywhere: prose, C, type stubs and tables differ more from each
#: other than the paper's web text, books and Wikipedia.
BUILT_IN = "installed-"


@dataclass(frozen=True)
class Size:
    """The runs of one size. `path` is set -> losses [seed, evaluation], to the end of training."""

    n_params: float
    path: dict[str, np.ndarray]

    def final(self, name: str) -> np.ndarray:
        """[seed]"""
        return self.path[name][:, -1]

    @property
    def seeds(self) -> int:
        return len(next(iter(self.path.values())))


@dataclass(frozen=True)
class Other:
    """Another text.

    Attributes:
      slope: d (loss there) / d (loss on the training text) over trained models.
      shift: during its training, by how many nats the largest model lies above fully trained models that
        have the same loss on the training text.
      offsets: loss on this text less loss on the training text, for the smallest and the largest size.
    """

    name: str
    built_in: bool
    slope: Estimate
    shift: Estimate
    offsets: tuple[float, float]


@dataclass(frozen=True)
class Transfer:
    """What `study` finds.

    Attributes:
      own: the evaluation set of the training text; empty without results.
      sizes: smallest first.
      estimates: "slope" of the set whose slope is farthest from 1, and "stage_shift" of the set whose
        shift is farthest from 0. Because these sets are picked by their values, the intervals are widened
        (Bonferroni).
    """

    own: str
    sizes: tuple[Size, ...]
    others: tuple[Other, ...]
    estimates: dict[str, Estimate]
    fits: dict[str, FitResult] = field(default_factory=dict)

    @property
    def candidates(self) -> tuple[Other, ...]:
        """The sets that "slope" is picked from: a user's own text, where there is any."""
        return tuple(other for other in self.others if not other.built_in) or self.others

    @property
    def shifted(self) -> tuple[Other, ...]:
        """The sets whose shift is known, which "stage_shift" is picked from."""
        return tuple(other for other in self.others if other.shift.is_known)


@register("transfer")
def study(results: Results) -> Transfer:
    """Slopes against the loss on the training text, and whether the stage of training matters.

    found = transfer.study(Results.read("results/transfer"))
    print(found.estimates["slope"], [other.offsets for other in found.others])
    """
    # Without results there are no sizes either, so the empty name is never looked up.
    own = results.eval_name or ""
    cells = measured_cells(results.usable, ["params_kaplan"])
    sizes = tuple(size for cell in cells for size in _size(results, cell))
    names = [name for name in (sizes[0].path if sizes else ()) if name != own]
    declared = results.experiment.get("fields", {}).get("eval_corpora", ())
    others = tuple(_other(sizes, own, name, BUILT_IN + name in declared) for name in names)
    found = Transfer(own, sizes, others, {})
    level = 1 - (1 - LEVEL) / max(1, len(others))
    estimates = (_farthest_slope(found, level), _farthest_shift(found, level))
    return Transfer(own, sizes, others, {one.name: one for one in estimates})


def _other(sizes: Sequence[Size], own: str, name: str, built_in: bool) -> Other:
    first, last = (float(np.mean(s.final(name) - s.final(own))) for s in (sizes[0], sizes[-1]))
    slope, shift = _slope(sizes, own, name), _shift(sizes, own, name)
    return Other(name, built_in, slope, shift, (first, last))


def _size(results: Results, cell: Cell) -> list[Size]:
    """The runs of one size; empty where none was evaluated."""
    runs = [run for run in map(results.evaluations, cell.runs) if run]
    if not runs:
        return []
    steps = sorted(set.intersection(*map(set, runs)))
    path = {
        name: np.array([[run[step][name]["loss"] for step in steps] for run in runs])
        for name in runs[0][max(runs[0])]
    }
    return [Size(cell.n_params, path)]


def _slope(sizes: Sequence[Size], own: str, name: str, level: float = LEVEL) -> Estimate:
    if len(sizes) < LEAST_SIZES:
        return Estimate(name="slope", undecided_because=plural(len(sizes), "size"), of=name)
    seeds = min(s.seeds for s in sizes)
    x, y = (np.concatenate([s.final(text) for s in sizes]) for text in (own, name))
    line = fit_line(x, y, np.concatenate([np.full(s.seeds, s.n_params) for s in sizes]))
    return Estimate(
        name="slope",
        value=line.slope,
        interval=line.slope_interval(level),
        undecided_because=few_seeds(seeds, "a slope"),
        of=name,
        n=len(sizes),
        seeds=seeds,
    )


def _shift(sizes: Sequence[Size], own: str, name: str, level: float = LEVEL) -> Estimate:
    """The shift of one set. Between the means of neighbouring sizes, trained models are interpolated linearly.

    It is unknown where a seed of the largest model never has the loss of a smaller trained model.
    """
    largest = sizes[-1]
    x, y = ([float(s.final(text).mean()) for s in sizes] for text in (own, name))
    shifts = []
    for at, loss in zip(largest.path[own][:, :-1], largest.path[name][:, :-1], strict=True):
        above = loss - between(at, x, y, log=False)
        if np.isfinite(above).any():
            shifts.append(float(mean_of_known(above)))
    if len(shifts) < largest.seeds:
        why = "no model on its way is seen at the losses of smaller trained ones"
        return Estimate(name="stage_shift", undecided_because=why, of=name)
    value, few = float(np.mean(shifts)), few_seeds(len(shifts))
    interval, of_mean = None, interval_of_mean(shifts, level)
    if not few and of_mean is not None:
        # The line through the trained models is uncertain too, and all seeds' shifts share its error.
        rests = [s.final(name) - s.final(own) for s in sizes if s.seeds > 1]
        error = math.sqrt(np.mean([rest.var(ddof=1) / len(rest) for rest in rests]))
        low, high = of_mean
        half = math.hypot(0.5 * (high - low), float(normal_quantile(0.5 + level / 2)) * error)
        interval = (value - half, value + half)
    return Estimate(
        name="stage_shift",
        value=value,
        interval=interval,
        undecided_because=few,
        of=name,
        at=(largest.n_params,),
        seeds=len(shifts),
    )


def _farthest_slope(found: Transfer, level: float) -> Estimate:
    if len(found.sizes) < LEAST_SIZES or not found.others:
        why = plural(len(found.sizes), "size") if found.others else "no other text"
        return Estimate(name="slope", undecided_because=why)
    worst = max(found.candidates, key=lambda other: abs(other.slope.known - 1))
    slope = _slope(found.sizes, found.own, worst.name, level)
    if not worst.built_in or slope.undecided_because:
        return slope
    far = (
        "the built-in texts are of other kinds than the training text (prose, C, stubs, tables), "
        "where the paper's were prose like its own"
    )
    return dataclasses.replace(slope, undecided_because=far)


def _farthest_shift(found: Transfer, level: float) -> Estimate:
    if not found.shifted:
        why = "no model on its way is seen at the losses of smaller trained ones"
        return Estimate(name="stage_shift", undecided_because=why)
    worst = max(found.shifted, key=lambda other: abs(other.shift.known))
    return _shift(found.sizes, found.own, worst.name, level)
