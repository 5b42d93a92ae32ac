"""Learning-rate schedules of one model: does the shape matter, and must a cosine end with the run?

Kaplan et al. 2020, Fig. 22, and Hoffmann et al. 2022, App. B. One model is trained for one number of
steps under many schedules. Kaplan et al. found that the choice is mostly irrelevant as long as the
summed learning rate is large, there is a warmup, and the rate decays at the end: what is left is the
0.05 nats that runs differ by. Hoffmann et al. found that a cosine whose cycle is more than a quarter
longer than the run ends clearly higher, and that a decay to a tenth is slightly better than to zero.

    lmscale run schedules                # cpu: 17 schedules x 4 seeds, 16 minutes on two cores
    lmscale run schedules --scale gpu    # 17 schedules x 5 seeds, under an hour on one H100
    lmscale plan schedules --scale paper --device v5p:256

The best peak rate depends on the schedule: a constant one wants about half of a cosine's (Hagele et
al. 2024). `--lr-factors 0.5 1 2` searches it for every schedule and keeps the best; without a search
the schedules are compared at one peak. At paper scale the model of 3M parameters, the context, the
batch, the steps and the peak are those of Kaplan et al., whose list of schedules is not published.
"""

import itertools
from dataclasses import dataclass, field, replace

from lmscale import hparams
from lmscale.spec import ScheduleSpec
from lmscale.sweep import (
    GPU_RECIPE,
    ByWidth,
    Run,
    default_rule,
    finding,
    make_run,
    transformer_shape,
)

#: Cosine cycles over steps of the run in Hoffmann et al. 2022, App. B.
OVERSHOOTS = (1.1, 1.25, 1.5, 2.0, 5.0)


