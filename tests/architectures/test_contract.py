"""What every registered architecture keeps to, and one that is a single file of a user's own.

    LMSCALE_OWN_FILE=mine.py pytest tests/architectures/test_contract.py -m "slow or not slow"

holds the architectures of a user's file to it in place of those of lmscale.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lmscale import flops
from lmscale.architectures import ModelSpec, architecture, kinds, register
from lmscale.parallel import partition
from lmscale.parallel.mesh import make_mesh
from lmscale.planner.devices import parse_devices
from lmscale.planner.packs import make_plan
from lmscale.planner.programs import mesh_of, program_of
from lmscale.serialize import SpecError
from lmscale.spec import RunSpec
from lmscale.sweep.experiment import Run
from lmscale.training.check_model import array_shapes, check_model
from lmscale.training.compiler import quick_options
from lmscale.training.program import device_bytes, train_arguments
from lmscale.training.state import ProgramKey, initial_state
from lmscale.user_files import file_of, load_file
from tests.quick_compile import quick_jit as quick
from tests.training.specs import run_spec
from tests.training.test_step import TOLERANCE, different_specs, train

OWN_FILE = os.environ.get("LMSCALE_OWN_FILE")
if OWN_FILE:
    load_file(Path(OWN_FILE))
    KINDS = [kind for kind in kinds() if file_of(architecture(kind)) is not None]
    assert KINDS, f"{OWN_FILE} registers no architecture"
else:
    from tests.architectures import convolution

    KINDS = list(kinds())

SHARED = {"n_ctx": 16, "vocab_size": 304}
each_kind = pytest.mark.parametrize("kind", KINDS)
ROTARY = "transformer, rotary"
each_model = pytest.mark.parametrize("kind", KINDS if OWN_FILE else [*KINDS, ROTARY])
#: For tests that train a few steps.
quickly = pytest.mark.usefixtures("compile_quickly")
of_lmscale = pytest.mark.skipif(bool(OWN_FILE), reason="is about the checks themselves")


def model_of(kind: str, width: int = 32, **fields) -> ModelSpec:
    fields = {**SHARED, **fields}
    if kind == ROTARY:
        model = architecture("transformer").of_shape(2, width, **fields)
        return dataclasses.replace(model, positions="rotary")
    return architecture(kind).of_shape(2, width, **fields)


def masked(model: ModelSpec) -> ModelSpec:
    """The model with documents that the token 1 separates."""
    return dataclasses.replace(model, document_separator=1)


@each_kind
def test_a_spec_survives_json_and_names_its_architecture(kind):
    spec = run_spec(model=model_of(kind))
    again = RunSpec.from_json(spec.to_json())
    assert again == spec
    assert again.hash == spec.hash
    assert spec.model.label.startswith(kind)
    assert "2 layers, " in spec.model.shape and " 32" in spec.model.shape


@each_kind
@pytest.mark.parametrize("tied", [True, False])
def test_every_array_has_a_rule(kind, tied):
    """Each decays or not, and is split or named as replicated; of the layers' axis no rule speaks."""
    try:
        model = dataclasses.replace(model_of(kind), tied_head=tied)
    except SpecError:
        pytest.skip("its head is of one kind")
    for name, shape in array_shapes(model).items():
        (rule, *_) = (rule for rule in model.ARRAYS if re.search(rule.pattern, name))
        assert rule.decays == model.decays(name)
        if rule.axes is None:
            assert math.prod(shape[1:]) <= 64, f"{name} is large and replicated"
        else:
            assert any(
                len(axes) == len(shape) and re.search(pattern, name)
                for pattern, axes in model.partition_rules()
            ), name
        stacked = name.split("/")[0] in model.STACKS
        assert not (stacked and shape[0] not in (model.n_layer, model.n_layer - 1)), name


@each_model
def test_it_is_what_its_class_says(kind):
    """Logits float32 [batch, time, vocab], a rule for each array, no rule in vain, the right number."""
    assert check_model(model_of(kind)) == []


