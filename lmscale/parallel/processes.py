"""Processes of one machine that train side by side, and how they start.

They are forked from a server that has imported all that they need and holds no device: jax's
imports take seconds, and what it does afterwards does not survive a fork. This module imports no jax,
so that a command can have the server import while it imports itself.
"""

from __future__ import annotations

import glob
import multiprocessing
import os
import signal
import sys
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

#: What the server imports.
_PRELOADED = ["lmscale.sweep.execute"]
#: Files that there are where an accelerator is: of NVIDIA, AMD, and TPUs.
_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/kfd", "/dev/accel*", "/dev/vfio/[0-9]*")


def process_context() -> BaseContext:
    """What processes are to be started with; the server is running then."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    # It would lift the mask otherwise.
    resource_tracker.ensure_running()
    # Those who stop a job signal all of its processes, but the first alone decides what follows.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def expect_processes() -> None:
    """Starts the server now where it is likely to be wanted: on several cores and no accelerator."""
    on_cpu = os.environ.get("JAX_PLATFORMS") == "cpu" or not any(map(glob.glob, _ACCELERATORS))
    if on_cpu and sys.platform == "linux" and len(os.sched_getaffinity(0)) > 1:
        process_context()
