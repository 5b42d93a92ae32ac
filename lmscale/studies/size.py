"""Loss against model size, the families side by side (Kaplan et al. 2020, Fig. 7 left).

Every family has its own L(N) = (N_c / N)^alpha_N (eq. 1.1). How far a family is behind the Transformer is
read from the two laws at equal N, within the sizes that both have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lmscale.laws import FitResult
from lmscale.laws.result import interval
from lmscale.studies.cells import Cell, cell_rows, measured_cells
from lmscale.studies.estimate import LEVEL, Estimate, few_seeds
from lmscale.studies.exponents import fit_power_of_cells
from lmscale.studies.fits import attempt
from lmscale.studies.registry import register
from lmscale.studies.results import Results
from lmscale.studies.text import pair_error
from lmscale.wording import plural, si

__all__ = ["Family", "Gap", "Size", "study"]

#: Fewest sizes of a family that a power law is fitted to, and that a bend of it is looked for in.
LEAST_SIZES, LEAST_SIZES_OF_BEND = 3, 5
#: By what factor a law may be extrapolated beyond a family's sizes, to find the size that has a loss.
REACH = 3.0
#: Non-embedding N at which the LSTM of Kaplan et al. 2020 is 0.19 nats above the law of their
#: Transformers, and from which the gap widens.
KAPLAN_N = 4e5
#: Least range of sizes for a claim about how the gap widens.
LEAST_RANGE = 10.0
#: Points of the curve of a gap.
GRID = 41


@dataclass(frozen=True)
class Family:
    """One curve. `bend` is 1 where the losses flatten, compared with a power law, by more than their scatter; -1
    where they steepen; else 0."""

    name: str
    sizes: tuple[Cell, ...]
    fit: FitResult
    bend: int = 0

    @property
    def range(self) -> tuple[float, float]:
        return self.sizes[0].n_params, self.sizes[-1].n_params

    @property
    def architecture(self) -> str:
        return self.sizes[0]["architecture"]

    @property
    def seeds(self) -> int:
        """How many seeds most sizes have: one lost run does not count."""
        return int(np.median([len(size.losses) for size in self.sizes]))

    @property
    def alpha(self) -> Estimate:
        return Estimate.of_parameter(self.fit, "alpha_N", n=len(self.sizes), seeds=self.seeds)

    def drawn(self, n_params: np.ndarray) -> np.ndarray:
        """[draw, size]: the law's loss."""
        if self.fit.model is None:
            raise ValueError(f"the law {self.fit.law} predicts no loss")
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            loss = self.fit.model(
                {k: v[:, None] for k, v in self.fit.draws.items()}, params=n_params
            )
        return np.where(np.isfinite(loss), loss, np.nan)


