"""Cooldowns instead of cosines: an IsoFLOP grid whose runs share one trunk per model size.

Hägele et al. 2024, Fig. 1 and 10. A cosine must end with the run, so a grid trains every cell from
scratch. At a constant learning rate the cells of one size are prefixes of each other: one trunk is
trained, and at every budget a branch leaves it whose rate falls as 1 - sqrt over the last 20% of its
steps. The paper found that this matches the cosine's loss, that the best constant rate is about half
the best cosine peak, and that Chinchilla's suite would have cost 2.36e23 FLOPs in place of 5.59e23. That last
ratio is a count, which follows from how many budgets a size belongs to: the report gives it for the
grid here, whose budgets lie close together, and holds it against nothing.

    lmscale run cooldown                      # cpu: 6 budgets x 4 sizes x 2 schedules x 3 seeds
    lmscale run cooldown --scale gpu          # 9 budgets x 6 sizes, under an hour on one H100
    lmscale plan cooldown --scale paper --device v5p:256

One cell is also trained at other learning rates under both schedules. The paper is about runs of
thousands of updates: at cpu scale a step is one sequence, so that the median run has more than 5,000.
At paper scale context, batch (0.1M tokens, 0.2M for the largest size), vocabulary, warmup, weight decay
and learning rates are the paper's; of its sizes from 33M to 360M we do not have the shapes, so the
shapes are ours.
"""

import math
from dataclasses import dataclass, field

from lmscale.flops import n_params, training_flops_per_token
from lmscale.spec import OptimizerSpec, RunSpec, ScheduleSpec, StartSpec
from lmscale.sweep import (
    CENTRE,
    GPU_RECIPE,
    Run,
    TransformersBySize,
    batch_for,
    default_rule,
    finding,
    nearest_sizes,
    product,
    published_number,
)

LONGER = "runs of 5000 steps and more, as in the paper: the scale paper"


