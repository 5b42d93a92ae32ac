"""What the compiler says of a pack's train program, and the roofline of its step."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from lmscale.planner.devices import Devices
from lmscale.planner.packs import Pack
from lmscale.planner.roofline import Roofline, executed_flops

#: Attribute -> its name in JSON (`lmscale plan --json`), where users know it by another.
_JSON_NAMES = {"peak_bytes": "needs", "hbm_bytes": "touched"}


@dataclass(frozen=True)
class Compiled:
    """One compiled train program.

    Attributes:
      peak_bytes: most bytes on each device at a time, with arguments and the program itself. Where the
        compiler gave up, what it said it needs.
      arguments: the arguments' part of these bytes; None where the compiler gave up.
      tokens: the part of these bytes that training tokens take, where they lie on the devices.
      hbm_bytes: bytes that a step reads and writes in a device's memory, see `lmscale.planner.hlo`.
      sent: bytes that a step sends from a device, by kind of collective.
      network: the part of these bytes that leaves its host or slice.
      largest: the collectives that send most: (kind, result, times, bytes, operation).
      seconds, cpu_seconds: that the compiler took.
      error: what it said where it gave up for another reason than memory.
      unknown: instructions that could not be read, which the numbers of a step leave out.
      kernels: that a step launches on each device.
    """

    peak_bytes: float
    arguments: float | None
    tokens: float
    hbm_bytes: float
    sent: dict[str, float]
    network: float
    largest: tuple[tuple[str, str, int, float, str], ...]
    seconds: float
    cpu_seconds: float
    error: str | None = None
    unknown: tuple[str, ...] = ()
    kernels: int = 0

    def fits(self, devices: Devices) -> bool:
        """Whether the program was compiled and fits a device's memory."""
        return self.error is None and self.peak_bytes <= devices.memory

    def to_json(self) -> dict[str, Any]:
        """The values by their names in JSON."""
        return {_JSON_NAMES.get(k, k): v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Compiled:
        """The inverse of `to_json`.

        Raises:
          KeyError, TypeError: when a value is missing, or there is one too many.
        """
        ours = {name: ours for ours, name in _JSON_NAMES.items()}
        fields = {ours.get(name, name): value for name, value in values.items()}
        largest, unknown = tuple(map(tuple, fields["largest"])), tuple(fields.get("unknown", ()))
        return cls(**{**fields, "largest": largest, "unknown": unknown})


#: What is known when nothing was compiled.
NOTHING = Compiled(math.inf, None, 0.0, 0.0, {}, 0.0, (), 0.0, 0.0)


def roofline(pack: Pack, devices: Devices, compiled: Compiled) -> Roofline:
    """The roofline of a step of all slots of a pack: each resource at its peak.

    Raises:
      ValueError: for devices whose memory's bandwidth is not known, such as a CPU's.
    """
    if devices.bandwidth is None:
        raise ValueError(f"no roofline for {devices.kind}: its memory's bandwidth is not known")
    spec = pack.runs[0].spec
    n_devices = math.prod(pack.mesh)
    inside = sum(compiled.sent.values()) - compiled.network
    flops = executed_flops(spec, pack.step_config, devices.platform)
    work = flops * pack.n_slots / n_devices
    return Roofline(
        compute=work / devices.peak_flops,
        memory=compiled.hbm_bytes / devices.bandwidth,
        links=inside / devices.link + compiled.network / devices.network,
        launch=compiled.kernels * devices.launch,
    )


def roofline_hours(pack: Pack, devices: Devices, compiled: Compiled) -> float:
    """Hours that all runs of a pack take at least."""
    steps = sum(run.spec.own_steps for run in pack.runs)
    return roofline(pack, devices, compiled).step * steps / pack.n_slots / 3600
