import math

import pytest

from lmscale.flops import n_params
from lmscale.sweep.shapes import (
    aspect_ratio,
    chinchilla_shapes,
    lstm_shape,
    transformer_ladder,
    transformer_shape,
)

SHARED = {"n_ctx": 64, "vocab_size": 1000}


@pytest.mark.parametrize("size", [1e4, 1e5, 1e6, 1e7, 5e7, 3e8, 1.5e9, 1.6e10])
def test_a_shape_meets_its_size_and_its_aspect_ratio(size):
    shape = transformer_shape(size, **SHARED)
    assert n_params(shape, "kaplan") == pytest.approx(size, rel=0.2)
    assert 0.4 < shape.d_model / shape.n_layer / aspect_ratio(size) < 2.5
    assert shape.d_model % shape.n_head == 0


def test_aspect_ratios_are_those_of_the_papers():
    # Kaplan et al. 2020, Fig. 5: best at 50M between 43 and 128. Hoffmann et al.: 5120 / 47 at 16B.
    assert 43 <= aspect_ratio(5e7) <= 128
    assert aspect_ratio(1.6e10) == pytest.approx(5120 / 47, rel=0.1)


def test_a_given_depth_is_kept_and_a_ladder_has_no_repeats():
    shapes = transformer_ladder([1e4, 1.01e4, 1e5], n_layer=2, **SHARED)
    assert [s.n_layer for s in shapes] == [2, 2]
    assert len(set(shapes)) == 2


@pytest.mark.parametrize("n_layer", [1, 2, 4])
@pytest.mark.parametrize("size", [1e5, 1e6, 3e7])
def test_lstms_meet_their_size(size, n_layer):
    shape = lstm_shape(size, n_layer=n_layer, **SHARED)
    assert abs(math.log(n_params(shape, "kaplan") / size)) < 0.25


def test_chinchilla_shapes_are_fifty_and_do_not_assume_square_attention():
    shapes = chinchilla_shapes(**SHARED)
    assert len(set(shapes)) == 50
    assert any(s.d_attn != s.d_model for s in shapes)
