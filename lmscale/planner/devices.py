"""What is known of a device kind without having one: peak FLOP/s, memory, links."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace

import jax

from lmscale.compat import memory_limit


@dataclass(frozen=True)
class Devices:
    """The accelerators that a plan is for.

    Attributes:
      kind: "cpu", a key of `KINDS`, or JAX's name of a device that is none of these.
      platform: "cpu", "gpu" or "tpu".
      count: how many (for a CPU: cores).
      peak_flops: matrix FLOP/s of one, bfloat16 where it has it.
      memory: bytes of one that a program can use.
      bandwidth: bytes/s of that memory; None for a CPU.
      utilisation: share of the peak that the time estimate assumes.
      link: bytes/s that one sends to the devices that it is linked with.
      linked: how many devices such links join: the GPUs of a host, the chips of a TPU slice.
      network: bytes/s that one sends to other devices.
      launch: seconds that the host takes to launch a kernel on one; 0 where a program runs by itself.
    """

    kind: str
    platform: str
    count: int
    peak_flops: float
    memory: float
    bandwidth: float | None
    utilisation: float
    link: float
    linked: int
    network: float
    launch: float = 0.0

    @property
    def train_together(self) -> bool:
        """Whether each program takes all devices: the chips of a TPU slice that lie in several hosts."""
        return self.platform == "tpu" and self.count > _TPU_HOST.get(self.kind, self.count)


GB, GiB = 1e9, 2**30
#: Platform; of one chip: dense bfloat16 FLOP/s, memory, bandwidth of the memory; of its links (NVLink,
#: inter-chip interconnect): bytes/s in one direction, how many chips they join. From the vendors' data
#: sheets, except a TPU's memory, which is what its compiler leaves to a program.
KINDS = {
    "a100": ("gpu", 312e12, 80 * GB, 2039 * GB, 300 * GB, 8),
    "h100": ("gpu", 989e12, 80 * GB, 3352 * GB, 450 * GB, 8),
    "h200": ("gpu", 989e12, 141 * GB, 4800 * GB, 450 * GB, 8),
    "b200": ("gpu", 2250e12, 180 * GB, 7672 * GB, 900 * GB, 8),
    "v4": ("tpu", 275e12, 30.75 * GiB, 1228 * GB, 300 * GB, 4096),
    "v5e": ("tpu", 197e12, 15.75 * GiB, 819 * GB, 200 * GB, 256),
    "v5p": ("tpu", 459e12, 95.74 * GiB, 2765 * GB, 600 * GB, 8960),
    "v6e": ("tpu", 918e12, 31.25 * GiB, 1638 * GB, 400 * GB, 256),
}
#: Most chips of a TPU's host.
_TPU_HOST = {"v4": 4, "v5e": 8, "v5p": 4, "v6e": 8}
#: Bytes/s of one chip's share of a network between hosts or slices: 200 Gbit/s.
NETWORK = 25 * GB
#: Share of the peak that the time estimate assumes. On GPUs memory and launches are counted beside it, on
#: TPUs they are in it. None of this has been measured on an accelerator.
UTILISATION = {"gpu": 0.4, "tpu": 0.3}
#: Seconds of a launch in a stream of kernels that do not wait for the host. The doctor measures a whole
#: dispatch, which is longer.
LAUNCH_SECONDS = {"gpu": 3e-6, "tpu": 0.0}
#: JAX's names of device kinds -> ours.
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
#: FLOP/s (exact count) of a core that trains models of 10 thousand to a million parameters. Measured
#: with two cores busy on Intel Xeon and AMD EPYC: 28e9 (smallest models) to 65e9 for each core.
CPU_CORE_FLOPS = 40e9


class DeviceError(ValueError):
    """An unknown kind of device; the message is one line."""


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
    """The devices of this process, or of all that train together."""
    devices = jax.devices()
    if devices[0].platform == "cpu":
        return _devices("cpu", len(devices))
    name = devices[0].device_kind.lower()
    kind = next((ours for jax_name, ours in _JAX_KINDS.items() if jax_name in name), None)
    found = _devices(kind or "a100", len(devices))
    memory = memory_limit(jax.local_devices()[0]) or found.memory
    platform = devices[0].platform
    return replace(found, kind=kind or name, platform=platform, memory=memory)


def _devices(kind: str, count: int) -> Devices:
    if kind == "cpu":
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / count
        return Devices("cpu", "cpu", count, CPU_CORE_FLOPS, memory, None, 1.0, 1 * GB, 1, 1 * GB)
    platform, peak, memory, bandwidth, link, linked = KINDS[kind]
    return Devices(
        kind,
        platform,
        count,
        peak,
        memory,
        bandwidth,
        UTILISATION[platform],
        link,
        linked,
        NETWORK,
        LAUNCH_SECONDS[platform],
    )
