"""The critical batch: how many steps and how many tokens a loss takes, by batch size.

Kaplan et al. 2020, Figs. 10 and 18, after McCandlish et al. 2018. Models of two sizes are trained at
constant learning rate with batches of many sizes. To reach a given loss, S steps of B tokens are
needed, E = B S tokens in all, and (S/S_min - 1)(E/E_min - 1) = 1; the critical batch is
B_crit = E_min / S_min, twice as many steps and tokens as the least of each. The paper found that it
depends on the loss alone and not on the size, B_crit = 2.1e8 / L^4.8 tokens, so that it doubles
when the loss falls by 13%, and that it roughly agrees with the gradient noise scale.

    lmscale run batch_size                    # cpu: 2 sizes x 6 batches x 6 seeds, minutes on two cores
    lmscale run batch_size --scale gpu        # 2 sizes x 7 batches x 3 seeds, under an hour on one H100
    lmscale plan batch_size --scale paper --device v5p:256

A batch of B is trained for steps * (1 + turning_batch / B) updates, along the hyperbola that one
expects, so that all batches reach the same losses. Its learning rate is that of a very large batch
over sqrt(1 + turning_batch / B): the square root of the batch where noise rules, constant where it
does not (McCandlish et al. found powers of 0.5 to 1 for Adam below the critical batch, none above).
`--lr-factors 0.5 1 2` searches around it, and each loss then takes the rate that reaches it first.
Losses are read after a sixth of each run: before it warmup and learning rate set the pace, not noise.
The paper publishes neither its batches nor its learning rates; here they are 2^15 to 2^21 tokens
around its own batch of 2^19, and its rule for that batch.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from lmscale import hparams
from lmscale.spec import TransformerSpec
from lmscale.sweep import (
    GPU_BATCH_TOKENS,
    GPU_RECIPE,
    ByWidth,
    Run,
    default_rule,
    finding,
    init_by_width,
    make_run,
    product,
    published_number,
)

NEEDS_MORE = "more seeds (--seeds 0 1 2 3 4 5), or the scale gpu"


@dataclass(frozen=True, kw_only=True)
class BatchSize(ByWidth):
    title = "The critical batch: steps against tokens to the same loss"
    analyses = ("critical_batch", "curves")
    claims = (
        finding(
            "critical_batch/size_ratio",
            "The critical batch depends on the loss alone, not on the size of the model (here: to a "
            "factor of 1.5; our bound).",
            "Kaplan et al. 2020, Fig. 10",
            at_least=0.67,
            at_most=1.5,
            would_tell=NEEDS_MORE,
        ),
        finding(
            "critical_batch/power",
            "The critical batch grows as the loss falls.",
            "Kaplan et al. 2020, eq. 5.3 and Fig. 10",
            at_least=0.0,
            would_tell=NEEDS_MORE,
        ),
        published_number(
            "critical_batch/power",
            "The critical batch grows as the loss falls, as L^−4.8: it doubles for every 13%.",
            "Kaplan et al. 2020, eq. 5.3 and Fig. 10",
            3.8,
            5.8,
            would_tell=NEEDS_MORE,
        ),
        finding(
            "critical_batch/noise_ratio",
            "The gradient noise scale roughly agrees with the critical batch (here: to a factor of 3; "
            "our bound).",
            "Kaplan et al. 2020, Fig. 10; McCandlish et al. 2018, Fig. 5",
            at_least=0.33,
            at_most=3.0,
            would_tell=NEEDS_MORE,
        ),
    )

    shapes: tuple[str, ...] = field(metadata={"help": "of the models: LAYERSxWIDTH"})

    batch_sizes: tuple[int, ...] = field(metadata={"help": "sequences"})
    steps: int = field(metadata={"help": "of a very large batch"})
    turning_batch: int = field(
        metadata={"help": "sequences where steps and learning rates stop following the batch"}
    )
    n_ctx: int
    evaluations: int = field(default=24, metadata={"help": "of a run, at log-spaced steps"})
    noise_pieces: int = field(default=2, metadata={"help": "of a batch, for the noise scale"})
    lr_factors: tuple[float, ...] = field(
        default=(1.0,), metadata={"help": "multiples of the learning-rate rule to try per cell"}
    )
    compute_dtype: str = "float32"

    def learning_rate(self, model, n_tokens, batch_tokens):
        """The rule of the models' experiments, at its batch, carried over to this one."""
        turning = self.turning_batch * self.n_ctx
        rate = default_rule(self.compute_dtype, self.base_lr)(model, n_tokens, batch_tokens)
        at_rule = hparams.KAPLAN_BATCH
        if self.base_lr is not None or self.compute_dtype == "float32":
            # Measured with a cosine; at a constant rate three quarters did better.
            at_rule, rate = 256 if self.base_lr is None else GPU_BATCH_TOKENS, 0.75 * rate
        return rate * math.sqrt((1 + turning / at_rule) / (1 + turning / batch_tokens))

    def runs(self, corpus):
        runs = []
        for choice in product(
            shape=self.shapes,
            batch_size=self.batch_sizes,
            lr_factor=self.lr_factors,
            seed=self.seeds,
        ):
            shape = choice.pop("shape")
            n_layer, width = map(int, shape.split("x"))
            model = TransformerSpec(
                n_layer=n_layer,
                d_model=width,
                n_head=max(1, width // (64 if width >= 256 else 16)),
                n_ctx=self.n_ctx,
                vocab_size=corpus.vocab_size,
                init_std=self.init_std or init_by_width(width),
                positions=self.positions,
            )
            steps = round(self.steps * (1 + self.turning_batch / choice["batch_size"]))
            spec = make_run(
                model,
                steps=steps,
                data=self.data(corpus),
                evals=self.evals(corpus),
                eval_steps=log_spaced(steps / 6, steps, self.evaluations),
                learning_rate=self.learning_rate,
                schedule="constant",
                noise_pieces=self.noise_pieces,
                compute_dtype=self.compute_dtype,
                **choice,
            )
            runs.append(Run(spec, {"family": "transformer", "lr_factor": choice["lr_factor"]}))
        return runs


def log_spaced(first, last, count):
    """Distinct whole steps, evenly spaced in the logarithm."""
    return tuple(sorted({round(step) for step in np.geomspace(max(1, first), last, count)}))


SCALES = {
    "cpu": BatchSize(
        vocab_size=512,
        shapes=("2x16", "2x32"),
        # As in the other experiments on CPU: widths of 24 and 32 start badly from 0.02.
        init_std=0.08,
        positions="rotary",
        batch_sizes=(2, 4, 8, 16, 32, 64),
        steps=220,
        turning_batch=16,
        n_ctx=128,
        evaluations=16,
        eval_tokens=2**13,
        seeds=(0, 1, 2, 3, 4, 5),
    ),
    "gpu": BatchSize(
        **GPU_RECIPE,
        shapes=("4x128", "6x256"),
        batch_sizes=(4, 8, 16, 32, 64, 128, 256),
        steps=1000,
        turning_batch=32,
        n_ctx=512,
        eval_tokens=2**18,
        seeds=(0, 1, 2),
    ),
    "paper": BatchSize(
        vocab_size=50_257,
        # The 3M and 85M models of the paper.
        shapes=("4x256", "12x768"),
        batch_sizes=(32, 64, 128, 256, 512, 1024, 2048),
        steps=60_000,
        turning_batch=512,
        n_ctx=1024,
        compute_dtype="bfloat16",
        eval_tokens=2**24,
    ),
}
