"""The result of a fit: parameters, intervals, draws, predictions, and its form in JSON."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.special import ndtr

from lmscale.laws.known import percentiles_of_known
from lmscale.laws.quantiles import student_quantile
from lmscale.laws.table import DroppedRow

__all__ = [
    "DRAWS",
    "FEWEST_DRAWS",
    "MOST_DRAWS",
    "FitError",
    "FitResult",
    "expanded",
    "interval",
    "intervals_of",
    "plain",
]

#: Bootstrap draws of a fit unless it is asked for others.
DRAWS = 1000
#: The 95% interval of 20 draws is about their range.
FEWEST_DRAWS = 20
#: Draws of every run at a time must fit in memory.
MOST_DRAWS = 100_000


class FitError(ValueError):
    """A fit that is not possible as asked; one line that says what would be right."""


@dataclass(frozen=True, kw_only=True)
class FitResult:
    """One fitted law.

    Attributes:
      law: its name in `lmscale.laws.LAWS`.
      parameters: name (as in the paper) -> value.
      intervals: name -> (low, high) at `level`; a parameter without draws has none.
      interval_method: how the intervals were made, in words.
      objective: the minimised function (`objective_name`), summed over the runs, not averaged.
      converged: whether the solver met its tolerance (closed forms always do).
      n_used: number of fitted runs.
      exponents: counting convention -> {"N": a, "D": b} of N_opt ~ C^a, D_opt ~ C^b.
      residuals: columns of equal length for a residual plot (row, the inputs, observed,
        predicted, residual).
      draws: name -> bootstrap draws, arrays of equal length.
      at: an `Advice` for each budget that was asked for together with the fit (`lmscale.fit(at=..)`).
      details: results that only this law has (profiles, frontier, curves); plain values and dataclasses.
      predict: columns -> predicted loss, with `parameters` or one draw of them.
    """

    law: str
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    interval_method: str = "none"
    level: float = 0.95
    #: Share of the draws that lies within an interval of `level` (see `expanded`).
    draw_level: float | None = None
    objective: float = math.nan
    objective_name: str = ""
    converged: bool = True
    n_used: int = 0
    dropped: tuple[DroppedRow, ...] = ()
    exponents: dict[str, dict[str, float]] = field(default_factory=dict)
    exponent_intervals: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    #: Why there is no fit; empty where there is one.
    failure: str = ""
    residuals: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    #: Smallest and largest value of each fitted column. A prediction outside is an extrapolation.
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    draws: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    at: tuple[Any, ...] = field(default=(), repr=False)
    details: dict[str, Any] = field(default_factory=dict, repr=False)
    model: Callable[..., np.ndarray] | None = field(default=None, repr=False)

    def predict(self, **columns: Any) -> np.ndarray:
        """The law's value at the given columns, e.g. `predict(params=1e9, tokens=2e10)`."""
        if self.model is None:
            raise FitError(f"the law {self.law} predicts no loss")
        columns = {name: np.asarray(value, float) for name, value in columns.items()}
        return self.model(self.parameters, **columns)

    def band(self, **columns: Any) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper edge of the prediction at `level`, from the bootstrap draws."""
        if self.model is None or not self.draws:
            raise FitError(f"this fit of {self.law} has no draws, so no band")
        columns = {name: np.asarray(value, float)[..., None] for name, value in columns.items()}
        values = self.model(self.draws, **columns)
        return interval(values, self.draw_level or self.level, axis=-1)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dictionary: the keys of `lmscale fit --json`, then further ones."""
        return {
            "law": self.law,
            "parameters": plain(self.parameters),
            "intervals": plain(self.intervals),
            "objective": plain(self.objective),
            "converged": bool(self.converged),
            "n_used": int(self.n_used),
            "dropped": [item.to_dict() for item in self.dropped],
            "exponents": plain(self.exponents),
            "warnings": list(self.warnings),
            "exponent_intervals": plain(self.exponent_intervals),
            "interval_method": self.interval_method,
            "level": self.level,
            "objective_name": self.objective_name,
            "ranges": plain(self.ranges),
            "residuals": plain(self.residuals),
            "details": plain(_without_draws(self.details)),
        }

    def with_details(self, **details: Any) -> FitResult:
        return dataclasses.replace(self, details={**self.details, **details})


def expanded(level: float, n: int, n_parameters: int) -> float:
    """The share of bootstrap draws that makes an interval of `level` from n runs.

    Resampling n runs understates the spread of an estimate by about sqrt((n - p)/n), and the tails of
    a normal distribution are shorter than Student's. Wider percentiles correct for both (the expanded
    percentile interval, Hesterberg 2015, sec. 3.2).
    """
    freedom = max(1, n - n_parameters)
    z = student_quantile(0.5 + level / 2, freedom) * math.sqrt(n / freedom)
    return float(min(2 * ndtr(z) - 1, 0.9999))


def interval(draws: np.ndarray, level: float, axis: int = 0) -> tuple[Any, Any]:
    """The central percentile interval of the finite `draws` along `axis`; NaN where there are none.

    The edges have the ranks p (B + 1) among B draws. Another draw then lies between them with
    probability `level` for any B (Davison & Hinkley 1997, sec. 5.2.3). numpy's default ranks
    1 + p (B - 1) lie further inside: with 100 draws and a level of 95% they hold 93.1%.
    """
    tail = 50.0 * (1.0 - level)
    draws = np.asarray(draws, float)
    masked = np.where(np.isfinite(draws), draws, np.nan)
    low, high = percentiles_of_known(masked, [tail, 100.0 - tail], axis, "weibull")
    if np.ndim(low) == 0:
        return float(low), float(high)
    return low, high


def intervals_of(draws: Mapping[str, np.ndarray], level: float) -> dict[str, tuple[float, float]]:
    return {name: interval(values, level) for name, values in draws.items()}


def _without_draws(details: Mapping[str, Any]) -> dict[str, Any]:
    """Details without the arrays under a key "draws", which are thousands of numbers."""
    return {
        name: _without_draws(item) if isinstance(item, Mapping) else item
        for name, item in details.items()
        if name != "draws"
    }


def plain(value: Any) -> Any:
    """`value` in types of JSON: numpy to Python, dataclasses to objects, numbers not finite to null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.repr}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()]
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
