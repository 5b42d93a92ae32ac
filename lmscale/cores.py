"""How many cores there are, and work for all of them by threads."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def n_cores() -> int:
    """Cores that this process may use; where the system has no such limit (macOS), those of the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """The results of a function in the order of the items, of which a thread a core works on one.

    For functions that spend their time in NumPy, which lets others run meanwhile. Items are taken only a
    few ahead of the results, so that they need not all be in memory.
    """
    with ThreadPoolExecutor(n_cores()) as pool:
        running: deque = deque()
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) > n_cores():
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
