"""The critical batch, from training runs at several batches and from gradient noise.

    (S/S_min - 1)(E/E_min - 1) = 1,  B_crit = E_min / S_min     McCandlish et al. 2018 (1812.06162)
    B_crit(L) = B_star / L^(1/alpha_B)                          Kaplan et al. 2020, eq. 1.4

S updates at a batch of B tokens see E = B S tokens, so the hyperbola is S = S_min (1 + B_crit/B).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from lmscale.laws.resample import (
    Draws,
    draw_with,
    fit_noise,
    jacobian,
    log_inputs,
)
from lmscale.laws.result import DRAWS, FitResult, interval
from lmscale.laws.robust import residuals
from lmscale.laws.solve import solve
from lmscale.laws.table import Runs, Table, TableError
from lmscale.laws.units import choose_units

__all__ = [
    "NoiseScale",
    "adjusted_compute",
    "adjusted_steps",
    "critical_batch",
    "fit_critical_batch",
    "hyperbola_residual",
    "noise_scale",
    "steps_to_loss",
]


def critical_batch(loss: Any, B_star: float = 2.1e8, alpha_B: float = 0.21) -> Any:
    """B_crit(L) in tokens; Kaplan et al. 2020, eq. 1.4 (constants of Table 5).

    Args:
      loss: in nats a token; a number or an array.
      B_star: in tokens.
    """
    return B_star / np.asarray(loss, float) ** (1 / alpha_B)


def adjusted_steps(steps: Any, batch_tokens: Any, loss: Any, **constants: float) -> Any:
    """S_min = S / (1 + B_crit(L)/B): the updates that a very large batch would need (eq. 5.4)."""
    return steps / (1 + critical_batch(loss, **constants) / batch_tokens)


def adjusted_compute(flops: Any, batch_tokens: Any, loss: Any, **constants: float) -> Any:
    """C_min = C / (1 + B/B_crit(L)): the compute that a very small batch would need (eq. 5.5)."""
    return flops / (1 + batch_tokens / critical_batch(loss, **constants))


class NoiseScale(NamedTuple):
    """|G|^2, tr(Sigma) and B_simple = tr(Sigma)/|G|^2, in units of the batch sizes given."""

    gradient_squared: Any
    trace: Any
    batch: Any


def noise_scale(
    small_squared: Any, big_squared: Any, small: float, big: float, decay: float | None = None
) -> NoiseScale:
    """Gradient noise scale from squared gradient norms at two batch sizes (App. A.1).

    E|G_B|^2 = |G|^2 + tr(Sigma)/B, so the two norms give unbiased estimates of both parts. The parts
    are averaged over the last axis first, and then divided; an average of ratios would be biased.

    Args:
      small_squared, big_squared: |G_B|^2 at batches `small` and `big`, one entry per step.
      decay: take an exponential moving average along the last axis, corrected for its start, in place
        of the mean.
    """
    if not 0 < small < big:
        raise ValueError(f"the batches must satisfy 0 < small < big, not {small} and {big}")
    low, high = np.asarray(small_squared, float), np.asarray(big_squared, float)
    gradient = (big * high - small * low) / (big - small)
    trace = (low - high) / (1 / small - 1 / big)
    if decay is None:
        gradient, trace = gradient.mean(axis=-1), trace.mean(axis=-1)
    else:
        gradient, trace = _moving_average(gradient, decay), _moving_average(trace, decay)
    with np.errstate(divide="ignore", invalid="ignore"):
        return NoiseScale(gradient, trace, trace / gradient)


def _moving_average(values: np.ndarray, decay: float) -> np.ndarray:
    total, out = np.zeros(values.shape[:-1]), np.empty_like(values)
    for i in range(values.shape[-1]):
        total = decay * total + (1 - decay) * values[..., i]
        out[..., i] = total / (1 - decay ** (i + 1))
    return out


def steps_to_loss(steps: Any, loss: Any, targets: Sequence[float]) -> np.ndarray:
    """The interpolated step at which a learning curve first reaches each target; NaN if it never does."""
    steps, best = np.asarray(steps, float), np.minimum.accumulate(np.asarray(loss, float))
    reached = np.full(len(targets), np.nan)
    for i, target in enumerate(targets):
        after = int(np.argmax(best <= target))
        if best[after] > target or after == 0:
            continue
        share = (best[after - 1] - target) / (best[after - 1] - best[after])
        log_step = np.log(steps[after - 1 : after + 1])
        reached[i] = math.exp(log_step[0] + share * (log_step[1] - log_step[0]))
    return reached


def hyperbola_residual(theta: Any, data: Any) -> Any:
    """theta = (ln S_min, ln B_crit): ln S predicted less observed."""
    s, b = theta
    return s + jnp.logaddexp(0.0, b - data["log_batch"]) - data["log_steps"]


def fit_critical_batch(
    table: Any,
    *,
    bootstrap: int = DRAWS,
    resample: Literal["auto", "runs", "groups"] = "auto",
    level: float = 0.95,
    seed: int = 0,
    columns: Any = None,
) -> FitResult:
    """Hyperbolas of steps against batch at each loss, then B_crit(L) (Kaplan et al., Fig. 18).

    Args:
      table: a row is a run that reached a target: columns loss (the target), batch_tokens, and
        steps (taken to reach it). Each target needs three batches.
      bootstrap: number of draws.
      resample: what a draw keeps together, see `lmscale.laws.resample`; a label group names the run
        that reached several targets.

    Returns:
      parameters B_star and alpha_B (with two targets or more); `details["hyperbolas"]` gives
      S_min, E_min and B_crit of each target, with intervals, and its points.
    """
    table = Table.read(table, columns)
    runs = table.runs("loss", "steps", "batch_tokens", least=3, vary=("batch_tokens",))
    log_b, log_s = np.log(runs["batch_tokens"]), np.log(runs["steps"])
    warnings = list(runs.warnings)
    targets, members = _by_target(runs, warnings)
    masks = np.zeros((len(targets), len(runs)))
    for mask, index in zip(masks, members, strict=True):
        mask[index] = 1
    starts = [[log_s[index].min() - 0.3, float(np.median(log_b[index]))] for index in members]
    data = {"log_batch": log_b, "log_steps": log_s}
    found = solve(hyperbola_residual, np.array(starts), data, masks)
    theta, drawn = found.theta[:, None], None
    if bootstrap:
        drawn = _draw(runs, members, masks, data, found.theta, bootstrap, level, seed, resample)
        again = drawn.theta.reshape(bootstrap, len(targets), 2).transpose(1, 0, 2)
        theta = np.concatenate([theta, again], axis=1)
        warnings.extend(drawn.notes)
    share = drawn.level if drawn else level
    hyperbolas = [
        _hyperbola(runs, target, index, t, share, warnings)
        for target, index, t in zip(targets, members, theta, strict=True)
    ]
    parameters, draws = _law_of_loss(targets, theta, warnings)
    fitted = np.concatenate(members)
    at = np.repeat(np.arange(len(members)), [len(m) for m in members])
    predicted = np.exp(theta[at, 0, 0]) * (1 + np.exp(theta[at, 0, 1] - log_b[fitted]))
    return FitResult(
        law="critical-batch",
        parameters=parameters,
        intervals={name: interval(values, share) for name, values in draws.items()},
        interval_method=drawn.how if drawn else "none",
        level=level,
        draw_level=share,
        objective=float(found.objective.sum()),
        objective_name="half the sum of squared residuals of log steps",
        converged=bool(found.converged.all()),
        n_used=len(fitted),
        dropped=runs.dropped,
        warnings=tuple(warnings),
        residuals={
            "row": runs.row[fitted],
            "loss": runs["loss"][fitted],
            "batch_tokens": runs["batch_tokens"][fitted],
            "observed": runs["steps"][fitted],
            "predicted": predicted,
            "residual": np.log(runs["steps"][fitted] / predicted),
        },
        ranges={
            name: (float(runs[name].min()), float(runs[name].max()))
            for name in ("loss", "batch_tokens")
        },
        draws=draws,
        details={
            "hyperbolas": hyperbolas,
            "evaluations": found.evaluations,
            **({"resampling": drawn.report()} if drawn else {}),
        },
    )


def _by_target(runs: Runs, warnings: list[str]) -> tuple[list[float], list[np.ndarray]]:
    """The target losses that were reached at three batches or more, and the rows of each."""
    targets, members = [], []
    for target in np.unique(runs["loss"]):
        index = np.flatnonzero(runs["loss"] == target)
        batches = len(set(runs["batch_tokens"][index]))
        if batches < 3:
            warnings.append(f"loss {target:.4g} left out: {batches} batches, where 3 are needed")
        else:
            targets.append(float(target))
            members.append(index)
    if not targets:
        raise TableError(
            "no loss was reached at 3 batches; give rows of loss (the same target in several "
            "rows), batch_tokens and steps"
        )
    return targets, members


def _hyperbola(
    runs: Runs,
    target: float,
    index: np.ndarray,
    theta: np.ndarray,
    share: float,
    warnings: list[str],
) -> dict[str, Any]:
    """One target's curve; `theta` [1 + draw, 2] starts with the fit itself."""
    s_min, b_crit = np.exp(theta[:, 0]), np.exp(theta[:, 1])
    low, high = runs["batch_tokens"][index].min(), runs["batch_tokens"][index].max()
    if not low / 3 < b_crit[0] < high * 3:
        warnings.append(
            f"loss {target:.4g}: B_crit {b_crit[0]:.3g} lies far outside the batches that "
            f"were run ({low:.3g} to {high:.3g})"
        )
    return {
        "loss": target,
        "S_min": float(s_min[0]),
        "E_min": float(s_min[0] * b_crit[0]),
        "B_crit": float(b_crit[0]),
        "B_crit_interval": interval(b_crit[1:], share),
        "steps": runs["steps"][index],
        "batch_tokens": runs["batch_tokens"][index],
    }


