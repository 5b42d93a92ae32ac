"""How intervals are made: a bootstrap of residuals, by rows or by groups that share their noise.

A draw keeps the fitted curve f and the inputs, and gives every unit the noise of another unit:

    y*_i = f_i + s sigma_i z_j,     z = e / sigma,  s = +1 or -1 at random

Here e is the corrected residual of unit j, drawn with replacement. sigma^2 is a smooth function of the
inputs (ln e^2 is linear in them), because losses of small or short runs scatter more. The law is
fitted again to every y*. If rows were drawn instead, a draw from a small grid could lose a corner of
the grid. A unit is a row, or a group of rows that share their noise; a group gets the residuals of
another group place by place along the curve.

The noise e is the least-squares residual about the fit, corrected for the part that the fit absorbed:
e_g = (I - H_gg)^(-1/2) r_g, where H is the hat matrix (HC2 for rows, CR2 for groups: Bell & McCaffrey
2002). Few units estimate the size of the noise badly, so percentiles are widened to Student's t.

`lmscale.laws.units` decides which rows share noise.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from lmscale.laws.cpu import float64_on_cpu
from lmscale.laws.newton import Residual
from lmscale.laws.quantiles import student_quantile
from lmscale.laws.solve import MultiStart, solve
from lmscale.laws.table import Runs
from lmscale.laws.units import Units, choose_units, freedom_between, project

__all__ = [
    "Draws",
    "Noise",
    "Refits",
    "draw",
    "draw_shared",
    "draw_with",
    "fit_noise",
    "jacobian",
    "log_inputs",
    "noise_scale_of",
    "refit",
    "seed_noise",
    "student_level",
]

#: Least share of its noise that the residual of a unit is assumed to keep.
_LEAST_LEFT = 0.05
#: Fewest units beyond the parameters for a size of the noise that depends on the inputs.
_LEAST_FOR_SCALE = 10
#: With more rows than this, leverages are so small that HC2 is enough.
_MANY = 1000
#: Variance of ln chi^2 of one degree, and standard deviation of plausible slopes of ln e^2.
_LOG_VARIANCE, _PLAUSIBLE = math.pi**2 / 2, 6.0


@dataclass(frozen=True)
class Noise:
    """The noise of a fit.

    Attributes:
      value: [n] corrected residuals, in the units of the observations.
      scale: [n] standard deviation of the noise by the variance function, equal within a unit.
      units: the groups of rows that share noise. A draw gives a whole group the noise of another one.
      freedom: degrees of freedom of `scale`.
      order: [n] row numbers. In this order the first row of a group corresponds to the first row of
        another one, the last to the last, and rows between by their share of the way.
    """

    value: np.ndarray
    scale: np.ndarray
    units: Units
    freedom: float
    order: np.ndarray

    def draw(self, n_draws: int, rng: np.random.Generator) -> np.ndarray:
        """[draw, n] the noise of each draw."""
        count = self.units.count
        given = rng.integers(count, size=(n_draws, count))
        return self.drawn(given, rng.choice([-1.0, 1.0], (n_draws, count)))

    def drawn(self, given: np.ndarray, sign: np.ndarray) -> np.ndarray:
        """[draw, n] the noise where each unit has that of unit `given` [draw, unit], times `sign`."""
        units, count, n_draws = self.units, self.units.count, len(given)
        z = self.value / self.scale
        if not units.whole:
            return sign * z[given] * self.scale
        rows = [self.order[units.of_row[self.order] == g] for g in range(count)]
        out = np.empty((n_draws, len(z)))
        for g, mine in enumerate(rows):
            # The noise of every group, interpolated to the places of the rows of this group.
            moved = np.stack([np.interp(_places(mine), _places(r), z[r]) for r in rows])
            out[:, mine] = sign[:, g, None] * moved[given[:, g]] * self.scale[mine]
        return out


def _places(rows: np.ndarray) -> np.ndarray:
    """The place of each row along its group, from 0 to 1."""
    return np.linspace(0, 1, len(rows)) if len(rows) > 1 else np.array([0.5])


@dataclass(frozen=True)
class Draws:
    """The law fitted to every draw.

    Attributes:
      theta: [B, P].
      level: share of the draws within an interval of the level asked for.
      how: how the draws were made, in words.
      notes: warnings.
      noise: the noise that was drawn.
      observed: [B, n] the observations of every draw.
    """

    theta: np.ndarray
    level: float
    how: str
    notes: tuple[str, ...]
    noise: Noise
    observed: np.ndarray

    def report(self) -> dict[str, Any]:
        """What was drawn, for `details["resampling"]`."""
        units = self.noise.units
        return {
            "unit": units.name,
            "count": units.count,
            "correlation": units.correlation,
            "freedom": self.noise.freedom,
        }


def draw(
    residual: Residual,
    found: MultiStart,
    data: Mapping[str, np.ndarray],
    target: str,
    runs: Runs,
    *,
    inputs: Sequence[str],
    n_draws: int,
    level: float,
    seed: int,
    delta: float = math.inf,
    weights: np.ndarray | None = None,
    resample: str = "auto",
    curves: bool = False,
    relative: bool = False,
) -> Draws:
    """Fits a law again to `n_draws` draws of its noise.

    Args:
      residual: r(theta, data), predicted less observed.
      found: the fit.
      data: what `residual` reads; `target` is the entry with the observations.
      inputs: columns of `runs` on which the size of the noise may depend.
      level: of the intervals, e.g. 0.95.
      resample: "auto", "runs" (rows) or "groups"; see `choose_units`.
      curves: the rows of this law are points of learning curves.
      relative: the residuals are those of the loss itself, so noise grows with the loss.
    """
    with float64_on_cpu():
        left = np.asarray(residual(jnp.asarray(found.theta), data))
    slopes = jacobian(residual, found.theta, data)
    units = choose_units(runs, left, slopes, resample=resample, curves=curves, weights=weights)
    size = data[target] if relative else None
    noise = fit_noise(left, slopes, units, log_inputs(runs, inputs), weights=weights, size=size)

    def refits(observed: np.ndarray) -> tuple[np.ndarray, int]:
        again = refit(residual, found, data, {target: observed}, delta=delta, weights=weights)
        return again.theta, again.unconverged

    return draw_with(refits, data[target] + left, noise, n_draws=n_draws, level=level, seed=seed)


def draw_with(
    refits: Callable[[np.ndarray], tuple[np.ndarray, int]],
    centre: np.ndarray,
    noise: Noise,
    *,
    n_draws: int,
    level: float,
    seed: int,
) -> Draws:
    """The fits of `n_draws` tables of `centre` [n] and drawn noise.

    Args:
      refits: observations [B, n] -> their fits [B, P], and how many did not converge.
    """
    observed = centre + noise.draw(n_draws, np.random.default_rng(seed))
    theta, unconverged = refits(observed)
    notes = list(noise.units.notes)
    if unconverged > 0.01 * n_draws:
        notes.append(f"{unconverged} of {n_draws} draws did not converge")
    share = student_level(level, noise.freedom)
    return Draws(theta, share, noise.units.how, tuple(notes), noise, observed)


def draw_shared(
    refits: Callable[[np.ndarray], tuple[np.ndarray, int]],
    centre: np.ndarray,
    noise: Noise,
    shared: np.ndarray,
    *,
    level: float,
    seed: int,
) -> Draws:
    """The fits of tables whose noise `shared` [B, n] another fit of the same rows has as well.

    What the law does not fit is noise of its own: the rows' noise in excess of what is shared. A row
    without shared noise has all of its noise to itself.
    """
    total, common = np.mean(noise.value**2), np.mean(shared**2)
    excess = math.sqrt(max(0.0, 1 - common / total)) if total > 0 else 0.0
    own = noise.draw(len(shared), np.random.default_rng(seed))
    observed = centre + shared + np.where(shared.any(axis=0), excess, 1.0) * own
    theta, _ = refits(observed)
    return Draws(theta, level, f"{noise.units.how}, with noise shared", (), noise, observed)


def seed_noise(
    observed: np.ndarray, cells: np.ndarray, inputs: np.ndarray
) -> tuple[np.ndarray, Noise]:
    """The mean of each configuration (a cell), and the noise of its seeds about it."""
    names, where, count = np.unique(cells, return_inverse=True, return_counts=True)
    mean = (np.bincount(where, observed) / count)[where]
    value = (observed - mean) * np.sqrt(count / (count - 1))[where]
    units = Units.rows(len(observed), "seeds within each configuration")
    freedom = len(observed) - len(names)
    scale = noise_scale_of(value, units, inputs, freedom)
    return mean, Noise(value, scale, units, float(freedom), np.arange(len(observed)))


class Refits(NamedTuple):
    """The best minimum of every draw [B, P], and how many did not meet the tolerance."""

    theta: np.ndarray
    unconverged: int
    evaluations: int


def refit(
    residual: Residual,
    found: MultiStart,
    data: Any,
    own: Mapping[str, np.ndarray],
    *,
    delta: float = math.inf,
    weights: np.ndarray | None = None,
    candidates: int = 3,
    max_steps: int = 200,
) -> Refits:
    """The minimum of each draw, whose data `own` [B, n] replace entries of `data`.

    Each draw is solved from the best minimum of the runs and from other good ones: at most `candidates`
    minima with an objective within a quarter of the best.
    """
    objectives = found.minima_objectives
    near = np.isfinite(objectives) & (objectives <= 1.25 * found.objective + 1e-300)
    minima = found.minima[near][:candidates] if near.any() else found.theta[None]
    draws, n = next(iter(own.values())).shape
    solved = solve(
        residual,
        np.repeat(minima, draws, axis=0),
        data,
        np.ones(n) if weights is None else np.asarray(weights, float),
        own={name: np.tile(values, (len(minima), 1)) for name, values in own.items()},
        delta=delta,
        stages=1,
        max_steps=max_steps,
    )
    value = np.where(np.isfinite(solved.objective), solved.objective, np.inf)
    value = value.reshape(len(minima), draws)
    best = np.argmin(value, axis=0) * draws + np.arange(draws)
    return Refits(solved.theta[best], int(np.sum(~solved.converged[best])), solved.evaluations)


def log_inputs(runs: Runs, names: Sequence[str]) -> np.ndarray:
    """Logarithms of columns [n, k], each with mean 0 and range 1; constant columns are left out."""
    columns = [np.log(runs[name]) for name in names]
    columns = [(x - x.mean()) / np.ptp(x) for x in columns if np.ptp(x) > 1e-9]
    return np.stack(columns, axis=1) if columns else np.empty((len(runs), 0))


@functools.cache
def _jacobian(residual: Residual) -> Callable[..., Any]:
    # In one program: to compile its operations one by one takes seconds.
    return jax.jit(jax.jacfwd(residual))


def jacobian(residual: Residual, theta: np.ndarray, data: Any) -> np.ndarray:
    """d r / d theta [n, P]."""
    with float64_on_cpu():
        return np.asarray(_jacobian(residual)(jnp.asarray(theta), data))


def student_level(level: float, freedom: float) -> float:
    """The share of normal draws that is as wide as an interval of `level` of Student's t."""
    return float(min(2 * ndtr(student_quantile(0.5 + level / 2, max(1.0, freedom))) - 1, 0.9999))


