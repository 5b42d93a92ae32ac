"""The weights of a run, as its newest checkpoint has them: for sampling and exporting."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from lmscale.files import DamagedError
from lmscale.spec import SpecError
from lmscale.training.checkpoint import Checkpoints, saved_steps
from lmscale.training.run_folder import RunFolder
from lmscale.training.state import single_device_like

__all__ = ["named_arrays", "trained_state"]


def trained_state(folder: RunFolder) -> tuple[int, Any]:
    """The step and the state of a run's newest checkpoint, on the first device.

    Raises:
      SpecError: the run has no checkpoint.
      DamagedError: its newest one is damaged.
    """
    steps = saved_steps(folder.checkpoints)
    if not steps:
        raise SpecError(f"{folder.path} has no checkpoint yet")
    checkpoints = Checkpoints(folder.checkpoints, folder.run_id, read_only=True)
    try:
        return max(steps), checkpoints.restore(max(steps), single_device_like(folder.spec))[0]
    except DamagedError as error:
        # A run that has ended is not looked at again while it has a result.
        remedy = (
            f"delete {folder.path / 'result.json'}, then `lmscale run` trains its last part again"
        )
        raise DamagedError(error.path, error.fault, remedy) from error
    finally:
        checkpoints.close()


def named_arrays(params: Any) -> dict[str, np.ndarray]:
    """The arrays of a state's `params` by dotted name, such as `blocks.attention.qkv.kernel`."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {
        ".".join(str(key.key) for key in path if hasattr(key, "key")): np.asarray(leaf)
        for path, leaf in leaves
    }
