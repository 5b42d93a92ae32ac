"""How far the minimum of a fitted parabola lies from the true minimum of a profile.

On L = E + A/N^alpha + B/D^beta a profile is not a parabola, so the fitted minimum is off by a shift
that depends on the window. It is the same at every compute (`vertex_bias`), and can be subtracted
(`without_bias`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from lmscale.laws.parametric import fit_parametric
from lmscale.laws.profiles import Points, ProfileFit, parabola
from lmscale.laws.table import Runs

__all__ = ["vertex_bias", "without_bias"]


def vertex_bias(
    alpha: float, beta: float, factor: float, n_points: int = 9, amplitude: float = 1.0
) -> float:
    """How far the parabola's minimum lies from the true one on a noiseless surface.

    On L = E + A/N^alpha + B/D^beta with sizes spread evenly in ln N from N_opt / factor to
    N_opt * factor at fixed C = 6 N D, the fitted minimum is exp(shift) N_opt, whatever C, E, A and
    B are (Czech 2026, 2603.22339). So exponents are safe on centred grids; intercepts are not.

    Returns:
      shift = ln N_fitted - ln N_opt (and minus that for ln D); 0 where alpha = beta.
    """
    u = np.linspace(-math.log(factor), math.log(factor), n_points)
    # At the optimum alpha A / N^alpha = beta B / D^beta, which we call 1.
    loss = amplitude * (np.exp(-alpha * u) / alpha + np.exp(beta * u) / beta)
    c2, c1, _ = np.polyfit(u, loss, 2)
    return float(-c1 / (2 * c2))


def without_bias(
    runs: Runs, points: Sequence[Points], used: Sequence[np.ndarray], fits: Sequence[ProfileFit]
) -> list[ProfileFit]:
    """The fits, each with the shift that the same parabola has on the fitted surface (Approach 3)."""
    surface = fit_parametric(
        {name: runs[name] for name in ("params", "tokens", "loss")}, method="varpro", bootstrap=0
    ).parameters
    moved = []
    for p, u, fit in zip(points, used, fits, strict=True):
        if fit.ok and fit.coefficients is not None:
            exact = (
                surface["E"]
                + surface["A"] * np.exp(-surface["alpha"] * p.x)
                + surface["B"] * np.exp(-surface["beta"] * p.log_tokens)
            )
            on_surface = parabola(dataclasses.replace(p, loss=exact), u, 3)
            # Along the profile ln D = d0 + d1 (ln N - center): the true minimum has a closed form.
            d0, d1 = fit.tokens
            a, b = surface["alpha"], surface["beta"]
            left = math.log(a * surface["A"]) - a * fit.center
            right = math.log(-d1 * b * surface["B"]) - b * d0
            truth = (left - right) / (a - b * d1)
            if on_surface.flag != "not convex" and math.isfinite(truth):
                shift = on_surface.minimum - truth
                moved.append(dataclasses.replace(fit, shift=shift))
                continue
        moved.append(fit)
    return moved
