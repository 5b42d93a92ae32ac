"""Differences of two fits on the same runs: both are fitted to the same redrawn losses.

Two exponents from the same runs share the noise of the runs. Their difference is known better than
two independent intervals tell, or worse where the noise moves them in opposite directions. So the
losses of the runs are drawn once (`Redrawn`), every fit reads these draws, and draw i of the
difference is draw i of one fit less draw i of the other.

Minima also scatter about their power law, by more than the noise of the runs. Two readings of one grid
share most of this scatter. What they don't share is measured on the difference of their minima, as a
random effect of its own (`paired_slopes`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmscale.laws import frontier
from lmscale.laws.profiles import Profile
from lmscale.laws.quantiles import normal_quantile, student_quantile
from lmscale.laws.result import FitError, FitResult
from lmscale.laws.scatter import LOG_N_SCALE, between_posterior, draw_between

__all__ = ["Redrawn", "paired_slopes", "seeds_redrawn", "widened"]

#: With this many common budgets a smooth bend of the difference is told from scatter.
_ENOUGH_FOR_BEND = 5


@dataclass(frozen=True)
class Redrawn:
    """Losses of the rows of a table, drawn again.

    Attributes:
      deviation: [draw, row] what each draw adds to the loss of a row, in nats.
      source: [draw, row] the row (from 0) whose deviation it is.
      sign: [draw, row] +1 or -1, by which that deviation was multiplied.
    """

    deviation: np.ndarray
    source: np.ndarray
    sign: np.ndarray

    def __len__(self) -> int:
        return len(self.deviation)

    def of_rows(self, rows: Sequence[int]) -> Redrawn:
        """For another table of the same runs, whose row k is our row `rows[k]`, or none of ours at -1.

        A run that we lack gets no shared noise, and is its own source.
        """
        ours = np.asarray(rows, int)
        known, back = ours >= 0, np.full(self.deviation.shape[1], -1)
        back[ours[known]] = np.flatnonzero(known)
        source = np.where(known, back[self.source[:, ours]], -1)
        source = np.where(source < 0, np.arange(len(ours)), source)
        return Redrawn(
            np.where(known, self.deviation[:, ours], 0.0),
            source,
            np.where(known, self.sign[:, ours], 1.0),
        )

    @classmethod
    def of_pool(
        cls,
        pool: np.ndarray,
        pool_rows: np.ndarray,
        scale: np.ndarray,
        n_draws: int,
        rng: np.random.Generator,
    ) -> Redrawn:
        """Every row gets a standardised deviation of `pool`, at its own scale and a random sign.

        Args:
          pool: [k] standardised deviations, each of the row (from 0) that `pool_rows` names.
          pool_rows: [k] int.
          scale: [row] standard deviation of each row's loss, in nats.

        Returns:
          Arrays [n_draws, row]; deviations in nats.
        """
        size = (n_draws, len(scale))
        given, sign = rng.integers(len(pool), size=size), rng.choice([-1.0, 1.0], size)
        return cls(sign * pool[given] * scale, pool_rows[given], sign)


def seeds_redrawn(
    size: Sequence[float],
    cell: Sequence[str],
    seed: Sequence[int],
    loss: Sequence[float],
    n_draws: int,
    level: float,
) -> Redrawn:
    """Seeds drawn with replacement, size by size: a draw depends on the size alone.

    The runs of one size and seed share their first weights and the order of their data, and often a
    trunk, whatever the budget or the schedule. So all cells of a size take the same seeds in a draw,
    in every table that has this size: what they share cancels in differences.

    Deviations are about the mean of a cell, and scaled for what the mean absorbs and, by Student's t,
    for how few of them there are.

    Args:
      size, cell, seed, loss: of each row; a cell holds the runs that differ in their seed alone.
    """
    sizes, cells, seeds = np.asarray(size), np.asarray(cell), np.asarray(seed)
    losses, names = np.asarray(loss, float), sorted(set(seed))
    n = len(names)
    if n < 2:
        raise FitError("seeds can be drawn only where cells were run with two or more")
    freedom = (n - 1) * len(set(size))
    tail = 0.5 + level / 2
    widen = student_quantile(tail, freedom) / normal_quantile(tail) * math.sqrt(n / (n - 1))
    deviation = np.zeros((n_draws, len(losses)))
    source = np.tile(np.arange(len(losses)), (n_draws, 1))
    drawn = {
        s: np.random.default_rng(round(float(s))).integers(n, size=(n_draws, n)) for s in set(size)
    }
    for name in set(cell):
        rows = np.flatnonzero(cells == name)
        place = np.searchsorted(names, seeds[rows])
        # A cell without one of the seeds has the deviation 0 of its mean there.
        own, of = np.zeros(n), np.full(n, rows[0])
        own[place], of[place] = losses[rows] - losses[rows].mean(), rows
        given = drawn[sizes[rows[0]]][:, place]
        deviation[:, rows], source[:, rows] = widen * own[given], of[given]
    return Redrawn(deviation, source, np.ones_like(deviation))


def widened(draws: np.ndarray, value: float, share: float, level: float) -> np.ndarray:
    """Draws [draw] of which `share` make an interval of `level`, spread about `value` to be of `level`."""
    return value + normal_quantile(0.5 + share / 2) / normal_quantile(0.5 + level / 2) * (
        draws - value
    )


def paired_slopes(one: FitResult, other: FitResult, seed: int = 0) -> np.ndarray:
    """Draws [draw] of the exponent of N_opt by `one` less that by `other`, with shared scatter.

    Both are fits by "isoflop" that were given the same redrawn losses, or losses redrawn alike. Budgets
    correspond by their order where both fits have as many, else none does. With s the scatter of the
    minima of `one` and s - t that of `other`, s follows the posterior of `one`, and t that of the
    differences of corresponding minima about their own law. Two counts of one model differ by a smooth
    function of its size, so these differences may bend in ln C; a bend of five budgets or more is no
    scatter. A budget in one fit alone has s or s - t
    with a t of its own.
    """
    rng = np.random.default_rng(seed)
    first, second = _Minima.of(one), _Minima.of(other)
    n_draws = min(first.drawn.shape[1], second.drawn.shape[1])
    scatter = first.scatter(n_draws, rng)
    matched = [k for k in first.place if k in second.place] if first.n == second.n else []
    if len(matched) > 2:
        i, j = ([m.place.index(k) for k in matched] for m in (first, second))
        noise = first.drawn[i, :n_draws] - second.drawn[j, :n_draws]
        degree = 2 if len(matched) >= _ENOUGH_FOR_BEND else 1
        # What is not shared is at most of the size of the scatter that either reading shows.
        scale = max(m.typical_scatter(degree) for m in (first, second))
        posterior = between_posterior(
            first.x[i],
            first.rest[i] - second.rest[j],
            frontier.covariance_of(noise),
            min(scale, LOG_N_SCALE),
            degree,
        )
        apart = draw_between(*posterior, second.n, n_draws, rng)
        of_second = scatter - apart
    else:
        of_second = second.scatter(n_draws, rng)
    return first.slopes(scatter, n_draws) - second.slopes(of_second, n_draws)


@dataclass(frozen=True)
class _Minima:
    """The usable minima of a fit: `place` among its `n` budgets, ln C, ln N less its law, and draws."""

    n: int
    place: list[int]
    x: np.ndarray
    y: np.ndarray
    drawn: np.ndarray

    @classmethod
    def of(cls, fit: FitResult) -> _Minima:
        profiles: tuple[Profile, ...] = fit.details["profiles"]
        place = [k for k, profile in enumerate(profiles) if profile.ok]
        x = np.log([profiles[k].flops for k in place])
        y = np.log([profiles[k].n_opt for k in place])
        return cls(len(profiles), place, x, y, np.stack([profiles[k].draws[0] for k in place]))

    @property
    def rest(self) -> np.ndarray:
        return self.y - np.polyval(np.polyfit(self.x, self.y, 1), self.x)

    def posterior(self, degree: int = 1) -> tuple[np.ndarray, np.ndarray]:
        covariance = frontier.covariance_of(self.drawn)
        return between_posterior(self.x, self.y, covariance, LOG_N_SCALE, degree)

    def typical_scatter(self, degree: int) -> float:
        """The posterior mean of its standard deviation."""
        tau, weight = self.posterior(degree)
        return float(tau @ weight)

    def scatter(self, n_draws: int, rng: np.random.Generator) -> np.ndarray:
        """[budget, draw] about the law, for all budgets."""
        return draw_between(*self.posterior(), self.n, n_draws, rng)

    def slopes(self, scatter: np.ndarray, n_draws: int) -> np.ndarray:
        """[draw] of the line through the drawn minima, with `scatter` [budget, draw] added."""
        drawn = self.drawn[:, :n_draws]
        found = np.isfinite(drawn)
        y = np.where(found, drawn, 0.0) + scatter[self.place]
        return frontier.line(self.x, y, found.astype(float))[0]
