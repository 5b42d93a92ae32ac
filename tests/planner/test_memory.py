"""The memory that a plan predicts, against the compiler's own account of this machine's program.

`tests.architectures.test_contract` has one of every architecture, of two layers.
"""

import jax
import pytest

from lmscale.architectures import LlamaSpec
from lmscale.planner.devices import parse_devices
from lmscale.planner.packs import make_plan
from lmscale.planner.programs import mesh_of, program_of
from lmscale.spec import LSTMSpec, TransformerSpec
from lmscale.sweep.experiment import Run
from lmscale.training.compiler import quick_options
from lmscale.training.program import device_bytes, train_arguments
from tests.training.specs import run_spec


def slow(model):
    return pytest.param(model, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "model",
    [
        slow(TransformerSpec(n_layer=4, d_model=128, n_ctx=128, vocab_size=256)),
        LlamaSpec(n_layer=4, d_model=128, n_head=4, n_kv_head=1, n_ctx=128, vocab_size=256),
        LSTMSpec(n_layer=1, d_hidden=128, d_embed=32, n_ctx=128, vocab_size=256),
        slow(LSTMSpec(n_layer=3, d_hidden=64, d_embed=64, n_ctx=128, vocab_size=1024)),
    ],
    ids=lambda model: model.label,
)
def test_a_plan_predicts_the_memory_of_a_cpus_program(model):
    spec = run_spec(model=model, batch_size=16)
    devices = parse_devices("cpu:1")
    pack = make_plan([Run(spec, {})], devices).packs[0]
    program = program_of(pack, mesh_of(pack, jax.devices()[:1]), "cpu")
    lowered = program.lower_train(*train_arguments(program, spec, None))
    # Machine code that is made quickly needs the same memory within 128 bytes.
    compiled = lowered.compile(compiler_options=quick_options())
    assert pack.memory == pytest.approx(device_bytes(compiled), rel=0.12)
