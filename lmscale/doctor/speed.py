"""How fast a device is: matmuls, memory, and the calls themselves."""

from __future__ import annotations

import time
from typing import Any

from lmscale.doctor.check import Finding, Place

#: Share of the data sheet's number below which something is wrong with a device or its settings.
LEAST_SHARE = 0.5
#: Microseconds of a call above which small models are slow.
SLOW_LAUNCH = 300.0


def matmul(place: Place) -> Finding:
    """Matrix FLOP/s on large products of random numbers (constant ones flatter: they draw less power)."""
    from lmscale.bench.peak import matmul_peak
    from lmscale.planner.devices import local_devices

    here = local_devices()
    types = ("float32",) if here.platform == "cpu" else ("bfloat16", "float32")
    rates = {dtype: matmul_peak(dtype, seconds=0.3) for dtype in types}
    text = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {dtype}" for dtype, rate in rates.items())
    share = None if here.platform == "cpu" else rates["bfloat16"] / here.peak_flops
    facts = {"flops_per_second": rates, "share_of_data_sheet": share, "kind": here.kind}
    if share is None:
        return Finding("ok", f"{text} a core", None, facts)
    return _judged(f"{text}, {share:.0%} of a {here.kind}'s data sheet in bfloat16", share, facts)


def bandwidth(place: Place) -> Finding:
    """Bytes/s that one device reads and writes."""
    import jax
    import jax.numpy as jnp

    from lmscale.planner.devices import local_devices

    here = local_devices()
    x = jnp.zeros(2**24 if here.platform == "cpu" else 2**28, jnp.float32)
    # In place, so that the time to allocate is not counted.
    add = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = add(x)
    x.block_until_ready()
    n_calls = 10
    start = time.perf_counter()
    for _ in range(n_calls):
        x = add(x)
    x.block_until_ready()
    rate = n_calls * 2 * x.nbytes / (time.perf_counter() - start)
    share = None if here.bandwidth is None else rate / here.bandwidth
    facts = {"bytes_per_second": rate, "share_of_data_sheet": share}
    text = f"{rate / 1e9:.3g} GB/s read and written by one device"
    if share is None:
        return Finding("ok", text, None, facts)
    return _judged(f"{text}, {share:.0%} of a {here.kind}'s data sheet", share, facts)


def _judged(text: str, share: float, facts: dict[str, Any]) -> Finding:
    if share < LEAST_SHARE:
        remedy = "another program may run on the device, or its clock or power is limited: see nvidia-smi"
        return Finding("warning", text, remedy, facts)
    return Finding("ok", text, None, facts)


def launch(place: Place) -> Finding:
    """Microseconds of a jitted call of a tiny program, when calls are queued."""
    import jax
    import jax.numpy as jnp

    add = jax.jit(lambda x: x * 2 + 1)
    x = add(jnp.zeros((64, 64)))
    x.block_until_ready()
    n_calls = 300
    start = time.perf_counter()
    for _ in range(n_calls):
        x = add(x)
    x.block_until_ready()
    micro = 1e6 * (time.perf_counter() - start) / n_calls
    facts = {"microseconds": micro}
    text = f"{micro:.3g} microseconds a launch"
    if micro > SLOW_LAUNCH:
        remedy = "small models will be slow here: the machine is busy, or the device is far away"
        return Finding("warning", text, remedy, facts)
    return Finding("ok", text, None, facts)
