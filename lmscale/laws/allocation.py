"""How to split compute between N and D: the least loss on a line of equal cost.

Laws of loss in N and D are minimised numerically over N at 6 N D + 2 N D_inference = C. So data
limits, repeated data (Muennighoff et al. 2023) and the cost of inference (Sardana et al. 2024) need
no formulas of their own.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmscale.laws.chinchilla import chinchilla_loss
from lmscale.laws.data_constrained import data_constrained_loss
from lmscale.laws.over_training import over_training_loss
from lmscale.laws.own import is_ours, told
from lmscale.laws.result import FitError, FitResult

__all__ = ["AllocationProblem", "is_own", "optimum", "surface_of"]

#: Sizes tried on each pass of the search along a line of equal cost.
_GRID = 65
_PASSES = 5


@dataclass(frozen=True)
class AllocationProblem:
    """A law of loss in N and D, with the limits of a question.

    Attributes:
      parameters: name -> value, or an array with one entry per draw.
      model: (parameters, params, tokens) -> loss.
      unique_tokens: tokens that exist; more of them are repeats. None is no limit.
      inference_tokens: tokens that the model will process after training.
    """

    parameters: Mapping[str, Any]
    model: Callable[..., Any]
    unique_tokens: float | None = None
    inference_tokens: float = 0.0

    def loss(self, n: Any, d: Any) -> Any:
        if self.unique_tokens is not None:
            return data_constrained_loss(
                self.parameters, params=n, tokens=d, unique_tokens=np.minimum(self.unique_tokens, d)
            )
        return self.model(self.parameters, params=n, tokens=d)

    def best(self, flops: Any) -> tuple[Any, Any, Any]:
        """(N, D, loss) of least loss at 6 N D + 2 N D_inference = flops, by successive grids."""
        flops = np.asarray(flops, float)
        shape = np.broadcast_shapes(flops.shape, *(np.shape(v) for v in self.parameters.values()))
        flops = np.broadcast_to(flops, shape)
        if self.inference_tokens:
            # Serving a larger model alone takes the whole budget.
            high = np.log(flops / (2 * self.inference_tokens)) - 1e-9
            high = np.minimum(high, np.log(flops / 6))
        else:
            high = np.log(flops / 6)
        low = np.minimum(np.zeros(shape), high - 1.0)
        share = np.linspace(0, 1, _GRID)
        each = dataclasses.replace(
            self,
            parameters={k: v[..., None] if np.ndim(v) else v for k, v in self.parameters.items()},
        )
        for _ in range(_PASSES):
            x = low[..., None] + (high - low)[..., None] * share
            value = each.loss(np.exp(x), self.tokens(np.exp(x), flops[..., None]))
            at = np.argmin(np.nan_to_num(value, nan=np.inf), axis=-1)
            left, right = np.maximum(at - 1, 0), np.minimum(at + 1, _GRID - 1)
            low = np.take_along_axis(x, left[..., None], -1)[..., 0]
            high = np.take_along_axis(x, right[..., None], -1)[..., 0]
        n = np.exp((low + high) / 2)
        d = self.tokens(n, flops)
        return n, d, self.loss(n, d)

    def tokens(self, n: Any, flops: Any) -> Any:
        """D of a model of size N at 6 N D + 2 N D_inference = flops, at least a millionth."""
        return np.maximum((flops / n - 2 * self.inference_tokens) / 6, 1e-6)

    def budget(self, loss: Any) -> Any:
        """The smallest compute that reaches `loss`, by bisection; NaN if 1e60 FLOPs do not."""
        shape = np.broadcast_shapes(
            np.shape(loss), *(np.shape(v) for v in self.parameters.values())
        )
        low, high = np.full(shape, math.log(1e-6)), np.full(shape, math.log(1e60))
        reachable = self.best(np.exp(high))[2] <= loss
        for _ in range(50):
            middle = (low + high) / 2
            enough = self.best(np.exp(middle))[2] <= loss
            low, high = np.where(enough, low, middle), np.where(enough, middle, high)
        return np.where(reachable, np.exp(high), np.nan)


#: Laws of loss in N and D as functions of their parameters.
_MODELS = {
    "parametric": chinchilla_loss,
    "over-training": over_training_loss,
    # With fresh data only.
    "data-constrained": chinchilla_loss,
}


def is_own(result: FitResult) -> bool:
    """Whether a user's own law was fitted."""
    from lmscale.laws import LAWS

    return result.law in LAWS and not is_ours(LAWS[result.law])


def surface_of(result: FitResult) -> Callable[..., Any] | None:
    """A law of loss in the size N and the training tokens D: (parameters, params, tokens) -> loss.

    A user's own law is one if its `model` has keyword arguments params and tokens. None for other laws.
    """
    from lmscale.laws import LAWS

    model = result.model
    if result.law in _MODELS or model is None or not is_own(result):
        return _MODELS.get(result.law)
    if not {"params", "tokens"} <= inspect.signature(model).parameters.keys():
        return None

    def told_model(parameters: Mapping[str, Any], *, params: Any, tokens: Any) -> Any:
        with told(LAWS[result.law]):
            return np.asarray(model(parameters, params=params, tokens=tokens), float)

    return told_model


def optimum(result: FitResult, parameters: Mapping[str, Any], flops: Any) -> tuple[Any, Any, Any]:
    """(N, D, loss) of least loss at 6 N D = flops with fresh data, by the law of a fit.

    Args:
      parameters: of that law; they may be draws.
    """
    surface = surface_of(result)
    if surface is None:
        raise FitError(f"the law {result.law} says nothing on how to split compute")
    return AllocationProblem(parameters, surface).best(flops)
