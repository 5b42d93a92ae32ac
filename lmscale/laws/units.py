"""Which rows of a table share their noise, so that a bootstrap must draw them together.

Rows of one group are drawn together where their residuals correlate, by an F test of the means of the
groups. A test has to decide, because the label of an ordinary grid (model "70M") looks like the label
of a run whose checkpoints are in the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import fdtrc

from lmscale.laws.result import FitError
from lmscale.laws.table import Runs

__all__ = ["Units", "choose_units", "correlate", "freedom_between", "project", "robust_scale"]

#: Below this p-value, rows of one value of a label that names runs are drawn together. The test is
#: lenient, because groups without shared noise only make an interval somewhat wider.
LENIENT = 0.25
#: The same for rows that are grouped by their size only, and for families of several sizes.
STRICT = 0.01
#: Fewest units for a bootstrap: units named by a label, and units found by size.
_LEAST_NAMED, _LEAST_FOUND = 3, 5
#: With fewer groups, a warning says that the interval rests on few.
FEW = 8
#: Rows with residuals beyond this many robust standard deviations do not enter the hat matrix.
_GROSS = 6.0


@dataclass(frozen=True)
class Units:
    """Which rows are drawn together.

    Attributes:
      of_row: [n] number of each row's unit, from 0.
      name: what a unit is, in the plural, e.g. "runs" (rows) or "groups".
      correlation: of the residuals of two rows of one group, where groups were considered.
      reason: why these units were chosen, in words; "" where there was no choice.
      notes: warnings for the user.
    """

    of_row: np.ndarray
    name: str = "runs"
    correlation: float | None = None
    reason: str = ""
    notes: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return int(self.of_row.max()) + 1

    @property
    def whole(self) -> bool:
        """Whether units are groups of rows."""
        return self.count < len(self.of_row)

    @property
    def how(self) -> str:
        """How draws are made, in words, for the `interval_method` of a fit."""
        what = f"{self.count} whole {self.name}" if self.whole else self.name
        return f"bootstrap of residuals over {what}" + (f" ({self.reason})" if self.reason else "")

    @classmethod
    def rows(cls, n: int, name: str = "runs", **fields: Any) -> Units:
        return cls(np.arange(n), name, **fields)


def choose_units(
    runs: Runs,
    left: np.ndarray,
    slopes: np.ndarray,
    *,
    resample: str = "auto",
    curves: bool = False,
    weights: np.ndarray | None = None,
    name: str = "runs",
    by: Sequence[str] = ("group", "run", "model"),
) -> Units:
    """Rows, or the groups whose rows share noise.

    Rows of one group are drawn together in two cases:

    - the law is of learning curves, or several groups share one size: then the label names runs;
    - otherwise, the mean residuals of the groups differ by more than noise (F test, p below 0.25 for
      groups of one size each, 0.01 for families of several sizes).

    Without a label, rows of one size (and seed) count as checkpoints of one run where their mean
    residuals differ at p below 0.01.

    Args:
      runs: with some of the labels that `by` names, or none.
      left, slopes: residuals [n] of the fit and their Jacobian [n, P].
      resample: "runs" always takes rows, "groups" always groups; "auto" decides as above.
      curves: the law is of learning curves.
      name: what a row is, in the plural.

    Raises:
      FitError: groups are asked for, and the table has fewer than three.
    """
    if resample not in ("auto", "runs", "groups"):
        raise FitError(f"resample must be auto, runs or groups, not {resample!r}")
    n = len(runs)
    label, of_row = _labelled(runs, by)
    if resample == "runs":
        return Units.rows(n, name)
    if resample == "groups" and (of_row is None or of_row.max() + 1 < _LEAST_NAMED):
        raise FitError(
            f"resample groups needs a column group that names at least {_LEAST_NAMED} groups of "
            f"rows; the table has {0 if of_row is None else of_row.max() + 1}"
        )
    root = np.ones(n) if weights is None else np.sqrt(np.asarray(weights, float))
    basis, rest, _ = project(left, slopes, root)
    if of_row is not None:
        return _by_label(runs, label, of_row, basis, rest, resample == "groups", curves, name)
    return _by_size(runs, basis, rest, name)


def _labelled(runs: Runs, by: Sequence[str]) -> tuple[str, np.ndarray | None]:
    """The first label with repeated values, and the group of each row by it (and by the seed)."""
    for label in by:
        if label not in runs.labels:
            continue
        values = runs.labels[label].astype(str)
        if "seed" in runs.labels:
            values = np.array(
                [f"{a} {b}" for a, b in zip(values, runs.labels["seed"], strict=True)]
            )
        names, of_row = np.unique(values.astype(str), return_inverse=True)
        if 1 < len(names) < len(runs):
            return label, of_row
    return "", None


def _by_label(
    runs: Runs,
    label: str,
    of_row: np.ndarray,
    basis: np.ndarray,
    rest: np.ndarray,
    asked: bool,
    curves: bool,
    name: str,
) -> Units:
    forced, what = asked or curves, "learning curves" if curves else f"{label}s"
    count = int(of_row.max()) + 1
    correlation, p_value = correlate(of_row, basis, rest)
    said = "untold" if correlation is None else f"{correlation:.2f}"
    kind = _kind(runs, of_row)
    shared = p_value < (STRICT if kind == "families" else LENIENT)
    together = forced or kind == "runs" or shared
    if not together:
        return Units.rows(
            len(runs),
            name,
            correlation=correlation,
            reason=f"not over the {count} values of {label}: residuals of one {label} correlate "
            f"by {said}, which noise explains",
        )
    if count < (_LEAST_FOUND if kind == "families" else _LEAST_NAMED):
        note = (
            f"the residuals of one {label} correlate by {said}, and {count} are too few to draw "
            f"from: the intervals are over single rows, and too narrow"
        )
        return Units.rows(len(runs), name, correlation=correlation, notes=(note,) if shared else ())
    notes = []
    if count < FEW:
        notes.append(
            f"the intervals rest on {count} whole {label}s, and are loose below {FEW}: "
            f"they are widened by Student's t"
        )
    if kind == "sizes" and not forced:
        notes.append(_checkpoints(runs, of_row, count, f"{label}s", said))
    reason = f"residuals of one {label} correlate by {said}"
    return Units(of_row, what, correlation, reason, tuple(notes))


def _by_size(runs: Runs, basis: np.ndarray, rest: np.ndarray, name: str) -> Units:
    """Without a label: rows, unless rows of one size (and seed) deviate together."""
    n = len(runs)
    if "params" not in runs:
        return Units.rows(n, name)
    keys = [f"{value:.9g}" for value in runs["params"]]
    if "seed" in runs.labels:
        keys = [f"{a} {b}" for a, b in zip(keys, runs.labels["seed"], strict=True)]
    names, of_row = np.unique(keys, return_inverse=True)
    if not 1 < len(names) < n:
        return Units.rows(n, name)
    correlation, p_value = correlate(of_row, basis, rest)
    if p_value >= STRICT:
        return Units.rows(n, name, correlation=correlation)
    said = f"{correlation:.2f}"
    if len(names) < _LEAST_FOUND:
        note = (
            f"rows of one size deviate together (correlation {said}), and {len(names)} sizes are "
            f"too few to draw from: the intervals are over single rows, and too narrow"
        )
        return Units.rows(n, name, correlation=correlation, notes=(note,))
    notes = [_checkpoints(runs, of_row, len(names), "sizes", said)]
    if len(names) < FEW:
        notes.append(
            f"the intervals rest on {len(names)} whole sizes, and are loose below {FEW}: they are "
            f"widened by Student's t"
        )
    reason = f"residuals of one size correlate by {said}"
    return Units(of_row, "sizes", correlation, reason, tuple(notes))


def _kind(runs: Runs, of_row: np.ndarray) -> str:
    """What a group is: one of several "runs" of a size, one of the "sizes", or one of "families".

    A family has several sizes. Of runs, each group has one size, and some groups share it.
    """
    if "params" not in runs:
        return "runs"
    sizes = [np.unique(runs["params"][of_row == g].round(6)) for g in range(of_row.max() + 1)]
    if any(len(size) > 1 for size in sizes):
        return "families"
    first = [float(size[0]) for size in sizes]
    return "runs" if len(set(first)) < len(first) else "sizes"


def _checkpoints(runs: Runs, of_row: np.ndarray, count: int, what: str, said: str) -> str:
    rows = int(np.median(np.bincount(of_row)))
    return (
        f"{len(runs)} rows are of {count} {what}, about {rows} each, and deviate together "
        f"(correlation {said}), as checkpoints of one run do: whole {what} are drawn. This law is "
        f"of final losses; a checkpoint before the end of its schedule has a higher loss than a "
        f"run that ends there, so fit the last row of each run where the rows are checkpoints"
    )


def correlate(
    of_row: np.ndarray, basis: np.ndarray, rest: np.ndarray
) -> tuple[float | None, float]:
    """Correlation within groups, and the p-value of the means of the groups against noise.

    Both correct for the part of the noise that the fit absorbed. With P_Z the projection on the means
    of the groups and I - H the projection on the residuals, E[r' P_Z r] = s_e^2 tr(P_Z (I - H)) +
    s_g^2 tr(P_Z (I - H) Z Z' (I - H)); the same holds for I - P_Z. The result is (None, 1) where the
    groups leave no degree of freedom.
    """
    n, count = len(of_row), int(of_row.max()) + 1
    size = np.bincount(of_row, minlength=count).astype(float)
    sums = _sums(of_row, basis)
    between = freedom_between(of_row, basis)
    within = n - basis.shape[1] - between
    if between < 0.5 or within < 0.5:
        return None, 1.0
    total = np.bincount(of_row, rest, minlength=count)
    means = float(np.sum(total**2 / size))
    spread = float(rest @ rest) - means
    if spread <= 0:
        return (1.0, 0.0) if means > 0 else (None, 1.0)
    p_value = float(fdtrc(between, within, means / between / (spread / within)))
    # Z' (I - H) Z, and |(I - H) Z|^2 = tr Z' (I - H) Z.
    cross = np.diag(size) - sums @ sums.T
    of_means = float(np.sum(cross**2 / size[:, None]))
    of_rest = float(np.trace(cross)) - of_means
    matrix = np.array([[between, of_means], [within, of_rest]])
    own, shared = np.linalg.lstsq(matrix, np.array([means, spread]), rcond=None)[0]
    shared = max(shared, 0.0)
    own = max(own, 0.0)
    if own + shared <= 0:
        return None, p_value
    return float(shared / (own + shared)), p_value


def robust_scale(left: np.ndarray, n_parameters: int) -> float:
    """Standard deviation of the residuals `left`, from the median of their absolute values."""
    n = len(left)
    factor = math.sqrt(n / max(1, n - n_parameters))
    return 1.4826 * float(np.median(np.abs(left))) * factor


def project(
    left: np.ndarray, slopes: np.ndarray, root: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An orthonormal basis of the slopes, the residuals without their part in it, and gross outliers.

    Outliers do not enter the basis, where they would spread over the neighbouring rows.
    """
    scale = robust_scale(left, slopes.shape[1])
    gross = np.abs(left) > _GROSS * scale
    if gross.mean() > 0.1 or scale == 0:
        gross = np.zeros(len(left), bool)
    inner = np.where(gross, 0.0, root)
    u, s, _ = np.linalg.svd(slopes * inner[:, None], full_matrices=False)
    basis = u[:, s > 1e-9 * max(s[0], 1e-300)]
    rest = left * inner
    return basis, rest - basis @ (basis.T @ rest), gross


def freedom_between(of_row: np.ndarray, basis: np.ndarray) -> float:
    """Degrees of freedom that the fit leaves to the means of the groups: tr(P_Z (I - H))."""
    sums = _sums(of_row, basis)
    return len(sums) - float(np.sum(sums**2 / np.bincount(of_row)[:, None]))


def _sums(of_row: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """[group, column]: sums over the rows of each group. A basis has no column where no parameter moves the fit,
    as at the bounds of a search."""
    sums = np.zeros((int(of_row.max()) + 1, basis.shape[1]))
    np.add.at(sums, of_row, basis)
    return sums
