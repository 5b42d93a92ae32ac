"""Interleaved timing: cases take turns, so that a machine's slow minute falls on all of them."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

#: Seconds that one sample should last: long against the clock and the scheduler.
SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, extremes and number of samples."""

    median: float
    low: float
    high: float
    samples: int


def interleave(
    cases: Mapping[str, Callable[[], None]],
    *,
    repeat: int,
    tick: Callable[[str], None] = lambda name: None,
    warm_up: bool = True,
) -> dict[str, Timing]:
    """Times every case `repeat` times, in turns.

    Args:
      cases: functions that do their work and wait for its end.
      repeat: samples of each.
      tick: called before each sample with the name of the case.
      warm_up: each case is called twice before it is timed: the first call compiles, the second
        says how many calls make a sample. Otherwise a call is a sample and the first one counts.
    """
    calls = dict.fromkeys(cases, 1)
    if warm_up:
        for name, case in cases.items():
            tick(name)
            case()
            calls[name] = max(1, round(SAMPLE_SECONDS / seconds_of(case)))
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(repeat):
        for name, case in cases.items():
            tick(name)
            several = functools.partial(_repeated, case, calls[name])
            samples[name].append(seconds_of(several) / calls[name])
    return {
        name: Timing(statistics.median(s), min(s), max(s), len(s)) for name, s in samples.items()
    }


def _repeated(call: Callable[[], None], times: int) -> None:
    for _ in range(times):
        call()


def seconds_of(call: Callable[[], None]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    call()
    return max(time.perf_counter() - start, 1e-9)
