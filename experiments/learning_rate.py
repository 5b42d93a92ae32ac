"""The best learning rate and batch, against model size and training tokens.

Every cell of a grid of sizes N, tokens D and batches B is trained at several learning rates. A parabola
through the losses of a cell gives its best rate, and a power law through those LR = c N^x D^y B^z. The
best batch of every (N, D) follows in the same way, and with it the rate at that batch, which is what
Li et al. 2025 ("StepLaw") publish: 1.79 N^-0.713 D^0.307 and 0.58 D^0.571 tokens.

    lmscale run learning_rate                # cpu: 3 sizes x 3 D x 3 batches x 5 rates, minutes
    lmscale run learning_rate --scale gpu    # 36 cells x 6 rates, 80 minutes on one H100
    lmscale plan learning_rate --scale paper --device v5p:256

The rule can drive other experiments: `lmscale run schedules --lr-fit
results/learning_rate-cpu/fits.json`, or `lmscale.hparams.fitted_rule` in an experiment of your own.

At paper scale the sizes, tokens and batches span those of Li et al., who trained 3700 models; as theirs,
runs warm up for 2000 steps (here for half of a shorter run at most) and their cosine ends at a rate of
1e-5 whatever its peak. Their shapes are not followed. Batches are rounded to whole sequences and tokens
to whole steps.
"""

from dataclasses import dataclass, field, replace

from lmscale import hparams
from lmscale.flops import n_params
from lmscale.sweep import (
    GPU_BATCH_TOKENS,
    GPU_RECIPE,
    Run,
    TransformersBySize,
    drop,
    finding,
    make_run,
    product,
    published_number,
    width_rule,
)

LARGER = "models of 10M parameters and more: the scale paper"
MORE_BATCHES = "batches over more decades below the critical one"


