"""The sweeps that are timed end to end: `lmscale run lmscale/bench/sweep_runs.py`."""

from dataclasses import dataclass, field, replace

from lmscale.architectures import architecture
from lmscale.sweep import Experiment, Run, make_run, product, width_rule

#: (n_layer, width) of each architecture: 14 thousand to 300 thousand non-embedding parameters.
SHAPES = {
    "transformer": ((2, 24), (2, 48), (3, 64), (4, 80)),
    "lstm": ((1, 64), (2, 112)),
}
#: Fields in which they differ from the plain models.
INIT = {"transformer": {"init_std": 0.08}, "lstm": {}}


@dataclass(frozen=True, kw_only=True)
class SpeedSweep(Experiment):
    title = "A sweep to time"
    vocab_size: int = 1024
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    model: str = field(default="transformer", metadata={"help": "transformer or lstm"})
    steps: int = field(default=400, metadata={"help": "updates of every run"})
    batch_size: int = field(default=8, metadata={"help": "sequences a batch"})
    n_ctx: int = 128

    def runs(self, corpus):
        shared = {"n_ctx": self.n_ctx, "vocab_size": corpus.vocab_size}
        models = [
            replace(architecture(self.model).of_shape(n_layer, width, **shared), **INIT[self.model])
            for n_layer, width in SHAPES[self.model]
        ]
        return [
            Run(
                make_run(
                    choice["model"],
                    steps=self.steps,
                    data=self.data(corpus),
                    evals=self.evals(corpus),
                    batch_size=self.batch_size,
                    learning_rate=width_rule(),
                    seed=choice["seed"],
                ),
                {"family": self.model},
            )
            for choice in product(model=models, seed=self.seeds)
        ]


SCALES = {"cpu": SpeedSweep(eval_tokens=16_384)}
