"""Shapes for a target size: which depth, width and heads a model of N parameters should have."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lmscale import flops
from lmscale.spec import LSTMSpec, TransformerSpec


def aspect_ratio(n_params: float) -> float:
    """d_model / n_layer for a size.

    Loss is flat around the best ratio (Kaplan et al. 2020, Fig. 5: within 1% from 12 to 128 at
    50M parameters). Below 1M a ratio near 64 would leave less than two layers, so it falls with the
    fourth root there; above 1B it rises as in Chinchilla's models (5120 / 47 at 16B).
    """
    if n_params < 2.5e6:
        return max(8.0, 64 * (n_params / 2.5e6) ** 0.25)
    return 64 * max(1.0, n_params / 1e9) ** 0.2


def transformer_shape(n_params: float, *, n_ctx: int, vocab_size: int, **fields) -> TransformerSpec:
    """The standard shape (d_ff = 4 d_model) closest to `n_params` non-embedding parameters.

    Widths are multiples of 8 below 128, of 16 below 256, of 64 from there on; heads are 16 wide in
    the smallest models and 64 from 256 on. A miss in size costs more than one in aspect ratio.
    """
    best = None
    for n_layer in range(1, 129):
        width = math.sqrt(n_params / (12 * n_layer))
        multiple = 8 if width < 128 else 16 if width < 256 else 64
        d_model = max(multiple, round(width / multiple) * multiple)
        size = 12 * n_layer * d_model**2
        cost = 4 * abs(math.log(size / n_params)) + abs(
            math.log(d_model / n_layer / aspect_ratio(n_params))
        )
        if best is None or cost < best[0]:
            best = (cost, n_layer, d_model)
    _, n_layer, d_model = best
    d_head = 64 if d_model >= 256 else 32 if d_model >= 64 else 16
    n_head = max(1, d_model // d_head)
    while d_model % n_head:
        n_head -= 1
    return TransformerSpec(
        n_layer=n_layer,
        d_model=d_model,
        n_head=n_head,
        n_ctx=n_ctx,
        vocab_size=vocab_size,
        **fields,
    )


def transformer_ladder(
    sizes: Sequence[float], *, n_ctx: int, vocab_size: int, **fields
) -> list[TransformerSpec]:
    """One shape a size, without repeats."""
    shapes = [
        transformer_shape(size, n_ctx=n_ctx, vocab_size=vocab_size, **fields) for size in sizes
    ]
    return list(dict.fromkeys(shapes))


def lstm_shape(n_params: float, *, n_layer: int, n_ctx: int, vocab_size: int, **fields) -> LSTMSpec:
    """The LSTM of `n_layer` layers whose non-embedding count is closest to `n_params`."""

    def shape(d_hidden: int) -> LSTMSpec:
        return LSTMSpec(
            n_layer=n_layer, d_hidden=d_hidden, n_ctx=n_ctx, vocab_size=vocab_size, **fields
        )

    low, high = 1, 2
    while flops.n_params(shape(high), "kaplan") < n_params:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if flops.n_params(shape(middle), "kaplan") < n_params:
            low = middle
        else:
            high = middle
    # Widths that vector units like, where the model is large enough to have the choice.
    multiple = 4 if high < 128 else 8 if high < 512 else 64
    below, above = (max(multiple, x // multiple * multiple) for x in (high, high + multiple))
    return min(
        (shape(below), shape(above)),
        key=lambda m: abs(math.log(flops.n_params(m, "kaplan") / n_params)),
    )