@dataclass(frozen=True, kw_only=True)
class Cooldown(TransformersBySize):
    title = "Cooldowns from one trunk against a cosine per cell"
    analyses = ("cooldown", "curves")
    claims = (
        finding(
            "cooldown/loss_difference",
            "A 1-sqrt cooldown over 20% of the steps matches a cosine (within 0.02 nats; our "
            "bound).",
            "Hägele et al. 2024, Fig. 3 and 5",
            at_least=-0.02,
            at_most=0.02,
            would_tell=LONGER,
        ),
        finding(
            "cooldown/a_difference",
            "Cooldowns give the same exponent of N_opt as cosines (to 0.05; our bound).",
            "Hägele et al. 2024, section 5",
            at_least=-0.05,
            at_most=0.05,
            would_tell="budgets over a wider range (--scale gpu)",
        ),
        finding(
            "cooldown/best_lr_ratio",
            "The best constant learning rate is below the best peak of a cosine.",
            "Hägele et al. 2024, section 3",
            at_most=1.0,
            would_tell=LONGER,
        ),
        published_number(
            "cooldown/best_lr_ratio",
            "The best constant learning rate is about half the best peak of a cosine (here: 0.35 to 0.7; "
            "our range).",
            "Hägele et al. 2024, section 3",
            0.35,
            0.7,
            would_tell=LONGER,
        ),
    )

    budgets: tuple[float, ...] = field(metadata={"help": "training FLOPs (6ND) of each profile"})
    sizes_per_budget: int = field(metadata={"help": "sizes of a profile, around its best"})
    tokens_per_param: float = field(
        default=20.0, metadata={"help": "tokens per parameter that each profile is centred on"}
    )
    spread: float | None = field(
        default=None,
        metadata={"help": "a profile's sizes reach this factor to either side; none: the nearest"},
    )
    batch_size: int | None = field(
        default=2, metadata={"help": "sequences; none goes with the shortest run of each size"}
    )
    large_batch: int | None = field(
        default=None, metadata={"help": "sequences of sizes above 3e8 (with the head), if another"}
    )
    weight_decay: float = 0.0
    warmup_steps: int = field(metadata={"help": "of every run: branches of a trunk share its own"})
    cooldown: float = field(default=0.2, metadata={"help": "share of a branch's steps"})
    constant_lr: float = field(
        default=0.5, metadata={"help": "constant learning rate over the cosine's peak"}
    )
    swept_lrs: tuple[float, ...] = field(
        default=(), metadata={"help": "multiples of the cosine's peak to try at one cell"}
    )
    swept_budget: int = field(default=0, metadata={"help": "place of that cell among the budgets"})
    #: In whose units the budgets are set: C = 6ND with the head in N.
    convention: str = "standard"

    def check(self):
        if self.swept_lrs and self.swept_budget >= len(self.budgets):
            most = len(self.budgets) - 1
            raise self.wrong(
                "swept_budget", f"must be a place among the {most + 1} budgets, 0 to {most}"
            )

    def models(self, budget, vocab_size):
        """The shapes of the ladder around the budget's centre."""
        return nearest_sizes(
            self.ladder(vocab_size),
            budget,
            self.sizes_per_budget,
            tokens_per_param=self.tokens_per_param,
            convention=self.convention,
            spread=self.spread,
        )

    def batch(self, model, budgets):
        """Sequences a step: every run of a size has the same, as its branches share a trunk."""
        if self.batch_size is None:
            tokens = min(budgets) / training_flops_per_token(model, self.convention)
            return batch_for(tokens, model.n_ctx)
        large = self.large_batch and n_params(model, "standard") > 3e8
        return self.large_batch if large else self.batch_size

    def peak(self, model):
        """Peak learning rate of the cosine."""
        if max(self.sizes) >= 1e8:
            return 2e-3 if n_params(model, "standard") < 1.1e8 else 1e-3  # The paper's.
        return default_rule(self.compute_dtype, self.base_lr)(model, 0, 0)

    def runs(self, corpus):
        budgets = {}
        for budget in self.budgets:
            for model in self.models(budget, corpus.vocab_size):
                budgets.setdefault(model, []).append(budget)
        batches = {model: self.batch(model, own) for model, own in budgets.items()}
        cells = {
            model: {
                budget: round(
                    budget
                    / training_flops_per_token(model, self.convention)
                    / (batches[model] * self.n_ctx)
                )
                for budget in own
            }
            for model, own in budgets.items()
        }
        longest = {model: max(lengths.values()) for model, lengths in cells.items()}

        def spec(model, steps, rate, schedule, seed, **fields):
            return RunSpec(
                model=model,
                data=self.data(corpus),
                evals=self.evals(corpus),
                batch_size=batches[model],
                steps=steps,
                seed=seed,
                optimizer=OptimizerSpec(
                    peak_lr=float(f"{rate:.6g}"), weight_decay=self.weight_decay
                ),
                schedule=ScheduleSpec(warmup_steps=self.warmup_steps, **schedule),
                compute_dtype=self.compute_dtype,
                **fields,
            )

        def cosine(model, steps, seed, factor=1.0):
            rate = factor * self.peak(model)
            return spec(model, steps, rate, {"name": "cosine", "final_fraction": 0.1}, seed)

        def branch(model, steps, seed, factor, trunk=None):
            tail = math.ceil(self.cooldown * steps)
            schedule = {"name": "cooldown", "cooldown_steps": tail, "final_fraction": 0.0}
            start = StartSpec(run=trunk.run_id, step=steps - tail) if trunk else None
            rate = factor * self.peak(model)
            return spec(model, steps, rate, schedule, seed, start=start)

        runs = []
        for (model, lengths), seed in ((c, s) for c in cells.items() for s in self.seeds):
            last = longest[model] - math.ceil(self.cooldown * longest[model])
            rate = self.constant_lr * self.peak(model)
            trunk = spec(model, last, rate, {"name": "constant"}, seed)
            runs.append(Run(trunk, {"family": "trunk", "start_step": 0}))
            for budget, steps in lengths.items():
                labels = {"budget": budget, "start_step": 0}
                runs.append(Run(cosine(model, steps, seed), {"family": "cosine", **labels}))
                cooled = branch(model, steps, seed, self.constant_lr, trunk)
                labels = {**labels, "start_step": cooled.start.step}
                runs.append(Run(cooled, {"family": "cooldown", **labels}))
        if self.swept_lrs:
            budget = self.budgets[self.swept_budget]
            model = self.models(budget, corpus.vocab_size)[0]
            steps = cells[model][budget]
            for choice in product(factor=self.swept_lrs, seed=self.seeds):
                labels = {"start_step": 0, "lr_multiple": choice["factor"]}
                for family, make in (("cosine, swept", cosine), ("cooldown, swept", branch)):
                    runs.append(Run(make(model, steps, **choice), {"family": family, **labels}))
        return runs


SCALES = {
    "cpu": Cooldown(
        vocab_size=512,
        budgets=tuple(8e10 * 1.45**i for i in range(6)),
        n_layer=2,
        sizes=tuple(24.0 * width**2 for width in (16, 24, 32, 48, 64, 96)),
        sizes_per_budget=4,
        tokens_per_param=18.0,
        init_std=0.08,
        positions="rotary",
        batch_size=1,
        warmup_steps=100,
        swept_lrs=(0.25, 0.5, 1.0, 2.0, 4.0),
        swept_budget=2,
        eval_tokens=32_768,
        seeds=(0, 1, 2),
    ),
    "gpu": Cooldown(
        **GPU_RECIPE,
        **CENTRE | {"spread": 2.3},
        budgets=tuple(2.5e14 * 1.45**i for i in range(9)),
        sizes=tuple(3e5 * 1.5**i for i in range(11)),
        sizes_per_budget=6,
        n_ctx=512,
        batch_size=None,
        warmup_steps=100,
        swept_lrs=(0.25, 0.5, 1.0, 2.0),
        swept_budget=1,
        eval_tokens=2**20,
        seeds=(0, 1, 2),
    ),
    "paper": Cooldown(
        vocab_size=50_304,
        budgets=tuple(1.3e17 * 1.5**i for i in range(13)),
        sizes=(1.5e7, 3e7, 5e7, 8.5e7, 1.3e8, 2e8, 3e8),
        sizes_per_budget=5,
        n_ctx=512,
        batch_size=200,
        large_batch=400,
        weight_decay=0.1,
        warmup_steps=300,
        swept_lrs=(0.25, 0.5, 1.0, 2.0, 4.0),
        swept_budget=4,
        compute_dtype="bfloat16",
        eval_tokens=2**24,
        seeds=(0, 1, 2),
    ),
}
