"""Rules for learning rate, batch and beta2: published rules, one function each, and fitted ones.

Every rule is a fit to one sweep. It holds for the optimizer, the data and the sizes of its paper, and
counts parameters as its paper does. Where rules overlap they differ by a factor of two or three. So
each function says which count it takes, and no function converts between the counts.

Units: N in parameters, D in tokens, C in FLOPs, batches in tokens, losses in nats per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from etils import epath

from lmscale import flops
from lmscale.files import read_json, unseal
from lmscale.remote import unreachable
from lmscale.spec import ModelSpec, SpecError

__all__ = [
    "KAPLAN_BATCH",
    "PUBLISHED_RULES",
    "FittedRule",
    "PublishedRule",
    "covering_rule",
    "deepseek_batch",
    "deepseek_flops_per_token",
    "deepseek_lr",
    "fitted_rule",
    "kaplan_lr",
    "porian_batch",
    "porian_beta2",
    "porian_lr",
    "steplaw_batch",
    "steplaw_lr",
]

#: Tokens in a batch of Kaplan et al. 2020: 512 sequences of 1024.
KAPLAN_BATCH = 2**19

#: Kaplan et al. 2020 say that their rule breaks down above this N. It reaches zero at 1.2e10.
_KAPLAN_LR_LIMIT = 1e10

#: The remedy in errors of `fitted_rule`.
_WANTED_FITS = "give the fits.json of a finished `lmscale run learning_rate`"

#: Tokens in a sequence of Porian et al. 2024, who count batches in sequences.
_PORIAN_N_CTX = 2048


def kaplan_lr(n_params: float) -> float:
    """Peak Adam learning rate, LR(N) = 0.003239 - 0.0001395 ln N (Kaplan et al. 2020, App. D.6).

    The paper writes log. Only the natural logarithm gives zero near 1e10, where it says the rule fails.

    Args:
      n_params: N without embeddings.

    Raises:
      SpecError: N exceeds 1e10, where the authors say that the rule breaks down.
    """
    _require_positive(n_params=n_params)
    if n_params > _KAPLAN_LR_LIMIT:
        raise SpecError(
            f"kaplan_lr holds up to n_params = {_KAPLAN_LR_LIMIT:.0e} and reaches zero at 1.2e10; "
            f"got {n_params:g}"
        )
    return 0.003239 - 0.0001395 * math.log(n_params)


def deepseek_flops_per_token(n_layer: int, d_model: int, n_ctx: int) -> float:
    """M = 72 n_layer d_model^2 + 12 n_layer d_model n_ctx (DeepSeek LLM 2024, eq. 2).

    Training FLOPs per token without the vocabulary; DeepSeek's rules take C = M D.
    """
    _require_positive(n_layer=n_layer, d_model=d_model, n_ctx=n_ctx)
    return 72.0 * n_layer * d_model**2 + 12.0 * n_layer * d_model * n_ctx


def deepseek_lr(flops: float) -> float:
    """Peak learning rate 0.3118 C^-0.1250 (DeepSeek LLM 2024, eq. 1).

    Args:
      flops: C = M D of `deepseek_flops_per_token`; fitted on 1e17 to 2e19.
    """
    _require_positive(flops=flops)
    return 0.3118 * flops**-0.1250


def deepseek_batch(flops: float) -> float:
    """Batch 0.2920 C^0.3271 in tokens (DeepSeek LLM 2024, eq. 1).

    Args:
      flops: C = M D of `deepseek_flops_per_token`; fitted on 1e17 to 2e19.
    """
    _require_positive(flops=flops)
    return 0.2920 * flops**0.3271


def porian_lr(n_params: float) -> float:
    """Peak learning rate 3.7 N^-0.36 at 20 tokens per parameter (Porian et al. 2024).

    Args:
      n_params: N with the head and without the input embedding; fitted up to 2.2e8.
    """
    _require_positive(n_params=n_params)
    return 3.7 * n_params**-0.36


def porian_batch(n_params: float) -> float:
    """Batch 0.7576 N^0.703 in tokens at 20 tokens per parameter (Porian et al. 2024).

    The paper's 0.00037 N^0.703 counts sequences of 2048 tokens.

    Args:
      n_params: N with the head and without the input embedding; fitted up to 2.2e8.
    """
    _require_positive(n_params=n_params)
    return 0.00037 * _PORIAN_N_CTX * n_params**0.703


def porian_beta2(batch_tokens: float) -> float:
    """Adam's beta2: 0.99 up to 192 sequences of 2048 tokens, 0.95 above (Porian et al. 2024).

    A small batch needs a longer average of the squared gradient: the paper found 0.95 to be bad at
    batches of up to 128 sequences.
    """
    _require_positive(batch_tokens=batch_tokens)
    return 0.99 if batch_tokens <= 192 * _PORIAN_N_CTX else 0.95


def steplaw_lr(n_params: float, n_tokens: float) -> float:
    """Peak learning rate 1.79 N^-0.713 D^0.307 (Li et al. 2025, "StepLaw").

    Args:
      n_params: N without the vocabulary.
      n_tokens: D.
    """
    _require_positive(n_params=n_params, n_tokens=n_tokens)
    return 1.79 * n_params**-0.713 * n_tokens**0.307


def steplaw_batch(n_tokens: float) -> float:
    """Batch 0.58 D^0.571 in tokens (Li et al. 2025, "StepLaw"). It depends on D alone."""
    _require_positive(n_tokens=n_tokens)
    return 0.58 * n_tokens**0.571


@dataclass(frozen=True)
class PublishedRule:
    """A published rule for learning rate and batch, with the range of the sweep behind it.

    Attributes:
      source: the paper, for readers.
      convention: what N counts (`lmscale.flops.CONVENTIONS`).
      ranges: smallest and largest params, tokens, tokens_per_param or flops (M D of
        `deepseek_flops_per_token`), as far as the paper states them.
      learning_rate, batch_tokens: functions of a `case`.
    """

    source: str
    convention: str
    ranges: dict[str, tuple[float, float]]
    learning_rate: Callable[[dict[str, float]], float]
    batch_tokens: Callable[[dict[str, float]], float]

    def case(self, model: ModelSpec, n_tokens: float) -> dict[str, float]:
        """The inputs of the rule for a model and its training tokens."""
        size = flops.n_params(model, self.convention)
        per_token = deepseek_flops_per_token(model.n_layer, model.width, model.n_ctx)
        return {
            "params": float(size),
            "tokens": float(n_tokens),
            "tokens_per_param": n_tokens / size,
            "flops": per_token * n_tokens,
        }

    def covers(self, model: ModelSpec, n_tokens: float) -> bool:
        """Whether the case lies within every stated range."""
        case = self.case(model, n_tokens)
        return all(low <= case[name] <= high for name, (low, high) in self.ranges.items())


#: Ordered by the number of runs of their sweeps, the largest first.
PUBLISHED_RULES = (
    PublishedRule(
        source="StepLaw (Li et al. 2025)",
        convention="kaplan",
        ranges={"params": (6e7, 1.07e9), "tokens": (2e9, 1e11)},
        learning_rate=lambda case: steplaw_lr(case["params"], case["tokens"]),
        batch_tokens=lambda case: steplaw_batch(case["tokens"]),
    ),
    PublishedRule(
        source="Porian et al. 2024",
        convention="standard",
        # The sweep was at 20 tokens per parameter; the factor of two about it is our choice.
        ranges={"params": (5.1e6, 2.21e8), "tokens_per_param": (10.0, 40.0)},
        learning_rate=lambda case: porian_lr(case["params"]),
        batch_tokens=lambda case: porian_batch(case["params"]),
    ),
    PublishedRule(
        source="DeepSeek LLM 2024",
        convention="kaplan",
        ranges={"flops": (1e17, 2e19)},
        learning_rate=lambda case: deepseek_lr(case["flops"]),
        batch_tokens=lambda case: deepseek_batch(case["flops"]),
    ),
)


def covering_rule(model: ModelSpec, n_tokens: float) -> PublishedRule | None:
    """The published rule whose fitted range holds this model and its training tokens, if any."""
    return next((rule for rule in PUBLISHED_RULES if rule.covers(model, n_tokens)), None)


@dataclass(frozen=True)
class FittedRule:
    """LR = c N^x D^y B^z, with N without embeddings and B in tokens: a `LearningRateRule`.

    `ranges` holds the smallest and largest params, tokens and batch_tokens of the runs behind it.
    Beyond them the rule is an extrapolation.
    """

    c: float
    x: float
    y: float
    z: float
    ranges: dict[str, tuple[float, float]]

    def __call__(self, model: ModelSpec, n_tokens: float, batch_tokens: float) -> float:
        size = flops.n_params(model, "kaplan")
        return self.c * size**self.x * n_tokens**self.y * batch_tokens**self.z

    def covers(self, model: ModelSpec, n_tokens: float, batch_tokens: float) -> bool:
        """Whether the case lies within the ranges of the rule's runs."""
        case = {
            "params": flops.n_params(model, "kaplan"),
            "tokens": n_tokens,
            "batch_tokens": batch_tokens,
        }
        return all(
            low <= case[name] <= high for name, (low, high) in self.ranges.items() if name in case
        )


