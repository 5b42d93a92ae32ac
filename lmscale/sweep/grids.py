"""Grids of runs: IsoFLOP (Hoffmann et al. 2022, Approach 2) and plain products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmscale import flops, hparams, optimizers
from lmscale.architectures import TransformerSpec, transformer_ladder
from lmscale.data import Corpus
from lmscale.serialize import MOST
from lmscale.spec import (
    DataSpec,
    EvalSpec,
    ModelSpec,
    OptimizerSpec,
    RunSpec,
    ScheduleName,
    ScheduleSpec,
    SpecError,
)
from lmscale.sweep.dropped import budget_name, drop
from lmscale.sweep.experiment import Experiment, Run
from lmscale.sweep.fields import count_product, most_runs
from lmscale.sweep.gpu_recipe import batch_for, head_multiple

#: Training of Kaplan et al. 2020, section 2.2, as fields of `SharedRecipe`. Above 1e9 parameters Adam's
#: moments did not fit their memory.
KAPLAN_RECIPE: dict[str, Any] = {
    "vocab_size": 50_257,
    "steps": 250_000,
    "n_ctx": 1024,
    "batch_size": 512,
    "warmup_fraction": 3000 / 250_000,
    "final_fraction": 0.0,
    "optimizer": "adam",
    "large_optimizer": "adafactor",
    "compute_dtype": "bfloat16",
}
#: Non-embedding parameters above which `SharedRecipe.large_optimizer` is used.
LARGE = 1e9

#: Help of fields of experiments.
POSITIONS_HELP = (
    "of Transformers: learned, as in GPT-2 and the papers, or rotary, which models that see few tokens "
    "learn from much sooner"
)
BASE_LR_HELP = (
    "peak learning rate at width 32, from which other widths follow; none: a rule by scale"
)


#: A learning-rate rule: (model, training tokens, tokens a batch) -> peak learning rate.
LearningRateRule = Callable[[ModelSpec, int, int], float]


def isoflop_grid(
    budgets: Sequence[float],
    models: Sequence[ModelSpec] | Callable[[float], Sequence[ModelSpec]],
    *,
    data: DataSpec,
    evals: tuple[EvalSpec, ...],
    batch_size: int | None,
    learning_rate: LearningRateRule,
    convention: str = "standard",
    lr_factors: Sequence[float] = (1.0,),
    centre_lr_factors: Sequence[float] = (),
    seeds: Sequence[int] = (0,),
    min_steps: int = 50,
    **recipe: Any,
) -> list[Run]:
    """For every budget and model, the run that spends the budget: D = C / (FLOPs per token).

    Args:
      budgets: training FLOPs.
      models: the models, or a function from a budget to them.
      batch_size: sequences; None takes `lmscale.sweep.gpu_recipe.batch_for` the run's tokens.
      convention: what counts as FLOPs (`lmscale.flops.CONVENTIONS`).
      lr_factors: multiples of the rule's learning rate to try; they train in the same pack, and the
        analyses keep the best of each cell.
      centre_lr_factors: more multiples, tried at each architecture's middle size of a budget only: they
        show how good the rule is there, and no analysis of sizes takes their losses (`mark_best_lr`).
      min_steps: cells that would train for fewer updates than this are dropped, which `plan` and `run` say.
      recipe: passed to `make_run`.

    Returns:
      Runs with the labels budget, family, lr_factor.
    """
    runs: list[Run] = []
    for budget in budgets:
        chosen = models(budget) if callable(models) else models
        cells: list[tuple[ModelSpec, int, int]] = []
        short: list[tuple[ModelSpec, int, int]] = []
        for model in chosen:
            tokens = budget / flops.training_flops_per_token(model, convention)
            batch = batch_for(tokens, model.n_ctx) if batch_size is None else batch_size
            steps = round(tokens / (batch * model.n_ctx))
            _check_steps(steps, model, f"{budget_name(budget)} is too much: it")
            (cells if steps >= min_steps else short).append((model, batch, steps))
        for model, batch, _ in short:
            why = (
                f"fewer than {min_steps} updates of {batch} x {model.n_ctx} tokens "
                f"(at most {max(cell[2] for cell in short)})"
            )
            drop(budget_name(budget), model.label, why, kept=len(cells))
        most_runs(len(runs) + len(cells) * len(lr_factors) * len(seeds))
        for model, batch, steps in cells:
            alike = sorted(
                (other for other in chosen if other.kind == model.kind),
                key=lambda other: flops.n_params(other, "exact"),
            )
            centre = centre_lr_factors if model is alike[len(alike) // 2] else ()
            factors = sorted({*lr_factors, *centre})
            for factor, seed in itertools.product(factors, seeds):
                spec = make_run(
                    model,
                    steps=steps,
                    data=data,
                    evals=evals,
                    batch_size=batch,
                    learning_rate=learning_rate,
                    lr_factor=factor,
                    seed=seed,
                    **recipe,
                )
                runs.append(
                    Run(spec, {"family": model.kind, "budget": budget, "lr_factor": factor})
                )
    return runs


def make_run(
    model: ModelSpec,
    *,
    steps: int,
    data: DataSpec,
    evals: tuple[EvalSpec, ...],
    batch_size: int,
    learning_rate: LearningRateRule,
    lr_factor: float = 1.0,
    seed: int = 0,
    warmup_fraction: float = 0.05,
    schedule: ScheduleName = "cosine",
    final_fraction: float = 0.1,
    optimizer: str = "adamw",
    beta2: float = OptimizerSpec.beta2,
    weight_decay: float = 0.0,
    **fields: Any,
) -> RunSpec:
    """A run with a warmup of a share of its steps and a peak learning rate from a rule."""
    _check_steps(steps, model, "this")
    rate = lr_factor * learning_rate(
        model, steps * batch_size * model.n_ctx, batch_size * model.n_ctx
    )
    rate *= optimizers.optimizer(optimizer).lr_factor
    return RunSpec(
        model=model,
        data=data,
        evals=evals,
        batch_size=batch_size,
        steps=steps,
        seed=seed,
        # Rounded to six digits, so that another library version's rounding does not rename the run.
        optimizer=OptimizerSpec(
            name=optimizer,
            peak_lr=float(f"{rate:.6g}"),
            beta2=beta2,
            weight_decay=weight_decay,
        ),
        schedule=ScheduleSpec(
            name=schedule,
            warmup_steps=min(steps, max(1, math.ceil(warmup_fraction * steps))),
            final_fraction=final_fraction,
        ),
        **fields,
    )


def _check_steps(steps: int, model: ModelSpec, what: str) -> None:
    if steps > MOST["steps"]:
        raise SpecError(
            f"{what} trains {model.label} for {steps:.3g} steps, and a run has at most "
            f"{MOST['steps']:.0e}"
        )


def product(**choices: Iterable[Any]) -> Iterator[dict[str, Any]]:
    """Every combination of the choices, as dictionaries; the last name varies fastest.

    Raises:
      ExperimentError: when there are too many.
    """
    for values in itertools.product(*count_product(choices.values())):
        yield dict(zip(choices, values, strict=True))


def width_rule(base: float | None = None) -> LearningRateRule:
    """Peak rates for runs of a few thousand small updates on a CPU, one rule an architecture.

    Each architecture has its own (`ModelSpec.short_run_lr`). Transformer: base * sqrt(32 / d_model),
    with a base of 0.006. LSTM: 0.0095 up to a d_hidden of 256, over which its best rate was measured not
    to depend on the width; for larger ones 0.0095 * sqrt(256 / d_hidden), which is assumed.

    Measured on Python text (vocabulary 512) with AdamW, a cosine to a tenth, contexts of 256, on the
    whole validation split, one seed; the best rate is the minimum of a parabola through three rates
    a factor of about two apart (RESULTS.md has the losses):

      1,200 steps of 2 sequences
        Transformer of one layer, init_std 0.08, d_model 22, 36, 56: 0.0092, 0.0059, 0.0036, where the
          rule gives 0.0072, 0.0057, 0.0045; of two layers, d_model 40: 0.0061 (rule: 0.0054)
        LSTM of one layer with `LSTM_INIT`, d_hidden 20, 32, 68, 124, 256: 0.0112, 0.0091, 0.0088,
          0.0092, 0.0085
      4,000 steps of 4 sequences
        Transformer, d_model 36: 0.0067; LSTM, d_hidden 32: 0.0075

    A rate that is off by a factor of two costs 0.02 to 0.25 nats, more if it is too high, so comparisons
    search around the rule. The published rules are fitted to far longer runs and larger batches; their
    rates are useless here.
    """

    def rule(model: ModelSpec, n_tokens: int, batch_tokens: int) -> float:
        return model.short_run_lr(base)

    return rule


def default_rule(compute_dtype: str, base_lr: float | None = None) -> LearningRateRule:
    """`width_rule` in float32, which is for CPUs; the rule of Kaplan et al. 2020 otherwise.

    With `base_lr` it is `width_rule(base_lr)`, as in `lmscale.sweep.gpu_recipe`.
    """
    if base_lr is not None:
        return width_rule(base_lr)
    if compute_dtype == "float32":
        return width_rule()

    def rule(model: ModelSpec, n_tokens: int, batch_tokens: int) -> float:
        return hparams.kaplan_lr(flops.n_params(model, "kaplan"))

    return rule


@dataclass(frozen=True, kw_only=True)
class ByWidth(Experiment):
    """Base of experiments whose initial weights and learning rates may follow the width."""

    init_std: float | None = field(
        default=0.02,
        metadata={"help": "of the initial weights of Transformers; none goes with the width"},
    )
    positions: str = field(default="learned", metadata={"help": POSITIONS_HELP})
    base_lr: float | None = field(default=None, metadata={"help": BASE_LR_HELP})


@dataclass(frozen=True, kw_only=True)
class TransformersBySize(ByWidth):
    """Base of experiments on a ladder of Transformers, each of which trains by a recipe of its own."""

    sizes: tuple[float, ...] = field(metadata={"help": "non-embedding parameters of the ladder"})
    n_layer: int | None = field(
        default=None, metadata={"help": "one depth for the whole ladder, instead of one by size"}
    )
    n_ctx: int = 128
    compute_dtype: str = "float32"

    def ladder(self, vocab_size: int) -> list[TransformerSpec]:
        """One shape for each size."""
        return transformer_ladder(
            self.sizes,
            n_ctx=self.n_ctx,
            vocab_size=vocab_size,
            n_layer=self.n_layer,
            init_std=self.init_std,
            positions=self.positions,
            head_multiple=head_multiple(self.compute_dtype),
        )


@dataclass(frozen=True, kw_only=True)
class SharedRecipe(ByWidth):
    """Base of experiments whose models all train by one recipe, with a learning rate by size."""

    steps: int
    n_ctx: int
    batch_size: int = field(metadata={"help": "sequences"})
    warmup_fraction: float = field(default=0.05, metadata={"help": "of the steps"})
    final_fraction: float = field(
        default=0.1, metadata={"help": "of the learning rate, at the end"}
    )
    optimizer: str = "adamw"
    large_optimizer: str | None = field(
        default=None, metadata={"help": "of models above 1e9 parameters, where another"}
    )
    compute_dtype: str = "float32"

    def learning_rate(self, model: ModelSpec, n_tokens: int, batch_tokens: int) -> float:
        rule = default_rule(self.compute_dtype, self.base_lr)
        return rule(model, n_tokens, batch_tokens)

    def spec(self, corpus: Corpus, model: ModelSpec, **fields: Any) -> RunSpec:
        """The run of one model; `fields` are those of `make_run` that differ from the recipe."""
        large = self.large_optimizer and flops.n_params(model, "kaplan") > LARGE
        recipe: dict[str, Any] = {
            "steps": self.steps,
            "data": self.data(corpus),
            "evals": fields.get("evals") or self.evals(corpus),
            "batch_size": self.batch_size,
            "learning_rate": self.learning_rate,
            "warmup_fraction": self.warmup_fraction,
            "final_fraction": self.final_fraction,
            "optimizer": self.large_optimizer if large else self.optimizer,
            "compute_dtype": self.compute_dtype,
        }
        return make_run(model, **recipe | fields)
