import math

import pytest

from lmscale.architectures import (
    chinchilla_shapes,
    lstm_shape,
    transformer_ladder,
    transformer_shape,
)
from lmscale.architectures.transformer import aspect_ratio
from lmscale.flops import n_params
from lmscale.sweep.shapes import family_label, nearest_sizes, off_centre

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


def test_the_centre_of_a_budget_is_the_size_it_trains_for_so_many_tokens():
    ladder = transformer_ladder([1e6 * 2**i for i in range(6)], **SHARED)
    sizes = [n_params(model, "standard") for model in ladder]
    places = [off_centre(model, 120 * sizes[2] ** 2, 20.0) for model in ladder]
    expected = [math.log(size / sizes[2]) for size in sizes]
    assert places == pytest.approx(expected)


def test_nearest_sizes_are_nearest_or_spread_as_far_as_asked():
    shapes = chinchilla_shapes(n_ctx=2048, vocab_size=32_000)
    centre = {"tokens_per_param": 20.0}
    budget = 120 * 1e9**2
    near = nearest_sizes(shapes, budget, 9, **centre)
    wide = nearest_sizes(shapes, budget, 9, spread=6.0, **centre)
    assert len(set(near)) == len(set(wide)) == 9

    def reach(models):
        sizes = [n_params(model, "standard") / 1e9 for model in models]
        return min(sizes), max(sizes)

    assert 0.6 < reach(near)[0] and reach(near)[1] < 1.6
    assert reach(wide) == pytest.approx((1 / 6, 6), rel=0.15)
    # Where the ladder ends, so do they.
    (low, high) = reach(nearest_sizes(shapes, 120 * 1e10**2, 9, spread=6.0, **centre))
    assert low == pytest.approx(10 / 6, rel=0.1) and high == reach(shapes)[1]
    assert len(nearest_sizes(shapes[:3], budget, 9, spread=6.0, **centre)) == 3


def test_a_family_is_named_by_architecture_and_depth():
    assert family_label(lstm_shape(1e5, n_layer=1, **SHARED)) == "lstm, 1 layer"
    assert family_label(transformer_shape(1e5, n_layer=6, **SHARED)) == "transformer, 6 layers"
