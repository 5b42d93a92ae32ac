"""Frontiers of loss over compute side by side: how much more compute one needs for the same loss.

A frontier is L(C) = L_inf + (C_c / C)^alpha_C through the minima of IsoFLOP profiles. Two of them, fitted
one by one, give the compute multiplier m(L) = C_B(L) / C_A(L) at any loss. Fitted together with one
L_inf (the text is the same) and one alpha_C, they differ in C_c alone, and m = C_cB / C_cA at every loss.
Whether the minima bear one exponent is a test: with one L_inf and an exponent for each,
m ~ C_A^(alpha_A / alpha_B - 1), so the ratio of the exponents must be able to be 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import block_diag
from scipy.special import ndtr

from lmscale.laws.frontier import covariance_of
from lmscale.laws.frontier_loss import LEAST_ALPHA, narrow_floors
from lmscale.laws.scatter import LOSS_SCALE, tau_prior

__all__ = ["JointFrontiers", "Minima", "fit_jointly", "log_compute", "response"]

#: Points of the grid over L_inf.
_FLOOR_STEPS = 60


@dataclass(frozen=True)
class Minima:
    """The minima of one family's profiles.

    Attributes:
      log_flops, loss: [budget].
      covariance: [budget, budget] of the losses, from the noise of the runs.
    """

    log_flops: np.ndarray
    loss: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of_profiles(cls, profiles: Sequence[Any]) -> Minima:
        """Of usable `lmscale.laws.Profile`s."""
        loss = np.array([profile.loss_opt for profile in profiles])
        drawn = np.stack([profile.draws[2] for profile in profiles])
        flops = np.log([profile.flops for profile in profiles])
        return cls(flops, loss, covariance_of(drawn))


@dataclass(frozen=True)
class JointFrontiers:
    """Several frontiers with one L_inf, draws of the posterior.

    Attributes:
      floor: L_inf [draw].
      alpha: [family, draw]; equal in all families where the exponent is shared.
      log_scale: ln C_c [family, draw].
    """

    floor: np.ndarray
    alpha: np.ndarray
    log_scale: np.ndarray

    def log_multiplier(self, family: int, base: int = 0) -> np.ndarray:
        """ln m [draw], where the exponent is shared."""
        return self.log_scale[family] - self.log_scale[base]

    def growth(self, family: int, base: int = 0) -> np.ndarray:
        """The exponent g of m ~ C_base^g [draw], where each family has its own."""
        return self.alpha[base] / self.alpha[family] - 1


def log_compute(curve: Mapping[str, Any], loss: Any) -> np.ndarray:
    """ln C at which a frontier reaches `loss` [loss], for parameters or draws: [loss] or [loss, draw].

    Args:
      curve: alpha_C, C_c and L_inf, numbers or [draw]; infinite where L_inf is not below the loss.
    """
    alpha, scale, floor = (np.asarray(curve[name], float) for name in ("alpha_C", "C_c", "L_inf"))
    above = np.asarray(loss, float)[:, None] - floor if floor.ndim else np.asarray(loss) - floor
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(scale) - np.where(above > 0, np.log(above), -np.inf) / alpha


def response(minima: Minima, curve: Mapping[str, float], tau: float, loss: Any) -> np.ndarray:
    """Derivatives of `log_compute` at `loss` by the losses of the minima, [loss, budget].

    L_inf is held, and the level and the exponent follow by least squares.

    Args:
      curve: the fitted parameters.
      tau: standard deviation of the minima about it.
    """
    alpha, floor = curve["alpha_C"], curve["L_inf"]
    center = np.log(curve["C_c"])
    x = minima.log_flops - center
    excess = np.exp(-alpha * x)
    design = np.stack([excess, -excess * x], axis=1)
    variance = minima.covariance + (tau**2 + 1e-18) * np.eye(len(x))
    left = np.linalg.solve(variance, design).T
    solve = np.linalg.solve(left @ design, left)
    # ln C = center + (level - ln(L - L_inf)) / alpha, with a level of 0 at the center.
    rest = -np.log(np.asarray(loss, float) - floor)
    return solve[0] / alpha - rest[:, None] / alpha**2 * solve[1]


def fit_jointly(
    minima: Sequence[Minima], n_draws: int, rng: np.random.Generator, *, shared_exponent: bool
) -> JointFrontiers:
    """The posterior of frontiers with one L_inf.

    The prior is that of `lmscale.laws.frontier_loss.fit_loss`: uniform in L_inf below the lowest loss, in
    each family's loss and in each slope at the middle of the compute, and scatter of the minima about
    the curves with one standard deviation tau.

    Args:
      minima: of each family, two or more budgets each.
      n_draws: at least one.
      shared_exponent: one alpha_C for all families, instead of one each.
    """
    grid = _Grid(minima, shared_exponent)

    def solve(floors: np.ndarray) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        weight = grid.weights(floors)
        return (floors, weight), weight

    floors, weight = narrow_floors(float(grid.loss.min()), _FLOOR_STEPS, solve)
    floor, theta = grid.draw(floors, weight, n_draws, rng)
    n = len(minima)
    alpha = np.maximum(theta[:, n:], LEAST_ALPHA).T
    alpha = np.repeat(alpha, n, axis=0) if shared_exponent else alpha
    return JointFrontiers(floor, alpha, grid.center + theta[:, :n].T / alpha)


class _Grid:
    """ln(L - L_inf) as a line in ln C for each family, on a grid over L_inf and tau.

    theta [.., parameter] has each family's level at `center`, then the exponents.
    """

    def __init__(self, minima: Sequence[Minima], shared_exponent: bool):
        log_flops = np.concatenate([m.log_flops for m in minima])
        self.loss = np.concatenate([m.loss for m in minima])
        self.center = float(log_flops.mean())
        self.n_families = len(minima)
        counts = [len(m.loss) for m in minima]
        self.levels = np.repeat(np.eye(len(minima)), counts, axis=0)
        slopes = np.ones((len(self.loss), 1)) if shared_exponent else self.levels
        self.slopes = -(log_flops - self.center)[:, None] * slopes
        mean = float(np.mean(self.loss))
        self.tau, self.log_prior = tau_prior(LOSS_SCALE * mean)
        own = block_diag(*[m.covariance for m in minima])
        floor = (1e-7 * mean) ** 2
        covariance = own + (self.tau[:, None, None] ** 2 + floor) * np.eye(len(self.loss))
        self.precision = np.linalg.inv(covariance)
        self.log_det = np.linalg.slogdet(covariance)[1]

    def _solve(self, floors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """theta, its precision matrix, and chi^2, each over [floor, tau]."""
        excess = self.loss - floors[:, None]
        # Derivatives of the loss by a level and by an exponent.
        design = excess[..., None] * np.concatenate([self.levels, self.slopes], axis=1)
        y = excess * np.log(excess)
        left = np.einsum("fpi,tpq->ftiq", design, self.precision, optimize=True)
        normal = np.einsum("ftiq,fqj->ftij", left, design, optimize=True)
        right = np.einsum("ftiq,fq->fti", left, y, optimize=True)
        theta = np.linalg.solve(normal, right[..., None])[..., 0]
        rest = y[:, None] - np.einsum("fpi,fti->ftp", design, theta, optimize=True)
        chi = np.einsum("ftp,tpq,ftq->ft", rest, self.precision, rest, optimize=True)
        return theta, normal, chi

    def weights(self, floors: np.ndarray) -> np.ndarray:
        """Posterior [floor, tau], not normalised."""
        theta, normal, chi = self._solve(floors)
        level, alpha = theta[..., : self.n_families], theta[..., self.n_families :]
        # A level changes the loss by its excess, an exponent the slope by its families' mean excess.
        shared = alpha.shape[-1] == 1
        slopes = np.log(np.exp(level).mean(axis=-1)) if shared else level.sum(axis=-1)
        flat = level.sum(axis=-1) + slopes - 0.5 * np.linalg.slogdet(normal)[1]
        variance = np.linalg.inv(normal)
        index = np.arange(self.n_families, theta.shape[-1])
        error = np.sqrt(variance[..., index, index])
        falls = np.log(np.maximum(ndtr((alpha - LEAST_ALPHA) / error), 1e-300)).sum(axis=-1)
        log_weight = self.log_prior - 0.5 * (self.log_det + chi) + flat + falls
        return np.exp(log_weight - log_weight.max())

    def draw(
        self, floors: np.ndarray, weight: np.ndarray, n_draws: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """L_inf [draw] and theta [draw, parameter]."""
        theta, normal, _ = self._solve(floors)
        cell = rng.choice(weight.size, size=n_draws, p=weight.ravel() / weight.sum())
        i, j = np.unravel_index(cell, weight.shape)
        root = np.linalg.cholesky(np.linalg.inv(normal[i, j]))
        noise = rng.standard_normal((n_draws, theta.shape[-1]))
        return floors[i], theta[i, j] + np.einsum("dij,dj->di", root, noise)
