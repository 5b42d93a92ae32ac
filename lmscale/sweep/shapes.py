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
    """ln of the ratio of the model's size to the size that `budget` trains for `tokens_per_param`.

    At a budget C = 6 N D a model gets D/N = C / (6 N^2) tokens per parameter (N with the head), hence the
    factor 1/2.
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

    By default these are the nearest models. With `spread` they are nearest to sizes that are evenly spaced
    in the logarithm between the centre over that factor and the centre times that factor, as far as the
    models reach. On a ladder with steps of a few percent the nearest models span too little to show a
    minimum.
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
    """One standard shape of an architecture for each size; sizes that give the same shape are reported.

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


def one_depth(kind: str, n_layer: int | None) -> dict[str, int | None]:
    """A ladder's common depth as a field of `ladder`; none for a kind that has one depth by itself."""
    return {"n_layer": n_layer} if architecture(kind).DEPTH_BY_SIZE else {}


def family_label(model: ModelSpec) -> str:
    """Architecture and depth, as the table's `family`: "transformer, 1 layer"."""
    return f"{model.kind}, {'1 layer' if model.n_layer == 1 else f'{model.n_layer} layers'}"
