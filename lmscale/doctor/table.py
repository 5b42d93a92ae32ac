"""All checks, in the order in which they run and are shown."""

from __future__ import annotations

from lmscale.doctor import kernels, machine, speed, training
from lmscale.doctor.check import Check

CHECKS: tuple[Check, ...] = (
    Check("versions", machine.versions, needed=True),
    Check("extras", machine.extras),
    Check("start", machine.start, needed=True, first=True),
    Check("devices", machine.devices, needed=True),
    Check("memory", machine.memory),
    Check("processes", machine.processes),
    Check("cache", machine.cache),
    Check("output", machine.output, needed=True),
    Check("precision", kernels.precision),
    Check("attention", kernels.attention, needed=True),
    Check("head", kernels.head, needed=True),
    Check("lstm", kernels.lstm, needed=True),
    Check("matmul", speed.matmul),
    Check("bandwidth", speed.bandwidth),
    Check("launch", speed.launch),
    Check("determinism", training.determinism, needed=True, long=True),
    Check("resume", training.resume, needed=True, long=True),
)
