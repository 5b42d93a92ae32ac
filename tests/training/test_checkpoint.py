"""Checkpoints of several runs, saved from several threads."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from lmscale.training.checkpoint import Checkpoints


def test_threads_save_side_by_side(tmp_path):
    """As the teams of a CPU's sweep do. Orbax by itself mixes up their folders."""

    def work(team: int) -> None:
        state = {name: jnp.full(100, team) for name in "abcdef"}
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        for run in range(6):
            checkpoints = Checkpoints(tmp_path / f"{team}-{run}")
            checkpoints.save(run, state, {"team": team})
            restored, extra = checkpoints.restore(run, like)
            checkpoints.close()
            assert extra == {"team": team}
            jax.tree.map(np.testing.assert_array_equal, restored, state)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))
