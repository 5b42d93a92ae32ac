"""Widths of attention heads: the usual ones, and those of a multiple that kernels take."""

from __future__ import annotations

import math

__all__ = ["nearest_heads", "usual_head_width"]


def usual_head_width(d_model: int) -> int:
    """Width of the attention heads of a standard shape: 16 in the smallest models, 64 from 256 on."""
    return 64 if d_model >= 256 else 32 if d_model >= 64 else 16


def nearest_heads(d_model: int, multiple: int) -> tuple[int, int]:
    """The model width nearest to `d_model` whose heads are a multiple of `multiple` wide.

    Heads may be from three quarters to twice as wide as usual (`usual_head_width`). Between equal
    widths, and where ten times as much is gained, the head that is nearer to the usual one wins.

    Returns:
      The width, and how many heads it has.
    """
    usual = usual_head_width(d_model)
    widths = range(multiple, max(2 * usual, multiple) + 1, multiple)
    options = [
        (heads * d_head, heads)
        for d_head in widths
        if 4 * d_head >= 3 * usual
        for heads in range(1, 2 * d_model // d_head + 2)
    ]

    def distance(option: tuple[int, int]) -> float:
        width, heads = option
        return abs(math.log(width / d_model)) + 0.1 * abs(math.log(width / heads / usual))

    return min(options, key=distance)