@dataclass(frozen=True, kw_only=True)
class LearningRate(TransformersBySize):
    title = "The best learning rate and batch against model size and training tokens"
    analyses = ("learning_rate", "curves")
    claims = (
        finding(
            "learning_rate/n_exponent",
            "Larger models want smaller learning rates.",
            "Kaplan et al. 2020, App. D.6",
            at_most=0.0,
            would_tell="sizes over more decades, or more rates a cell",
        ),
        finding(
            "learning_rate/d_exponent",
            "At a fixed batch longer runs want smaller learning rates.",
            "Bjorck et al. 2024: N^−0.23 D^−0.32",
            at_most=0.0,
            would_tell="tokens over more decades, or more rates a cell",
        ),
        finding(
            "learning_rate/b_exponent",
            "With Adam the best rate rises with the batch.",
            "McCandlish et al. 2018, section 2",
            at_least=0.0,
            would_tell=MORE_BATCHES,
        ),
        published_number(
            "learning_rate/b_exponent",
            "With Adam the best rate rises with the batch, as its power 0.5 to 1.",
            "McCandlish et al. 2018, section 2",
            0.5,
            1.0,
            would_tell=MORE_BATCHES,
        ),
        published_number(
            "learning_rate/steplaw_n",
            "At the best batch the best rate falls with size as N^−0.713.",
            "Li et al. 2025",
            -0.86,
            -0.56,
            would_tell=LARGER,
        ),
        published_number(
            "learning_rate/steplaw_d",
            "At the best batch the best rate rises with the tokens as D^0.307.",
            "Li et al. 2025",
            0.15,
            0.46,
            would_tell=LARGER,
        ),
        finding(
            "learning_rate/steplaw_batch",
            "The best batch grows with the tokens.",
            "Li et al. 2025",
            at_least=0.0,
            would_tell=LARGER,
        ),
        published_number(
            "learning_rate/steplaw_batch",
            "The best batch grows with the tokens as D^0.571.",
            "Li et al. 2025",
            0.45,
            0.7,
            would_tell=LARGER,
        ),
    )

    tokens: tuple[float, ...] = field(metadata={"help": "training tokens of every size"})
    batch_sizes: tuple[int, ...] = field(metadata={"help": "sequences"})
    lr_factors: tuple[float, ...] = field(
        default=(0.25, 0.5, 1.0, 2.0, 4.0),
        metadata={"help": "multiples of a first guess; the best should lie inside"},
    )
    least_steps: int = field(default=20, metadata={"help": "cells of fewer updates are left out"})
    warmup_steps: int | None = field(
        default=None, metadata={"help": "of every run, at most half of it; none takes a twentieth"}
    )
    final_lr: float | None = field(
        default=None, metadata={"help": "learning rate at the end; none takes a tenth of the peak"}
    )

    def schedule(self, spec):
        """The schedule of a run: a share of its steps and peak, or as Li et al. have it."""
        fields = {}
        if self.warmup_steps is not None:
            fields["warmup_steps"] = min(self.warmup_steps, spec.steps // 2)
        if self.final_lr is not None:
            fields["final_fraction"] = min(1.0, self.final_lr / spec.optimizer.peak_lr)
        return replace(spec.schedule, **fields)

    def learning_rate(self, model, n_tokens, batch_tokens):
        """A first guess for the search: a published rule, or on a CPU one that rises as B^0.5."""
        if self.base_lr is not None:
            rise = (batch_tokens / GPU_BATCH_TOKENS) ** 0.5
            return width_rule(self.base_lr)(model, n_tokens, batch_tokens) * rise
        if self.compute_dtype == "float32":
            return width_rule()(model, n_tokens, batch_tokens) * (batch_tokens / 256) ** 0.5
        return hparams.steplaw_lr(n_params(model, "kaplan"), n_tokens)

    def updates(self, tokens, batch_size):
        return round(tokens / (batch_size * self.n_ctx))

    def runs(self, corpus):
        models, runs = self.ladder(corpus.vocab_size), []
        for cell in product(tokens=self.tokens, batch_size=self.batch_sizes):
            if self.updates(**cell) < self.least_steps:
                kept = sum(
                    self.updates(cell["tokens"], b) >= self.least_steps for b in self.batch_sizes
                )
                why = f"fewer than {self.least_steps} updates"
                drop(f"{cell['tokens']:.6g} tokens", f"a batch of {cell['batch_size']}", why, kept)
        for model in models:
            for cell in product(batch_size=self.batch_sizes, tokens=self.tokens):
                steps = self.updates(**cell)
                if steps < self.least_steps:
                    continue
                for choice in product(lr_factor=self.lr_factors, seed=self.seeds):
                    spec = make_run(
                        model,
                        steps=steps,
                        data=self.data(corpus),
                        evals=self.evals(corpus),
                        batch_size=cell["batch_size"],
                        learning_rate=self.learning_rate,
                        compute_dtype=self.compute_dtype,
                        **choice,
                    )
                    spec = replace(spec, schedule=self.schedule(spec))
                    labels = {"family": "transformer", "lr_factor": choice["lr_factor"]}
                    runs.append(Run(spec, labels | {"horizon": cell["tokens"]}))
        return runs


SCALES = {
    "cpu": LearningRate(
        vocab_size=512,
        sizes=(3.5e3, 9.6e3, 3.8e4),
        tokens=(4e4, 1.6e5, 6.4e5),
        batch_sizes=(1, 4, 16),
        n_layer=2,
        init_std=0.08,
        positions="rotary",
        n_ctx=128,
        eval_tokens=2**15,
        seeds=(0, 1),
    ),
    "gpu": LearningRate(
        **GPU_RECIPE,
        sizes=(1e6, 3.5e6, 1.2e7),
        tokens=(1.7e7, 5e7, 1.5e8),
        batch_sizes=(8, 16, 32, 64, 128),
        lr_factors=(0.125, 0.25, 0.5, 1.0, 2.0, 4.0),
        least_steps=1000,
        n_ctx=512,
        eval_tokens=2**20,
    ),
    "paper": LearningRate(
        vocab_size=65_536,
        sizes=(6e7, 1.2e8, 2.7e8, 5.4e8, 1.07e9),
        tokens=(2e9, 8e9, 2e10, 1e11),
        batch_sizes=(16, 32, 64, 128, 256, 512, 1024),
        lr_factors=(0.125, 0.25, 0.5, 1.0, 2.0, 4.0),
        n_ctx=2048,
        warmup_steps=2000,
        final_lr=1e-5,
        compute_dtype="bfloat16",
        eval_tokens=2**22,
    ),
}
