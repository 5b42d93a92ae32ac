"""The mesh: axes run (independent runs), data (batch, FSDP) and model (tensor parallel)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh

AXES = ("run", "data", "model")


class MeshError(ValueError):
    """A mesh that does not fit the devices; the message is one line."""


def make_mesh(
    run: int = 1, data: int = 1, model: int = 1, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """A mesh of shape (run, data, model) over exactly run * data * model devices.

    On a TPU the axes follow the physical topology where they can; `mesh_utils` refuses shapes that
    are not products of the physical axes, and then the devices are taken in order.

    Raises:
      MeshError: when the shape does not use every device.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = (run, data, model)
    if min(shape) < 1 or math.prod(shape) != len(devices):
        raise MeshError(
            f"a mesh of {run} x {data} x {model} (run x data x model) needs "
            f"{math.prod(shape)} devices, but there are {len(devices)}"
        )
    if devices[0].platform == "tpu":
        try:
            return Mesh(mesh_utils.create_device_mesh(shape, devices=devices), AXES)
        except NotImplementedError:
            pass
    return Mesh(np.array(devices).reshape(shape), AXES)