@each_model
def test_no_token_sees_a_later_one(kind):
    model = model_of(kind)
    graphdef, params = quick(lambda: nnx.split(model.module(nnx.Rngs(params=0))))()
    logits = quick(nnx.merge(graphdef, params))
    rng = np.random.default_rng(0)
    tokens = rng.integers(2, model.vocab_size, size=(2, model.n_ctx)).astype(np.int32)
    before = np.asarray(logits(tokens))
    for place in (1, model.n_ctx // 2, model.n_ctx - 1):
        changed = tokens.copy()
        changed[:, place] = (changed[:, place] + 7) % model.vocab_size
        after = np.asarray(logits(changed))
        np.testing.assert_array_equal(after[:, :place], before[:, :place])
        assert np.abs(after[:, place:] - before[:, place:]).max() > 0


def matmul_flops(jaxpr: Any) -> float:
    """FLOPs of the matrix products and convolutions of a program; the bodies of loops count as often as they run."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = parameters["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            inner = math.prod(shape[axis] for axis in contracted)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * inner
        elif name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            features = kernel[parameters["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) / features
        times = parameters["length"] if name == "scan" else 1
        for inside in jax.tree.leaves(
            list(parameters.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(inside, "jaxpr") or hasattr(inside, "eqns"):
                total += times * matmul_flops(getattr(inside, "jaxpr", inside))
    return total


@each_model
def test_the_flops_that_are_counted_are_those_of_its_matrix_products(kind):
    """The rest, element by element, is a small part of the forward pass at this size."""
    model = model_of(kind, 128, n_ctx=64, vocab_size=512)
    graphdef, params = nnx.split(nnx.eval_shape(lambda: model.module(nnx.Rngs(params=0))))
    tokens = jax.ShapeDtypeStruct((2, model.n_ctx), jnp.int32)
    traced = jax.make_jaxpr(lambda params, tokens: nnx.merge(graphdef, params)(tokens))
    found = matmul_flops(traced(params, tokens).jaxpr) / (2 * model.n_ctx)
    operations = model.operations()
    counted = sum(one.forward_flops for one in operations.values())
    assert 0.7 * counted < found < 1.02 * counted
    matmuls = [operations[name] for name in (*model.MATMULS, "head")]
    assert all(one.backward_flops == pytest.approx(2 * one.forward_flops) for one in matmuls)


@each_kind
def test_models_of_two_sizes_differ_in_the_fields_of_their_shape(kind):
    models = [architecture(kind).of_size(size, n_ctx=64, vocab_size=1000) for size in (1e4, 1e7)]
    small, large = ([getattr(m, name) for name in m.SHAPE_FIELDS] for m in models)
    assert small != large


@each_kind
def test_matrices_are_split_over_eight_devices(kind):
    # Wide enough for two heads.
    mesh, model = make_mesh(1, 4, 2), architecture(kind).of_shape(2, 128, **SHARED)
    for name, shape in array_shapes(model).items():
        if name.endswith(("kernel", "embedding")):
            spec = partition.run_spec(name, shape, mesh, model.partition_rules())
            axes = {
                axis for part in spec for axis in (part if isinstance(part, tuple) else (part,))
            }
            assert axes >= {"data", "model"}, name


@each_model
def test_what_is_counted_is_what_is_stored(kind):
    model = model_of(kind)
    stored = sum(math.prod(shape) for shape in array_shapes(model).values())
    assert flops.n_params(model, "exact") == stored
    assert 0 < flops.n_params(model, "kaplan") < stored
    for convention in flops.CONVENTIONS:
        assert flops.training_flops_per_token(model, convention) > 0


@each_kind
@pytest.mark.parametrize("size", [1e4, 1e6, 1e8])
def test_shapes_come_in_every_size(kind, size):
    model = architecture(kind).of_size(size, n_ctx=64, vocab_size=1000)
    assert model.n_non_embedding() == pytest.approx(size, rel=0.25)
    larger = model.scaled(4.0)
    assert larger.n_non_embedding() == pytest.approx(4 * size, rel=0.3)
    rules = architecture(kind).ladders(
        [model, architecture(kind).of_size(4 * size, n_ctx=64, vocab_size=1000)]
    )
    for rule in rules:
        assert isinstance(rule.of_size(1e5), architecture(kind)), rule.name


@pytest.mark.slow
@quickly
@each_model
def test_a_packed_run_equals_the_run_alone(kind):
    specs = different_specs(model_of(kind), n=2)
    together, _, _ = train(specs)
    alone, _, _ = train(specs[1:])
    np.testing.assert_allclose(together[:, 1], alone[:, 0], rtol=TOLERANCE)
    assert np.isfinite(together).all()
    assert np.ptp(together[-1]) > 100 * TOLERANCE


#: Kinds that mask documents from each other.
each_masking_kind = pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if architecture(kind).MASKS_DOCUMENTS]
)


@pytest.mark.slow
@quickly
@each_masking_kind
def test_masked_runs_are_the_same_packed_on_a_mesh_in_pieces_and_alone(kind):
    # A third of the windows of 16 tokens hold the token 1: it is every 48th.
    specs = different_specs(masked(model_of(kind)), n=2)
    together, _, _ = train(specs)
    alone, _, _ = train(specs[1:])
    np.testing.assert_allclose(together[:, 1], alone[:, 0], rtol=TOLERANCE)
    on_a_mesh, _, _ = train(specs, mesh=(2, 2, 2))
    np.testing.assert_allclose(on_a_mesh, together, rtol=TOLERANCE)
    remat = specs[0].model.REMAT
    in_pieces, _, _ = train(specs, unroll=True, remat=remat, micro_batch=2, logit_pieces=2)
    np.testing.assert_allclose(in_pieces, together, rtol=TOLERANCE)
    crossing, _, _ = train(different_specs(model_of(kind), n=2))
    assert np.abs(crossing - together).max() > 100 * TOLERANCE


@pytest.mark.slow
@quickly
@each_model
def test_a_mesh_of_eight_devices_gives_the_losses_of_one(kind):
    specs = different_specs(model_of(kind), n=2)
    expected, _, _ = train(specs)
    got, _, _ = train(specs, mesh=(2, 2, 2))
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE)


@pytest.mark.slow
@quickly
@each_model
def test_layers_apart_recomputed_and_in_pieces_give_the_same_losses(kind):
    model = model_of(kind)
    specs = different_specs(model, n=1)
    expected, _, _ = train(specs)
    got, _, _ = train(specs, unroll=True, remat=model.REMAT, micro_batch=2, logit_pieces=2)
    np.testing.assert_allclose(got, expected, rtol=TOLERANCE)


@pytest.mark.slow
@quickly
@each_model
def test_a_saved_run_goes_on_in_another_pack(kind):
    """What is taken from a slot can be put into a slot of a program of another form."""
    specs = different_specs(model_of(kind), n=2)
    _, state, program = train(specs, unroll=True)
    _, _, other = train(specs * 2)
    one = jax.device_get(program.take(jax.device_put(state), np.int32(1)))
    moved = jax.device_get(other.take(other.put(other.empty(), np.int32(3), one), np.int32(3)))
    jax.tree.map(np.testing.assert_array_equal, moved, one)


@each_model
@pytest.mark.slow
def test_the_plan_foretells_memory(kind):
    """Within an eighth of what the compiler lays out for this CPU; a user's own within a quarter."""
    within = 0.25 if OWN_FILE else 0.12
    check_memory(model_of(kind, 64, n_ctx=128, vocab_size=1024), within)


@pytest.mark.slow
@each_masking_kind
def test_the_plan_foretells_memory_with_masked_documents(kind):
    model = architecture(kind).of_shape(2, 64, n_ctx=128, vocab_size=512)
    check_memory(masked(model), 0.25)


def check_memory(model: ModelSpec, within: float):
    spec = run_spec(model=model, batch_size=16)
    pack = make_plan([Run(spec, {})], parse_devices("cpu:1")).packs[0]
    program = program_of(pack, mesh_of(pack, jax.devices()[:1]), "cpu")
    lowered = program.lower_train(*train_arguments(program, spec, None))
    # Machine code that is made quickly needs the same memory within 128 bytes.
    compiled = lowered.compile(compiler_options=quick_options())
    assert pack.memory == pytest.approx(device_bytes(compiled), rel=within)


@each_kind
@pytest.mark.parametrize("device", ["h100:8", "v5e:16"])
def test_a_large_model_is_planned_for_accelerators(kind, device):
    model = architecture(kind).of_size(1e9, n_ctx=2048, vocab_size=32_768)
    spec = run_spec(model=model, batch_size=64, compute_dtype="bfloat16")
    (pack,) = make_plan([Run(spec, {})], parse_devices(device)).packs
    assert math.prod(pack.mesh) > 1
    assert pack.seconds > 0


@each_kind
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_every_optimizer_has_a_state_for_it(kind, optimizer):
    key = ProgramKey(model_of(kind), optimizer, "float32", 4)
    state = jax.eval_shape(lambda seed: initial_state(key, seed), np.int32(0))
    assert jax.tree.leaves(state["opt"])


@of_lmscale
def test_an_array_without_a_rule_is_named():
    class Forgetful(convolution.ConvolutionSpec):
        ARRAYS = convolution.ConvolutionSpec.ARRAYS[:-1]

    with pytest.raises(SpecError, match=r"Forgetful\.ARRAYS has no rule .* blocks/now/kernel"):
        Forgetful.decays("blocks/now/kernel")


@of_lmscale
def test_an_incomplete_architecture_is_named():
    class Nothing(ModelSpec):
        kind = "nothing"

    with pytest.raises(SpecError, match=r"Nothing lacks .*module, .*operations"):
        register(Nothing)
    assert "nothing" not in kinds()


@of_lmscale
def test_two_architectures_of_one_kind_are_refused():
    class Other(convolution.ConvolutionSpec):
        pass

    with pytest.raises(SpecError, match="Other and ConvolutionSpec are both of the kind"):
        register(Other)
