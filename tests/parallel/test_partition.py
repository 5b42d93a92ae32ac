import dataclasses
import re

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from lmscale.parallel import mesh
from lmscale.parallel.mesh import MeshError, across_slices, make_mesh
from lmscale.parallel.partition import path_name, run_shardings, run_spec
from lmscale.training.state import ProgramKey, initial_state
from tests.training.specs import LSTM, TRANSFORMER

RULES = TRANSFORMER.partition_rules()


def test_a_mesh_uses_every_device():
    assert dict(make_mesh(2, 2, 2).shape) == {"run": 2, "data": 2, "model": 2}
    with pytest.raises(MeshError, match="needs 6 devices, but there are 8"):
        make_mesh(3, 2, 1)


@pytest.mark.parametrize(
    ("shape", "slices", "across"),
    [
        ((8, 4, 1), 2, (2, 1, 1)),
        ((1, 16, 4), 4, (1, 4, 1)),
        ((2, 8, 4), 4, (2, 2, 1)),
        ((3, 8, 1), 2, (1, 2, 1)),
    ],
)
def test_slices_are_joined_by_runs_then_by_batches_never_by_layers(shape, slices, across):
    assert across_slices(shape, slices) == across


def test_layers_cannot_be_split_over_slices():
    with pytest.raises(ValueError, match="do not split over 4 slices"):
        across_slices((1, 2, 8), 4)


def test_a_dimension_that_the_axis_does_not_divide_stays_whole():
    mesh = make_mesh(1, 4, 2)
    assert run_spec("embed/embedding", (512, 64), mesh, RULES) == P("model", "data")
    assert run_spec("embed/embedding", (511, 64), mesh, RULES) == P(None, "data")
    assert run_spec("no/such/parameter", (512, 64), mesh, RULES) == P()


def test_data_takes_another_dimension_where_it_does_not_divide_its_own():
    mesh = make_mesh(1, 4, 2)
    assert run_spec("up/kernel", (3, 50, 200), mesh, RULES) == P(None, None, ("model", "data"))
    assert run_spec("up/kernel", (4, 50, 201), mesh, RULES) == P(None, None, None)
    assert run_spec("embed/embedding", (512, 50), mesh, RULES) == P(("model", "data"), None)


@pytest.mark.parametrize("model", [TRANSFORMER, LSTM], ids=["transformer", "lstm"])
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_every_matrix_and_its_moments_are_split(model, optimizer):
    mesh = make_mesh(1, 2, 4)
    key = ProgramKey(model, optimizer, "float32", 4)
    state = jax.eval_shape(lambda seed: initial_state(key, seed), np.int32(0))
    shardings = run_shardings(state, mesh, model.partition_rules(), packed=True)
    for (path, _leaf), sharding in zip(
        jax.tree_util.tree_flatten_with_path(state)[0], jax.tree.leaves(shardings), strict=True
    ):
        name = path_name(path)
        assert sharding.spec[0] == "run"
        is_matrix = name.rsplit("/", 1)[-1] in ("embedding", "kernel", "input_kernel")
        if is_matrix and (name.startswith("params") or optimizer == "adamw"):
            assert any(sharding.spec[1:]), name


@pytest.mark.parametrize("model", [TRANSFORMER, LSTM], ids=["transformer", "lstm"])
def test_every_rule_is_of_use(model):
    """Each pattern matches a parameter of the model, or the table has a dead line."""
    names = set()
    for tied in (True, False):
        key = ProgramKey(dataclasses.replace(model, tied_head=tied), "adamw", "float32", 4)
        state = jax.eval_shape(lambda seed, key=key: initial_state(key, seed), np.int32(0))
        leaves = jax.tree_util.tree_flatten_with_path(state["params"])[0]
        names |= {path_name(path) for path, _ in leaves}
    for rule in model.ARRAYS:
        assert any(re.search(rule.pattern, name) for name in names), rule.pattern


@pytest.mark.parametrize("error", [AssertionError, NotImplementedError, ValueError])
def test_chips_that_fill_no_box_of_a_slice_are_taken_in_order(monkeypatch, error):
    """JAX asserts that they do: seven runs on a slice of eight chips ended with an AssertionError."""

    def refuse(shape, devices):
        raise error("dims=(4, 2, 1)")

    class Chip:
        platform, slice_index, process_index = "tpu", 0, 0

        def __init__(self, number):
            self.id = number

    monkeypatch.setattr(mesh, "device_mesh", refuse)
    chips = [Chip(number) for number in range(7)]
    assert list(make_mesh(7, 1, 1, devices=chips).devices.flat) == chips
