"""Checkpoints of several runs, saved from several threads."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from lmscale.files import DamagedError
from lmscale.training import checkpoint
from lmscale.training.checkpoint import Checkpoints, OtherVersionError
from lmscale.training.state import ProgramKey, initial_state, single_device_like
from tests.training.specs import run_spec


def test_threads_save_side_by_side(tmp_path):
    """As the workers of a CPU's sweep do. Orbax by itself mixes up their folders."""

    def work(worker: int) -> None:
        state = {name: jnp.full(100, worker) for name in "abcdef"}
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
        )
        for run in range(6):
            checkpoints = Checkpoints(tmp_path / f"{worker}-{run}", "run")
            checkpoints.save(run, state, {"worker": worker})
            restored, extra, checked = checkpoints.restore(run, like)
            checkpoints.close()
            assert extra == {"worker": worker} and checked
            jax.tree.map(np.testing.assert_array_equal, restored, state)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(work, range(3)))


@pytest.mark.slow
def test_factored_moments_are_saved_and_restored(tmp_path):
    spec = run_spec(optimizer={"name": "adafactor"})
    state = initial_state(ProgramKey.of(spec), jnp.int32(3))
    state["opt"] = jax.tree.map(lambda x: jnp.arange(x.size).reshape(x.shape), state["opt"])
    checkpoints = Checkpoints(tmp_path, spec.run_id)
    checkpoints.save(5, state, {})
    restored, *_ = checkpoints.restore(5, single_device_like(spec))
    checkpoints.close()
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)


@pytest.mark.parametrize(
    ("name", "parts", "nodes"),
    [
        ("adam", {"[1].count", "[1].mu", "[1].nu"}, 63),
        ("adamw", {"[1].count", "[1].mu", "[1].nu"}, 63),
        ("adafactor", {"[1].count", "[1].moments"}, 47),
        ("muon", {"[1].inner_states"}, 100),
    ],
)
@pytest.mark.slow
def test_the_state_has_the_structure_of_earlier_versions(name, parts, nodes):
    """A state of other parts cannot be restored from any checkpoint that users have."""
    opt = initial_state(ProgramKey.of(run_spec(optimizer={"name": name})), jnp.int32(0))["opt"]
    leaves = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(opt)]
    assert {re.match(r"(\[\d+\]|\.\w+)*", leaf)[0] for leaf in leaves} == parts
    assert jax.tree.structure(opt).num_nodes == nodes


def test_a_checkpoint_of_other_arrays_is_of_another_version(tmp_path):
    spec = run_spec()
    state = initial_state(ProgramKey.of(spec), jnp.int32(3))
    checkpoints = Checkpoints(tmp_path / "checkpoints", spec.run_id)
    checkpoints.save(5, {**state, "opt": state["opt"][:2]}, {})
    with pytest.raises(OtherVersionError, match="written by another version of lmscale") as caught:
        checkpoints.restore(5, single_device_like(spec))
    checkpoints.close()
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_metadata_that_are_being_written_are_waited_for(tmp_path):
    """Orbax writes them in a thread of its own, so that they are empty for a moment."""
    path = epath.Path(tmp_path / "_CHECKPOINT_METADATA")
    path.write_text("")
    # As Orbax writes it: empty, without handlers, with them.
    first = threading.Timer(0.1, path.write_text, ['{"item_handlers": null, "a": 1}'])
    whole = '{"commit_timestamp_nsecs": 5, "item_handlers": {"state": "x"}, "a": 1}'
    last = threading.Timer(0.3, path.write_text, [whole])
    first.start()
    last.start()
    found = checkpoint._settled(path)
    last.join()
    assert found == checkpoint._size_and_digest(path) and found[0] is None


def test_metadata_that_stay_empty_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_SETTLING", 0.05)
    path = epath.Path(tmp_path / "_CHECKPOINT_METADATA")
    path.write_text("")
    with pytest.raises(DamagedError, match="it is empty"):
        checkpoint._settled(path)


def test_a_reader_leaves_alone_what_its_owner_is_writing(tmp_path):
    """Runs that start from a trunk read its states while the process that trains it writes others."""
    state = {"x": jnp.arange(4.0)}
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )
    owner = Checkpoints(tmp_path / "branches", "run", keep_all=True)
    for step in range(4):
        owner.save(step, state, {})
    owner.close()
    half = tmp_path / "branches" / "9.orbax-checkpoint-tmp"
    (half / "state").mkdir(parents=True)
    reader = Checkpoints(tmp_path / "branches", "run", read_only=True)
    assert reader.restore(1, like)[0]["x"].tolist() == [0, 1, 2, 3]
    reader.close()
    assert (half / "state").is_dir()
    assert sorted(checkpoint.saved_steps(tmp_path / "branches")) == [0, 1, 2, 3]
    # The owner's next process takes it for what a kill has left, by its first save at the latest.
    owner = Checkpoints(tmp_path / "branches", "run", keep_all=True)
    owner.save(5, state, {})
    owner.close()
    assert not half.exists()


def test_a_reader_of_nothing_is_told(tmp_path):
    reader = Checkpoints(tmp_path / "branches", "run", read_only=True)
    with pytest.raises(DamagedError, match="it is missing"):
        reader.restore(1, {})
    reader.close()
    assert not (tmp_path / "branches").exists()