def fitted_rule(path: epath.PathLike, family: str = "transformer") -> FittedRule:
    """The rule that the experiment `learning_rate` fitted, from the fits.json of its store.

    Any experiment can use it for its learning rates:

        rule = hparams.fitted_rule("results/learning_rate-cpu/fits.json")
        make_run(model, learning_rate=rule, ...)

    Raises:
      SpecError: the file cannot be reached, or holds no such rule.
      DamagedError: the file is not what was written.
    """
    if (why := unreachable(path)) is not None:
        raise SpecError(f"{why}; {_WANTED_FITS}")
    file = epath.Path(path).expanduser()
    if file.is_dir():
        raise SpecError(f"{file} is a folder: {_WANTED_FITS}")
    none = SpecError(f"{file} holds no learning-rate rule of {family}: {_WANTED_FITS}")
    fit = read_fits(file).get(f"learning_rate/{family}/kaplan")
    if not isinstance(fit, dict) or not fit.get("parameters"):
        raise none
    try:
        values = {name: float(fit["parameters"].get(name, 0.0)) for name in ("c", "x", "y", "z")}
        ranges = {k: (float(low), float(high)) for k, (low, high) in fit["ranges"].items()}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise none from None
    return FittedRule(**values, ranges=ranges)


def read_fits(path: epath.Path) -> dict[str, Any]:
    """The fits.json of a store; {} if there is none.

    Raises:
      DamagedError: the file is not what was written.
    """
    remedy = "`lmscale report` of its store writes it again"
    fits = read_json(path, remedy=remedy) or {}
    return {
        name: unseal(fit, path, remedy) if isinstance(fit, dict) else fit
        for name, fit in fits.items()
    }


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise SpecError(f"{name} must be a positive number, not {value!r}")