# --- The noise ----------------------------------------------------------------------------------


def fit_noise(
    left: np.ndarray,
    slopes: np.ndarray,
    units: Units,
    inputs: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    size: np.ndarray | None = None,
) -> Noise:
    """The noise of each row.

    Args:
      left: [n] residuals of the fit, predicted less observed.
      slopes: [n, P] their Jacobian.
      inputs: [n, k] what the size of the noise may depend on (`log_inputs`).
      size: [n] a further factor of the size of the noise.
    """
    n = len(left)
    root = np.ones(n) if weights is None else np.sqrt(np.asarray(weights, float))
    basis, rest, gross = project(left, slopes, root)
    if units.whole:
        value = _corrected_groups(rest, basis, units)
    else:
        value = rest / np.sqrt(np.maximum(1 - np.sum(basis**2, axis=1), _LEAST_LEFT))
    value = np.where(root > 0, value / np.where(root > 0, root, 1.0), left)
    value[gross] = left[gross]
    # Only differences between groups show how large their shared noise is.
    freedom = freedom_between(units.of_row, basis) if units.whole else n - basis.shape[1]
    spare = units.count - basis.shape[1]
    size = np.ones(n) if size is None else size / size.mean()
    scale = size * noise_scale_of(value / size, units, inputs, spare)
    if not units.whole and not gross.any() and root.all() and n <= _MANY:
        # Of a noisy row the fit absorbs more than its leverage: with R = I - H, the expected square of
        # a residual is sum_j R_ij^2 sigma_j^2.
        taken = (np.eye(n) - basis @ basis.T) ** 2
        for _ in range(3):
            sigma = scale * root
            left_over = np.maximum((taken @ sigma**2) / sigma**2, _LEAST_LEFT)
            value = rest / np.sqrt(left_over) / root
            scale = size * noise_scale_of(value / size, units, inputs, spare)
    # Where the noise differs much between rows, few of them determine the size that matters.
    freedom *= np.sum(scale**2) ** 2 / (n * np.sum(scale**4))
    order = np.argsort(inputs.sum(axis=1), kind="stable") if inputs.shape[1] else np.arange(n)
    return Noise(value, scale, units, float(max(1.0, freedom)), order)


