"""What is known of devices without having them: peak speed and memory."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Devices:
    """The accelerators that a plan is for.

    Attributes:
      kind: "cpu", or a key of `KINDS`.
      count: how many (for a CPU: cores).
      peak_flops: matrix FLOP/s of one, bfloat16 where it has it.
      memory: bytes of one.
      utilisation: share of the peak that the time estimate assumes.
    """

    kind: str
    count: int
    peak_flops: float
    memory: float
    utilisation: float


GB = 1e9
#: Dense bfloat16 FLOP/s and memory of one chip, from the vendors' data sheets.
KINDS = {
    "a100": (312e12, 80 * GB),
    "h100": (989e12, 80 * GB),
    "h200": (989e12, 141 * GB),
    "b200": (2250e12, 180 * GB),
    "v4": (275e12, 32 * GB),
    "v5e": (197e12, 16 * GB),
    "v5p": (459e12, 95 * GB),
    "v6e": (918e12, 32 * GB),
}
#: Names that jax gives to devices, and ours.
_JAX_KINDS = {
    "a100": "a100",
    "h100": "h100",
    "h200": "h200",
    "b200": "b200",
    "tpu v4": "v4",
    "tpu v5 lite": "v5e",
    "tpu v5e": "v5e",
    "tpu v5p": "v5p",
    "tpu v5": "v5p",
    "tpu v6": "v6e",
}
#: FLOP/s of a core over a whole CPU-scale sweep, compilation included: 4.6e12 FLOPs (exact count) of
#: the isoflop experiment took 330 s on two cores of an AMD EPYC.
CPU_CORE_FLOPS = 7e9


class DeviceError(ValueError):
    """A device that is not known; the message is one line."""


def parse_devices(text: str) -> Devices:
    """KIND[:COUNT], such as "h100:8" or "cpu:2"."""
    match = re.fullmatch(r"([a-z0-9]+)(?::([1-9][0-9]*))?", text.lower())
    kinds = ["cpu", *KINDS]
    if not match or match[1] not in kinds:
        raise DeviceError(
            f"--device must be KIND[:COUNT] with KIND one of {', '.join(kinds)}, not {text!r}"
        )
    return _devices(match[1], int(match[2] or 1))


def local_devices() -> Devices:
    """The devices of this process."""
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return _devices("cpu", len(devices))
    name = devices[0].device_kind.lower()
    kind = next((ours for jax_name, ours in _JAX_KINDS.items() if jax_name in name), None)
    found = _devices(kind or "a100", len(devices))
    memory = (devices[0].memory_stats() or {}).get("bytes_limit", found.memory)
    return Devices(kind or name, found.count, found.peak_flops, memory, found.utilisation)


def _devices(kind: str, count: int) -> Devices:
    if kind == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / count
        return Devices("cpu", count, CPU_CORE_FLOPS, memory, 1.0)
    peak, memory = KINDS[kind]
    return Devices(kind, count, peak, memory, 0.3)
