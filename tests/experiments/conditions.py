"""Which claims a grid cannot decide whatever its losses are: their conditions, read off the declaration.

The thresholds are those of the studies. What depends on losses (a minimum inside the sizes, a best rate
inside the search) is not here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lmscale import flops
from lmscale.laws.isoflop import MIN_POINTS
from lmscale.studies import (
    cells,
    context,
    cooldown,
    critical_batch,
    dataset,
    efficiency,
    estimate,
    families,
    learning_curves,
    learning_rate,
    position,
    schedules,
    shape,
    size,
    transfer,
)
from lmscale.studies.compute import fixed_batch_undecided
from lmscale.studies.exponents import LEAST_BUDGETS
from lmscale.sweep.experiment import Experiment, Run


@dataclass(frozen=True)
class Grid:
    """What an experiment declares, and the training tokens of its corpus."""

    experiment: Experiment
    runs: Sequence[Run]
    corpus_tokens: int

    @property
    def seeds(self) -> int:
        return len({run.spec.seed for run in self.runs})

    @property
    def models(self) -> list[Any]:
        return list(dict.fromkeys(run.spec.model for run in self.runs))

    def sizes(self, kind: str = "") -> list[float]:
        """N without embeddings, of one architecture or all."""
        return sorted({kaplan(m) for m in self.models if kind in ("", m.kind)})

    def of(self, *labels: str) -> list[Run]:
        """The runs of families whose name ends with one of the labels."""
        return [run for run in self.runs if str(run.labels.get("family", "")).endswith(labels)]


def kaplan(model: Any) -> float:
    return float(flops.n_params(model, "kaplan"))


def few_seeds(grid: Grid) -> str:
    return estimate.few_seeds(grid.seeds)


def few_budgets(grid: Grid) -> str:
    sizes: dict[tuple[Any, float], set[Any]] = {}
    for run in grid.runs:
        if "budget" in run.labels:
            place = (run.labels.get("family"), run.labels["budget"])
            sizes.setdefault(place, set()).add(run.spec.model)
    families = {family for family, _ in sizes}
    usable = [
        sum(len(found) >= MIN_POINTS for (name, _), found in sizes.items() if name == family)
        for family in families
    ]
    return "" if min(usable, default=0) >= LEAST_BUDGETS else f"fewer than {LEAST_BUDGETS} budgets"


def unfinished(grid: Grid) -> str:
    rows = [
        {"params_kaplan": kaplan(run.spec.model), "tokens": run.spec.n_tokens} for run in grid.runs
    ]
    return cells.unfinished(pd.DataFrame(rows))


def short(*labels: str) -> Callable[[Grid], str]:
    def why(grid: Grid) -> str:
        return cooldown._short(float(np.median([run.spec.steps for run in grid.of(*labels)])))

    return why


def few_schedules_steps(grid: Grid) -> str:
    least = schedules.LEAST_SHARE * schedules.PAPER_STEPS
    steps = min(run.spec.steps for run in grid.runs)
    return "" if steps >= least else f"{steps} steps, and {least:g} are needed"


def few_depths(grid: Grid) -> str:
    deep = [m for m in grid.models if m.n_layer >= families.LEAST_DEPTH]
    return "" if len(deep) >= families.LEAST_MODELS else "too few models of two or more layers"


def shape_range(panel: str) -> Callable[[Grid], str]:
    def ratio(model: Any) -> float:
        return {
            "aspect": model.d_model / model.n_layer,
            "ff_ratio": model.d_ff / model.d_model,
            "head_width": model.d_model / model.n_head,
        }[panel]

    def why(grid: Grid) -> str:
        scans = [run for run in grid.runs if f"{panel}:" in run.labels["scans"]]
        found = [ratio(run.spec.model) for run in scans]
        reached = f"the shapes reach from {min(found):.3g} to {max(found):.3g}"
        if panel == "aspect":
            return "" if max(found) / min(found) >= shape.ASPECT_RANGE else reached
        low, high = shape.RANGES[panel]
        return "" if min(found) <= low * 1.01 and max(found) >= high * 0.99 else reached

    return why


def few_batches(grid: Grid) -> str:
    batches = {run.spec.batch_size for run in grid.runs}
    return "" if len(batches) >= critical_batch.LEAST_BATCHES else f"{len(batches)} batches"


def b_over_critical(grid: Grid) -> float:
    """The batch over B_crit at the loss of a guess among all tokens, where B_crit is least."""
    law = grid.experiment.critical_batch or learning_curves.KAPLAN_CRITICAL_BATCH
    loss = math.log(max(model.vocab_size for model in grid.models))
    batch = max(run.spec.batch_tokens for run in grid.runs)
    return batch / (law[0] / loss ** (1 / law[1]))


def fixed_batch(grid: Grid) -> str:
    return fixed_batch_undecided(b_over_critical(grid))


def unsure_batch(grid: Grid) -> str:
    return "" if len(grid.experiment.critical_batch or ()) == 6 else "B_crit(L) has no error"


def unsure_above(grid: Grid) -> str:
    return unsure_batch(grid) if b_over_critical(grid) > 1 / learning_curves.FAR else ""


def narrow_sizes(grid: Grid) -> str:
    span = grid.sizes()[-1] / grid.sizes()[0]
    return "" if span >= efficiency.PAPER_SPAN else f"sizes over a factor of {span:.3g}"


def little_text(grid: Grid) -> str:
    tokens = dataset.RULE[0] * max(flops.n_params(m, "kaplan") for m in grid.models) ** 0.74
    return "" if tokens <= grid.corpus_tokens else f"the rule asks for {tokens:.3g} tokens"


def epochs(low: float, high: float) -> Callable[[Grid], str]:
    def why(grid: Grid) -> str:
        found = {
            run.spec.n_tokens / run.spec.data.subset_tokens
            for run in grid.runs
            if run.spec.data.subset_tokens
        }
        there = any(low <= round(count, 2) <= high for count in found)
        return "" if there else f"no runs of {low:g} to {high:g} epochs"

    return why


def built_in_text(grid: Grid) -> str:
    corpora = {e.corpus for run in grid.runs for e in run.spec.evals[1:]}
    far = all(name.startswith(transfer.BUILT_IN) for name in corpora)
    return "every other text is built in, and of another kind" if far else ""


def small_or_short(grid: Grid) -> str:
    largest = max(grid.models, key=kaplan)
    context_tokens = max(m.n_ctx for m in grid.models)
    enough = kaplan(largest) >= context.PAPER_LEAST_N
    enough &= context_tokens >= context.PAPER_LEAST_CONTEXT
    return "" if enough else f"N = {kaplan(largest):.3g} with a context of {context_tokens}"


def one_context(grid: Grid) -> str:
    return "" if len({m.n_ctx for m in grid.models}) > 1 else "one context"


def few_looks(grid: Grid) -> str:
    looks = max(len(run.spec.eval_steps) for run in grid.runs) + 1
    return "" if looks >= context.LEAST_STEPS else f"{looks} evaluations"


def small(grid: Grid) -> str:
    smallest = grid.sizes()[0]
    return "" if smallest >= learning_rate.STEPLAW_LEAST_N else f"sizes from {smallest:.3g}"


def both_reach(low: float, high: float) -> Callable[[Grid], str]:
    def why(grid: Grid) -> str:
        first = max(grid.sizes("transformer")[0], grid.sizes("lstm")[0])
        last = min(grid.sizes("transformer")[-1], grid.sizes("lstm")[-1])
        return "" if first <= low and last >= high else f"sizes from {first:.3g} to {last:.3g}"

    return why


def short_context(grid: Grid) -> str:
    n_ctx = max(m.n_ctx for m in grid.models)
    return "" if n_ctx >= 2 * position.BEYOND else f"a context of {n_ctx}"


KAPLAN_N = size.KAPLAN_N
#: Estimate -> what its claims need of a grid.
CONDITIONS: dict[str, tuple[Callable[[Grid], str], ...]] = {
    **dict.fromkeys(
        (
            *("isoflop/a", "isoflop/a_kaplan", "isoflop/tokens_per_param_exponent"),
            *("isoflop/tokens_per_param", "envelope/a", "parametric/a"),
            *("isoflop/kaplan_minus_native", "envelope/a_minus_approach_2"),
            *("parametric/a_minus_approach_2", "reconcile/a_1", "reconcile/a_5"),
        ),
        (few_budgets,),
    ),
    **dict.fromkeys(
        (
            *("cooldown/a_difference", "reconcile/change_2", "reconcile/change_3"),
            *("reconcile/change_4", "reconcile/change_5", "reconcile/change_all"),
        ),
        (few_budgets, few_seeds),
    ),
    "cooldown/loss_difference": (few_seeds, short("cosine", "cooldown")),
    "cooldown/best_lr_ratio": (few_seeds, short("swept")),
    "recurrent/params": (few_seeds, unfinished),
    "recurrent/compute": (few_seeds, unfinished),
    "families/collapse": (few_depths, unfinished),
    "families/single_layer": (few_seeds, few_depths, unfinished),
    "families/alpha_N": (few_depths, unfinished),
    "shape/aspect": (few_seeds, shape_range("aspect"), unfinished),
    "shape/ff_ratio": (few_seeds, shape_range("ff_ratio")),
    "shape/head_width": (few_seeds, shape_range("head_width")),
    "schedules/spread": (few_seeds, few_schedules_steps),
    **dict.fromkeys(
        (
            *("schedules/overshoot", "schedules/overshoot_quarter", "schedules/zero_over_tenth"),
            *("schedules/cosine_over_linear", "schedules/cooldown_over_cosine"),
            *("efficiency/exponent", "transfer/stage_shift", "context/first_token"),
            *("size/gap", "position/early"),
        ),
        (few_seeds,),
    ),
    "critical_batch/size_ratio": (few_seeds, few_batches),
    "critical_batch/power": (few_seeds, few_batches),
    "critical_batch/noise_ratio": (few_seeds, few_batches),
    "compute/alpha_C": (few_seeds, fixed_batch),
    "compute/size_exponent": (few_seeds, fixed_batch),
    "compute/alpha_C_min": (few_seeds, unsure_above),
    "compute/size_exponent_min": (few_seeds, unsure_above),
    "compute/exponent_ratio": (few_seeds, unsure_batch),
    "compute/excess": (few_seeds, unsure_batch),
    "compute/off_optimum": (few_seeds,),
    "learning/alpha_S": (few_seeds, unsure_batch),
    "learning/alpha_N": (few_seeds, unsure_batch),
    "efficiency/ratio": (few_seeds, narrow_sizes),
    "dataset/more_overfitting": (few_seeds,),
    "dataset/overfitting_exponent": (),
    "dataset/overfitting_at_rule": (little_text,),
    "dataset/share_above_stopping_bound": (),
    "dataset/data_exponent": (),
    "repeat/excess_at_4": (few_seeds, epochs(3.9, 4.1)),
    "repeat/worth_at_16": (few_seeds, epochs(16 / 1.3, 16 * 1.3)),
    "repeat/gain_beyond_40": (few_seeds, epochs(20.1, 40), epochs(40.1, 1e9)),
    "repeat/R_D_star": (),
    "transfer/slope": (few_seeds, built_in_text),
    "context/exponent": (small_or_short,),
    "context/long_range_delay": (few_seeds, few_looks),
    "context/short_context_gain": (few_seeds, one_context),
    "learning_rate/n_exponent": (),
    "learning_rate/d_exponent": (),
    "learning_rate/b_exponent": (),
    "learning_rate/steplaw_n": (small,),
    "learning_rate/steplaw_d": (small,),
    "learning_rate/steplaw_batch": (small,),
    "size/gap_at_400k": (few_seeds, both_reach(KAPLAN_N * 1.2, KAPLAN_N / 1.2)),
    "size/widening": (
        few_seeds,
        both_reach(KAPLAN_N * 1.2, size.LEAST_RANGE * KAPLAN_N / 1.2),
    ),
    "position/transformer_gain": (few_seeds, short_context),
    "position/lstm_gain": (few_seeds, short_context),
    "position/behind_beyond": (few_seeds, short_context),
}


def unmet(grid: Grid) -> dict[str, str]:
    """Estimate of a claim -> why the grid cannot decide it; without those that it can.

    Raises:
      KeyError: when a claim has no conditions here.
    """
    found = {}
    for claim in grid.experiment.claims:
        reasons = [condition(grid) for condition in CONDITIONS[claim.measure]]
        if why := "; ".join(filter(None, reasons)):
            found[claim.measure] = why
    return found
