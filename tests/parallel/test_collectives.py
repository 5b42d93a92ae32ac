"""What the devices of a train step send each other, read from the compiled program."""

import math
import re
from dataclasses import dataclass

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from lmscale.parallel.mesh import make_mesh
from lmscale.parallel.partition import path_name, run_spec
from lmscale.spec import LSTMSpec, TransformerSpec
from lmscale.training.compiler import quick_options
from lmscale.training.program import build_program
from lmscale.training.state import ProgramKey, packed_hyperparameters
from tests.training.specs import run_spec as a_run

pytestmark = pytest.mark.slow

BATCH, N_CTX, VOCAB = 8, 32, 264
# Dimensions that differ from each other, so that a shape tells what an array is.
MODELS = {
    "transformer": TransformerSpec(
        n_layer=3, d_model=40, n_head=4, d_ff=144, n_ctx=N_CTX, vocab_size=VOCAB, tied_head=False
    ),
    "transformer-tied": TransformerSpec(
        n_layer=3, d_model=40, n_head=4, d_ff=144, n_ctx=N_CTX, vocab_size=VOCAB, dropout=0.0
    ),
    "lstm": LSTMSpec(
        n_layer=3, d_hidden=56, d_embed=40, n_ctx=N_CTX, vocab_size=VOCAB, tied_head=False
    ),
}
#: The largest vector that a token has between layers.
WIDTHS = {"transformer": 40, "transformer-tied": 40, "lstm": 56}

_COLLECTIVE = re.compile(
    r" = (?P<result>.+?) (?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|"
    r"collective-permute|collective-broadcast|ragged-all-to-all)(?:-start)?\("
)


@dataclass(frozen=True)
class Sent:
    """One array that a collective makes on every device."""

    kind: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def dimensions(self) -> tuple[int, ...]:
        """Those that are not 1, whatever their order."""
        return tuple(sorted(size for size in self.shape if size > 1))


def collectives(text: str) -> list[Sent]:
    """The results of all collectives in a program's HLO."""
    found = []
    for match in _COLLECTIVE.finditer(text):
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", match["result"]):
            found.append(
                Sent(match["kind"], dtype, tuple(map(int, filter(None, shape.split(",")))))
            )
    return found


def compiled_step(model, mesh):
    """The compiled train program of a pack with one run for each part of the run axis, and its pack."""
    n_slots, spec = mesh[0], a_run(model=model, batch_size=BATCH)
    program = build_program(
        ProgramKey.of(spec), n_slots=n_slots, mesh=make_mesh(*mesh), chunk_steps=2
    )
    hyper = packed_hyperparameters([spec] * n_slots)
    data = {
        "corpus": np.zeros(1000, np.uint16),
        "indices": np.zeros((2, n_slots, BATCH), np.int32),
    }
    arguments = (program.empty(), hyper, data, np.int32(1), np.ones(n_slots, bool))
    return program.lower_train(*arguments).compile(quick_options()), program


def parameters(program) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_flatten_with_path(program.abstract_run["params"])[0]
    return {path_name(path): leaf.shape for path, leaf in leaves}


@pytest.fixture(scope="module", params=MODELS)
def step(request):
    """A step on 4 x 2 devices: its model's name, the compiled program, the pack's program."""
    return request.param, *compiled_step(MODELS[request.param], (1, 4, 2))


def test_every_matrix_is_held_as_the_rules_say(step):
    _, compiled, program = step
    for shardings in (compiled.input_shardings[0][0], compiled.output_shardings[0]):
        leaves = jax.tree_util.tree_flatten_with_path(shardings["params"])[0]
        for (path, sharding), shape in zip(leaves, parameters(program).values(), strict=True):
            path = path_name(path)
            expected = NamedSharding(
                program.mesh,
                P("run", *run_spec(path, shape, program.mesh, program.key.model.partition_rules())),
            )
            assert sharding.is_equivalent_to(expected, 1 + len(shape)), path
            pieces = math.prod(shape) // math.prod(sharding.shard_shape((1, *shape)))
            if path.endswith(("kernel", "embedding")):
                assert pieces == 8, path


def test_weights_are_gathered_where_they_are_used(step):
    name, compiled, program = step
    gathered = {
        sent.dimensions for sent in collectives(compiled.as_text()) if sent.kind == "all-gather"
    }
    rules = program.key.model.partition_rules()
    for path, shape in parameters(program).items():
        rule = next((axes for pattern, axes in rules if re.search(pattern, path)), ())
        if "data" not in rule or (path == "embed/embedding" and "tied" not in name):
            continue
        # Split over `model` still; of stacked layers one.
        local = [
            size // 2 if axis == "model" else size for size, axis in zip(shape, rule, strict=True)
        ]
        local = local[1:] if path.startswith(("blocks", "rest")) else local
        assert tuple(sorted(size for size in local if size > 1)) in gathered, path


def test_what_else_is_sent_is_a_gradient_or_some_vectors_a_token(step):
    """Neither logits, nor attention scores, nor gates or inner layers, nor all of a batch."""
    name, compiled, program = step
    shapes = parameters(program).values()
    # Of all layers or of one, whole or split over `model` or `data`.
    weights = {
        math.prod(part) // n for shape in shapes for part in (shape, shape[1:]) for n in (1, 2, 4)
    }
    vectors = BATCH // 4 * N_CTX * WIDTHS[name]
    for sent in collectives(compiled.as_text()):
        assert math.prod(sent.shape) <= vectors or math.prod(sent.shape) in weights, sent


@pytest.mark.parametrize("name", MODELS)
def test_runs_side_by_side_send_nothing(name):
    compiled, _ = compiled_step(MODELS[name], (8, 1, 1))
    assert collectives(compiled.as_text()) == []
