"""A Transformer with rotary positions against GPT-NeoX of the transformers library, which has its block.

transformers computes in float64, so the deviations (largest difference over largest value) are those
of our float32, near 1e-6.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from lmscale.architectures import TransformerSpec
from lmscale.models.attention import rotate
from lmscale.serialize import SpecError
from tests.models import reference
from tests.models.reference import check_against_transformers, evaluated

SPEC = TransformerSpec(
    n_layer=3, d_model=24, n_head=3, n_ctx=reference.TIME, vocab_size=97, positions="rotary"
)
CASES = {
    "tied": SPEC,
    "untied": dataclasses.replace(SPEC, tied_head=False),
    "one head, relu": dataclasses.replace(SPEC, n_head=1, activation="relu"),
}

#: Their name of each of our arrays, and the axes of ours that are joined to d_in.
LAYER = {
    "attention.out.kernel": ("attention.dense.weight", 2),
    "attention.out.bias": ("attention.dense.bias", 0),
    "feed_forward.up.kernel": ("mlp.dense_h_to_4h.weight", 1),
    "feed_forward.up.bias": ("mlp.dense_h_to_4h.bias", 0),
    "feed_forward.down.kernel": ("mlp.dense_4h_to_h.weight", 1),
    "feed_forward.down.bias": ("mlp.dense_4h_to_h.bias", 0),
    "norm_attention.scale": ("input_layernorm.weight", 0),
    "norm_attention.bias": ("input_layernorm.bias", 0),
    "norm_feed_forward.scale": ("post_attention_layernorm.weight", 0),
    "norm_feed_forward.bias": ("post_attention_layernorm.bias", 0),
}
OUTSIDE = {
    "embed.embedding": "gpt_neox.embed_in.weight",
    "norm_final.scale": "gpt_neox.final_layer_norm.weight",
    "norm_final.bias": "gpt_neox.final_layer_norm.bias",
}


def theirs(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Our arrays under the names and in the shapes of transformers."""
    found = {}
    for name, x in arrays.items():
        if name in OUTSIDE:
            found[OUTSIDE[name]] = x
            continue
        if name == "head.kernel":
            found["lm_head.weight"] = x.T
            continue
        part = name.removeprefix("blocks.")
        for layer, own in enumerate(x):
            place = f"gpt_neox.layers.{layer}"
            if part.startswith("attention.qkv"):
                # Ours have [.., 3, n_head, d_head]; theirs have query, key and value of one head side by side.
                heads = np.swapaxes(own, -3, -2)
                if part.endswith("kernel"):
                    found[f"{place}.attention.query_key_value.weight"] = heads.reshape(
                        len(own), -1
                    ).T
                else:
                    found[f"{place}.attention.query_key_value.bias"] = heads.reshape(-1)
                continue
            other, n_in = LAYER[part]
            matrix = own.reshape(int(np.prod(own.shape[:n_in])), -1).T if n_in else own
            found[f"{place}.{other}"] = matrix
    return found


@pytest.mark.parity
@pytest.mark.parametrize("spec", CASES.values(), ids=CASES)
def test_logits_and_gradients_are_those_of_gpt_neox(spec):
    pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    other = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=spec.vocab_size,
            hidden_size=spec.d_model,
            intermediate_size=spec.d_ff,
            num_hidden_layers=spec.n_layer,
            num_attention_heads=spec.n_head,
            max_position_embeddings=spec.n_ctx,
            hidden_act={"gelu": "gelu_new", "relu": "relu"}[spec.activation],
            layer_norm_eps=1e-5,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "partial_rotary_factor": 1.0,
            },
            use_parallel_residual=False,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            tie_word_embeddings=spec.tied_head,
        )
    ).double()
    assert "position" not in evaluated(spec)[0]
    check_against_transformers(spec, other, theirs)


def test_the_last_dimension_of_an_odd_head_is_not_turned():
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 7)).astype(np.float32)
    turned = np.asarray(rotate(x, 10_000.0))
    np.testing.assert_array_equal(turned[..., 6], x[..., 6])
    np.testing.assert_allclose(turned[..., :6], rotate(x[..., :6], 10_000.0), rtol=1e-6)
    assert not np.allclose(turned[:, 1:, :, :6], x[:, 1:, :, :6])
    np.testing.assert_allclose(
        np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-5
    )


def test_what_is_counted_and_what_is_not():
    learned = dataclasses.replace(SPEC, positions="learned")
    assert SPEC.n_non_embedding() == learned.n_non_embedding()
    ours, others = SPEC.operations(), learned.operations()
    assert ours["position"].params == 0 and others["position"].params == SPEC.n_ctx * SPEC.d_model
    # Two products and a sum for every number of queries and keys.
    assert ours["rotation"].forward_flops == 3 * 2 * SPEC.d_model * SPEC.n_layer
    assert "rotation" not in others


def test_transformers_rotate_heads_of_even_width():
    odd = dataclasses.replace(SPEC, d_model=21, d_attn=21)
    with pytest.raises(
        SpecError, match=r"GPTNeoXForCausalLM .* no rotation of heads of an odd width \(7\)"
    ):
        odd.hugging_face()
