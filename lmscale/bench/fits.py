"""Times the fit of Approach 3 against a loop over scipy: `python -m lmscale.bench.fits`.

Both fit the same 240 planted runs with 4500 starts and 1000 bootstrap draws, in one process. scipy
runs L-BFGS-B with the analytic gradient in numpy: first every start on the runs, then every draw
from the best minimum. One start per draw is the least work that is still comparable.
`--scipy-share` times only a part of scipy's solves and scales the time up.

The time of lmscale is the mean of five fits after the first, which compiles. The floor is the work
that every residual needs: two exponentials, a logarithm and a division, in a loop over data in the
cache of one core. It leaves out the sums of gradient and Hessian and the linear solve of each step.
On a busy machine compare the CPU seconds, and set OPENBLAS_NUM_THREADS=1: otherwise scipy's own
threads slow each other down.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import minimize

from lmscale.cores import n_cores
from lmscale.laws.chinchilla import chinchilla_loss
from lmscale.laws.parametric import HUBER_DELTA, fit_parametric, hoffmann_starts
from lmscale.laws.surface import log_of_normal

__all__ = ["objective", "planted"]

TRUTH = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}


def planted(n: int = 240, seed: int = 1) -> dict[str, np.ndarray]:
    """Runs over the range of Hoffmann et al. 2022, with heavy-tailed noise of about 2%."""
    rng = np.random.default_rng(seed)
    params = np.exp(rng.uniform(np.log(5e7), np.log(1.6e10), n))
    flops = np.exp(rng.uniform(np.log(1e18), np.log(3e21), n))
    tokens = flops / (6 * params)
    noise = 0.014 * rng.standard_t(4, n)
    loss = chinchilla_loss(TRUTH, params=params, tokens=tokens) * np.exp(noise)
    return {"params": params, "tokens": tokens, "loss": loss}


def objective(
    theta: np.ndarray, x: np.ndarray, y: np.ndarray, log_loss: np.ndarray, weight: np.ndarray
) -> tuple[float, np.ndarray]:
    """The published objective and its gradient in (a, b, e, alpha, beta)."""
    a, b, e, alpha, beta = theta
    z1, z2 = a - alpha * x, b - beta * y
    top = np.maximum(np.maximum(z1, z2), e)
    p1, p2, p3 = np.exp(z1 - top), np.exp(z2 - top), np.exp(e - top)
    total = p1 + p2 + p3
    r = top + np.log(total) - log_loss
    size = np.abs(r)
    value = np.where(size <= HUBER_DELTA, r * r / 2, HUBER_DELTA * (size - HUBER_DELTA / 2))
    slope = weight * np.clip(r, -HUBER_DELTA, HUBER_DELTA) / total
    s1, s2 = slope * p1, slope * p2
    gradient = np.array([s1.sum(), s2.sum(), (slope * p3).sum(), -(s1 @ x), -(s2 @ y)])
    return float(weight @ value), gradient


def floor(repeats: int = 20_000, size: int = 2048) -> float:
    """CPU seconds per residual for r = log(1 + exp(x) + exp(y)) and the share of each term."""

    def once(_: int, x: jax.Array) -> jax.Array:
        first, second = jnp.exp(x), jnp.exp(-0.5 * x)
        total = 1.0 + first + second
        return 0.5 * log_of_normal(total) + first / total - x

    with jax.enable_x64(True):
        x = jnp.linspace(-2.0, 2.0, size)
        options = {"xla_cpu_multi_thread_eigen": False, "xla_cpu_prefer_vector_width": 512}
        loop = jax.jit(lambda x: jax.lax.fori_loop(0, repeats, once, x), compiler_options=options)
        loop(x).block_until_ready()
        began = time.process_time()
        loop(x).block_until_ready()
    return (time.process_time() - began) / (repeats * size)


def _solve(start: np.ndarray, args: tuple[np.ndarray, ...], options: dict[str, Any]) -> Any:
    """What scipy finds from a start; its types know no objective that gives its gradient too."""
    minimum: Any = minimize
    return minimum(objective, start, args=args, jac=True, method="L-BFGS-B", options=options)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m lmscale.bench.fits", description=__doc__)
    parser.add_argument("--scipy-share", type=float, default=1.0, help="part of scipy's solves")
    parser.add_argument("--draws", type=int, default=1000)
    share = parser.parse_args()
    table = planted()
    n = len(table["loss"])

    began = time.perf_counter()
    fit_parametric(table, bootstrap=share.draws)
    first = time.perf_counter() - began
    fits = 5
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(fits):
        ours = fit_parametric(table, bootstrap=share.draws)
    wall, cpu = (time.perf_counter() - began) / fits, (time.process_time() - cpu) / fits
    count = ours.details["evaluations"]
    least = floor()
    print(f"{n_cores()} cores, {n} runs, 4500 starts, {share.draws} draws")
    print(f"ours: {wall:.2f} s ({cpu:.2f} s of CPU), with compilation {first:.2f} s")
    print(f"  {count / 1e6:.1f}M residuals with Hessian, {1e9 * cpu / count:.0f} ns of CPU each")
    print(
        f"  floor {count * least:.3f} s of CPU ({1e9 * least:.1f} ns each): ours takes "
        f"{cpu / count / least:.0f} times that"
    )

    args = (np.log(table["params"]), np.log(table["tokens"]), np.log(table["loss"]))
    rng = np.random.default_rng(0)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=share.draws).astype(float)
    tight: dict[str, Any] = {"ftol": 1e-15, "gtol": 1e-12, "maxiter": 15000, "maxfun": 100_000}
    for name, options in (("default tolerances", {}), ("tight", tight)):
        starts = hoffmann_starts()
        some = starts[:: max(1, round(1 / share.scipy_share))]
        began, used, calls = time.perf_counter(), time.process_time(), 0
        solved = [_solve(start, (*args, np.ones(n)), options) for start in some]
        calls += sum(found.nfev for found in solved)
        best = min(solved, key=lambda found: found.fun)
        scale = len(starts) / len(some)
        on_starts = (time.perf_counter() - began) * scale
        busy = (time.process_time() - used) * scale
        drawn = weights[:: max(1, round(1 / share.scipy_share))]
        began, used = time.perf_counter(), time.process_time()
        calls += sum(_solve(best.x, (*args, weight), options).nfev for weight in drawn)
        scale = len(weights) / len(drawn)
        on_draws = (time.perf_counter() - began) * scale
        busy += (time.process_time() - used) * scale
        total = on_starts + on_draws
        print(
            f"scipy, {name}: {total:.1f} s ({on_starts:.1f} for the starts, {on_draws:.1f} for "
            f"the draws, {calls / (len(some) + len(drawn)):.0f} evaluations a solve): "
            f"{total / wall:.0f} times ours ({busy:.1f} s of CPU, {busy / cpu:.0f} times)"
        )
        print(
            f"  best objective {best.fun:.15g}; ours {ours.objective:.15g}, relative difference "
            f"{ours.objective / best.fun - 1:.2e}"
        )


if __name__ == "__main__":
    main()
