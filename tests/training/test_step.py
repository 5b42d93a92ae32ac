"""A packed run equals the same run alone, whatever the pack, the mesh and the micro-batches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lmscale.data import n_sequences, sequence_order
from lmscale.data.loader import batch_indices, gather
from lmscale.parallel.mesh import make_mesh
from lmscale.training.program import build_program, device_bytes, train_arguments
from lmscale.training.state import ProgramKey, packed_hyperparameters
from tests.built_programs import build_once
from tests.training.specs import LSTM, TRANSFORMER, run_spec

#: Relative difference in loss that a pack or a mesh may make, by the order of float32 sums.
TOLERANCE = 2e-5
STEPS = 6
MODELS = pytest.mark.parametrize("model", [TRANSFORMER, LSTM], ids=["transformer", "lstm"])
#: For tests of what both share: one of them in the fast suite.
ONE_QUICK = pytest.mark.parametrize(
    "model", [TRANSFORMER, pytest.param(LSTM, marks=pytest.mark.slow)], ids=["transformer", "lstm"]
)


def train(specs, *, active=None, **options):
    """Losses [STEPS, R], the final state of a pack, not to be changed, and its program.

    The tokens follow from a formula. What was trained before is not trained again.
    """
    active = (True,) * (options.get("n_slots") or len(specs)) if active is None else tuple(active)
    return _trained(jax.jit, tuple(specs), active=active, **options)


@functools.lru_cache(maxsize=32)
def _trained(
    made_by,
    specs,
    *,
    active,
    mesh=(1, 1, 1),
    n_slots=None,
    micro_batch=None,
    windows=False,
    chunk=STEPS,
    **execution,
):
    tokens = (np.arange(4001) ** 2 % 97).astype(np.uint16)
    n_slots = n_slots or len(specs)
    devices = jax.devices()[: int(np.prod(mesh))]
    program = build_once(
        ProgramKey.of(specs[0]),
        n_slots=n_slots,
        mesh=make_mesh(*mesh, devices=devices),
        chunk_steps=chunk,
        micro_batch=micro_batch,
        **execution,
    )
    hyper = packed_hyperparameters(specs)
    # Initial values depend on nothing else, so that programs that differ in the rest share the start.
    model = dataclasses.replace(specs[0].model, dropout=0.0)
    initial = build_once(
        ProgramKey.of(dataclasses.replace(specs[0], model=model)),
        n_slots=n_slots,
        mesh=program.mesh,
        chunk_steps=STEPS,
        unroll=execution.get("unroll", False),
    )
    state = initial.reset(initial.empty(), hyper["seed"], np.ones(n_slots, bool))
    n_ctx = specs[0].model.n_ctx
    orders = [sequence_order(n_sequences(len(tokens), n_ctx), s.batch_size, s.seed) for s in specs]
    losses = []
    for start in range(0, STEPS, chunk):
        indices = np.stack([batch_indices(o, start, chunk) for o in orders], axis=1)
        if windows:
            data = {"windows": gather(tokens, indices, n_ctx)}
        else:
            whole = NamedSharding(program.mesh, PartitionSpec())
            data = {"corpus": jax.device_put(tokens, whole), "indices": indices}
        state, metrics = program.train(state, hyper, data, np.int32(chunk), np.array(active))
        losses.append(np.asarray(metrics["loss"]))
    return np.concatenate(losses), jax.device_get(state), program


def different_specs(model, n=4):
    """Runs that share a program and nothing else."""
    names = ("cosine", "linear", "constant", "cooldown")
    return [
        run_spec(
            model=model,
            seed=i,
            optimizer={"peak_lr": 3e-3 * (i + 1), "beta2": 0.9 + 0.02 * i, "weight_decay": 0.1 * i},
            schedule={"name": names[i % 4], "warmup_steps": i + 1},
        )
        for i in range(n)
    ]


@ONE_QUICK
def test_a_packed_run_equals_the_run_alone(model):
    specs, together = different_specs(model), train(different_specs(model))[0]
    for i, spec in enumerate(specs):
        alone, _, _ = train([spec])
        np.testing.assert_allclose(together[:, i], alone[:, 0], rtol=TOLERANCE)
    # The runs do differ, so that the comparison means something.
    assert np.ptp(together[-1]) > 100 * TOLERANCE


# One mesh that splits every axis is tried at once; what fails there is found axis by axis.
SLOW_MESHES = [
    pytest.param(*pair, marks=pytest.mark.slow)
    for pair in (
        *((TRANSFORMER, mesh) for mesh in ((4, 1, 1), (1, 4, 1), (1, 1, 4), (1, 4, 2))),
        *((LSTM, mesh) for mesh in ((2, 2, 2), (4, 1, 1), (1, 4, 1), (1, 1, 4))),
    )
]


@pytest.mark.parametrize(
    ("model", "mesh"),
    [(TRANSFORMER, (2, 2, 2)), *SLOW_MESHES],
    ids=lambda value: getattr(
        value, "kind", "x".join(map(str, value)) if isinstance(value, tuple) else ""
    ),
)
def test_every_mesh_gives_the_losses_of_one_device(model, mesh):
    got, _, _ = train(different_specs(model), mesh=mesh)
    np.testing.assert_allclose(got, train(different_specs(model))[0], rtol=TOLERANCE)


@pytest.mark.slow
@MODELS
def test_adafactors_moments_are_of_one_form_on_every_mesh(model):
    """The losses of one device; a checkpoint of one mesh goes on on another and in another pack."""
    specs = [
        dataclasses.replace(s, optimizer=dataclasses.replace(s.optimizer, name="adafactor"))
        for s in different_specs(model)
    ]
    expected, state, program = train(specs, unroll=True)
    got, _, other = train(specs, mesh=(2, 2, 2))
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE)
    assert jax.tree.structure(program.abstract_run) == jax.tree.structure(other.abstract_run)
    one = jax.device_get(program.take(jax.device_put(state), np.int32(1)))
    moved = jax.device_get(other.take(other.put(other.empty(), np.int32(3), one), np.int32(3)))
    jax.tree.map(np.testing.assert_array_equal, moved, one)


def test_large_matrices_are_really_split():
    _, _, program = train(different_specs(TRANSFORMER), mesh=(2, 2, 2))
    state = program.empty()
    kernel = state["params"]["blocks"]["feed_forward"]["up"]["kernel"]
    assert kernel.shape == (4, 2, 32, 128)
    assert kernel.addressable_shards[0].data.shape == (2, 2, 16, 64)
    moment = jax.tree.leaves(state["opt"])[1]
    assert moment.addressable_shards[0].data.size < moment.size


@ONE_QUICK
def test_accumulation_changes_only_rounding(model):
    specs = different_specs(model)
    expected, _, _ = train(specs)
    got, _, _ = train(specs, micro_batch=2)
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE)


@pytest.mark.parametrize(
    ("model", "execution"),
    [
        (TRANSFORMER, {"logit_pieces": 4}),
        pytest.param(LSTM, {"logit_pieces": 4}, marks=pytest.mark.slow),
        pytest.param(
            dataclasses.replace(TRANSFORMER, dropout=0.1), {"remat": True}, marks=pytest.mark.slow
        ),
    ],
    ids=["transformer-pieces", "lstm-pieces", "remat"],
)
def test_what_saves_memory_changes_only_rounding(model, execution):
    specs = different_specs(model)
    expected, state, program = train(specs)
    got, _, saving = train(specs, **execution)
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE)
    windows = np.arange(program.eval_batch * 17).reshape(1, -1, 17).astype(np.int32) % 300
    weights = np.ones((1, program.eval_batch), np.float32)
    plain, saved = (
        np.asarray(p.evaluate(jax.device_put(state), windows, weights)[0])
        for p in (program, saving)
    )
    np.testing.assert_allclose(saved, plain, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "execution"),
    [({"vocab_size": 4000}, {"logit_pieces": 16}), ({"n_layer": 8}, {"remat": True})],
    ids=["logits", "layers"],
)
@pytest.mark.slow
def test_what_saves_memory_does(shape, execution):
    model = dataclasses.replace(TRANSFORMER, **shape)

    def memory(**execution) -> float:
        program = build_program(
            ProgramKey.of(run_spec(model=model, batch_size=32)),
            n_slots=1,
            mesh=make_mesh(devices=jax.devices()[:1]),
            chunk_steps=1,
            **execution,
        )
        hyper = packed_hyperparameters([run_spec(model=model)])
        data = {"windows": np.zeros((1, 1, 32, 17), np.int32)}
        arguments = (program.empty(), hyper, data, np.int32(1), np.ones(1, bool))
        return device_bytes(program.lower_train(*arguments).compile())

    assert memory(**execution) < 0.75 * memory()


@pytest.mark.parametrize(
    ("model", "micro_batch"), [(TRANSFORMER, 4), (LSTM, 32)], ids=["transformer", "lstm"]
)
@pytest.mark.slow
def test_evaluation_and_checkpoints_need_no_more_memory_than_training(
    model, micro_batch, monkeypatch
):
    programs, plain = {}, jax.jit

    def jit(function, **options):
        programs[function.__name__] = plain(function, **options)
        return programs[function.__name__]

    monkeypatch.setattr(jax, "jit", jit)
    spec = run_spec(model=model, batch_size=32)
    program = build_program(
        ProgramKey.of(spec),
        n_slots=2,
        mesh=make_mesh(devices=jax.devices()[:1]),
        chunk_steps=1,
        micro_batch=micro_batch,
    )
    windows = jax.ShapeDtypeStruct((1, program.eval_batch, 17), np.int32)
    weights = jax.ShapeDtypeStruct((1, program.eval_batch), np.float32)
    state = program.abstract_pack
    training = program.lower_train(*train_arguments(program, spec, None)).compile()
    evaluation = programs["evaluate"].lower(state, windows, weights).compile()
    taking = programs["take"].lower(state, jax.ShapeDtypeStruct((), np.int32)).compile()
    assert device_bytes(evaluation) < device_bytes(training)
    assert device_bytes(taking) < device_bytes(training)


def test_windows_and_indices_are_the_same_batches():
    specs = different_specs(TRANSFORMER)
    on_device, _, _ = train(specs)
    from_host, _, _ = train(specs, windows=True)
    np.testing.assert_array_equal(on_device, from_host)


def test_dispatches_of_any_length_are_bit_identical():
    specs = different_specs(TRANSFORMER)
    one, state_one, _ = train(specs, chunk=6)
    three, state_three, _ = train(specs, chunk=2)
    np.testing.assert_array_equal(one, three)
    jax.tree.map(np.testing.assert_array_equal, state_one, state_three)


def test_an_idle_slot_keeps_its_state_and_a_nan_stays_where_it_is():
    specs = different_specs(TRANSFORMER)
    specs[1] = run_spec(seed=1, optimizer={"peak_lr": 1e30}, schedule={"warmup_steps": 0})
    losses, state, _ = train(specs, active=[True, True, False, True])
    assert not np.isfinite(losses[-1, 1])
    alone, _, _ = train([specs[0]])
    np.testing.assert_allclose(losses[:, 0], alone[:, 0], rtol=TOLERANCE)
    assert list(state["step"]) == [STEPS, STEPS, 0, STEPS]
    assert np.isfinite(state["params"]["embed"]["embedding"][2]).all()


@pytest.mark.slow
def test_dropout_depends_on_seed_and_step_alone():
    model = dataclasses.replace(TRANSFORMER, dropout=0.5)
    specs = [run_spec(model=model, seed=s) for s in (0, 0, 1)]
    losses, _, _ = train(specs)
    np.testing.assert_array_equal(losses[:, 0], losses[:, 1])
    assert (losses[:, 0] != losses[:, 2]).all()
    without, _, _ = train([run_spec(seed=0)])
    assert abs(losses[0, 0] - without[0, 0]) > 1e-4


def test_taking_and_putting_a_run_is_exact_on_any_mesh():
    specs = different_specs(TRANSFORMER)
    _, state, program = train(specs)
    one = jax.device_get(program.take(jax.device_put(state), np.int32(2)))

    def numbers(run):
        # On one device of a CPU the moments are one vector in a pack, in the same order.
        return np.concatenate([np.ravel(x) for x in jax.tree.leaves(run)])

    np.testing.assert_array_equal(numbers(jax.tree.map(lambda x: x[2], state)), numbers(one))
    other = build_program(program.key, n_slots=2, mesh=make_mesh(2, 2, 2), chunk_steps=1)
    moved = other.put(other.empty(), np.int32(1), one)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b), jax.device_get(moved), one)
    back = program.put(program.empty(), np.int32(0), jax.device_get(other.take(moved, np.int32(1))))
    again = jax.device_get(program.take(back, np.int32(0)))
    jax.tree.map(np.testing.assert_array_equal, again, one)


@ONE_QUICK
@pytest.mark.slow
def test_unrolled_layers_change_only_rounding_and_what_is_saved_not_at_all(model):
    specs = different_specs(model)
    expected, state, looped = train(specs)
    got, other, unrolled = train(specs, unroll=True)
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE)
    # In the pack the layers are apart, in a checkpoint they are stacked.
    assert jax.tree.structure(other) != jax.tree.structure(state)
    one, same = (
        jax.device_get(program.take(jax.device_put(x), np.int32(1)))
        for program, x in ((looped, state), (unrolled, other))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), one, same)
    moved = unrolled.put(unrolled.empty(), np.int32(0), one)
    back = jax.device_get(unrolled.take(moved, np.int32(0)))
    jax.tree.map(np.testing.assert_array_equal, back, one)


def test_evaluation_ignores_padding_and_reports_by_position_and_window():
    _, state, program = train(different_specs(TRANSFORMER))
    rng = np.random.default_rng(0)
    windows = rng.integers(0, 300, (2, program.eval_batch, 17)).astype(np.int32)
    weights = np.zeros((2, program.eval_batch), np.float32)
    weights[0, :2] = 1
    got, by_window = map(np.asarray, program.evaluate(jax.device_put(state), windows, weights))
    assert got.shape == (4, 16)
    assert by_window.shape == (4, 2, program.eval_batch)
    # The windows that count have the same mean as the positions, in each run.
    np.testing.assert_allclose(by_window[:, 0, :2].mean(axis=1), got.mean(axis=1), rtol=1e-5)
    twice = np.concatenate([windows[:1, :2]] * 2, axis=1)
    padded = np.zeros((1, program.eval_batch, 17), np.int32)
    padded[0, :4] = twice[0]
    again_weights = np.zeros((1, program.eval_batch), np.float32)
    again_weights[0, :4] = 1
    again, of_windows = map(
        np.asarray, program.evaluate(jax.device_put(state), padded, again_weights)
    )
    np.testing.assert_allclose(got, again, rtol=1e-5)
    np.testing.assert_allclose(of_windows[:, 0, :2], of_windows[:, 0, 2:4], rtol=1e-5)
    assert jnp.ptp(got) > 0


def test_a_micro_batch_must_divide_the_batch():
    with pytest.raises(ValueError, match="micro_batch 3 must divide batch_size 4"):
        build_program(
            ProgramKey.of(run_spec()),
            n_slots=1,
            mesh=make_mesh(devices=jax.devices()[:1]),
            chunk_steps=1,
            micro_batch=3,
        )
