"""Llama against the transformers library: logits and the gradients of every parameter.

transformers computes in float64, so the deviations (largest difference over largest value) are those
of our float32, near 1e-6.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lmscale.architectures import LlamaSpec
from lmscale.serialize import SpecError
from tests.models import reference
from tests.models.reference import check_against_transformers

SPEC = LlamaSpec(
    n_layer=3, d_model=32, n_head=4, d_ff=72, n_ctx=reference.TIME, vocab_size=97, epsilon=1e-6
)
CASES = {
    "plain": SPEC,
    "grouped": dataclasses.replace(SPEC, n_kv_head=2),
    "tied": dataclasses.replace(SPEC, tied_head=True),
    "wide heads": dataclasses.replace(SPEC, d_head=12, n_kv_head=1),
    "qk-norm": dataclasses.replace(SPEC, qk_norm=True, n_kv_head=2),
    "theta": dataclasses.replace(SPEC, rope_theta=50.0),
}

#: Their name of each of our arrays, and the axes of ours that are joined to d_in.
LAYER = {
    "attention.query.kernel": ("self_attn.q_proj", 1),
    "attention.key.kernel": ("self_attn.k_proj", 1),
    "attention.value.kernel": ("self_attn.v_proj", 1),
    "attention.out.kernel": ("self_attn.o_proj", 2),
    "feed_forward.gate.kernel": ("mlp.gate_proj", 1),
    "feed_forward.up.kernel": ("mlp.up_proj", 1),
    "feed_forward.down.kernel": ("mlp.down_proj", 1),
    "norm_attention.scale": ("input_layernorm", 0),
    "norm_feed_forward.scale": ("post_attention_layernorm", 0),
    "attention.norm_query.scale": ("self_attn.q_norm", 0),
    "attention.norm_key.scale": ("self_attn.k_norm", 0),
}


def theirs(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our arrays under the names and in the shapes of transformers."""
    found = {}
    for name, x in arrays.items():
        if name == "embed.embedding":
            found["model.embed_tokens.weight"] = x
        elif name == "head.kernel":
            found["lm_head.weight"] = x.T
        elif name == "norm_final.scale":
            found["model.norm.weight"] = x
        else:
            other, n_in = LAYER[name.removeprefix("blocks.")]
            for layer, own in enumerate(x):
                matrix = own.reshape(int(np.prod(own.shape[:n_in])), -1).T if n_in else own
                found[f"model.layers.{layer}.{other}.weight"] = matrix
    return found


@pytest.mark.parity
@pytest.mark.parametrize("spec", CASES.values(), ids=CASES)
def test_logits_and_gradients_are_those_of_transformers(spec):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kinds = {
        False: (transformers.LlamaConfig, transformers.LlamaForCausalLM),
        True: (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
    }
    config, model = kinds[spec.qk_norm]
    other = model(
        config(
            vocab_size=spec.vocab_size,
            hidden_size=spec.d_model,
            intermediate_size=spec.d_ff,
            num_hidden_layers=spec.n_layer,
            num_attention_heads=spec.n_head,
            num_key_value_heads=spec.n_kv_head,
            head_dim=spec.d_head,
            max_position_embeddings=spec.n_ctx,
            rms_norm_eps=spec.epsilon,
            rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
            tie_word_embeddings=spec.tied_head,
            attention_bias=False,
        )
    ).double()
    check_against_transformers(spec, other, theirs)


def test_defaults_follow_the_width():
    spec = LlamaSpec(n_layer=2, d_model=512, n_ctx=64, vocab_size=1000)
    assert (spec.n_head, spec.n_kv_head, spec.d_head) == (8, 8, 64)
    assert spec.d_ff == 1368
    assert not spec.tied_head


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_kv_head": 3}, r"n_head \(4\) must be a multiple of n_kv_head \(3\)"),
        ({"d_head": 7}, "d_head must be even, for the rotation of pairs, not 7"),
        ({"rope_theta": 0.0}, "rope_theta must be positive, not 0.0"),
        ({"n_head": 0}, "n_head must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_is_refused(fields, message):
    with pytest.raises(SpecError, match=message):
        dataclasses.replace(SPEC, **fields)
