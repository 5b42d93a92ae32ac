"""The weights of a run, as its newest checkpoint has them: for sampling and exporting."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import jax
import numpy as np

from lmscale.files import DamagedError
from lmscale.spec import SpecError
from lmscale.training.checkpoint import Checkpoints, saved_steps
from lmscale.training.run_folder import RunFolder
from lmscale.training.state import single_device_like

__all__ = ["named_arrays", "trained_state"]


def trained_state(folder: RunFolder, step: int | None = None) -> tuple[int, Any]:
    """The step and the state of a run's checkpoint, on the first device.

    Args:
      folder: the run's.
      step: of the checkpoint, which may be one that is kept for good; the newest if it is not given.

    Raises:
      SpecError: the run has no such checkpoint.
      DamagedError: it is damaged.
      OtherVersionError: another version of lmscale wrote it.
    """
    places = {
        saved: place
        for place in (folder.branches, folder.checkpoints)
        for saved in saved_steps(place)
    }
    if not places:
        raise SpecError(f"{folder.path} has no checkpoint yet")
    chosen = max(places) if step is None else step
    if chosen not in places:
        raise SpecError(
            f"{folder.path} has no checkpoint of step {chosen}, but of {', '.join(map(str, sorted(places)))}"
        )
    try:
        with closing(Checkpoints(places[chosen], folder.run_id, read_only=True)) as checkpoints:
            return chosen, checkpoints.restore(chosen, single_device_like(folder.spec))[0]
    except DamagedError as error:
        # A run that has ended is not looked at again while it has a result.
        remedy = f"delete {folder.path / 'result.json'}, then `lmscale run` trains it again"
        raise DamagedError(error.path, error.fault, remedy) from error


def named_arrays(params: Any) -> dict[str, np.ndarray]:
    """The arrays of a state's `params` by dotted name, such as `blocks.attention.qkv.kernel`."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {
        ".".join(str(key.key) for key in path if hasattr(key, "key")): np.asarray(leaf)
        for path, leaf in leaves
    }
