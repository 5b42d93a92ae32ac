"""Published laws by name, as if they had been fitted here: `published("besiroglu2024")`.

Each has the constants of its paper, how parameters were counted, and the range of the fit. So
`lmscale.laws.advise` can say how far a question extrapolates. A range that a paper does not give is
left out, and advice then says that it is unknown. Where a paper publishes intervals, draws are made
from them (`lmscale.laws.published_draws`), and `interval_method` says how, and what they leave out.
Where it publishes none, `uncertainty` says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lmscale.laws.chinchilla import chinchilla_loss
from lmscale.laws.data_constrained import MUENNIGHOFF, data_constrained_loss
from lmscale.laws.kaplan import PF_DAY, kaplan_nd_loss, kaplan_ns_loss
from lmscale.laws.over_training import over_training_loss
from lmscale.laws.published_draws import (
    design_correlation,
    frontier_draws,
    hoffmann_design,
    joint_draws,
)
from lmscale.laws.result import FitError, FitResult

__all__ = ["PUBLISHED", "PublishedLaw", "published"]


@dataclass(frozen=True, kw_only=True)
class PublishedLaw:
    """A law's constants, source, counting convention and fitted range.

    The law "frontier" is for papers that give the frontier directly: k_N, a, k_D, b of N_opt = k_N C^a
    and D_opt = k_D C^b (C in FLOPs), in some papers also C_c and alpha_C of its loss.

    Attributes:
      intervals: as published, at `interval_level`.
      uncertainty: what the intervals are, or why there are none.
      ranges: smallest and largest params, tokens and flops of the paper's runs.
    """

    law: str
    source: str
    convention: str
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    interval_level: float = 0.95
    uncertainty: str
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    note: str = ""


_HOFFMANN_RANGE = {"params": (4.4e7, 1.6183e10), "tokens": (5e9, 5e11), "flops": (6e18, 3e21)}
#: Section 2 and Fig. 1: compute from 1e-8 to 10 PF-days.
_KAPLAN_RANGE = {
    "params": (768, 1.5e9),
    "tokens": (2.2e7, 2.3e10),
    "flops": (1e-8 * PF_DAY, 10 * PF_DAY),
}
#: 104 runs of the authors' repository, FLOPs as 6 N D.
_GADRE_RANGE = {"params": (1.06e7, 6.9e9), "tokens": (5.28e7, 9.21e11), "flops": (3.35e15, 7.96e21)}


def _gadre(e: float, a: float, b: float, exponent: float) -> dict[str, float]:
    """From the authors' code, L = E + a N^e + b 6^(e/2) (M N)^e, to the paper's form."""
    eta = -exponent / 2
    return {"E": e, "a": a * 6**eta, "b": b, "eta": eta}


PUBLISHED: dict[str, PublishedLaw] = {
    "kaplan2020": PublishedLaw(
        law="frontier",
        source="Kaplan et al. 2020, Table 6 and eq. 1.3",
        convention="kaplan",
        parameters={
            "a": 0.73,
            "b": 0.27,
            "k_N": 1.3e9 / PF_DAY**0.73,
            "k_D": 2e10 / PF_DAY**0.27,
            "alpha_C": 0.050,
            "C_c": 3.1e8 * PF_DAY,
        },
        uncertainty="the paper publishes no error of its constants",
        ranges=_KAPLAN_RANGE,
        note="C is C_min, adjusted to training far below the critical batch; N without embeddings",
    ),
    "kaplan2020-nd": PublishedLaw(
        law="kaplan-nd",
        source="Kaplan et al. 2020, eq. 1.5 and Table 2",
        convention="kaplan",
        parameters={"alpha_N": 0.076, "N_c": 6.4e13, "alpha_D": 0.103, "D_c": 1.8e13},
        uncertainty="the paper publishes no error of its constants",
        ranges=_KAPLAN_RANGE,
        note="for early-stopped runs on subsets of D tokens; not a law of one pass",
    ),
    "kaplan2020-ns": PublishedLaw(
        law="kaplan-ns",
        source="Kaplan et al. 2020, eq. 1.6 and Tables 3 and 5",
        convention="kaplan",
        parameters={
            "alpha_N": 0.077,
            "N_c": 6.5e13,
            "alpha_S": 0.76,
            "S_c": 2.1e3,
            "B_star": 2.1e8,
            "alpha_B": 0.21,
        },
        uncertainty="the paper publishes no error of its constants",
        ranges=_KAPLAN_RANGE,
    ),
    "chinchilla-printed": PublishedLaw(
        law="parametric",
        source="Hoffmann et al. 2022, eq. 10, as printed",
        convention="total",
        parameters={"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},
        uncertainty="the paper's interval of the exponent, 0.454 to 0.455, is far too narrow to be "
        "used (Besiroglu et al. 2024)",
        ranges=_HOFFMANN_RANGE,
        note="rounded: the optimum moves by a quarter against the unrounded constants",
    ),
    "chinchilla": PublishedLaw(
        law="parametric",
        source="Hoffmann et al. 2022, Approach 3, unrounded (from the paper's source)",
        convention="total",
        parameters={
            "E": math.exp(0.5267228),
            "A": math.exp(6.0073404),
            "B": math.exp(6.0179186),
            "alpha": 0.33917084,
            "beta": 0.2849083,
        },
        uncertainty="the paper's interval of the exponent, 0.454 to 0.455, is far too narrow to be "
        "used (Besiroglu et al. 2024)",
        ranges=_HOFFMANN_RANGE,
    ),
    "chinchilla-approach1": PublishedLaw(
        law="frontier",
        source="Hoffmann et al. 2022, Table 3 (Approach 1), line through its sizes",
        convention="total",
        parameters={"a": 0.4978, "b": 0.5022, "k_N": 0.1009, "k_D": 1.652},
        intervals={"a": (0.488, 0.502), "b": (0.501, 0.512)},
        interval_level=0.8,
        uncertainty="the published 10th and 90th percentiles of the exponent, the law turned about the middle of "
        "the fitted budgets: the error of its level is not published, so somewhat too narrow",
        ranges=_HOFFMANN_RANGE,
    ),
    "besiroglu2024": PublishedLaw(
        law="parametric",
        source="Besiroglu et al. 2024 (2404.10102), refit of Hoffmann et al.'s Fig. 4",
        convention="total",
        parameters={"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658},
        intervals={
            "E": (1.769, 1.871),
            "A": (285.0, 744.0),
            "B": (1042.0, 5810.0),
            "alpha": (0.317, 0.373),
            "beta": (0.331, 0.415),
        },
        uncertainty="the published 95% intervals, joined by the correlation that a fit to a design "
        "like Hoffmann et al.'s has at these constants (inverse Hessian of log loss; it gives the "
        "exponent the published standard error of 0.020)",
        ranges=_HOFFMANN_RANGE,
    ),
    "porian2024": PublishedLaw(
        law="frontier",
        source="Porian et al. 2024 (2406.19146), RefinedWeb, tuned hyper-parameters",
        convention="standard",
        parameters={"a": 0.49689508, "b": 0.50310492, "k_N": 0.11892648, "k_D": 1.401426},
        intervals={"a": (0.4906816, 0.50452396)},
        uncertainty="the published 95% interval of the exponent, the law turned about the middle of "
        "the fitted budgets: the error of its level is not published, so somewhat too narrow",
        ranges={"params": (5e6, 9.02e8), "flops": (1.25e16, 2.56e19)},
        note="N counts the output head and not the input embedding",
    ),
    "muennighoff2023": PublishedLaw(
        law="data-constrained",
        source="Muennighoff et al. 2023 (2305.16264), C4",
        convention="total",
        parameters=MUENNIGHOFF,
        uncertainty="the paper publishes no error of its constants",
        # 182 runs of the authors' repository, FLOPs as 6 N D.
        ranges={"params": (7.1e6, 8.67e9), "tokens": (1e8, 9e11), "flops": (4.26e15, 9.26e21)},
        note="the decay constants are one of several nearly equal minima on the authors' runs",
    ),
    "gadre2024-c4": PublishedLaw(
        law="over-training",
        source="Gadre et al. 2024 (2403.08540), C4",
        convention="total",
        parameters=_gadre(1.50826, 113.693, 189.516, -0.242472),
        uncertainty="the paper publishes no error of its constants",
        ranges=_GADRE_RANGE,
    ),
    "gadre2024-redpajama": PublishedLaw(
        law="over-training",
        source="Gadre et al. 2024 (2403.08540), RedPajama",
        convention="total",
        parameters=_gadre(1.83665, 166.211, 366.687, -0.272851),
        uncertainty="the paper publishes no error of its constants",
        ranges=_GADRE_RANGE,
    ),
    "gadre2024-refinedweb": PublishedLaw(
        law="over-training",
        source="Gadre et al. 2024 (2403.08540), RefinedWeb",
        convention="total",
        parameters=_gadre(1.73446, 125.096, 246.207, -0.254395),
        uncertainty="the paper publishes no error of its constants",
        ranges=_GADRE_RANGE,
    ),
    "olmo-ladder2024": PublishedLaw(
        law="parametric",
        source="Bhagia et al. 2024 (2412.04403), C4 loss of the model ladder",
        convention="given",
        parameters={"E": 0.934375, "A": 12.48, "B": 33.48, "alpha": 0.103603, "beta": 0.161969},
        uncertainty="the paper publishes no error of its constants",
        # Sixteen runs of the authors' repository, FLOPs as 6 N D; the 7B and 13B models tested it.
        ranges={
            "params": (1.9e8, 1.28e9),
            "tokens": (3.81e9, 2.56e11),
            "flops": (4.35e18, 1.96e21),
        },
        note="sixteen runs: E and both exponents are loosely held",
    ),
}

_MODELS: dict[str, Callable[..., Any]] = {
    "parametric": chinchilla_loss,
    "kaplan-nd": kaplan_nd_loss,
    "kaplan-ns": kaplan_ns_loss,
    "data-constrained": data_constrained_loss,
    "over-training": over_training_loss,
}


def published(name: str) -> FitResult:
    """A published law as a `FitResult` (law "frontier" where only N_opt and D_opt are given)."""
    if name not in PUBLISHED:
        raise FitError(f"there is no published law {name!r}; choose from {', '.join(PUBLISHED)}")
    item = PUBLISHED[name]
    p = item.parameters
    exponents = {}
    if "a" in p and "b" in p and item.law == "frontier":
        exponents = {item.convention: {"N": p["a"], "D": p["b"]}}
    elif "alpha" in p:
        total = p["alpha"] + p["beta"]
        exponents = {item.convention: {"N": p["beta"] / total, "D": p["alpha"] / total}}
    warnings = [f"{name}: {item.note}"] if item.note else []
    if item.intervals:
        warnings.append(f"{name}: intervals are from {item.uncertainty}")
    else:
        warnings.append(f"{name}: no intervals: {item.uncertainty}")
    return FitResult(
        law=item.law,
        parameters=dict(p),
        intervals=dict(item.intervals),
        level=item.interval_level,
        draw_level=0.95,
        interval_method=f"from {item.uncertainty}" if item.intervals else "none",
        exponents=exponents,
        warnings=tuple(warnings),
        ranges=dict(item.ranges),
        draws=_draws(item) if item.intervals else {},
        details={"published": name, "source": item.source, "convention": item.convention},
        model=_MODELS.get(item.law),
    )


def _draws(item: PublishedLaw) -> dict[str, Any]:
    """Draws of the parameters of a law whose paper publishes intervals."""
    if item.law == "frontier":
        return frontier_draws(
            item.parameters, item.intervals, item.interval_level, item.ranges["flops"]
        )
    correlation = design_correlation(item.parameters, *hoffmann_design())
    return joint_draws(item.parameters, item.intervals, item.interval_level, correlation)