def _corrected_groups(rest: np.ndarray, basis: np.ndarray, units: Units) -> np.ndarray:
    """(I - H_gg)^(-1/2) of each group's residuals."""
    value = rest.copy()
    for unit in range(units.count):
        rows = units.of_row == unit
        u, s, _ = np.linalg.svd(basis[rows], full_matrices=False)
        factor = 1 / np.sqrt(np.maximum(1 - s**2, _LEAST_LEFT)) - 1
        value[rows] += u @ (factor * (u.T @ rest[rows]))
    return value


def noise_scale_of(value: np.ndarray, units: Units, inputs: np.ndarray, spare: float) -> np.ndarray:
    """The size of the noise of each row [n]: ln e^2 is linear in the inputs, within a factor of ten.

    It is the same for all rows where the units leave fewer than ten degrees of freedom (`spare`).
    """
    if spare < _LEAST_FOR_SCALE or not inputs.shape[1]:
        return np.ones(len(value))
    size = np.bincount(units.of_row)
    square = np.bincount(units.of_row, value**2) / size
    middle = np.stack([np.bincount(units.of_row, x) / size for x in inputs.T], axis=1)
    # A residual that is zero by chance must not dominate the fit.
    log = np.log(square + 1e-3 * square.mean() + 1e-300)
    middle -= middle.mean(axis=0)
    # One residual is a bad estimate of the size of its noise, and slopes by chance only widen
    # intervals. So slopes are shrunk: by the variance of ln chi^2 of one degree of freedom, compared
    # with that of plausible slopes.
    shrunk = middle.T @ middle + _LOG_VARIANCE / _PLAUSIBLE**2 * np.eye(middle.shape[1])
    found = middle @ np.linalg.solve(shrunk, middle.T @ (log - log.mean()))
    found = np.clip(found - np.median(found), -2 * math.log(10), 2 * math.log(10))
    return np.exp(found / 2)[units.of_row]
