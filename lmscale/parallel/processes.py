"""How worker processes of one machine start.

They are forked from a server process that has imported all that they need and holds no device. Importing
jax takes seconds, and a process in which jax already runs threads cannot be forked. This module imports
no jax, so that a command can start the server first and import jax while the server does.
"""

from __future__ import annotations

import glob
import multiprocessing
import os
import signal
import sys
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, SpawnContext

from lmscale.cores import n_cores

#: Modules that the server imports.
_PRELOADED = ["lmscale.parallel.preload"]
#: Device files of accelerators: NVIDIA, AMD, TPU (two kinds).
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")


def process_context() -> ForkServerContext | SpawnContext:
    """The context to start processes with. On Linux the server is running when this returns."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    # The tracker changes the signal mask when it starts, so it starts before the mask is set.
    resource_tracker.ensure_running()
    # A scheduler signals all processes of a job, but only the first one decides what follows.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def expect_processes() -> None:
    """Starts the server now where workers are likely: on several cores without an accelerator."""
    on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(glob.glob, _ACCELERATORS))
    if on_cpu and sys.platform == "linux" and n_cores() > 1:
        process_context()
