"""The answer of `lmscale.laws.advise`: a compute-optimal model and data, and what other sizes cost."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from lmscale.laws.result import plain

__all__ = ["Advice", "OffOptimum"]


@dataclass(frozen=True)
class OffOptimum:
    """The cost of training a model of `factor` times the best size with the same compute.

    Attributes:
      compute_factor: this compute over the compute that reaches the same loss at its own best size.
      loss_interval: of one run's loss; None where its error is unknown.
    """

    factor: float
    n_params: float
    n_tokens: float
    loss: float | None
    compute_factor: float
    loss_interval: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One recommendation.

    `lmscale.sweep.recommend` fills in `model`, `batch_tokens`, `learning_rate`, `recipe` and `run`.
    """

    flops: float
    n_params: float
    n_tokens: float
    loss: float | None
    tokens_per_param: float
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    #: How the intervals were made, in words.
    interval_method: str = "none"
    #: n_params and loss -> cause -> half-width of the interval, in the logarithm.
    half_widths: dict[str, dict[str, float]] = field(default_factory=dict)
    model: dict[str, Any] | None = None
    batch_tokens: int | None = None
    learning_rate: float | None = None
    #: Where batch and learning rate come from, or why they are missing.
    recipe: str = ""
    #: The whole run as a spec, where a sweep's recipe gives one.
    run: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    off_optimum: tuple[OffOptimum, ...] = ()
    epochs: float | None = None
    inference_flops: float = 0.0
    law: str = ""
    source: str = ""
    #: Training compute over that of the largest run of the fit.
    extrapolation: float | None = None
    #: Training compute over that of the smallest run of the fit.
    over_smallest: float | None = None

    def to_json(self) -> dict[str, Any]:
        return plain(self)

    def replace(self, **changes: Any) -> Advice:
        return dataclasses.replace(self, **changes)
