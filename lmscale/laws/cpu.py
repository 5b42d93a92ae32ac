"""Where the laws compute: on the CPU, in float64, whatever else the machine has.

Fits are small, and accelerators have little or no float64. A fit also runs where an accelerator's plugin
is installed without its libraries, as on a machine that only compiles for GPUs.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator

import jax

__all__ = ["float64_on_cpu"]


@contextlib.contextmanager
def float64_on_cpu() -> Iterator[None]:
    """Float64, and the CPU as the device, for this thread and this block only.

    Training code in the same process stays in float32 on its own devices.
    """
    with jax.enable_x64(True), jax.default_device(_cpu()):
        yield


@functools.cache
def _cpu() -> jax.Device:
    """The first CPU device of this process.

    Raises:
      RuntimeError: jax offers none, since JAX_PLATFORMS or the process leaves it out.
    """
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        # jax starts all platforms at once and stops at the first that fails. It has not begun to
        # compute, so it can still be told to start without them.
        jax.config.update("jax_platforms", "cpu")
        return jax.local_devices(backend="cpu")[0]
