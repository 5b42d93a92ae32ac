"""Waiting in tests for what another process or thread does.

A test never tells fast from slow: machines are shared, and a process may stand still for seconds. It waits for
what must come to be, and `PATIENCE` only makes one that hangs fail instead of standing for ever.
"""

import time
from collections.abc import Callable

#: Seconds.
PATIENCE = 600.0


def wait_until(condition: Callable[[], object], pause: float = 0.02) -> None:
    """Waits until `condition` holds; `pause` is in seconds."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(pause)