def _law_of_loss(
    targets: Sequence[float], theta: np.ndarray, warnings: list[str]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """B_star and alpha_B through the targets' B_crit, and draws of them (eq. 1.4)."""
    if len(targets) < 2:
        warnings.append("one loss only, so B_crit has no dependence on it")
        return {}, {}
    x = np.log(targets)
    dx = x - x.mean()
    slope = (dx[:, None] * theta[:, :, 1]).sum(axis=0) / (dx**2).sum()
    with np.errstate(divide="ignore", over="ignore"):
        alpha = -1 / slope
        star = np.exp(theta[:, :, 1].mean(axis=0) - slope * x.mean())
    if alpha[0] <= 0:
        warnings.append("the critical batch does not grow as the loss falls")
    parameters = {"B_star": float(star[0]), "alpha_B": float(alpha[0])}
    drawn = len(alpha) > 1
    return parameters, {"B_star": star[1:], "alpha_B": alpha[1:]} if drawn else {}


def _draw(
    runs: Runs,
    members: list[np.ndarray],
    masks: np.ndarray,
    data: dict[str, np.ndarray],
    theta: np.ndarray,
    n_draws: int,
    level: float,
    seed: int,
    resample: str,
) -> Draws:
    """The hyperbolas of every draw, [draw, 2 x target]. All targets of a draw have the same noise."""
    fitted = np.sort(np.concatenate(members))
    left, slopes = np.zeros(len(runs)), np.zeros((len(runs), 2 * len(members)))
    for i, (index, own) in enumerate(zip(members, theta, strict=True)):
        left[index] = residuals(hyperbola_residual, own[None], data)[0][index]
        slopes[index, 2 * i : 2 * i + 2] = jacobian(hyperbola_residual, own, data)[index]
    used = runs.take(fitted)
    units = choose_units(used, left[fitted], slopes[fitted], resample=resample)
    inputs = log_inputs(used, ("batch_tokens",))
    noise = fit_noise(left[fitted], slopes[fitted], units, inputs)

    def refits(log_steps: np.ndarray) -> tuple[np.ndarray, int]:
        draws, targets = len(log_steps), len(members)
        full = np.tile(data["log_steps"], (draws, 1))
        full[:, fitted] = log_steps
        solved = solve(
            hyperbola_residual,
            np.tile(theta, (draws, 1)),
            data,
            np.tile(masks, (draws, 1)),
            own={"log_steps": np.repeat(full, targets, axis=0)},
        )
        return solved.theta.reshape(draws, -1), int(np.sum(~solved.converged))

    centre = (data["log_steps"] + left)[fitted]
    return draw_with(refits, centre, noise, n_draws=n_draws, level=level, seed=seed)
