"""Shapes for a target size: which depth, width and heads a model of N parameters should have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lmscale import flops
from lmscale.spec import LSTMSpec, ModelSpec, TransformerSpec

#: (d_model, d_ff, d_head, n_head, n_layer) of Hoffmann et al. 2022, Table A9: 44M to 16B parameters.
CHINCHILLA_SHAPES = (
    (512, 2048, 64, 8, 8),
    (576, 2304, 64, 9, 9),
    (640, 2560, 64, 10, 10),
    (640, 2560, 64, 10, 13),
    (640, 2560, 64, 10, 16),
    (768, 3072, 64, 12, 12),
    (768, 3072, 64, 12, 15),
    (768, 3072, 64, 12, 18),
    (896, 3584, 64, 14, 14),
    (896, 3584, 64, 14, 16),
    (896, 3584, 64, 14, 18),
    (1024, 4096, 64, 16, 16),
    (1024, 4096, 64, 16, 18),
    (1024, 4096, 64, 16, 20),
    (1280, 5120, 128, 10, 18),
    (1280, 5120, 128, 10, 21),
    (1408, 5632, 128, 11, 18),
    (1280, 5120, 128, 10, 24),
    (1408, 5632, 128, 11, 21),
    (1536, 6144, 128, 12, 19),
    (1408, 5632, 128, 11, 24),
    (1536, 6144, 128, 12, 22),
    (1536, 6144, 128, 12, 25),
    (1792, 7168, 128, 14, 20),
    (1792, 7168, 128, 14, 23),
    (1792, 7168, 128, 14, 26),
    (2048, 8192, 128, 16, 22),
    (2176, 8704, 128, 17, 22),
    (2048, 8192, 128, 16, 25),
    (2048, 8192, 128, 16, 28),
    (2176, 8704, 128, 17, 25),
    (2304, 9216, 128, 18, 24),
    (2176, 8704, 128, 17, 28),
    (2304, 9216, 128, 18, 28),
    (2304, 9216, 128, 18, 32),
    (2560, 10240, 128, 20, 26),
    (2560, 10240, 128, 20, 30),
    (2560, 10240, 128, 20, 34),
    (2688, 10752, 128, 22, 36),
    (2816, 11264, 128, 22, 36),
    (2944, 11776, 128, 22, 36),
    (3072, 12288, 128, 24, 36),
    (3584, 14336, 128, 28, 40),
    (4096, 16384, 128, 32, 42),
    (4352, 17408, 128, 32, 47),
    (4608, 18432, 128, 36, 44),
    (4608, 18432, 128, 32, 47),
    (4864, 19456, 128, 32, 47),
    (4992, 19968, 128, 32, 49),
    (5120, 20480, 128, 40, 47),
)

#: Initialisation with which LSTMs train best, as fields of `LSTMSpec`. Measured at d_hidden 20 to
#: 124 and d_embed 32 to 96; the spec's own defaults are those of older runs.
LSTM_INIT: dict[str, Any] = {"embed_std": None, "projection_gain": 2.0}


def chinchilla_shapes(*, n_ctx: int, vocab_size: int) -> list[TransformerSpec]:
    """The 50 models of Hoffmann et al. 2022, Table A9."""
    return [
        TransformerSpec(
            n_layer=n_layer,
            d_model=d_model,
            d_ff=d_ff,
            d_attn=d_head * n_head,
            n_head=n_head,
            n_ctx=n_ctx,
            vocab_size=vocab_size,
        )
        for d_model, d_ff, d_head, n_head, n_layer in CHINCHILLA_SHAPES
    ]


def aspect_ratio(n_params: float) -> float:
    """d_model / n_layer for a size.

    Loss is flat around the best ratio (Kaplan et al. 2020, Fig. 5: within 1% from 12 to 128 at
    50M parameters). Below 1M a ratio near 64 would leave less than two layers, so it falls with the
    fourth root there; above 1B it rises as in Chinchilla's models (5120 / 47 at 16B).
    """
    if n_params < 2.5e6:
        return max(8.0, 64 * (n_params / 2.5e6) ** 0.25)
    return 64 * max(1.0, n_params / 1e9) ** 0.2


def init_by_width(d_model: int) -> float:
    """Standard deviation of a Transformer's initial weights: 0.5 / sqrt(d_model), at least GPT-2's 0.02.

    The two meet at a width of 625. See `lmscale.spec.TransformerSpec.init_std`.
    """
    return float(f"{max(0.02, 0.5 / math.sqrt(d_model)):.3g}")


def transformer_shape(
    n_params: float,
    *,
    n_ctx: int,
    vocab_size: int,
    n_layer: int | None = None,
    init_std: float | None = 0.02,
    **fields,
) -> TransformerSpec:
    """The standard shape (d_ff = 4 d_model) closest to `n_params` non-embedding parameters.

    Widths are multiples of 4 below 32, of 8 below 128, of 16 below 256, of 64 from there on; heads are 16 wide in
    the smallest models and 64 from 256 on. A miss in size costs more than one in aspect ratio. With
    `n_layer` the depth is given, and the width alone follows. `init_std` None is `init_by_width`.
    """
    best = None
    for depth in range(1, 129) if n_layer is None else (n_layer,):
        width = math.sqrt(n_params / (12 * depth))
        multiple = 4 if width < 32 else 8 if width < 128 else 16 if width < 256 else 64
        d_model = max(multiple, round(width / multiple) * multiple)
        size = 12 * depth * d_model**2
        cost = 4 * abs(math.log(size / n_params)) + abs(
            math.log(d_model / depth / aspect_ratio(n_params))
        )
        if best is None or cost < best[0]:
            best = (cost, depth, d_model)
    _, depth, d_model = best
    d_head = 64 if d_model >= 256 else 32 if d_model >= 64 else 16
    n_head = max(1, d_model // d_head)
    while d_model % n_head:
        n_head -= 1
    return TransformerSpec(
        n_layer=depth,
        d_model=d_model,
        n_head=n_head,
        n_ctx=n_ctx,
        vocab_size=vocab_size,
        init_std=init_by_width(d_model) if init_std is None else init_std,
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


def off_centre(
    model: ModelSpec, budget: float, tokens_per_param: float, convention: str = "standard"
) -> float:
    """ln of the model's size over that of one which `budget` trains for `tokens_per_param`.

    A budget C = 6 N D buys D/N = C / (6 N^2) tokens a parameter (N with the head), hence the half.
    """
    tokens = budget / flops.training_flops_per_token(model, convention)
    return -0.5 * math.log(tokens / flops.n_params(model, "standard") / tokens_per_param)


def nearest_sizes(
    models: Sequence[ModelSpec],
    budget: float,
    count: int,
    *,
    tokens_per_param: float,
    convention: str = "standard",
    spread: float | None = None,
) -> list[ModelSpec]:
    """The `count` models around the one that `budget` trains for `tokens_per_param`.

    These are the nearest, or with `spread` those nearest to sizes evenly spaced in the logarithm from
    that factor below the centre to that factor above, as far as the models reach: of a ladder with
    steps of a few percent the nearest span too little for a minimum to show.
    """
    place = {m: off_centre(m, budget, tokens_per_param, convention) for m in models}
    if spread is None:
        return sorted(models, key=lambda m: abs(place[m]))[:count]
    low = max(-math.log(spread), min(place.values()))
    high = min(math.log(spread), max(place.values()))
    chosen: list[ModelSpec] = []
    for i in range(min(count, len(place))):
        target = low + (high - low) * i / max(1, count - 1)
        left = [m for m in place if m not in chosen]
        chosen.append(min(left, key=lambda m: abs(place[m] - target)))
    return chosen


def family_label(model: ModelSpec) -> str:
    """Architecture and depth, as the table's `family`: "transformer, 1 layer"."""
    return f"{model.kind}, {'1 layer' if model.n_layer == 1 else f'{model.n_layer} layers'}"