@dataclass(frozen=True)
class Gap:
    """Loss of `family` above `base` at equal N, over the sizes that both have.

    Attributes:
      ratio: N of the family over the N at which the base has the same loss, at the middle size; unknown
        where that N lies far outside of the base's sizes.
    """

    base: Family
    family: Family
    low: float
    high: float
    ratio: Estimate

    @property
    def n_params(self) -> np.ndarray:
        return np.geomspace(self.low, self.high, GRID)

    @property
    def middle(self) -> float:
        return float(self.n_params[GRID // 2])

    @property
    def seeds(self) -> int:
        return min(self.base.seeds, self.family.seeds)

    def read(self, n_params: ArrayLike) -> tuple[np.ndarray, np.ndarray | None]:
        """The gap [size] in nats and its draws [draw, size].

        With fewer than three seeds there are no draws: the scatter of sizes about two laws does not show how much
        another seed would move the gap.
        """
        at = np.asarray(n_params, float)
        value = self.family.fit.predict(params=at) - self.base.fit.predict(params=at)
        if few_seeds(self.seeds):
            return value, None
        return value, self.family.drawn(at) - self.base.drawn(at)

    def at(self, n_params: float, name: str = "gap") -> Estimate:
        value, draws = self.read([n_params])
        return self._estimate(name, value[0], None if draws is None else draws[:, 0], n_params)

    def widening(self, low: float, high: float) -> Estimate:
        """Nats by which the gap grows per tenfold N."""
        value, draws = self.read([low, high])
        decades = math.log10(high / low)
        draws = None if draws is None else (draws[:, 1] - draws[:, 0]) / decades
        return self._estimate("widening", (value[1] - value[0]) / decades, draws, low, high)

    @property
    def curve(self) -> np.ndarray:
        """The gap at `n_params`."""
        return self.read(self.n_params)[0]

    def band(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Edges of the 95% interval at `n_params`."""
        draws = self.read(self.n_params)[1]
        return None if draws is None else interval(draws, LEVEL)

    def _estimate(self, name: str, value: float, draws: np.ndarray | None, *at: float) -> Estimate:
        return Estimate.of_draws(
            name,
            value,
            draws,
            undecided_because=few_seeds(self.seeds),
            of=self.family.name,
            at=at,
            seeds=self.seeds,
        )


@dataclass(frozen=True)
class Size:
    """What `study` finds.

    Attributes:
      families: the Transformer first.
      gaps: between the first family and every other one that has a law and sizes that overlap.
      text_error: standard error of the gap `closest` due to the choice of documents, in nats.
      estimates: "gap" at the middle size, "gap_at_400k", and "widening" from there on.
    """

    families: tuple[Family, ...]
    gaps: tuple[Gap, ...]
    text_error: float | None
    estimates: dict[str, Estimate]

    @property
    def fits(self) -> dict[str, FitResult]:
        return {f"{family.name}/kaplan": family.fit for family in self.families}

    @property
    def closest(self) -> Gap | None:
        """The gap of the family that is least behind."""
        return _closest(self.gaps)

    @property
    def drawn(self) -> list[Family]:
        """The families with a run that ended well."""
        return [family for family in self.families if family.sizes]

    @property
    def fitted(self) -> list[Family]:
        return [family for family in self.families if not family.fit.failure]


@register("size")
def study(results: Results) -> Size:
    """L(N) of every family (Kaplan et al. 2020, eq. 1.1), and how far each is behind the first.

    found = size.study(Results.read("results/lstm_vs_transformer"))
    print(found.estimates["gap"], found.closest.at(1e5))
    """
    families = tuple(_family(results, name) for name in results.families)
    gaps = _gaps([family for family in families if family.sizes])
    closest = _closest(gaps)
    error = pair_error(results, closest.family.name, closest.base.name) if closest else None
    estimates = (
        closest.at(closest.middle) if closest else _not_read("gap", gaps),
        _at_400k(gaps),
        _widening(gaps),
    )
    return Size(families, gaps, error, {one.name: one for one in estimates})


def _family(results: Results, name: str) -> Family:
    usable = results.usable
    runs = usable[usable["family"] == name] if len(usable) else usable
    sizes = measured_cells(runs, ["params_kaplan"])
    needs = "" if sizes else "no run has ended well yet"
    if 0 < len(sizes) < LEAST_SIZES:
        needs = f"{plural(len(sizes), 'size')}, and a power law needs {LEAST_SIZES}"
    fit = attempt("power", lambda: fit_power_of_cells(cell_rows(sizes), "params"), needs=needs)
    return Family(name, tuple(sizes), fit, 0 if fit.failure else _bend(sizes))


def _bend(sizes: Sequence[Cell]) -> int:
    """The sign of the curvature of ln L over ln N, where it exceeds three standard errors."""
    if len(sizes) < LEAST_SIZES_OF_BEND:
        return 0
    x, y = np.log([size.n_params for size in sizes]), np.log([size.mean for size in sizes])
    x = x - x.mean()
    design = np.stack([np.ones_like(x), x, x * x], axis=1)
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    variance = float(np.sum((y - design @ coefficients) ** 2)) / (len(x) - 3)
    error = math.sqrt(variance * np.linalg.inv(design.T @ design)[2, 2])
    return 0 if abs(coefficients[2]) < 3 * error else int(np.sign(coefficients[2]))


def _gaps(families: Sequence[Family]) -> tuple[Gap, ...]:
    """Every family against the first, where both have a law and their sizes overlap."""
    if not families or families[0].fit.failure or families[0].architecture != "transformer":
        return ()
    base, gaps = families[0], []
    for family in families[1:]:
        low, high = max(base.range[0], family.range[0]), min(base.range[1], family.range[1])
        if not family.fit.failure and low < high:
            gaps.append(Gap(base, family, low, high, _size_ratio(base, family, low, high)))
    return tuple(gaps)


def _size_ratio(base: Family, family: Family, low: float, high: float) -> Estimate:
    """N of `family` over N of `base` at the loss that `family` reaches at the middle size."""
    at = float(np.geomspace(low, high, GRID)[GRID // 2])

    def ratio(of_base: Any, of_family: Any) -> Any:
        log_loss = of_family["alpha_N"] * (np.log(of_family["N_c"]) - math.log(at))
        return np.exp(math.log(at) - np.log(of_base["N_c"]) + log_loss / of_base["alpha_N"])

    value = float(ratio(base.fit.parameters, family.fit.parameters))
    if not base.range[0] / REACH <= at / value <= base.range[1] * REACH:
        far = "it lies far outside of the sizes that were run"
        return Estimate(name="size_ratio", undecided_because=far)
    few = few_seeds(min(base.seeds, family.seeds))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        draws = None if few else ratio(base.fit.draws, family.fit.draws)
    return Estimate.of_draws("size_ratio", value, draws, undecided_because=few)


def _closest(gaps: Sequence[Gap]) -> Gap | None:
    return min(gaps, key=lambda gap: gap.at(gap.middle).known, default=None)


def _at_400k(gaps: Sequence[Gap]) -> Estimate:
    """The least gap at `KAPLAN_N`."""
    near = [gap for gap in gaps if gap.low / 1.2 <= KAPLAN_N <= gap.high * 1.2]
    found = [gap.at(KAPLAN_N, "gap_at_400k") for gap in near]
    return min(found, key=lambda one: one.known, default=_not_read("gap_at_400k", gaps))


def _widening(gaps: Sequence[Gap]) -> Estimate:
    """How the gap widens from `KAPLAN_N` on, for the family that is least behind."""
    found = [(gap, max(gap.low, KAPLAN_N / 1.2), gap.high) for gap in gaps]
    found = [item for item in found if item[2] >= LEAST_RANGE * item[1]]
    if not found:
        return _not_read("widening", gaps)
    gap, low, high = min(found, key=lambda item: item[0].read(item[1:])[0].mean())
    return gap.widening(low, high)


def _not_read(name: str, gaps: Sequence[Gap]) -> Estimate:
    """Why the sizes do not reach where the paper has its number."""
    if not gaps:
        why = "no family overlaps the Transformers in size with enough sizes for a law"
        return Estimate(name=name, undecided_because=why)
    low, high = min(gap.low for gap in gaps), max(gap.high for gap in gaps)
    why = f"the sizes that both have end at {si(high)}"
    if name == "widening":
        why += f"; the paper's gap narrows up to {si(KAPLAN_N)} and widens from there on"
    elif high > KAPLAN_N:
        why = f"the sizes that both have begin at {si(low)}"
    return Estimate(name=name, undecided_because=why)
