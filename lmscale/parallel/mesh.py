"""The mesh: axes run (independent runs), data (batch, FSDP) and model (tensor parallel)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from lmscale.compat import device_mesh, hybrid_device_mesh

AXES = ("run", "data", "model")


class MeshError(ValueError):
    """A mesh that does not fit the devices; the message is one line."""


def make_mesh(
    run: int = 1, data: int = 1, model: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of shape (run, data, model) over exactly run * data * model devices.

    `model` communicates most, `run` not at all. On a TPU the axes follow the physical topology where
    they can. With several slices, which a slower network joins, each slice holds whole `model` axes
    and as much of `data` as it can. JAX refuses shapes that are not products of the physical axes.
    Then, and on other platforms, the devices are taken in order, which is that of the hosts: `model`
    inside a host, then `data`, then `run`.

    Raises:
      MeshError: when the shape does not use every device, or leaves out those of a process.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = (run, data, model)
    if min(shape) < 1 or math.prod(shape) != len(devices):
        raise MeshError(
            f"a mesh of {run} x {data} x {model} (run x data x model) needs "
            f"{math.prod(shape)} devices, but there are {len(devices)}"
        )
    if jax.process_count() > 1 and len(devices) != jax.device_count():
        raise MeshError(
            f"processes that train together use all their {jax.device_count()} devices, but a mesh "
            f"of {run} x {data} x {model} has {len(devices)}"
        )
    if devices[0].platform == "tpu":
        try:
            return Mesh(_tpu_mesh(shape, devices), AXES)
        except (NotImplementedError, ValueError, AssertionError):
            # JAX asserts that the devices fill a box of the slice, which 15 of 16 do not.
            pass
    return Mesh(np.array(devices).reshape(shape), AXES)


def _tpu_mesh(shape: tuple[int, int, int], devices: list[jax.Device]) -> np.ndarray:
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if slices == 1:
        return device_mesh(shape, devices)
    across = across_slices(shape, slices)
    inside = tuple(size // of for size, of in zip(shape, across, strict=True))
    return hybrid_device_mesh(inside, across, devices)


def across_slices(shape: tuple[int, int, int], slices: int) -> tuple[int, int, int]:
    """How many slices each axis spans: `run` as many as it can, `data` the rest, `model` one.

    Raises:
      ValueError: when run and data together cannot be split over the slices.
    """
    run = math.gcd(shape[0], slices)
    if shape[1] % (slices // run):
        raise ValueError(
            f"{shape[0]} x {shape[1]} runs and batch shards do not split over {slices} slices"
        )
    return run, slices // run, 1
