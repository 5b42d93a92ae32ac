"""Shapes whose attention heads kernels take as they are."""

import math

import pytest

from lmscale.architectures import init_by_width, transformer_ladder
from lmscale.architectures.llama import LlamaSpec
from lmscale.spec import LSTMSpec, TransformerSpec
from lmscale.sweep.shapes import ladder

SIZES = [2e4 * 1.3**i for i in range(40)]
SHARED = {"n_ctx": 128, "vocab_size": 512}


@pytest.mark.parametrize("kind", ["transformer", "llama"])
@pytest.mark.parametrize("n_layer", [None, 2, 6])
def test_heads_are_multiples_and_sizes_stay_near(kind, n_layer):
    fields = {"n_layer": n_layer, "init_std": None, **SHARED}
    free = ladder(kind, SIZES, **fields)
    for model in free:
        found = model.with_head_multiple(8)
        assert found.attention_width % 8 == 0
        assert found.n_layer == model.n_layer
        # Of narrow heads there are few widths to choose from.
        assert abs(math.log(found.width / model.width)) < (0.2 if model.width < 64 else 0.1)
        if model.attention_width % 8 == 0:
            assert found is model
        assert found.init_std == init_by_width(found.width)
    assert ladder(kind, SIZES, head_multiple=8, **fields)
    # Without it nothing changes: stores of earlier versions hold these shapes.
    assert ladder(kind, SIZES, head_multiple=1, **fields) == free


def test_a_model_that_only_needs_other_heads_keeps_its_width():
    model = TransformerSpec(n_layer=2, d_model=72, n_head=2, init_std=0.5, **SHARED)
    found = model.with_head_multiple(8)
    assert (found.d_model, found.n_head, found.d_ff, found.init_std) == (72, 3, 288, 0.5)


def test_ladders_of_different_sizes_can_meet():
    free = transformer_ladder(SIZES, n_layer=2, **SHARED)
    assert len(transformer_ladder(SIZES, n_layer=2, head_multiple=8, **SHARED)) <= len(free)


def test_models_without_attention_stay():
    model = LSTMSpec(n_layer=1, d_hidden=20, d_embed=20, **SHARED)
    assert model.attention_width is None
    assert model.with_head_multiple(8) is model
    llama = LlamaSpec(n_layer=1, d_model=88, n_head=2, d_head=44, **SHARED)
    assert llama.with_head_multiple(8).d_head % 8 == 0