def summed_learning_rate(spec):
    """Sum of the learning rates of all updates of a run; of more than a million, by so many of them."""
    # Imported here, so that the experiment can be listed without a wait for jax.
    import jax.numpy as jnp

    from lmscale.training.schedule import learning_rate, schedule_hyperparameters

    # Steps are 32-bit numbers; no run takes more of them.
    steps = min(spec.steps, 2**31 - 1)
    hyper = schedule_hyperparameters(spec)
    hyper = {k: jnp.asarray(min(v, 2**31 - 1)) for k, v in hyper.items()}
    stride = -(-steps // 1_000_000)
    return stride * float(learning_rate(jnp.arange(0, steps, stride), hyper).sum())


@dataclass(frozen=True, kw_only=True)
class Schedules(ByWidth):
    title = "Learning-rate schedules of one model"
    analyses = ("schedules", "curves")
    claims = (
        finding(
            "schedules/spread",
            "Among schedules with a warmup, a final decay and a large summed rate the choice "
            "hardly matters: the best and the worst are within the 0.05 nats that runs differ by.",
            "Kaplan et al. 2020, Fig. 22",
            at_most=0.05,
            would_tell="runs of 250 thousand steps, as in the paper: the scale paper",
        ),
        finding(
            "schedules/overshoot",
            "A cosine whose cycle is twice the run ends higher than one that ends with the run.",
            "Hoffmann et al. 2022, App. B",
            at_least=0.0,
            would_tell="more seeds, or a search of the peak rate for both",
        ),
        finding(
            "schedules/overshoot_quarter",
            "A cycle up to a quarter longer than the run costs less than 0.02 nats (our bound).",
            "Hoffmann et al. 2022, App. B",
            at_most=0.02,
            would_tell="more seeds",
        ),
        finding(
            "schedules/zero_over_tenth",
            "A cosine to a tenth of the peak ends slightly lower than one to zero.",
            "Hoffmann et al. 2022, App. B",
            at_least=0.0,
            would_tell="longer runs and a search of the peak rate for both",
        ),
        finding(
            "schedules/cosine_over_linear",
            "A linear decay to zero ends lower than a cosine to a tenth.",
            "Bergsma et al. 2025",
            at_least=0.0,
            would_tell="a search of the peak rate for both, at 20 tokens a parameter and more",
        ),
        finding(
            "schedules/cooldown_over_cosine",
            "A constant rate with a cooldown over the last fifth matches a cosine, to 0.02 nats "
            "(our bound).",
            "Hägele et al. 2024",
            at_least=-0.02,
            at_most=0.02,
            would_tell="more seeds, and a search of the peak rate for both",
        ),
    )

    size: float = field(metadata={"help": "non-embedding parameters of the model"})
    n_layer: int | None = field(
        default=None, metadata={"help": "its depth, instead of one by size"}
    )

    steps: int
    n_ctx: int
    batch_size: int = field(metadata={"help": "sequences"})
    warmup_steps: int
    lr_factors: tuple[float, ...] = field(
        default=(1.0,), metadata={"help": "multiples of the learning-rate rule, per schedule"}
    )
    lr_fit: str | None = field(
        default=None, metadata={"help": "fits.json of `learning_rate`, for its rule of the peak"}
    )
    optimizer: str = "adamw"
    compute_dtype: str = "float32"

    def schedules(self):
        """(name, schedule, cycle over run for the cosines of Hoffmann et al., whether it decays).

        It decays where it warms up and falls, to a tenth or less, at the end of the run.
        """

        def schedule(name, **fields):
            fields = {"warmup_steps": self.warmup_steps, "final_fraction": 0.1} | fields
            return ScheduleSpec(name=name, **fields)

        def part(share):
            return max(1, round(share * self.steps))

        yield "cosine to 0.1", schedule("cosine"), 1.0, True
        yield "cosine to 0", schedule("cosine", final_fraction=0.0), None, True
        yield "linear to 0.1", schedule("linear"), None, True
        yield "linear to 0", schedule("linear", final_fraction=0.0), None, True
        yield "linear to 0.01", schedule("linear", final_fraction=0.01), None, True
        for share in (0.2, 0.5):
            cooldown = schedule("cooldown", final_fraction=0.0, cooldown_steps=part(share))
            yield f"cooldown over {share:.0%}", cooldown, None, True
        # Down to a tenth long before the end, and on at that: no final decay.
        yield "cosine, half the run", schedule("cosine", cycle_steps=part(0.5)), None, False
        yield "linear, a quarter", schedule("linear", cycle_steps=part(0.25)), None, False
        yield "constant", schedule("constant"), None, False
        yield "inverse square root", schedule("inverse_sqrt"), None, False
        yield "cosine, no warmup", schedule("cosine", warmup_steps=0), None, False
        for cycle in OVERSHOOTS:
            name = f"cosine, cycle {cycle:g}x"
            yield name, schedule("cosine", cycle_steps=part(cycle)), cycle, False

    def learning_rate(self, model, n_tokens, batch_tokens):
        if self.lr_fit:
            return hparams.fitted_rule(self.lr_fit)(model, n_tokens, batch_tokens)
        return default_rule(self.compute_dtype, self.base_lr)(model, n_tokens, batch_tokens)

    def runs(self, corpus):
        model = transformer_shape(
            self.size,
            n_ctx=self.n_ctx,
            vocab_size=corpus.vocab_size,
            n_layer=self.n_layer,
            init_std=self.init_std,
            positions=self.positions,
        )
        runs = []
        for (name, schedule, cycle, decays), factor in itertools.product(
            self.schedules(), self.lr_factors
        ):
            specs = [
                make_run(
                    model,
                    steps=self.steps,
                    data=self.data(corpus),
                    evals=self.evals(corpus),
                    batch_size=self.batch_size,
                    learning_rate=self.learning_rate,
                    lr_factor=factor,
                    optimizer=self.optimizer,
                    compute_dtype=self.compute_dtype,
                    seed=seed,
                )
                for seed in self.seeds
            ]
            specs = [replace(spec, schedule=schedule) for spec in specs]
            labels = {
                "family": "transformer",
                "cell": name,
                "lr_factor": factor,
                "cycle": cycle,
                "decays": decays,
                "summed_lr": summed_learning_rate(specs[0]),
            }
            runs += [Run(spec, labels) for spec in specs]
        return runs


SCALES = {
    "cpu": Schedules(
        vocab_size=512,
        size=1.4e4,
        n_layer=2,
        init_std=0.08,
        positions="rotary",
        steps=25_000,
        n_ctx=128,
        batch_size=1,
        warmup_steps=1250,
        seeds=(0, 1, 2, 3),
    ),
    "gpu": Schedules(
        **GPU_RECIPE,
        size=3e6,
        steps=4000,
        n_ctx=512,
        batch_size=32,
        warmup_steps=200,
        eval_tokens=2**20,
        seeds=(0, 1, 2, 3, 4),
    ),
    "paper": Schedules(
        vocab_size=50_257,
        size=3e6,
        steps=250_000,
        n_ctx=1024,
        batch_size=512,
        warmup_steps=3000,
        optimizer="adam",
        compute_dtype="bfloat16",
        eval_tokens=2**22,
        seeds=(0, 1, 2),
    ),
}
