"""The ceiling: how many matrix FLOP/s a device reaches on large square products."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp


def matmul_peak(dtype: str, *, seconds: float = 1.0) -> float:
    """Best FLOP/s of one device over square products of several sizes.

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

    best = 0.0
    for size in sizes:
        factors = [
            jax.device_put(jnp.ones((size, size), dtype) / size, device)
            for device in (devices if platform == "cpu" else devices[:1])
        ]
        results = [product(a, a) for a in factors]
        jax.block_until_ready(results)
        calls, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            for _ in range(10):
                results = [product(r, a) for r, a in zip(results, factors, strict=True)]
            jax.block_until_ready(results)
            calls += 10
        spent = time.perf_counter() - start
        best = max(best, calls * 2 * size**3 / spent)
    return best
