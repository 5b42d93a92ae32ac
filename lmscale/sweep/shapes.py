"""Shapes for a target size: which depth, width and heads a model of N parameters should have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lmscale import flops
from lmscale.architectures import architecture
from lmscale.spec import ModelSpec
from lmscale.sweep.dropped import drop


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


def ladder(
    kind: str, sizes: Sequence[float], *, head_multiple: int = 1, **fields: Any
) -> list[ModelSpec]:
    """One standard shape of an architecture for each size; sizes that give the same shape are said.

    Args:
      kind: the architecture.
      sizes: non-embedding parameters.
      head_multiple: see `ModelSpec.with_head_multiple`.
      fields: see `ModelSpec.of_size`.
    """
    found: dict[ModelSpec, float] = {}
    for size in sizes:
        model = architecture(kind).of_size(size, **fields).with_head_multiple(head_multiple)
        if model in found:
            drop(
                f"size {size:.4g}",
                model.label,
                f"it gives {model.label}, as size {found[model]:.4g} does",
            )
        found.setdefault(model, size)
    return list(found)


def family_label(model: ModelSpec) -> str:
    """Architecture and depth, as the table's `family`: "transformer, 1 layer"."""
    return f"{model.kind}, {'1 layer' if model.n_layer == 1 else f'{model.n_layer} layers'}"
