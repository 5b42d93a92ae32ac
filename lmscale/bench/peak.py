"""The ceiling: how many matrix FLOP/s a device reaches on large square products."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np


def matmul_peak(dtype: str, *, seconds: float = 1.0) -> float:
    """Best FLOP/s of one device over square products of random numbers, of several sizes.

    Products of constants draw less power, so that a GPU clocks higher and seems up to an eighth faster.

    On a CPU a device is a core, but one product may use them all: it is timed on all cores, each
    with its own product, and the result is a core's share.

    Args:
      dtype: of the factors; products add up in float32.
      seconds: of timing, for each size.
    """
    devices = jax.devices()
    platform = devices[0].platform
    sizes = (512, 1024) if platform == "cpu" else (4096, 8192)

    @jax.jit
    def product(a, b):
        return jnp.dot(a, b, preferred_element_type=jnp.float32).astype(a.dtype)

    best, rng = 0.0, np.random.default_rng(0)
    for size in sizes:
        values = rng.standard_normal((size, size), np.float32) / np.sqrt(size)
        factors = [
            jax.device_put(jnp.asarray(values, dtype), device)
            for device in (devices if platform == "cpu" else devices[:1])
        ]
        results = [product(a, a) for a in factors]
        jax.block_until_ready(results)
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for _ in range(10):
                results = [product(a, a) for a in factors]
            jax.block_until_ready(results)
            calls += 10
        spent = time.perf_counter() - start
        best = max(best, calls * 2 * size**3 / spent)
    return best
