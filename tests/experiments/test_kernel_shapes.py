"""Every pack of every experiment at scales gpu and paper can start on a GPU, by jax's own checks."""

import types

import jax
import jax.numpy as jnp
import pytest
from lmscale_experiments import transfer

from lmscale.models.attention import padded_width, splash_takes
from lmscale.planner.devices import parse_devices
from lmscale.planner.step_config import choose_attention
from lmscale.sweep.experiment import experiment_names, load_scales
from tests.experiments.fake_corpus import of_tokens

checks = pytest.importorskip("jax._src.cudnn.fused_attention_stablehlo")

#: Training tokens of a corpus that is enough for each scale.
TOKENS = {"gpu": 200_000_000, "paper": 10**12}


def cases():
    for name in experiment_names():
        scales = load_scales(name)[2]
        yield from ((name, scale) for scale in TOKENS if scale in scales)


def refused_by_jax(model, compute_dtype):
    """What jax's kernel says of a model's attention, or None."""
    shape = (2, model.n_ctx, 2, padded_width(model.attention_width))
    query = jax.ShapeDtypeStruct(shape, jnp.dtype(compute_dtype))
    layout = checks.AttentionLayout.BTNH
    absent = [None] * 5
    try:
        checks.check_layout(query, query, query, *absent, None, None, layout)
        checks.check_is_flash_attention(query, query, query, layout.value, 91000, False, True)
    except (NotImplementedError, ValueError) as error:
        return str(error)
    return None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["h100", "a100", "v5e"])
@pytest.mark.parametrize(("name", "scale"), list(cases()))
def test_every_pack_has_an_attention_kernel_that_takes_it(monkeypatch, name, scale, kind):
    monkeypatch.setattr(transfer, "evaluation_corpus", lambda name, corpus: of_tokens(4096, 1))
    monkeypatch.setattr(checks, "check_compute_capability", lambda least: kind == "h100")
    monkeypatch.setattr(checks, "is_cuda_compute_capability_equal", lambda other: False)
    experiment = load_scales(name)[2][scale]
    runs = experiment.runs(of_tokens(experiment.vocab_size, TOKENS[scale]))
    devices = parse_devices(kind)
    # One device is enough: shapes of kernels do not depend on how many there are.
    for key in {(run.spec.model, run.spec.compute_dtype) for run in runs}:
        model, compute_dtype = key
        if model.attention_width is None:
            continue
        kernel, reason = choose_attention(devices.platform, model, compute_dtype, kind)
        if devices.platform == "tpu":
            assert (kernel == "splash") == splash_takes(model.n_ctx)
            continue
        assert (refused_by_jax(model, compute_dtype) is None) == (kernel == "cudnn"), key
        assert (reason is None) == (kernel == "cudnn")
        if scale == "gpu" and kind == "h100":
            assert kernel == "cudnn", key


def test_the_check_of_this_file_sees_what_is_wrong(monkeypatch):
    monkeypatch.setattr(checks, "check_compute_capability", lambda least: True)
    monkeypatch.setattr(checks, "is_cuda_compute_capability_equal", lambda other: False)
    model = types.SimpleNamespace(n_ctx=128, attention_width=64)
    assert refused_by_jax(model, "bfloat16") is None
    assert "must be fp16/bf16" in refused_by_jax(model, "float32")
    model.attention_width = 300
    assert "head dim must be" in refused_by_jax(model, "bfloat16")
